"""Taking one dataset's rows out of a metastore."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from snapshot_assets.engines.cayenne.metastore import (
    TABLES,
    MetastoreTable,
    check_metastore,
    metastore_error,
    open_metastore,
    select,
    stored_path,
    table_key,
)
from snapshot_assets.engines.cayenne.slice_document import COLD_TIER, Row, Slice, slice_bytes
from snapshot_assets.engines.cayenne.slice_rules import checked_slice, child_names
from snapshot_assets.errors import (
    DocumentDamaged,
    LiveDatabaseMissing,
    PathOutsideAnchor,
    UnsupportedLiveDatabase,
)
from snapshot_assets.paths import real_path

__all__ = ["dataset_tables", "export_slice", "opened"]


def export_slice(
    metastore: Path | sqlite3.Connection, name: str, anchor: Path, *, exported_at_ms: int | None = None
) -> dict[str, Any]:
    """The slice document of a dataset: all its rows, with paths relative to the anchor, as of one moment.

    Rows stand in a fixed order, so the same rows give the same document but for its time. `slice_bytes` writes it.

    Args:
        metastore: the file, or a connection. If that is in a transaction already, the slice is what it sees.
        name: the dataset.
        anchor: the data folder.
        exported_at_ms: the time to write into the document; now, when it is left out.

    Raises:
        LiveDatabaseMissing: there is no such metastore, or no such dataset in it.
        LiveDatabaseBusy: another program kept the metastore locked.
        PathOutsideAnchor: a file of the dataset lies outside the anchor, or under a name that is not portable.
        UnsupportedLiveDatabase: the file is no metastore, or the dataset's rows contradict each other.
    """
    now = time.time_ns() // 1_000_000 if exported_at_ms is None else exported_at_ms
    anchor = real_path(anchor)
    with opened(metastore) as connection, _one_moment(connection):
        tables = dataset_tables(connection, name, anchor)
        if not tables:
            raise LiveDatabaseMissing(f"the metastore has no dataset {name!r}", dataset=name)
        ids = [str(row[0]) for row in tables]
        _refuse_cold_tier(connection, name, ids)
        rows = {
            table.name: tuple(_relative(row, table, anchor, name) for row in _rows_of(connection, table, ids))
            for table in TABLES
        }
    try:
        document = checked_slice(Slice(name, now, rows)).to_json()
        slice_bytes(document)
    except DocumentDamaged as error:
        raise UnsupportedLiveDatabase(
            f"the rows of {name!r} in the metastore can not be exported: {error.message}",
            hint="Look at the dataset with the program that wrote it.",
            dataset=name,
        ) from error
    return document


@contextmanager
def opened(metastore: Path | sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A checked connection: the given one, or one that is closed afterwards. SQLite's errors become typed ones."""
    if not isinstance(metastore, sqlite3.Connection):
        with closing(open_metastore(metastore)) as connection, opened(connection):
            yield connection
        return
    try:
        check_metastore(metastore)
        yield metastore
    except sqlite3.Error as error:
        raise metastore_error(error, metastore) from error


def dataset_tables(connection: sqlite3.Connection, name: str, anchor: Path) -> list[Row]:
    """The rows of `cayenne_table` that are the dataset: its own table, and the tables of its partitions.

    A table that merely has the name of a partition's is not one: it has another path.
    """
    by_name = "SELECT * FROM cayenne_table WHERE table_name = ?"
    found = {row[0]: row for row in select(connection, by_name, name)}
    owners = list(found.values())
    for owner in owners:  # grows while it is read, by the children of children
        partitions = select(connection, "SELECT * FROM cayenne_partition WHERE table_id = ?", owner[0])
        for _, _, _, values, key, path, is_relative, *_ in partitions:
            for child in child_names(name, str(owner[1]), str(key), values):
                for row in select(connection, by_name, child):
                    if row[0] not in found and _stored(anchor, row[2], row[3]) == _stored(anchor, path, is_relative):
                        found[row[0]] = row
                        owners.append(row)
    return owners


def _stored(anchor: Path, path: object, is_relative: object) -> str:
    return os.path.normpath(stored_path(anchor, str(path), is_relative))


@contextmanager
def _one_moment(connection: sqlite3.Connection) -> Iterator[None]:
    """All reads see the metastore as it was at the first one."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.rollback()


def _rows_of(connection: sqlite3.Connection, table: MetastoreTable, ids: list[str]) -> Iterator[Row]:
    for table_id in ids:
        key = table_key(table_id) if table.blob_keyed else table_id
        yield from select(connection, f"SELECT * FROM {table.name} WHERE table_id = ?", key)


def _refuse_cold_tier(connection: sqlite3.Connection, name: str, ids: list[str]) -> None:
    if not select(connection, "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", COLD_TIER):
        return
    for table_id in ids:
        if select(connection, f"SELECT 1 FROM {COLD_TIER} WHERE table_id = ? LIMIT 1", table_id):
            raise PathOutsideAnchor(
                f"{name!r} has files in a cold tier, which lie outside the data folder",
                hint="Move the dataset's data out of the cold tier before it is published.",
                dataset=name,
            )


def _relative(row: Row, table: MetastoreTable, anchor: Path, name: str) -> Row:
    """The row with its path relative to the anchor."""
    for column, value in zip(table.columns, row, strict=True):
        if isinstance(value, float):
            raise UnsupportedLiveDatabase(
                f"{table.name}.{column} holds {value!r}, and a slice has no form for real numbers", dataset=name
            )
    if table.path_column is None or table.flag_column is None:
        return row
    path = real_path(stored_path(anchor, str(row[table.path_column]), row[table.flag_column]))
    if not path.is_relative_to(anchor):
        raise PathOutsideAnchor(
            f"{table.name} of {name!r} names {path}, which lies outside {anchor}, so no reader would have it",
            dataset=name,
        )
    values = list(row)
    values[table.path_column], values[table.flag_column] = path.relative_to(anchor).as_posix(), True
    return tuple(values)
