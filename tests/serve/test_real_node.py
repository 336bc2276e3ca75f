"""A node as it is run: its own process, over published datasets, with clients of good and of bad intent."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import adbc_driver_flightsql.dbapi as flightsql
import duckdb
import pyarrow.flight as fl
import pytest

from snapshot_assets.errors import QueryFailed, QueryRefused
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.serve.client import NodeClient
from snapshot_assets.serve.node import NodeSettings
from snapshot_assets.serve.queries import Limits, Queries
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.serve.standin import fetch, start_query, until

Run = Callable[..., "RunningNode"]

_NODE = """
import sys
from pathlib import Path
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.serve.node import NodeSettings, run_node
from snapshot_assets.store.snapshot_store import SnapshotStore
node = NodeSettings(port=0, http_port=0, memory_limit="500MB", stop_timeout=float(sys.argv[3]))
settings = ReaderSettings(refresh_interval=None, on_bootstrap_failure="warn", catalog_config=node.catalog_config)
with SnapshotReader(SnapshotStore.open(sys.argv[1], read_only=True), Path(sys.argv[2]), settings) as reader:
    run_node(reader, ["orders", "planes"], node)
"""


@dataclass
class World:
    folder: Path
    publisher: Publisher

    def publish_orders(self, first: int) -> None:
        with duckdb.connect(str(self.folder / "orders.duckdb")) as live:
            live.execute(
                f"CREATE OR REPLACE TABLE orders AS SELECT range + {first} id, range % 5 plane FROM range(1000)"
            )
        self.publisher.publish(Dataset(name="orders", engine="duckdb", path=self.folder / "orders.duckdb"))

    def publish_planes(self) -> None:
        with sqlite3.connect(self.folder / "planes.sqlite") as live:
            live.execute("CREATE TABLE planes (id INTEGER, model TEXT)")
            live.executemany("INSERT INTO planes VALUES (?, ?)", [(n, f"model {n}") for n in range(5)])
        live.close()
        self.publisher.publish(Dataset(name="planes", engine="sqlite", path=self.folder / "planes.sqlite"))


@dataclass
class RunningNode:
    process: subprocess.Popen[str]
    flight: str
    http: str
    ready: bool
    missing: dict[str, str]

    def readyz(self) -> int:
        try:
            with urllib.request.urlopen(f"{self.http}/readyz", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def resident(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Publisher(SnapshotStore.open(str(tmp_path / "store"))) as publisher:
        yield World(tmp_path, publisher)


def start_process(folder: Path, stop_timeout: float = 5.0) -> RunningNode:
    command = [sys.executable, "-c", _NODE, str(folder / "store"), str(folder / "data"), str(stop_timeout)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = json.loads(process.stdout.readline())
    assert line["pid"] == process.pid
    return RunningNode(process, line["flight"], line["http"], line["ready"], line["missing"])


@pytest.fixture
def run(world: World) -> Iterator[Run]:
    started: list[RunningNode] = []

    def run_node(stop_timeout: float = 5.0) -> RunningNode:
        started.append(start_process(world.folder, stop_timeout))
        return started[-1]

    yield run_node
    for node in started:
        node.process.kill()
        node.process.communicate(timeout=10)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node over both datasets, for tests that change nothing."""
    folder = tmp_path_factory.mktemp("served")
    with Publisher(SnapshotStore.open(str(folder / "store"))) as publisher:
        world = World(folder, publisher)
        world.publish_orders(0)
        world.publish_planes()
    node = start_process(folder)
    yield node
    node.process.kill()
    node.process.communicate(timeout=10)


