"""Dagster assets that publish a dataset: take the write gate, change the live database, capture it, publish it."""

from __future__ import annotations

from snapshot_assets.assets.publishing import LiveDatabase, build_snapshot_asset, snapshot_asset

__all__ = ["LiveDatabase", "build_snapshot_asset", "snapshot_asset"]
