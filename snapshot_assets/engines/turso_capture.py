"""A consistent copy of one live Turso database, which SQLite reads."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import turso

from snapshot_assets.engines.copying import copy_live_file, read_live_header
from snapshot_assets.engines.sql import quoted
from snapshot_assets.engines.sqlite_capture import Busy, capture_patiently, refuse_leftovers
from snapshot_assets.engines.sqlite_connection import is_damage, live_error, open_immutable
from snapshot_assets.engines.sqlite_file import user_tables
from snapshot_assets.engines.turso_connection import is_busy, live_errors, open_live
from snapshot_assets.errors import CorruptCapture, UnsupportedLiveDatabase

__all__ = ["capture_file", "check_for_readers"]

_LOG_HEADER_BYTES: Final = 32


def capture_file(live: Path, target: Path, dataset: str, *, timeout: float) -> int:
    """Copy a live database to `target`; return the mode of the live file.

    Other processes are kept out by pyturso's lock on the file, the other connections of this process by a transaction.
    When they keep the database busy, the file is copied beside them, together with its log.

    Raises:
        LiveDatabaseBusy: another process had it open, or connections of this one kept it locked, for `timeout` seconds.
        UnsupportedLiveDatabase: Turso does not read it, it is an MVCC database, or SQLite does not know its schema.
        CaptureError: it can not be read, or the copy can not be written.
    """
    deadline = time.monotonic() + timeout
    with (
        open_live(live, dataset, timeout=timeout) as connection,
        live_errors(live, dataset),
        _reader_errors(target, live, dataset),
    ):
        connection.isolation_level = None
        return capture_patiently(
            live,
            dataset,
            lambda: _copy(connection, live, target, timeout),
            lambda: _copy_with_log(connection, live, target, timeout),
            timeout=max(0.0, deadline - time.monotonic()),
        )


def check_for_readers(copy: Path, live: Path, dataset: str) -> None:
    """Refuse what only Turso reads: readers have SQLite.

    Raises:
        UnsupportedLiveDatabase: SQLite does not know the copy's schema, or what a table or an index of it is made of.
    """
    with _reader_errors(copy, live, dataset), closing(open_immutable(copy)) as connection:
        for table in user_tables(connection):
            connection.execute(f"explain select * from {quoted(table)}")
        connection.execute("explain reindex")


@contextmanager
def _reader_errors(copy: Path, live: Path, dataset: str) -> Iterator[None]:
    """Raise SQLite's errors about a copy as what they are to the user."""
    try:
        yield
    except sqlite3.Error as error:
        if is_damage(error) and not str(error).startswith("malformed database schema"):
            raise CorruptCapture(f"SQLite does not read the copy of {live}: {error}", dataset=dataset) from error
        if not is_damage(error) and error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise live_error(error, copy, dataset) from error
        raise UnsupportedLiveDatabase(
            f"readers open the snapshot with SQLite, which can not read {live}: {error}",
            hint="Drop what only Turso knows: its own column types, materialized views, full-text indexes, and its "
            "functions in generated columns and indexes.",
            dataset=dataset,
        ) from error


def _copy(connection: turso.Connection, live: Path, target: Path, timeout: float) -> int:
    """Lock writers out and copy the file, or raise `Busy`."""
    with _busy():
        row = connection.execute("pragma wal_checkpoint(truncate)").fetchone()
        if row != (0, 0, 0):
            raise Busy(f"the checkpoint answered {row}")
        connection.execute("begin immediate")
    try:
        refuse_leftovers(live)
        copy = copy_live_file(live, target, timeout=timeout)
        refuse_leftovers(live)
    finally:
        connection.rollback()
    if copy.moved:
        raise Busy(", ".join(copy.moved))
    return copy.mode


def _copy_with_log(connection: turso.Connection, live: Path, target: Path, timeout: float) -> int:
    """Copy the file and then its log, and let SQLite put the two together as after a crash, or raise `Busy`.

    The log is only added to, and while this connection reads, no checkpoint brings into the file what is committed from
    now on. So the copy of the log has all that the copy of the file may lack. It ends with a committed state, since a
    transaction of which only a part was copied does not count. Its header shows whether it was begun anew meanwhile.
    """
    log, copied_log = (path.with_name(path.name + "-wal") for path in (live, target))
    with _busy():
        committed = connection.execute("pragma wal_checkpoint(passive)").fetchone()[1] or 0
        connection.execute("begin")
    try:
        with _busy():
            connection.execute("select count(*) from sqlite_schema").fetchall()
        header = read_live_header(log, _LOG_HEADER_BYTES)
        mode = copy_live_file(live, target, timeout=timeout).mode
        copy_live_file(log, copied_log, timeout=timeout)
        if read_live_header(log, _LOG_HEADER_BYTES) != header:
            raise Busy("the log was begun anew while it was copied")
    finally:
        connection.rollback()
    with closing(sqlite3.connect(target, isolation_level=None)) as joined:
        joined.execute("pragma synchronous = off")
        _, found, _ = joined.execute("pragma wal_checkpoint(full)").fetchone()
        joined.execute("pragma journal_mode = delete")
    copied_log.unlink(missing_ok=True)
    if max(found, 0) < committed:
        raise Busy(f"SQLite finds {found} pages in the log, Turso had {committed}")
    return mode


@contextmanager
def _busy() -> Iterator[None]:
    try:
        yield
    except turso.Error as error:
        if is_busy(error):
            raise Busy(str(error)) from error
        raise
