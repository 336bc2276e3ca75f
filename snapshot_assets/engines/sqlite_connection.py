"""Opening SQLite files, and what SQLite's errors mean."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from snapshot_assets.errors import CaptureError, LiveDatabaseBusy, UnsupportedLiveDatabase

__all__ = ["is_busy", "is_damage", "is_read_only", "live_error", "open_immutable", "open_live"]


def open_live(live: Path, *, create: bool, timeout: float) -> sqlite3.Connection:
    """A read-write connection that waits up to `timeout` seconds for each lock."""
    return sqlite3.connect(f"file:{quote(str(live))}?mode={'rwc' if create else 'rw'}", uri=True, timeout=timeout)


def open_immutable(path: Path) -> sqlite3.Connection:
    """A read-only connection that takes no locks and makes no side files, because the file never changes."""
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True, check_same_thread=False, isolation_level=None
    )


def is_busy(error: sqlite3.Error) -> bool:
    """Whether somebody else holds a lock."""
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is not, or no longer, a whole database."""
    return _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}


def is_read_only(error: sqlite3.Error) -> bool:
    """Whether a write was refused."""
    return _code(error) == sqlite3.SQLITE_READONLY


def live_error(error: sqlite3.Error, live: Path, dataset: str) -> CaptureError | UnsupportedLiveDatabase:
    """What an error of a live database is to the user."""
    if _code(error) == sqlite3.SQLITE_NOTADB:
        return UnsupportedLiveDatabase(f"{live} is not a SQLite database", dataset=dataset)
    if is_busy(error):
        return LiveDatabaseBusy(f"{live} is locked by another connection", dataset=dataset)
    return CaptureError(f"SQLite can not use {live}: {error}", dataset=dataset)


def _code(error: sqlite3.Error) -> int:
    """The primary result code; errors of Python's own module have none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
