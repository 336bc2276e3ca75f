"""Partitions definitions, as a `defs.yaml` writes them."""

# Dagster reads the annotations of models as objects, so they are not postponed here.

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import dagster as dg
from pydantic import Field

from snapshot_assets.components.schema import Attributes, written
from snapshot_assets.errors import ConfigurationError

__all__ = ["PartitionsAttributes"]

_OFFSETS: Final = "end_date timezone minute_offset hour_offset day_offset"
_TYPES: Final[Mapping[str, tuple[Any, str, str]]] = {
    "hourly": (dg.HourlyPartitionsDefinition, "start_date", "end_date timezone minute_offset"),
    "daily": (dg.DailyPartitionsDefinition, "start_date", "end_date timezone minute_offset hour_offset"),
    "weekly": (dg.WeeklyPartitionsDefinition, "start_date", _OFFSETS),
    "monthly": (dg.MonthlyPartitionsDefinition, "start_date", _OFFSETS),
    "time_window": (dg.TimeWindowPartitionsDefinition, "start_date fmt cron_schedule", "end_date timezone"),
    "static": (dg.StaticPartitionsDefinition, "partition_keys", ""),
}
"""Of each type: Dagster's class, the settings that it needs, and those that it may have."""


class PartitionsAttributes(Attributes):
    """A partitions definition, in the words of Dagster's own components."""

    type: Literal["hourly", "daily", "weekly", "monthly", "time_window", "static"]
    start_date: str | None = None
    end_date: str | None = None
    timezone: str | None = None
    minute_offset: int | None = None
    hour_offset: int | None = None
    day_offset: int | None = None
    cron_schedule: str | None = Field(default=None, description="When one partition ends and the next begins.")
    fmt: str | None = Field(default=None, description="How the keys are written, such as %Y-%m-%d.")
    partition_keys: Annotated[list[str] | None, written(list[str], "The keys.")] = None

    def to_definition(self) -> dg.PartitionsDefinition:
        """The partitions definition.

        Raises:
            ConfigurationError: a setting is missing, or is not one of the type's.
        """
        made_by, needs, may = _TYPES[self.type]
        given: dict[str, Any] = {key: value for key, value in self if value is not None and key != "type"}
        missing, strange = set(needs.split()) - set(given), set(given) - {*needs.split(), *may.split()}
        if missing or strange:
            wrong = [*(f"no {key}" for key in sorted(missing)), *(f"a {key}" for key in sorted(strange))]
            optional = f" and may have {', '.join(may.split())}" if may else ""
            raise ConfigurationError(
                f"{self.type} partitions with {' and '.join(wrong)}",
                hint=f"They need {', '.join(needs.split())}{optional}.",
            )
        if self.type == "time_window":
            given = {key.removesuffix("_date"): value for key, value in given.items()}
        definition: dg.PartitionsDefinition = made_by(**given)
        return definition
