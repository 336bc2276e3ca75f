"""What a reader takes on its disk under constant publishing: `keep_local` copies, one more, and what is leased."""

from __future__ import annotations

import os
import random
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets import failpoints
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.reader.reader import SnapshotReader
from tests.reader.world import World, wait_until

MIB = 1024 * 1024

SLACK = 256 * 1024
"""The state, and what the file system takes for the folders."""


def taken(folder: Path) -> int:
    """What a folder takes on the disk, in bytes; files of two names count once."""
    blocks: dict[int, int] = {}
    for root, _folders, names in os.walk(folder):
        for path in (Path(root), *(Path(root, name) for name in names)):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            blocks[status.st_ino] = status.st_blocks * 512
    return sum(blocks.values())


class Live:
    """A live database that is brought to a size and changed a little each time."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        self.dataset = Dataset("planes", "sqlite", path)
        self._chance = chance
        self._rows = 0
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("create table planes (i integer primary key, v integer, photo blob)")

    def change(self, version: int, size: int) -> None:
        rows = size // 4_000
        with closing(sqlite3.connect(self.dataset.path, isolation_level=None)) as connection:
            connection.execute("begin")
            connection.execute("delete from planes where i >= ?", [rows])
            connection.executemany(
                "insert into planes values (?, 0, ?)",
                ((i, self._chance.randbytes(3_900)) for i in range(self._rows, rows)),
            )
            connection.execute("update planes set v = ? where i % 50 = ?", [version, version % 50])
            connection.execute("commit")
            connection.execute("vacuum")
        self._rows = rows


class Watch:
    """Measures the folder at each step of each refresh, and knows how much it may take then."""

    def __init__(self, world: World, keep: int) -> None:
        self._folder = world.data_dir / "planes"
        self._keep = keep
        self.sizes: list[int] = []
        self.leased: dict[int, ExitStack] = {}
        self.highest = 0.0

    @property
    def allowed(self) -> int:
        """By the largest of the copies that are warm, retired last, or built now; what is leased has its own size."""
        live = max(self.sizes[-self._keep - 2 :])
        return (self._keep + 1) * live + sum(self.sizes[number] for number in self.leased) + SLACK

    def sample(self) -> None:
        if self.sizes:
            found = taken(self._folder)
            assert found <= self.allowed, (found, self.allowed, sorted(path.name for path in self._folder.iterdir()))
            self.highest = max(self.highest, found / self.allowed)


def lease(reader: SnapshotReader) -> ExitStack:
    held = ExitStack()
    connection: Any = held.enter_context(reader.follow("planes").connect())
    connection.execute("select count(*) from planes").fetchone()
    return held


def has_copy(world: World, suffix: str) -> bool:
    return any(name.endswith(suffix) for name in world.local_copies("planes"))


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("keep_local", [1, 2])
@pytest.mark.parametrize("publishes", [12, pytest.param(400, marks=pytest.mark.soak)])
def test_the_disk_of_a_reader_stays_bounded_at_every_step(world: World, keep_local: int, publishes: int) -> None:
    chance = random.Random(publishes)
    live = Live(world.folder / "planes.sqlite", chance)
    watch = Watch(world, keep_local)
    points = [value for name, value in vars(failpoints).items() if name.startswith("REFRESH_")]
    reader = world.reader(keep_local=keep_local, failpoints=Failpoints(dict.fromkeys(points, watch.sample)))
    with ExitStack() as leases:
        for turn in range(publishes):
            # Up and down again in larger and smaller steps, between 1 and 9 MiB.
            live.change(turn, MIB + round(8 * MIB * abs((turn * 0.37) % 2 - 1)))
            watch.sizes.append(world.publish(live.dataset).data_bytes + 64 * 1024)
            if turn:
                assert reader.refresh("planes").outcome == "loaded"
            else:
                reader.follow("planes")
            watch.sample()
            if turn % 3 == 1:
                watch.leased[turn] = leases.enter_context(lease(reader))
            if len(watch.leased) > 2 or (turn % 5 == 4 and watch.leased):
                oldest = min(watch.leased)
                watch.leased[oldest].close()
                if oldest <= turn - keep_local:
                    assert wait_until(lambda name=f"-s{oldest}": not has_copy(world, name), 60)  # type: ignore[misc]
                del watch.leased[oldest]
            assert wait_until(lambda: taken(world.data_dir / "planes") <= watch.allowed, 60)
            watch.sample()
    # It was worth measuring: the room was used, and what retired was built in.
    assert watch.highest > 0.7
    assert wait_until(lambda: len(world.spares("planes")) == 1, 60)
    assert wait_until(lambda: len(world.local_copies("planes")) == keep_local, 60)
