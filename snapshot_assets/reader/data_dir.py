"""A reader's data folder: one process each, and durable small steps in it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snapshot_assets.errors import ConfigurationError, DataDirBusy, DiskFull
from snapshot_assets.ids import new_ulid

__all__ = [
    "BUILDING",
    "DataDirLock",
    "disk_errors",
    "fresh_folder",
    "fsync_tree",
    "remove_folder",
    "replace_file",
    "sync_folder",
]

BUILDING = ".building-"
"""Folders of this prefix are never opened, and are removed at start."""

_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}


class DataDirLock:
    """The right of this process to a data folder, from construction to `release`.

    Raises:
        DataDirBusy: another process, or another reader of this one, has it.
        ConfigurationError: the folder can not be made or written.
    """

    def __init__(self, data_dir: Path) -> None:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(data_dir / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigurationError(
                f"the data folder {data_dir} can not be used: {error}",
                hint="Name a folder that this user may make and write.",
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise DataDirBusy(f"process {holder or 'unknown'} uses the data folder {data_dir}") from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another process have the folder; the second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextmanager
def disk_errors(what: str, dataset: str) -> Iterator[None]:
    """Turn a full disk into its typed error.

    Raises:
        DiskFull: the body ran out of space or quota.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _OUT_OF_SPACE:
            raise DiskFull(f"the disk is full: {what}: {error}", dataset=dataset) from error
        raise


def fresh_folder(folder: Path) -> Path:
    """An empty folder, whatever an earlier process left there."""
    remove_folder(folder)
    folder.mkdir()
    return folder


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make every file and folder beneath, and the folder itself, durable."""
    for root, _folders, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(root))


def replace_file(path: Path, data: bytes) -> None:
    """Put a file's whole content in place at once, durably."""
    temporary = path.with_name(f"{BUILDING}{new_ulid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that no cut can leave half of it under its own name; a missing one is success."""
    doomed = folder if folder.name.startswith(BUILDING) else folder.with_name(f"{BUILDING}{new_ulid()}")
    with suppress(FileNotFoundError):
        if doomed != folder:
            folder.rename(doomed)
        shutil.rmtree(doomed)
