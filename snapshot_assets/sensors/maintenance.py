"""Jobs and schedules that maintain datasets: cleanup, optimize, verify, and a preview of repairs."""

# Dagster reads the annotations of an op as objects, so they are not postponed here.
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import dagster as dg
from pydantic import Field

from snapshot_assets.asset_metadata import asset_of, markdown_table, step_failure
from snapshot_assets.engines.registry import check_datasets
from snapshot_assets.errors import ConfigurationError, SnapshotAssetsError
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.resources.store import SnapshotStoreResource
from snapshot_assets.sensors.maintenance_tasks import (
    Cleanup,
    Maintained,
    MaintenanceTask,
    Optimize,
    Outcome,
    RepairPreview,
    Verify,
)

__all__ = ["build_maintenance"]

_NAMED: Final = 5
_SHOWN: Final = 100


class MaintenanceConfig(dg.Config):
    """What one run of a maintenance job looks at."""

    datasets: list[str] = Field(
        default=[], description="The datasets to look at; all that the job was made for when left out."
    )


class CleanupConfig(MaintenanceConfig):
    """What one run of a cleanup looks at, and whether it changes anything."""

    confirm: bool | None = Field(
        default=None, description="Whether to remove anything, or only to show the plan; as declared when left out."
    )


def build_maintenance(
    datasets: Sequence[Dataset | str | dg.AssetsDefinition],
    *,
    cleanup: Cleanup | None = None,
    optimize: Optimize | None = None,
    verify: Verify | None = None,
    repair_preview: RepairPreview | None = None,
    name: str = "snapshots",
    asset_keys: Mapping[str, dg.AssetKey | Sequence[str] | str] | None = None,
    store_key: str = "snapshot_store",
    execution_timezone: str | None = None,
    default_status: dg.DefaultScheduleStatus = dg.DefaultScheduleStatus.STOPPED,
    **job_args: Any,
) -> dg.Definitions:
    """Build a job for each kind of maintenance that is asked for, and a schedule for each that has a `cron`.

    One step goes through all datasets, in the run's own process: a step of its own would cost a dataset more than
    looking at it, and the store's answers are shared. What became of each dataset is recorded on its asset as it is
    known, as an observation with numbers that plot, or as a materialization when `optimize` published it. One dataset's
    failure stops no other; the run then fails in the end and names who failed and why, and a new run can be given
    those `datasets` alone in its configuration. A dataset that was not published yet is left alone.

    Example:
        .. code-block:: python

            defs = dg.Definitions.merge(
                defs,
                build_maintenance(
                    [flights, orders],
                    cleanup=Cleanup(cron="0 4 * * *", keep=20, older_than=timedelta(days=7), confirm=True),
                    verify=Verify(cron="0 5 * * 0"),
                ),
            )

    Args:
        datasets: what to maintain: datasets, their names, or assets made by `snapshot_asset`.
        cleanup: remove what need not be kept: job `<name>_cleanup`.
        optimize: rewrite live databases and publish them: job `<name>_optimize`. Takes datasets only, since it has to
            know how each is captured; runs where the live databases are.
        verify: check what is in the store: job `<name>_verify`.
        repair_preview: show what dead processes left: job `<name>_repair_preview`.
        name: what the names of the jobs begin with.
        asset_keys: for a dataset, its asset, where that does not have the dataset's name and is not given itself.
        store_key: the name of the `SnapshotStoreResource`.
        execution_timezone: the time zone of the schedules; UTC when it is left out.
        default_status: whether the schedules run before anybody has turned them on in the UI.
        job_args: passed on to `dagster.GraphDefinition.to_job` (`tags`, `hooks`, `op_retry_policy` ...).

    Raises:
        ConfigurationError: nothing is asked for, a dataset stands twice or can not be captured, or `optimize` is given
            a name or an asset.
    """
    maintained = _maintained(datasets, asset_keys or {})
    tasks = [task for task in (cleanup, optimize, verify, repair_preview) if task is not None]
    if not tasks:
        raise ConfigurationError(
            "build_maintenance was asked for nothing", hint="Give cleanup, optimize, verify or repair_preview."
        )
    unknown = [at.name for at in maintained if at.dataset is None]
    if optimize is not None and unknown:
        raise ConfigurationError(
            f"optimize has to know how {', '.join(unknown)} is captured",
            hint="Give the Dataset itself, and its asset's key in `asset_keys` if that has another name.",
        )
    jobs = [_job(task, name, maintained, store_key, job_args) for task in tasks]
    return dg.Definitions(
        jobs=jobs,
        schedules=[
            dg.ScheduleDefinition(
                job=job,
                cron_schedule=task.cron,
                execution_timezone=execution_timezone,
                default_status=default_status,
                description=task.description,
            )
            for task, job in zip(tasks, jobs, strict=True)
            if task.cron is not None
        ],
    )


