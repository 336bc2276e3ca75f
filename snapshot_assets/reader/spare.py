"""Spares: retired local copies in which the next refresh builds, so that it writes what differs and not everything."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import threading
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Final

from snapshot_assets.ids import new_ulid
from snapshot_assets.reader.data_dir import try_to_remove

__all__ = ["SPARE", "Spares"]

SPARE: Final = ".spare-"
"""Folders of this prefix are never opened, and are removed at start."""

_MOUNTS: Final = Path("/proc/self/mountinfo")

_KNOWING: Final = frozenset({"ext2", "ext3", "ext4", "f2fs", "tmpfs", "xfs"})
"""File systems of which the kernel knows every descriptor and every map. An overlay, a container's own file system,
forgets a map once its descriptor is closed; one of the network does not know of other machines."""


class Spares:
    """The spares of a reader, at most one a dataset. They are room that can be had back at any time.

    Safe to call from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Path, Path] = {}

    def keep(self, retired: Path) -> None:
        """Keep a copy that nobody can find any more, in its dataset's folder, in place of an earlier one.

        Where nobody can tell who uses a file it could not be built in, and is removed.
        """
        spare = retired.with_name(f"{SPARE}{new_ulid()}")
        kept = _all_users_are_known(retired.parent)
        try:
            if kept:
                retired.rename(spare)
        except OSError:
            kept = False
        if not kept:
            try_to_remove(retired)
            return
        with self._lock:
            earlier, self._kept[retired.parent] = self._kept.get(retired.parent), spare
        if earlier is not None:
            try_to_remove(earlier)

    def hand_down(self, dataset: Path, wanted: Set[str], target: Path) -> int:
        """Move the wanted files of a dataset's spare into the empty folder `target`, and remove the spare.

        Only plain files that are nobody else's go: whoever has one open, has it mapped, or gave it a second name keeps
        it as it is, like one of any copy that is removed. They move first and are looked at under a path that is new.

        Returns:
            The bytes that the moved files take on the disk.
        """
        with self._lock:
            spare = self._kept.pop(dataset, None)
        if spare is None:
            return 0
        try:
            return sum(_moved(old, target / path) for path, old in _files_of(spare / "files") if path in wanted)
        finally:
            try_to_remove(spare)

    def remove(self, dataset: Path | None = None) -> None:
        """Remove a dataset's spare, or all of them."""
        with self._lock:
            gone = [self._kept.pop(one) for one in list(self._kept) if dataset in (None, one)]
        for spare in gone:
            try_to_remove(spare)


def _all_users_are_known(folder: Path) -> bool:
    """Whether the kernel knows of everybody who has a file of this folder open or mapped."""
    try:
        device = folder.stat().st_dev
        mounts = os.fsdecode(_MOUNTS.read_bytes()).splitlines()
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    # The device is the third word of a line, and the kind of the file system the first one behind the dash.
    found = [line for line in mounts if line.split()[2] == number]
    return bool(found) and found[0].partition(" - ")[2].split()[0] in _KNOWING


def _files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    if folder.is_symlink() or folder.parent.is_symlink():
        return
    for root, _folders, names in os.walk(folder):
        for name in names:
            file = Path(root, name)
            if stat.S_ISREG(file.lstat().st_mode):
                yield file.relative_to(folder).as_posix(), file


def _moved(old: Path, new: Path) -> int:
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        old.rename(new)
    except OSError:
        return 0
    status = new.lstat()
    if status.st_nlink > 1 or not _is_closed(new):
        new.unlink()
        return 0
    new.chmod(0o600)
    return status.st_blocks * 512


def _is_closed(path: Path) -> bool:
    """Whether no other descriptor of a file, and no map of it, exists in any process; false when nobody can tell."""
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Whoever opens the file in between waits for the lease to end, and the holder gets a signal: one that is
        # ignored, since the usual one ends the process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
