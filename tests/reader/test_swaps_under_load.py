"""200 swaps under 8 query threads: every answer is one generation's answer, and none fails."""

from __future__ import annotations

import sqlite3
import statistics
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from typing import Any

import duckdb
import pytest

from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import Head
from tests.reader.world import World

ROWS = 2_000
THREADS = 8
VERSIONS = 6
THINKING_SECONDS = 0.03


class Load:
    """Threads that ask in turn, and what came of it: latencies with their moments, failures, wrong answers."""

    def __init__(self, questions: list[Callable[[], bool]]) -> None:
        self._questions = questions
        self._stop = threading.Event()
        self.asked: list[tuple[float, float]] = []
        self.failed: list[BaseException] = []
        self.wrong = 0
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"query-{number}") for number in range(THREADS)
        ]

    def _run(self, number: int) -> None:
        turn = number
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                right = self._questions[turn % len(self._questions)]()
            except Exception as error:
                self.failed.append(error)
            else:
                self.wrong += not right
                self.asked.append((begun, time.monotonic() - begun))
            turn += 1
            time.sleep(THINKING_SECONDS)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30.0)
        assert not any(thread.is_alive() for thread in self._threads)


def write_orders(world: World, version: int) -> Dataset:
    path = world.folder / "orders.duckdb"
    with closing(duckdb.connect(str(path))) as connection:
        connection.execute(
            "create table if not exists orders as select range::bigint i, 0::bigint v from range(?)", [ROWS]
        )
        connection.execute("update orders set v = ?", [version])
    return Dataset("orders", "duckdb", path)


def write_planes(world: World, version: int) -> Dataset:
    path = world.folder / "planes.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table if not exists planes(i integer primary key, v integer)")
        connection.executemany("insert or replace into planes values (?, ?)", ((i, version) for i in range(ROWS)))
    return Dataset("planes", "sqlite", path)


def make_current(snapshot_id: int) -> Callable[[Head], dict[str, Any]]:
    return lambda head: {"generation": head.generation + 1, "current_snapshot_id": snapshot_id}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("swaps", [200, pytest.param(2_000, marks=pytest.mark.soak)])
def test_swaps_under_load_fail_no_query_and_answer_none_wrong(
    world: World, capsys: pytest.CaptureFixture[str], swaps: int
) -> None:
    for version in range(VERSIONS):
        world.publish(write_orders(world, version))
        world.publish(write_planes(world, version))
    reader = world.reader()
    orders, planes = reader.follow("orders"), reader.follow("planes")

    def ask_duckdb() -> bool:
        lease = orders.connect()
        with lease as connection:
            first = connection.execute("select count(*), min(v), max(v) from orders").fetchone()
            version = lease.current.snapshot_id
            again = connection.execute("select count(*), min(v), max(v) from orders").fetchone()
        return bool(first == again == (ROWS, version, version))

    def ask_sqlite() -> bool:
        lease = planes.connect()
        with lease as connection:
            first = connection.execute("select count(*), min(v), max(v) from planes").fetchone()
            version = lease.current.snapshot_id
            again = connection.execute("select count(*), min(v), max(v) from planes").fetchone()
        return bool(first == again == (ROWS, version, version))

    def ask_one_statement() -> bool:
        (row,) = orders.query("select count(*) n, min(v) low, max(v) high from orders").to_pylist()
        return bool(row["n"] == ROWS and row["low"] == row["high"])

    seen: set[tuple[int, int]] = set()

    def ask_both() -> bool:
        (row,) = reader.catalog.query(
            """select count(*) n, min(o.v) o_low, max(o.v) o_high, min(p.v) p_low, max(p.v) p_high
               from orders.main.orders o join planes.main.planes p using (i)"""
        ).to_pylist()
        seen.add((row["o_low"], row["p_low"]))
        return bool(row["n"] == ROWS and row["o_low"] == row["o_high"] and row["p_low"] == row["p_high"])

    def ask_both_twice() -> bool:
        join = "select sum(o.v), sum(p.v) from orders.main.orders o join planes.main.planes p using (i)"
        with reader.catalog.connect() as session:
            first = session.execute(join).fetchone()
            return bool(first == session.execute(join).fetchone() and first is not None and first[0] % ROWS == 0)

    windows: list[tuple[float, float]] = []
    began = time.monotonic()
    with Load([ask_duckdb, ask_sqlite, ask_one_statement, ask_both, ask_both_twice]) as load:
        for swap in range(swaps // 2):
            for write, name in ((write_orders, "orders"), (write_planes, "planes")):
                if swap % 20 == 19:
                    version = VERSIONS + swap // 20
                    assert world.publish(write(world, version)).snapshot_id == version
                else:
                    # Back and forth among what is published, so that some copies are warm and some are fetched.
                    world.change_head(name, make_current(swap * 5 % VERSIONS))
                begun = time.monotonic()
                assert reader.refresh(name).outcome == "loaded"
                windows.append((begun, time.monotonic()))
    seconds = time.monotonic() - began

    inside: list[float] = []
    outside: list[float] = []
    for begun, latency in load.asked:
        touches = any(start <= begun + latency and begun <= end for start, end in windows)
        (inside if touches else outside).append(latency)
    swap_seconds = statistics.median(end - start for start, end in windows)
    with capsys.disabled():
        print(
            f"\n{len(windows)} swaps in {seconds:.1f} s under {THREADS} threads: {len(load.asked)} answers, "
            f"{len(load.failed)} failed, {load.wrong} wrong; median swap {swap_seconds:.3f} s"
        )
        for words, latencies in (("in swap windows", inside), ("outside", outside)):
            cuts = statistics.quantiles(latencies, n=100)
            print(
                f"  {words:>16}: {len(latencies)} answers, median {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms"
            )
    assert not load.failed, "".join(traceback.format_exception(load.failed[0]))
    assert not load.wrong
    assert len(windows) == swaps
    assert len(load.asked) > swaps
    assert len(seen) > VERSIONS
    assert len(world.local_copies("orders")) <= 3
