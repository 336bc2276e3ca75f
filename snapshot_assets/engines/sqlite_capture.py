"""A consistent copy of one live SQLite file, the same bytes whichever way it was made."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from snapshot_assets.engines.copying import copy_live_file, size_of_live_file
from snapshot_assets.engines.sqlite_connection import is_busy, live_error, open_live
from snapshot_assets.errors import LiveDatabaseBusy, UnsupportedLiveDatabase

__all__ = ["MAGIC", "Busy", "capture_file", "capture_patiently", "has_hot_journal", "normalise", "refuse_leftovers"]

MAGIC: Final = b"SQLite format 3\0"
_JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
_HEADER_BYTES: Final = 100
_DEFAULT_PAGE_BYTES: Final = 4_096
_PAUSE_SECONDS: Final = 0.05
_LOCK_SECONDS: Final = 0.25
_PATIENCE_SECONDS: Final = 5.0

# Offset and value of what differs between equal contents: the journal mode, the change counter, the schema cookie, the
# change counter that the size in the header is valid for, and the version of the library that wrote last.
_FIXED: Final = (
    (18, b"\1\1"),
    (24, (1).to_bytes(4, "big")),
    (40, (1).to_bytes(4, "big")),
    (92, (1).to_bytes(4, "big")),
    (96, (3_007_000).to_bytes(4, "big")),
)


class Busy(Exception):
    """Somebody else is at work in the database just now."""


def capture_file(live: Path, target: Path, dataset: str, *, timeout: float) -> int:
    """Copy a live database to `target`; return the mode of the live file.

    Writers are kept out by SQLite's own locks while the file is copied. When others keep the database busy, the online
    backup API, which reads beside them, takes over.

    Raises:
        LiveDatabaseMissing: there is none.
        LiveDatabaseBusy: somebody kept it locked for `timeout` seconds.
        UnsupportedLiveDatabase: it is not a SQLite file.
        CaptureError: it can not be read, or the copy can not be written.
    """
    deadline = time.monotonic() + timeout
    size_of_live_file(live)
    try:
        with closing(open_live(live, create=False, timeout=_LOCK_SECONDS)) as connection:
            connection.isolation_level = None
            return capture_patiently(
                live,
                dataset,
                lambda: _copy(connection, live, target, timeout),
                lambda: _back_up(connection, live, target, deadline),
                timeout=timeout,
            )
    except sqlite3.Error as error:
        raise live_error(error, live, dataset) from error


def capture_patiently(
    live: Path, dataset: str, copy: Callable[[], int], read_beside: Callable[[], int], *, timeout: float
) -> int:
    """Try `copy`, which gives the cheapest snapshots, for a while, then `read_beside`; return what they return.

    Either raises `Busy` when it has to be tried again.

    Raises:
        LiveDatabaseBusy: it was so for `timeout` seconds.
    """
    start = time.monotonic()
    patience = start + min(timeout / 2, _PATIENCE_SECONDS)
    while True:
        try:
            return copy() if time.monotonic() < patience else read_beside()
        except Busy as busy:
            if time.monotonic() >= start + timeout:
                raise LiveDatabaseBusy(f"{live} was kept locked for {timeout:g} s ({busy})", dataset=dataset) from busy
        time.sleep(_PAUSE_SECONDS)


def _copy(connection: sqlite3.Connection, live: Path, target: Path, timeout: float) -> int:
    """Lock writers out and copy the file, or raise `Busy`."""
    try:
        in_wal = connection.execute("pragma journal_mode").fetchone()[0] == "wal"
        if in_wal:
            row = connection.execute("pragma wal_checkpoint(truncate)").fetchone()
            if row != (0, 0, 0):
                raise Busy(f"the checkpoint answered {row}")
        connection.execute("begin immediate" if in_wal else "begin exclusive")
    except sqlite3.OperationalError as error:
        if is_busy(error):
            raise Busy(str(error)) from error
        raise
    try:
        refuse_leftovers(live)
        copy = copy_live_file(live, target, timeout=timeout)
    finally:
        connection.rollback()
    if copy.moved:
        raise Busy(", ".join(copy.moved))
    return copy.mode


def refuse_leftovers(live: Path) -> None:
    """Refuse a file that lacks what its log holds, or that its journal would still undo.

    Neither side file bears the engine's locks, so this process may open them.
    """
    log = live.with_name(live.name + "-wal")
    if log.exists() and log.stat().st_size:
        raise Busy("rows were committed after the checkpoint")
    if has_hot_journal(live):
        raise Busy("a journal waits to be rolled back")


def has_hot_journal(live: Path) -> bool:
    """Whether a journal beside the file would still undo something in it."""
    try:
        with live.with_name(live.name + "-journal").open("rb") as file:
            return file.read(len(_JOURNAL_MAGIC)) == _JOURNAL_MAGIC
    except FileNotFoundError:
        return False


def _back_up(connection: sqlite3.Connection, live: Path, target: Path, deadline: float) -> int:
    """Copy by the online backup API, in one step and so from one committed state."""

    def give_up(status: int, _remaining: int, _total: int) -> None:
        if status in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED} and time.monotonic() >= deadline:
            raise Busy("the backup could not begin")

    target.unlink(missing_ok=True)
    with closing(sqlite3.connect(target, isolation_level=None)) as copy:
        copy.execute("pragma synchronous=off")
        copy.execute("pragma journal_mode=off")
        connection.backup(copy, pages=-1, progress=give_up, sleep=_PAUSE_SECONDS)
    return live.stat().st_mode & 0o777


def normalise(path: Path) -> int:
    """Give a copy's header its fixed values; return the page size.

    The size in the header is set too, and the file cut to it, because SQLite trusts it once both counters agree.
    """
    with path.open("r+b") as file:
        header = bytearray(file.read(_HEADER_BYTES))
        if not header:
            return _DEFAULT_PAGE_BYTES
        if not header.startswith(MAGIC):
            raise UnsupportedLiveDatabase(f"the staged copy {path} is not a SQLite database")
        page_size = int.from_bytes(header[16:18], "big")
        page_size = 65_536 if page_size == 1 else page_size
        pages = int.from_bytes(header[28:32], "big")
        if pages == 0 or header[24:28] != header[92:96]:
            pages = os.fstat(file.fileno()).st_size // page_size
        for offset, value in (*_FIXED, (28, pages.to_bytes(4, "big"))):
            header[offset : offset + len(value)] = value
        file.seek(0)
        file.write(header)
        if os.fstat(file.fileno()).st_size > pages * page_size:
            file.truncate(pages * page_size)
        return page_size
