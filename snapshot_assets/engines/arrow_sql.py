"""SQL over Arrow datasets, for engines that have no SQL of their own: DuckDB scans them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from snapshot_assets.engines.duckdb_pool import READER_CONFIG
from snapshot_assets.engines.duckdb_statements import reading_statement
from snapshot_assets.engines.sql import quoted
from snapshot_assets.errors import ReadOnlyDataset, ValidationFailed

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset

__all__ = ["ArrowSQL", "create_views", "register_scans", "staged_rows"]


def create_views(
    connection: duckdb.DuckDBPyConnection, dataset: str, tables: Mapping[str, pyarrow.dataset.Dataset]
) -> None:
    """Make `<dataset>.main.<table>` of each table, in the attached database `<dataset>`.

    A table without a name, which SQLite can have and DuckDB can not, is left out. A view is bound to its scan by name,
    and finds it in every session where `register_scans` was called.
    """
    register_scans(connection, dataset, tables)
    for table in filter(None, tables):
        name = f"{quoted(dataset)}.main.{quoted(table)}"
        connection.execute(f"create view {name} as select * from {quoted(_scan_name(dataset, table))}")


def register_scans(
    session: duckdb.DuckDBPyConnection, dataset: str, tables: Mapping[str, pyarrow.dataset.Dataset]
) -> None:
    """Let a session find what the views of `create_views` scan: a registered object belongs to one session."""
    for table, scan in tables.items():
        session.register(_scan_name(dataset, table), scan)


def _scan_name(dataset: str, table: str) -> str:
    """What every session finds before any table of the name, so it is one that nobody gives to a table."""
    return f"snapshot-assets scan of {dataset}.{table}"


class ArrowSQL:
    """A DuckDB instance over the tables of one dataset, read-only; safe to use from several threads.

    `orders` and `orders.main.orders` are the same table, as in a DuckDB dataset. Statements can read nothing else: no
    files, no network, no Python variables.

    Args:
        dataset: the name of the database that the tables are in, and named in errors.
        tables: what DuckDB scans, by the name of the table.
        scratch: a folder for what does not fit in memory, for this instance alone; without it, nothing is spilled.
    """

    def __init__(
        self, dataset: str, tables: Mapping[str, pyarrow.dataset.Dataset], scratch: Path | None = None
    ) -> None:
        self._dataset = dataset
        self._tables = dict(tables)
        config = {**READER_CONFIG, "temp_directory": "" if scratch is None else str(scratch)}
        self._instance = duckdb.connect(":memory:", config=config)
        try:
            self._instance.execute(f"attach ':memory:' as {quoted(dataset)}")
            create_views(self._instance, dataset, self._tables)
            self._instance.execute("set enable_external_access = false")
            self._instance.execute("set lock_configuration = true")
        except BaseException:
            self._instance.close()
            raise

    def query(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> pa.Table:
        """Run one statement and fetch all of its result as Arrow.

        Raises:
            ReadOnlyDataset: it is not one SELECT, or the EXPLAIN of one.
        """
        with self._session() as session:
            table: pa.Table = session.sql(self._reading(session, sql), params=parameters).to_arrow_table()
            return table

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one statement and fetch all of its rows. Raises what `query` raises."""
        with self._session() as session:
            return session.execute(self._reading(session, sql)).fetchall()

    def close(self) -> None:
        """Close the instance; nothing is running on it."""
        self._instance.close()

    @contextmanager
    def _session(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with closing(self._instance.cursor()) as session:
            session.execute(f"use {quoted(self._dataset)}")
            register_scans(session, self._dataset, self._tables)
            yield session

    def _reading(self, session: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
        try:
            return reading_statement(session, sql)
        except ReadOnlyDataset as error:
            raise ReadOnlyDataset(
                f"dataset {self._dataset!r} is read-only: {error.message}", dataset=self._dataset
            ) from error


@contextmanager
def staged_rows(sql: ArrowSQL) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
    """What `Engine.staged_query` gives, for an engine whose staged copies are looked at by this SQL; it is closed."""
    with closing(sql):

        def query(statement: str) -> list[tuple[Any, ...]]:
            try:
                return sql.rows(statement)
            except (duckdb.Error, ReadOnlyDataset) as error:
                raise ValidationFailed(f"a statement can not be run on the staged copy: {error}") from error

        yield query
