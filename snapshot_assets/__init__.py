"""Publish embedded databases as versioned, verified snapshots; long-lived readers hot-swap to the newest one.

The names below are loaded when they are first used, so that importing the package costs next to nothing. Dagster's
side lives in `snapshot_assets.assets`, `snapshot_assets.components`, `snapshot_assets.resources` and
`snapshot_assets.sensors`; a `defs.yaml` names its component as `snapshot_assets.SnapshotCollection`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snapshot_assets.errors import SnapshotAssetsError
    from snapshot_assets.maintenance.maintenance import Maintenance
    from snapshot_assets.model.dataset import Dataset
    from snapshot_assets.model.head import Head
    from snapshot_assets.publish.publisher import Publisher, PublishResult
    from snapshot_assets.reader.handoff import FormatCheck, Generation, IndexHandoff, StreamHandoff
    from snapshot_assets.reader.reader import SnapshotReader
    from snapshot_assets.reader.settings import ReaderSettings, RefreshResult
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = [
    "Dataset",
    "FormatCheck",
    "Generation",
    "Head",
    "IndexHandoff",
    "Maintenance",
    "PublishResult",
    "Publisher",
    "ReaderSettings",
    "RefreshResult",
    "SnapshotAssetsError",
    "SnapshotReader",
    "SnapshotStore",
    "StreamHandoff",
]

__version__ = "0.1.0"

_ROOMS = {
    "Dataset": "model.dataset",
    "FormatCheck": "reader.handoff",
    "Generation": "reader.handoff",
    "Head": "model.head",
    "IndexHandoff": "reader.handoff",
    "Maintenance": "maintenance.maintenance",
    "PublishResult": "publish.publisher",
    "Publisher": "publish.publisher",
    "ReaderSettings": "reader.settings",
    "RefreshResult": "reader.settings",
    "SnapshotAssetsError": "errors",
    "SnapshotCollection": "components",
    "SnapshotReader": "reader.reader",
    "SnapshotStore": "store.snapshot_store",
    "StreamHandoff": "reader.handoff",
}


def __getattr__(name: str) -> object:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_ROOMS))
