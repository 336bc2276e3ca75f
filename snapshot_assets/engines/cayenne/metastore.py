"""The metastore: a SQLite catalogue of Cayenne tables, shared by many datasets.

Where things lie (the default layout; the functions below say it in code):

- the metastore is `<root>/metadata/cayenne.db`, the data folder is `<root>/data`. The data folder is the *anchor* of a
  slice: every path in a slice is relative to it.
- A table's folder is `<data>/<table_id>`; that is `cayenne_table.path`. A partition is a table of its own, with a table
  id of its own, so its folder lies *beside* the parent's, and `cayenne_partition.path` is the child's `path`.
- A data file is `<table folder>/<snapshot_id>/<name>.vortex`, a delete file
  `<table folder>/<snapshot_id>/deletions/<name>`.
- Path columns (`path`) hold the absolute path, with `path_is_relative` 0. File columns (`file_path`,
  `source_data_file_path`) hold the file's path relative to its table's folder, POSIX, so they are portable as they are.

Rows of different datasets stand in the same tables, so ids (`delete_file_id`, `partition_id`, `inlined_id`) must be
unique in the whole metastore, also after an import from another one: give every row a fresh ULID.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

from snapshot_assets.engines.cayenne.metastore_tables import INDEXES, TABLES, MetastoreTable
from snapshot_assets.engines.sqlite_connection import is_busy, is_damage, is_read_only, open_immutable
from snapshot_assets.errors import (
    CaptureError,
    ConfigurationError,
    LiveDatabaseBusy,
    LiveDatabaseMissing,
    ReadOnlyDataset,
    SnapshotAssetsError,
    UnsupportedLiveDatabase,
)

__all__ = [
    "BUSY_SECONDS",
    "STAMP",
    "TABLES",
    "MetastoreTable",
    "check_metastore",
    "child_table_name",
    "create_tables",
    "data_folder",
    "default_metastore",
    "deletions_folder",
    "file_path",
    "legacy_child_table_name",
    "metastore_error",
    "open_metastore",
    "select",
    "snapshot_folder",
    "stored_path",
    "table_folder",
    "table_key",
    "transaction",
]

STAMP: Final = 1
"""The `user_version` that this package writes, and the newest that it opens."""

BUSY_SECONDS: Final = 30.0
"""How long each lock of the metastore is waited for."""

_UUID: Final = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def data_folder(root: Path) -> Path:
    """The folder of all data of a root: the anchor of slices."""
    return root / "data"


def default_metastore(root: Path) -> Path:
    """The metastore of a root whose datasets name no other one."""
    return root / "metadata" / "cayenne.db"


def table_folder(data: Path, table_id: str) -> Path:
    """The folder of a table, or of a partition's child table: its `path`."""
    return data / table_id


def snapshot_folder(table: Path, snapshot_id: str) -> Path:
    """The folder of the data files that came with one snapshot of a table."""
    return table / snapshot_id


def deletions_folder(table: Path, snapshot_id: str) -> Path:
    """The folder of the delete files that came with one snapshot of a table."""
    return snapshot_folder(table, snapshot_id) / "deletions"


def file_path(snapshot_id: str, name: str) -> str:
    """What `file_path` and `source_data_file_path` say of a data file: its path relative to the table's folder."""
    return f"{snapshot_id}/{name}"


def stored_path(data: Path, path: str, is_relative: object) -> Path:
    """Where a `path` of the metastore leads, by its flag `path_is_relative`."""
    return data / path if is_relative else Path(path)


def table_key(table_id: str) -> bytes:
    """What a blob-keyed table has for a table id: the 16 bytes of a UUID, in whichever case; else the text in UTF-8."""
    return UUID(table_id).bytes if _UUID.fullmatch(table_id) else table_id.encode()


def child_table_name(parent: str, partition_key: str) -> str:
    """The name of a partition's table: one plain identifier, whatever the key."""
    return f"{parent}_p{partition_key.encode().hex().upper()}"


def legacy_child_table_name(parent: str, values: Sequence[str]) -> str:
    """The name that earlier metastores gave a partition's table. It is read and never written: it is not unique."""
    return "_".join([parent, *values])


def open_metastore(path: Path, *, create: bool = False, read_only: bool = False) -> sqlite3.Connection:
    """Open a metastore and check that its tables are the expected ones.

    The connection is in autocommit mode: `transaction` groups statements. It may be used from several threads, one at a
    time. It waits up to `BUSY_SECONDS` for each lock, and foreign keys are on.

    Args:
        path: the file.
        create: make the file and the tables that are not there; several processes may do so at once.
        read_only: the file never changes (a reader's copy), so it is read without locks and side files.

    Raises:
        LiveDatabaseMissing: there is no such file, or no table in it, and `create` is off.
        LiveDatabaseBusy: another program kept it locked for `BUSY_SECONDS`.
        UnsupportedLiveDatabase: it is not a SQLite file, was made by a newer version, or has other columns.
        ConfigurationError: `create` and `read_only` contradict each other.
    """
    if create and read_only:
        raise ConfigurationError("a metastore that is opened read-only can not be created")
    if not create and not path.is_file():
        raise LiveDatabaseMissing(f"there is no metastore at {path}")
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        connection = open_immutable(path) if read_only else _open_live(path, create=create)
    except (OSError, sqlite3.Error) as error:
        raise UnsupportedLiveDatabase(f"the metastore {path} can not be opened: {error}") from error
    try:
        _prepare(connection, create=create, read_only=read_only)
    except sqlite3.Error as error:
        failure = metastore_error(error, connection)
        connection.close()
        raise failure from error
    except BaseException:
        connection.close()
        raise
    return connection


