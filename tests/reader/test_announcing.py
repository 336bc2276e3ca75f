"""A reader tells the store who it is and what it serves, and nothing about that stands in the way of serving."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snapshot_assets.errors import AccessDenied, StoreUnavailable
from snapshot_assets.ids import new_ulid
from snapshot_assets.model.announcement import MAX_ANNOUNCEMENT_BYTES, READERS_PREFIX, Announcement, announcement_key
from snapshot_assets.reader.announcing import _announced
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.status import Failure
from snapshot_assets.testing.faults import Fault
from tests.reader.world import ManualClock, World, wait_until

INTERVAL = 300.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def announcing(world: World, clock: ManualClock) -> SnapshotReader:
    world.orders(1)
    reader = world.reader(clock=clock, announce_interval=INTERVAL, cohort="canary")
    reader.follow("orders")
    return reader


def announcements(world: World) -> list[Announcement]:
    objects = world.plain.objects
    return [Announcement.parse(objects.read(found.key).data, found.key) for found in objects.list(READERS_PREFIX)]


def shows(world: World, generation: int) -> Callable[[], bool]:
    def shown() -> bool:
        found = announcements(world)
        return bool(found) and "orders" in found[0].datasets and found[0].datasets["orders"].generation == generation

    return shown


def writes(world: World) -> int:
    return world.faults.count("write_*", f"{READERS_PREFIX}*")


def test_it_is_announced_soon_after_it_follows_and_after_each_swap(
    world: World, clock: ManualClock, announcing: SnapshotReader
) -> None:
    assert clock.advance_until(shows(world, 1), most=20)
    world.orders(2)
    announcing.refresh("orders")
    assert clock.advance_until(shows(world, 2), most=20)
    (found,) = announcements(world)
    assert (found.cohort, found.endpoint, found.interval_ms) == ("canary", None, 300_000)
    orders = found.datasets["orders"]
    current = announcing.follow("orders").current
    assert (orders.state, orders.incarnation, orders.snapshot_id) == ("loaded", current.incarnation, 1)
    announcing.announce_endpoint("grpc://here:8815")
    assert clock.advance_until(lambda: announcements(world)[0].endpoint == "grpc://here:8815", most=20)


def test_a_failed_refresh_is_told_with_the_next_announcement(
    world: World, clock: ManualClock, announcing: SnapshotReader
) -> None:
    assert clock.advance_until(shows(world, 1), most=20)
    world.delete_data(world.orders(2, rows=200_000), "manifest.json")
    with pytest.raises(Exception, match="manifest"):
        announcing.refresh("orders")

    def told() -> bool:
        orders = announcements(world)[0].datasets["orders"]
        return orders.generation == 1 and (orders.last_error or "").startswith("SnapshotDamaged: ")

    assert clock.advance_until(told, step=INTERVAL, most=20)


def test_a_sign_of_life_comes_every_interval_and_not_before(
    world: World, clock: ManualClock, announcing: SnapshotReader
) -> None:
    assert clock.advance_until(shows(world, 1), most=20)
    assert wait_until(lambda: clock_is_waited_for(announcing))
    before, written_at = writes(world), announcements(world)[0].announced_at_ms
    clock.advance(INTERVAL - 20)
    assert not wait_until(lambda: writes(world) > before, seconds=0.2)
    assert clock.advance_until(lambda: writes(world) > before, most=40)
    assert wait_until(lambda: announcements(world)[0].announced_at_ms > written_at)


def clock_is_waited_for(reader: SnapshotReader) -> bool:
    """Whether everything that was to be announced is."""
    assert reader._announcer is not None
    return not reader._announcer._wake.is_set()


def test_many_changes_cost_at_most_one_write_a_second(
    world: World, clock: ManualClock, announcing: SnapshotReader
) -> None:
    assert announcing._announcer is not None
    begun = clock.monotonic()
    for _ in range(5):
        for _ in range(30):
            announcing._announcer.changed()
            threading.Event().wait(0.002)
        clock.advance(1.0)
    assert wait_until(lambda: writes(world) > 0)
    assert writes(world) <= clock.monotonic() - begun


def test_a_close_takes_it_back(world: World, clock: ManualClock, announcing: SnapshotReader) -> None:
    assert clock.advance_until(shows(world, 1), most=20)
    announcing.close()
    assert announcements(world) == []


def test_what_somebody_else_removed_or_replaced_comes_back(
    world: World, clock: ManualClock, announcing: SnapshotReader
) -> None:
    assert clock.advance_until(shows(world, 1), most=20)
    (found,) = announcements(world)
    key = announcement_key(found.reader_id)
    world.plain.objects.delete([key])
    world.orders(2)
    announcing.refresh("orders")
    assert clock.advance_until(shows(world, 2), most=20)
    token = world.plain.objects.read(key).token
    world.plain.objects.write_if_match(key, b"somebody else's", token)
    world.orders(3)
    announcing.refresh("orders")

    def is_back() -> bool:
        return world.plain.objects.read(key).data != b"somebody else's" and shows(world, 3)()

    assert clock.advance_until(is_back, most=20)


def test_an_answer_that_was_lost_is_found_out(world: World, clock: ManualClock, announcing: SnapshotReader) -> None:
    assert clock.advance_until(shows(world, 1), most=20)
    world.faults.arm(Fault("after", "write_if_match", f"{READERS_PREFIX}*"))
    world.orders(2)
    announcing.refresh("orders")
    assert clock.advance_until(shows(world, 2), most=20)
    world.orders(3)
    announcing.refresh("orders")
    assert clock.advance_until(shows(world, 3), most=20)
    assert not world.faults.unfired


@pytest.mark.parametrize("operation", ["read", "write_*"])
def test_a_store_that_permits_no_announcement_is_warned_of_once_and_serving_goes_on(
    world: World, clock: ManualClock, caplog: pytest.LogCaptureFixture, operation: str
) -> None:
    world.orders(1)
    world.faults.arm(Fault("before", operation, f"{READERS_PREFIX}*", times=1_000, error=AccessDenied))
    with caplog.at_level(logging.WARNING, "snapshot_assets.reader.announcing"):
        reader = world.reader(clock=clock, announce_interval=INTERVAL)
        provider = reader.follow("orders")
        assert clock.advance_until(lambda: bool(caplog.records), most=50)
        world.orders(2)
        assert reader.refresh("orders").outcome == "loaded"
        for _ in range(5):
            clock.advance(INTERVAL)
            threading.Event().wait(0.02)
        reader.refresh("orders")
        assert provider.query("select distinct v from orders").to_pylist() == [{"v": 2}]
        reader.close()
    assert [record.message for record in caplog.records] == [caplog.records[0].message]
    assert "can not announce itself" in caplog.text
    assert len(world.faults.fired) == 1
    assert announcements(world) == []


def test_a_store_that_is_away_is_tried_again_at_the_next_interval(
    world: World, clock: ManualClock, announcing: SnapshotReader
) -> None:
    world.faults.arm(Fault("before", "*", f"{READERS_PREFIX}*", times=3))
    assert clock.advance_until(shows(world, 1), step=60.0, most=100)
    assert len(world.faults.fired) == 3


def test_a_store_that_never_answers_delays_neither_queries_nor_the_close(
    world: World, clock: ManualClock, announcing: SnapshotReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert clock.advance_until(shows(world, 1), most=20)
    entered, answered = threading.Event(), threading.Event()

    def stuck(key: str, data: bytes, token: str) -> str:
        entered.set()
        answered.wait(30.0)
        raise StoreUnavailable("it never came")

    monkeypatch.setattr(world.faults, "write_if_match", stuck)
    world.orders(2)
    announcing.refresh("orders")
    assert clock.advance_until(entered.is_set, most=50)
    provider = announcing.follow("orders")
    assert provider.query("select distinct v from orders").to_pylist() == [{"v": 2}]
    world.orders(3)
    assert announcing.refresh("orders").outcome == "loaded"
    closing = threading.Thread(target=announcing.close)
    closing.start()
    closing.join(20.0)
    ended_first = not closing.is_alive() and not answered.is_set()
    assert announcing._announcer is not None
    answered.set()
    closing.join(20.0)
    announcing._announcer._thread.join(20.0)
    assert ended_first
    # Another reader of the data folder may have announced itself under the same id by then.
    assert len(announcements(world)) == 1


def test_a_restart_keeps_the_id(world: World, clock: ManualClock, announcing: SnapshotReader) -> None:
    assert clock.advance_until(shows(world, 1), most=20)
    (before,) = announcements(world)
    announcing.close()
    reader = world.reader(clock=clock, announce_interval=INTERVAL)
    reader.follow("orders")
    assert clock.advance_until(shows(world, 1), most=20)
    (after,) = announcements(world)
    assert after.reader_id == before.reader_id
    other = world.reader(clock=clock, announce_interval=INTERVAL, data_dir=world.folder / "other")
    other.follow("orders")
    assert clock.advance_until(lambda: len(announcements(world)) == 2, most=20)


def test_a_reader_that_was_killed_is_announced_once_after_its_restart(world: World, clock: ManualClock) -> None:
    world.orders(1)
    world.data_dir.mkdir()
    reader_id = new_ulid()
    (world.data_dir / ".reader_id").write_text(reader_id)
    world.plain.objects.write_if_absent(announcement_key(reader_id), b"of the one that was killed")
    reader = world.reader(clock=clock, announce_interval=INTERVAL)
    reader.follow("orders")
    assert clock.advance_until(
        lambda: world.plain.objects.read(announcement_key(reader_id)).data[:1] == b"{" and shows(world, 1)(), most=50
    )
    assert [found.reader_id for found in announcements(world)] == [reader_id]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../heads/orders", b"01ARZ3NDEKTSV4RRFFQ69G5FA", None])
def test_an_id_that_is_damaged_is_made_anew(world: World, clock: ManualClock, content: bytes | None) -> None:
    world.orders(1)
    world.data_dir.mkdir()
    path = world.data_dir / ".reader_id"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    reader = world.reader(clock=clock, announce_interval=INTERVAL)
    reader.follow("orders")
    assert clock.advance_until(shows(world, 1), most=50)
    (found,) = announcements(world)
    assert len(found.reader_id) == 26
    assert content is None or path.read_text() == found.reader_id


def test_a_reader_that_is_not_to_announce_itself_writes_nothing(world: World, clock: ManualClock) -> None:
    world.orders(1)
    reader = world.reader(clock=clock, announce_interval=None)
    reader.follow("orders")
    reader.announce_endpoint("grpc://here:8815")
    for _ in range(5):
        clock.advance(INTERVAL)
        threading.Event().wait(0.02)
    reader.close()
    assert not world.faults.count("*", f"{READERS_PREFIX}*")
    assert not Path(world.data_dir / ".reader_id").exists()


def test_what_went_wrong_with_many_datasets_still_makes_an_announcement_that_can_be_read(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    reader.follow("orders")
    failure = Failure("SchemaIncompatible", "orders has other columns: " + 100_000 * "x", "", 0)
    status = replace(reader.status()["orders"], last_error=failure)
    announced = _announced(status)
    assert announced.last_error is not None
    assert announced.last_error.startswith("SchemaIncompatible: orders has other columns: x")
    assert 3_000 * len(json.dumps(announced.to_json())) < MAX_ANNOUNCEMENT_BYTES
