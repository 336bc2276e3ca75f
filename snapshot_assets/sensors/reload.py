"""The reload job: tell the readers of a dataset to go to a new generation, all at once or as a rollout in stages."""

# Dagster reads the annotations of an op as objects, so they are not postponed here.
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
from pydantic import Field

from snapshot_assets.asset_metadata import step_failure
from snapshot_assets.errors import SnapshotAssetsError
from snapshot_assets.model.head import Head
from snapshot_assets.sensors.asking import Asked, Asker
from snapshot_assets.sensors.progress import Progress, planned_reload, told
from snapshot_assets.sensors.record import Record, failure_of, observation_of, plan_metadata, recorded
from snapshot_assets.sensors.rollout import Answer, Rollout

__all__ = ["ReloadTarget", "build_reload_job", "reload_request", "reload_run_config"]

_begun: dict[tuple[str, str], tuple[Record, Asked]] = {}
"""Who is being asked now, by run and stage. A run is one process; a step that finds nothing here asks by itself."""


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


def reload_request(
    head: Head,
    asset_key: dg.AssetKey,
    run_config: Callable[[ReloadTarget], dg.RunConfig | Mapping[str, Any]],
    attempt: int | None = None,
) -> dg.RunRequest:
    """The run that takes readers to what a head calls current; the same run key for the same generation and attempt."""
    target = ReloadTarget(
        dataset=head.dataset,
        incarnation=head.incarnation,
        generation=head.generation,
        snapshot_id=head.current_snapshot_id,
        asset_key=list(asset_key.path),
    )
    run_key = f"{head.dataset}:{head.incarnation}:{head.generation}"
    tags = {
        "snapshot/dataset": head.dataset,
        "snapshot/id": str(head.current_snapshot_id),
        "snapshot/generation": str(head.generation),
    }
    if attempt is not None:
        run_key += f":again-{attempt}"
        tags["snapshot/reload_attempt"] = str(attempt)
    return dg.RunRequest(run_key=run_key, run_config=run_config(target), tags=tags)


def build_reload_job(
    name: str = "reload_readers",
    *,
    rollout: Rollout | None = None,
    fleet_key: str = "reader_fleet",
    store_key: str = "snapshot_store",
    max_retries: int = 3,
    retry_delay: float = 1.0,
    **job_args: Any,
) -> dg.JobDefinition:
    """Build the job that takes every reader of a dataset to a new generation.

    One step plans, one step a reader asks it for the generation and waits until it is served, one step reports. The
    readers of a stage are asked side by side. One that does not answer is asked again; when it still does not, its
    step fails with the reason, the other readers are served nevertheless, and re-executing the run from its failure
    asks that reader only. What became of each reader is an observation of the asset. Asking twice is harmless: a reader
    never goes back.

    With a `rollout` the readers are asked in stages, first the canary, then each wave; after each stage a step looks
    whether its readers are well, and either lets the next stage begin or stops. A step of a reader then never fails:
    the steps between the stages judge. A rollout that stops fails there, with a table of who serves what, who was not
    asked, and why; one that goes on to its end with failures that the policy allows fails with its report. Re-executing
    it from the failure asks those that failed once more, and goes on. A run that is terminated leaves every reader as
    it is then: those that were asked have the new generation, the others the old one.

    All steps run in the run's own process: a step is one call, and a process for each would cost many times that. They
    hand each other no values, so an IO manager of the user's own, which may write tables, has nothing to do with them.

    Args:
        name: the job's name.
        rollout: the policy; without one all readers are asked at once.
        fleet_key: the name of the `ReaderFleetResource`.
        store_key: the name of the `SnapshotStoreResource`, needed for a rollout with `rollback` only.
        max_retries: how often a reader is asked again.
        retry_delay: seconds before the first time; it doubles.
        job_args: passed on to `dagster.GraphDefinition.to_job` (`tags`, `hooks` ...).
    """
    steps = _Steps(name, rollout, fleet_key, store_key, max_retries, retry_delay)

    order = "" if rollout is None else ", the canary first, then wave after wave"

    @dg.graph(name=name, description=f"Takes every reader of a dataset to a new generation{order}.")
    def reload() -> None:
        _, readers = steps.plan()()
        if rollout is None:
            steps.report()(readers.map(steps.reload("reload_reader", "")).collect())
            return
        for stage in rollout.stages[:-1]:
            asked = readers.map(steps.reload(f"reload_{stage}", stage)).collect()
            _, readers = steps.check(stage, rollout)(asked)
        last = rollout.stages[-1]
        asked = readers.map(steps.reload(f"reload_{last}", last)).collect()
        steps.report()(steps.check(last, rollout)(asked))

    names = [node.name for node in reload.nodes]

    @dg.config_mapping
    def for_each_step(config: ReloadTarget) -> dg.RunConfig:
        return dg.RunConfig(ops=dict.fromkeys(names, config))

    return reload.to_job(executor_def=dg.in_process_executor, config=for_each_step, **job_args)


