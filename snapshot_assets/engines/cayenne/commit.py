"""Changing what the metastore says of one table, in one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from snapshot_assets.engines.cayenne.deletions import FORMAT
from snapshot_assets.engines.cayenne.metastore import TABLES, child_table_name, table_key, transaction
from snapshot_assets.engines.cayenne.state import DataFile, Part, TableState, schema_text
from snapshot_assets.errors import LiveDatabaseBusy
from snapshot_assets.ids import new_ulid

__all__ = ["commit_state"]


def commit_state(connection: sqlite3.Connection, before: TableState | None, after: TableState) -> None:
    """Make `after` the table's state, if `before` still is.

    Raises:
        LiveDatabaseBusy: somebody else changed the table meanwhile, or kept the metastore locked.
    """
    with transaction(connection):
        _check_current(connection, before, after.name)
        if before is not None:
            kept = {part.table_id for part in after.parts} | {after.table_id}
            for part in before.parts:
                if part.table_id not in kept:
                    _remove_part(connection, before.table_id, part)
        _write_table(connection, after, after.table_id, after.name, str(after.folder), after.snapshot_id)
        known = {part.table_id: part for part in before.parts} if before else {}
        for part in after.parts:
            old = known.get(part.table_id)
            if part.key is not None and part != old:
                _write_table(
                    connection,
                    after,
                    part.table_id,
                    child_table_name(after.name, part.key),
                    str(part.folder),
                    part.snapshot_id,
                )
                _write_partition(connection, after, part, is_new=old is None)
            if old is None or part != old:
                _write_files(connection, part, old)
            _write_sequence(connection, part.table_id, part.snapshot_id, after.sequence)


def _check_current(connection: sqlite3.Connection, before: TableState | None, name: str) -> None:
    row = connection.execute(
        "SELECT table_id, current_snapshot_id, current_sequence_number FROM cayenne_table WHERE table_name = ?", (name,)
    ).fetchone()
    expected = None if before is None else (before.table_id, before.snapshot_id, before.sequence)
    if row != expected:
        raise LiveDatabaseBusy(
            f"the table {name!r} was changed by another program meanwhile; nothing was changed here",
            hint="Try again.",
            dataset=name,
        )


def _write_table(
    connection: sqlite3.Connection, state: TableState, table_id: str, name: str, path: str, snapshot_id: str
) -> None:
    own = table_id == state.table_id
    _upsert(
        connection,
        "cayenne_table",
        "table_id",
        {
            "table_id": table_id,
            "table_name": name,
            "path": path,
            "path_is_relative": 0,
            "schema_json": schema_text(state.schema),
            "primary_key_json": json.dumps(state.primary_key),
            "current_snapshot_id": snapshot_id,
            "partition_column": json.dumps(state.partition_by) if own and state.partition_by else None,
            "current_sequence_number": state.sequence,
        },
    )


def _upsert(connection: sqlite3.Connection, table: str, key: str, row: dict[str, Any]) -> None:
    """Write a row; what it does not name stays as it is, if the row is there."""
    columns = ", ".join(row)
    values = ", ".join(f":{column}" for column in row)
    changes = ", ".join(f"{column} = excluded.{column}" for column in row if column != key)
    connection.execute(
        f"INSERT INTO {table} ({columns}) VALUES ({values}) ON CONFLICT ({key}) DO UPDATE SET {changes}", row
    )


def _write_partition(connection: sqlite3.Connection, state: TableState, part: Part, *, is_new: bool) -> None:
    size = sum(file.size for file in part.files)
    if is_new:
        connection.execute(
            "INSERT INTO cayenne_partition (partition_id, table_id, partition_columns_json, partition_values_json,"
            " partition_key, path, path_is_relative, record_count, file_size_bytes) VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?)",
            (
                new_ulid(),
                state.table_id,
                json.dumps(state.partition_by, ensure_ascii=False),
                json.dumps(part.values, ensure_ascii=False, default=str),
                part.key,
                str(part.folder),
                part.live_rows,
                size,
            ),
        )
    else:
        connection.execute(
            "UPDATE cayenne_partition SET record_count = ?, file_size_bytes = ?"
            " WHERE table_id = ? AND partition_key = ?",
            (part.live_rows, size, state.table_id, part.key),
        )


def _write_files(connection: sqlite3.Connection, part: Part, old: Part | None) -> None:
    """Write what differs between the files of a part before and after."""
    before = {file.file_path: file for file in old.files} if old else {}
    after = {file.file_path: file for file in part.files}
    for path, file in before.items():
        now = after.get(path)
        if file.deletes and (now is None or now.deletes != file.deletes):
            connection.execute(
                "DELETE FROM cayenne_delete_file WHERE delete_file_id = ?", (file.deletes.delete_file_id,)
            )
        if now is None:
            connection.execute(
                "DELETE FROM cayenne_snapshot_file WHERE table_id = ? AND file_path = ?", (part.table_id, path)
            )
    new = [file for path, file in after.items() if path not in before]
    connection.executemany(
        "INSERT INTO cayenne_snapshot_file (table_id, snapshot_id, file_path, row_count, file_size_bytes,"
        " min_sequence, max_sequence, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                part.table_id,
                file.snapshot_id,
                file.file_path,
                file.row_count,
                file.size,
                file.first_sequence,
                file.last_sequence,
                file.digest,
            )
            for file in new
        ),
    )
    connection.executemany(
        "INSERT INTO cayenne_delete_file (delete_file_id, table_id, path, path_is_relative, format, delete_count,"
        " file_size_bytes, source_data_file_path, sequence_number) VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?)",
        _delete_rows(part, before),
    )


def _delete_rows(part: Part, before: dict[str, DataFile]) -> Iterator[tuple[Any, ...]]:
    for file in part.files:
        deletes = file.deletes
        old = before.get(file.file_path)
        if deletes is not None and (old is None or old.deletes != deletes):
            yield (
                deletes.delete_file_id,
                part.table_id,
                str(deletes.path),
                FORMAT,
                deletes.delete_count,
                deletes.size,
                file.file_path,
                deletes.sequence,
            )


def _write_sequence(connection: sqlite3.Connection, table_id: str, snapshot_id: str, sequence: int) -> None:
    connection.execute(
        "DELETE FROM cayenne_snapshot_sequence WHERE table_id = ? AND snapshot_id <> ?", (table_id, snapshot_id)
    )
    connection.execute(
        "INSERT OR REPLACE INTO cayenne_snapshot_sequence VALUES (?, ?, ?)", (table_id, snapshot_id, sequence)
    )


def _remove_part(connection: sqlite3.Connection, owner: str, part: Part) -> None:
    for table in TABLES:
        if table.blob_keyed:
            connection.execute(f"DELETE FROM {table.name} WHERE table_id = ?", (table_key(part.table_id),))
    connection.execute("DELETE FROM cayenne_partition WHERE table_id = ? AND partition_key = ?", (owner, part.key))
    connection.execute("DELETE FROM cayenne_table WHERE table_id = ?", (part.table_id,))
