"""Opening live Turso databases, and what pyturso's errors mean.

pyturso locks a database file for its process. Opening the file a second time in that process closes a descriptor of it
again, which gives the lock up: then any SQLite program can come, and at its end remove the log into which the open
connection still writes. All connections of this package to one file therefore share one database, opened once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import turso
from turso.lib import (  # type: ignore[attr-defined]  # pyturso opens databases, not only connections, but lists neither
    PyTursoDatabase,
    PyTursoDatabaseConfig,
    py_turso_database_open,
)

from snapshot_assets.engines.copying import read_live_header
from snapshot_assets.engines.sqlite_capture import MAGIC, has_hot_journal
from snapshot_assets.errors import CaptureError, LiveDatabaseBusy, SnapshotAssetsError, UnsupportedLiveDatabase
from snapshot_assets.model.dataset import Dataset

__all__ = ["LiveConnection", "check_live", "is_busy", "live_errors", "open_live"]

_FEATURES: Final = "vacuum"
"""What is switched on beyond pyturso's defaults. All connections to a file share it, so it is the same for all."""

_HEADER_BYTES: Final = 100
_MVCC: Final = b"\xff\xff"
_PAUSE_SECONDS: Final = 0.05
_SQLITE_HINT: Final = (
    "Publish it with the engine 'sqlite', or drop what pyturso does not read: virtual tables such as FTS5 and R*Tree, "
    "generated columns, text that is not UTF-8."
)


class LiveConnection(turso.Connection):
    """A connection that lets go of the file when it is closed; pyturso's own does when it is garbage-collected."""

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if not isinstance(self._conn, _Closed):
            super().close()
            self._conn = _Closed()


class _Closed:
    """Stands for the inside of a closed connection."""

    def __getattr__(self, name: str) -> NoReturn:
        raise turso.ProgrammingError("the connection is closed")


@dataclass(slots=True)
class _Shared:
    database: PyTursoDatabase
    users: int = 0


_SHARED: Final[dict[Path, _Shared]] = {}
_SHARING: Final = threading.Lock()


def check_live(dataset: Dataset) -> None:
    """Refuse a live file of which no capture could be made, by what is in its header and beside it.

    Raises:
        LiveDatabaseMissing: it is not there.
        UnsupportedLiveDatabase: it is not a Turso database, or of a form that can not be captured.
    """
    live = dataset.real_path
    header = read_live_header(live, _HEADER_BYTES)
    log, shared = Path(f"{live}-log"), Path(f"{live}-tshm")
    if header and not header.startswith(MAGIC):
        raise UnsupportedLiveDatabase(f"{live} is not a Turso database, or an encrypted one", dataset=dataset.name)
    if header[18:20] == _MVCC or (log.exists() and log.stat().st_size):
        raise _is_mvcc(live, dataset.name)
    if any(header[52:56]):
        raise UnsupportedLiveDatabase(
            f"{live} has auto_vacuum on, and Turso only reads such a file",
            hint="Publish it with the engine 'sqlite', or turn it off there: `pragma auto_vacuum = none; vacuum`.",
            dataset=dataset.name,
        )
    if shared.exists():
        raise UnsupportedLiveDatabase(
            f"{shared} shows that {live} is shared by several processes, which the capture could not keep from writing",
            hint="Open it without the feature multiprocess_wal, and remove that file when no program has it open.",
            dataset=dataset.name,
        )
    if has_hot_journal(live):
        raise UnsupportedLiveDatabase(
            f"a SQLite program left a transaction of {live} half done, which Turso does not roll back",
            hint=f"Open it once with SQLite, which does: `sqlite3 {live} 'select count(*) from sqlite_schema'`.",
            dataset=dataset.name,
        )


@contextmanager
def open_live(live: Path, dataset: str, *, timeout: float = 0.0) -> Iterator[LiveConnection]:
    """A read-write connection; the file is made if there is none. Other processes are waited for `timeout` seconds.

    Raises:
        LiveDatabaseBusy: another process had it open.
        UnsupportedLiveDatabase: Turso does not read it, or it is an MVCC database.
        CaptureError: the operating system does not let this process open it.
    """
    database = _shared_database(live, dataset, time.monotonic() + timeout)
    try:
        with live_errors(live, dataset, opening=True):
            connection = LiveConnection(database.connect())
        with closing(connection):
            with live_errors(live, dataset, opening=True):
                mode = connection.execute("pragma journal_mode").fetchone()
            if mode == ("mvcc",):
                raise _is_mvcc(live, dataset)
            yield connection
    finally:
        del database
        with _SHARING:
            _SHARED[live].users -= 1
            if not _SHARED[live].users:
                del _SHARED[live]


@contextmanager
def live_errors(live: Path, dataset: str, *, opening: bool = False) -> Iterator[None]:
    """Raise Turso's errors as what they are to the user."""
    try:
        yield
    except Exception as error:
        # pyturso has errors that are no `turso.Error`, and some that it does not even export.
        if type(error).__module__.partition(".")[0] != "turso":
            raise
        raise _live_error(error, live, dataset, opening=opening) from error


def is_busy(error: turso.Error) -> bool:
    """Whether somebody else holds a lock."""
    return "locked" in str(error)


def _shared_database(live: Path, dataset: str, deadline: float) -> PyTursoDatabase:
    """The database that all connections to the file share, with one more user."""
    while True:
        try:
            with _SHARING, live_errors(live, dataset, opening=True):
                if live not in _SHARED:
                    config = PyTursoDatabaseConfig(path=str(live), experimental_features=_FEATURES)
                    _SHARED[live] = _Shared(py_turso_database_open(config))
                _SHARED[live].users += 1
                return _SHARED[live].database
        except LiveDatabaseBusy:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE_SECONDS)


def _is_mvcc(live: Path, dataset: str) -> UnsupportedLiveDatabase:
    return UnsupportedLiveDatabase(
        f"{live} is an MVCC database, whose committed rows lie in a log that only Turso reads",
        hint="Turn it back with `pragma journal_mode = 'wal'` and publish again.",
        dataset=dataset,
    )


def _live_error(error: Exception, live: Path, dataset: str, *, opening: bool) -> SnapshotAssetsError:
    text = str(error)
    if "experimental-vacuum" in text:
        return LiveDatabaseBusy(
            f"{live} is open in this process by a connection that is not the dataset's own",
            hint="Close that connection, or open it as the dataset's live connection.",
            dataset=dataset,
        )
    if "locked" in text:
        return LiveDatabaseBusy(f"{live} is held by somebody else: {text}", dataset=dataset)
    if opening and type(error).__name__ != "IoError":
        return UnsupportedLiveDatabase(f"Turso does not read {live}: {text}", hint=_SQLITE_HINT, dataset=dataset)
    return CaptureError(f"Turso can not use {live}: {text}", dataset=dataset)
