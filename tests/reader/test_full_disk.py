"""A reader on a full disk goes on serving, says so, and goes on by itself when there is room."""

from __future__ import annotations

import errno
import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, Protocol

import pytest

from snapshot_assets.errors import DiskFull
from snapshot_assets.failpoints import (
    REFRESH_AFTER_FETCH,
    REFRESH_AFTER_INSTALL,
    REFRESH_AFTER_READY,
    REFRESH_AFTER_RENAME,
    REFRESH_AFTER_SPARE,
    REFRESH_AFTER_STATE,
    REFRESH_AFTER_SWAP,
    REFRESH_DURING_FETCH,
    Failpoints,
)
from snapshot_assets.reader.provider import SnapshotProvider
from tests.reader.world import World, wait_until

P = ParamSpec("P")

DISK_BYTES = 64 * 1024 * 1024


class Disk(Protocol):
    """The file system of the reader's data folder."""

    def fill(self) -> None:
        """Leave no room."""

    def free(self) -> None:
        """Give the room back."""


class Limited:
    """No file of this process grows: what every machine can do."""

    def __init__(self, limit: Callable[[int], None]) -> None:
        self._limit = limit

    def fill(self) -> None:
        self._limit(0)

    def free(self) -> None:
        self._limit(-1)


class Small:
    """A file system of its own, without room, and with its own "no space left"."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        for size in (1024 * 1024, 4096):
            with self._ballast.open("ab", buffering=0) as file:
                while True:
                    try:
                        if file.write(bytes(size)) < size:
                            break
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                        break

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


def with_room_at_the_end(test: Callable[P, None]) -> Callable[P, None]:
    """Free the disk before pytest reports: it may write to a file, which is under the limit as well."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            test(*args, **kwargs)
        finally:
            disk: Any = kwargs["disk"]
            disk.free()

    return run


@pytest.fixture(params=["file size limit", "tmpfs"])
def disk(
    request: pytest.FixtureRequest,
    world: World,
    file_size_limit: Callable[[int], None],
    record_property: Callable[[str, object], None],
) -> Iterator[Disk]:
    """The disk of the data folder. Where no tmpfs may be mounted the limit stands in, and the report names it."""
    world.data_dir.mkdir()
    if request.param == "tmpfs" and os.getuid() == 0:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(world.data_dir)],
            capture_output=True,
            timeout=30,
            check=False,
        )
        if mounted.returncode == 0:
            record_property("disk", "tmpfs")
            yield Small(world.data_dir)
            world.close()
            subprocess.run(["umount", "--lazy", str(world.data_dir)], timeout=30, check=True)
            return
    record_property("disk", "file size limit")
    yield Limited(file_size_limit)
    file_size_limit(-1)


def version(provider: SnapshotProvider) -> int:
    (row,) = provider.query("select distinct v from orders").to_pylist()
    return int(row["v"])


def unfinished(world: World) -> list[str]:
    return [name for name in world.local_copies("orders") if name.startswith(".building-")]


@with_room_at_the_end
def test_a_disk_that_is_full_before_a_refresh_changes_nothing(world: World, disk: Disk) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    world.orders(2, rows=50_000)
    disk.fill()
    for _ in range(2):
        with pytest.raises(DiskFull):
            reader.refresh("orders")
        assert version(provider) == 1
    status = reader.status()["orders"]
    assert status.last_error is not None
    assert (status.state, status.last_error.kind, status.lag) == ("error", "DiskFull", 1)
    assert unfinished(world) == []
    disk.free()
    assert reader.refresh("orders").outcome == "loaded"
    assert version(provider) == 2


@pytest.mark.parametrize(
    "failpoint",
    [
        REFRESH_AFTER_SPARE,
        REFRESH_DURING_FETCH,
        REFRESH_AFTER_FETCH,
        REFRESH_AFTER_RENAME,
        REFRESH_AFTER_INSTALL,
        REFRESH_AFTER_READY,
        REFRESH_AFTER_SWAP,
        REFRESH_AFTER_STATE,
    ],
)
@with_room_at_the_end
def test_a_disk_that_gets_full_at_any_step_leaves_old_or_new_and_a_whole_folder(
    world: World, disk: Disk, failpoint: str
) -> None:
    world.orders(1)
    filled: list[str] = []

    def fill() -> None:
        if armed and not filled:
            filled.append(failpoint)
            disk.fill()

    armed: list[bool] = []
    reader = world.reader(failpoints=Failpoints({failpoint: fill}))
    provider = reader.follow("orders")
    world.orders(2, rows=50_000)
    armed.append(True)
    try:
        reader.refresh("orders")
    except DiskFull as error:
        found = version(provider)
        # After the swap nothing but the state is written.
        swapped = "not written down" in str(error)
    else:
        found = version(provider)
        swapped = True
    assert found == (2 if swapped else 1)
    assert (failpoint in {REFRESH_AFTER_SPARE, REFRESH_DURING_FETCH}) <= (not swapped)
    assert (failpoint in {REFRESH_AFTER_SWAP, REFRESH_AFTER_STATE}) <= swapped
    assert filled
    assert unfinished(world) == []
    reader.close()

    # Still full: what was served, or what was served before, is served again, without writing anything.
    again = world.reader()
    assert version(again.follow("orders")) in {1, found}
    disk.free()
    again.refresh("orders")
    assert version(again.follow("orders")) == 2
    assert wait_until(lambda: not unfinished(world))
    again.close()
    assert version(world.reader().follow("orders")) == 2


@with_room_at_the_end
def test_a_reader_starts_and_serves_on_a_full_disk(world: World, disk: Disk) -> None:
    world.orders(1)
    with world.reader() as reader:
        reader.follow("orders")
    disk.fill()
    reader = world.reader(announce_interval=300.0)
    assert version(reader.follow("orders")) == 1
    assert reader.refresh("orders").outcome == "not_modified"
    with pytest.raises(DiskFull):
        reader.follow(absent(world, disk))
    assert version(reader.follow("orders")) == 1


def absent(world: World, disk: Disk) -> str:
    """A dataset that is published while the reader's disk is full, and not loaded yet."""
    disk.free()
    world.planes(1, rows=5_000)
    disk.fill()
    return "planes"


@with_room_at_the_end
def test_a_rollback_to_a_warm_copy_needs_no_room_for_data(world: World, disk: Disk) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    world.orders(2)
    reader.refresh("orders")
    world.change_head("orders", lambda head: {"generation": head.generation + 1, "current_snapshot_id": 0})
    disk.fill()
    with pytest.raises(DiskFull, match="not written down"):
        reader.refresh("orders")
    assert version(provider) == 1
    disk.free()
    assert reader.refresh("orders").outcome == "not_modified"
    reader.close()
    assert world.reader().follow("orders").current.generation == 3
