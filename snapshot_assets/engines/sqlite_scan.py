"""A table of a SQLite local copy as an Arrow dataset that DuckDB scans, as often as it likes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import adbc_driver_sqlite.dbapi as adbc
import pyarrow as pa
import pyarrow.dataset

from snapshot_assets.engines.sql import quoted
from snapshot_assets.engines.sqlite_filter import where_of
from snapshot_assets.errors import ReaderError

if TYPE_CHECKING:
    from pyarrow.compute import Expression

__all__ = ["SCAN_REFUSED", "SQLiteTable"]

SCAN_REFUSED: Final = "can not be read with its declared types"
"""In the message of every error with which a scan ends; DuckDB hands on the message only."""

_BATCH_ROWS: Final = 65_536

_SEEDS: Final = {pa.int64(): "0", pa.float64(): "0.5", pa.string(): "''", pa.binary(): "x''"}
"""A value of each type that a SQLite table can be described with."""

_VALUES: Final = {
    pa.int64(): "{0}",
    # A real column may hold integers that no real equals; as text they are noticed, and refused.
    pa.float64(): "case typeof({0}) when 'integer' then case when {0} between -9007199254740992 and 9007199254740992 "
    "then {0} else cast({0} as text) end else {0} end",
    # SQLite's own cast keeps 15 digits of a real, 17 keep all of it.
    pa.string(): "case typeof({0}) when 'text' then {0} when 'real' then printf('%!.17g', {0}) "
    "else cast({0} as text) end",
    pa.binary(): "cast({0} as blob)",
}


class SQLiteTable(pyarrow.dataset.Dataset):  # type: ignore[misc]  # pyarrow has no types
    """One table, with the types that the manifest gives it, read anew by each scan.

    SQLite lets any column hold values of any type. Numbers in a text column are read as text, and anything in a binary
    column as bytes; a value that the column's type can not hold exactly ends the scan with an error, and is never
    rounded, shortened or left out. Only the columns that a query needs are read, and of a filter that SQLite
    understands only its rows, by an index where there is one; values in other rows are then not looked at.
    """

    # pyarrow's own datasets can not be constructed; DuckDB calls the two members below and no other.
    def __init__(self, path: Path, table: str, schema: pa.Schema) -> None:
        self._path = path
        self._table = table
        self._schema = schema

    @property
    def schema(self) -> pa.Schema:
        """The columns, as the manifest has them."""
        return self._schema

    def scanner(
        self,
        columns: Sequence[str] | None = None,
        filter: Expression | None = None,  # noqa: A002 - the name that DuckDB calls it by
        **_options: object,
    ) -> pyarrow.dataset.Scanner:
        """A new scan of the columns, of the rows for which the filter holds."""
        chosen = self._schema.names if columns is None else list(columns)
        schema = pa.schema([self._schema.field(name) for name in self._needed(chosen, filter)])
        reader = pa.RecordBatchReader.from_batches(schema, self._batches(schema, where_of(filter, self._schema)))
        return pyarrow.dataset.Scanner.from_batches(reader, columns=chosen, filter=filter)

    def _needed(self, chosen: list[str], row_filter: Expression | None) -> list[str]:
        """The chosen columns and those that the filter reads, of which it tells nothing but its text."""
        if row_filter is None:
            return chosen
        text = str(row_filter)
        needed = [name for name in self._schema.names if name in chosen or name in text]
        schema = pa.schema([self._schema.field(name) for name in needed])
        try:
            scanner = pyarrow.dataset.Scanner.from_batches(schema.empty_table().to_reader(), filter=row_filter)
            scanner.to_table()
        except (pa.ArrowException, LookupError):
            return list(self._schema.names)
        return needed

    def _batches(self, schema: pa.Schema, where: str) -> Iterator[pa.RecordBatch]:
        """The rows for which the condition holds, in batches.

        A first row of known types, left out again, tells the driver what to expect.
        """
        names = [quoted(name) for name in schema.names]
        seeds = ", ".join(f"{_SEEDS[field.type]} as {name}" for field, name in zip(schema, names, strict=True))
        values = ", ".join(_VALUES[field.type].format(name) for field, name in zip(schema, names, strict=True))
        sql = f"select {seeds} union all select {values} from {quoted(self._table)}"
        if where:
            sql += f" where {where}"
        with (
            adbc.connect(f"file:{quote(str(self._path))}?mode=ro&immutable=1") as connection,
            connection.cursor() as cursor,
        ):
            cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": _BATCH_ROWS})
            try:
                cursor.execute(sql)
                reader = cursor.fetch_record_batch()
                skipped = 1
                for batch in reader:
                    yield self._checked(batch, schema).slice(skipped)
                    skipped = 0
            except (OSError, adbc.Error, pa.ArrowException) as error:
                raise self._refused(str(error)) from error

    def _checked(self, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
        for found, field in zip(batch.schema, schema, strict=True):
            if found.type != field.type:
                raise self._refused(f"column {field.name!r} holds a value that is no {field.type}")
            if pa.types.is_string(field.type):
                batch.column(field.name).validate(full=True)
        return pa.RecordBatch.from_arrays(batch.columns, schema=schema)

    def _refused(self, what: str) -> ReaderError:
        return ReaderError(
            f"table {self._table!r} of {self._path.name} {SCAN_REFUSED}: {what}",
            hint="Query the dataset by itself, with its own engine, or store values of the declared types.",
        )
