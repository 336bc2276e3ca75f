"""What the metastore says of one table: its schema, its partitions, their files and what is deleted in them."""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from snapshot_assets.engines.cayenne.deletions import FORMAT
from snapshot_assets.engines.cayenne.metastore import (
    child_table_name,
    legacy_child_table_name,
    metastore_error,
    stored_path,
)
from snapshot_assets.errors import DocumentDamaged, PathOutsideAnchor, UnsupportedLiveDatabase
from snapshot_assets.model.schema import TableSchema

__all__ = ["DataFile", "DeleteFile", "Part", "TableState", "load_state", "reading", "schema_text"]

_INLINED: Final = ("cayenne_inlined_data", "cayenne_inlined_delete")


@dataclass(frozen=True, slots=True)
class DeleteFile:
    """The rows of one data file that are gone."""

    delete_file_id: str
    path: Path
    delete_count: int
    size: int
    sequence: int


@dataclass(frozen=True, slots=True)
class DataFile:
    """One immutable file of rows. `file_path` is relative to the folder of its part."""

    snapshot_id: str
    file_path: str
    path: Path
    row_count: int
    size: int
    first_sequence: int
    last_sequence: int
    digest: str | None
    deletes: DeleteFile | None = None

    @property
    def live_rows(self) -> int:
        """The rows that are not deleted."""
        return self.row_count - (self.deletes.delete_count if self.deletes else 0)


@dataclass(frozen=True, slots=True)
class Part:
    """A table of the metastore that holds rows: the table itself, or one partition of it.

    `key` and `values` are those of the partition; the table itself has none.
    """

    table_id: str
    folder: Path
    snapshot_id: str
    files: tuple[DataFile, ...] = ()
    key: str | None = None
    values: tuple[Any, ...] = ()

    @property
    def live_rows(self) -> int:
        """The rows that are not deleted."""
        return sum(file.live_rows for file in self.files)


@dataclass(frozen=True, slots=True)
class TableState:
    """One table at one moment. A table without partitions is its own only part."""

    table_id: str
    name: str
    folder: Path
    schema: pa.Schema
    primary_key: tuple[str, ...]
    partition_by: tuple[str, ...]
    snapshot_id: str
    sequence: int
    parts: tuple[Part, ...]

    @property
    def live_rows(self) -> int:
        """The rows that are not deleted."""
        return sum(part.live_rows for part in self.parts)

    def guarantee(self, part: Part) -> pc.Expression:
        """What is true of every row of a part."""
        found = pc.scalar(True)
        for name, value in zip(self.partition_by, part.values, strict=True):
            field = pc.field(name)
            same = field.is_null() if value is None else field == pa.scalar(value, self.schema.field(name).type)
            found = found & same
        return found


@contextmanager
def reading(connection: sqlite3.Connection) -> Iterator[None]:
    """See one state of the metastore from beginning to end; nothing more, inside a transaction.

    Raises:
        LiveDatabaseBusy: another program kept the metastore locked.
        UnsupportedLiveDatabase: it is damaged.
    """
    outermost = not connection.in_transaction
    try:
        if outermost:
            connection.execute("BEGIN")
        yield
    except sqlite3.Error as error:
        raise metastore_error(error, connection) from error
    finally:
        if outermost:
            connection.rollback()


def load_state(connection: sqlite3.Connection, name: str, data: Path) -> TableState | None:
    """The table of a name, or none.

    Raises:
        UnsupportedLiveDatabase: it is there, and has what this engine can not read.
        PathOutsideAnchor: its files lie outside the data folder.
        LiveDatabaseBusy: another program kept the metastore locked.
    """
    with reading(connection):
        row = connection.execute(
            "SELECT table_id, path, path_is_relative, schema_json, primary_key_json, current_snapshot_id,"
            " partition_column, current_sequence_number FROM cayenne_table WHERE table_name = ?",
            (name,),
        ).fetchone()
        if row is None:
            return None
        table_id, path, is_relative, schema_json, key_json, snapshot_id, partition_column, sequence = row
        folder = _within(data, path, is_relative)
        schema = _schema(schema_json, name)
        primary_key, partition_by = _names(key_json), _names(partition_column)
        for column in (*primary_key, *partition_by):
            if column not in schema.names:
                raise UnsupportedLiveDatabase(f"the metastore names a column {column!r} that {name!r} does not have")
        if partition_by:
            types = [schema.field(column).type for column in partition_by]
            parts = tuple(_partitions(connection, table_id, name, types, data))
        else:
            parts = (Part(table_id, folder, snapshot_id, _files(connection, table_id, snapshot_id, folder, data)),)
    return TableState(table_id, name, folder, schema, primary_key, partition_by, snapshot_id, sequence, parts)


