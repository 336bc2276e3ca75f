"""Dagster sensors, jobs and schedules: notice what was published, tell the readers, and maintain the store."""

from __future__ import annotations

from snapshot_assets.sensors.lag import build_reader_lag_sensor
from snapshot_assets.sensors.maintenance import build_maintenance
from snapshot_assets.sensors.maintenance_tasks import Cleanup, Optimize, RepairPreview, Verify
from snapshot_assets.sensors.reload import ReloadTarget, build_reload_job, reload_run_config
from snapshot_assets.sensors.rollout import Rollout
from snapshot_assets.sensors.snapshot import build_snapshot_sensor

__all__ = [
    "Cleanup",
    "Optimize",
    "ReloadTarget",
    "RepairPreview",
    "Rollout",
    "Verify",
    "build_maintenance",
    "build_reader_lag_sensor",
    "build_reload_job",
    "build_snapshot_sensor",
    "reload_run_config",
]
