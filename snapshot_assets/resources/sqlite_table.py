"""Frames in and out of a SQLite or Turso table, whose declared types say what SQLite itself has no type for."""

# ruff: noqa: D102 - the protocols say it once

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from snapshot_assets.engines.sql import quoted
from snapshot_assets.engines.sqlite_types import declared_type
from snapshot_assets.errors import CaptureError, ConfigurationError, ReaderError, SnapshotAssetsError
from snapshot_assets.resources.partitions import Condition, PartitionRows, Values, check_all_belong

if TYPE_CHECKING:
    from snapshot_assets.resources.live_tables import TableName

__all__ = ["SQLiteLiveTable", "SQLiteSnapshotTable"]

_ROWS_AT_ONCE: Final = 16_384

_DECLARED: Final = {
    "INTEGER": pa.int64(),
    "REAL": pa.float64(),
    "TEXT": pa.string(),
    "BLOB": pa.binary(),
    "BOOLEAN": pa.bool_(),
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us"),
    "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", "UTC"),
}
"""What a column of each declared type is read as; dates and times are kept as ISO texts."""

_STORED: Final = {
    pa.bool_(): pa.int64(),
    pa.date32(): pa.string(),
    pa.timestamp("us"): pa.string(),
    pa.timestamp("us", "UTC"): pa.string(),
}
"""As what such values lie in the file; others as themselves."""


class _Table:
    # A `sqlite3.Connection` or a `turso.Connection`, which have this much in common.
    def __init__(self, connection: Any, name: TableName) -> None:
        self._connection = connection
        self._name = name

    def columns(self) -> pa.Schema | None:
        rows = self._connection.execute(f"pragma table_info({quoted(self._name.table)})").fetchall()
        fields = [pa.field(name, _DECLARED.get(kind.upper()) or declared_type(kind)) for _, name, kind, *_ in rows]
        return pa.schema(fields) if fields else None

    def _where(self, part: PartitionRows | None) -> str:
        return "" if part is None else f" where {part.where(self._condition)}"

    def _condition(self, one: Condition) -> str:
        columns = self.columns() or pa.schema([])
        expr, named = one.expr, None
        if expr in columns.names:
            expr, named = quoted(expr), columns.field(expr).type
        if isinstance(one, Values):
            values = ", ".join("'" + value.replace("'", "''") + "'" for value in one.values)
            return f"cast({expr} as text) in ({values})"
        has_zone = named is not None and pa.types.is_timestamp(named) and named.tz is not None
        # SQLite turns a text with an offset into UTC; a column without zone is compared by the clock on the wall.
        bounds = (
            tuple(when.isoformat() if has_zone else str(when.replace(tzinfo=None)) for when in window)
            for window in one.windows
        )
        return " or ".join(
            f"(datetime({expr}) >= datetime('{start}') and datetime({expr}) < datetime('{end}'))"
            for start, end in bounds
        )


