"""SQLite: captured by a checkpoint and a copy of the one file, or by the online backup API when others keep it busy."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from snapshot_assets.engines.contract import Captured, Optimized
from snapshot_assets.engines.copying import read_live_header, size_of_live_file
from snapshot_assets.engines.sqlite_capture import MAGIC, capture_file
from snapshot_assets.engines.sqlite_connection import live_error, open_live
from snapshot_assets.engines.sqlite_file import SQLiteFile, check_declaration, staged_file
from snapshot_assets.engines.sqlite_vacuum import vacuum
from snapshot_assets.errors import LiveDatabaseMissing, UnsupportedLiveDatabase
from snapshot_assets.model.dataset import Dataset

__all__ = ["SQLiteEngine"]

_LOCK_SECONDS: Final = 30.0


class SQLiteEngine(SQLiteFile):
    """The engine of SQLite files. It has no options."""

    name: Final = "sqlite"

    def version(self) -> str:
        return sqlite3.sqlite_version

    def check_dataset(self, dataset: Dataset) -> None:
        check_declaration(dataset)
        with suppress(LiveDatabaseMissing):
            header = read_live_header(dataset.real_path, len(MAGIC))
            if header and header != MAGIC:
                raise UnsupportedLiveDatabase(f"{dataset.path} is not a SQLite database", dataset=dataset.name)

    @contextmanager
    def connect_live(self, dataset: Dataset) -> Iterator[sqlite3.Connection]:
        """A connection in WAL mode with foreign keys on.

        A transaction that the block leaves open is committed, or undone if the block ends with an error.
        """
        with closing(_connect_live(dataset)) as connection, connection:
            yield connection

    def capture(self, dataset: Dataset, staging: Path, *, timeout: float) -> Captured:
        path = f"{dataset.name}.sqlite"
        mode = capture_file(dataset.real_path, staging / path, dataset.name, timeout=timeout)
        return staged_file(staging, path, mode, self.version())

    def optimize(self, dataset: Dataset, *, timeout: float) -> Optimized:
        """VACUUM, which SQLite undoes by itself if it is cut short; the journal mode and the page size stay."""
        live = dataset.real_path
        size_of_live_file(live)
        try:
            with closing(open_live(live, create=False, timeout=timeout)) as connection:
                connection.isolation_level = None
                return vacuum(
                    lambda pragma: int(connection.execute(f"pragma {pragma}").fetchone()[0]),
                    # In WAL mode the file shrinks at the checkpoint, at the latest when nobody reads any more.
                    lambda: connection.executescript("vacuum; pragma wal_checkpoint(truncate);"),
                )
        except sqlite3.Error as error:
            raise live_error(error, live, dataset.name) from error


def _connect_live(dataset: Dataset) -> sqlite3.Connection:
    live = dataset.real_path
    live.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = open_live(live, create=True, timeout=_LOCK_SECONDS)
        try:
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma foreign_keys = on")
        except sqlite3.Error:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise live_error(error, live, dataset.name) from error
    return connection
