"""What is downstream of the demo's snapshots."""

from __future__ import annotations

import dagster as dg

from snapshot_assets.assets import snapshot_changed


@dg.asset(deps=["weather"], automation_condition=snapshot_changed())
def weather_report() -> None:
    """Runs when the weather changed."""


@dg.asset(deps=["flights"], automation_condition=snapshot_changed())
def flights_report() -> None:
    """Runs when flights changed."""


defs = dg.Definitions(
    assets=[weather_report, flights_report],
    sensors=[
        dg.AutomationConditionSensorDefinition(
            "automation",
            target=dg.AssetSelection.all(),
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=5,
        )
    ],
)
