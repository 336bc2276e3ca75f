"""A small reader for tests of the node: two datasets in a memory database, locked as a catalogue's sessions are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import duckdb
import pyarrow.flight as fl

from snapshot_assets.errors import NotLoaded, SnapshotAssetsError, SnapshotMissing
from snapshot_assets.reader.settings import Current, ReaderSettings, RefreshResult
from snapshot_assets.reader.status import DatasetStatus
from snapshot_assets.serve.messages import CommandStatementQuery, pack

__all__ = ["ENDLESS", "LONG", "StandInCatalog", "StandInReader", "fetch", "start_query", "until"]

LONG = "SELECT a.i, a.name FROM orders.main.orders a, range(100000) r"
"""More rows than anybody waits for, and each of them at once."""

ENDLESS = "SELECT sum(a.range * b.range % 7) FROM range(100000000) a, range(100000) b"
"""No row for hours."""


class StandInCatalog:
    def __init__(self) -> None:
        self.leases = 0
        self._lock = threading.Lock()
        self._root = duckdb.connect(
            ":memory:",
            config={
                "python_enable_replacements": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "memory_limit": "500MB",
            },
        )
        for statement in (
            "ATTACH ':memory:' AS orders",
            "ATTACH ':memory:' AS planes",
            "CREATE TABLE orders.main.orders AS SELECT range i, range % 7 j, 'name ' || range AS name FROM range(1000)",
            "CREATE TABLE planes.main.planes AS SELECT range id, 'plane' AS model FROM range(10)",
            "CREATE VIEW planes.main.first AS SELECT * FROM planes.main.planes WHERE id = 0",
            "SET enable_external_access = false",
            "SET lock_configuration = true",
        ):
            self._root.execute(statement)

    @contextmanager
    def connect(self, *, checked: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._lock:
            self.leases += 1
        connection = self._root.cursor()
        try:
            yield connection
        finally:
            connection.close()
            with self._lock:
                self.leases -= 1


class StandInReader:
    def __init__(self) -> None:
        self.catalog = StandInCatalog()
        self.settings = ReaderSettings(cohort="canary")
        self.generations: dict[str, int] = {"orders": 1, "planes": 1}
        self.pins: dict[str, int | None] = {}
        self.followed: set[str] = set()
        self.refuse_follow: SnapshotAssetsError | None = None
        self.on_refresh: Callable[[str], None] = lambda _: None

    def follow(self, name: str, *, refresh: bool = True) -> object:
        if self.refuse_follow is not None:
            raise self.refuse_follow
        self.followed.add(name)
        return None

    def refresh(self, name: str, at_least_generation: int | None = None) -> RefreshResult:
        if name not in self.followed:
            raise NotLoaded(f"{name} is not followed", dataset=name)
        self.on_refresh(name)
        return RefreshResult("loaded", name, self.generations[name], 0)

    def pin(self, name: str, snapshot_id: int | None) -> RefreshResult:
        if snapshot_id is not None and snapshot_id > 1:
            raise SnapshotMissing(f"{name} lists no snapshot {snapshot_id}", dataset=name)
        self.pins[name] = snapshot_id
        return RefreshResult("loaded", name, self.generations[name], snapshot_id or 0)

    def announce_endpoint(self, endpoint: str | None) -> None:
        self.endpoint = endpoint

    def status(self) -> Mapping[str, DatasetStatus]:
        return {
            name: DatasetStatus(
                dataset=name,
                state="loaded",
                current=Current(generation=self.generations[name], snapshot_id=0, incarnation="01", loaded_at_ms=0),
                age_seconds=1.0,
                head_generation=self.generations[name],
                leases=self.catalog.leases,
                draining=(),
                last_error=None,
                swaps=(),
                row_counts={name: 1000},
                local_copies=(),
            )
            for name in sorted(self.followed)
        }


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for a condition; fail when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def start_query(client: fl.FlightClient, sql: str, options: fl.FlightCallOptions | None = None) -> fl.FlightInfo:
    """What a Flight SQL client does first."""
    return client.get_flight_info(fl.FlightDescriptor.for_command(pack(CommandStatementQuery(sql))), options)


def fetch(client: fl.FlightClient, info: fl.FlightInfo) -> fl.FlightStreamReader:
    """What it does next."""
    return client.do_get(info.endpoints[0].ticket)
