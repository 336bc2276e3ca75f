"""What lies on a reader's disk, and what a start makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snapshot_assets.errors import ConfigurationError, DataDirBusy, StoreUnavailable
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Fault
from tests.reader.world import World, wait_until


def store_down(world: World) -> None:
    world.faults.arm(Fault("before", times=1_000_000))


def count_of(provider: object, table: str = "orders") -> list[dict[str, int]]:
    return provider.query(f"select count(*) c, max(v) v from {table}").to_pylist()  # type: ignore[attr-defined, no-any-return]


def test_a_local_copy_lies_as_documented(world: World) -> None:
    published = world.orders(1)
    world.reader().follow("orders")
    folder = world.data_dir / "orders"
    name = f"{published.incarnation}-s0"
    assert world.local_copies("orders") == [name]
    assert (folder / "current").readlink() == Path(name)
    state = json.loads((folder / "state.json").read_bytes())
    assert state == {"format_version": 1, "generation": 1, "incarnation": published.incarnation, "snapshot_id": 0}
    assert sorted(path.name for path in (folder / name).iterdir()) == ["files", "index", "ready", "snapshot.json"]
    described = json.loads((folder / name / "snapshot.json").read_bytes())
    assert described["entry"]["operation_id"] == published.operation_id
    assert json.loads(described["manifest"])["content_digest"] == published.content_digest
    assert (folder / name / "index" / "index.arrow").is_file()
    assert [path.name for path in (folder / name / "files").iterdir()] == ["orders.duckdb"]


def test_a_reader_starts_and_serves_without_the_store(world: World) -> None:
    world.orders(1)
    world.planes(4)
    with world.reader() as reader:
        reader.follow("orders")
        reader.follow("planes")
    store_down(world)
    reader = world.reader()
    assert count_of(reader.follow("orders")) == [{"c": 1_000, "v": 1}]
    assert count_of(reader.follow("planes"), "planes") == [{"c": 500, "v": 4}]
    assert not world.faults.fired
    with pytest.raises(StoreUnavailable):
        reader.refresh("orders")
    assert count_of(reader.follow("orders")) == [{"c": 1_000, "v": 1}]


def test_a_store_that_can_not_be_reached_is_opened_without_io(tmp_path: Path) -> None:
    SnapshotStore.open(
        "s3://nowhere/x",
        {"endpoint": "http://127.0.0.1:1", "region": "r", "access_key_id": "a", "secret_access_key": "b"},
        read_only=True,
    )


@pytest.mark.parametrize("harm", ["truncated", "missing file", "no description", "not ready", "other description"])
def test_a_damaged_copy_is_removed_and_fetched_again(world: World, harm: str) -> None:
    published = world.orders(1)
    with world.reader() as reader:
        reader.follow("orders")
    copy = world.data_dir / "orders" / f"{published.incarnation}-s0"
    file = copy / "files" / "orders.duckdb"
    match harm:
        case "truncated":
            os.truncate(file, file.stat().st_size - 1)
        case "missing file":
            file.unlink()
        case "no description":
            (copy / "snapshot.json").unlink()
        case "not ready":
            (copy / "ready").unlink()
        case _:
            (copy / "snapshot.json").write_text("{}")
    world.faults.calls.clear()
    assert count_of(world.reader().follow("orders")) == [{"c": 1_000, "v": 1}]
    assert world.faults.count("read_ranges")
    assert len(world.local_copies("orders")) == 1


def test_a_copy_that_the_engine_does_not_open_is_fetched_again(world: World) -> None:
    published = world.orders(1)
    with world.reader() as reader:
        reader.follow("orders")
    file = world.data_dir / "orders" / f"{published.incarnation}-s0" / "files" / "orders.duckdb"
    file.write_bytes(os.urandom(file.stat().st_size))
    assert count_of(world.reader().follow("orders")) == [{"c": 1_000, "v": 1}]


@pytest.mark.parametrize("checked", [True, False])
def test_digests_are_checked_on_start_when_the_settings_say_so(world: World, checked: bool) -> None:
    published = world.planes(1, rows=20_000)
    with world.reader() as reader:
        reader.follow("planes")
    file = world.data_dir / "planes" / f"{published.incarnation}-s0" / "files" / "planes.sqlite"
    content = bytearray(file.read_bytes())
    at = content.rindex(b"plane 19")
    content[at : at + 5] = b"PLANE"
    file.write_bytes(content)
    world.faults.calls.clear()
    provider = world.reader(verify_on_start=checked).follow("planes")
    assert bool(world.faults.count("read_ranges")) is checked
    spoilt = provider.query("select count(*) c from planes where name like 'PLANE%' and name glob 'PLANE*'").to_pylist()
    assert spoilt == [{"c": 0 if checked else 1}]


def test_a_damaged_state_is_no_reason_not_to_start(world: World) -> None:
    world.orders(1)
    with world.reader() as reader:
        reader.follow("orders")
    (world.data_dir / "orders" / "state.json").write_bytes(b"\0\0")
    world.faults.calls.clear()
    assert count_of(world.reader().follow("orders")) == [{"c": 1_000, "v": 1}]
    assert not world.faults.count("read_ranges")


def test_debris_of_an_earlier_process_is_removed_at_start(world: World) -> None:
    published = world.orders(1)
    with world.reader() as reader:
        reader.follow("orders")
    folder = world.data_dir / "orders"
    (folder / ".building-01ARZ3NDEKTSV4RRFFQ69G5FAV" / "files").mkdir(parents=True)
    (folder / ".building-01ARZ3NDEKTSV4RRFFQ69G5FAW").write_bytes(b"x")
    (folder / ".building-01ARZ3NDEKTSV4RRFFQ69G5FAX").symlink_to(world.folder)
    (folder / f"{published.incarnation}-s9").mkdir()
    (folder / "notes.txt").write_text("somebody's")
    assert count_of(world.reader().follow("orders")) == [{"c": 1_000, "v": 1}]
    assert world.local_copies("orders") == [f"{published.incarnation}-s0", "notes.txt"]
    assert world.folder.is_dir()


def test_keep_local_copies_stay_warm_and_older_ones_go(world: World) -> None:
    incarnation = world.orders(0).incarnation
    reader = world.reader(keep_local=2)
    reader.follow("orders")
    for version in (1, 2, 3):
        world.orders(version)
        reader.refresh("orders")
    assert wait_until(lambda: world.local_copies("orders") == [f"{incarnation}-s2", f"{incarnation}-s3"])
    assert reader.status()["orders"].local_copies == (f"{incarnation}-s2", f"{incarnation}-s3")


def test_a_leased_copy_stays_until_its_lease_ends(world: World) -> None:
    incarnation = world.orders(0).incarnation
    reader = world.reader(keep_local=1)
    provider = reader.follow("orders")
    with provider.connect() as connection:
        for version in (1, 2):
            world.orders(version)
            reader.refresh("orders")
        assert wait_until(lambda: world.local_copies("orders") == [f"{incarnation}-s0", f"{incarnation}-s2"])
        assert connection.execute("select distinct v from orders").fetchall() == [(0,)]
    assert wait_until(lambda: world.local_copies("orders") == [f"{incarnation}-s2"])


def test_a_copy_in_the_catalogue_stays_until_its_session_ends(world: World) -> None:
    incarnation = world.planes(0).incarnation
    reader = world.reader(keep_local=1)
    reader.follow("planes")
    with reader.catalog.connect() as session:
        world.planes(1)
        reader.refresh("planes")
        time.sleep(0.2)
        assert world.local_copies("planes") == [f"{incarnation}-s0", f"{incarnation}-s1"]
        assert session.execute("select distinct v from planes.main.planes").fetchall() == [(0,)]
    assert wait_until(lambda: world.local_copies("planes") == [f"{incarnation}-s1"])


def test_a_second_process_is_refused_and_told_the_pid(world: World) -> None:
    world.reader()
    code = f"""
from pathlib import Path
from snapshot_assets.errors import DataDirBusy
from snapshot_assets.reader.data_dir import DataDirLock
try:
    DataDirLock(Path({str(world.data_dir)!r}))
except DataDirBusy as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert f"process {os.getpid()} uses" in done.stdout
    with pytest.raises(DataDirBusy, match=str(os.getpid())):
        world.reader()


def test_the_lock_ends_with_close(world: World) -> None:
    world.reader().close()
    world.reader()


def test_a_data_folder_that_can_not_be_made_is_a_typed_error(world: World) -> None:
    (world.folder / "file").write_text("")
    with pytest.raises(ConfigurationError, match="data folder"):
        world.reader(data_dir=world.folder / "file" / "data")
