"""A store in a folder of this machine."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from snapshot_assets.durable import is_full, sync_folder, write_synced
from snapshot_assets.errors import AccessDenied, Conflict, DocumentDamaged, NotFound, StoreError, StoreUnavailable
from snapshot_assets.ids import new_ulid
from snapshot_assets.paths import real_path
from snapshot_assets.store.contract import MAX_DOCUMENT_BYTES, Listed, Versioned
from snapshot_assets.store.keys import check_key, check_prefix, check_ranges, check_size

__all__ = ["LocalStore"]

_LOCKS: Final = ".locks"
_TEMPORARY: Final = ".temporary"
_STALE_SECONDS: Final = 3600.0
_LOCK_SECONDS: Final = 10.0
_LEAST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05
_TIME_STEPS_NS: Final = (1, 1_000, 1_000_000, 2_000_000_000)


class LocalStore:
    """One file an object, under a root folder that is made at the first write. Not for network file systems.

    A write goes to a temporary file, which is synced and then renamed under a lock of the key, so a name always stands
    for complete content and a process that is killed leaves nothing but a temporary file, which a later one sweeps.

    The token of an object is its file's inode, modification time and size. Under the lock every write is given a
    modification time above all that its lock has given before: no two writes of a key share a token, whatever they
    hold, however coarse the clock, and also when the key was deleted in between. The lock file's own modification
    time remembers the last one.

    Args:
        root: the folder.

    Raises:
        ConfigurationError: the system knows no such path, or its links lead in a circle.
    """

    def __init__(self, root: Path) -> None:
        self._root = real_path(root)
        self._swept = False

    @property
    def url(self) -> str:
        return self._root.as_uri()

    def read(self, key: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned:
        found = self._read(key, None, limit)
        assert found is not None
        return found

    def read_if_changed(self, key: str, token: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned | None:
        return self._read(key, token, limit)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        with self._open(key) as (descriptor, status):
            check_ranges(key, ranges, status.st_size)
            return [memoryview(_read_exactly(descriptor, key, length, offset)) for offset, length in ranges]

    def write_if_absent(self, key: str, data: bytes) -> str:
        return self._write(key, data, None)

    def write_if_match(self, key: str, data: bytes, token: str) -> str:
        return self._write(key, data, token)

    def upload(self, key: str, source: bytes | bytearray | memoryview | Path) -> None:
        if isinstance(source, Path):
            with source.open("rb") as file:
                self._write(key, file, None)
        else:
            self._write(key, source, None)

    def list(self, prefix: str) -> Iterator[Listed]:
        check_prefix(prefix)
        folders = [prefix]
        while folders:
            folder = folders.pop()
            with self._errors(folder):
                try:
                    entries = [entry for entry in os.scandir(self._root / folder) if not entry.name.startswith(".")]
                except (FileNotFoundError, NotADirectoryError):
                    continue
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{folder}{entry.name}/")
                        continue
                    status = _status(Path(entry.path))
                    if status is None:
                        continue
                    key = f"{folder}{entry.name}"
                    yield Listed(key, status.st_size, _token(status), status.st_mtime_ns // 1_000_000)

    def delete(self, keys: Iterable[str]) -> None:
        folders: set[Path] = set()
        for key in [check_key(key) for key in keys]:
            path = self._path(key)
            with self._errors(key):
                if _status(path) is None:
                    continue
                self._prepare()
                with self._lock(key):
                    path.unlink(missing_ok=True)
                folders.add(path.parent)
        for folder in folders:
            with self._errors(folder.name), contextlib.suppress(FileNotFoundError):
                sync_folder(folder)
            self._drop_empty_folders(folder)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _read(self, key: str, token: str | None, limit: int) -> Versioned | None:
        with self._open(key) as (descriptor, status):
            found = _token(status)
            if found == token:
                return None
            check_size(key, status.st_size, limit)
            return Versioned(_read_exactly(descriptor, key, status.st_size, 0), found)

    @contextlib.contextmanager
    def _open(self, key: str) -> Iterator[tuple[int, os.stat_result]]:
        path = self._path(key)
        with self._errors(key):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise NotFound(f"{key} is not in {self.url}") from error
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise NotFound(f"{key} is a folder of {self.url}, not an object")
                yield descriptor, status
            finally:
                os.close(descriptor)

    def _write(self, key: str, source: bytes | bytearray | memoryview | BinaryIO, expected: str | None) -> str:
        """Put the source under the key if the key's token is the expected one; none means that there is no object."""
        target = self._path(key)
        with self._errors(key):
            self._prepare()
            temporary = self._root / _TEMPORARY / new_ulid()
            try:
                write_synced(temporary, source)
                with self._lock(key) as lock:
                    found = _status(target)
                    if (_token(found) if found else None) != expected:
                        state = "exists already" if expected is None else "is another version by now, or gone"
                        raise Conflict(f"{key} {state}")
                    token = _stamp(temporary, lock, found)
                    self._rename(temporary, target)
                    return token
            finally:
                temporary.unlink(missing_ok=True)

    def _prepare(self) -> None:
        if self._swept:
            return
        for name in (_LOCKS, _TEMPORARY):
            _make_folder(self._root / name)
        oldest = time.time() - _STALE_SECONDS
        for entry in os.scandir(self._root / _TEMPORARY):
            with contextlib.suppress(FileNotFoundError):
                if entry.stat().st_mtime < oldest:
                    Path(entry.path).unlink()
        self._swept = True

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[int]:
        """Hold the lock that the key shares with one in 256 other keys, against threads and processes alike.

        A holder that dies lets go of it; one that is stopped does not, and nobody waits for it without end.

        Raises:
            StoreUnavailable: somebody else held it for all of `_LOCK_SECONDS`.
        """
        name = hashlib.blake2b(key.encode(), digest_size=1).hexdigest()
        descriptor = os.open(self._root / _LOCKS / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._take(descriptor, key)
            yield descriptor
        finally:
            # Said aloud, because closing is not enough when a fork has a copy of the descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _take(self, descriptor: int, key: str) -> None:
        deadline, pause = time.monotonic() + _LOCK_SECONDS, _LEAST_PAUSE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StoreUnavailable(
                        f"another process has held the lock of {key} in {self.url} for {_LOCK_SECONDS:g} s",
                        hint="A process that is stopped while it writes keeps it: continue that process, or end it.",
                    ) from None
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                return

    def _rename(self, temporary: Path, target: Path) -> None:
        while True:
            try:
                _make_folder(target.parent)
                temporary.rename(target)
                sync_folder(target.parent)
            except FileNotFoundError:
                # A deletion may have removed the empty folder meanwhile; a missing temporary file is another matter.
                if not temporary.exists():
                    raise
            else:
                return

    def _drop_empty_folders(self, folder: Path) -> None:
        with contextlib.suppress(OSError):
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Give an operating system's error the type that says what to do about it."""
        try:
            yield
        except OSError as error:
            message = f"{self.url}: {error.strerror or error} ({key})"
            if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
                hint = f"Give this user the right to read and write {self._root}."
                raise AccessDenied(message, hint=hint) from error
            if is_full(error):
                raise StoreError(message, hint=f"Free disk space under {self._root}; nothing was written.") from error
            if error.errno in {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}:
                hint = "No object may lie beneath another one, and no name may be too long for the file system."
                raise StoreError(message, hint=hint) from error
            raise StoreUnavailable(message) from error


def _token(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _status(path: Path) -> os.stat_result | None:
    """What the object's file is, if there is one."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _stamp(temporary: Path, lock: int, replaced: os.stat_result | None) -> str:
    """Give the file a modification time above all that the lock has given, and return the token that it now has."""
    last = max(os.fstat(lock).st_mtime_ns, replaced.st_mtime_ns if replaced else 0)
    now = time.time_ns()
    # A file system may round down to microseconds or seconds; then the next coarser step is taken.
    for step in _TIME_STEPS_NS:
        wanted = max(now, last + step)
        os.utime(temporary, ns=(wanted, wanted))
        status = temporary.stat()
        if status.st_mtime_ns > last:
            os.utime(lock, ns=(status.st_mtime_ns, status.st_mtime_ns))
            return _token(status)
    raise StoreError(
        f"the file system of {temporary} does not keep modification times",
        hint="Keep the store on a local file system such as ext4, XFS, Btrfs or APFS.",
    )


def _read_exactly(descriptor: int, key: str, length: int, offset: int) -> bytes:
    data = os.pread(descriptor, length, offset)
    while len(data) < length:
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            raise DocumentDamaged(f"{key} became shorter while it was read")
        data += more
    return data


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each of them durable."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
    sync_folder(folder.parent)
