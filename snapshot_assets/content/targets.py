"""The files that a restore writes: made with their size or taken over, filled in any order, made durable at the end."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from snapshot_assets.content.segments import ScratchBuffers, hash_stretch
from snapshot_assets.durable import is_full, sync_folder
from snapshot_assets.errors import DiskFull, PathOutsideAnchor
from snapshot_assets.model.manifest import FileEntry

__all__ = ["TargetFiles", "disk_full_is_typed"]

_SYNCERS: Final = 8

_COMPARED_BYTES: Final = 64 * 1024
"""Of a file that is taken over, pieces of this size are written when they differ."""


class TargetFiles:
    """The files of a snapshot beneath a folder; nothing outside of it is ever opened.

    Args:
        folder: made if there is none.
        files: their paths were checked when the manifest was parsed.
    """

    def __init__(self, folder: Path, files: Sequence[FileEntry]) -> None:
        self._folder = folder
        self._files = files
        self._folders = [folder]
        self._taken_over: set[int] = set()

    def create(self, *, over: bool) -> None:
        """Make every file, of its full size.

        Args:
            over: a file that is there is taken over, with the bytes that it holds; else none may be there.

        Raises:
            PathOutsideAnchor: something that is not a folder, such as a link, stands where a folder has to be.
            DiskFull: there is no room.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folders = [self._folder, *sorted({self._folder / part for part in self._parents()})]
        with disk_full_is_typed(self._folder):
            for inner in self._folders[1:]:
                inner.mkdir(exist_ok=True)
                if not stat.S_ISDIR(inner.lstat().st_mode):
                    raise PathOutsideAnchor(f"{inner} is not a folder")
            for number, file in enumerate(self._files):
                path = self._folder / file.path
                flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                if over and _is_plain(path):
                    self._taken_over.add(number)
                else:
                    flags |= os.O_CREAT | os.O_EXCL
                descriptor = os.open(path, flags, 0o600)
                try:
                    os.ftruncate(descriptor, file.size)
                finally:
                    os.close(descriptor)

    def hash_earlier(self, number: int, offset: int, length: int, buffers: ScratchBuffers) -> bytes | None:
        """The digest of what a file that was taken over holds there; none when it is a new one, or is unreadable."""
        if number not in self._taken_over:
            return None
        try:
            with self._open(number, os.O_RDONLY) as descriptor:
                return hash_stretch(descriptor, offset, length, buffers)
        except OSError:
            return None

    def write(self, number: int, offset: int, plain: bytes | memoryview) -> None:
        """Fill a part of a file.

        Raises:
            DiskFull: there is no room.
        """
        with disk_full_is_typed(self._folder), self._open(number, os.O_RDWR) as descriptor:
            if number in self._taken_over:
                _write_differing(descriptor, offset, memoryview(plain))
            else:
                _write_all(descriptor, offset, plain)
            _begin_writing_out(descriptor, offset, len(plain))

    def copy(self, number: int, offset: int, plain: memoryview, source: Path, source_offset: int) -> None:
        """Fill a part of a file with bytes that another file holds too: shared where the file system can.

        Raises:
            DiskFull: there is no room.
        """
        if number in self._taken_over:
            self.write(number, offset, plain)
            return
        done = 0
        with disk_full_is_typed(self._folder), self._open(number, os.O_WRONLY) as descriptor:
            try:
                done = _copy_all(source, source_offset, descriptor, offset, len(plain))
            except OSError as error:
                if is_full(error):
                    raise
            _write_all(descriptor, offset + done, plain[done:])
            _begin_writing_out(descriptor, offset, len(plain))

    def finish(self) -> None:
        """Give every file its mode and make files and folders durable."""

        def settle(file: FileEntry) -> None:
            descriptor = os.open(self._folder / file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchmod(descriptor, stat.S_IMODE(file.mode))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

        with disk_full_is_typed(self._folder), ThreadPoolExecutor(_SYNCERS, thread_name_prefix="sync") as pool:
            for _ in pool.map(settle, self._files):
                pass
            for inner in reversed(self._folders):
                sync_folder(inner)

    def _parents(self) -> Iterator[str]:
        for file in self._files:
            parts = file.path.split("/")
            for depth in range(1, len(parts)):
                yield "/".join(parts[:depth])

    @contextmanager
    def _open(self, number: int, access: int) -> Iterator[int]:
        path = self._folder / self._files[number].path
        descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def disk_full_is_typed(folder: Path) -> Iterator[None]:
    """Turn a full disk into its typed error.

    Raises:
        DiskFull: the body ran out of room.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise DiskFull(f"there is no room left for the snapshot in {folder}") from error
        raise


def _is_plain(path: Path) -> bool:
    return os.path.lexists(path) and stat.S_ISREG(path.lstat().st_mode)


def _write_all(descriptor: int, offset: int, plain: bytes | memoryview) -> None:
    view = memoryview(plain)
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)


def _write_differing(descriptor: int, offset: int, plain: memoryview) -> None:
    """Write what is not there already: the disk has as much to do as has changed."""
    for start in range(0, len(plain), _COMPARED_BYTES):
        piece = bytes(plain[start : start + _COMPARED_BYTES])
        if not _holds(descriptor, offset + start, piece):
            _write_all(descriptor, offset + start, piece)


def _holds(descriptor: int, offset: int, piece: bytes) -> bool:
    try:
        return os.pread(descriptor, len(piece), offset) == piece
    except OSError:
        return False


def _begin_writing_out(descriptor: int, offset: int, length: int) -> None:
    """Let the kernel begin to write what is still dirty, so that little is left to do when all is synced."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def _copy_all(source: Path, source_offset: int, target: int, offset: int, length: int) -> int:
    """Let the kernel copy, as far as it can; the bytes that were copied."""
    done = 0
    if not hasattr(os, "copy_file_range"):
        return done
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while done < length:
            copied = os.copy_file_range(descriptor, target, length - done, source_offset + done, offset + done)
            if copied == 0:
                break
            done += copied
    finally:
        os.close(descriptor)
    return done
