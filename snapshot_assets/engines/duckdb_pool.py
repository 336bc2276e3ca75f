"""The read-only connections of one DuckDB local copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from snapshot_assets.errors import ReaderError, ReadOnlyDataset, SnapshotDamaged

__all__ = ["READER_CONFIG", "DuckDBPool"]

READER_CONFIG: Final[dict[str, str | bool | int | float | list[str]]] = {
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
"""No Python variable becomes a table, and no query fetches an extension from the network."""

_READ_ONLY_MODE: Final = "attached in read-only mode"

_DAMAGE: Final = ("Corrupt database file", "Could not read enough bytes")
"""In the message of every error that DuckDB finds a database file to be damaged with."""


class DuckDBPool:
    """One read-only instance; each connection is a cursor of it.

    The file's name makes the dataset the catalog: ``flights`` and ``flights.main.flights`` are the same table.

    Args:
        path: the local copy's file; DuckDB keeps instances by path, so each local copy has one of its own.
        dataset: named in errors.
        scratch: a folder for what does not fit in memory, for this instance alone; without it, nothing is spilled.

    Raises:
        SnapshotDamaged: the file is missing, or not a whole DuckDB database any more.
        ReaderError: DuckDB does not open it for a reason that is not in the file.
    """

    def __init__(self, path: Path, dataset: str, scratch: Path | None = None) -> None:
        self._dataset = dataset
        # DuckDB's own default lies beside the file, and a local copy is never written to.
        config = {**READER_CONFIG, "temp_directory": "" if scratch is None else str(scratch)}
        try:
            self._instance = duckdb.connect(str(path), read_only=True, config=config)
        except duckdb.Error as error:
            what = f"DuckDB does not open the local copy {path}: {error}"
            if _is_damage(error, path):
                raise SnapshotDamaged(what, dataset=dataset) from error
            raise ReaderError(
                what, hint="The copy itself may be whole: see what this process lacks, then try again.", dataset=dataset
            ) from error
        self.acquire = self._instance.cursor

    def release(self, connection: duckdb.DuckDBPyConnection) -> None:
        connection.close()

    def query(
        self,
        sql: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        connection: duckdb.DuckDBPyConnection | None = None,
    ) -> pa.Table:
        cursor = self._instance.cursor() if connection is None else connection
        try:
            # A statement without a result, such as an empty one, gives no relation, whatever the type hints say.
            relation: duckdb.DuckDBPyRelation | None = cursor.sql(sql, params=parameters)
            return pa.table({}) if relation is None else relation.to_arrow_table()
        except duckdb.InvalidInputException as error:
            if _READ_ONLY_MODE in str(error):
                raise ReadOnlyDataset(
                    f"dataset {self._dataset!r} is read-only: {error}", dataset=self._dataset
                ) from error
            raise
        finally:
            if connection is None:
                cursor.close()

    def close(self) -> None:
        self._instance.close()


def _is_damage(error: duckdb.Error, path: Path) -> bool:
    """Whether a file that DuckDB refused is the reason; a good copy must not be thrown away for another one."""
    try:
        with path.open("rb") as file:
            magic = file.read(12)[8:]
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return (
        magic != b"DUCK"
        or isinstance(error, duckdb.SerializationException)
        or any(words in str(error) for words in _DAMAGE)
    )
