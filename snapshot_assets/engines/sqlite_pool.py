"""The read-only connections of one SQLite local copy."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from snapshot_assets.engines.sqlite_connection import is_damage, is_read_only, open_immutable
from snapshot_assets.engines.sqlite_types import ResultColumn, declared_type
from snapshot_assets.errors import ReaderError, ReadOnlyDataset, SnapshotDamaged

__all__ = ["SQLitePool"]

_ROWS_AT_ONCE: Final = 16_384
_AFFINITIES: Final = frozenset({"INT", "REAL", "TEXT"})


class SQLitePool:
    """Each connection is opened anew: what one lease set on its connection can not reach the next.

    Args:
        path: the local copy's file.
        dataset: named in errors.

    Raises:
        SnapshotDamaged: the file is missing, or not a whole SQLite database any more.
        ReaderError: SQLite does not open it for a reason that is not in the file.
    """

    def __init__(self, path: Path, dataset: str) -> None:
        self._path = path
        self._dataset = dataset
        try:
            with closing(open_immutable(path)) as connection:
                connection.execute("select count(*) from sqlite_schema").fetchone()
        except sqlite3.Error as error:
            what = f"SQLite does not open the local copy {path}: {error}"
            if is_damage(error) or not path.exists():
                raise SnapshotDamaged(what, dataset=dataset) from error
            raise ReaderError(
                what, hint="The copy itself may be whole: see what this process lacks, then try again.", dataset=dataset
            ) from error

    def acquire(self) -> sqlite3.Connection:
        return open_immutable(self._path)

    def release(self, connection: sqlite3.Connection) -> None:
        connection.close()

    def query(
        self,
        sql: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        connection: sqlite3.Connection | None = None,
    ) -> pa.Table:
        """Run one statement and fetch all of its result as Arrow; see `ResultColumn` for the types.

        A column without any value has the type of its affinity: int64, float64 or string, and null where SQLite does
        not know one.
        """
        bound = () if parameters is None else parameters
        with nullcontext(connection) if connection is not None else closing(self.acquire()) as used:
            try:
                cursor = used.execute(sql, bound)
                names = [column[0] for column in cursor.description or ()]
                columns = [ResultColumn() for _ in names]
                while rows := cursor.fetchmany(_ROWS_AT_ONCE):
                    for column, values in zip(columns, zip(*rows, strict=True), strict=True):
                        column.add(values)
            except sqlite3.OperationalError as error:
                if is_read_only(error):
                    raise ReadOnlyDataset(
                        f"dataset {self._dataset!r} is read-only: {error}", dataset=self._dataset
                    ) from error
                raise
        empty = self._result_types(sql, bound) if any(column.is_typeless for column in columns) else []
        empty = empty or [pa.null()] * len(columns)
        return pa.table([column.array(type_) for column, type_ in zip(columns, empty, strict=True)], names=names)

    def close(self) -> None:
        """Nothing is held between leases."""

    def _result_types(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any]) -> list[pa.DataType]:
        """The type of each result column by its affinity, which SQLite tells of a table that is made of the statement.

        It is made on a connection of its own, since the caller's keeps its temporary tables and may need any name.
        Nothing at all where no table can be made of it, as of a PRAGMA, or of the caller's temporary tables.
        """
        statement = sql.strip().rstrip(";")
        with closing(self.acquire()) as connection:
            try:
                connection.execute("pragma temp_store = memory")
                connection.execute(f"create temp table result as select * from (\n{statement}\n) limit 0", parameters)
                rows = connection.execute("select type from pragma_table_xinfo('result', 'temp') order by cid")
                affinities = [affinity for (affinity,) in rows.fetchall()]
            except sqlite3.Error:
                return []
        return [declared_type(affinity) if affinity in _AFFINITIES else pa.null() for affinity in affinities]
