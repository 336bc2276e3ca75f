"""What one refresh does, in each state that the store can be in."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pyarrow as pa
import pytest

from snapshot_assets.errors import (
    DiskFull,
    EngineTooOld,
    NotLoaded,
    ReaderError,
    SchemaIncompatible,
    SnapshotDamaged,
    StoreUnavailable,
)
from snapshot_assets.ids import new_incarnation_id
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.head import Status, head_key
from snapshot_assets.publish.publisher import PublishResult
from snapshot_assets.reader.data_dir import replace_file
from snapshot_assets.reader.provider import SnapshotProvider
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Fault
from tests.reader.world import World, wait_until


def version(provider: SnapshotProvider, table: str = "orders") -> int:
    rows = provider.query(f"select distinct v from {table}").to_pylist()
    assert len(rows) == 1
    return int(rows[0]["v"])


def written_generation(world: World) -> int:
    return int(json.loads((world.data_dir / "orders" / "state.json").read_bytes())["generation"])


@pytest.fixture
def state_fails_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to let the disk be full when the state is written next."""
    place = "snapshot_assets.reader.dataset_folder.replace_file"

    def arm() -> None:
        def fail(path: Path, data: bytes) -> None:
            monkeypatch.setattr(place, replace_file)
            raise OSError(errno.ENOSPC, "no space", str(path))

        monkeypatch.setattr(place, fail)

    return arm


def test_a_newer_generation_is_loaded_and_mostly_reused(world: World) -> None:
    world.orders(1, rows=300_000)
    reader = world.reader()
    provider = reader.follow("orders")
    assert (version(provider), provider.current.generation, provider.current.snapshot_id) == (1, 1, 0)
    with duckdb.connect(str(world.folder / "orders.duckdb")) as connection:
        connection.execute("insert into orders select range, 1 from range(10)")
    world.publish(world.duckdb("orders", "select 1"))
    result = reader.refresh("orders")
    assert (result.outcome, result.generation, result.snapshot_id) == ("loaded", 2, 1)
    assert result.reused_bytes > result.fetched_bytes > 0
    assert result.seconds > 0
    assert provider.query("select count(*) c from orders").to_pylist() == [{"c": 300_010}]


