"""SQL over Arrow datasets: what it can see, and what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pytest

from snapshot_assets.engines.arrow_sql import ArrowSQL
from snapshot_assets.errors import ReadOnlyDataset

ORDERS = pa.table({"id": list(range(1_000)), "name": [f"order {number}" for number in range(1_000)]})


@pytest.fixture
def sql() -> Iterator[ArrowSQL]:
    tables = {"orders": pyarrow.dataset.dataset(ORDERS), 'my "own" table': pyarrow.dataset.dataset(ORDERS.slice(10))}
    opened = ArrowSQL("orders", tables)
    yield opened
    opened.close()


@pytest.mark.parametrize("name", ["orders", "main.orders", "orders.main.orders"])
def test_a_table_has_the_names_that_it_has_in_a_duckdb_dataset(sql: ArrowSQL, name: str) -> None:
    assert sql.query(f"select count(*) as n, sum(id) as total from {name}").to_pylist() == [
        {"n": 1_000, "total": 499500}
    ]


def test_names_that_need_quotes_work(sql: ArrowSQL) -> None:
    assert sql.rows('select count(*) from "my ""own"" table"') == [(990,)]


def test_parameters_are_bound_by_place_and_by_name(sql: ArrowSQL) -> None:
    assert sql.query("select name from orders where id = ?", [7]).to_pylist() == [{"name": "order 7"}]
    assert sql.query("select name from orders where id = $id", {"id": 7}).to_pylist() == [{"name": "order 7"}]


@pytest.mark.parametrize(
    "statement",
    [
        "insert into orders values (1, 'x')",
        "create table mine as select 1",
        "create or replace view orders as select 1",
        "drop view orders.main.orders",
        "attach ':memory:' as other",
        "select 1; select 2",
        "explain analyze create table mine as select 1",
        "set threads = 1",
        "",
    ],
)
def test_everything_but_one_reading_statement_is_refused(sql: ArrowSQL, statement: str) -> None:
    with pytest.raises(ReadOnlyDataset, match="'orders' is read-only") as caught:
        sql.query(statement)
    assert caught.value.dataset == "orders"
    with pytest.raises(ReadOnlyDataset):
        sql.rows(statement)
    assert sql.rows("select count(*) from orders") == [(1_000,)]


def test_files_and_variables_of_the_process_can_not_be_read(sql: ArrowSQL, tmp_path: Path) -> None:
    mine = ORDERS  # a variable that DuckDB would take for a table of this name
    (tmp_path / "secret.csv").write_text("a\n1\n")
    assert mine.num_rows
    with pytest.raises(duckdb.Error, match="mine"):
        sql.query("select * from mine")
    with pytest.raises(duckdb.Error):
        sql.query(f"select * from '{tmp_path}/secret.csv'")


def test_many_threads_read_at_once(sql: ArrowSQL) -> None:
    answers: list[object] = []

    def work() -> None:
        answers.extend(sql.rows("select count(*), sum(id) from orders") for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [[(1_000, 499_500)]] * 40


def test_a_tables_name_is_not_taken_for_the_scan_of_another() -> None:
    tables = {
        "items": pyarrow.dataset.dataset(pa.table({"i": [1]})),
        "orders.items": pyarrow.dataset.dataset(pa.table({"i": [2]})),
    }
    with closing(ArrowSQL("orders", tables)) as sql:
        assert sql.rows("select i from items") == [(1,)]
        assert sql.rows('select i from "orders.items"') == [(2,)]


def test_a_table_without_a_name_is_left_out() -> None:
    tables = {"": pyarrow.dataset.dataset(ORDERS), "orders": pyarrow.dataset.dataset(ORDERS)}
    with closing(ArrowSQL("orders", tables)) as sql:
        assert sql.rows("select count(*) from orders") == [(1_000,)]


@pytest.mark.parametrize("function", ["enable_logging()", "enable_logging(storage='stdout')", "enable_profiling()"])
def test_no_select_changes_what_the_instance_does_for_others(sql: ArrowSQL, function: str) -> None:
    with pytest.raises(duckdb.InvalidInputException, match="locked"):
        sql.query(f"select * from {function}")
