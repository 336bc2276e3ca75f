"""A refresh builds in a retired local copy: little is written, nothing of it is trusted, and nobody else sees it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from snapshot_assets import failpoints
from snapshot_assets.errors import DiskFull
from snapshot_assets.failpoints import REFRESH_DURING_FETCH, Failpoints
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.reader import spare
from snapshot_assets.reader.data_dir import BUILDING
from snapshot_assets.reader.local_copy import LocalCopy
from snapshot_assets.reader.provider import SnapshotProvider
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.spare import SPARE, Spares
from tests.reader.world import World, wait_until

ROWS = 40_000


def version(provider: SnapshotProvider, table: str = "orders") -> list[dict[str, int]]:
    rows: list[dict[str, int]] = provider.query(f"select v, count(*) c from {table} group by v").to_pylist()
    return rows


def served_file(reader: SnapshotReader, name: str = "orders") -> Path:
    """The one file of the copy that is served, checked against its manifest."""
    copy = LocalCopy.read((reader.data_dir / name / "current").resolve())
    copy.check_digests()
    (file,) = copy.manifest.files
    return copy.files / file.path


@pytest.fixture
def with_spare(world: World) -> tuple[SnapshotReader, SnapshotProvider, Path]:
    """A reader that serves version 3, keeps 2 warm, and has the copy of version 1 as its spare."""
    world.orders(1, ROWS)
    reader = world.reader()
    provider = reader.follow("orders")
    for number in (2, 3):
        world.orders(number, ROWS)
        reader.refresh("orders")
    assert wait_until(lambda: len(world.spares("orders")) == 1)
    return reader, provider, spare_file(world)


def spare_file(world: World) -> Path:
    (folder,) = world.spares("orders")
    (file,) = (path for path in (folder / "files").rglob("*") if path.is_file())
    return file


Spare = tuple[SnapshotReader, SnapshotProvider, Path]


def test_a_refresh_builds_in_the_retired_copy(world: World, with_spare: Spare) -> None:
    reader, provider, old = with_spare
    inode = old.stat().st_ino
    world.orders(4, ROWS)
    assert reader.refresh("orders").outcome == "loaded"
    assert version(provider) == [{"v": 4, "c": ROWS}]
    assert served_file(reader).stat().st_ino == inode
    assert wait_until(lambda: len(world.spares("orders")) == 1)
    assert spare_file(world).stat().st_ino != inode


@pytest.mark.parametrize("harm", ["noise", "truncated", "longer", "gone"])
def test_nothing_of_a_spare_is_trusted(world: World, with_spare: Spare, harm: str) -> None:
    reader, provider, old = with_spare
    size = old.stat().st_size
    match harm:
        case "noise":
            old.write_bytes(os.urandom(size))
        case "truncated":
            os.truncate(old, size // 3)
        case "longer":
            os.truncate(old, size * 3)
        case _:
            old.unlink()
    world.orders(4, ROWS)
    reader.refresh("orders")
    assert version(provider) == [{"v": 4, "c": ROWS}]
    served_file(reader)


@contextmanager
def opened(file: Path) -> Iterator[None]:
    with file.open("rb"):
        yield


@contextmanager
def mapped(file: Path) -> Iterator[None]:
    """Only the map is left; Python's own maps keep a descriptor of their own."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    size = file.stat().st_size
    with file.open("rb") as opened:
        pages = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, opened.fileno(), 0)
    try:
        before = ctypes.string_at(pages, size)
        yield
        assert ctypes.string_at(pages, size) == before
    finally:
        libc.munmap(pages, size)


@contextmanager
def opened_elsewhere(file: Path) -> Iterator[None]:
    code = "import sys; file = open(sys.argv[1], 'rb'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        yield
        other.communicate(timeout=30)


@contextmanager
def linked(file: Path) -> Iterator[None]:
    backup = file.parents[4] / "backup"
    backup.hardlink_to(file)
    before = backup.read_bytes()
    yield
    assert backup.read_bytes() == before


