from __future__ import annotations

import json
import threading

import pytest

from snapshot_assets.errors import InvalidDatasetName, ReaderError, StoreUnavailable
from snapshot_assets.failpoints import REFRESH_DURING_FETCH, Failpoints
from snapshot_assets.reader.settings import RefreshResult
from snapshot_assets.testing.faults import Fault
from tests.reader.world import World, wait_until


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