def test_two_published_datasets_are_joined_through_the_driver(served: RunningNode) -> None:
    node = served
    assert (node.ready, node.missing, node.readyz()) == (True, {}, 200)
    with flightsql.connect(node.flight, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT o.id, p.model FROM orders.main.orders o JOIN planes.main.planes p ON p.id = o.plane WHERE o.id = ?",
            (7,),
        )
        assert cursor.fetchall() == [(7, "model 2")]
        objects = connection.adbc_get_objects(depth="all").read_all().to_pylist()
    assert [catalog["catalog_name"] for catalog in objects] == ["orders", "planes"]
    assert [
        (table["table_name"], [column["column_name"] for column in table["table_columns"]])
        for catalog in objects
        for table in catalog["catalog_db_schemas"][0]["db_schema_tables"]
    ] == [("orders", ["id", "plane"]), ("planes", ["id", "model"])]


def test_a_refresh_swaps_without_a_failed_or_wrong_query(world: World, run: Run) -> None:
    world.publish_orders(0)
    world.publish_planes()
    node = run()
    done = threading.Event()
    wrong: list[str] = []
    seen: list[int] = []

    def ask() -> None:
        with fl.connect(node.flight) as client:
            while not done.is_set():
                try:
                    answer = fetch(
                        client, start_query(client, "SELECT min(id) a, max(id) b, count(*) n FROM orders.main.orders")
                    ).read_all()
                    (row,) = answer.to_pylist()
                    seen.append(row["a"])
                    if row["b"] != row["a"] + 999 or row["n"] != 1000 or row["a"] % 1000:
                        wrong.append(str(row))
                except fl.FlightError as error:
                    wrong.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    with NodeClient(node.flight) as client, fl.connect(node.flight) as flight:
        for swap in range(1, 6):
            world.publish_orders(1000 * swap)
            result = client.refresh("orders", at_least_generation=swap + 1, wait=20)
            assert (result["outcome"], result["generation"], result["reached"]) == ("loaded", swap + 1, True)
            newest = fetch(flight, start_query(flight, "SELECT min(id) a FROM orders.main.orders")).read_all()
            assert newest.to_pylist() == [{"a": 1000 * swap}]
            before = len(seen)
            until(lambda: len(seen) > before + 4, 20)  # noqa: B023
        assert client.status()["datasets"]["orders"]["current"]["generation"] == 6
    done.set()
    for thread in threads:
        thread.join(20)
    assert wrong == []


def test_a_node_without_its_datasets_lives_is_not_ready_and_recovers(world: World, run: Run) -> None:
    world.publish_orders(0)
    node = run()
    assert (node.ready, list(node.missing), node.readyz()) == (False, ["planes"], 503)
    with fl.connect(node.flight) as client:
        assert fetch(client, start_query(client, "SELECT id FROM orders.main.orders")).read_all().num_rows == 1000
        world.publish_planes()
        with NodeClient(node.flight) as control:
            assert control.refresh("planes", at_least_generation=1, wait=20)["reached"] is True
        assert node.readyz() == 200
        assert fetch(client, start_query(client, "SELECT id FROM planes.main.planes")).read_all().num_rows == 5


def test_sigterm_lets_queries_end_and_exits_with_0(world: World, run: Run) -> None:
    world.publish_orders(0)
    world.publish_planes()
    node = run(stop_timeout=30)
    with fl.connect(node.flight) as client:
        stream = fetch(client, start_query(client, "SELECT a.id FROM orders.main.orders a, range(5000) r"))
        rows = stream.read_chunk().data.num_rows
        node.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while node.readyz() != 503:
            assert time.monotonic() < deadline
        with pytest.raises(fl.FlightUnavailableError, match="stopping"):
            start_query(client, "SELECT 1")
        assert rows + stream.read_all().num_rows == 5_000_000
    assert node.process.wait(20) == 0


def test_sigterm_does_not_wait_for_ever_for_a_client_that_stalls(world: World, run: Run) -> None:
    world.publish_orders(0)
    world.publish_planes()
    node = run(stop_timeout=0.5)
    with fl.connect(node.flight) as client:
        stream = fetch(client, start_query(client, "SELECT a.id FROM orders.main.orders a, range(100000) r"))
        stream.read_chunk()
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(20) == 0