def test_nothing_new_costs_one_conditional_request(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    reader.follow("orders")
    world.faults.calls.clear()
    assert reader.refresh("orders").outcome == "not_modified"
    assert [call.operation for call in world.faults.calls] == ["read_if_changed"]


def test_a_dataset_without_a_snapshot_is_waited_for(world: World) -> None:
    reader = world.reader()
    provider = reader.follow("orders")
    with pytest.raises(NotLoaded):
        provider.query("select 1")
    with pytest.raises(NotLoaded), provider.connect():
        pass
    assert reader.refresh("orders").outcome == "waiting"
    assert reader.status()["orders"].state == "waiting"
    world.orders(5)
    assert reader.refresh("orders").outcome == "loaded"
    assert version(provider) == 5


def test_the_same_snapshot_under_a_higher_generation_is_noted_without_a_swap(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    with provider.connect():
        serving = provider.serving
        world.change_head("orders", lambda head: {"generation": head.generation + 3})
        assert reader.refresh("orders").outcome == "noted"
        assert provider.serving is serving
    assert provider.current.generation == 4
    assert len(reader.status()["orders"].swaps) == 1
    reader.close()
    assert world.reader().follow("orders").current.generation == 4


def test_the_generation_never_goes_lower_and_the_warning_comes_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.orders(1)
    world.orders(2)
    reader = world.reader()
    provider = reader.follow("orders")
    world.change_head("orders", lambda head: {"generation": 1, "current_snapshot_id": 0})
    with caplog.at_level(logging.WARNING, "snapshot_assets.reader"):
        assert reader.refresh("orders").outcome == "not_modified"
        assert reader.refresh("orders").outcome == "not_modified"
    assert version(provider) == 2
    assert provider.current.generation == 2
    assert [record for record in caplog.records if "the store went back" in record.message] == caplog.records
    assert len(caplog.records) == 1


def test_the_generation_never_goes_lower_across_a_restart(world: World) -> None:
    for number in (1, 2, 3):
        published = world.orders(number)
    with world.reader() as reader:
        reader.follow("orders")
    (world.data_dir / "orders" / f"{published.incarnation}-s2" / "files" / "orders.duckdb").write_bytes(b"x")
    world.change_head("orders", lambda head: {"generation": 1, "current_snapshot_id": 0})
    reader = world.reader()
    for _ in range(2):
        with pytest.raises(ReaderError, match="the store went back: .* generation 1, .* served 3"):
            reader.follow("orders")
    assert written_generation(world) == 3
    world.change_head("orders", lambda head: {"generation": 3, "current_snapshot_id": 2})
    assert version(reader.follow("orders")) == 3


def test_a_fallback_never_goes_lower_than_what_was_served_before_a_restart(world: World) -> None:
    world.orders(1)
    published = world.orders(2, rows=300_000)
    with world.reader() as reader:
        reader.follow("orders")
    (world.data_dir / "orders" / f"{published.incarnation}-s1" / "files" / "orders.duckdb").write_bytes(b"x")
    world.delete_data(published, "manifest.json")
    with pytest.raises(SnapshotDamaged):
        world.reader(on_damage="fallback").follow("orders")
    assert written_generation(world) == 2


def test_the_generation_never_goes_lower_after_an_unload(world: World) -> None:
    world.orders(1)
    world.orders(2)
    reader = world.reader(on_dropped="unload")
    reader.follow("orders")
    world.change_head("orders", lambda head: {"status": Status.DROPPED, "generation": head.generation + 1})
    reader.refresh("orders")
    world.change_head("orders", lambda head: {"status": Status.ACTIVE, "generation": 1, "current_snapshot_id": 0})
    with pytest.raises(ReaderError, match="the store went back"):
        reader.refresh("orders")


def test_a_swap_that_can_not_be_written_down_is_seen_by_all_and_written_down_later(
    world: World, state_fails_once: Callable[[], None]
) -> None:
    world.orders(1)
    reader = world.reader(keep_local=1)
    provider = reader.follow("orders")
    query = "select distinct v from orders.main.orders"
    assert reader.catalog.query(query).to_pylist() == [{"v": 1}]
    published = world.orders(2)
    state_fails_once()
    with pytest.raises(DiskFull, match="not written down"):
        reader.refresh("orders")
    assert version(provider) == 2
    assert reader.catalog.query(query).to_pylist() == [{"v": 2}]
    assert wait_until(lambda: world.local_copies("orders") == [f"{published.incarnation}-s1"])
    assert written_generation(world) == 1
    assert reader.refresh("orders").outcome == "not_modified"
    assert written_generation(world) == 2
    assert reader.status()["orders"].last_error is None


def test_a_higher_generation_that_can_not_be_written_down_is_written_down_by_polling(
    world: World, state_fails_once: Callable[[], None]
) -> None:
    world.orders(1)
    reader = world.reader(refresh_interval=0.05)
    provider = reader.follow("orders")
    assert reader.catalog.generations["orders"].generation == 1
    state_fails_once()
    world.change_head("orders", lambda _: {"generation": 4})
    assert wait_until(lambda: written_generation(world) == 4)
    assert provider.current.generation == 4
    assert reader.catalog.generations["orders"].generation == 4


def test_an_unload_that_fails_on_the_disk_is_finished_by_the_next_refresh(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.orders(1)
    reader = world.reader(on_dropped="unload")
    reader.follow("orders")
    world.change_head("orders", lambda head: {"status": Status.DROPPED, "generation": head.generation + 1})
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "state.json":
            raise PermissionError(errno.EACCES, "no", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ReaderError, match="state.json"):
        reader.refresh("orders")
    monkeypatch.undo()
    assert not reader.catalog.generations
    assert wait_until(lambda: not reader.status()["orders"].draining)
    assert reader.refresh("orders").outcome == "waiting"
    assert not (world.data_dir / "orders" / "state.json").exists()


def test_a_failed_attempt_does_not_remember_the_version_token(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    world.orders(2)
    world.faults.arm(Fault("before", "read_ranges", times=1_000))
    with pytest.raises(StoreUnavailable):
        reader.refresh("orders")
    assert version(provider) == 1
    status = reader.status()["orders"]
    assert status.state == "error"
    assert status.last_error is not None
    assert status.last_error.kind == "StoreUnavailable"
    assert status.lag == 1
    world.faults.disarm()
    assert reader.refresh("orders").outcome == "loaded"
    assert version(provider) == 2
    assert reader.status()["orders"].last_error is None


def test_a_recreated_dataset_is_loaded_as_a_higher_generation(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    first = provider.current.incarnation
    world.change_head(
        "orders",
        lambda head: {
            "incarnation": new_incarnation_id(),
            "generation": head.generation + 1,
            "current_snapshot_id": None,
            "snapshots": (),
            "schemas": (),
            "next_snapshot_id": 0,
        },
    )
    assert reader.refresh("orders").outcome == "not_modified"
    assert version(provider) == 1
    world.orders(2)
    assert reader.refresh("orders").outcome == "loaded"
    assert version(provider) == 2
    assert provider.current.snapshot_id == 0
    assert provider.current.incarnation != first
    assert provider.current.generation == 3


def test_a_sealed_dataset_goes_on_being_served_and_can_be_loaded(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    world.change_head("orders", lambda _: {"status": Status.SEALED})
    assert reader.refresh("orders").outcome == "not_modified"
    assert version(provider) == 1
    other = world.reader(data_dir=world.folder / "other")
    assert version(other.follow("orders")) == 1


def test_a_dropped_dataset_is_kept_by_default(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    world.change_head("orders", lambda head: {"status": Status.DROPPED, "generation": head.generation + 1})
    assert reader.refresh("orders").outcome == "not_modified"
    assert reader.status()["orders"].state == "dropped"
    assert version(provider) == 1


def test_a_dropped_dataset_is_unloaded_when_the_policy_says_so(world: World) -> None:
    world.orders(1)
    reader = world.reader(on_dropped="unload")
    provider = reader.follow("orders")
    with provider.connect() as connection:
        world.change_head("orders", lambda head: {"status": Status.DROPPED, "generation": head.generation + 1})
        assert reader.refresh("orders").outcome == "waiting"
        assert connection.execute("select count(*) from orders").fetchall() == [(1_000,)]
        with pytest.raises(NotLoaded):
            provider.query("select 1")
    reader.close()
    assert not (world.data_dir / "orders" / "state.json").exists()
    assert not (world.data_dir / "orders" / "current").is_symlink()


def test_an_incompatible_schema_is_refused_before_any_byte_is_downloaded(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    world.publish(
        world.duckdb("orders", "create or replace table orders as select range::varchar i, 2 v from range(9)"),
        allow_schema_change=True,
    )
    world.faults.calls.clear()
    with pytest.raises(SchemaIncompatible, match=r"i int64\s+> i string"):
        reader.refresh("orders")
    assert {call.key for call in world.faults.calls} == {head_key("orders")}
    assert version(provider) == 1
    reader.close()

    again = world.reader()
    provider = again.follow("orders")
    assert version(provider) == 1
    with pytest.raises(SchemaIncompatible):
        again.refresh("orders")
    assert version(provider) == 1


def test_schema_policies_widening_any_and_contract(world: World) -> None:
    world.orders(1)
    readers = {
        policy: world.reader(data_dir=world.folder / policy, schema_policy=policy)
        for policy in ("strict", "widening", "any")
    }
    for reader in readers.values():
        reader.follow("orders")
    world.publish(world.duckdb("orders", "alter table orders add column extra varchar"))
    with pytest.raises(SchemaIncompatible):
        readers["strict"].refresh("orders")
    assert readers["widening"].refresh("orders").outcome == "loaded"
    world.publish(world.duckdb("orders", "alter table orders drop column v"), allow_schema_change=True)
    with pytest.raises(SchemaIncompatible):
        readers["widening"].refresh("orders")
    assert readers["any"].refresh("orders").outcome == "loaded"
    contract = {"orders": {"orders": pa.schema([("i", pa.int64()), ("v", pa.int64())])}}
    strict = world.reader(data_dir=world.folder / "contract", contract=contract)
    with pytest.raises(SchemaIncompatible):
        strict.follow("orders")


def test_an_engine_that_is_too_old_is_told_before_the_download(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    world.orders(2)
    world.faults.calls.clear()
    monkeypatch.setattr(duckdb, "__version__", "1.0.0")
    with pytest.raises(EngineTooOld):
        reader.refresh("orders")
    monkeypatch.undo()
    assert not world.faults.count("read_ranges")
    assert version(provider) == 1
    assert reader.refresh("orders").outcome == "loaded"


@pytest.mark.parametrize("lost", [".pack", "manifest.json", "index.arrow"])
def test_a_missing_object_is_damage_and_the_old_generation_goes_on(world: World, lost: str) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    world.delete_data(world.orders(2, rows=400_000), lost)
    with pytest.raises(SnapshotDamaged) as raised:
        reader.refresh("orders")
    assert raised.value.dataset == "orders"
    assert version(provider) == 1
    assert not [name for name in world.local_copies("orders") if name.startswith(".building-")]
    assert len(world.local_copies("orders")) == 1


@pytest.mark.parametrize("kind", ["corrupt", "short"])
def test_wrong_bytes_are_never_served(world: World, kind: str) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    world.orders(2, rows=400_000)
    world.faults.arm(Fault(kind, "read_ranges", times=1_000))  # type: ignore[arg-type]
    with pytest.raises(SnapshotDamaged):
        reader.refresh("orders")
    assert world.faults.fired
    assert version(provider) == 1


def test_damage_under_a_head_that_moved_on_starts_over(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    second = world.orders(2, rows=300_000)
    store = world.store
    moved: list[PublishResult] = []

    def read_head(name: str) -> object:
        found = SnapshotStore.read_head(store, name)
        if not moved:
            world.delete_data(second, "manifest.json")
            moved.append(world.orders(3))
        return found

    reader._followed["orders"].token = None
    store.read_head = read_head  # type: ignore[method-assign, assignment]
    assert reader.refresh("orders").generation == 3
    assert version(provider) == 3


def test_fallback_serves_the_next_older_snapshot_and_tries_the_damaged_one_again(world: World) -> None:
    world.orders(1)
    world.orders(2, rows=300_000)
    third = world.orders(3, rows=200_000)
    manifest = next(
        item.key for item in world.plain.objects.list("data/orders/") if f"{third.operation_id}/manifest" in item.key
    )
    kept = world.plain.objects.read(manifest).data
    world.plain.objects.delete([manifest])
    reader = world.reader(on_damage="fallback")
    provider = reader.follow("orders")
    assert version(provider) == 2
    assert (provider.current.snapshot_id, provider.current.generation) == (1, 2)
    status = reader.status()["orders"]
    assert status.last_error is not None
    assert status.last_error.kind == "SnapshotDamaged"
    assert status.lag == 1
    with pytest.raises(SnapshotDamaged):
        reader.refresh("orders")
    world.plain.objects.write_if_absent(manifest, kept)
    assert reader.refresh("orders").outcome == "loaded"
    assert version(provider) == 3


def test_fallback_passes_over_an_older_snapshot_that_is_damaged_too(world: World) -> None:
    world.orders(1)
    world.delete_data(world.orders(2, rows=300_000), "index.arrow")
    world.delete_data(world.orders(3, rows=200_000), "manifest.json")
    assert version(world.reader(on_damage="fallback").follow("orders")) == 1


def test_fallback_never_replaces_what_is_loaded_by_something_older(world: World) -> None:
    world.orders(1)
    world.orders(2, rows=300_000)
    reader = world.reader(on_damage="fallback")
    provider = reader.follow("orders")
    world.delete_data(world.orders(3, rows=200_000), "manifest.json")
    with pytest.raises(SnapshotDamaged):
        reader.refresh("orders")
    assert version(provider) == 2


def test_a_fallback_onto_what_is_served_leaves_it_being_served(world: World) -> None:
    world.orders(1)
    reader = world.reader(on_damage="fallback")
    provider = reader.follow("orders")
    world.delete_data(world.orders(2, rows=300_000), "manifest.json")
    world.delete_data(world.orders(3, rows=200_000), "manifest.json")
    for _ in range(2):
        serving = provider.serving
        with pytest.raises(SnapshotDamaged):
            reader.refresh("orders")
        assert provider.serving is serving
        assert not reader.status()["orders"].draining
        assert version(provider) == 1
    assert provider.current.generation == 1


def test_bootstrap_failure_policies(world: World) -> None:
    world.orders(1)
    damaged = world.orders(2, rows=300_000)
    world.delete_data(damaged, "manifest.json")
    with pytest.raises(SnapshotDamaged):
        world.reader(data_dir=world.folder / "a").follow("orders")
    fallback = world.reader(data_dir=world.folder / "b", on_bootstrap_failure="fallback")
    assert version(fallback.follow("orders")) == 1
    warned = world.reader(data_dir=world.folder / "c", on_bootstrap_failure="warn")
    provider = warned.follow("orders")
    assert warned.status()["orders"].state == "error"
    with pytest.raises(NotLoaded):
        provider.query("select 1")
    world.orders(3)
    assert warned.refresh("orders").outcome == "loaded"


def test_bootstrap_retries_until_the_store_answers(world: World) -> None:
    world.orders(1)
    world.faults.arm(Fault("before", "read", times=2))
    reader = world.reader(on_bootstrap_failure="retry")
    assert version(reader.follow("orders")) == 1
    assert len(world.faults.fired) == 2


def test_what_can_not_fit_is_not_downloaded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    world.orders(2, rows=300_000)
    world.faults.calls.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(DiskFull):
        reader.refresh("orders")
    assert not world.faults.count("read_ranges")
    assert version(provider) == 1


def test_a_rollback_to_a_warm_local_copy_moves_no_byte(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    world.orders(2, rows=200_000)
    reader.refresh("orders")
    with provider.connect() as connection:
        Maintenance(world.plain).rollback("orders", 0)
        world.faults.calls.clear()
        result = reader.refresh("orders")
        assert connection.execute("select distinct v from orders").fetchall() == [(2,)]
    assert (result.outcome, result.snapshot_id, result.generation) == ("loaded", 0, 3)
    assert (result.fetched_bytes, result.reused_bytes) == (0, 0)
    assert {call.key for call in world.faults.calls} == {head_key("orders")}
    assert version(provider) == 1


def test_a_rollback_to_a_copy_that_is_still_draining_serves_both(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    with provider.connect() as old:
        world.orders(2)
        reader.refresh("orders")
        Maintenance(world.plain).rollback("orders", 0)
        assert reader.refresh("orders").fetched_bytes == 0
        assert version(provider) == 1
        assert old.execute("select distinct v from orders").fetchall() == [(1,)]
    assert version(provider) == 1


def test_refresh_to_a_generation_returns_at_once_or_says_what_the_store_has(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    reader.follow("orders")
    world.faults.calls.clear()
    assert reader.refresh("orders", at_least_generation=1).outcome == "not_modified"
    assert not world.faults.calls
    world.orders(2)
    assert reader.refresh("orders", at_least_generation=2).outcome == "loaded"
    with pytest.raises(NotLoaded, match="the store has 2"):
        reader.refresh("orders", at_least_generation=3)


def test_an_unfollowed_dataset_is_a_typed_error(world: World) -> None:
    with pytest.raises(NotLoaded, match="not followed"):
        world.reader().refresh("orders")
