"""A reader's data folder: one process each, and durable small steps in it."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from snapshot_assets.durable import is_full, sync_folder, write_synced
from snapshot_assets.errors import ConfigurationError, DataDirBusy, DiskFull, ReaderError
from snapshot_assets.ids import new_ulid

__all__ = [
    "BUILDING",
    "DataDirLock",
    "disk_errors",
    "fresh_folder",
    "fsync_tree",
    "remove_folder",
    "replace_file",
    "set_aside",
    "try_to_remove",
]

_log = logging.getLogger(__name__)

BUILDING = ".building-"
"""Folders of this prefix are never opened, and are removed at start."""


class DataDirLock:
    """The right of this process to a data folder, from construction to `release`; a context manager.

    Raises:
        DataDirBusy: another process, or another reader of this one, has it.
        ConfigurationError: the folder can not be made or written.
    """

    def __init__(self, data_dir: Path) -> None:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(data_dir / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the data folder {str(data_dir)!r} can not be used: {error}",
                hint="Name a folder that this user may make and write.",
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise DataDirBusy(f"process {holder or 'unknown'} uses the data folder {data_dir}") from None
        self._pid = os.getpid()
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{self._pid}\n".encode(), 0)
        except OSError as error:
            if is_full(error):
                # The pid is for people; what is in the folder can be served without a free byte.
                return
            self.release()
            raise ConfigurationError(f"the data folder {str(data_dir)!r} can not be used: {error}") from error

    def release(self) -> None:
        """Let another process have the folder; the second call does nothing."""
        if self._descriptor >= 0:
            if os.getpid() == self._pid:
                # A forked child holds the same lock: closing alone would leave it locked for as long as that lives.
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextmanager
def disk_errors(what: str, dataset: str, path: Path) -> Iterator[None]:
    """Turn what the operating system refuses at a path into a typed error, which says nothing of the data there.

    Raises:
        DiskFull: the body ran out of space or quota.
        ReaderError: it was refused something else, such as a right, or one more open file.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise DiskFull(f"the disk is full: {what}: {path}: {error}", dataset=dataset) from error
        raise ReaderError(
            f"{what}: {path}: {error}",
            hint="Let this user read and write the folder and open enough files, then try again; nothing was lost.",
            dataset=dataset,
        ) from error


def fresh_folder(folder: Path) -> Path:
    """An empty folder, whatever an earlier process left there."""
    remove_folder(folder)
    folder.mkdir()
    return folder


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
        write_synced(temporary, data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def set_aside(path: Path) -> Path:
    """Take a folder's or file's name away in one step; what is under the new name is never opened, only removed."""
    doomed = path.with_name(f"{BUILDING}{new_ulid()}")
    path.rename(doomed)
    return doomed


def remove_folder(path: Path) -> None:
    """Remove a folder, or file, so that no cut leaves half of it under its own name; a missing one is success."""
    try:
        doomed = path if path.name.startswith(BUILDING) else set_aside(path)
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed)
        else:
            doomed.unlink()
    except FileNotFoundError:
        return


def try_to_remove(path: Path) -> None:
    """`remove_folder`, where what is left must not stand in the way of anything: a failure is logged."""
    try:
        remove_folder(path)
    except OSError as error:
        _log.warning("%s can not be removed now; the next start tries again: %s", path, error)
