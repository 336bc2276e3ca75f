"""The Dagster component that publishes the databases that a `defs.yaml` names."""

from __future__ import annotations

from snapshot_assets.components.collection import SnapshotCollection
from snapshot_assets.components.dataset import CheckAttributes, DatasetAttributes
from snapshot_assets.components.maintenance import MaintenanceAttributes
from snapshot_assets.components.partitions import PartitionsAttributes
from snapshot_assets.components.readers import ReadersAttributes, RolloutAttributes, SensorAttributes
from snapshot_assets.components.store import StoreAttributes

__all__ = [
    "CheckAttributes",
    "DatasetAttributes",
    "MaintenanceAttributes",
    "PartitionsAttributes",
    "ReadersAttributes",
    "RolloutAttributes",
    "SensorAttributes",
    "SnapshotCollection",
    "StoreAttributes",
]
