"""How the datasets of a collection are maintained, and when."""

# Dagster reads the annotations of models as objects, so they are not postponed here.

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Literal, TypeVar

import dagster as dg
from pydantic import BaseModel, Field

from snapshot_assets.components.schema import Attributes, with_hint
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.sensors import Cleanup, Optimize, RepairPreview, Verify, build_maintenance

__all__ = ["MaintenanceAttributes"]

T = TypeVar("T", Cleanup, Optimize, RepairPreview, Verify)


def _cron(context: dg.ResolutionContext, value: str) -> str:
    cron = context.resolve_value(value, as_type=str)
    dg.AutomationCondition.on_cron(cron)  # refuses what is no schedule
    return cron


class _Task(Attributes):
    cron: Annotated[str | None, dg.Resolver(_cron, model_field_type=str, description="When it runs by itself.")] = None


class _Cleanup(_Task):
    keep: int | None = Field(default=None, description="The newest snapshots that stay, at least three.")
    older_than: Annotated[
        timedelta | float | None,
        dg.Resolver.default(
            model_field_type=float,
            description="Only what is older goes: seconds, or {{ datetime.timedelta(days=7) }}.",
        ),
    ] = None
    grace: Annotated[
        timedelta | float | None,
        dg.Resolver.default(
            model_field_type=float, description="How long objects stay after their snapshot has left the head."
        ),
    ] = None
    concurrency: int | None = Field(default=None, description="How many datasets are cleaned side by side.")
    confirm: bool | None = Field(default=None, description="Do it; without it, a run shows what would be done.")


class _Verify(_Task):
    level: Literal["sizes", "digest", "restore"] | None = Field(default=None, description="How closely to look.")


def _resolver(attributes: type[_Task], task: type[T], description: str) -> dg.Resolver:
    @with_hint
    def made(context: dg.ResolutionContext, value: BaseModel | None) -> T | None:
        if value is None:
            return None
        read: _Task = attributes.resolve_from_model(context, value)
        return task(**{name: setting for name, setting in read if setting is not None})

    return dg.Resolver(made, model_field_type=attributes.model(), description=description)


class MaintenanceAttributes(Attributes):
    """Jobs that maintain the datasets of a collection, each with a schedule if it has a cron."""

    cleanup: Annotated[Cleanup | None, _resolver(_Cleanup, Cleanup, "Remove what need not be kept.")] = None
    optimize: Annotated[Optimize | None, _resolver(_Task, Optimize, "Rewrite live databases and publish them.")] = None
    verify: Annotated[Verify | None, _resolver(_Verify, Verify, "Check what is in the store.")] = None
    repair_preview: Annotated[
        RepairPreview | None, _resolver(_Task, RepairPreview, "Show what dead processes left.")
    ] = None
    execution_timezone: str | None = Field(default=None, description="The schedules' time zone; UTC when left out.")
    default_status: Literal["running", "stopped"] = Field(
        default="stopped", description="Whether schedules run at once."
    )

    def to_definitions(
        self, datasets: Sequence[Dataset], keys: Mapping[str, dg.AssetKey], *, name: str, store_key: str
    ) -> dg.Definitions:
        """The jobs and schedules."""
        return build_maintenance(
            datasets,
            cleanup=self.cleanup,
            optimize=self.optimize,
            verify=self.verify,
            repair_preview=self.repair_preview,
            name=name,
            asset_keys=keys,
            store_key=store_key,
            execution_timezone=self.execution_timezone,
            default_status=dg.DefaultScheduleStatus(self.default_status.upper()),
        )
