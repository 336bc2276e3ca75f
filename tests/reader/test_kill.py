"""SIGKILL at every failpoint of a refresh, in a real process: the next start serves old or new, whole."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from snapshot_assets import failpoints
from tests.reader.world import World

FAILPOINTS = sorted(value for name, value in vars(failpoints).items() if name.startswith("REFRESH_"))

CHILD = """
import os, signal, sys
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.snapshot_store import SnapshotStore

url, data_dir, name = sys.argv[1:]
kill = Failpoints({name: lambda: os.kill(os.getpid(), signal.SIGKILL)})
store = SnapshotStore.open(url, read_only=True)
reader = SnapshotReader(store, data_dir, ReaderSettings(refresh_interval=None), failpoints=kill)
reader.follow("orders")
reader.refresh("orders")
"""


def kill_refresh(world: World, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(world.folder / "store"), str(world.data_dir), name],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_there_are_failpoints() -> None:
    assert len(FAILPOINTS) == 8


@pytest.mark.parametrize("name", FAILPOINTS)
def test_a_killed_refresh_leaves_old_or_new(world: World, name: str) -> None:
    world.orders(1)
    with world.reader() as reader:
        reader.follow("orders")
    world.orders(2, rows=50_000)
    kill_refresh(world, name)
    reader = world.reader()
    provider = reader.follow("orders")
    served = (
        provider.current.generation,
        provider.query("select distinct v, count(*) c from orders group by v").to_pylist(),
    )
    old, new = (1, [{"v": 1, "c": 1_000}]), (2, [{"v": 2, "c": 50_000}])
    assert served == (new if name == failpoints.REFRESH_AFTER_STATE else old)
    world.faults.calls.clear()
    reader.refresh("orders")
    assert (provider.current.generation, provider.current.snapshot_id) == (2, 1)
    assert provider.query("select count(*) c from orders where v = 2").to_pylist() == [{"c": 50_000}]
    kept = name in {failpoints.REFRESH_AFTER_READY, failpoints.REFRESH_AFTER_SWAP, failpoints.REFRESH_AFTER_STATE}
    assert bool(world.faults.count("read_ranges")) is not kept
    incarnation = provider.current.incarnation
    assert world.local_copies("orders") == [f"{incarnation}-s0", f"{incarnation}-s1"]


@pytest.mark.parametrize("name", FAILPOINTS)
def test_a_killed_bootstrap_is_done_again(world: World, name: str) -> None:
    world.orders(1)
    kill_refresh(world, name)
    provider = world.reader().follow("orders")
    assert provider.query("select distinct v from orders").to_pylist() == [{"v": 1}]
    assert world.local_copies("orders") == [f"{provider.current.incarnation}-s0"]
