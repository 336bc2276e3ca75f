"""The two locks of a table's folder: one writer at a time, and no file removed while somebody may read it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from snapshot_assets.errors import CaptureError, LiveDatabaseBusy

__all__ = ["deletion_gate", "may_delete", "writing"]

_DELETIONS: Final = ".deletions.lock"
_WRITER: Final = ".writer.lock"
_POLL_SECONDS: Final = 0.01


@contextmanager
def writing(folder: Path, *, timeout: float) -> Iterator[None]:
    """Be the only writer of a table, across threads and processes.

    Raises:
        LiveDatabaseBusy: another one was for `timeout` seconds.
    """
    with _lock(folder / _WRITER, fcntl.LOCK_EX, timeout) as held:
        if not held:
            raise LiveDatabaseBusy(
                f"another writer changed the table in {folder} for {timeout:g} s",
                hint="Wait until the other writer is done, then try again.",
            )
        yield


@contextmanager
def deletion_gate(folder: Path, *, timeout: float) -> Iterator[None]:
    """Keep every file of a table where it is. Any number may hold this at a time, and writers go on.

    Raises:
        LiveDatabaseBusy: files were being removed for `timeout` seconds.
    """
    with _lock(folder / _DELETIONS, fcntl.LOCK_SH, timeout) as held:
        if not held:
            raise LiveDatabaseBusy(f"files of the table in {folder} were being removed for {timeout:g} s")
        yield


@contextmanager
def may_delete(folder: Path) -> Iterator[bool]:
    """Whether nobody reads files of the table now; then nobody begins to before the end of the block."""
    with _lock(folder / _DELETIONS, fcntl.LOCK_EX, 0) as held:
        yield held


@contextmanager
def _lock(path: Path, kind: int, timeout: float) -> Iterator[bool]:
    deadline = time.monotonic() + timeout
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise CaptureError(
            f"the lock {path} can not be used: {error.strerror}", hint="Make the data folder writable."
        ) from error
    try:
        held = _take(descriptor, kind, deadline)
        try:
            yield held
        finally:
            if held:
                # A child that was forked meanwhile shares the lock: unlocking, unlike closing, takes it from both.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _take(descriptor: int, kind: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        else:
            return True
