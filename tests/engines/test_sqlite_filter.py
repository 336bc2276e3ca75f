"""Filters that go on to SQLite: the same rows as without, and fewer of them read."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshot_assets.engines.sqlite_filter import where_of
from snapshot_assets.engines.sqlite_scan import SQLiteTable

SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("x", pa.float64()), ("a and b", pa.int64())])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> SQLiteTable:
    path = tmp_path_factory.mktemp("filter") / "t.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            'create table t (id integer primary key, name text collate nocase, x real, "a and b" integer)'
        )
        rows: list[tuple[Any, ...]] = [
            (n, (None, "a", "A", "it's", 'q"', "", "ä", b"a")[n % 8], (None, 0.5, -1.0, 2, 1e300)[n % 5], n % 3)
            for n in range(400)
        ]
        connection.executemany("insert into t values (?, ?, ?, ?)", rows)
    return SQLiteTable(path, "t", SCHEMA)


CONDITIONS = [
    "id = 7", "id > 390 and id <= 395", "id >= -5 and id < 3", "x < 0.75", "x = 2.0", "x >= 1e300", "x is null",
    "x is not null and id < 20", "name = 'a'", "name = 'A'", "name = 'it''s'", "name = 'q\"'", "name = ''",
    "name = 'ä'", "name is null and x > 0.1", '"a and b" = 2 and id > 100', "id = 9223372036854775807",
    "id in (3, 5)", "name > 'a'", "id = 3 or id = 4", "name = 'a' and (id = 1 or id = 9)", "not id = 3",
    "id <> 3 and id < 6",
]  # fmt: skip


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_filter_gives_the_rows_that_it_gives_on_the_whole_table(table: SQLiteTable, condition: str) -> None:
    with closing(duckdb.connect()) as connection:
        connection.register("t", table)
        connection.register("whole", table.scanner().to_table())
        assert (
            connection.sql(f"select * from t where {condition} order by id").fetchall()
            == connection.sql(f"select * from whole where {condition} order by id").fetchall()
        )


@pytest.mark.parametrize(
    ("row_filter", "where"),
    [
        (pc.field("id") == 5, '"id" == 5'),
        ((pc.field("id") > 5) & (pc.field("id") <= 9), '"id" > 5 and "id" <= 9'),
        (pc.field("x") < 1.5, '"x" < 1.5'),
        (pc.field("id").is_valid() & pc.field("x").is_null(), '"id" is not null and "x" is null'),
        (pc.field("name") == "it's", "\"name\" collate binary in ('it''s', x'69742773')"),
        (pc.field("a and b") == 1, '"a and b" == 1'),
        (pc.field("name") > "a", ""),
        ((pc.field("id") == 5) | (pc.field("id") == 6), ""),
        (pc.field("id") == 5.5, ""),
        (pc.field("nothing") == 5, ""),
        (None, ""),
    ],
)  # fmt: skip
def test_what_sqlite_understands_is_handed_on_and_nothing_else(row_filter: pc.Expression | None, where: str) -> None:
    assert where_of(row_filter, SCHEMA) == where


def test_a_text_that_looks_like_a_filter_is_a_text(table: SQLiteTable) -> None:
    row_filter = pc.field("name") == 'a") and (id == 7) and (name == "a'
    assert '"id"' not in where_of(row_filter, SCHEMA)
    assert table.scanner(None, row_filter).to_table().num_rows == 0


def test_only_the_rows_of_a_filter_are_read(table: SQLiteTable) -> None:
    """A value that does not fit its column ends a scan that comes to it, and only such a scan."""
    with closing(sqlite3.connect(table._path)) as connection, connection:
        connection.execute("insert into t values (1000, 'z', 'no number', 0)")
    try:
        assert table.scanner(["x"], pc.field("id") == 1).to_table().num_rows == 1
        with pytest.raises(Exception, match="declared types"):
            table.scanner(["x"], pc.field("id") >= 0).to_table()
    finally:
        with closing(sqlite3.connect(table._path)) as connection, connection:
            connection.execute("delete from t where id = 1000")


@settings(max_examples=100, deadline=None)
@given(value=st.text(max_size=12))
def test_any_text_is_found_as_it_is(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    path = tmp_path_factory.getbasetemp() / "texts.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table if not exists t (name text)")
        connection.execute("delete from t")
        connection.executemany("insert into t values (?)", [(value,), ("other " + value,), (value.swapcase() + "!",)])
    scan = SQLiteTable(path, "t", pa.schema([("name", pa.string())]))
    if "\0" not in value:
        assert scan.scanner(None, pc.field("name") == value).to_table().to_pylist() == [{"name": value}]
