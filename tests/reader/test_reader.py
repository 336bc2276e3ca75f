from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from snapshot_assets.errors import ConfigurationError, InvalidDatasetName, ReaderError, StoreUnavailable
from snapshot_assets.failpoints import REFRESH_DURING_FETCH, Failpoints
from snapshot_assets.reader.followed import FollowedDataset
from snapshot_assets.reader.settings import RefreshResult
from snapshot_assets.testing.faults import Fault
from tests.reader.world import World, wait_until

UNCLOSED = """
import sys, threading
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.snapshot_store import SnapshotStore
import duckdb

url, data_dir, live = sys.argv[1:]
reader = SnapshotReader(SnapshotStore.open(url, read_only=True), data_dir, ReaderSettings(refresh_interval=60))
provider = reader.follow("orders")
reader.catalog.query("select count(*) from orders.main.orders")
with duckdb.connect(live) as connection:
    connection.execute("insert into orders from orders")
Publisher(SnapshotStore.open(url)).publish(Dataset("orders", "duckdb", live))
closes, close = threading.Event(), provider.serving.pool.close

def slow_close():
    closes.set()
    with duckdb.connect() as connection:  # a thread that is in and out of DuckDB for a while, as one that closes much
        for _ in range(300):
            connection.execute("select sum(range) from range(100_000)")
    close()

provider.serving.pool.close = slow_close
reader.refresh("orders")
assert closes.wait(20)
"""


def test_a_process_that_does_not_close_its_reader_ends_well(world: World) -> None:
    world.orders(1)
    folder, live = world.folder, world.folder / "orders.duckdb"
    for run in range(3):
        done = subprocess.run(
            [sys.executable, "-c", UNCLOSED, *map(str, (folder / "store", folder / f"data-{run}", live))],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_a_reader_that_can_not_be_made_lets_go_of_its_data_folder(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> Path:
        raise OSError(errno.EIO, "broken disk", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr("snapshot_assets.reader.reader.fresh_folder", full)
        with pytest.raises(ConfigurationError, match="broken disk"):
            world.reader()
    world.orders(1)
    assert world.reader().follow("orders").current.generation == 1


def test_a_close_that_is_interrupted_closes_the_rest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    world.orders(1)
    reader = world.reader(refresh_interval=0.05)
    provider = reader.follow("orders")
    reader.catalog.query("select 1")
    assert reader._polling is not None
    with monkeypatch.context() as patch:
        patch.setattr(reader._polling, "close", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reader.close()
    with pytest.raises(ReaderError, match="closed"):
        provider.query("select 1")
    assert reader.catalog._sessions is None
    with world.reader() as second:
        assert second.follow("orders").current.generation == 1
    reader._polling.close()


def test_a_follow_that_meets_a_close_serves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.orders(1)
    with world.reader() as reader:
        reader.follow("orders")
    reader = world.reader()
    recover = FollowedDataset.recover

    def after_close(followed: FollowedDataset) -> None:
        reader.close()
        recover(followed)

    monkeypatch.setattr(FollowedDataset, "recover", after_close)
    with pytest.raises(ReaderError, match="closed"):
        reader.follow("orders")
    assert reader._known["orders"].provider.serving is None


def test_following_twice_gives_the_same_provider(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    assert reader.follow("orders") is reader.follow("orders")


def test_threads_that_follow_at_once_fetch_once(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(reader.follow("orders"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(map(id, found))) == 1
    assert world.faults.count("read", "*/manifest.json") == 1


def test_a_failed_follow_can_be_tried_again(world: World) -> None:
    world.orders(1)
    world.faults.arm(Fault("before", "read"))
    reader = world.reader()
    with pytest.raises(StoreUnavailable):
        reader.follow("orders")
    assert reader.status() == {}
    assert reader.follow("orders").current.generation == 1


def test_refreshes_of_one_dataset_are_serialized(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    reader.follow("orders")
    world.orders(2, rows=100_000)
    results: list[RefreshResult] = []
    threads = [threading.Thread(target=lambda: results.append(reader.refresh("orders"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.outcome for result in results) == ["loaded", "not_modified", "not_modified", "not_modified"]
    assert world.faults.count("read", "*/manifest.json") == 2


def test_a_name_that_no_dataset_can_have_is_refused(world: World) -> None:
    reader = world.reader()
    for name in ("../orders", "Orders", ".lock", "main", ""):
        with pytest.raises(InvalidDatasetName):
            reader.follow(name)
    assert sorted(path.name for path in world.data_dir.iterdir()) == [".lock", ".spill"]


def test_close_abandons_a_fetch_and_leaves_no_debris(world: World) -> None:
    world.orders(1)
    entered, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        entered.set()
        go_on.wait(10.0)

    reader = world.reader(failpoints=Failpoints({REFRESH_DURING_FETCH: pause}))
    raised: list[BaseException] = []

    def follow() -> None:
        try:
            reader.follow("orders")
        except ReaderError as error:
            raised.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    assert entered.wait(10.0)
    closing = threading.Thread(target=reader.close)
    closing.start()
    assert wait_until(reader._closed.is_set)
    go_on.set()
    thread.join(10.0)
    closing.join(10.0)
    assert "closed" in str(raised[0])
    assert world.local_copies("orders") == []


def test_status_tells_everything_a_page_shows(world: World) -> None:
    published = world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    with provider.connect():
        world.orders(2)
        reader.refresh("orders")
        with provider.connect():
            shown = json.loads(json.dumps(reader.status()["orders"].to_json()))
    assert shown["state"] == "loaded"
    assert shown["current"]["generation"] == shown["head_generation"] == 2
    assert shown["current"]["snapshot_id"] == 1
    assert shown["current"]["incarnation"] == published.incarnation
    assert shown["lag"] == 0
    assert shown["leases"] == 1
    assert [(old["generation"], old["leases"]) for old in shown["draining"]] == [(1, 1)]
    assert [swap["generation"] for swap in shown["swaps"]] == [1, 2]
    assert all(swap["seconds"] > 0 for swap in shown["swaps"])
    assert shown["row_counts"] == {"orders": 1_000}
    assert shown["last_error"] is None
    assert shown["age_seconds"] >= 0
