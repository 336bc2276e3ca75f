"""Publishes without end: what the thousandth costs is what the tenth cost."""

from __future__ import annotations

import sqlite3
import statistics
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from snapshot_assets.content.snapshot import read_content
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import SnapshotEntry
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.local import LocalStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import FaultStore
from tests.publish.support import check_store

MOST_OPERATIONS = 32


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("publishes", [60, pytest.param(2_000, marks=pytest.mark.soak)])
def test_requests_uploads_and_operations_stay_bounded_however_long_it_goes(tmp_path: Path, publishes: int) -> None:
    calls = FaultStore(LocalStore(tmp_path / "store"))
    store = SnapshotStore.over(calls)
    publisher = Publisher(store, max_snapshots=10)
    live = tmp_path / "orders.sqlite"
    dataset = Dataset("orders", "sqlite", live)
    with closing(sqlite3.connect(live)) as connection, connection:
        connection.execute("create table t (id integer primary key, version integer, note text)")
        connection.executemany("insert into t values (?, 0, ?)", ((i, f"note {i}" * 10) for i in range(20_000)))
    requests, uploads = [], []
    for turn in range(publishes):
        with closing(sqlite3.connect(live)) as connection, connection:
            start = turn * 97 % 19_900
            connection.execute("update t set version = ? where id between ? and ?", [turn + 1, start, start + 50])
        before = len(calls.calls)
        result = publisher.publish(dataset)
        requests.append(len(calls.calls) - before)
        uploads.append(result.uploaded_bytes)
        assert len(needed_operations(store, store.head("orders").snapshots[-1:])) <= MOST_OPERATIONS
    early, late = requests[5:25], requests[-20:]
    assert statistics.median(late) <= 1.1 * statistics.median(early)
    assert max(uploads[1:]) <= 0.25 * uploads[0] + 0.2 * result.data_bytes
    head = store.head("orders")
    assert [entry.snapshot_id for entry in head.snapshots] == list(range(publishes - 10, publishes))
    needed = needed_operations(store, head.snapshots)
    forgotten = [listed.key for listed in store.objects.list("data/") if listed.key.split("/")[3] not in needed]
    store.objects.delete(forgotten)
    check_store(store, tmp_path / "scratch")


def needed_operations(store: SnapshotStore, entries: Sequence[SnapshotEntry]) -> set[str]:
    head = store.head("orders")
    needed: set[str] = set()
    for entry in entries:
        content = read_content(store.objects, "orders", head.incarnation, entry.operation_id, entry.manifest_digest)
        needed |= set(content.manifest.operations)
    return needed