def _partitions(
    connection: sqlite3.Connection, table_id: str, name: str, types: Sequence[pa.DataType], data: Path
) -> Iterator[Part]:
    rows = connection.execute(
        "SELECT partition_key, partition_values_json, path, path_is_relative FROM cayenne_partition"
        " WHERE table_id = ? ORDER BY partition_key",
        (table_id,),
    ).fetchall()
    for key, values_json, path, is_relative in rows:
        texts = _list(values_json)
        children = [child_table_name(name, key), legacy_child_table_name(name, [str(text) for text in texts])]
        found = connection.execute(
            "SELECT table_id, current_snapshot_id FROM cayenne_table"
            " WHERE table_name IN (?, ?) AND path = ? AND path_is_relative = ?",
            (*children, path, is_relative),
        ).fetchone()
        if found is None or len(texts) != len(types):
            raise UnsupportedLiveDatabase(f"the metastore has no whole partition {key!r} of {name!r}")
        values = tuple(_partition_value(text, type_) for text, type_ in zip(texts, types, strict=True))
        folder = _within(data, path, is_relative)
        child_id, snapshot_id = found
        files = _files(connection, child_id, snapshot_id, folder, data)
        yield Part(child_id, folder, snapshot_id, files, key, values)


def _files(
    connection: sqlite3.Connection, table_id: str, snapshot_id: str, folder: Path, data: Path
) -> tuple[DataFile, ...]:
    for table in _INLINED:
        if connection.execute(f"SELECT 1 FROM {table} WHERE table_id = ? LIMIT 1", (table_id,)).fetchone():
            raise UnsupportedLiveDatabase(
                f"rows of the table in {folder} lie in the metastore itself ({table}), where this engine does not read",
                hint="Let the system that wrote them move them to files first.",
            )
    deletes = {}
    for file_id, path, is_relative, format_, count, size, source, sequence in connection.execute(
        "SELECT delete_file_id, path, path_is_relative, format, delete_count, file_size_bytes, source_data_file_path,"
        " sequence_number FROM cayenne_delete_file WHERE table_id = ?",
        (table_id,),
    ):
        if format_ != FORMAT or source in deletes:
            raise UnsupportedLiveDatabase(f"the delete file {path} is not of the format {FORMAT!r}")
        deletes[source] = DeleteFile(file_id, _within(data, path, is_relative), _count(count), _count(size), sequence)
    rows = connection.execute(
        "SELECT snapshot_id, file_path, row_count, file_size_bytes, min_sequence, max_sequence, digest"
        " FROM cayenne_snapshot_file WHERE table_id = ? AND snapshot_id = ? ORDER BY min_sequence, file_path",
        (table_id, snapshot_id),
    )
    return tuple(
        DataFile(
            snapshot, file, folder / file, _count(count), _count(size), first or 0, last or 0, digest, deletes.get(file)
        )
        for snapshot, file, count, size, first, last, digest in rows
    )


def _within(data: Path, path: str, is_relative: object) -> Path:
    found = stored_path(data, path, is_relative)
    if not found.is_relative_to(data) or ".." in found.parts:
        raise PathOutsideAnchor(
            f"the metastore names {found}, which lies outside {data}",
            hint="If the root was moved, move it back; export the slice there, and import it here.",
        )
    return found


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise UnsupportedLiveDatabase(f"the metastore holds {value!r} where a number of rows or bytes should be")
    return value


def _partition_value(value: Any, data_type: pa.DataType) -> Any:
    """A partition's value by what JSON has of it.

    Raises:
        UnsupportedLiveDatabase: no column of the type holds such a value.
    """
    try:
        plain = datetime.date.fromisoformat(value) if value is not None and pa.types.is_date32(data_type) else value
        return pa.scalar(plain, data_type).as_py()
    except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        raise UnsupportedLiveDatabase(f"the metastore holds {value!r} as a partition's {data_type}") from error


def schema_text(schema: pa.Schema) -> str:
    """What `schema_json` says of a schema: the fields for people, and Arrow's own form, which is exact."""
    return json.dumps(TableSchema.from_arrow(schema).to_json(), separators=(",", ":"), ensure_ascii=False)


def _schema(text: str | None, name: str) -> pa.Schema:
    where = f"the schema of {name!r}"
    try:
        arrow = json.loads(text or "")["arrow"]
        return TableSchema.from_base64(arrow, where).to_arrow()
    except (ValueError, TypeError, KeyError, DocumentDamaged) as error:
        raise UnsupportedLiveDatabase(
            f"{where} is not in the metastore in the form that this engine writes",
            hint="Only tables that this engine made can be read and published.",
        ) from error


def _names(text: str | None) -> tuple[str, ...]:
    """A list of columns: JSON, or one plain name."""
    return (text,) if text and not text.startswith("[") else tuple(_list(text))


def _list(text: str | None) -> list[Any]:
    try:
        found = json.loads(text or "[]")
    except ValueError as error:
        raise UnsupportedLiveDatabase(f"the metastore holds {text!r}, which is not JSON") from error
    if not isinstance(found, list):
        raise UnsupportedLiveDatabase(f"the metastore holds {text!r}, which is not a list")
    return found
