"""Leases, drains and swaps as a user of a provider sees them."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from snapshot_assets.errors import ReaderError, ReadOnlyDataset
from snapshot_assets.reader import drain
from tests.reader.world import World, wait_until

ENDLESS = "select count(*) from range(1000000000) a, range(1000000000) b where a.range % 7 = b.range % 11"
ENDLESS_SQLITE = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"


def test_a_lease_sees_one_generation_from_beginning_to_end(world: World) -> None:
    world.orders(1)
    world.planes(1)
    reader = world.reader()
    orders, planes = reader.follow("orders"), reader.follow("planes")
    lease = orders.connect()
    with lease as duck, planes.connect() as lite:
        world.orders(2)
        world.planes(2)
        reader.refresh("orders")
        reader.refresh("planes")
        assert duck.execute("select distinct v from orders").fetchall() == [(1,)]
        assert lite.execute("select distinct v from planes").fetchall() == [(1,)]
        assert lease.current.generation == 1
        assert orders.current.generation == 2
        with orders.connect() as new, planes.connect() as new_lite:
            assert new.execute("select distinct v from orders").fetchall() == [(2,)]
            assert new_lite.execute("select distinct v from planes").fetchall() == [(2,)]
        assert duck.execute("select distinct v from orders").fetchall() == [(1,)]


def test_the_connection_is_the_engines_own(world: World) -> None:
    world.orders(1)
    world.planes(1)
    reader = world.reader()
    with reader.follow("orders").connect() as duck, reader.follow("planes").connect() as lite:
        assert isinstance(duck, duckdb.DuckDBPyConnection)
        assert isinstance(lite, sqlite3.Connection)


def test_tables_and_parameters(world: World) -> None:
    world.orders(1)
    provider = world.reader().follow("orders")
    assert provider.tables == {"orders": pa.schema([("i", pa.int64()), ("v", pa.int64())])}
    assert provider.query("select i from orders where i = ?", [7]).to_pylist() == [{"i": 7}]
    assert provider.query("select i from orders where i = $i", {"i": 8}).to_pylist() == [{"i": 8}]


@pytest.mark.parametrize("name", ["orders", "planes"])
def test_writes_are_refused(world: World, name: str) -> None:
    world.orders(1)
    world.planes(1)
    provider = world.reader().follow(name)
    for sql in (f"insert into {name} select * from {name}", f"delete from {name}", f"update {name} set v = 9"):
        with pytest.raises(ReadOnlyDataset):
            provider.query(sql)
        with (
            provider.connect() as connection,
            pytest.raises((duckdb.InvalidInputException, sqlite3.OperationalError), match="read-?only"),
        ):
            connection.execute(sql)
    assert provider.query(f"select count(*) c from {name} where v = 1").to_pylist()[0]["c"] >= 500


def test_an_old_generation_is_closed_when_its_last_lease_ends(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    first, second = provider.connect(), provider.connect()
    first.__enter__()
    second.__enter__()
    world.orders(2)
    reader.refresh("orders")
    closed = threading.Event()
    old = first.serving
    close = old.pool.close
    old.pool.close = lambda: (close(), closed.set())  # type: ignore[method-assign, func-returns-value, assignment]
    (draining,) = reader.status()["orders"].draining
    assert (draining.generation, draining.leases) == (1, 2)
    assert draining.holders[0].thread == threading.current_thread().name
    first.__exit__(None, None, None)
    assert not closed.wait(0.2)
    second.__exit__(None, None, None)
    assert closed.wait(5.0)
    assert wait_until(lambda: not reader.status()["orders"].draining)


def test_a_swap_waits_for_no_lease_and_no_query(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    started = threading.Event()
    errors: list[BaseException] = []

    def long_query() -> None:
        with provider.connect() as connection:
            started.set()
            try:
                connection.execute(ENDLESS)
            except duckdb.InterruptException as error:
                errors.append(error)

    thread = threading.Thread(target=long_query)
    thread.start()
    started.wait()
    world.orders(2)
    begun = time.monotonic()
    reader.refresh("orders")
    assert time.monotonic() - begun < 5.0
    assert provider.query("select distinct v from orders").to_pylist() == [{"v": 2}]
    assert thread.is_alive()
    reader._drains.serving()[0].interrupt()
    thread.join(10.0)
    assert len(errors) == 1


def test_a_late_drain_is_only_reported(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.orders(1)
    reader = world.reader(drain_timeout=0.05)
    provider = reader.follow("orders")
    with provider.connect() as connection, caplog.at_level(logging.WARNING, "snapshot_assets.reader"):
        world.orders(2)
        reader.refresh("orders")
        assert wait_until(lambda: bool(caplog.records))
        time.sleep(0.2)
        assert connection.execute("select distinct v from orders").fetchall() == [(1,)]
    assert len(caplog.records) == 1
    assert threading.current_thread().name in caplog.text


@pytest.mark.parametrize("through", ["connect", "query"])
@pytest.mark.parametrize(("name", "sql"), [("orders", ENDLESS), ("planes", ENDLESS_SQLITE)])
def test_cancelling_interrupts_old_leases_and_no_new_ones(world: World, name: str, sql: str, through: str) -> None:
    publish = getattr(world, name)
    publish(1)
    reader = world.reader(drain_timeout=0.1, drain_policy="cancel")
    provider = reader.follow(name)
    started = threading.Event()
    outcome: list[Any] = []

    def run() -> None:
        try:
            if through == "query":
                started.set()
                provider.query(sql)
            with provider.connect() as connection:
                started.set()
                connection.execute(sql).fetchall()
        except (duckdb.InterruptException, sqlite3.OperationalError) as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    time.sleep(0.2)
    publish(2)
    reader.refresh(name)
    with provider.connect() as connection:
        thread.join(10.0)
        assert len(outcome) == 1
        assert "interrupt" in str(outcome[0]).lower()
        assert connection.execute(f"select distinct v from {name}").fetchall() == [(2,)]


@pytest.mark.parametrize("name", ["orders", "planes"])
def test_a_lease_that_closed_its_connection_stops_neither_cancelling_nor_later_drains(world: World, name: str) -> None:
    publish = getattr(world, name)
    publish(1)
    reader = world.reader(drain_timeout=0.1, drain_policy="cancel")
    provider = reader.follow(name)
    lease, other = provider.connect(), provider.connect()
    with lease as closed, other:
        closed.close()
        publish(2)
        reader.refresh(name)
        old = other.serving
        interrupted = threading.Event()
        other.connection = type("Spy", (), {"interrupt": lambda _: interrupted.set(), "close": lambda _: None})()
        assert wait_until(interrupted.is_set)
        assert old.leases == 2
    assert wait_until(lambda: not reader.status()[name].draining)
    publish(3)
    reader.refresh(name)
    assert wait_until(lambda: not reader.status()[name].draining)


def test_a_pool_that_does_not_close_keeps_no_local_copy_and_stops_no_later_drain(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.orders(1)
    reader = world.reader(keep_local=1)
    provider = reader.follow("orders")
    first = provider.serving
    assert first is not None

    def fail() -> None:
        raise duckdb.ConnectionException("it does not close")

    first.pool.close = fail  # type: ignore[method-assign]
    for version in (2, 3):
        world.orders(version)
        reader.refresh("orders")
        assert wait_until(lambda: not reader.status()["orders"].draining)
        assert wait_until(lambda: len(world.local_copies("orders")) == 1)
    assert "it does not close" in caplog.text


def test_generations_are_put_away_without_a_thread_when_none_can_be_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    with provider.connect(), monkeypatch.context() as patch:
        world.orders(2)
        patch.setattr(drain, "_new_thread", fail)
        assert reader.refresh("orders").generation == 2
        assert provider.query("select distinct v from orders").to_pylist() == [{"v": 2}]
        assert len(reader._drains.serving()) == 1
    assert not reader._drains.serving()


def test_what_a_query_can_not_hold_in_memory_never_lies_in_the_local_copy(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    copy = reader.data_dir / "orders" / "current"
    with reader.follow("orders").connect() as connection:
        before = set(copy.resolve().rglob("*"))
        connection.execute("set memory_limit = '64MB'")
        cursor = connection.execute("select i, hash(i) as h from range(8_000_000) r(i) order by h")
        cursor.fetchmany(10)
        seen = {path for path in (reader.data_dir / ".spill").rglob("*") if path.is_file()}
        assert set(copy.resolve().rglob("*")) == before
    assert seen


def test_a_lease_that_fails_inside_still_ends(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    with pytest.raises(duckdb.CatalogException), provider.connect() as connection:
        connection.execute("select * from no_such_table")
    assert reader.status()["orders"].leases == 0


def test_leases_leave_no_session_state_behind(world: World) -> None:
    world.orders(1)
    world.planes(1)
    reader = world.reader()
    orders, planes = reader.follow("orders"), reader.follow("planes")
    for _ in range(2):
        with orders.connect() as connection:
            connection.execute("create temp table mine as select 1")
        with planes.connect() as connection:
            connection.execute("create temp table mine as select 1")


def test_close_ends_new_leases_and_lets_old_ones_finish(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    provider = reader.follow("orders")
    with provider.connect() as connection:
        reader.close()
        assert connection.execute("select count(*) from orders").fetchall() == [(1_000,)]
        with pytest.raises(ReaderError, match="closed"):
            provider.query("select 1")
        with pytest.raises(ReaderError, match="closed"), provider.connect():
            pass
    for use in (
        lambda: reader.follow("orders"),
        lambda: reader.refresh("orders"),
        lambda: reader.catalog.query("select 1"),
        lambda: provider.current,
    ):
        with pytest.raises(ReaderError, match="closed"):
            use()
    reader.close()
