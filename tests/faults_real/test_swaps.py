"""Swaps of all five engines under threads and remote clients: every answer is one generation's, and none fails."""

from __future__ import annotations

import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow as pa
import pytest

from snapshot_assets.engines.registry import engine_named
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.serve.node import NodeSettings, ReaderNode
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.faults_real.actors import Part
from tests.faults_real.crew import Crew, wait_for
from tests.faults_real.place import Place

ENGINES = {"flights": "duckdb", "weather": "sqlite", "planes": "turso", "airports": "cayenne", "airlines": "lance"}
ROWS = 300
THREADS = 8
CLIENTS = 2
VERSIONS = 3
THINKING_SECONDS = 0.1
FRESH_EVERY = 10
"""Every so many swaps of a dataset, what it goes to was never there before."""

ONE = "select count(*) n, min(v) low, max(v) high from {}"
FIRST, *OTHERS = ENGINES
JOIN = (
    "select count(*) n, "
    + ", ".join(f"min({name}.v) {name}_low, max({name}.v) {name}_high" for name in ENGINES)
    + f" from {FIRST}.main.{FIRST} {FIRST} "
    + " ".join(f"join {name}.main.{name} {name} on {name}.i = {FIRST}.i" for name in OTHERS)
)

Moments = list[tuple[float, float]]
"""When something was begun, and when it had ended."""


def write_version(folder: Path, name: str, version: int) -> Dataset:
    """Give every row of a live database the version."""
    engine = ENGINES[name]
    dataset = Dataset(name, engine, folder / f"{name}.{engine}")
    table = pa.table(
        {"i": range(ROWS), "v": [version] * ROWS}, schema=pa.schema([("i", pa.int64()), ("v", pa.int64())])
    )
    with engine_named(engine).connect_live(dataset) as live:
        if engine == "lance":
            live.write(table, mode="overwrite")
        elif engine == "cayenne":
            if not live.exists:
                live.define(table.schema)
            live.overwrite(table)
        else:
            live.execute(f"create table if not exists {name} (i bigint, v bigint)")
            live.execute(f"delete from {name}")
            live.execute(f"insert into {name} values " + ", ".join(f"({i}, {version})" for i in range(ROWS)))
            live.commit()
    return dataset


def is_one_generation(row: dict[str, Any]) -> bool:
    lows = [value for column, value in row.items() if column.endswith("low")]
    highs = [value for column, value in row.items() if column.endswith("high")]
    return bool(row["n"] == ROWS and lows and lows == highs)


def ask_remotely(place: Place, part: Part) -> None:
    """Be a client of the node: join all five until it is over, and write down how each question ended."""
    journal = place.journal(part.actor)
    [node] = [event for event in place.events("node") if event["kind"] == "node"]
    with flightsql.connect(node["flight"], autocommit=True) as connection, connection.cursor() as cursor:
        while not place.is_over():
            begun = time.monotonic()
            try:
                cursor.execute(JOIN)
                [row] = cursor.fetch_arrow_table().to_pylist()
            except Exception:
                journal.write("failed", error=traceback.format_exc())
            else:
                versions = [row[f"{name}_low"] for name in ENGINES]
                journal.write("asked", begun=begun, right=is_one_generation(row), versions=versions)
            time.sleep(THINKING_SECONDS)


class Load:
    """Threads that ask in turn, and what came of it."""

    def __init__(self, questions: list[Callable[[], bool]]) -> None:
        self._questions = questions
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), name=f"query-{n}") for n in range(THREADS)]
        self.asked: Moments = []
        self.failed: list[str] = []
        self.wrong = 0

    def _run(self, turn: int) -> None:
        while not self._stop.wait(THINKING_SECONDS):
            begun = time.monotonic()
            try:
                right = self._questions[turn % len(self._questions)]()
            except Exception:
                self.failed.append(traceback.format_exc())
            else:
                self.wrong += not right
                self.asked.append((begun, time.monotonic()))
            turn += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)


