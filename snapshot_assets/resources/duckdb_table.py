"""Frames in and out of a DuckDB table."""

# ruff: noqa: D102 - the protocols say it once

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Final

import duckdb
import pyarrow as pa

from snapshot_assets.engines.sql import quoted
from snapshot_assets.errors import CaptureError, ConfigurationError, ReaderError
from snapshot_assets.resources.partitions import Condition, PartitionRows, Values, Windows, check_all_belong

if TYPE_CHECKING:
    from snapshot_assets.resources.live_tables import TableName

__all__ = ["DuckDBLiveTable", "DuckDBSnapshotTable"]

_ROWS: Final = quoted("snapshot-assets rows")
"""What every statement finds before any table of the name, so it is one that nobody gives to a table."""

_SAME_ROWS: Final = """
    select not exists (
        select 1 from (select "a row" as x from (select * from {old}) "a row")
        positional join (select "a row" as y from {new} "a row")
        where x is distinct from y
    )
"""


class _Table:
    def __init__(self, connection: duckdb.DuckDBPyConnection, name: TableName) -> None:
        self._connection = connection
        self._name = name
        # The Arrow type of a timestamp with time zone names the session's zone: one zone, one type everywhere.
        connection.execute("set timezone = 'UTC'")

    @property
    def _sql(self) -> str:
        [(database,)] = self._connection.execute("select current_database()").fetchall()
        return ".".join(map(quoted, (database, self._name.schema or "main", self._name.table)))

    def _where(self, part: PartitionRows | None, table: str) -> str:
        if part is None:
            return ""
        described = self._connection.execute(f"select column_name from (describe {table})").fetchall()
        columns = {column for (column,) in described}

        def condition(one: Condition) -> str:
            expr = quoted(one.expr) if one.expr in columns else one.expr
            if isinstance(one, Values):
                return f"{expr} in ({', '.join(map(_text, one.values))})"
            return self._in_windows(one, expr, table)

        return f"where {part.where(condition)}"

    def _in_windows(self, one: Windows, expr: str, table: str) -> str:
        described = f"select column_type from (describe select {expr} from {table})"
        [(kind,)] = self._connection.execute(described).fetchall()
        has_zone = kind == "TIMESTAMP WITH TIME ZONE"

        def moment(when: datetime) -> str:
            return f"timestamptz '{when.isoformat()}'" if has_zone else f"timestamp '{when.replace(tzinfo=None)}'"

        when = f"cast({expr} as timestamp)" if kind == "VARCHAR" else expr
        return " or ".join(f"({when} >= {moment(start)} and {when} < {moment(end)})" for start, end in one.windows)


class DuckDBLiveTable(_Table):
    """A table of a live DuckDB file."""

    def columns(self) -> pa.Schema | None:
        found = self._connection.execute(
            "select 1 from duckdb_tables() where database_name = current_database() and schema_name = ? "
            "and table_name = ?",
            [self._name.schema or "main", self._name.table],
        ).fetchall()
        return self._connection.sql(f"select * from {self._sql} limit 0").to_arrow_table().schema if found else None

    def kept(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema([self._kept(field) for field in schema])

    def _kept(self, field: pa.Field) -> pa.Field:
        if pa.types.is_null(field.type):
            raise ConfigurationError(
                f"column {field.name!r} has no type, because all of its values are missing",
                hint="Give the column a type.",
            )
        empty = pa.table({field.name: pa.chunked_array([], field.type)})
        try:
            with self._registered(empty):
                found = self._connection.sql(f"select * from {_ROWS}").to_arrow_table().schema.field(0)
        except (duckdb.Error, pa.ArrowException) as error:
            raise ConfigurationError(
                f"DuckDB can not keep column {field.name!r} of type {field.type}: {error}",
                hint="Cast the column to a type that DuckDB has.",
            ) from error
        return found

    def write(self, rows: pa.Table, part: PartitionRows | None) -> None:
        with self._registered(rows):
            try:
                self._connection.begin()
                try:
                    if not self._holds(rows, part):
                        self._put(rows, part)
                        self._check_all_belong(rows, part)
                except BaseException:
                    self._connection.rollback()
                    raise
                self._connection.commit()
            except duckdb.Error as error:
                raise CaptureError(
                    f"DuckDB refuses the rows of {self._name.in_sql}: {error}",
                    hint="Correct the rows, the table's constraints, or the asset's partition_expr.",
                    dataset=self._name.dataset,
                ) from error

    def _holds(self, rows: pa.Table, part: PartitionRows | None) -> bool:
        """Whether the table has just these rows in this order: writing them again would only change its file."""
        if self.columns() != rows.schema:
            return False
        old = f"{self._sql} {self._where(part, self._sql)}"
        [(count,)] = self._connection.execute(f"select count(*) from {old}").fetchall()
        if count != rows.num_rows:
            return False
        [(same,)] = self._connection.execute(_SAME_ROWS.format(old=old, new=_ROWS)).fetchall()
        return bool(same)

    def _put(self, rows: pa.Table, part: PartitionRows | None) -> None:
        before = self.columns()
        table, execute = self._sql, self._connection.execute
        if before is None or (part is None and before != rows.schema):
            execute(f"create schema if not exists {quoted(self._name.schema or 'main')}")
            execute(f"create or replace table {table} as select * from {_ROWS}")
            return
        types = dict(execute(f"select column_name, column_type from (describe select * from {_ROWS})").fetchall())
        for name in rows.schema.names:
            if name not in before.names:
                execute(f"alter table {table} add column {quoted(name)} {types[name]}")
        execute(f"delete from {table} {self._where(part, table)}")
        execute(f"insert into {table} by name select * from {_ROWS}")

    def _check_all_belong(self, rows: pa.Table, part: PartitionRows | None) -> None:
        if part is None:
            return
        where = self._where(part, self._sql)
        [(count,)] = self._connection.execute(f"select count(*) from {self._sql} {where}").fetchall()
        check_all_belong(rows.num_rows - count, part, self._name.in_sql)

    @contextmanager
    def _registered(self, rows: pa.Table) -> Iterator[None]:
        name = _ROWS.strip('"')
        self._connection.register(name, rows)
        try:
            yield
        finally:
            self._connection.unregister(name)


class DuckDBSnapshotTable(_Table):
    """A table of a DuckDB snapshot."""

    def relation(self, columns: list[str] | None, part: PartitionRows | None) -> duckdb.DuckDBPyRelation:
        """The rows as a relation of the lease's connection."""
        chosen = "*" if columns is None else ", ".join(map(quoted, columns))
        try:
            return self._connection.sql(f"select {chosen} from {self._sql} {self._where(part, self._sql)}")
        except duckdb.Error as error:
            raise ReaderError(
                f"{self._name.in_sql} can not be read: {error}",
                hint="Correct the columns of the input, or the partition_expr of the asset.",
                dataset=self._name.dataset,
            ) from error

    def read(self, columns: list[str] | None, part: PartitionRows | None) -> pa.RecordBatchReader:
        return self.relation(columns, part).to_arrow_reader()


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
