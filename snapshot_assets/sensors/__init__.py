"""Dagster sensors and jobs: notice what was published, and tell the readers."""

from __future__ import annotations

from snapshot_assets.sensors.reload import ReloadTarget, build_reload_job, reload_run_config
from snapshot_assets.sensors.snapshot import build_snapshot_sensor

__all__ = ["ReloadTarget", "build_reload_job", "build_snapshot_sensor", "reload_run_config"]
