from __future__ import annotations

import sqlite3
from contextlib import closing

import duckdb
import pytest

from snapshot_assets.engines.sql import quoted


@pytest.mark.parametrize("name", ["orders", "select", "a b", 'a"b', '"', "Ä.ß", "x'--"])
def test_any_name_means_itself_to_both_engines(name: str) -> None:
    with closing(duckdb.connect()) as duck, closing(sqlite3.connect(":memory:")) as lite:
        for connection in (duck, lite):
            connection.execute(f"create table {quoted(name)} (a int)")
        assert duck.execute("select table_name from duckdb_tables()").fetchall() == [(name,)]
        assert lite.execute("select name from sqlite_master").fetchall() == [(name,)]
