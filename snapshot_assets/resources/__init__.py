"""Dagster resources: the store that assets publish to, the readers that follow, and a reader inside a run."""

from __future__ import annotations

from snapshot_assets.resources.fleet import ReaderFleetResource
from snapshot_assets.resources.reader import SnapshotReaderResource
from snapshot_assets.resources.store import SnapshotStoreResource, store_kind

__all__ = ["ReaderFleetResource", "SnapshotReaderResource", "SnapshotStoreResource", "store_kind"]
