"""What can be checked of a dataset in the store: whether it is whole, of the same schema, plausible in size, fresh."""

# ruff: noqa: D102  (each kind implements a contract whose docstrings say it once)

from __future__ import annotations

import abc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

import dagster as dg

from snapshot_assets.asset_metadata import duration_text, markdown_table, size_text
from snapshot_assets.clock import in_seconds
from snapshot_assets.errors import (
    ConfigurationError,
    CorruptCapture,
    DocumentDamaged,
    SnapshotDamaged,
    SnapshotMissing,
)
from snapshot_assets.model.schema import (
    SchemaPolicy,
    TableSchema,
    classify_schemas,
    difference,
    schemas_compatible,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from snapshot_assets.model.head import Head, SnapshotEntry
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = [
    "Finding",
    "FreshnessCheck",
    "IntegrityCheck",
    "Look",
    "RowCountCheck",
    "SchemaCheck",
    "SnapshotCheck",
]

_TABLES_PLOTTED: Final = 20
"""Of a dataset with more tables than this only the sum of their rows is plotted."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a check looks at.

    Attributes:
        store: where the dataset is published.
        head: the dataset's head, read once for all checks of a step.
        current: the snapshot that the head calls current.
        now_ms: this machine's time.
    """

    store: SnapshotStore
    head: Head
    current: SnapshotEntry
    now_ms: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, in a sentence, and what the UI shows beside it."""

    passed: bool
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotCheck(abc.ABC):
    """One check of a dataset in the store.

    Attributes:
        name: the check's name in Dagster.
        severity: what a failed one is shown as.
    """

    name: str
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """What is asked for, in a sentence."""

    @abc.abstractmethod
    def look_at(self, look: Look) -> Finding:
        """Check the dataset.

        Raises:
            SnapshotAssetsError: it could not be looked at, which is neither a pass nor a fail.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegrityCheck(SnapshotCheck):
    """The current snapshot is read from the store, and is what its manifest promises.

    Args:
        level: `restore` reads and checks every byte and opens the result with the engine; `digest` does not open it;
            `sizes` only looks whether every object is there. The first two need the snapshot's size in temporary space.
        name: the check's name in Dagster.
        severity: what a failed one is shown as.
    """

    level: Literal["sizes", "digest", "restore"] = "restore"
    name: str = "snapshot_integrity"

    @property
    def description(self) -> str:
        what = {
            "sizes": "every object of it is in the store",
            "digest": "every byte of it can be read from the store, and has its digest",
            "restore": "every byte of it can be read from the store, has its digest, and the engine opens the result",
        }
        return f"The current snapshot is whole: {what[self.level]}."

    def look_at(self, look: Look) -> Finding:
        from snapshot_assets.maintenance.maintenance import Maintenance

        head, number = look.head, look.current.snapshot_id
        started = time.monotonic()
        try:
            report = Maintenance(look.store).verify(head.dataset, number, self.level)
        except (SnapshotDamaged, CorruptCapture, DocumentDamaged) as error:
            shown = {"check/snapshot": str(number), "check/error": error.kind, "check/hint": error.hint}
            return Finding(False, f"Snapshot {number} is damaged: {error.message.rstrip('.')}.", shown)
        done = {
            "sizes": f"all {report.packs} packs are there",
            "digest": "all of it was read and checked",
            "restore": f"all of it was read, checked and opened with {head.engine}",
        }
        return Finding(
            True,
            f"Snapshot {number} is whole: {size_text(report.data_bytes)}, {done[self.level]}.",
            {
                "check/snapshot": str(number),
                "check/data_bytes": report.data_bytes,
                "check/read_bytes": report.read_bytes,
                "check/seconds": round(time.monotonic() - started, 3),
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class SchemaCheck(SnapshotCheck):
    """The current snapshot's tables have the columns of the snapshot before it, or of a contract.

    A publish refuses what breaks readers unless it was allowed, so by default this one warns.

    Args:
        policy: `strict` finds every change; `widening` only those that a reader of the old schema could not take.
        contract: the tables and their Arrow schemas to compare with, instead of the snapshot before.
        name: the check's name in Dagster.
        severity: what a failed one is shown as.

    Raises:
        ConfigurationError: there is no such policy.
    """

    policy: SchemaPolicy
    contract: Mapping[str, TableSchema] | None

    def __init__(
        self,
        *,
        policy: Literal["strict", "widening"] = "strict",
        contract: Mapping[str, pa.Schema | TableSchema] | None = None,
        name: str = "schema_drift",
        severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN,
    ) -> None:
        if policy not in {"strict", "widening"}:
            raise ConfigurationError(f"policy is {policy!r}; it takes one of 'strict', 'widening'")
        tables = None
        if contract is not None:
            tables = {
                table: schema if isinstance(schema, TableSchema) else TableSchema.from_arrow(schema)
                for table, schema in contract.items()
            }
        values = {"policy": SchemaPolicy(policy), "contract": tables, "name": name, "severity": severity}
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @property
    def description(self) -> str:
        against = "the snapshot before it" if self.contract is None else "its contract"
        strict = self.policy is SchemaPolicy.STRICT
        allowed = "" if strict else ", apart from tables and columns that are added and types that are widened"
        return f"The current snapshot has the tables and columns of {against}{allowed}."

    def look_at(self, look: Look) -> Finding:
        head, current = look.head, look.current
        now = head.tables(current.schema_id)
        mine = f"snapshot {current.snapshot_id}"
        if self.contract is not None:
            old, theirs = self.contract, "the contract"
        else:
            before = _before(head, current)
            if before is None:
                return Finding(True, f"{mine.capitalize()} is the first that is listed; there is none before it.")
            old, theirs = head.tables(before.schema_id), f"snapshot {before.snapshot_id}"
        change = classify_schemas(old, now, nullability=False)
        shown: dict[str, Any] = {"check/snapshot": str(current.snapshot_id), "check/change": change.value}
        differs = difference(old, now)
        if differs:
            legend = f"Left: {theirs}. Right: {mine}. A `>` stands where they part."
            shown["check/difference"] = dg.MetadataValue.md(f"{legend}\n\n```text\n{differs}\n```")
        passed = schemas_compatible(old, now, self.policy)
        verb = {"identical": "is that", "widening": "is wider than that", "incompatible": "does not fit that"}
        return Finding(passed, f"The schema of {mine} {verb[change.value]} of {theirs}.", shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCountCheck(SnapshotCheck):
    """Each table of the current snapshot has a plausible number of rows, compared with the snapshot before it.

    Args:
        min_rows: the least rows of each table.
        max_drop: the largest share of its rows that a table may have lost, 0 to 1; none: any.
        max_growth: the largest share by which a table may have grown: 1.0 is twice as many rows; none: any.
        tables: the tables to look at; all, when it is left out.
        name: the check's name in Dagster.
        severity: what a failed one is shown as.

    Raises:
        ConfigurationError: a bound makes no sense.
    """

    min_rows: int = 1
    max_drop: float | None = 0.5
    max_growth: float | None = None
    tables: Sequence[str] | None = None
    name: str = "row_count_change"

    def __post_init__(self) -> None:
        if self.min_rows < 0:
            raise ConfigurationError(f"min_rows is {self.min_rows}; it takes a number from 0")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise ConfigurationError(f"max_drop is {self.max_drop}; it takes a share from 0 to 1")
        if self.max_growth is not None and self.max_growth < 0:
            raise ConfigurationError(f"max_growth is {self.max_growth}; it takes a share from 0")

    @property
    def description(self) -> str:
        bounds = [f"at least {self.min_rows:,} row{'s' if self.min_rows > 1 else ''}"] if self.min_rows else []
        if self.max_drop is not None:
            bounds.append(f"at most {self.max_drop:.0%} fewer than before")
        if self.max_growth is not None:
            bounds.append(f"at most {self.max_growth:.0%} more than before")
        return f"Each table of the current snapshot has {', '.join(bounds) or 'any number of rows'}."

    def look_at(self, look: Look) -> Finding:
        head, current = look.head, look.current
        now = _row_counts(look.store, head, current)
        earlier = _before(head, current)
        before = {} if earlier is None else _row_counts(look.store, head, earlier)
        tables = sorted(now.keys() | before.keys()) if self.tables is None else list(self.tables)
        problems = {table: self._problem(before.get(table), now.get(table)) for table in tables}
        found = [f"{table} {problem}" for table, problem in problems.items() if problem]
        columns = ("table", "before", "now", "change", "")
        rows = [
            (table, _count(before.get(table)), _count(now.get(table)), _change(before.get(table), now.get(table)), why)
            for table, why in problems.items()
        ]
        compared = "the first snapshot" if earlier is None else f"snapshot {earlier.snapshot_id}"
        shown: dict[str, Any] = {
            "check/snapshot": str(current.snapshot_id),
            "check/compared_with": "nothing: it is the first that is listed" if earlier is None else compared,
            "check/row_counts": dg.MetadataValue.md(markdown_table(columns, rows, right={"before", "now", "change"})),
            "check/rows": sum(now.get(table, 0) for table in tables),
        }
        if 1 < len(tables) <= _TABLES_PLOTTED:
            shown |= {f"check/rows/{table}": now.get(table, 0) for table in tables}
        if found:
            return Finding(False, f"Snapshot {current.snapshot_id}: {'; '.join(found)}.", shown)
        return Finding(True, f"Snapshot {current.snapshot_id} has {shown['check/rows']:,} rows.", shown)

    def _problem(self, before: int | None, now: int | None) -> str:
        if now is None:
            return "is not in it" if before is None else "is gone"
        if now < self.min_rows:
            return f"has {now:,} rows, at least {self.min_rows:,} are asked for"
        if not before:
            return ""
        # A share is a quotient that is rounded once, as the bound is: a change of just the bound is equal to it.
        if self.max_drop is not None and (before - now) / before > self.max_drop:
            return f"fell from {before:,} to {now:,} rows, by more than {self.max_drop:.0%}"
        if self.max_growth is not None and (now - before) / before > self.max_growth:
            return f"grew from {before:,} to {now:,} rows, by more than {self.max_growth:.0%}"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshnessCheck(SnapshotCheck):
    """The content that readers are to serve was published not too long ago.

    The age counts from the commit of the current snapshot. A publish of unchanged content makes no snapshot, so it does
    not make the content younger: a feed that delivers the same file every day is found. After a rollback it is the age
    of the snapshot that was rolled back to. Publishes that were made without Dagster count. For "the asset ran and was
    materialized", changed or not, there is `dagster.FreshnessPolicy`, passed to `snapshot_asset`.

    The commit was stamped by the publishing machine's clock, and the age is taken by this one's.

    Args:
        max_age: the oldest that the content may be; a duration, or seconds.
        name: the check's name in Dagster.
        severity: what a failed one is shown as.

    Raises:
        ConfigurationError: the age makes no sense.
    """

    max_age: timedelta | float
    name: str = "freshness"

    def __post_init__(self) -> None:
        in_seconds("max_age", self.max_age)

    @property
    def description(self) -> str:
        return f"The content of the current snapshot was published at most {self._longest} ago."

    @property
    def _longest(self) -> str:
        return duration_text(in_seconds("max_age", self.max_age))

    def look_at(self, look: Look) -> Finding:
        current = look.current
        age = max(0.0, (look.now_ms - current.committed_at_ms) / 1000)
        passed = age <= in_seconds("max_age", self.max_age)
        text = f"Snapshot {current.snapshot_id} was published {duration_text(age)} ago"
        return Finding(
            passed,
            f"{text}." if passed else f"{text}; at most {self._longest} is asked for.",
            {
                "check/snapshot": str(current.snapshot_id),
                "check/published_at": dg.MetadataValue.timestamp(current.committed_at_ms / 1000),
                "check/age_seconds": round(age, 1),
            },
        )


def _before(head: Head, current: SnapshotEntry) -> SnapshotEntry | None:
    """The snapshot that the current one followed; when retention has removed it, the newest listed one before it."""
    older = [entry for entry in head.snapshots if entry.snapshot_id < current.snapshot_id]
    parent = [entry for entry in older if entry.snapshot_id == current.parent_snapshot_id]
    return next(reversed(parent or older), None)


def _row_counts(store: SnapshotStore, head: Head, entry: SnapshotEntry) -> dict[str, int]:
    """The rows of each table of a listed snapshot.

    Raises:
        SnapshotMissing: it was removed meanwhile.
        SnapshotDamaged: its manifest is missing or damaged.
    """
    from snapshot_assets.content.snapshot import read_manifest

    try:
        manifest = read_manifest(
            store.objects, head.dataset, head.incarnation, entry.operation_id, entry.manifest_digest
        )
    except SnapshotDamaged:
        if store.head(head.dataset).entry(entry.snapshot_id) is None:
            raise SnapshotMissing(
                f"snapshot {entry.snapshot_id} of {head.dataset!r} was removed while it was looked at",
                hint="Run the check again.",
                dataset=head.dataset,
            ) from None
        raise
    return {table: content.row_count for table, content in manifest.tables.items()}


def _count(rows: int | None) -> str:
    return "-" if rows is None else f"{rows:,}"


def _change(before: int | None, now: int | None) -> str:
    if not before or now is None or now == before:
        return ""
    return f"{(now - before) / before:+.1%}"
