"""A store, its writers and its readers, for the tests of this room."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from snapshot_assets.clock import SYSTEM_CLOCK, Clock
from snapshot_assets.failpoints import NO_FAILPOINTS, Failpoints
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import Head, head_key
from snapshot_assets.publish.publisher import Publisher, PublishResult
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.reader.spare import SPARE
from snapshot_assets.store.local import LocalStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import FaultStore


class World:
    """A store whose calls are recorded and can be broken, live databases, and readers of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.plain = SnapshotStore.over(LocalStore(folder / "store"))
        self.publisher = Publisher(self.plain)
        self.faults = FaultStore(LocalStore(folder / "store"))
        self.store = SnapshotStore.over(self.faults, read_only=True, retry_for=0.0)
        self._readers: list[SnapshotReader] = []

    def duckdb(self, name: str, sql: str) -> Dataset:
        """Run statements on the live DuckDB database of a dataset."""
        path = self.folder / f"{name}.duckdb"
        with closing(duckdb.connect(str(path))) as connection:
            connection.execute(sql)
        return Dataset(name, "duckdb", path)

    def sqlite(self, name: str, sql: str) -> Dataset:
        """Run statements on the live SQLite database of a dataset."""
        path = self.folder / f"{name}.sqlite"
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(sql)
        return Dataset(name, "sqlite", path)

    def publish(self, dataset: Dataset, **options: Any) -> PublishResult:
        return self.publisher.publish(dataset, **options)

    def orders(self, version: int, rows: int = 1_000) -> PublishResult:
        """Publish the dataset `orders`: each row carries the version."""
        return self.publish(
            self.duckdb(
                "orders", f"create or replace table orders as select range i, {version}::bigint v from range({rows})"
            )
        )

    def planes(self, version: int, rows: int = 500) -> PublishResult:
        """Publish the dataset `planes`: each row carries the version."""
        return self.publish(
            self.sqlite(
                "planes",
                f"""begin; drop table if exists planes; create table planes(i integer, v integer, name text);
                    with recursive n(i) as (select 0 union all select i + 1 from n where i < {rows - 1})
                    insert into planes select i, {version}, 'plane ' || i from n; commit;""",
            )
        )

    def change_head(self, name: str, change: Callable[[Head], dict[str, Any]]) -> Head:
        """Rewrite a head as an operator would, or as a store does that lost writes."""
        head, token = self.plain.read_head(name)
        changed = replace(head, **{"revision": head.revision + 1, **change(head)})
        self.plain.objects.write_if_match(head_key(name), changed.to_bytes(), token)
        return changed

    def reader(
        self,
        *,
        data_dir: Path | None = None,
        clock: Clock = SYSTEM_CLOCK,
        failpoints: Failpoints = NO_FAILPOINTS,
        **settings: Any,
    ) -> SnapshotReader:
        """A reader that touches the store only when told, unless the settings say otherwise; closed at the end."""
        reader = SnapshotReader(
            self.store,
            data_dir or self.data_dir,
            ReaderSettings(**{"refresh_interval": None, "announce_interval": None, **settings}),
            clock,
            failpoints,
        )
        self._readers.append(reader)
        return reader

    def delete_data(self, result: PublishResult, name: str) -> None:
        """Lose an object that a snapshot needs: every file of this name that its operation wrote."""
        keys = [item.key for item in self.plain.objects.list(f"data/{result.dataset}/")]
        self.plain.objects.delete([key for key in keys if result.operation_id in key and key.endswith(name)])

    def local_copies(self, name: str) -> list[str]:
        """What lies in the dataset's folder, apart from its state and a spare."""
        found = (path.name for path in (self.data_dir / name).iterdir())
        return sorted(item for item in found if item not in {"state.json", "current"} and not item.startswith(SPARE))

    def spares(self, name: str) -> list[Path]:
        """The folders of retired copies that the next refresh may build in."""
        return list((self.data_dir / name).glob(f"{SPARE}*"))

    def close(self) -> None:
        for reader in self._readers:
            reader.close()


class ManualClock:
    """A clock that stands still until it is told otherwise. The wall clock can jump; the other one only goes on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._monotonic = 1_000.0
        self._wall_ms = SYSTEM_CLOCK.now_ms()

    def now_ms(self) -> int:
        return self._wall_ms

    def monotonic(self) -> float:
        return self._monotonic

    def wait(self, event: threading.Event, seconds: float) -> bool:
        deadline = self._monotonic + seconds
        while not event.wait(0.002) and self._monotonic < deadline:
            pass
        return event.is_set()

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._monotonic += seconds
            self._wall_ms += round(seconds * 1000)

    def jump(self, hours: float) -> None:
        """Set the wall clock, as an operator or NTP does."""
        with self._lock:
            self._wall_ms += round(hours * 3_600_000)

    def advance_until(self, condition: Callable[[], bool], step: float = 1.0, most: int = 1_000) -> bool:
        """Let time pass in steps, slowly enough for other threads to notice; tell whether the condition came true."""
        for _ in range(most):
            if condition():
                return True
            self.advance(step)
            time.sleep(0.01)
        return condition()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True