def told(words: str, asked: Iterable[tuple[float, float]], windows: Moments) -> str:
    """How long answers took in swap windows and out of them, in milliseconds."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for begun, ended in asked:
        touches = any(start <= ended and begun <= end for start, end in windows)
        seconds[touches].append(ended - begun)
    parts = []
    for touches, name in ((True, "in"), (False, "out of")):
        if len(seconds[touches]) > 1:
            cuts = statistics.quantiles(seconds[touches], n=100)
            parts.append(
                f"{len(seconds[touches])} {name} swap windows, median {cuts[49] * 1e3:.1f}, p99 {cuts[98] * 1e3:.1f} ms"
            )
    return f"  {words}: " + "; ".join(parts)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("swaps_of_each", [4, pytest.param(1_000, marks=pytest.mark.soak)])
def test_swaps_of_all_five_engines_under_threads_and_remote_clients(
    crew: Crew, local_place: Place, capsys: pytest.CaptureFixture[str], swaps_of_each: int
) -> None:
    place = local_place
    store = SnapshotStore.open(place.url)
    publisher, maintenance = Publisher(store), Maintenance(store)
    for version in range(VERSIONS):
        for name in ENGINES:
            assert publisher.publish(write_version(place.folder, name, version)).snapshot_id == version
    settings = ReaderSettings(refresh_interval=None, announce_interval=None)
    windows: Moments = []
    seen: set[tuple[int, ...]] = set()
    with (
        SnapshotReader(SnapshotStore.open(place.url, read_only=True), place.folder / "data", settings) as reader,
        ReaderNode(reader, list(ENGINES), NodeSettings(port=0, http_port=0)) as node,
    ):
        providers = {name: reader.follow(name) for name in ENGINES}

        def ask_one(name: str) -> bool:
            [row] = providers[name].query(ONE.format(name)).to_pylist()
            return is_one_generation(row)

        def ask_all() -> bool:
            [row] = reader.catalog.query(JOIN).to_pylist()
            seen.add(tuple(row[f"{name}_low"] for name in ENGINES))
            return is_one_generation(row)

        def ask_all_twice() -> bool:
            with reader.catalog.connect() as session:
                first = session.execute(JOIN).fetchone()
                return bool(first is not None and first[0] == ROWS and first == session.execute(JOIN).fetchone())

        place.journal("node").write("node", flight=node.flight_url)
        clients = [crew.start(ask_remotely, place, Part(f"client{n}")) for n in range(CLIENTS)]
        for client in clients:
            wait_for(lambda name=client.name: len(place.events(name)) > 1, f"{client.name} has no answer")  # type: ignore[misc]
        questions = [*(lambda name=name: ask_one(name) for name in ENGINES), ask_all, ask_all_twice]
        newest = dict.fromkeys(ENGINES, VERSIONS - 1)
        with Load(questions) as load:
            for swap in range(swaps_of_each):
                for name in ENGINES:
                    if swap % FRESH_EVERY == FRESH_EVERY // 3:
                        newest[name] += 1
                        goal = newest[name]
                        assert publisher.publish(write_version(place.folder, name, goal)).snapshot_id == goal
                    else:
                        serving = providers[name].current.snapshot_id
                        goal = (serving + 1) % VERSIONS
                        maintenance.rollback(name, goal)
                    begun = time.monotonic()
                    result = reader.refresh(name)
                    windows.append((begun, time.monotonic()))
                    assert (result.outcome, result.snapshot_id) == ("loaded", goal)
        place.end()
        for client in clients:
            crew.ended(client)
    events = [event for n in range(CLIENTS) for event in place.events(f"client{n}")]
    remote = [event for event in events if event["kind"] == "asked"]
    failed = [*load.failed, *(event["error"] for event in events if event["kind"] == "failed")]
    wrong = load.wrong + sum(not event["right"] for event in remote)
    with capsys.disabled():
        print(
            f"\n{len(windows)} swaps under {THREADS} threads and {CLIENTS} remote clients: "
            f"{len(load.asked)} and {len(remote)} answers, {len(failed)} failed, {wrong} wrong"
        )
        print(told("in process", load.asked, windows))
        print(told("by Flight SQL", ((event["begun"], event["at"]) for event in remote), windows))
    assert not failed, failed[0]
    assert not wrong
    assert len(windows) == swaps_of_each * len(ENGINES)
    assert len({tuple(event["versions"]) for event in remote}) > VERSIONS
    assert len(seen) > VERSIONS
