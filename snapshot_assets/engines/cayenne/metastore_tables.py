"""The tables of a metastore: their names, columns and keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["INDEXES", "TABLES", "MetastoreTable"]

_OWNER: Final = "TEXT NOT NULL REFERENCES cayenne_table (table_id) ON DELETE CASCADE"


@dataclass(frozen=True, slots=True)
class MetastoreTable:
    """One table of the catalogue, as it must be.

    Attributes:
        name: the table's name.
        types: what SQLite is told of each column, in column order.
        rules: what SQLite is told of the table as a whole: keys over several columns.
        blob_keyed: `table_id` is a blob (`table_key`), no foreign key clears the rows, and there is no row id.
        later_columns: how many of the last columns slices of the first generation do not have.
        later: slices of the first generation do not have the table.
    """

    name: str
    types: Mapping[str, str]
    rules: str = ""
    blob_keyed: bool = False
    later_columns: int = 0
    later: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(self.types)

    @property
    def path_column(self) -> int | None:
        """The position of the path that a slice makes relative, if the table has one."""
        return self.columns.index("path") if "path_is_relative" in self.types else None

    @property
    def flag_column(self) -> int | None:
        """The position of the flag that says whether that path is relative."""
        return self.columns.index("path_is_relative") if "path_is_relative" in self.types else None

    def position(self, column: str) -> int:
        """The position of a column."""
        return self.columns.index(column)

    @property
    def statement(self) -> str:
        """The statement that makes the table."""
        columns = ", ".join(f"{name} {declared}".rstrip() for name, declared in self.types.items())
        rules = f", {self.rules}" if self.rules else ""
        options = "STRICT, WITHOUT ROWID" if self.blob_keyed else "STRICT"
        return f"CREATE TABLE IF NOT EXISTS {self.name} ({columns}{rules}) {options}"


def _table(
    name: str, *columns: str, rules: str = "", blob_keyed: bool = False, later_columns: int = 0, later: bool = False
) -> MetastoreTable:
    types = dict(column.split(" ", 1) for column in columns)
    return MetastoreTable(name, MappingProxyType(types), rules, blob_keyed, later_columns, later)


TABLES: Final = (
    _table(
        "cayenne_table",
        "table_id TEXT NOT NULL PRIMARY KEY",
        "table_name TEXT NOT NULL UNIQUE",
        "path TEXT NOT NULL",
        "path_is_relative INTEGER NOT NULL DEFAULT 0",
        "schema_json TEXT",
        "primary_key_json TEXT",
        "on_conflict_json TEXT",
        "current_snapshot_id TEXT NOT NULL DEFAULT ''",
        "partition_column TEXT",
        "vortex_config_json TEXT",
        "current_sequence_number INTEGER NOT NULL DEFAULT 0",
    ),
    _table(
        "cayenne_delete_file",
        "delete_file_id ANY NOT NULL PRIMARY KEY",
        f"table_id {_OWNER}",
        "path TEXT NOT NULL",
        "path_is_relative INTEGER NOT NULL DEFAULT 0",
        "format TEXT",
        "delete_count INTEGER",
        "file_size_bytes INTEGER",
        "source_data_file_path TEXT",
        "sequence_number INTEGER",
        "reinsert_sequence INTEGER",
        rules="UNIQUE (table_id, path)",
    ),
    _table(
        "cayenne_partition",
        "partition_id ANY NOT NULL PRIMARY KEY",
        f"table_id {_OWNER}",
        "partition_columns_json TEXT",
        "partition_values_json TEXT",
        "partition_key TEXT NOT NULL",
        "path TEXT NOT NULL",
        "path_is_relative INTEGER NOT NULL DEFAULT 0",
        "record_count INTEGER",
        "file_size_bytes INTEGER",
        rules="UNIQUE (table_id, partition_key)",
    ),
    _table(
        "cayenne_insert_record",
        "table_id BLOB NOT NULL",
        "pk_bytes BLOB NOT NULL",
        "sequence_number INTEGER",
        rules="PRIMARY KEY (table_id, pk_bytes)",
        blob_keyed=True,
    ),
    _table(
        "cayenne_snapshot_sequence",
        f"table_id {_OWNER}",
        "snapshot_id TEXT NOT NULL",
        "sequence_number INTEGER",
        rules="PRIMARY KEY (table_id, snapshot_id)",
    ),
    _table(
        "cayenne_table_statistics",
        f"table_id {_OWNER} PRIMARY KEY",
        "statistics_blob BLOB",
        "num_rows INTEGER",
        "ndv_sketches ANY",
        "num_rows_exact ANY",
        later_columns=1,
    ),
    _table(
        "cayenne_snapshot_file_statistics",
        f"table_id {_OWNER}",
        "snapshot_id TEXT NOT NULL",
        "file_path TEXT NOT NULL",
        "file_size_bytes INTEGER",
        "num_rows INTEGER",
        "statistics_blob BLOB",
        rules="PRIMARY KEY (table_id, snapshot_id, file_path)",
    ),
    _table(
        "cayenne_snapshot_file",
        f"table_id {_OWNER}",
        "snapshot_id TEXT NOT NULL",
        "file_path TEXT NOT NULL",
        "row_count INTEGER",
        "file_size_bytes INTEGER",
        "min_sequence INTEGER",
        "max_sequence INTEGER",
        "digest ANY",
        rules="PRIMARY KEY (table_id, snapshot_id, file_path)",
        later_columns=1,
        later=True,
    ),
    _table(
        "cayenne_pk_index",
        f"table_id {_OWNER} PRIMARY KEY",
        "snapshot_id TEXT",
        "index_blob BLOB",
    ),
    _table(
        "cayenne_inlined_data",
        "inlined_id ANY NOT NULL PRIMARY KEY",
        f"table_id {_OWNER}",
        "partition_key ANY",
        "data_ipc BLOB",
        "record_count INTEGER",
        "sequence_number INTEGER",
        "created_at ANY",
    ),
    _table(
        "cayenne_inlined_delete",
        "inlined_id ANY NOT NULL PRIMARY KEY",
        f"table_id {_OWNER}",
        "delete_ipc BLOB",
        "delete_count INTEGER",
        "sequence_number INTEGER",
        "created_at ANY",
        "published INTEGER NOT NULL DEFAULT 0",
    ),
    _table(
        "cayenne_pending_write_back",
        "table_id BLOB NOT NULL",
        "pk_bytes BLOB NOT NULL",
        "sequence_number INTEGER",
        "first_marked_at ANY",
        rules="PRIMARY KEY (table_id, pk_bytes)",
        blob_keyed=True,
        later=True,
    ),
)
"""The tables that a metastore must have, each with exactly these columns; parents stand before their children.

Two tables of the newest generation are not among them. `cayenne_index_run` registers lookup indexes that are built
again when they are missing, so its rows are left behind. `cayenne_cold_tier_file` names data outside the data folder,
which no snapshot could carry, so a dataset that has such rows is refused.
"""

INDEXES: Final = (
    "CREATE INDEX IF NOT EXISTS cayenne_inlined_data_order ON cayenne_inlined_data (table_id, sequence_number)",
    "CREATE INDEX IF NOT EXISTS cayenne_inlined_delete_order ON cayenne_inlined_delete (table_id, sequence_number)",
    "CREATE INDEX IF NOT EXISTS cayenne_inlined_delete_new ON cayenne_inlined_delete (table_id) WHERE published = 0",
)
"""What finds the rows of a table in the order of their sequence numbers, and the deletes not yet published."""
