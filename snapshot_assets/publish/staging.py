"""Staging folders: one an operation, locked for as long as its process lives, swept when it is gone."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapshot_assets.errors import CaptureError

__all__ = ["staging_folder"]

_LOCK = ".lock"


@contextmanager
def staging_folder(root: Path, name: str) -> Iterator[Path]:
    """A fresh, empty folder beneath `root/name`, removed at the end.

    Folders in `root` whose process died are removed first; a living one's are told by its lock and left alone.

    Raises:
        CaptureError: the folder can not be made.
    """
    folder = root / name
    try:
        lock = _make(root, folder)
    except OSError as error:
        raise CaptureError(
            f"the staging folder {folder} can not be made: {error.strerror}",
            hint="Give the publisher a staging_dir that it may write, with room for a copy of the database.",
        ) from error
    try:
        yield folder / "files"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make(root: Path, folder: Path) -> int:
    """Make the folder and return the descriptor that holds its lock."""
    root.mkdir(parents=True, exist_ok=True)
    # Under the lock of the root, so that nobody takes a folder that is being made for one that was left behind.
    with _locked(root):
        for other in root.iterdir():
            if other.is_dir() and not _is_locked(other):
                shutil.rmtree(other, ignore_errors=True)
        (folder / "files").mkdir(parents=True)
        lock = _open_lock(folder)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _open_lock(folder: Path) -> int:
    return os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = _open_lock(folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        # A child that was forked meanwhile shares the lock: unlocking, unlike closing, takes it from both.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _is_locked(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
