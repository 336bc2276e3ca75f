"""DuckDB sessions as the node uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import duckdb
import pyarrow as pa

from snapshot_assets.errors import ConfigurationError, QueryFailed, QueryRefused, QueryStopped, SnapshotAssetsError

__all__ = ["Parameters", "Sessions", "check_locked", "describe", "open_reader", "query_error"]

Parameters = Sequence[Any] | Mapping[str, Any] | None
"""The values of a statement's parameters: by position, by name, or none."""

_LOCKED: Final[Mapping[str, bool]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "enable_external_access": False,
    "lock_configuration": True,
}


class Sessions(Protocol):
    """What the node needs of a catalogue.

    Its sessions reach no files, no network, no extensions and no Python variables, and their configuration is locked.
    """

    def connect(self, *, checked: bool = False) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A lease with a DuckDB connection that sees each dataset as a database of its name.

        `checked` promises that nothing but SELECTs is run.
        It may be given back by another thread than the one that took it.
        """


def check_locked(sessions: Sessions) -> None:
    """Make sure, before any client is let in, that sessions are locked down.

    Raises:
        ConfigurationError: they are not.
    """
    with sessions.connect() as connection:
        for name, wanted in _LOCKED.items():
            found = connection.execute("SELECT current_setting(?)", [name]).fetchall()[0][0]
            if found is not wanted:
                raise ConfigurationError(
                    f"the catalogue's DuckDB sessions have {name} = {found}; nothing is served from them",
                    hint="Leave the settings that lock a session out of catalog_config.",
                )


def open_reader(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Parameters, batch_rows: int
) -> pa.RecordBatchReader:
    """Run one read-only statement. Its rows come as a stream, so that memory stays bounded; close the reader after."""
    # a cursor's execute() would keep the whole result; a relation streams it
    relation = connection.sql(sql, params=parameters or None)
    reader: pa.RecordBatchReader = relation.to_arrow_reader(batch_rows)
    return reader


def describe(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Parameters) -> pa.Schema:
    """The columns that a statement would give. A SELECT is planned, and not run."""
    relation = connection.sql(sql, params=parameters or None)
    reader: pa.RecordBatchReader = relation.limit(0).to_arrow_reader(1)
    try:
        return reader.schema
    finally:
        reader.close()


def query_error(error: Exception) -> SnapshotAssetsError:
    """What a client is told of an error that DuckDB raised while it ran the client's statement."""
    words = str(error).strip()
    if isinstance(error, SnapshotAssetsError):
        return error
    if isinstance(error, duckdb.InterruptException) or words.startswith("INTERRUPT Error"):
        return QueryStopped("the query was interrupted")
    if isinstance(error, duckdb.PermissionException) or words.startswith("Permission Error"):
        return QueryRefused(words)
    if isinstance(error, duckdb.OutOfMemoryException) or words.startswith("Out of Memory Error"):
        return QueryStopped(f"the query needs more memory than the node has: {words}")
    return QueryFailed(words)
