"""What a cell of the matrix starts from: live databases that all cells share, and stores that are copied for each."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pytest

from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.engines import _copier, copying
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.failpoints import NO_FAILPOINTS, Failpoints
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.store.snapshot_store import SnapshotStore

NAME: Final = "orders"
HOUR: Final = 3600.0
LEASE_AND_MORE: Final = 200.0
"""Seconds of the held clock after which the lease of a writer that is gone has passed on."""

_LONGEST_PAUSE: Final = 10.0


class HeldClock:
    """Time that moves only when somebody waits or a test says so: pauses cost nothing.

    A wait of more than ten seconds is that of a thread that is woken by its event, such as one that renews a lease; it
    lasts until then, and time does not move for it.
    """

    def __init__(self, began_ms: int | None = None) -> None:
        self._began_ms = time.time_ns() // 1_000_000 if began_ms is None else began_ms
        self._seconds = 0.0
        self._lock = threading.Lock()

    def now_ms(self) -> int:
        return self._began_ms + round(self._seconds * 1000)

    def monotonic(self) -> float:
        return self._seconds

    def wait(self, event: threading.Event, seconds: float) -> bool:
        if seconds > _LONGEST_PAUSE:
            return event.wait()
        self.advance(seconds)
        return event.is_set()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        with self._lock:
            self._seconds += seconds


@contextlib.contextmanager
def copying_in_this_process() -> Iterator[None]:
    """While nobody else has the live databases open, no process of its own is needed to copy them."""

    def run(live: Path, target: Path, header_bytes: int, absent: Sequence[Path], timeout: float) -> dict[str, object]:
        task = {"live": str(live), "target": str(target), "header_bytes": header_bytes}
        return _copier.main({**task, "absent": [str(path) for path in absent]})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "_run", run)
        yield


def copied(store: MemoryStore) -> MemoryStore:
    """Another store in memory, with the same objects and tokens."""
    twin = MemoryStore()
    twin._objects = dict(store._objects)
    twin._writes = store._writes
    return twin


def note_of(number: int) -> str:
    """What stands in an order."""
    return f"order {number} " + f"{number * 7919:x}" * 8


def add_orders(dataset: Dataset, ids: Iterable[int]) -> None:
    """Append orders to the live database, made if there is none: `id` and a `note`."""
    rows = [(number, note_of(number)) for number in ids]
    dataset.path.parent.mkdir(parents=True, exist_ok=True)
    with engine_named(dataset.engine).connect_live(dataset) as connection:
        _APPENDING[dataset.engine](connection, rows)


def _append_by_sql(connection: Any, rows: list[tuple[int, str]]) -> None:
    connection.execute("create table if not exists orders (id bigint, note varchar)")
    values = ", ".join(f"({number}, '{note}')" for number, note in rows)
    connection.execute(f"insert into orders values {values}")
    connection.commit()


def _table(rows: list[tuple[int, str]]) -> pa.Table:
    schema = pa.schema([("id", pa.int64()), ("note", pa.string())])
    return pa.table([[number for number, _ in rows], [note for _, note in rows]], schema=schema)


def _append_to_lance(connection: Any, rows: list[tuple[int, str]]) -> None:
    connection.write(_table(rows))


def _append_to_cayenne(connection: Any, rows: list[tuple[int, str]]) -> None:
    if not connection.exists:
        connection.define(_table([]).schema)
    connection.append(_table(rows))


_APPENDING: Final[dict[str, Callable[[Any, list[tuple[int, str]]], None]]] = {
    "duckdb": _append_by_sql,
    "sqlite": _append_by_sql,
    "turso": _append_by_sql,
    "lance": _append_to_lance,
    "cayenne": _append_to_cayenne,
}


def check_restores(store: SnapshotStore, scratch: Path) -> None:
    """Check that every listed snapshot restores bit for bit."""
    for name in store.heads():
        head = store.head(name)
        for entry in head.snapshots:
            content = read_content(store.objects, name, head.incarnation, entry.operation_id, entry.manifest_digest)
            restore_files(store.objects, content, scratch / entry.operation_id)


@dataclass(slots=True)
class Scene:
    """One engine's live databases and stores, made when a cell first asks for them and never changed afterwards.

    The live database of version `n` holds the orders from 0 to 100 times `n`.
    """

    engine: str
    folder: Path
    clock: HeldClock = field(default_factory=HeldClock)
    _stores: dict[str, MemoryStore] = field(default_factory=dict)

    def live(self, version: int) -> Dataset:
        """The dataset with the live database of a version."""
        dataset = Dataset(NAME, self.engine, self.folder / f"live-{version}" / f"orders.{self.engine}")
        if not dataset.path.parent.exists():
            add_orders(dataset, range(100 * version))
        return dataset

    def store(self, name: str, make: Callable[[Scene, MemoryStore], None]) -> MemoryStore:
        """The store that `make` fills, the first time."""
        if name not in self._stores:
            fresh = MemoryStore()
            make(self, fresh)
            check_restores(SnapshotStore(fresh, read_only=True), self.fresh_folder("restored"))
            self._stores[name] = fresh
        return copied(self._stores[name])

    def known(self, objects: MemoryStore) -> set[str]:
        """The operations of a copied store whose every snapshot was restored when the first store of its kind was made.

        Only those of which no object was replaced or removed since: a copy shares them with what it was copied from.
        """
        known: set[str] = set()
        for made in self._stores.values():
            folders: dict[str, bool] = {}
            for key, stored in made._objects.items():
                if key.startswith("data/"):
                    operation = key.split("/")[3]
                    folders[operation] = folders.get(operation, True) and objects._objects.get(key) is stored
            if all(folders.values()):
                known |= folders.keys()
        return known

    def publisher(self, objects: MemoryStore, failpoints: Failpoints = NO_FAILPOINTS, **settings: Any) -> Publisher:
        """A publisher to objects that do not fail."""
        return Publisher(
            SnapshotStore.over(objects, clock=self.clock),
            **{"staging_dir": self.folder / "staging", "wait": LEASE_AND_MORE, **settings},
            clock=self.clock,
            failpoints=failpoints,
        )

    def fresh_folder(self, name: str) -> Path:
        """An empty folder for one cell."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder
