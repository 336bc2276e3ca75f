"""What lies on a reader's disk, and what a start makes of it."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest

from snapshot_assets.errors import (
    ConfigurationError,
    DataDirBusy,
    DiskFull,
    ReaderError,
    SnapshotDamaged,
    StoreUnavailable,
    UnsupportedFormatVersion,
)
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.reader.data_dir import DataDirLock, disk_errors
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


FEW_FILES = """
import os, resource, sys
from snapshot_assets.errors import SnapshotAssetsError
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.snapshot_store import SnapshotStore

url, data_dir, name, copy = sys.argv[1:]
settings = ReaderSettings(refresh_interval=None)
store = SnapshotStore.open(url, read_only=True)
with SnapshotReader(store, data_dir, settings) as reader:
    reader.follow(name)  # imports all that there is to import
os.rename(url, url + "-away")
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
refused = 0
for free in range(8):
    with SnapshotReader(store, data_dir, settings) as reader:
        taken = []
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            for _ in range(free):
                os.close(taken.pop())
        try:
            reader.follow(name)
        except SnapshotAssetsError:
            refused += 1
        for descriptor in taken:
            os.close(descriptor)
        assert os.path.isdir(copy), free
        assert reader.follow(name).query(f"select count(*) c from {name}").to_pylist()[0]["c"] > 0
