from __future__ import annotations

import logging
import threading
import time

import pytest

from snapshot_assets.testing.faults import Fault
from tests.reader.world import World, wait_until


def test_a_newer_generation_arrives_by_itself(world: World) -> None:
    world.orders(1)
    reader = world.reader(refresh_interval=0.05)
    provider = reader.follow("orders")
    world.orders(2)
    assert wait_until(lambda: provider.current.generation == 2)


def test_a_first_snapshot_arrives_by_itself(world: World) -> None:
    reader = world.reader(refresh_interval=0.05)
    provider = reader.follow("orders")
    world.orders(1)
    assert wait_until(lambda: provider.serving is not None)
    assert wait_until(lambda: reader.status()["orders"].state == "loaded")


def test_one_listing_serves_all_datasets_and_unchanged_heads_are_not_read(world: World) -> None:
    world.orders(1)
    world.planes(1)
    reader = world.reader(refresh_interval=0.05)
    reader.follow("orders")
    reader.follow("planes")
    time.sleep(0.2)
    world.faults.calls.clear()
    assert wait_until(lambda: world.faults.count("list") >= 4)
    assert {call.operation for call in world.faults.calls} == {"list"}


def test_what_is_followed_without_refresh_is_left_alone(world: World) -> None:
    world.orders(1)
    world.planes(1)
    reader = world.reader(refresh_interval=0.05)
    orders = reader.follow("orders", refresh=False)
    planes = reader.follow("planes")
    world.orders(2)
    world.planes(2)
    assert wait_until(lambda: planes.current.generation == 2)
    time.sleep(0.15)
    assert orders.current.generation == 1


def test_one_broken_dataset_does_not_stop_the_others(world: World) -> None:
    world.orders(1)
    world.planes(1)
    reader = world.reader(refresh_interval=0.05)
    orders, planes = reader.follow("orders"), reader.follow("planes")
    world.faults.arm(Fault("corrupt", "read", "data/orders/*", times=1_000_000))
    world.orders(2)
    world.planes(2)
    assert wait_until(lambda: planes.current.generation == 2)
    assert wait_until(lambda: reader.status()["orders"].state == "error")
    assert orders.current.generation == 1
    world.faults.disarm()
    world.orders(3)
    assert wait_until(lambda: orders.current.generation == 3)


def test_failures_are_retried_at_growing_intervals(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.orders(1)
    reader = world.reader(refresh_interval=0.05)
    provider = reader.follow("orders")
    time.sleep(0.1)
    with caplog.at_level(logging.CRITICAL, "snapshot_assets"):
        world.faults.arm(Fault("before", "list", times=1_000_000))
        world.faults.calls.clear()
        time.sleep(1.5)
        asked = world.faults.count("list")
        assert reader.status()["orders"].state == "error"
        assert provider.query("select max(v) v from orders").to_pylist() == [{"v": 1}]
    assert 3 <= asked <= 9
    world.faults.disarm()
    assert wait_until(lambda: reader.status()["orders"].state == "loaded")
    assert reader.status()["orders"].last_error is None
    world.orders(2)
    assert wait_until(lambda: provider.current.generation == 2)


def test_a_refresh_that_can_not_be_started_is_tried_at_a_later_look(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.orders(1)
    reader = world.reader(refresh_interval=0.05)
    provider = reader.follow("orders")
    assert reader._polling is not None
    workers = reader._polling._workers
    assert workers is not None
    submit, refused = workers.submit, threading.Event()

    def submit_later(*arguments: object) -> object:
        if refused.is_set():
            return submit(*arguments)  # type: ignore[arg-type]
        refused.set()
        raise RuntimeError("can't start new thread")

    workers.submit = submit_later  # type: ignore[method-assign, assignment]
    world.orders(2)
    assert wait_until(lambda: provider.current.generation == 2)
    assert "can't start new thread" in caplog.text


def test_a_look_that_fails_unforeseen_is_not_the_last(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unforeseen() -> None:
        raise KeyError("nobody foresaw this")

    world.orders(1)
    reader = world.reader(refresh_interval=0.05)
    provider = reader.follow("orders")
    with monkeypatch.context() as patch:
        patch.setattr(world.store, "heads", unforeseen)
        assert wait_until(lambda: "nobody foresaw this" in caplog.text)
    world.orders(2)
    assert wait_until(lambda: provider.current.generation == 2)


def test_heads_without_a_snapshot_are_read_once(world: World) -> None:
    world.orders(1)
    world.change_head("orders", lambda _: {"current_snapshot_id": None})
    reader = world.reader(refresh_interval=0.05)
    reader.follow("orders")
    time.sleep(0.1)
    world.faults.calls.clear()
    assert wait_until(lambda: world.faults.count("list") >= 3)
    assert not world.faults.count("read*")
    assert reader.status()["orders"].state == "waiting"


def test_a_refresh_that_takes_long_is_not_started_twice_and_stops_nothing(world: World) -> None:
    world.orders(1)
    world.planes(1)
    reader = world.reader(refresh_interval=0.05)
    reader.follow("orders")
    planes = reader.follow("planes")
    followed = reader._followed["orders"]
    running: list[int] = []
    most: list[int] = []
    go_on = threading.Event()
    refresh = followed.refresh

    def slow() -> object:
        running.append(1)
        most.append(len(running))
        go_on.wait(10.0)
        try:
            return refresh()
        finally:
            running.pop()

    followed.refresh = slow  # type: ignore[method-assign, assignment]
    world.orders(2)
    assert wait_until(lambda: bool(running))
    world.planes(2)
    assert wait_until(lambda: planes.current.generation == 2)
    go_on.set()
    assert wait_until(lambda: followed.provider.current.generation == 2)
    assert max(most) == 1


def test_close_stops_the_threads_of_polling_and_draining(world: World) -> None:
    world.orders(1)
    reader = world.reader(refresh_interval=0.05)
    reader.follow("orders")
    world.orders(2)
    assert wait_until(lambda: reader.status()["orders"].current.generation == 2)  # type: ignore[union-attr]
    reader.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("snapshot-assets")]
    world.faults.calls.clear()
    time.sleep(0.15)
    assert not world.faults.calls