@dataclass(frozen=True, slots=True)
class _Steps:
    """Makes the steps of a reload job.

    In a code location with several of them the names of ops must differ; the steps have the same names in each.
    """

    job: str
    rollout: Rollout | None
    fleet_key: str
    store_key: str
    max_retries: int
    retry_delay: float

    def plan(self) -> Callable[..., Any]:
        """The step that names the readers."""
        first = "" if self.rollout is None else self.rollout.stages[0]

        @dg.op(
            name=f"{self.job}__plan_reload",
            description="Name the readers that will be asked, and when.",
            required_resource_keys={self.fleet_key},
            out={"plan": dg.Out(dg.Nothing), "readers": dg.DynamicOut(dg.Nothing)},
            retry_policy=dg.RetryPolicy(
                max_retries=self.max_retries, delay=self.retry_delay, backoff=dg.Backoff.EXPONENTIAL
            ),
        )
        def plan_reload(
            context: dg.OpExecutionContext, config: ReloadTarget
        ) -> Iterator[dg.Output[None] | dg.DynamicOutput[None]]:
            try:
                plan = planned_reload(context, self._asker(context), config, self.rollout)
            except SnapshotAssetsError as error:
                raise step_failure(error) from error
            if not plan.planned:
                context.log.warning("%r has no reader to call, so nobody is told of %r.", self.fleet_key, plan.wanted)
            yield dg.Output(None, "plan", metadata=plan_metadata(plan))
            yield from self._begin(context, first, Record(plan, {}, frozenset()))

        return plan_reload.alias("plan_reload")

    def reload(self, name: str, stage: str) -> Callable[..., Any]:
        """The step that each reader of a stage gets."""

        @dg.op(
            name=f"{self.job}__{name}",
            description="Ask one reader for the generation, and wait until it serves it.",
            required_resource_keys={self.fleet_key},
            ins={"planned": dg.In(dg.Nothing)},
            out=dg.Out(dg.Nothing),
        )
        def reload_reader(context: dg.OpExecutionContext, config: ReloadTarget) -> Iterator[dg.AssetObservation]:
            key = str(context.get_mapping_key())
            record, answer = _taken(context, stage, key)
            one = record.plan.of(key)
            if answer is None:
                answer = self._asker(context).ask(one.reader, record.wanted)
            yield observation_of(config.key, one, answer, record.wanted)
            if answer.failed:
                failure = failure_of(answer, record.wanted)
                if self.rollout is None:
                    raise failure
                context.log.error("%s", failure.description)

        return reload_reader.alias(name)

    def check(self, stage: str, rollout: Rollout) -> Callable[..., Any]:
        """The step that judges a stage, and asks the readers of the next one."""
        following = dict(zip(rollout.stages, rollout.stages[1:], strict=False)).get(stage)

        @dg.op(
            name=f"{self.job}__check_{stage}",
            description="See whether the readers of the stage are well, and go on, or stop.",
            required_resource_keys={self.fleet_key, self.store_key} if rollout.rollback else {self.fleet_key},
            ins={"reloaded": dg.In(dg.Nothing)},
            out={"health": dg.Out(dg.Nothing)} | ({"readers": dg.DynamicOut(dg.Nothing)} if following else {}),
        )
        def check_stage(
            context: dg.OpExecutionContext, config: ReloadTarget
        ) -> Iterator[dg.Output[None] | dg.DynamicOutput[None] | dg.AssetObservation]:
            progress = Progress(self._asker(context), config.key, recorded(context))
            if rollout.soak:
                context.log.info("%s: the readers are watched for %g s.", stage, rollout.soak)
            progress.judge(stage, rollout)
            failed, failure = progress.record.failed(stage), None
            if not rollout.tolerates(stage, len(failed)):
                store = getattr(context.resources, self.store_key) if rollout.rollback else None
                failure = progress.stop(stage, store)
            yield from progress.observations
            if failure is not None:
                raise failure
            well = len(progress.record.readers(stage)) - len(failed)
            context.log.info("%s: %d readers are well, %d are not.", stage, well, len(failed))
            metadata: dict[str, Any] = {"well": well, "failed": len(failed), "summary": progress.record.table}
            yield dg.Output(None, "health", metadata=metadata)
            if following:
                yield from self._begin(context, following, progress.record)

        return check_stage.alias(f"check_{stage}")

    def report(self) -> Callable[..., Any]:
        """The step that says who serves what."""

        @dg.op(
            name=f"{self.job}__report_reload",
            description="Say who serves what.",
            required_resource_keys={self.fleet_key},
            ins={"reloaded": dg.In(dg.Nothing)},
            out=dg.Out(dg.Nothing),
        )
        def report_reload(
            context: dg.OpExecutionContext, config: ReloadTarget
        ) -> Iterator[dg.Output[None] | dg.AssetObservation]:
            progress = Progress(self._asker(context), config.key, recorded(context))
            if not progress.record.own:
                # The run executes a failed report again.
                progress.ask_again(progress.record.failed())
            yield from progress.observations
            record, failed = progress.record, progress.record.failed()
            metadata: dict[str, Any] = {"readers": len(record.answers) - len(failed), "summary": record.table}
            if failed:
                raise dg.Failure(
                    f"{len(failed)} of {len(record.plan.planned)} readers do not serve {record.wanted}: {told(failed)}",
                    metadata=metadata,
                    allow_retries=False,
                )
            yield dg.Output(None, metadata=metadata)

        return report_reload.alias("report_reload")

    def _asker(self, context: dg.OpExecutionContext) -> Asker:
        return Asker(getattr(context.resources, self.fleet_key), self.max_retries, self.retry_delay)

    def _begin(self, context: dg.OpExecutionContext, stage: str, record: Record) -> Iterator[dg.DynamicOutput[None]]:
        """Ask all readers of a stage, and have a step for each that waits for its answer."""
        readers = record.readers(stage)
        if readers:
            _begun[context.run_id, stage] = record, Asked(self._asker(context), readers, record.wanted)
        for key, reader in readers.items():
            context.log.info("%s will be asked for %s.", reader.endpoint, record.wanted)
            yield dg.DynamicOutput(None, output_name="readers", mapping_key=key)


def _taken(context: dg.OpExecutionContext, stage: str, key: str) -> tuple[Record, Answer | None]:
    """What is known, and the answer of a reader that is being asked already."""
    begun = _begun.get((context.run_id, stage))
    if begun is None:
        return recorded(context), None
    record, asked = begun
    answer = asked.take(key)
    if asked.is_done:
        del _begun[context.run_id, stage]
    return record, answer