@pytest.mark.parametrize("used", [opened, mapped, opened_elsewhere, linked])
def test_a_file_that_somebody_uses_is_never_written_to(
    world: World, with_spare: Spare, used: Callable[[Path], AbstractContextManager[None]]
) -> None:
    reader, provider, old = with_spare
    inode = old.stat().st_ino
    world.orders(4, ROWS)
    with used(old):
        assert reader.refresh("orders").outcome == "loaded"
        assert served_file(reader).stat().st_ino != inode
    assert version(provider) == [{"v": 4, "c": ROWS}]


def test_where_nobody_can_tell_who_uses_a_file_it_is_not_written_to(
    world: World, with_spare: Spare, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, provider, old = with_spare
    inode = old.stat().st_ino
    monkeypatch.delattr(fcntl, "F_SETLEASE")
    world.orders(4, ROWS)
    with old.open("rb"):
        reader.refresh("orders")
        assert served_file(reader).stat().st_ino != inode
    assert version(provider) == [{"v": 4, "c": ROWS}]


def test_a_warm_copy_is_never_built_in(world: World, with_spare: Spare) -> None:
    reader, provider, _old = with_spare
    world.orders(4, ROWS)
    reader.refresh("orders")
    Maintenance(world.plain).rollback("orders", 2)
    world.faults.calls.clear()
    assert reader.refresh("orders").outcome == "loaded"
    assert not world.faults.count("read_ranges")
    assert version(provider) == [{"v": 3, "c": ROWS}]
    served_file(reader)


def test_a_rollback_to_what_is_only_spare_is_a_refresh_like_any_other(world: World, with_spare: Spare) -> None:
    reader, provider, _old = with_spare
    Maintenance(world.plain).rollback("orders", 0)
    assert reader.refresh("orders").outcome == "loaded"
    assert version(provider) == [{"v": 1, "c": ROWS}]
    served_file(reader)


def test_a_leased_copy_is_no_spare_before_its_lease_ends(world: World) -> None:
    world.orders(1, ROWS)
    reader = world.reader(keep_local=1)
    provider = reader.follow("orders")
    with provider.connect() as connection:
        for number in (2, 3, 4):
            world.orders(number, ROWS)
            reader.refresh("orders")
            assert connection.execute("select distinct v from orders").fetchall() == [(1,)]
    assert version(provider) == [{"v": 4, "c": ROWS}]


def test_a_spare_is_removed_at_close_and_at_start(world: World, with_spare: Spare) -> None:
    reader, _provider, old = with_spare
    reader.close()
    assert world.spares("orders") == []
    left = old.parents[1]
    left.mkdir()
    (left / "ready").touch()
    again = world.reader()
    assert version(again.follow("orders")) == [{"v": 3, "c": ROWS}]
    assert world.spares("orders") == []


def test_a_dropped_dataset_that_is_unloaded_leaves_no_spare(world: World) -> None:
    world.orders(1, ROWS)
    reader = world.reader(on_dropped="unload")
    reader.follow("orders")
    for number in (2, 3):
        world.orders(number, ROWS)
        reader.refresh("orders")
    assert wait_until(lambda: len(world.spares("orders")) == 1)
    maintenance = Maintenance(world.plain)
    maintenance.drop("orders", confirm=True)
    assert reader.refresh("orders").outcome == "waiting"
    assert wait_until(lambda: world.local_copies("orders") == [] and world.spares("orders") == [])


def test_every_spare_is_given_up_before_a_dataset_finds_no_room(
    world: World, with_spare: Spare, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, _provider, old = with_spare
    world.planes(1)

    def free(_folder: object) -> object:
        return type("Usage", (), {"free": 0 if old.exists() else 1 << 40})

    monkeypatch.setattr("snapshot_assets.reader.fetch.shutil.disk_usage", free)
    assert version(reader.follow("planes"), "planes") == [{"v": 1, "c": 500}]
    assert world.spares("orders") == []


def test_a_refresh_that_finds_the_disk_full_gives_up_the_spares(
    world: World, with_spare: Spare, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, provider, _old = with_spare
    world.planes(1)

    def full(_folder: object) -> object:
        return type("Usage", (), {"free": 0})

    with monkeypatch.context() as patch:
        patch.setattr("snapshot_assets.reader.fetch.shutil.disk_usage", full)
        with pytest.raises(DiskFull):
            reader.follow("planes")
    assert world.spares("orders") == []
    assert version(provider) == [{"v": 3, "c": ROWS}]
    assert version(reader.follow("planes"), "planes") == [{"v": 1, "c": 500}]


class Stopped(Exception):
    """The refresh is broken off."""


def test_a_failed_refresh_leaves_what_is_served_and_no_half_built_copy(world: World) -> None:
    broken: list[bool] = []

    def fail() -> None:
        if broken:
            raise Stopped

    world.orders(1, ROWS)
    reader = world.reader(failpoints=Failpoints({REFRESH_DURING_FETCH: fail}))
    provider = reader.follow("orders")
    for number in (2, 3, 4):
        world.orders(number, ROWS)
        if number == 4:
            broken.append(True)
            with pytest.raises(Stopped):
                reader.refresh("orders")
            broken.clear()
            assert version(provider) == [{"v": 3, "c": ROWS}]
            assert len(world.local_copies("orders")) == 2
        reader.refresh("orders")
    assert version(provider) == [{"v": 4, "c": ROWS}]
    served_file(reader)


POINTS = [
    failpoints.REFRESH_AFTER_SPARE,
    failpoints.REFRESH_DURING_FETCH,
    failpoints.REFRESH_AFTER_FETCH,
]

CHILD = """
import os, signal, sys
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.snapshot_store import SnapshotStore

url, data_dir, point = sys.argv[1:]
armed = []
kill = Failpoints({point: lambda: armed and os.kill(os.getpid(), signal.SIGKILL)})
reader = SnapshotReader(SnapshotStore.open(url, read_only=True), data_dir, ReaderSettings(refresh_interval=None),
                        failpoints=kill)
reader.follow("orders")
for number in (1, 2, 3):
    print("ready", flush=True)
    sys.stdin.readline()
    if number == 3:
        armed.append(True)
    reader.refresh("orders")
"""


@pytest.mark.parametrize("point", POINTS)
def test_a_reader_killed_while_it_builds_in_a_spare_serves_old_or_new(world: World, point: str) -> None:
    world.orders(1, ROWS)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(world.folder / "store"), str(world.data_dir), point],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for number in (2, 3, 4):
            assert child.stdout.readline() == b"ready\n"
            world.orders(number, ROWS)
            child.stdin.write(b"\n")
            child.stdin.flush()
        assert child.wait(timeout=120) == -signal.SIGKILL
    unfinished = [path for path in (world.data_dir / "orders").iterdir() if path.name.startswith((BUILDING, SPARE))]
    assert unfinished
    reader = world.reader()
    provider = reader.follow("orders")
    assert version(provider) == [{"v": 3, "c": ROWS}]
    served_file(reader)
    assert not [path for path in unfinished if path.exists()]
    reader.refresh("orders")
    assert version(provider) == [{"v": 4, "c": ROWS}]
    served_file(reader)


def test_only_wanted_plain_files_are_handed_down(tmp_path: Path) -> None:
    retired, target = tmp_path / "orders" / "copy", tmp_path / "orders" / "new"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b").write_bytes(b"somebody's")
    (retired / "files" / "data").mkdir(parents=True)
    for path in ("a", "data/c", "data/gone"):
        (retired / "files" / path).write_bytes(b"old " + path.encode())
    (retired / "files" / "data" / "c").chmod(0o400)
    (retired / "files" / "link").symlink_to(elsewhere / "b")
    (retired / "files" / "folder").symlink_to(elsewhere)
    os.mkfifo(retired / "files" / "pipe")
    target.mkdir()
    spares = Spares()
    spares.keep(retired)
    taken = spares.hand_down(tmp_path / "orders", {"a", "data/c", "link", "folder/b", "pipe", "absent"}, target)
    found = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert found == {"a": b"old a", "data/c": b"old data/c"}
    assert taken == sum(path.stat().st_blocks * 512 for path in target.rglob("*") if path.is_file())
    assert os.access(target / "data" / "c", os.W_OK)
    assert [path.name for path in (tmp_path / "orders").iterdir()] == ["new"]
    assert (elsewhere / "b").read_bytes() == b"somebody's"
    assert spares.hand_down(tmp_path / "orders", {"a"}, target) == 0


@pytest.mark.parametrize("linked", ["copy", "files"])
def test_what_a_link_leads_to_is_nobodys_spare(tmp_path: Path, linked: str) -> None:
    elsewhere, copy, target = (tmp_path / name for name in ("elsewhere", "copy", "new"))
    (elsewhere / "files").mkdir(parents=True)
    target.mkdir()
    if linked == "copy":
        copy.symlink_to(elsewhere)
    else:
        copy.mkdir()
        (copy / "files").symlink_to(elsewhere / "files")
    (elsewhere / "files" / "a").write_bytes(b"somebody's")
    spares = Spares()
    spares.keep(copy)
    assert spares.hand_down(tmp_path, {"a"}, target) == 0
    assert (elsewhere / "files" / "a").read_bytes() == b"somebody's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "new"]


@pytest.mark.parametrize("refused", ["rename", "open"])
def test_what_the_operating_system_refuses_of_a_spare_only_costs_the_spare(
    world: World, with_spare: Spare, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, provider, old = with_spare
    world.orders(4, ROWS)
    original = getattr(os, refused)
    refusals: list[Path] = []

    def refuse(path: os.PathLike[str], *rest: object, **named: object) -> object:
        # The move out of the spare, or the look at what was moved.
        if not refusals and Path(path).name == old.name:
            refusals.append(Path(path))
            raise OSError(errno.EIO, "Input/output error")
        return original(path, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, refused, refuse)
        assert reader.refresh("orders").outcome == "loaded"
    (file,) = refusals
    assert file == old or BUILDING in str(file)
    assert version(provider) == [{"v": 4, "c": ROWS}]
    served_file(reader)


@pytest.mark.parametrize("mounts", ["overlay", "fuse", "nfs4", ""])
def test_no_spare_is_kept_where_the_kernel_does_not_know_all_who_use_a_file(
    tmp_path: Path, mounts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path.stat().st_dev
    told = tmp_path / "mountinfo"
    number = f"{os.major(device)}:{os.minor(device)}"
    told.write_text(f"1 0 {number} / / rw shared:1 - {mounts} none rw\n" if mounts else "")
    monkeypatch.setattr(spare, "_MOUNTS", told)
    copy, target = tmp_path / "orders" / "copy", tmp_path / "orders" / "new"
    for folder in (copy / "files", target):
        folder.mkdir(parents=True)
    (copy / "files" / "a").write_bytes(b"old")
    spares = Spares()
    spares.keep(copy)
    assert [path.name for path in target.parent.iterdir()] == ["new"]
    assert spares.hand_down(target.parent, {"a"}, target) == 0


def test_a_dataset_has_one_spare(tmp_path: Path) -> None:
    spares = Spares()
    for number in range(3):
        (tmp_path / "orders" / str(number) / "files").mkdir(parents=True)
        spares.keep(tmp_path / "orders" / str(number))
    (tmp_path / "planes" / "0").mkdir(parents=True)
    spares.keep(tmp_path / "planes" / "0")
    (only,) = (tmp_path / "orders").iterdir()
    assert only.name.startswith(SPARE)
    spares.remove(tmp_path / "orders")
    assert list((tmp_path / "orders").iterdir()) == []
    assert len(list((tmp_path / "planes").iterdir())) == 1
    spares.remove()
    assert list((tmp_path / "planes").iterdir()) == []


def test_whoever_opens_a_file_while_it_is_looked_at_is_let_in_and_harms_nobody(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    code = "import sys; print(flush=True)\nwhile True: open(sys.argv[1], 'rb').close()"
    with subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for _ in range(5_000):
            spare._is_closed(file)
        assert other.poll() is None
        other.kill()
    assert spare._is_closed(file)
