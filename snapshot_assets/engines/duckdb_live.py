"""Opening a live DuckDB file for writing, and bringing all that is committed into the one file."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Final

import duckdb

from snapshot_assets.engines.copying import read_live_header
from snapshot_assets.errors import CaptureError, LiveDatabaseBusy, UnsupportedLiveDatabase
from snapshot_assets.model.dataset import Dataset

__all__ = [
    "HEADER_BYTES",
    "PAUSE_SECONDS",
    "check_magic",
    "checkpoint",
    "connect",
    "connect_by",
    "logs",
    "storage",
    "table_paths",
]

HEADER_BYTES: Final = 12_288
"""What stands in a file before its blocks."""

PAUSE_SECONDS: Final = 0.05
"""Between two attempts at something that another connection stands in the way of."""

_ALONE: Final[dict[str, str | bool | int | float | list[str]]] = {"custom_user_agent": "snapshot-assets alone"}
"""Settings that nobody else has: DuckDB refuses a second instance of a file that is open with other ones."""

_MAGIC: Final = b"DUCK"
_MAGIC_AT: Final = 8
_MISREAD: Final = frozenset("\\?")
_HOLDER: Final = re.compile(r"held in (?P<program>.*?) \(PID (?P<pid>\d+)\)")
_STORAGE: Final = """
    select tags['storage_version'], block_size from duckdb_databases() join pragma_database_size() using (database_name)
    where database_name = current_database()
"""
_TABLES: Final = """
    select current_database(), schema_oid, table_name, table_oid from duckdb_tables()
    where database_name = current_database() and not internal and not temporary
"""


def check_magic(dataset: Dataset) -> None:
    """Look at the file's first bytes, for DuckDB would open other formats by fetching an extension.

    Raises:
        LiveDatabaseMissing: there is no file.
        UnsupportedLiveDatabase: it is of another kind, or DuckDB would take its path for another one.
    """
    if _MISREAD.intersection(str(dataset.real_path)):
        raise UnsupportedLiveDatabase(
            f"{dataset.real_path} has a backslash or a question mark in its path",
            hint="Rename the file or its folder: DuckDB takes the one for a slash, and puts its log before the other.",
            dataset=dataset.name,
        )
    header = read_live_header(dataset.real_path, _MAGIC_AT + len(_MAGIC))
    if header[_MAGIC_AT:] != _MAGIC:
        raise UnsupportedLiveDatabase(f"{dataset.path} is not a DuckDB database", dataset=dataset.name)


def connect(live: Path, dataset: str, *, alone: bool = False) -> duckdb.DuckDBPyConnection:
    """Open a live file read-write, in the instance that this process has of it already, if there is one.

    Args:
        live: the file, under its real path.
        dataset: named in errors.
        alone: take no part in an instance, so that there is none. DuckDB tells without a look at the file, also when
            this process has lost its lock on it.

    Raises:
        LiveDatabaseBusy: another process has it, or this one in a way that can not be shared.
        UnsupportedLiveDatabase: DuckDB does not open it.
    """
    try:
        return duckdb.connect(str(live), config=_ALONE if alone else {})
    except duckdb.Error as error:
        message = str(error)
        if isinstance(error, duckdb.ConnectionException) or "Unique file handle conflict" in message:
            if alone:
                raise LiveDatabaseBusy(f"{live} is open in this process", dataset=dataset) from error
            raise LiveDatabaseBusy(
                f"{live} is open in this process, read-only, attached, or with other settings",
                hint="Close that connection, or open it with duckdb.connect(path) and nothing else.",
                dataset=dataset,
            ) from error
        if "Could not set lock on file" in message:
            holder = _HOLDER.search(message)
            by = f"process {holder['pid']} ({holder['program']})" if holder else "another process"
            raise LiveDatabaseBusy(f"{live} is held by {by}", dataset=dataset) from error
        raise UnsupportedLiveDatabase(f"DuckDB does not open {live}: {message}", dataset=dataset) from error


def connect_by(deadline: float, live: Path, dataset: str, *, alone: bool = False) -> duckdb.DuckDBPyConnection:
    """As `connect`, tried again until a deadline on the monotonic clock while somebody else has the file."""
    while True:
        try:
            return connect(live, dataset, alone=alone)
        except LiveDatabaseBusy:
            if time.monotonic() >= deadline:
                raise
        time.sleep(PAUSE_SECONDS)


def checkpoint(connection: duckdb.DuckDBPyConnection, live: Path, dataset: str) -> str:
    """Bring everything that is committed into the file; tell what stood in the way, if anything did."""
    try:
        connection.execute("checkpoint")
    except duckdb.TransactionException as error:
        return str(error)
    except duckdb.Error as error:
        raise CaptureError(f"DuckDB can not checkpoint {live}: {error}", dataset=dataset) from error
    return ""


def logs(live: Path) -> list[Path]:
    """The side files in which committed rows may lie that the file itself does not have yet."""
    return [live.with_name(live.name + suffix) for suffix in (".wal", ".wal.checkpoint", ".wal.recovery")]


def storage(connection: duckdb.DuckDBPyConnection) -> tuple[str, int]:
    """The storage version of the connection's file, as in ``v1.2.0+``, and the size of a block."""
    version, block_bytes = connection.execute(_STORAGE).fetchall()[0]
    return version or "unknown", block_bytes


def table_paths(connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, ...], int]:
    """The user's tables of the connection's file, in order: the names that lead to each, and its `table_oid`.

    The first name is the database's: without it, a schema of that name could not be told from the database. Schemas may
    lie in schemas.
    """
    listed = connection.execute("select * from duckdb_schemas() where database_name = current_database()")
    columns = [column[0] for column in listed.description or ()]
    schemas = {row["oid"]: row for row in (dict(zip(columns, values, strict=True)) for values in listed.fetchall())}

    def schema_path(oid: int | None) -> tuple[str, ...]:
        # Versions of DuckDB without schemas in schemas do not have the second column.
        return () if oid is None else (*schema_path(schemas[oid].get("parent_schema_oid")), schemas[oid]["schema_name"])

    rows = connection.execute(_TABLES).fetchall()
    return dict(sorted(((database, *schema_path(schema), table), oid) for database, schema, table, oid in rows))
