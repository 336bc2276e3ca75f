"""Stores that are away for hours or come back older, and clocks that jump: what is served is right all the time."""

from __future__ import annotations

import shutil
import threading

import pytest

from snapshot_assets.errors import SnapshotDamaged, StoreUnavailable
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.announcement import READERS_PREFIX
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.provider import SnapshotProvider
from snapshot_assets.store.local import LocalStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Fault
from tests.reader.world import ManualClock, World, wait_until

HOUR = 3600.0


def version(provider: SnapshotProvider) -> int:
    (row,) = provider.query("select distinct v from orders").to_pylist()
    return int(row["v"])


def restore_store(world: World) -> None:
    """Put the store's backup in place, and forget what the tests' publisher knew of the other one."""
    shutil.rmtree(world.folder / "store")
    shutil.copytree(world.folder / "backup", world.folder / "store")
    world.plain = SnapshotStore.over(LocalStore(world.folder / "store"))
    world.publisher = Publisher(world.plain)
    shutil.rmtree(world.folder / ".snapshot-assets", ignore_errors=True)


def back_up_store(world: World) -> None:
    shutil.copytree(world.folder / "store", world.folder / "backup")


@pytest.mark.parametrize("hours", [5.0, -5.0, -24.0 * 365 * 30])
def test_a_clock_that_jumps_stops_neither_polling_nor_announcing_and_loses_nothing(world: World, hours: float) -> None:
    clock = ManualClock()
    world.orders(1)
    reader = world.reader(clock=clock, refresh_interval=60.0, announce_interval=300.0, drain_timeout=30.0)
    provider = reader.follow("orders")
    assert clock.advance_until(lambda: world.faults.count("write_*", f"{READERS_PREFIX}*") > 0)
    for number, jump in enumerate((hours, -2 * hours, hours), start=2):
        clock.jump(jump)
        world.orders(number)
        announced = world.faults.count("write_*", f"{READERS_PREFIX}*")
        assert clock.advance_until(lambda number=number: version(provider) == number, step=10.0)  # type: ignore[misc]
        assert provider.current.generation == number
        assert clock.advance_until(
            lambda announced=announced: world.faults.count("write_*", f"{READERS_PREFIX}*") > announced  # type: ignore[misc]
        )
        age = reader.status()["orders"].age_seconds
        assert age is not None
        assert age >= 0
    reader.close()
    with world.reader(clock=clock) as again:
        assert again.follow("orders").current.generation == 4


def test_nothing_is_asked_more_often_or_more_seldom_because_the_wall_clock_jumps(world: World) -> None:
    clock = ManualClock()
    world.orders(1)
    reader = world.reader(clock=clock, refresh_interval=60.0)
    reader.follow("orders")
    assert wait_until(lambda: world.faults.count("list") > 0)
    # The first look may come twice: at the thread's start, and because it was asked for.
    threading.Event().wait(0.3)
    before = world.faults.count("list")
    for hours in (5.0, -10.0, 300.0):
        clock.jump(hours)
        assert not wait_until(lambda: world.faults.count("list") > before, seconds=0.1)
    assert clock.advance_until(lambda: world.faults.count("list") > before, most=70)


def test_a_store_that_is_gone_for_hours_is_asked_seldom_and_followed_again_when_it_is_back(world: World) -> None:
    clock = ManualClock()
    world.orders(1)
    reader = world.reader(clock=clock, refresh_interval=1.0)
    provider = reader.follow("orders")
    world.faults.arm(Fault("before", times=1_000_000))
    before = len(world.faults.calls)
    assert clock.advance_until(lambda: reader.status()["orders"].state == "error")
    for _ in range(120):
        clock.advance(120.0)
        threading.Event().wait(0.01)
        assert version(provider) == 1
    asked = len(world.faults.calls) - before
    # Four hours at one look a second would be 14,400; the longest pause is five minutes.
    assert 10 < asked < 4 * HOUR / 120
    assert reader.catalog.query("select distinct v from orders.main.orders").to_pylist() == [{"v": 1}]
    status = reader.status()["orders"]
    assert status.last_error is not None
    assert status.last_error.kind == "StoreUnavailable"
    world.faults.disarm()
    world.orders(2)
    # One longest pause, with its jitter.
    back_at = clock.monotonic()
    assert clock.advance_until(lambda: version(provider) == 2, step=10.0)
    assert clock.monotonic() - back_at < 600.0
    assert wait_until(lambda: reader.status()["orders"].last_error is None)


