"""Putting one dataset's rows into a metastore, beside those of others."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from snapshot_assets.engines.cayenne.metastore import (
    TABLES,
    MetastoreTable,
    select,
    stored_path,
    table_key,
    transaction,
)
from snapshot_assets.engines.cayenne.slice_document import Row, Slice
from snapshot_assets.engines.cayenne.slice_export import dataset_tables, opened
from snapshot_assets.engines.cayenne.slice_rules import parse_slice
from snapshot_assets.errors import ConfigurationError, DocumentDamaged
from snapshot_assets.paths import real_path

__all__ = ["import_slice"]

_TAKEN = {sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_UNIQUE}


def import_slice(
    metastore: Path | sqlite3.Connection,
    document: bytes | Mapping[str, Any],
    anchor: Path,
    *,
    name: str | None = None,
) -> None:
    """Make a dataset in a metastore what a slice says it is, in one transaction.

    What the metastore had of the dataset is replaced; rows of other datasets stay as they are, and may be read and
    written meanwhile. After any error the metastore is as it was.

    Args:
        metastore: the file, or a connection that is not in a transaction.
        document: the slice, in JSON or as the object that JSON stands for.
        anchor: the data folder, where the dataset's files lie or will lie.
        name: the dataset that is expected; any, when it is left out.

    Raises:
        UnsupportedFormatVersion: the slice is of a version that this package does not read.
        EngineMismatch: the slice is of another engine.
        DocumentDamaged: the slice is malformed, not whole, or names another dataset's tables.
        PathOutsideAnchor: a path in the slice is absolute, climbs, or is not portable.
        ConfigurationError: the slice is of another dataset, or another dataset of the metastore has an id, a name or a
            folder that the slice needs.
        LiveDatabaseMissing: there is no such metastore.
        LiveDatabaseBusy: another program kept the metastore locked.
        UnsupportedLiveDatabase: the file is no metastore, or has other columns.
        ReadOnlyDataset: the connection is read-only.
    """
    content = parse_slice(document)
    if name is not None and content.dataset_name != name:
        raise ConfigurationError(f"the slice is of the dataset {content.dataset_name!r}, not of {name!r}", dataset=name)
    anchor = real_path(anchor)
    with opened(metastore) as connection, transaction(connection):
        stale = dataset_tables(connection, content.dataset_name, anchor)
        new = content.tables["cayenne_table"]
        others = _others(connection, stale)
        _refuse_clashes(content, others, anchor)
        _remove(connection, [str(row[0]) for row in (*stale, *new)])
        for table in TABLES:
            rows = (_absolute(row, table, anchor) for row in content.tables[table.name])
            _insert(connection, table, rows, content.dataset_name)


def _others(connection: sqlite3.Connection, mine: Iterable[Row]) -> list[Row]:
    ids = {row[0] for row in mine}
    rows = select(connection, "SELECT table_id, table_name, path, path_is_relative FROM cayenne_table")
    return [row for row in rows if row[0] not in ids]


def _refuse_clashes(content: Slice, others: list[Row], anchor: Path) -> None:
    """No other dataset has an id, a name or a folder of the slice: its rows and files would be taken for this one's."""
    tables = content.tables["cayenne_table"]
    keys = {table_key(str(row[0])) for row in tables}
    names = {row[1] for row in tables}
    folders = {anchor / str(row[2]) for row in tables}
    above = {parent for folder in folders for parent in folder.parents}
    for table_id, table_name, path, is_relative in others:
        folder = stored_path(anchor, str(path), is_relative)
        if table_name in names:
            clash = "which the slice has too, and it is not this dataset's"
        elif table_key(str(table_id)) in keys:
            clash = f"with the id {table_id!r}, which the slice has too"
        elif folder in above or not folders.isdisjoint([folder, *folder.parents]):
            clash = f"in {folder}, which overlaps a folder of the slice"
        else:
            continue
        raise ConfigurationError(
            f"{content.dataset_name!r} can not be imported: the metastore has a table {table_name!r} {clash}",
            hint="Import it into another metastore, with a data folder of its own.",
            dataset=content.dataset_name,
        )


def _remove(connection: sqlite3.Connection, ids: list[str]) -> None:
    """Clear every table by hand: blob-keyed ones have no cascade, and a caller's connection may not enforce any."""
    for table in reversed(TABLES):
        owners = [(table_key(one) if table.blob_keyed else one,) for one in ids]
        connection.executemany(f"DELETE FROM {table.name} WHERE table_id = ?", owners)


def _absolute(row: Row, table: MetastoreTable, anchor: Path) -> Row:
    """The row with its path as the metastore stores it."""
    if table.path_column is None or table.flag_column is None:
        return row
    values = list(row)
    values[table.path_column], values[table.flag_column] = str(anchor / str(row[table.path_column])), 0
    return tuple(values)


def _insert(connection: sqlite3.Connection, table: MetastoreTable, rows: Iterable[Row], dataset: str) -> None:
    try:
        marks = ", ".join("?" * len(table.columns))
        connection.executemany(f"INSERT INTO {table.name} VALUES ({marks})", rows)
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode in _TAKEN:
            raise ConfigurationError(
                f"{dataset!r} can not be imported: a row of {table.name} has a key that another row has: {error}",
                hint="Import it into a metastore of its own.",
                dataset=dataset,
            ) from error
        raise DocumentDamaged(f"the slice of {dataset!r} has a row that {table.name} refuses: {error}") from error
