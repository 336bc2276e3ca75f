"""One sensor that notices readers that do not keep up, says why, and has them asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from snapshot_assets.asset_metadata import asset_of, duration_text, markdown_table
from snapshot_assets.clock import SYSTEM_CLOCK, in_seconds
from snapshot_assets.engines.registry import check_datasets
from snapshot_assets.errors import ConfigurationError, SnapshotAssetsError
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.sensors.lagging import Finding, LagBounds, LagMemory, finding_of
from snapshot_assets.sensors.reload import ReloadTarget, reload_request, reload_run_config

if TYPE_CHECKING:
    from snapshot_assets.maintenance.readers import FoundReaders, Standing
    from snapshot_assets.model.head import Head
    from snapshot_assets.resources.store import SnapshotStoreResource
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["build_reader_lag_sensor"]

_READERS: Final = 16
_RETRY_SECONDS: Final = 10.0
_NAMED: Final = 3
_IN_PROGRESS: Final = (
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
)


def build_reader_lag_sensor(
    datasets: Sequence[Dataset | str | dg.AssetsDefinition],
    *,
    job: dg.JobDefinition | dg.UnresolvedAssetJobDefinition | None = None,
    name: str = "reader_lag_sensor",
    max_age: timedelta | float = 300.0,
    max_behind: int | None = None,
    max_attempts: int = 5,
    max_requests: int = 25,
    minimum_interval_seconds: int = 60,
    run_config: Callable[[ReloadTarget], dg.RunConfig | Mapping[str, Any]] = reload_run_config,
    store_key: str = "snapshot_store",
    **sensor_args: Any,
) -> dg.SensorDefinition:
    """Build the sensor that looks whether the readers that announce themselves keep up with what is published.

    A reader does not keep up when it has been behind for longer than `max_age`, or by more generations than
    `max_behind`, or when it is behind and its last attempt failed: then it is stuck, and its error says why. A reader
    that a pin of its own holds is none of these. One that was silent for five of its own intervals counts as dead and
    is named. Every change of who does not keep up, or why, is recorded once as an observation of the dataset's asset,
    and so is the return to health.

    With a `job` the sensor asks for a reload of a dataset whose readers do not keep up, each time with a new run key:
    at once, then after pauses that double, at most `max_attempts` times for a generation, and not while a run for the
    dataset is under way. Readers without an endpoint, dead ones, and those that refuse for good (their schema policy,
    an engine that is too old) are no reason to ask.

    A tick lists the announcements and the heads, a request each for a thousand, and reads those that changed since the
    last tick of this process.

    Args:
        datasets: what to look at: datasets, their names, or assets made by `snapshot_asset`.
        job: what to run; usually from `build_reload_job`. Without one the sensor only observes.
        name: the sensor's name.
        max_age: how long a reader may be behind; a duration, or seconds.
        max_behind: by how many generations a reader may be behind; none: any.
        max_attempts: how often a reload of one generation is asked for.
        max_requests: the most runs that one tick asks for.
        minimum_interval_seconds: the least time between two ticks, and half of the pause before the second attempt.
        run_config: makes the run's configuration; only for a job of your own.
        store_key: the name of the `SnapshotStoreResource`.
        sensor_args: passed on to `dagster.SensorDefinition` (`description`, `default_status`, `tags` ...).

    Raises:
        ConfigurationError: a dataset stands twice, or a bound makes no sense.
    """
    check_datasets(dataset for dataset in datasets if isinstance(dataset, Dataset))
    keys = dict(asset_of(dataset) for dataset in datasets)
    if len(keys) != len(datasets):
        raise ConfigurationError("the sensor is given the same dataset twice")
    bounds = LagBounds(in_seconds("max_age", max_age), max_behind)
    if min(max_attempts, max_requests - 1) < 0:
        raise ConfigurationError(
            f"max_attempts is {max_attempts} and max_requests {max_requests}; 0 and 1 are the least"
        )
    look = _Look()

    # Dagster hands the resources over as arguments too when a sensor is called directly, as tests do.
    def tick(context: dg.SensorEvaluationContext, **_: object) -> dg.SensorResult:
        resource: SnapshotStoreResource = getattr(context.resources, store_key)
        now_ms = SYSTEM_CLOCK.now_ms()
        found, heads = look.at(resource.open_store(read_only=True, retry_for=_RETRY_SECONDS), keys, now_ms)
        for error in found.unreadable:
            context.log.error("%s %s", error.message, error.hint)
        memory = LagMemory(context.cursor, now_ms // 1000, minimum_interval_seconds, max_attempts)
        result = _Tick(memory)
        for dataset in sorted(heads):
            head = heads[dataset]
            if isinstance(head, SnapshotAssetsError):
                context.log.error("%s %s", head.message, head.hint)
                continue
            finding = finding_of(head, found, bounds, now_ms)
            result.take(finding, keys[dataset])
            if job is None or len(result.requests) >= max_requests or not memory.may_ask(finding):
                continue
            if context.instance.get_runs(_under_way(dataset), limit=1):
                context.log.info("A run for %r is under way; it is waited for.", dataset)
                continue
            result.requests.append(reload_request(finding.head, keys[dataset], run_config, memory.asked(finding)))
        memory.forget_others(heads)
        return dg.SensorResult(
            run_requests=result.requests,
            skip_reason=None if result.requests else result.skip_reason(len(found.known)),
            asset_events=result.events,
            cursor=memory.to_text(),
        )

    few = ", ".join(sorted(keys)) if len(keys) <= _NAMED else f"{len(keys)} datasets"
    sensor_args.setdefault("description", f"Looks whether the readers of {few} keep up, and has them asked again.")
    return dg.SensorDefinition(
        name=name,
        evaluation_fn=tick,
        job=job,
        minimum_interval_seconds=minimum_interval_seconds,
        required_resource_keys={store_key},
        **sensor_args,
    )


class _Look:
    """Reads readers and heads; what has not changed since the last look of this process is not read again."""

    def __init__(self) -> None:
        self._book: Any = None
        self._heads: dict[str, tuple[str, Head]] = {}

    def at(
        self, store: SnapshotStore, names: Iterable[str], now_ms: int
    ) -> tuple[FoundReaders, dict[str, Head | SnapshotAssetsError]]:
        """The readers, and the heads of those datasets that any of them follows."""
        from snapshot_assets.maintenance.readers import ReaderBook

        self._book = self._book or ReaderBook()
        found: FoundReaders = self._book.look(store.objects, now_ms)
        tokens = store.heads()
        followed = {name for reader in found.known for name in reader.announcement.datasets}
        wanted = [name for name in names if name in followed and name in tokens]

        def read(name: str) -> Head | SnapshotAssetsError:
            known = self._heads.get(name)
            if known is not None and known[0] == tokens[name]:
                return known[1]
            try:
                head, token = store.read_head(name)
            except SnapshotAssetsError as error:
                return error
            self._heads[name] = (token, head)
            return head

        with ThreadPoolExecutor(_READERS, thread_name_prefix="head") as pool:
            return found, dict(zip(wanted, pool.map(read, wanted), strict=True))


@dataclass(slots=True)
class _Tick:
    """What one tick says and asks for."""

    memory: LagMemory
    events: list[dg.AssetObservation] = field(default_factory=list)
    requests: list[dg.RunRequest] = field(default_factory=list)
    datasets: int = 0
    sentences: list[str] = field(default_factory=list)

    def take(self, finding: Finding, asset_key: dg.AssetKey) -> None:
        """Take one dataset into account."""
        self.datasets += 1
        if self.memory.is_news(finding):
            self.events.append(_observation(finding, asset_key))
        if finding.lagging:
            asked = self.memory.attempts(finding)
            gave_up = f" A reload was asked for {asked} times, and is not again." if asked else ""
            self.sentences.append(_said(finding) + (gave_up if self.memory.has_given_up(finding) else ""))

    def skip_reason(self, readers: int) -> str:
        """Why the tick asked for nothing, in words."""
        if not readers:
            return "No reader has announced itself."
        more = len(self.sentences) - _NAMED
        if self.sentences:
            return " ".join(self.sentences[:_NAMED]) + (f" And {more} datasets more." if more > 0 else "")
        return f"Every live reader keeps up. Datasets that any follows: {self.datasets}; readers: {readers}."


def _under_way(dataset: str) -> dg.RunsFilter:
    return dg.RunsFilter(tags={"snapshot/dataset": dataset}, statuses=list(_IN_PROGRESS))


def _said(finding: Finding) -> str:
    """How the readers of a dataset do, in a sentence or two."""
    head = finding.head
    goal = f"snapshot {head.current_snapshot_id} (generation {head.generation}) of {head.dataset!r}"
    if finding.lagging:
        named = "; ".join(f"{one.name} ({_why(one)})" for one, _ in finding.lagging[:_NAMED])
        more = len(finding.lagging) - _NAMED
        rest = f"; and {more} more" if more > 0 else ""
        said = f"{len(finding.lagging)} of {finding.alive} live readers do not keep up with {goal}: {named}{rest}."
    else:
        said = f"Every live reader keeps up with {goal}: {finding.alive} of them."
    silent = "; ".join(one.name for one in finding.dead[:_NAMED])
    more = len(finding.dead) - _NAMED
    return said + (f" Fallen silent: {silent}{f'; and {more} more' if more > 0 else ''}." if silent else "")


def _why(one: Standing) -> str:
    served = "nothing" if one.announced.generation is None else f"generation {one.announced.generation}"
    error = f": {one.announced.last_error}" if one.announced.last_error else ""
    return f"serves {served}, {one.generations} behind, for {duration_text(one.seconds)}{error}"


def _observation(finding: Finding, asset_key: dg.AssetKey) -> dg.AssetObservation:
    from snapshot_assets.cli.output import time_text

    shown = [(one, _why(one)) for one, _ in finding.lagging]
    shown += [(one, f"silent since {time_text(one.reader.last_heard_ms)}") for one in finding.dead]
    rows = [
        (one.name, one.reader.announcement.cohort or "", why, "" if one.reader.announcement.endpoint else "by itself")
        for one, why in shown
    ]
    metadata: dict[str, Any] = {
        "lag/readers_behind": len(finding.lagging),
        "lag/readers_silent": len(finding.dead),
        "lag/generation": str(finding.head.generation),
    }
    if rows:
        metadata["lag/readers"] = dg.MetadataValue.md(markdown_table(("reader", "cohort", "state", "follows"), rows))
    return dg.AssetObservation(asset_key, description=_said(finding), metadata=metadata)
