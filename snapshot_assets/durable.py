"""Small steps on this machine's disk that a power cut can not undo, and what a full disk is called."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["is_full", "sync_folder", "write_synced"]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_COPY_BYTES: Final = 4 * 1024 * 1024


def is_full(error: OSError) -> bool:
    """Whether there was no room: on the disk, in the user's quota, or for a file of that size."""
    return error.errno in _FULL


def write_synced(path: Path, source: bytes | bytearray | memoryview | BinaryIO) -> None:
    """Write a new file and make its content durable; its name is, once `sync_folder` was called for its folder.

    Raises:
        OSError: the file exists already and is left as it is, or it can not be written and part of it may be there.
    """
    with path.open("xb") as file:
        if isinstance(source, bytes | bytearray | memoryview):
            file.write(source)
        else:
            shutil.copyfileobj(source, file, _COPY_BYTES)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
