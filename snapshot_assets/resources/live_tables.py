"""One table of a live database, as frames are written to it; and of a snapshot, as frames are read from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from snapshot_assets.errors import UnsupportedEngine

if TYPE_CHECKING:
    import pyarrow as pa

    from snapshot_assets.resources.partitions import PartitionRows

__all__ = ["LiveTable", "SnapshotTable", "TableName", "live_table", "snapshot_table"]


@dataclass(frozen=True, slots=True)
class TableName:
    """A table of a dataset. Only DuckDB has schemas; there, `main` goes without saying.

    Attributes:
        dataset: the dataset.
        schema: the table's schema; none where the engine has no schemas.
        table: the table's own name.
    """

    dataset: str
    schema: str | None
    table: str

    @property
    def listed(self) -> str:
        """The name under which the snapshot's manifest lists it."""
        return self.table if self.schema in {None, "main"} else f"{self.schema}.{self.table}"

    @property
    def in_sql(self) -> str:
        """The name by which people query it."""
        return f"{self.dataset}.{self.schema or 'main'}.{self.table}"


class LiveTable(Protocol):
    """One table of a live database; its write gate is held."""

    def columns(self) -> pa.Schema | None:
        """The columns of the table; none if there is no table."""

    def kept(self, schema: pa.Schema) -> pa.Schema:
        """The types under which the engine would keep such columns, and gives them back.

        Raises:
            ConfigurationError: it can not keep one of them.
        """

    def write(self, rows: pa.Table, part: PartitionRows | None) -> None:
        """Put the rows in place of all rows, or of those of some partitions, in one transaction.

        The rows have the types of `kept`. Columns that the table lacks are added; without `part`, the table takes the
        rows' columns whatever it had before. Nothing is written when the table holds just these rows in this order.

        Raises:
            ConfigurationError: a row belongs to none of the partitions. Nothing is changed.
            CaptureError: the engine refuses the rows. Nothing is changed.
        """


class SnapshotTable(Protocol):
    """One table of a snapshot, read through a lease's connection."""

    def read(self, columns: list[str] | None, part: PartitionRows | None) -> pa.RecordBatchReader:
        """The rows, of some partitions only and some columns only where they are given."""


_ENGINES: Final = ("duckdb", "sqlite", "turso", "cayenne", "lance")


def live_table(engine: str, connection: Any, name: TableName) -> LiveTable:
    """The table, behind the connection that the engine gives to its live database.

    Raises:
        UnsupportedEngine: frames can not be written to this engine.
    """
    if engine == "duckdb":
        from snapshot_assets.resources.duckdb_table import DuckDBLiveTable

        return DuckDBLiveTable(connection, name)
    if engine in {"sqlite", "turso"}:
        from snapshot_assets.resources.sqlite_table import SQLiteLiveTable

        return SQLiteLiveTable(connection, name)
    if engine in {"cayenne", "lance"}:
        from snapshot_assets.resources.arrow_table import CayenneRows, LanceRows, OneTable

        return OneTable(LanceRows(connection) if engine == "lance" else CayenneRows(connection), name)
    raise UnsupportedEngine(
        f"frames can not be written to the engine {engine!r}",
        hint=f"Choose one of {', '.join(_ENGINES)}, or write it in a snapshot_asset.",
        dataset=name.dataset,
    )


def snapshot_table(engine: str, connection: Any, name: TableName) -> SnapshotTable:
    """The table, behind a connection of a lease. Raises what `live_table` raises."""
    if engine == "duckdb":
        from snapshot_assets.resources.duckdb_table import DuckDBSnapshotTable

        return DuckDBSnapshotTable(connection, name)
    if engine in {"sqlite", "turso"}:
        from snapshot_assets.resources.sqlite_table import SQLiteSnapshotTable

        return SQLiteSnapshotTable(connection, name)
    if engine in {"cayenne", "lance"}:
        from snapshot_assets.resources.arrow_table import CayenneRows, LanceRows, OneTable

        return OneTable(LanceRows(connection) if engine == "lance" else CayenneRows(connection), name)
    raise UnsupportedEngine(f"frames can not be read from the engine {engine!r}", dataset=name.dataset)