def _open_live(path: Path, *, create: bool) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode={'rwc' if create else 'rw'}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def _prepare(connection: sqlite3.Connection, *, create: bool, read_only: bool) -> None:
    if create:
        _check_stamp(connection)
        _check_columns(connection)
        _use_wal(connection)
        create_tables(connection)
    check_metastore(connection)
    if not read_only:
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL. The switch needs the file for itself and SQLite does not wait for it, so this does."""
    deadline = time.monotonic() + BUSY_SECONDS
    while select(connection, "PRAGMA journal_mode") != [("wal",)]:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def create_tables(connection: sqlite3.Connection) -> None:
    """Add the tables and indexes that are not there, all in one transaction.

    Raises:
        LiveDatabaseBusy: another program kept the metastore locked.
    """
    if not _missing(_columns(connection)):
        return
    with transaction(connection):
        for table in TABLES:
            connection.execute(table.statement)
        for statement in INDEXES:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {STAMP}")


def check_metastore(connection: sqlite3.Connection) -> None:
    """Require the stamp, the tables, and in each table exactly the expected columns in the expected order.

    Tables that are not known are nobody's business here.

    Raises:
        LiveDatabaseMissing: no known table is there.
        UnsupportedLiveDatabase: a newer version made it, a table is missing, or one has other columns.
    """
    _check_stamp(connection)
    missing = _missing(_columns(connection))
    if len(missing) == len(TABLES):
        raise LiveDatabaseMissing(f"the metastore {_file_of(connection)} has no tables yet")
    _check_columns(connection, *(f"{name} is missing" for name in missing))


def _check_stamp(connection: sqlite3.Connection) -> None:
    ((stamp,),) = select(connection, "PRAGMA user_version")
    if stamp > STAMP:
        raise UnsupportedLiveDatabase(
            f"the metastore {_file_of(connection)} is of version {stamp}; this snapshot-assets opens up to {STAMP}",
            hint="Upgrade snapshot-assets.",
        )


def _check_columns(connection: sqlite3.Connection, *differences: str) -> None:
    found = _columns(connection)
    other = [
        f"{table.name} has the columns {', '.join(found[table.name])}, not {', '.join(table.columns)}"
        for table in TABLES
        if found.get(table.name, table.columns) != table.columns
    ]
    if differences or other:
        raise UnsupportedLiveDatabase(
            f"the metastore {_file_of(connection)} has another layout: {'; '.join([*differences, *other])}",
            hint="Open it with the version that made it, or build the datasets anew in another metastore.",
        )


def _missing(found: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [table.name for table in TABLES if table.name not in found]


def _columns(connection: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    """The columns of every table that is there, generated ones included."""
    found: dict[str, tuple[str, ...]] = {}
    rows = select(
        connection,
        "SELECT t.name, c.name FROM sqlite_master AS t JOIN pragma_table_xinfo(t.name) AS c"
        " WHERE t.type = 'table' AND t.name LIKE 'cayenne\\_%' ESCAPE '\\' ORDER BY t.name, c.cid",
    )
    for table, column in rows:
        found[table] = (*found.get(table, ()), column)
    return found


def select(connection: sqlite3.Connection, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """All rows of a statement as plain tuples, whatever the caller's connection makes of rows."""
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor.execute(statement, parameters).fetchall()


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing: `BEGIN IMMEDIATE`, then `COMMIT`, or `ROLLBACK` when anything is raised.

    Raises:
        LiveDatabaseBusy: another program kept the metastore locked for the connection's busy timeout.
        ReadOnlyDataset: the connection is read-only.
        ConfigurationError: the connection is in the middle of another transaction.
        CaptureError: SQLite refused a statement of the body.
    """
    if connection.in_transaction:
        raise ConfigurationError("the connection to the metastore is in the middle of another transaction")
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise metastore_error(error, connection) from error
    finally:
        connection.rollback()


def metastore_error(error: sqlite3.Error, connection: sqlite3.Connection) -> SnapshotAssetsError:
    """What an error of SQLite is to the user of a metastore; the caller raises it."""
    where = _file_of(connection)
    if is_busy(error):
        return LiveDatabaseBusy(f"another program kept the metastore {where} locked")
    if is_read_only(error):
        return ReadOnlyDataset(f"the metastore {where} is open read-only")
    if is_damage(error):
        return UnsupportedLiveDatabase(f"the metastore {where} is not a whole SQLite database: {error}")
    return CaptureError(f"SQLite can not use the metastore {where}: {error}")


def _file_of(connection: sqlite3.Connection) -> Path:
    ((_, _, path), *_) = select(connection, "PRAGMA database_list")
    return Path(path or ":memory:")
