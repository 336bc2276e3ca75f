"""Dagster assets that publish a dataset, the checks of what was published, and when what is downstream should run."""

from __future__ import annotations

from snapshot_assets.assets.automation import snapshot_changed
from snapshot_assets.assets.check_kinds import FreshnessCheck, IntegrityCheck, RowCountCheck, SchemaCheck, SnapshotCheck
from snapshot_assets.assets.checks import build_snapshot_checks
from snapshot_assets.assets.publishing import LiveDatabase, build_snapshot_asset, snapshot_asset
from snapshot_assets.assets.reader_lag import ReaderLagCheck

__all__ = [
    "FreshnessCheck",
    "IntegrityCheck",
    "LiveDatabase",
    "ReaderLagCheck",
    "RowCountCheck",
    "SchemaCheck",
    "SnapshotCheck",
    "build_snapshot_asset",
    "build_snapshot_checks",
    "snapshot_asset",
    "snapshot_changed",
]
