"""SQLite: captured by a checkpoint and a copy of the one file, or by the online backup API when others keep it busy."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from snapshot_assets.engines.contract import Captured, StagedFile, VerifyLevel
from snapshot_assets.engines.copying import read_live_header
from snapshot_assets.engines.sql import quoted
from snapshot_assets.engines.sqlite_capture import MAGIC, capture_file, normalise
from snapshot_assets.engines.sqlite_connection import live_error, open_immutable, open_live
from snapshot_assets.engines.sqlite_pool import SQLitePool
from snapshot_assets.engines.sqlite_types import declared_type
from snapshot_assets.engines.tables import check_tables, chosen_tables, the_only_file
from snapshot_assets.errors import (
    ConfigurationError,
    CorruptCapture,
    LiveDatabaseMissing,
    UnsupportedLiveDatabase,
    ValidationFailed,
)
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import Layout, Manifest, TableContent
from snapshot_assets.model.schema import TableSchema

__all__ = ["SQLiteEngine"]

_STORAGE_VERSION: Final = "4"
_MINIMUM: Final = (3, 37, 0)
_LOCK_SECONDS: Final = 30.0


class SQLiteEngine:
    """The engine of SQLite files. It has no options.

    Tables are what `pragma table_list` calls a table, without SQLite's own. Virtual tables travel with the file and can
    be queried, but whether they can be read depends on the modules of a process, so they are not described.
    """

    name: Final = "sqlite"
    supports_snapshot_reload: Final = True

    def version(self) -> str:
        return sqlite3.sqlite_version

    def check_dataset(self, dataset: Dataset) -> None:
        if dataset.options:
            raise ConfigurationError(
                f"the sqlite engine has no options, {', '.join(sorted(dataset.options))} was given",
                dataset=dataset.name,
            )
        if sqlite3.sqlite_version_info < _MINIMUM:
            raise ConfigurationError(
                f"this Python has SQLite {sqlite3.sqlite_version}; at least {'.'.join(map(str, _MINIMUM))} is needed",
                hint="Use a Python that was built with a newer SQLite.",
                dataset=dataset.name,
            )
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
        page_size = normalise(staging / path)
        size = (staging / path).stat().st_size
        staged = StagedFile(path, staging / path, size, mode, Layout.blocks(0, page_size))
        return Captured((staged,), self.version(), _STORAGE_VERSION)

    def describe(self, dataset: Dataset, folder: Path, files: Sequence[str]) -> Mapping[str, TableContent]:
        path = folder / the_only_file(files)
        with _reading(path) as connection:
            names = chosen_tables(_tables(connection), dataset)
            return {name: _table_content(connection, name, without_rowid=names[name]) for name in names}

    def verify(
        self, folder: Path, files: Sequence[str], tables: Mapping[str, TableContent], level: VerifyLevel
    ) -> None:
        if level == "none":
            return
        path = folder / the_only_file(files)
        with _reading(path) as connection:
            found = _tables(connection)
            check_tables(path, tables, lambda name: _table_content(connection, name, without_rowid=found[name]), found)
            if level == "full":
                faults = [row[0] for row in connection.execute("pragma integrity_check(10)")]
                if faults != ["ok"]:
                    raise CorruptCapture(f"the copy {path} fails SQLite's integrity check: {'; '.join(faults)}")

    @contextmanager
    def staged_query(self, folder: Path, files: Sequence[str]) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
        path = folder / the_only_file(files)
        with closing(open_immutable(path)) as connection:

            def query(sql: str) -> list[tuple[Any, ...]]:
                try:
                    return connection.execute(sql).fetchall()
                except sqlite3.Error as error:
                    raise ValidationFailed(f"a statement can not be run on the staged copy: {error}") from error

            yield query

    def check_readable(self, manifest: Manifest) -> None:
        """Nothing to refuse: every SQLite 3 reads every SQLite 3 file."""

    def install(self, folder: Path, manifest: Manifest) -> None:
        """Nothing: a SQLite file is served as it is."""

    def open_pool(self, folder: Path, manifest: Manifest, *, scratch: Path | None = None) -> SQLitePool:
        del scratch  # SQLite has temporary files of its own, elsewhere
        return SQLitePool(folder / the_only_file([file.path for file in manifest.files]), manifest.dataset)


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


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A copy, open read-only; whatever SQLite finds wrong with it is a `CorruptCapture`."""
    try:
        with closing(open_immutable(path)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise CorruptCapture(f"SQLite does not read the copy {path}: {error}") from error


def _tables(connection: sqlite3.Connection) -> dict[str, bool]:
    """The names of the user's tables, and whether each is one without rowid."""
    rows = connection.execute("select name, wr from pragma_table_list where schema = 'main' and type = 'table'")
    return {name: bool(wr) for name, wr in sorted(rows) if not name.startswith("sqlite_")}


def _table_content(connection: sqlite3.Connection, name: str, *, without_rowid: bool) -> TableContent:
    columns = connection.execute(
        'select name, type, "notnull", pk from pragma_table_xinfo(?) where hidden <> 1 order by cid', (name,)
    ).fetchall()
    keys = sum(1 for column in columns if column[3])
    fields = []
    for column, declared, required, key in columns:
        is_rowid = key and keys == 1 and declared.upper() == "INTEGER"
        nullable = not (required or is_rowid or (key and without_rowid))
        fields.append(pa.field(column, declared_type(declared), nullable=nullable))
    count = connection.execute(f"select count(*) from {quoted(name)}").fetchone()[0]
    return TableContent(TableSchema.from_arrow(pa.schema(fields)), count)
