"""What is done to datasets to maintain them, one after the other, so that no failure of one stops the others."""

# ruff: noqa: D102  (each task implements a contract whose docstrings say it once)

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import dagster as dg

from snapshot_assets.asset_metadata import markdown_table, materialization_metadata, size_text
from snapshot_assets.clock import in_seconds
from snapshot_assets.errors import ConfigurationError, SnapshotAssetsError, StoreUnavailable
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.resources.store import SnapshotStoreResource

if TYPE_CHECKING:
    from snapshot_assets.maintenance.cleanup import CleanupRow
    from snapshot_assets.maintenance.optimize import OptimizeResult
    from snapshot_assets.maintenance.repair import RepairRow

__all__ = ["Cleanup", "Maintained", "MaintenanceTask", "Optimize", "Outcome", "RepairPreview", "Verify"]


@dataclass(frozen=True, slots=True)
class Maintained:
    """A dataset that is maintained: its name, the key of its asset, and the dataset itself where it was given."""

    name: str
    key: dg.AssetKey
    dataset: Dataset | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task did to one dataset, in a sentence, and what the UI shows beside it.

    Attributes:
        at: the dataset.
        text: what was done, found, or why it failed.
        metadata: shown with the event of the dataset's asset.
        error: why the task failed.
        data_version: that of a new snapshot; the event is a materialization then, else an observation.
    """

    at: Maintained
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    data_version: str | None = None

    def event(self) -> dg.AssetMaterialization | dg.AssetObservation:
        """What is recorded for the dataset's asset."""
        metadata = dict(self.metadata)
        if isinstance(self.error, SnapshotAssetsError):
            metadata |= {"maintenance/error": self.error.kind, "maintenance/hint": self.error.hint}
        elif self.error is not None:
            metadata["maintenance/error"] = type(self.error).__name__
        if self.data_version is None:
            return dg.AssetObservation(self.at.key, description=self.text, metadata=metadata)
        tags = {"dagster/data_version": self.data_version}
        return dg.AssetMaterialization(self.at.key, description=self.text, metadata=metadata, tags=tags)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceTask(abc.ABC):
    """One kind of maintenance.

    Attributes:
        cron: when it runs by itself; without it, there is a job and no schedule.
    """

    cron: str | Sequence[str] | None = None

    kind: ClassVar[str]
    noun: ClassVar[str]
    description: ClassVar[str]

    @abc.abstractmethod
    def outcomes(self, resource: SnapshotStoreResource, wanted: Sequence[Maintained]) -> Iterator[Outcome]:
        """Do it to each dataset, all of which are published, and tell what became of each as soon as that is known.

        Raises:
            SnapshotAssetsError: nothing can be done to any of them, or to any more of them.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleanup(MaintenanceTask):
    """Remove the snapshots that need not be kept, and what no snapshot needs; see `Maintenance.cleanup`.

    Args:
        keep: the newest snapshots that stay, at least three.
        older_than: only what was published longer ago than this goes; a duration, or seconds.
        grace: how long objects stay after their snapshot has left the head; a duration, or seconds.
        concurrency: how many datasets are cleaned side by side.
        confirm: do it; without it, the run shows what would be done.
        cron: when it runs by itself; without it, there is a job and no schedule.

    Raises:
        RetentionPolicyMissing: neither `keep` nor `older_than` was given.
        ConfigurationError: a setting makes no sense.
    """

    keep: int | None = None
    older_than: timedelta | float | None = None
    grace: timedelta | float = 3600.0
    concurrency: int = 8
    confirm: bool = False

    kind: ClassVar[str] = "cleanup"
    noun: ClassVar[str] = "cleanup"
    description: ClassVar[str] = "Removes snapshots that need not be kept, and deletes what no snapshot needs."

    def __post_init__(self) -> None:
        from snapshot_assets.maintenance.retention import RetentionPolicy

        RetentionPolicy(keep=self.keep, older_than=self.older_than)
        in_seconds("grace", self.grace)
        if self.concurrency < 1:
            raise ConfigurationError(f"concurrency is {self.concurrency}; at least one dataset is cleaned at a time")

    def outcomes(self, resource: SnapshotStoreResource, wanted: Sequence[Maintained]) -> Iterator[Outcome]:
        from snapshot_assets.maintenance.maintenance import Maintenance

        by_name = {one.name: one for one in wanted}
        rows = Maintenance(resource.open_store(read_only=not self.confirm)).cleanup(
            list(by_name),
            keep=self.keep,
            older_than=self.older_than,
            grace=self.grace,
            concurrency=self.concurrency,
            confirm=self.confirm,
        )
        yield from (_cleaned(by_name[row.dataset], row, confirmed=self.confirm) for row in rows)


def _cleaned(at: Maintained, row: CleanupRow, *, confirmed: bool) -> Outcome:
    if row.error is not None:
        return Outcome(at, f"The cleanup failed: {row.error.message}", error=row.error)
    protected = "; ".join(f"{number} ({why})" for number, why in sorted(row.protected.items()))
    shown: dict[str, Any] = {"maintenance/kept_against_the_policy": protected} if protected else {}
    up = f"{_counted(row.objects, 'object')}, {size_text(row.data_bytes)}"
    if not confirmed:
        shown |= {
            "maintenance/planned_snapshots": len(row.removes),
            "maintenance/planned_objects": row.objects,
            "maintenance/planned_bytes": row.data_bytes,
        }
        if row.outcome == "nothing_to_do":
            return Outcome(at, "A cleanup would remove nothing.", shown)
        return Outcome(at, f"A cleanup would remove {_snapshots(row.removes)} ({up}). Nothing was changed.", shown)
    shown |= {
        "maintenance/removed_snapshots": len(row.removes),
        "maintenance/deleted_objects": row.deleted_objects,
        "maintenance/deleted_bytes": row.deleted_bytes,
    }
    said = []
    if row.removes:
        said.append(f"Removed {_snapshots(row.removes)}.")
    if row.deleted_objects:
        said.append(f"Deleted {_counted(row.deleted_objects, 'object')}, {size_text(row.deleted_bytes)}.")
    if row.objects and row.not_before_ms is not None and row.deleted_objects < row.objects:
        when = datetime.fromtimestamp(row.not_before_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
        said.append(f"{up}, stay until {when}; the next cleanup or publish after that deletes them.")
    return Outcome(at, " ".join(said) or "Nothing to remove.", shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimize(MaintenanceTask):
    """Let each engine rewrite its live database, and publish it; see `Maintenance.optimize`.

    A dataset with nothing to rewrite is skipped and not published. A rewritten one is published with all that changed
    in its live database, and its asset is materialized. The rewritten bytes have another content digest, so its data
    version changes and what is downstream is stale once, though the rows are the same.

    Args:
        cron: when it runs by itself; without it, there is a job and no schedule.
    """

    kind: ClassVar[str] = "optimize"
    noun: ClassVar[str] = "optimization"
    description: ClassVar[str] = "Lets each engine rewrite its live database, and publishes what was rewritten."

    def outcomes(self, resource: SnapshotStoreResource, wanted: Sequence[Maintained]) -> Iterator[Outcome]:
        from snapshot_assets.maintenance.maintenance import Maintenance

        store = resource.open_store()
        maintenance = Maintenance(store)

        def optimize(at: Maintained) -> Outcome:
            assert at.dataset is not None  # build_maintenance takes no other
            with resource.open_publisher() as publisher:
                result = maintenance.optimize(at.dataset, publisher=publisher)
            shown = _figures(result)
            if result.publish is None:
                return Outcome(at, f"Not rewritten: {result.detail}.", shown)
            shown |= materialization_metadata(store, result.publish)
            return Outcome(at, f"Rewritten: {result.detail}.", shown, data_version=result.publish.content_digest)

        yield from _one_after_the_other(self.noun, resource, wanted, optimize)


def _figures(result: OptimizeResult) -> dict[str, Any]:
    shown: dict[str, Any] = {f"maintenance/{name}": value for name, value in result.figures.items()}
    return shown | {"maintenance/optimize_seconds": round(result.seconds.get("optimize", 0.0), 3)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify(MaintenanceTask):
    """Check the current snapshot of each dataset in the store; see `Maintenance.verify`.

    Args:
        level: `sizes` looks whether every object is there; `digest` reads and checks all of it; `restore` opens what
            was read with the engine, too. The last two need the size of the largest snapshot in temporary space.
        cron: when it runs by itself; without it, there is a job and no schedule.
    """

    level: Literal["sizes", "digest", "restore"] = "restore"

    kind: ClassVar[str] = "verify"
    noun: ClassVar[str] = "verification"
    description: ClassVar[str] = "Checks in the store that the current snapshot of each dataset is whole."

    def outcomes(self, resource: SnapshotStoreResource, wanted: Sequence[Maintained]) -> Iterator[Outcome]:
        from snapshot_assets.maintenance.maintenance import Maintenance

        maintenance = Maintenance(resource.open_store(read_only=True))

        def verify(at: Maintained) -> Outcome:
            started = time.monotonic()
            report = maintenance.verify(at.name, level=self.level)
            shown = {
                "maintenance/snapshot": str(report.snapshot_id),
                "maintenance/verified_bytes": report.data_bytes,
                "maintenance/read_bytes": report.read_bytes,
                "maintenance/verify_seconds": round(time.monotonic() - started, 3),
            }
            text = f"Snapshot {report.snapshot_id} is whole: {size_text(report.data_bytes)}, checked by {self.level}."
            return Outcome(at, text, shown)

        yield from _one_after_the_other(self.noun, resource, wanted, verify)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPreview(MaintenanceTask):
    """Show what dead processes left of each dataset, and what settles it; see `Maintenance.repair`. Changes nothing.

    Args:
        cron: when it runs by itself; without it, there is a job and no schedule.
    """

    kind: ClassVar[str] = "repair_preview"
    noun: ClassVar[str] = "repair preview"
    description: ClassVar[str] = "Shows what dead processes left, and what settles it. Nothing is changed."

    def outcomes(self, resource: SnapshotStoreResource, wanted: Sequence[Maintained]) -> Iterator[Outcome]:
        from snapshot_assets.maintenance.maintenance import Maintenance

        # Of many, all of the store at once: the readers' announcements, which all share, are read once then.
        name = wanted[0].name if len(wanted) == 1 else None
        rows = Maintenance(resource.open_store(read_only=True)).repair(name)
        for at in wanted:
            yield _previewed(at, [row for row in rows if row.dataset == at.name])


def _previewed(at: Maintained, rows: Sequence[RepairRow]) -> Outcome:
    shown: dict[str, Any] = {"maintenance/unsettled": len(rows)}
    if not rows:
        return Outcome(at, "Nothing to repair.", shown)
    cells = [
        (row.kind, row.subject, row.found if row.error is None else row.error.message, row.action, row.settled_by)
        for row in rows
    ]
    columns = ("kind", "what", "found", "a repair would", "settled by")
    shown["maintenance/findings"] = dg.MetadataValue.md(markdown_table(columns, cells))
    error = next((row.error for row in rows if row.error is not None), None)
    if error is not None:
        return Outcome(at, f"It can not be repaired: {error.message}", shown, error=error)
    return Outcome(at, f"{_counted(len(rows), 'finding')}: {'; '.join(_found(row) for row in rows[:3])}.", shown)


def _found(row: RepairRow) -> str:
    return f"{row.kind} {row.subject} is {row.found}" if row.kind != "orphans" else row.found


def _one_after_the_other(
    noun: str, resource: SnapshotStoreResource, wanted: Sequence[Maintained], one: Callable[[Maintained], Outcome]
) -> Iterator[Outcome]:
    """The outcome of each dataset; a failure is the outcome of its dataset. A store that is gone ends it.

    Raises:
        StoreUnavailable: the store does not answer any more, so asking for each of the others would only take long.
    """
    for at in wanted:
        try:
            yield one(at)
        except StoreUnavailable as error:
            yield _failed(noun, at, error)
            resource.open_store(read_only=True).heads()
        except Exception as error:  # noqa: BLE001  (engines raise errors of their own; the run fails with them in the end)
            yield _failed(noun, at, error)


def _failed(noun: str, at: Maintained, error: Exception) -> Outcome:
    return Outcome(at, f"The {noun} failed: {error}", error=error)


def _snapshots(ids: Sequence[int]) -> str:
    if not ids:
        return "no snapshot"
    return f"snapshot {ids[0]}" if len(ids) == 1 else f"{len(ids)} snapshots ({min(ids)} to {max(ids)})"


def _counted(count: int, word: str) -> str:
    return f"1 {word}" if count == 1 else f"{count:,} {word}s"
