"""Publishes without end: what the thousandth costs is what the tenth cost."""

from __future__ import annotations

import random
import sqlite3
import statistics
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import SnapshotEntry
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.local import LocalStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import FaultStore
from tests.publish.support import check_store

MOST_OPERATIONS = 32
KEPT = 5


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


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("publishes", [25, pytest.param(1_000, marks=pytest.mark.soak)])
def test_a_store_that_is_cleaned_holds_little_more_than_what_is_kept(tmp_path: Path, publishes: int) -> None:
    """Against a fresh store to which only the kept snapshots were ever published. Updates are scattered: the worst."""
    store = SnapshotStore.open(str(tmp_path / "store"))
    publisher, maintenance = Publisher(store), Maintenance(store)
    live = tmp_path / "orders.sqlite"
    dataset = Dataset("orders", "sqlite", live)
    chance = random.Random(7)
    with closing(sqlite3.connect(live)) as connection, connection:
        connection.execute("create table t (id integer primary key, note blob)")
        connection.executemany("insert into t values (?, ?)", ((i, chance.randbytes(300)) for i in range(12_000)))
    ratios = []
    for turn in range(1, publishes + 1):
        with closing(sqlite3.connect(live)) as connection, connection:
            some = [(chance.randbytes(300), chance.randrange(12_000)) for _ in range(chance.choice([20, 120, 600]))]
            connection.executemany("update t set note = ? where id = ?", some)
        publisher.publish(dataset)
        [row] = maintenance.cleanup([dataset.name], keep=KEPT, grace=0, confirm=True)
        assert row.error is None
        if turn % (publishes // 5) == 0:
            fresh = kept_alone(store, tmp_path / f"fresh-{turn}")
            ratios.append(size_of(store) / size_of(fresh))
    print(f"\nthe store is {statistics.mean(ratios):.2f} x what it keeps, at most {max(ratios):.2f} x")
    # For a while a chunk is there twice: stored anew for the newest snapshot, and in a pack that older ones need.
    assert statistics.mean(ratios) <= 1.7
    assert max(ratios) <= 2.5


def kept_alone(store: SnapshotStore, folder: Path) -> SnapshotStore:
    """A store that only ever held the snapshots that are listed."""
    fresh = SnapshotStore.open(str(folder / "store"))
    head = store.head("orders")
    for entry in head.snapshots:
        content = read_content(store.objects, "orders", head.incarnation, entry.operation_id, entry.manifest_digest)
        live = folder / f"{entry.snapshot_id}"
        live.mkdir()
        restore_files(store.objects, content, live)
        [file] = content.manifest.files
        (live / file.path).rename(folder / "orders.sqlite")
        Publisher(fresh).publish(Dataset("orders", "sqlite", folder / "orders.sqlite"))
    assert len(fresh.head("orders").snapshots) == len(head.snapshots) == KEPT
    return fresh


def size_of(store: SnapshotStore) -> int:
    return sum(listed.size for listed in store.objects.list("data/"))