def _maintained(
    datasets: Sequence[Dataset | str | dg.AssetsDefinition],
    asset_keys: Mapping[str, dg.AssetKey | Sequence[str] | str],
) -> tuple[Maintained, ...]:
    check_datasets(dataset for dataset in datasets if isinstance(dataset, Dataset))
    maintained = {}
    for dataset in datasets:
        name, key = asset_of(dataset)
        if name in maintained:
            raise ConfigurationError(f"{name!r} is to be maintained twice", hint="Name it once.", dataset=name)
        given = asset_keys.get(name)
        key = key if given is None else dg.AssetKey.from_coercible(given)
        maintained[name] = Maintained(name, key, dataset if isinstance(dataset, Dataset) else None)
    if not maintained:
        raise ConfigurationError("there is no dataset to maintain", hint="Name at least one.")
    if unknown := sorted(asset_keys.keys() - maintained.keys()):
        raise ConfigurationError(f"asset_keys names {', '.join(unknown)}, which is not among the datasets")
    return tuple(maintained.values())


def _job(
    task: MaintenanceTask,
    prefix: str,
    maintained: Sequence[Maintained],
    store_key: str,
    job_args: Mapping[str, Any],
) -> dg.JobDefinition:
    as_op = dg.op(
        name=f"{task.kind}_{prefix}",
        description=task.description,
        required_resource_keys={store_key},
        out=dg.Out(dg.Nothing),
    )

    def carry_out(context: dg.OpExecutionContext, task: MaintenanceTask, names: Sequence[str]) -> Iterator[Any]:
        try:
            yield from _carry_out(context, task, getattr(context.resources, store_key), _chosen(maintained, names))
        except SnapshotAssetsError as error:
            raise step_failure(error) from error

    if isinstance(task, Cleanup):

        @as_op
        def maintain(context: dg.OpExecutionContext, config: CleanupConfig) -> Iterator[Any]:
            confirm = task.confirm if config.confirm is None else config.confirm
            yield from carry_out(context, replace(task, confirm=confirm), config.datasets)
    else:

        @as_op
        def maintain(context: dg.OpExecutionContext, config: MaintenanceConfig) -> Iterator[Any]:
            yield from carry_out(context, task, config.datasets)

    @dg.graph(name=f"{prefix}_{task.kind}", description=task.description)
    def maintenance() -> None:
        maintain()

    return maintenance.to_job(executor_def=dg.in_process_executor, **job_args)


def _chosen(maintained: Sequence[Maintained], names: Sequence[str]) -> list[Maintained]:
    if unknown := set(names) - {at.name for at in maintained}:
        known = ", ".join(at.name for at in maintained)
        raise ConfigurationError(f"the job does not maintain {', '.join(sorted(unknown))}, but {known}")
    return [at for at in maintained if not names or at.name in names]


def _carry_out(
    context: dg.OpExecutionContext,
    task: MaintenanceTask,
    resource: SnapshotStoreResource,
    wanted: Sequence[Maintained],
) -> Iterator[Any]:
    """Do it, record what becomes of each dataset, and fail in the end if it failed for one.

    What is yielded is recorded at once. What is logged would be lost with a step that fails.

    Raises:
        SnapshotAssetsError: the store can not even be listed.
        dagster.Failure: the task failed for at least one dataset.
    """
    published = resource.open_store(read_only=True).heads()
    outcomes = [Outcome(at, "Not published yet.") for at in wanted if at.name not in published]
    present = [at for at in wanted if at.name in published]
    try:
        for outcome in task.outcomes(resource, present) if present else ():
            outcomes.append(outcome)
            yield outcome.event()
            if outcome.error is not None:
                unforeseen = None if isinstance(outcome.error, SnapshotAssetsError) else outcome.error
                context.log.error("%s: %s", outcome.at.name, outcome.text, exc_info=unforeseen)
    except SnapshotAssetsError as error:
        told = {outcome.at.name for outcome in outcomes}
        outcomes += [
            Outcome(at, f"Not looked at: {error.message}", error=error) for at in present if at.name not in told
        ]
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    shown: dict[str, Any] = {
        "maintenance/datasets": len(outcomes),
        "maintenance/failed": len(failed),
        "maintenance/summary": dg.MetadataValue.md(_summary(outcomes)),
    }
    if failed:
        raise dg.Failure(
            f"The {task.noun} failed for {len(failed)} of {len(outcomes)} datasets. {_named(failed)}", metadata=shown
        )
    yield dg.Output(None, metadata=shown)


def _summary(outcomes: Sequence[Outcome]) -> str:
    """A table of what became of whom, the failed ones first; of very many the first."""
    ordered = sorted(outcomes, key=lambda outcome: (outcome.error is None, outcome.at.name))
    rows = [("FAILED" if one.error else "", one.at.name, one.text) for one in ordered[:_SHOWN]]
    table = markdown_table(("", "dataset", "outcome"), rows)
    more = len(ordered) - _SHOWN
    return f"{table}\n\nAnd {more:,} more; each asset has its own." if more > 0 else table


def _named(failed: Sequence[Outcome]) -> str:
    """Who failed and why, the first of many."""
    parts = []
    for outcome in failed[:_NAMED]:
        hint = outcome.error.hint if isinstance(outcome.error, SnapshotAssetsError) else ""
        parts.append(f"{outcome.at.name}: {str(outcome.error).rstrip('.')}. {hint}".strip())
    if len(failed) > _NAMED:
        parts.append(f"And {len(failed) - _NAMED} more.")
    return " ".join(parts)