print(refused)
"""


@pytest.mark.parametrize("name", ["orders", "planes"])
def test_too_many_open_files_are_no_damage(world: World, name: str) -> None:
    published = world.orders(1) if name == "orders" else world.planes(1)
    copy = world.data_dir / name / f"{published.incarnation}-s0"
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES, str(world.folder / "store"), str(world.data_dir), name, str(copy)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_what_the_engine_refuses_of_a_whole_copy_is_no_damage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    published = world.orders(1)
    with world.reader() as reader:
        reader.follow("orders")
    store_down(world)

    def out_of_memory(*_: object, **__: object) -> None:
        raise duckdb.OutOfMemoryException("failed to allocate")

    monkeypatch.setattr(duckdb, "connect", out_of_memory)
    reader = world.reader()
    with pytest.raises(ReaderError, match="is whole, and duckdb can not open .*failed to allocate") as raised:
        reader.follow("orders")
    assert not isinstance(raised.value, SnapshotDamaged)
    assert world.local_copies("orders") == [f"{published.incarnation}-s0"]
    monkeypatch.undo()
    assert count_of(reader.follow("orders")) == [{"c": 1_000, "v": 1}]


def test_a_copy_that_can_not_be_read_now_gives_nothing_and_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    published = world.planes(1)
    reader = world.reader()
    provider = reader.follow("planes")
    world.planes(2)
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "snapshot.json":
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    world.faults.arm(Fault("before", "read_ranges", times=1_000))
    with pytest.raises(StoreUnavailable):
        reader.refresh("planes")
    assert world.local_copies("planes") == [f"{published.incarnation}-s0"]
    assert count_of(provider, "planes") == [{"c": 500, "v": 1}]
    world.faults.disarm()
    result = reader.refresh("planes")
    assert (result.outcome, result.reused_bytes) == ("loaded", 0)


def test_a_damaged_copy_is_not_removed_while_it_is_used(world: World) -> None:
    published = world.planes(1)
    reader = world.reader()
    provider = reader.follow("planes")
    copy = world.data_dir / "planes" / f"{published.incarnation}-s0"
    with provider.connect() as connection:
        world.planes(2)
        reader.refresh("planes")
        (copy / "snapshot.json").write_text("{}")
        Maintenance(world.plain).rollback("planes", 0)
        with pytest.raises(SnapshotDamaged):
            reader.refresh("planes")
        assert copy.is_dir()
        assert connection.execute("select distinct v from planes").fetchall() == [(1,)]
    assert wait_until(lambda: not reader.status()["planes"].draining)
    assert reader.refresh("planes").outcome == "loaded"
    assert count_of(provider, "planes") == [{"c": 500, "v": 1}]


def test_deleting_an_old_copy_never_takes_a_new_one_of_its_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.planes(1)
    reader = world.reader(keep_local=1)
    provider = reader.follow("planes")
    deleting, go_on = threading.Event(), threading.Event()
    rename = Path.rename

    def slow(path: Path, target: Path) -> Path:
        if threading.current_thread().name == "snapshot-assets-drain":
            deleting.set()
            go_on.wait(1.0)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", slow)
    world.planes(2)
    reader.refresh("planes")
    assert deleting.wait(10.0)
    Maintenance(world.plain).rollback("planes", 0)
    assert reader.refresh("planes").outcome == "loaded"
    go_on.set()
    served = f"{provider.current.incarnation}-s0"
    assert wait_until(lambda: not reader.status()["planes"].draining and world.local_copies("planes") == [served])
    assert count_of(provider, "planes") == [{"c": 500, "v": 1}]


def test_every_file_of_a_ready_copy_is_durable(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    published = world.orders(1, rows=300_000)
    synced: set[int] = set()
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    world.reader().follow("orders")
    folder = world.data_dir / "orders"
    copy = folder / f"{published.incarnation}-s0"
    for path in [folder, folder / "state.json", copy, *copy.rglob("*")]:
        assert path.stat().st_ino in synced, path


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


def test_a_newer_state_is_refused_and_left_as_it_is(world: World) -> None:
    published = world.orders(1)
    with world.reader() as reader:
        reader.follow("orders")
    folder = world.data_dir / "orders"
    state = b'{"format_version": 2}'
    (folder / "state.json").write_bytes(state)
    (folder / ".building-newer").mkdir()
    world.orders(2)
    reader = world.reader()
    for _ in range(2):
        with pytest.raises(UnsupportedFormatVersion, match="state.json"):
            reader.follow("orders")
    assert (folder / "state.json").read_bytes() == state
    assert world.local_copies("orders") == [".building-newer", f"{published.incarnation}-s0"]


def test_a_leftover_that_can_not_be_removed_stands_in_nobodys_way(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.orders(1)
    with world.reader() as reader:
        reader.follow("orders")
    (world.data_dir / "orders" / ".building-01ARZ3NDEKTSV4RRFFQ69G5FAV").mkdir()
    reader = world.reader()

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "no", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with caplog.at_level(logging.WARNING, "snapshot_assets.reader"):
        assert count_of(reader.follow("orders")) == [{"c": 1_000, "v": 1}]
    assert ".building-01ARZ3NDEKTSV4RRFFQ69G5FAV can not be removed" in caplog.text
    monkeypatch.undo()


def test_a_file_in_the_place_of_the_datasets_folder_is_a_typed_error(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    (world.data_dir / "orders").write_text("")
    with pytest.raises(ReaderError, match=str(world.data_dir / "orders")):
        reader.follow("orders")
    (world.data_dir / "orders").unlink()
    assert count_of(reader.follow("orders")) == [{"c": 1_000, "v": 1}]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EMFILE, ReaderError),
        (errno.EACCES, ReaderError),
        (errno.EIO, ReaderError),
    ],
)
def test_what_the_operating_system_refuses_is_a_typed_error(number: int, kind: type[ReaderError]) -> None:
    with (
        pytest.raises(kind, match="it failed: /the/folder") as raised,
        disk_errors("it failed", "d", Path("/the/folder")),
    ):
        raise OSError(number, os.strerror(number))
    assert type(raised.value) is kind
    assert raised.value.hint
    assert raised.value.dataset == "d"


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


def test_a_path_that_no_folder_can_have_is_a_typed_error() -> None:
    with pytest.raises(ConfigurationError, match="data folder"):
        DataDirLock(Path("a\0b"))


FORKED = """
import os, signal, sys
from pathlib import Path
from snapshot_assets.errors import DataDirBusy
from snapshot_assets.reader.data_dir import DataDirLock

folder = Path(sys.argv[1])
lock = DataDirLock(folder)
child = os.fork()
if child == 0:
    lock.release()
    os._exit(0)
os.waitpid(child, 0)
try:
    DataDirLock(folder)
except DataDirBusy:
    print("kept")
child = os.fork()
if child == 0:
    signal.pause()
lock.release()
try:
    DataDirLock(folder).release()
    print("given up")
finally:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_a_forked_child_neither_keeps_nor_ends_the_lock(world: World) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(world.data_dir)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split("\n")[:2] == ["kept", "given up"], done.stderr
