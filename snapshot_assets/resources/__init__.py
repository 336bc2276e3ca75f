"""Dagster resources: the store that assets publish to, readers that follow, a reader in a run, an IO manager."""

from __future__ import annotations

from snapshot_assets.resources.fleet import ReaderFleetResource
from snapshot_assets.resources.io_manager import SnapshotIOManager
from snapshot_assets.resources.reader import SnapshotReaderResource
from snapshot_assets.resources.store import SnapshotStoreResource, store_kind

__all__ = ["ReaderFleetResource", "SnapshotIOManager", "SnapshotReaderResource", "SnapshotStoreResource", "store_kind"]