def test_a_long_result_takes_little_memory_of_the_node(served: RunningNode) -> None:
    node = served
    with fl.connect(node.flight) as client:
        stream = fetch(
            client, start_query(client, "SELECT a.id, repeat('x', 100) t FROM orders.main.orders a, range(6000) r")
        )
        before, most, size = node.resident(), 0, 0
        for chunk in stream:
            size += chunk.data.nbytes
            most = max(most, node.resident())
    assert size > 600_000_000
    assert most - before < 250_000_000


ATTACKS = """
ATTACH '/tmp/snapshot-assets-attack.duckdb' AS attack
COPY (SELECT 1) TO '/tmp/snapshot-assets-attack.csv'
SELECT * FROM read_text('/etc/passwd')
SELECT * FROM read_csv('/etc/passwd')
SELECT * FROM read_blob('/proc/self/environ')
SELECT * FROM '/etc/passwd'
SELECT * FROM glob('/etc/*')
SELECT * FROM duckdb_secrets()
CREATE SECRET s (TYPE s3)
INSTALL httpfs
LOAD httpfs
SET enable_external_access = true
SET lock_configuration = false
SET memory_limit = '100GB'
SET temp_directory = '/tmp'
RESET memory_limit
PRAGMA enable_profiling
CALL enable_logging()
EXPORT DATABASE '/tmp/snapshot-assets-attack'
INSERT INTO orders.main.orders VALUES (1, 1)
DELETE FROM orders.main.orders
DROP TABLE orders.main.orders
CREATE TABLE orders.main.other AS SELECT 1
WITH d AS (DELETE FROM orders.main.orders RETURNING *) SELECT * FROM d
SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')
SELECT getenv('HOME')
"""


@pytest.mark.parametrize("sql", ATTACKS.strip().splitlines())
def test_a_statement_that_got_past_the_parser_would_meet_a_locked_session(locked: Queries, sql: str) -> None:
    class Patient:
        def is_cancelled(self) -> bool:
            return False

    with pytest.raises((QueryRefused, QueryFailed)):
        locked.open(sql, [None], Patient()).close()
    query = locked.open("SELECT count(*) AS n FROM orders.main.orders", [None], Patient())
    batch = query.next_batch(Patient())
    assert batch is not None
    assert batch.to_pylist() == [{"n": 1000}]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queries]:
    folder = tmp_path_factory.mktemp("locked")
    with Publisher(SnapshotStore.open(str(folder / "store"))) as publisher:
        World(folder, publisher).publish_orders(0)
    settings = ReaderSettings(refresh_interval=None, catalog_config=NodeSettings().catalog_config)
    with SnapshotReader(SnapshotStore.open(str(folder / "store")), folder / "data", settings) as reader:
        reader.follow("orders")
        queries = Queries(reader.catalog, Limits())
        yield queries
        queries.stop(0)


def test_attacks_on_a_running_node_are_refused_and_harm_nobody(served: RunningNode) -> None:
    node = served
    others = [
        "ATTACH ':memory:' AS m",
        "DETACH planes",
        "CREATE MACRO abs(x) AS 1",
        "CREATE TEMP VIEW orders AS SELECT 1",
    ]
    with fl.connect(node.flight) as client:
        for sql in [*ATTACKS.strip().splitlines(), *others]:
            with pytest.raises(fl.FlightServerError) as refused:
                start_query(client, sql)
            details = json.loads(refused.value.extra_info)
            assert details["kind"] == "QueryRefused", sql
            assert details["hint"], sql
        assert fetch(client, start_query(client, "SELECT id FROM orders.main.orders")).read_all().num_rows == 1000
        assert fetch(client, start_query(client, "SELECT id FROM planes.main.planes")).read_all().num_rows == 5
    assert not list(Path("/tmp").glob("snapshot-assets-attack*"))