class SQLiteLiveTable(_Table):
    """A table of a live SQLite or Turso database."""

    def kept(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema([pa.field(field.name, _kept(field)) for field in schema])

    def write(self, rows: pa.Table, part: PartitionRows | None) -> None:
        if self._holds(rows, part):
            return
        self._connection.execute("begin")
        try:
            self._put(rows, part)
            if part is not None:
                [(count,)] = self._connection.execute(self._select("count(*)", part)).fetchall()
                check_all_belong(rows.num_rows - count, part, self._name.in_sql)
        except BaseException as error:
            self._connection.rollback()
            if isinstance(error, SnapshotAssetsError) or not isinstance(error, Exception):
                raise
            # Turso's errors are no errors of sqlite3.
            raise CaptureError(
                f"{self._name.in_sql} does not take the rows: {error}",
                hint="Correct the rows, the table's constraints, or the asset's partition_expr.",
                dataset=self._name.dataset,
            ) from error
        self._connection.commit()

    def _select(self, what: str, part: PartitionRows | None) -> str:
        return f"select {what} from {quoted(self._name.table)}{self._where(part)}"

    def _holds(self, rows: pa.Table, part: PartitionRows | None) -> bool:
        """Whether the table has just these rows in this order: writing them again would only change its file."""
        if self.columns() != rows.schema:
            return False
        names = ", ".join(map(quoted, rows.schema.names))
        old = self._connection.execute(self._select(names, part))
        return all(before == after for before, after in zip_longest(_fetched(old), _values(rows)))

    def _put(self, rows: pa.Table, part: PartitionRows | None) -> None:
        execute, table = self._connection.execute, quoted(self._name.table)
        before, names = self.columns(), rows.schema.names
        if before is None or (part is None and before != rows.schema):
            execute(f"drop table if exists {table}")
            execute(f"create table {table} ({', '.join(map(_declaration, rows.schema))})")
        else:
            for field in rows.schema:
                if field.name not in before.names:
                    execute(f"alter table {table} add column {_declaration(field)}")
            execute(f"delete from {table}{self._where(part)}")
        marks = ", ".join("?" * len(names))
        insert = f"insert into {table} ({', '.join(map(quoted, names))}) values ({marks})"
        self._connection.executemany(insert, _values(rows))


class SQLiteSnapshotTable(_Table):
    """A table of a SQLite or Turso snapshot."""

    def read(self, columns: list[str] | None, part: PartitionRows | None) -> pa.RecordBatchReader:
        found = self.columns()
        assert found is not None, "the manifest lists the table"
        if columns is not None:
            found = pa.schema([found.field(name) for name in columns])
        names = ", ".join(map(quoted, found.names))
        cursor = self._connection.execute(f"select {names} from {quoted(self._name.table)}{self._where(part)}")
        return pa.RecordBatchReader.from_batches(found, self._batches(cursor, found))

    def _batches(self, cursor: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            arrays = []
            for field, values in zip(schema, zip(*rows, strict=True), strict=True):
                try:
                    arrays.append(pa.array(values, _STORED.get(field.type, field.type)).cast(field.type))
                except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                    raise ReaderError(
                        f"column {field.name!r} of {self._name.in_sql} holds a value that is no {field.type}: {error}",
                        hint="Store values of the declared type, or query the snapshot with SnapshotReaderResource.",
                        dataset=self._name.dataset,
                    ) from error
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _kept(field: pa.Field) -> pa.DataType:
    types, kind = pa.types, field.type
    for is_kind, kept in (
        (types.is_boolean, pa.bool_()),
        (types.is_integer, pa.int64()),
        (types.is_floating, pa.float64()),
        (types.is_date, pa.date32()),
    ):
        if is_kind(kind):
            return kept
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    raise ConfigurationError(
        f"SQLite has nothing to keep column {field.name!r} of type {kind} in",
        hint="Cast the column to numbers, text, bytes, dates or timestamps, or choose the engine duckdb.",
    )


def _declaration(field: pa.Field) -> str:
    declared = next(name for name, kind in _DECLARED.items() if kind == field.type)
    return f"{quoted(field.name)} {declared}"


def _fetched(cursor: Any) -> Iterator[tuple[Any, ...]]:
    while rows := cursor.fetchmany(_ROWS_AT_ONCE):
        yield from map(tuple, rows)


def _values(rows: pa.Table) -> Iterator[tuple[Any, ...]]:
    """The rows as SQLite stores them.

    Raises:
        ConfigurationError: one has a NaN, which SQLite would make a NULL.
    """
    for batch in rows.to_batches(max_chunksize=_ROWS_AT_ONCE):
        columns = []
        for field, column in zip(rows.schema, batch.columns, strict=True):
            if pa.types.is_floating(field.type) and pc.any(pc.is_nan(column)).as_py():
                raise ConfigurationError(
                    f"column {field.name!r} has a NaN, and SQLite can not keep one",
                    hint="Make it a null, or choose the engine duckdb.",
                )
            columns.append(column.cast(_STORED.get(field.type, field.type)).to_pylist())
        yield from zip(*columns, strict=True)
