"""A pinned reader holds its snapshot through all that happens to the head, and never goes to a lower generation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from snapshot_assets.errors import (
    ConfigurationError,
    NotLoaded,
    SnapshotDamaged,
    SnapshotMissing,
    StoreUnavailable,
)
from snapshot_assets.ids import new_incarnation_id
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.announcement import READERS_PREFIX, Announcement
from snapshot_assets.model.head import Head, Status
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.testing.faults import Fault
from tests.reader.world import World, wait_until


def served(reader: SnapshotReader) -> tuple[int, int, int, bool]:
    """The version of the data, and generation, snapshot and pinned as they are told."""
    provider = reader.follow("orders")
    (row,) = provider.query("select distinct v from orders").to_pylist()
    current = provider.current
    assert reader.catalog.query("select distinct v from orders.main.orders").to_pylist() == [row]
    assert reader.catalog.generations["orders"] == current
    return row["v"], current.generation, current.snapshot_id, current.pinned


def recreate(head: Head) -> dict[str, Any]:
    return {
        "incarnation": new_incarnation_id(),
        "generation": head.generation + 1,
        "current_snapshot_id": None,
        "snapshots": (),
        "schemas": (),
        "next_snapshot_id": 0,
    }


def test_a_pin_of_the_settings_is_loaded_at_first_and_held_through_publishes_and_rollbacks(world: World) -> None:
    for number in (1, 2, 3):
        world.orders(number)
    reader = world.reader(pins={"orders": 1})
    assert served(reader) == (2, 3, 1, True)
    world.orders(4)
    assert reader.refresh("orders").outcome == "not_modified"
    Maintenance(world.plain).rollback("orders", 0)
    assert reader.refresh("orders").outcome == "not_modified"
    assert served(reader) == (2, 3, 1, True)
    status = reader.status()["orders"]
    assert (status.pin, status.head_generation, status.lag) == (1, 5, 2)
    assert json.loads(json.dumps(status.to_json()))["current"]["pinned"] is True
    world.faults.calls.clear()
    assert reader.refresh("orders").outcome == "not_modified"
    assert [call.operation for call in world.faults.calls] == ["read_if_changed"]


def test_other_datasets_are_not_pinned(world: World) -> None:
    for number in (1, 2):
        world.orders(number)
        world.planes(number)
    reader = world.reader(pins={"orders": 0})
    assert reader.follow("planes").current.snapshot_id == 1
    assert reader.follow("orders").current.snapshot_id == 0


def test_a_reader_is_pinned_and_unpinned_at_runtime_without_a_lower_generation(world: World) -> None:
    for number in (1, 2, 3):
        world.orders(number)
    reader = world.reader(keep_local=3)
    assert served(reader) == (3, 3, 2, False)
    result = reader.pin("orders", 0)
    assert (result.outcome, result.generation, result.snapshot_id) == ("loaded", 3, 0)
    assert served(reader) == (1, 3, 0, True)
    assert reader.pin("orders", 1).outcome == "loaded"
    assert served(reader) == (2, 3, 1, True)
    world.faults.calls.clear()
    assert reader.pin("orders", None).outcome == "loaded"
    assert not world.faults.count("read_ranges")
    assert served(reader) == (3, 3, 2, False)
    assert reader.refresh("orders").outcome == "not_modified"
    assert reader.status()["orders"].pin is None


def test_a_reader_that_is_unpinned_goes_to_a_head_that_moved_on(world: World) -> None:
    world.orders(1)
    world.orders(2)
    reader = world.reader(pins={"orders": 0})
    assert served(reader) == (1, 2, 0, True)
    world.orders(3)
    assert reader.pin("orders", None).generation == 3
    assert served(reader) == (3, 3, 2, False)


def test_pinning_what_is_served_moves_nothing_and_holds_it(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    reader.follow("orders")
    serving = reader.follow("orders").serving
    assert reader.pin("orders", 0).outcome == "noted"
    world.orders(2)
    assert reader.refresh("orders").outcome == "not_modified"
    assert served(reader) == (1, 1, 0, True)
    assert reader.follow("orders").serving is serving
    # Under a higher generation it is what the head calls current, so that generation is served.
    Maintenance(world.plain).rollback("orders", 0)
    assert reader.refresh("orders").outcome == "noted"
    assert served(reader) == (1, 3, 0, True)
    assert reader.refresh("orders", at_least_generation=3).generation == 3
    assert reader.pin("orders", None).outcome == "noted"
    assert served(reader) == (1, 3, 0, False)
    world.orders(4)
    assert reader.refresh("orders").outcome == "loaded"
    assert served(reader) == (4, 4, 2, False)


@pytest.mark.parametrize("before", [None, 0])
def test_a_pin_that_can_not_be_had_changes_nothing(world: World, before: int | None) -> None:
    world.orders(1)
    world.orders(2)
    reader = world.reader(pins={} if before is None else {"orders": before})
    was = served(reader)
    with pytest.raises(SnapshotMissing, match="snapshot 9 of 'orders'"):
        reader.pin("orders", 9)
    assert served(reader) == was
    assert reader.status()["orders"].pin == before
    world.faults.arm(Fault("before", "read*", times=100))
    for wanted in (1 if before == 0 else 0, None if before == 0 else 1):
        with pytest.raises(StoreUnavailable):
            reader.pin("orders", wanted)
    world.faults.disarm()
    assert reader.status()["orders"].pin == before
    world.orders(3)
    assert reader.refresh("orders").outcome == ("loaded" if before is None else "not_modified")


def test_a_missing_pin_of_the_settings_is_a_typed_error_and_what_is_served_goes_on(world: World) -> None:
    world.orders(1)
    with pytest.raises(SnapshotMissing):
        world.reader(data_dir=world.folder / "new", pins={"orders": 5}).follow("orders")
    with world.reader() as reader:
        reader.follow("orders")
    reader = world.reader(pins={"orders": 5})
    assert served(reader) == (1, 1, 0, False)
    with pytest.raises(SnapshotMissing):
        reader.refresh("orders")
    status = reader.status()["orders"]
    assert status.last_error is not None
    assert (status.state, status.last_error.kind, status.pin) == ("error", "SnapshotMissing", 5)
    assert served(reader) == (1, 1, 0, False)


def test_a_damaged_pin_is_never_replaced_by_another_snapshot(world: World) -> None:
    world.orders(1)
    damaged = world.orders(2, rows=200_000)
    world.orders(3)
    world.delete_data(damaged, "manifest.json")
    for setting in ("on_damage", "on_bootstrap_failure"):
        settings: dict[str, Any] = {setting: "fallback"}
        reader = world.reader(data_dir=world.folder / setting, pins={"orders": 1}, **settings)
        with pytest.raises(SnapshotDamaged):
            reader.follow("orders")


def test_a_pin_holds_across_a_restart_without_the_store(world: World) -> None:
    for number in (1, 2):
        world.orders(number)
    with world.reader(pins={"orders": 0}) as reader:
        assert served(reader) == (1, 2, 0, True)
    world.faults.calls.clear()
    with world.reader(pins={"orders": 0}) as reader:
        assert served(reader) == (1, 2, 0, True)
        assert not world.faults.calls


def test_a_pin_that_left_the_settings_is_released_by_the_first_refresh_after_a_restart(world: World) -> None:
    for number in (1, 2):
        world.orders(number)
    with world.reader(pins={"orders": 0}) as reader:
        reader.follow("orders")
    reader = world.reader()
    assert served(reader) == (1, 2, 0, True)
    assert reader.refresh("orders").outcome == "loaded"
    assert served(reader) == (2, 2, 1, False)
    reader.close()
    state = json.loads((world.data_dir / "orders" / "state.json").read_bytes())
    assert (state["generation"], state["snapshot_id"], "pinned" in state) == (2, 1, False)


def test_a_pin_that_came_into_the_settings_is_followed_at_start_without_polling(world: World) -> None:
    for number in (1, 2):
        world.orders(number)
    with world.reader() as reader:
        reader.follow("orders")
    assert served(world.reader(pins={"orders": 0})) == (1, 2, 0, True)


def test_a_recreated_dataset_has_another_snapshot_of_that_number(world: World) -> None:
    world.orders(1)
    world.orders(2)
    reader = world.reader(pins={"orders": 0})
    assert served(reader) == (1, 2, 0, True)
    world.change_head("orders", recreate)
    world.orders(3)
    assert reader.refresh("orders").outcome == "not_modified"
    assert served(reader) == (1, 2, 0, True)
    reader.close()
    reader = world.reader(pins={"orders": 0})
    reader.follow("orders")
    assert reader.refresh("orders").outcome == "not_modified"
    assert served(reader) == (1, 2, 0, True)
    assert reader.pin("orders", 0).outcome == "loaded"
    assert served(reader) == (3, 4, 0, True)


def test_a_dropped_dataset_is_dropped_for_a_pinned_reader_too(world: World) -> None:
    world.orders(1)
    kept = world.reader(pins={"orders": 0})
    unloaded = world.reader(data_dir=world.folder / "other", pins={"orders": 0}, on_dropped="unload")
    for reader in (kept, unloaded):
        reader.follow("orders")
    world.change_head("orders", lambda head: {"status": Status.DROPPED, "generation": head.generation + 1})
    assert kept.refresh("orders").outcome == "not_modified"
    assert kept.status()["orders"].state == "dropped"
    assert served(kept) == (1, 1, 0, True)
    assert unloaded.refresh("orders").outcome == "waiting"


def test_a_generation_that_was_asked_for_is_not_answered_by_a_pin(world: World) -> None:
    world.orders(1)
    world.orders(2)
    reader = world.reader(pins={"orders": 0})
    reader.follow("orders")
    for generation in (1, 2, 3):
        with pytest.raises(NotLoaded, match="pinned to snapshot 0"):
            reader.refresh("orders", at_least_generation=generation)


def test_a_pin_is_loaded_from_a_store_that_went_back_under_no_lower_generation(world: World) -> None:
    for number in (1, 2, 3):
        world.orders(number)
    reader = world.reader()
    assert served(reader) == (3, 3, 2, False)
    world.change_head("orders", lambda _: {"generation": 1, "current_snapshot_id": 0})
    reader.pin("orders", 1)
    assert served(reader) == (2, 3, 1, True)
    assert reader.pin("orders", None).outcome == "not_modified"
    assert served(reader) == (2, 3, 1, True)


def test_polling_holds_a_pin_and_notes_what_it_passes_over(world: World) -> None:
    world.orders(1)
    reader = world.reader(pins={"orders": 0}, refresh_interval=0.05)
    reader.follow("orders")
    world.orders(2)
    assert wait_until(lambda: reader.status()["orders"].head_generation == 2)
    assert served(reader) == (1, 1, 0, True)
    assert wait_until(lambda: reader.status()["orders"].lag == 1)
    reader.pin("orders", None)
    assert served(reader) == (2, 2, 1, False)


def test_what_a_pinned_reader_serves_is_announced(world: World) -> None:
    world.orders(1)
    world.orders(2)
    reader = world.reader(pins={"orders": 0}, announce_interval=300.0)
    reader.follow("orders")

    def announced() -> int | None:
        for listed in world.plain.objects.list(READERS_PREFIX):
            found = Announcement.parse(world.plain.objects.read(listed.key).data, listed.key).datasets.get("orders")
            return None if found is None else found.snapshot_id
        return None

    assert wait_until(lambda: announced() == 0)


@pytest.mark.parametrize("wrong", [{"orders": -1}, {"orders": True}, {"orders": "1"}, {"No Such": 1}])
def test_a_pin_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        ReaderSettings(pins=wrong)


def test_pinning_what_is_not_followed_or_no_number_is_refused(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    with pytest.raises(NotLoaded, match="not followed"):
        reader.pin("orders", 0)
    reader.follow("orders")
    with pytest.raises(ConfigurationError):
        reader.pin("orders", -1)
