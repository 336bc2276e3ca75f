"""One sensor that notices, for any number of datasets, what readers should serve anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import dagster as dg

from snapshot_assets.asset_metadata import asset_of
from snapshot_assets.engines.registry import check_datasets
from snapshot_assets.errors import ConfigurationError, SnapshotAssetsError, StoreUnavailable
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import Head
from snapshot_assets.resources.store import SnapshotStoreResource
from snapshot_assets.sensors.cursor import HeadCursor
from snapshot_assets.sensors.reload import ReloadTarget, reload_request, reload_run_config

if TYPE_CHECKING:
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["build_snapshot_sensor"]

_READERS: Final = 16
_RETRY_SECONDS: Final = 10.0
_TICK_SECONDS: Final = 40.0
"""How long after its start a tick still waits for heads; Dagster ends a tick after 60 seconds."""


def build_snapshot_sensor(
    datasets: Sequence[Dataset | str | dg.AssetsDefinition],
    *,
    job: dg.JobDefinition | dg.UnresolvedAssetJobDefinition | None = None,
    name: str = "snapshot_sensor",
    minimum_interval_seconds: int = 30,
    max_requests: int = 25,
    run_config: Callable[[ReloadTarget], dg.RunConfig | Mapping[str, Any]] = reload_run_config,
    store_key: str = "snapshot_store",
    **sensor_args: Any,
) -> dg.SensorDefinition:
    """Build the sensor that requests a run for every snapshot that readers should go to.

    A tick lists all heads with one request, compares them with its cursor, and reads, in parallel, only those that
    changed. For each whose generation rose (a publish or a rollback; not a pin or a writer's claim), and at the first
    look for each that has a snapshot, it requests a run with the key ``dataset:incarnation:generation`` and records an
    observation of the asset. The cursor passes only what was requested, so nothing is forgotten when a tick is cut
    short, and the run key keeps anything from being requested twice.

    A dataset whose head can not be read is named in the tick's log, in its skip reason and in an observation of its
    own, and holds up no other. A store that does not answer fails the tick and leaves the cursor where it was.

    Args:
        datasets: what to look at: datasets, their names, or assets made by `snapshot_asset`. The key of an asset is
            the dataset's name unless the asset itself is given.
        job: what to run; usually from `build_reload_job`.
        name: the sensor's name.
        minimum_interval_seconds: the least time between two ticks.
        max_requests: the most runs that one tick asks for; the rest follows with the next ticks, in turn.
        run_config: makes the run's configuration; only for a job of your own.
        store_key: the name of the `SnapshotStoreResource`.
        sensor_args: passed on to `dagster.SensorDefinition` (`description`, `default_status`, `tags` ...).

    Raises:
        ConfigurationError: a dataset stands twice, two of them publish one live file, or `max_requests` is below 1.
    """
    check_datasets(dataset for dataset in datasets if isinstance(dataset, Dataset))
    keys = dict(asset_of(dataset) for dataset in datasets)
    if len(keys) != len(datasets):
        raise ConfigurationError("the sensor is given the same dataset twice")
    if max_requests < 1:
        raise ConfigurationError(f"max_requests is {max_requests}; a tick must be able to ask for one run")
    names = tuple(sorted(keys))

    # Dagster hands the resources over as arguments too when a sensor is called directly, as tests do.
    def tick(context: dg.SensorEvaluationContext, **_: object) -> dg.SensorResult:
        deadline = time.monotonic() + _TICK_SECONDS
        resource: SnapshotStoreResource = getattr(context.resources, store_key)
        store = resource.open_store(read_only=True, retry_for=_RETRY_SECONDS)
        tokens = store.heads()
        cursor = HeadCursor(names, context.cursor)
        look = _Look(cursor, max_requests, deadline)
        look.at(store, [found for found in names if found in tokens and cursor.is_changed(found, tokens[found])])
        events = [_observe(keys[head.dataset], head) for head in look.risen]
        for failed, error in look.errors.items():
            context.log.error("%s %s", error.message, error.hint)
            if cursor.report(failed, f"{error.kind} {error.message}"):
                events.append(_observe_error(keys[failed], error))
        return dg.SensorResult(
            run_requests=[reload_request(head, keys[head.dataset], run_config) for head in look.risen],
            skip_reason=None if look.risen else look.skip_reason(len(names), len(tokens.keys() & keys.keys())),
            asset_events=events,
            cursor=cursor.to_text(),
        )

    sensor_args.setdefault("description", f"Asks for a reload of every new snapshot of {_listed(names)}.")
    return dg.SensorDefinition(
        name=name,
        evaluation_fn=tick,
        job=job,
        minimum_interval_seconds=minimum_interval_seconds,
        required_resource_keys={store_key},
        **sensor_args,
    )


_Answer: TypeAlias = tuple[Head, str] | SnapshotAssetsError
"""A head and its token, or why it could not be read."""


@dataclass(slots=True)
class _Look:
    """One tick's reading of the heads that changed."""

    cursor: HeadCursor
    max_requests: int
    deadline: float
    risen: list[Head] = field(default_factory=list)
    errors: dict[str, SnapshotAssetsError] = field(default_factory=dict)
    without_snapshot: int = 0
    unchanged_generation: int = 0

    def at(self, store: SnapshotStore, changed: Sequence[str]) -> None:
        """Read the changed heads, in turn from where the last tick stopped, until the cap or the time is reached."""
        later = [name for name in changed if name >= self.cursor.next_name]
        in_turn = [*later, *changed[: len(changed) - len(later)]]
        self.cursor.next_name = ""
        position = 0
        pool = ThreadPoolExecutor(_READERS, thread_name_prefix="head")
        try:
            while position < len(in_turn):
                count = min(_READERS, self.max_requests - len(self.risen))
                if not count or time.monotonic() > self.deadline:
                    self.cursor.next_name = in_turn[position]
                    return
                asked = [(name, pool.submit(_read, store, name)) for name in in_turn[position : position + count]]
                for name, answer in asked:
                    self._deal_with(name, self._await(name, answer))
                position += count
        finally:
            # Requests that hang end by themselves, and later than the tick may.
            pool.shutdown(wait=False, cancel_futures=True)
        unavailable = [error for error in self.errors.values() if isinstance(error, StoreUnavailable)]
        if unavailable and len(unavailable) == len(changed):
            raise unavailable[0]

    def _await(self, name: str, answer: Future[_Answer]) -> _Answer:
        try:
            return answer.result(max(0.0, self.deadline - time.monotonic()))
        except TimeoutError:
            return StoreUnavailable(f"the head of {name!r} could not be read in time", dataset=name)

    def _deal_with(self, name: str, found: _Answer) -> None:
        if isinstance(found, SnapshotAssetsError):
            self.errors[name] = found
            return
        head, token = found
        if head.current_snapshot_id is None:
            self.without_snapshot += 1
        elif not self.cursor.is_raised(name, head.generation):
            self.unchanged_generation += 1
        else:
            self.risen.append(head)
        self.cursor.advance(name, token, head.generation)

    def skip_reason(self, asked: int, present: int) -> str:
        """Why the tick asked for nothing, in words."""
        parts = [f"{error.message.rstrip('.')}. {error.hint}" for error in self.errors.values()]
        if self.unchanged_generation:
            parts.append(f"{_heads(self.unchanged_generation)} changed, but not what readers should serve.")
        if self.without_snapshot:
            parts.append(f"{_heads(self.without_snapshot)} without a snapshot.")
        if not parts:
            parts.append(f"Nothing new: {present} of {asked} datasets published, none changed since the last tick.")
        return " ".join(parts)


def _heads(count: int) -> str:
    return "1 head" if count == 1 else f"{count} heads"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{len(names)} datasets"


def _read(store: SnapshotStore, name: str) -> _Answer:
    try:
        return store.read_head(name)
    except SnapshotAssetsError as error:
        return error


def _observe(asset_key: dg.AssetKey, head: Head) -> dg.AssetObservation:
    # Text, not numbers: a materialization plots the same figures, and the UI would draw them twice.
    return dg.AssetObservation(
        asset_key,
        description=f"Readers should serve snapshot {head.current_snapshot_id} (generation {head.generation}).",
        metadata={
            "head/snapshot_id": str(head.current_snapshot_id),
            "head/generation": str(head.generation),
            "head/incarnation": head.incarnation,
            "head/status": head.status.value,
        },
    )


def _observe_error(asset_key: dg.AssetKey, error: SnapshotAssetsError) -> dg.AssetObservation:
    return dg.AssetObservation(
        asset_key,
        description=f"The head can not be read: {error.message}",
        metadata={"head/error": f"{error.kind}: {error.message}", "head/hint": error.hint},
    )
