"""A store with snapshots, processes that are killed while they maintain it, and what holds afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from snapshot_assets.errors import Conflict, NotFound, StoreUnavailable
from snapshot_assets.model.announcement import Announced, Announcement, announcement_key
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import head_key
from snapshot_assets.model.lease import lease_key
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import FaultStore

DAY = 24 * 60 * 60

_KILLED = """
import os, signal, sys
from snapshot_assets import SnapshotStore
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.maintenance.maintenance import Maintenance

url, failpoint, call = sys.argv[1:]
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
maintenance = Maintenance(SnapshotStore.open(url), failpoints=Failpoints({failpoint: kill}))
eval(call)
"""


def orders_in(folder: Path) -> Dataset:
    """A dataset whose live database lies in a folder."""
    return Dataset("orders", "sqlite", folder / "orders.sqlite")


def publish_more(store: SnapshotStore, dataset: Dataset, times: int = 1, rows: int = 200) -> None:
    """Publish so many snapshots, each with more rows than the one before."""
    for _ in range(times):
        with closing(sqlite3.connect(dataset.path)) as connection, connection:
            connection.execute("create table if not exists t (id integer primary key, note text)")
            connection.executemany("insert into t (note) values (?)", [(os.urandom(20).hex(),) for _ in range(rows)])
        Publisher(store).publish(dataset)


def killed_at(store: SnapshotStore, failpoint: str, call: str) -> None:
    """Run a call on `maintenance` in a process of its own that is killed at a failpoint."""
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, store.url.removeprefix("file://"), failpoint, call],
        timeout=60, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def pass_lease(store: SnapshotStore) -> None:
    """Let the writer lease of `orders` run out."""
    with contextlib.suppress(NotFound):
        read = store.objects.read(lease_key("orders"))
        released = json.loads(read.data) | {"duration_ms": 0}
        store.objects.write_if_match(lease_key("orders"), json.dumps(released).encode(), read.token)


class LateStore(FaultStore):
    """The answer to the next replacement of the head is lost, after something else has followed it."""

    meanwhile: Callable[[], None] | None = None

    def write_if_match(self, key: str, data: bytes, token: str) -> str:
        written = super().write_if_match(key, data, token)
        if self.meanwhile is not None and key == head_key("orders"):
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
            raise StoreUnavailable("the answer was lost")
        return written


class SlowStore(FaultStore):
    """The first replacement of the head gets no answer, and lands only when the second one is sent."""

    first: tuple[bytes, str] | None = None

    def write_if_match(self, key: str, data: bytes, token: str) -> str:
        if key != head_key("orders"):
            return super().write_if_match(key, data, token)
        if self.first is None:
            self.first = (data, token)
            raise StoreUnavailable("no answer")
        with contextlib.suppress(Conflict):
            super().write_if_match(key, *self.first)
        return super().write_if_match(key, data, token)


def data_keys(store: SnapshotStore) -> set[str]:
    return {listed.key for listed in store.objects.list("data/")}


def listed_ids(store: SnapshotStore) -> list[int]:
    return [entry.snapshot_id for entry in store.head("orders").snapshots]


def age(store: SnapshotStore, key: str, seconds: float) -> None:
    """Make an object of a local store that much older."""
    path = Path(store.url.removeprefix("file://")) / key
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def announce(store: SnapshotStore, snapshot_id: int, reader_id: str = "reader-1") -> str:
    """Let a reader say that it serves a snapshot; the key of its announcement."""
    head = store.head("orders")
    served = Announced("loaded", head.incarnation, head.generation, snapshot_id)
    made = Announcement(reader_id, None, None, 300_000, 0, {"orders": served})
    store.objects.write_if_absent(announcement_key(reader_id), made.to_bytes())
    return announcement_key(reader_id)
