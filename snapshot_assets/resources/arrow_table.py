"""Frames in and out of the one table of a Lance or Cayenne dataset, as Arrow data."""

# ruff: noqa: D102 - the protocols say it once

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, time
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from snapshot_assets.errors import CaptureError, ConfigurationError, LiveDatabaseMissing
from snapshot_assets.resources.partitions import Condition, PartitionRows, Values, check_all_belong

if TYPE_CHECKING:
    from snapshot_assets.resources.live_tables import TableName

__all__ = ["CayenneRows", "LanceRows", "OneTable"]


class ArrowRows(Protocol):
    """What the two engines have in common."""

    def schema(self) -> pa.Schema | None:
        """The table's columns; none if there is no table."""

    def scan(self, columns: list[str] | None, row_filter: pc.Expression | None) -> pa.RecordBatchReader:
        """The rows, read while the reader is used."""

    def overwrite(self, reader: pa.RecordBatchReader) -> None:
        """Put the rows in place of all there are, at once; they may come from a scan of the same table."""


class CayenneRows:
    """The rows behind a `CayenneTable`."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def schema(self) -> pa.Schema | None:
        return self._table.schema if self._table.exists else None

    def scan(self, columns: list[str] | None, row_filter: pc.Expression | None) -> pa.RecordBatchReader:
        return self._table.scan(columns=columns, filter=row_filter)

    def overwrite(self, reader: pa.RecordBatchReader) -> None:
        self._table.overwrite(reader, allow_schema_change=True)


class LanceRows:
    """The rows behind a `LanceTable` of a live dataset, or the `LanceDataset` of a snapshot."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def schema(self) -> pa.Schema | None:
        try:
            return self._dataset.schema
        except LiveDatabaseMissing:
            return None

    def scan(self, columns: list[str] | None, row_filter: pc.Expression | None) -> pa.RecordBatchReader:
        return self._dataset.scanner(columns=columns, filter=row_filter).to_reader()

    def overwrite(self, reader: pa.RecordBatchReader) -> None:
        self._table.write(reader, mode="overwrite")

    @property
    def _dataset(self) -> Any:
        return getattr(self._table, "dataset", self._table)


class OneTable:
    """The table of a dataset that has just one. A change of it writes all of its rows anew, in one commit."""

    def __init__(self, rows: ArrowRows, name: TableName) -> None:
        self._rows = rows
        self._name = name

    def columns(self) -> pa.Schema | None:
        return self._rows.schema()

    def kept(self, schema: pa.Schema) -> pa.Schema:
        for field in schema:
            if pa.types.is_null(field.type):
                raise ConfigurationError(
                    f"column {field.name!r} has no type, because all of its values are missing",
                    hint="Give the column a type.",
                )
        return schema

    def write(self, rows: pa.Table, part: PartitionRows | None) -> None:
        mine = None if part is None else self._filter(part, rows.schema)
        if part is not None:
            check_all_belong(rows.num_rows - rows.filter(mine).num_rows, part, self._name.in_sql)
        before = self._rows.schema()
        if before is not None and before.equals(rows.schema) and _same(self._rows.scan(None, mine), rows):
            return
        kept = () if before is None or mine is None else self._others(mine, rows.schema)
        batches = chain(kept, rows.to_batches())
        try:
            self._rows.overwrite(pa.RecordBatchReader.from_batches(rows.schema, batches))
        except (OSError, ValueError, RuntimeError, NotImplementedError) as error:  # Lance has no errors of its own
            raise CaptureError(
                f"{self._name.in_sql} does not take the rows: {error}",
                hint="Cast the columns to types that the engine has.",
                dataset=self._name.dataset,
            ) from error

    def _others(self, mine: pc.Expression, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows that stay, under a schema that may have more columns."""
        for batch in self._rows.scan(None, None):
            table = pa.Table.from_batches([batch])
            rest = table.filter(~mine | mine.is_null())
            for name in set(schema.names) - set(rest.column_names):
                rest = rest.append_column(name, pa.nulls(rest.num_rows, schema.field(name).type))
            yield from rest.select(schema.names).cast(schema).to_batches()

    def read(self, columns: list[str] | None, part: PartitionRows | None) -> pa.RecordBatchReader:
        schema = self._rows.schema()
        assert schema is not None, "the manifest lists the table"
        return self._rows.scan(columns, None if part is None else self._filter(part, schema))

    def _filter(self, part: PartitionRows, schema: pa.Schema) -> pc.Expression:
        found = pc.scalar(False)
        for alternative in part.alternatives:
            met = pc.scalar(True)
            for one in alternative:
                met &= self._condition(one, schema)
            found |= met
        return found

    def _condition(self, one: Condition, schema: pa.Schema) -> pc.Expression:
        if one.expr not in schema.names:
            raise ConfigurationError(
                f"{self._name.in_sql} has no column {one.expr!r}, which partition_expr names",
                hint="Name a column: for this engine partition_expr can not be an SQL expression.",
                dataset=self._name.dataset,
            )
        column, kind = pc.field(one.expr), schema.field(one.expr).type
        try:
            if isinstance(one, Values):
                return column.isin(pa.array(one.values).cast(kind))
            met = pc.scalar(False)
            for start, end in one.windows:
                met |= (column >= _moment(start, kind)) & (column < _moment(end, kind))
            return met
        except (pa.ArrowException, ValueError) as error:
            raise ConfigurationError(
                f"column {one.expr!r} of type {kind} can not tell the partitions apart: {error}",
                hint="Partition by a date, a timestamp, or for other keys a column whose values they are.",
                dataset=self._name.dataset,
            ) from error


def _moment(when: datetime, kind: pa.DataType) -> pa.Scalar:
    if pa.types.is_date(kind):
        if when.time() != time():
            raise ValueError("a date has no time of day")
        return pa.scalar(when.date(), kind)
    if not pa.types.is_timestamp(kind):
        raise ValueError("it is neither a date nor a timestamp")
    return pa.scalar(when if kind.tz else when.replace(tzinfo=None), kind)


def _same(found: pa.RecordBatchReader, rows: pa.Table) -> bool:
    """Whether a reader gives just these rows in this order; it is read up to the first that differs."""
    start = 0
    for batch in found:
        if not pa.Table.from_batches([batch]).equals(rows.slice(start, batch.num_rows)):
            return False
        start += batch.num_rows
    return bool(start == rows.num_rows)
