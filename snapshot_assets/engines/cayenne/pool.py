"""The read-only tables and queries of one Cayenne local copy."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from snapshot_assets.engines.arrow_sql import ArrowSQL
from snapshot_assets.engines.cayenne.scan import CayenneScan
from snapshot_assets.engines.cayenne.state import TableState
from snapshot_assets.engines.cayenne.table import CayenneTable

__all__ = ["CayennePool"]


class CayennePool:
    """What the copy holds is read from its metastore once; files are opened by each scan.

    Args:
        state: the table of the copy.
        scratch: a folder for what queries can not hold in memory.
    """

    def __init__(self, state: TableState, scratch: Path | None) -> None:
        self._state = state
        self._scratch = scratch
        self._lock = threading.Lock()
        self._sql: ArrowSQL | None = None

    def acquire(self) -> CayenneTable:
        return CayenneTable(None, self._state, read_only=True)

    def release(self, connection: CayenneTable) -> None:
        connection.close()

    def query(
        self,
        sql: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        connection: CayenneTable | None = None,
    ) -> pa.Table:
        """Run one statement in DuckDB's SQL and fetch all of its result as Arrow."""
        del connection  # every query sees the whole copy, and nothing else
        with self._lock:
            if self._sql is None:
                self._sql = ArrowSQL(self._state.name, {self._state.name: CayenneScan(self._state)}, self._scratch)
        return self._sql.query(sql, parameters)

    def close(self) -> None:
        with self._lock:
            if self._sql is not None:
                self._sql.close()
                self._sql = None
