"""The reload job: tell every reader of a dataset to go to a new generation, and wait until each has."""

# Dagster reads the annotations of an op as objects, so they are not postponed here.
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import dagster as dg
from pydantic import Field

from snapshot_assets.errors import ConfigurationError, SnapshotAssetsError
from snapshot_assets.resources.fleet import ReaderFleetResource

__all__ = ["ReloadTarget", "build_reload_job", "reload_run_config"]

_STATUS_SECONDS: Final = 10.0
_WAIT_SECONDS: Final = 5.0
_PARALLEL: Final = 16
_HOPELESS: Final = frozenset({"AccessDenied", "EngineTooOld", "SchemaIncompatible"})
"""What a reader answers when asking again could not help."""


class ReloadTarget(dg.Config):
    """What the readers should serve."""

    dataset: str = Field(description="The dataset to reload.")
    generation: int | None = Field(
        default=None, description="The generation that readers must reach; whatever the head says when left out."
    )
    incarnation: str | None = Field(default=None, description="The incarnation that the generation belongs to.")
    snapshot_id: int | None = Field(default=None, description="The snapshot that the generation serves.")
    asset_key: list[str] = Field(
        default=[], description="The asset that observations are recorded for; the dataset's name when left out."
    )

    @property
    def key(self) -> dg.AssetKey:
        """The asset that observations are recorded for."""
        return dg.AssetKey(list(self.asset_key) or [self.dataset])


def reload_run_config(target: ReloadTarget) -> dict[str, Any]:
    """The configuration of a reload run; fits every job of `build_reload_job`."""
    return target.model_dump(exclude_none=True)


def build_reload_job(
    name: str = "reload_readers",
    *,
    fleet_key: str = "reader_fleet",
    max_retries: int = 3,
    retry_delay: float = 1.0,
    **job_args: Any,
) -> dg.JobDefinition:
    """Build the job that takes every reader of a dataset to a new generation.

    One step plans, one step a reader asks it for the generation and waits until it is served, one step reports. A
    reader that does not answer is asked again; when it still does not, its step fails with the reason, the other
    readers are served nevertheless, and re-executing the run from its failure asks that reader only. Every reader that
    got there is recorded as an observation of the asset. Asking twice is harmless: a reader never goes back.

    All steps run in the run's own process: a step is one call, and a process for each would cost many times that. They
    hand each other no values, so an IO manager of the user's own, which may write tables, has nothing to do with them.

    Args:
        name: the job's name.
        fleet_key: the name of the `ReaderFleetResource`.
        max_retries: how often a reader is asked again.
        retry_delay: seconds before the first time; it doubles.
        job_args: passed on to `dagster.GraphDefinition.to_job` (`tags`, `hooks` ...).
    """
    retry_policy = dg.RetryPolicy(max_retries=max_retries, delay=retry_delay, backoff=dg.Backoff.EXPONENTIAL)

    @dg.op(
        description="Name the readers that will be asked, a step for each.",
        required_resource_keys={fleet_key},
        out=dg.DynamicOut(dg.Nothing),
    )
    def plan_reload(context: dg.OpExecutionContext, config: ReloadTarget) -> Iterator[dg.DynamicOutput[None]]:
        fleet: ReaderFleetResource = getattr(context.resources, fleet_key)
        readers = _readers(fleet)
        if not readers:
            context.log.warning("%r names no reader, so nobody is told of %r.", fleet_key, config.dataset)
        left_out = _not_serving(fleet, readers, config.dataset)
        for key, endpoint in readers.items():
            if key in left_out:
                context.log.info("%s does not follow %r and is left out.", endpoint, config.dataset)
            else:
                context.log.info("%s will be asked for %s.", endpoint, _described(config))
                yield dg.DynamicOutput(None, mapping_key=key)

    @dg.op(
        description="Ask one reader for the generation, and wait until it serves it.",
        required_resource_keys={fleet_key},
        retry_policy=retry_policy,
        ins={"planned": dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing),
    )
    def reload_reader(context: dg.OpExecutionContext, config: ReloadTarget) -> None:
        fleet: ReaderFleetResource = getattr(context.resources, fleet_key)
        endpoint = _readers(fleet)[str(context.get_mapping_key())]
        context.log_event(_ask(fleet, endpoint, config))

    @dg.op(
        description="Say who serves what.",
        required_resource_keys={fleet_key},
        ins={"reloaded": dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing),
    )
    def report_reload(context: dg.OpExecutionContext, config: ReloadTarget) -> None:
        count = len(getattr(context.resources, fleet_key).endpoints)
        records = context.instance.fetch_observations(config.key, limit=max(100, 5 * count)).records
        answers = [
            record.asset_observation
            for record in records
            if record.run_id == context.run_id and record.asset_observation is not None
        ]
        context.add_output_metadata({"readers": len(answers), "summary": dg.MetadataValue.md(_summary(answers))})

    @dg.config_mapping
    def for_each_step(config: ReloadTarget) -> dg.RunConfig:
        return dg.RunConfig(ops={"plan_reload": config, "reload_reader": config, "report_reload": config})

    @dg.graph(name=name, description="Takes every reader of a dataset to a new generation.")
    def reload() -> None:
        report_reload(plan_reload().map(lambda planned: reload_reader(planned)).collect())

    return reload.to_job(executor_def=dg.in_process_executor, config=for_each_step, **job_args)


