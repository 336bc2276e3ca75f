"""Live databases to measure with: rows that do not compress away, of a wanted size."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

import duckdb

__all__ = ["BUILDERS", "build_duckdb", "build_sqlite"]

_DUCKDB_ROW_BYTES = 34
_SQLITE_ROW_BYTES = 76


def build_duckdb(path: Path, size: int) -> Path:
    """A DuckDB file of about `size` bytes, checkpointed and closed."""
    with duckdb.connect(str(path)) as con:
        con.execute(
            "create table events as "
            "select range as id, hash(range) as key, random() as amount, md5(range::text) as token "
            f"from range({size // _DUCKDB_ROW_BYTES})"
        )
        con.execute("checkpoint")
    return path


def build_sqlite(path: Path, size: int) -> Path:
    """A SQLite file in WAL mode of about `size` bytes."""
    con = sqlite3.connect(path)
    con.execute("pragma journal_mode = wal")
    with con:
        con.execute("create table events (id integer primary key, key integer, amount real, token blob)")
        con.execute(
            "insert into events with recursive n(i) as (select 1 union all select i + 1 from n where i < ?) "
            "select i, random(), random() / 1e9, randomblob(48) from n",
            (size // _SQLITE_ROW_BYTES,),
        )
    con.close()
    return path


BUILDERS: Mapping[str, Callable[[Path, int], Path]] = {"duckdb": build_duckdb, "sqlite": build_sqlite}
"""For each engine what builds a live database of a size."""
