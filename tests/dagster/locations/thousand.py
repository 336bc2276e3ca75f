"""A thousand datasets, looked at by one sensor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg

from snapshot_assets.ids import IncarnationId, OperationId, new_ulid
from snapshot_assets.model.head import Head, SchemaVersion, SnapshotEntry, head_key
from snapshot_assets.resources import ReaderFleetResource, SnapshotStoreResource
from snapshot_assets.sensors import build_reload_job, build_snapshot_sensor
from snapshot_assets.store.snapshot_store import SnapshotStore

STORE = Path(os.environ.get("SNAPSHOT_ASSETS_HOME", ".")) / "thousand"
NAMES = [f"dataset_{number:04d}" for number in range(1000)]


def write_heads(store: SnapshotStore, names: Sequence[str] = NAMES) -> None:
    """A head with one snapshot for each, straight into the store, since a thousand captures would take an hour."""
    digest = "blake3:" + "0" * 64

    def write(name: str) -> None:
        entry = SnapshotEntry(0, OperationId(new_ulid()), None, None, 0, 0, digest, digest, 1, 1, 1, (), {})
        head = Head(
            name,
            IncarnationId(new_ulid()),
            "duckdb",
            generation=1,
            next_snapshot_id=1,
            current_snapshot_id=0,
            schemas=(SchemaVersion(0, {}),),
            snapshots=(entry,),
        )
        store.objects.write_if_absent(head_key(name), head.to_bytes())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, names))


_job = build_reload_job("reload_thousand")
defs = dg.Definitions(
    jobs=[_job],
    sensors=[build_snapshot_sensor(NAMES, job=_job, name="thousand", store_key="thousand_store")],
    resources={"thousand_store": SnapshotStoreResource(url=str(STORE)), "reader_fleet": ReaderFleetResource()},
)