def _described(target: ReloadTarget) -> str:
    generation = "its newest generation" if target.generation is None else f"generation {target.generation}"
    return f"{target.dataset!r}, {generation}"


def _readers(fleet: ReaderFleetResource) -> dict[str, str]:
    """The endpoints by the name of their step: readable, and each unlike any other."""
    readers: dict[str, str] = {}
    for endpoint in dict.fromkeys(fleet.endpoints):
        base = re.sub(r"\W+", "_", endpoint.partition("://")[2] or endpoint, flags=re.ASCII).strip("_") or "reader"
        key, count = base, 1
        while key in readers:
            count += 1
            key = f"{base}_{count}"
        readers[key] = endpoint
    return readers


def _not_serving(fleet: ReaderFleetResource, readers: Mapping[str, str], dataset: str) -> set[str]:
    """The readers that say that they do not follow the dataset; not those that do not answer: their steps tell."""

    def serves(endpoint: str) -> bool:
        try:
            with fleet.open_client(endpoint, timeout=_STATUS_SECONDS) as client:
                status = client.status()
        except SnapshotAssetsError:
            return True
        return dataset in status["datasets"] or dataset in status["missing"]

    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="status") as pool:
        return {key for key, serving in zip(readers, pool.map(serves, readers.values()), strict=True) if not serving}


def _ask(fleet: ReaderFleetResource, endpoint: str, target: ReloadTarget) -> dg.AssetObservation:
    """Ask one reader and wait for its acknowledgement.

    Raises:
        dg.Failure: it could not be reached, or refused; tried again unless the reader says that it can not.
    """
    started = time.monotonic()
    try:
        with fleet.open_client(endpoint, timeout=_STATUS_SECONDS) as client:
            client.status()
        with fleet.open_client(endpoint) as client:
            answer = client.refresh(target.dataset, target.generation, wait=_WAIT_SECONDS)
    except SnapshotAssetsError as error:
        raise dg.Failure(
            f"{endpoint} does not serve {_described(target)}: {error.message}",
            metadata={"reader/endpoint": endpoint, "error": error.kind, "hint": error.hint},
            allow_retries=not (isinstance(error, ConfigurationError) or error.kind in _HOPELESS),
        ) from error
    if not answer["reached"]:
        served = "nothing yet" if answer["generation"] is None else f"generation {answer['generation']}"
        raise dg.Failure(
            f"{endpoint} serves {served} of {target.dataset!r}, not {_described(target)}.",
            metadata={"reader/endpoint": endpoint, "reader/outcome": answer["outcome"]},
        )
    return dg.AssetObservation(
        target.key,
        description=f"{endpoint} serves snapshot {answer['snapshot_id']} (generation {answer['generation']}).",
        metadata={
            "reader/endpoint": endpoint,
            "reader/outcome": answer["outcome"],
            "reader/snapshot_id": str(answer["snapshot_id"]),
            "reader/generation": str(answer["generation"]),
            "reader/fetched_bytes": answer["fetched_bytes"],
            "reader/reload_seconds": round(time.monotonic() - started, 3),
        },
    )


def _summary(answers: Sequence[dg.AssetObservation]) -> str:
    if not answers:
        return "No reader was asked."
    columns = ("endpoint", "outcome", "snapshot_id", "generation", "fetched_bytes", "reload_seconds")
    lines = ["| reader | outcome | snapshot | generation | bytes fetched | seconds |", "|---|---|---:|---:|---:|---:|"]
    for answer in answers:
        cells = [str(answer.metadata[f"reader/{column}"].value) for column in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