def test_a_reader_that_starts_while_the_store_is_gone_serves_and_catches_up(world: World) -> None:
    world.orders(1)
    with world.reader() as reader:
        reader.follow("orders")
    world.orders(2)
    clock = ManualClock()
    world.faults.arm(Fault("before", times=1_000_000))
    reader = world.reader(clock=clock, refresh_interval=60.0)
    provider = reader.follow("orders")
    for _ in range(30):
        clock.advance(HOUR / 4)
        threading.Event().wait(0.005)
        assert version(provider) == 1
    world.faults.disarm()
    assert clock.advance_until(lambda: version(provider) == 2, step=30.0)


def test_a_store_that_was_restored_from_a_backup_is_followed_when_it_is_ahead_again(world: World) -> None:
    world.orders(1)
    back_up_store(world)
    world.orders(2)
    reader = world.reader()
    provider = reader.follow("orders")
    assert (version(provider), provider.current.generation) == (2, 2)
    restore_store(world)
    assert reader.refresh("orders").outcome == "not_modified"
    assert version(provider) == 2
    # The same generation and snapshot id as what is served, and other content: it is not higher, so it waits.
    world.orders(12)
    assert reader.refresh("orders").outcome == "not_modified"
    assert (version(provider), provider.current.generation) == (2, 2)
    world.orders(13)
    assert reader.refresh("orders").outcome == "loaded"
    assert (version(provider), provider.current.generation, provider.current.snapshot_id) == (13, 3, 2)
    reader.close()
    assert version(world.reader().follow("orders")) == 13


def test_a_snapshot_of_the_restored_store_is_never_taken_for_the_one_of_its_number(world: World) -> None:
    world.orders(1)
    back_up_store(world)
    world.orders(2)
    reader = world.reader()
    provider = reader.follow("orders")
    restore_store(world)
    world.orders(12)
    world.orders(13)
    # What the head calls current now has the id of what is served.
    Maintenance(world.plain).rollback("orders", 1)
    with pytest.raises(SnapshotDamaged):
        reader.refresh("orders")
    assert (version(provider), provider.current.generation) == (2, 2)
    reader.close()
    reader = world.reader()
    provider = reader.follow("orders")
    world.orders(14)
    assert reader.refresh("orders").outcome == "loaded"
    assert version(provider) == 14
    Maintenance(world.plain).rollback("orders", 1)
    assert wait_until(lambda: not reader.status()["orders"].draining)
    assert reader.refresh("orders").outcome == "loaded"
    assert version(provider) == 12


def test_a_warm_copy_of_the_lost_history_is_not_served_for_its_number(world: World) -> None:
    world.orders(1)
    back_up_store(world)
    world.orders(2)
    reader = world.reader(keep_local=5)
    provider = reader.follow("orders")
    world.orders(3)
    reader.refresh("orders")
    restore_store(world)
    for number in (12, 13, 14):
        world.orders(number)
    Maintenance(world.plain).rollback("orders", 1)
    assert wait_until(lambda: not reader.status()["orders"].draining)
    assert reader.refresh("orders").outcome == "loaded"
    assert version(provider) == 12


def test_a_reader_that_starts_on_the_restored_store_does_not_go_back(world: World) -> None:
    world.orders(1)
    back_up_store(world)
    world.orders(2)
    with world.reader() as reader:
        reader.follow("orders")
    restore_store(world)
    reader = world.reader(refresh_interval=0.05)
    provider = reader.follow("orders")
    assert wait_until(lambda: reader.status()["orders"].head_generation == 1)
    assert (version(provider), provider.current.generation) == (2, 2)
    for number in (12, 13):
        world.orders(number)
    assert wait_until(lambda: version(provider) == 13)


def test_a_store_that_lost_the_dataset_is_waited_for_while_it_is_served(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    back_up_store(world)
    shutil.rmtree(world.folder / "store" / "heads")
    assert reader.refresh("orders").outcome == "waiting"
    assert version(provider) == 1
    restore_store(world)
    world.orders(2)
    assert reader.refresh("orders").outcome == "loaded"
    assert version(provider) == 2


def test_an_outage_in_the_middle_of_a_fetch_leaves_nothing_and_is_made_good(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    world.orders(2, rows=300_000)
    world.faults.arm(Fault("before", nth=3, times=1_000_000))
    with pytest.raises(StoreUnavailable):
        reader.refresh("orders")
    assert [name for name in world.local_copies("orders") if name.startswith(".")] == []
    assert version(provider) == 1
    world.faults.disarm()
    assert reader.refresh("orders").outcome == "loaded"
    assert version(provider) == 2
