"""The folder of one dataset: its local copies, which of them are in use, and which one is served."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from snapshot_assets.durable import sync_folder
from snapshot_assets.errors import SnapshotAssetsError, SnapshotDamaged
from snapshot_assets.ids import new_ulid
from snapshot_assets.reader.data_dir import BUILDING, replace_file, set_aside, try_to_remove
from snapshot_assets.reader.local_copy import MISSING, READY, LocalCopy, LocalState, copy_name
from snapshot_assets.reader.spare import SPARE, Spares

__all__ = ["DatasetFolder"]

_log = logging.getLogger(__name__)
_COPY_NAME: Final = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}-s\d+")


class DatasetFolder:
    """The local copies of one dataset, which of them are in use, and which one is served.

    Safe to call from several threads; copies are made and served by one thread at a time, the dataset's refresh. A copy
    loses its name while the lock is held, and is deleted afterwards: a new copy may have the name by then.
    """

    def __init__(self, path: Path, *, keep: int, spares: Spares) -> None:
        self.path = path
        self._keep = keep
        self._spares = spares
        self._lock = threading.Lock()
        self._uses: dict[str, int] = {}
        self._served: list[str] = []
        self._outgoing: str | None = None
        self._state: LocalState | None = None

    def recover(self) -> None:
        """Remove what an earlier process left unfinished. Nothing of this folder is open.

        A copy without its `ready` is unfinished, whatever else it holds. What can not be removed is left for later.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        by_age: list[tuple[float, str]] = []
        for child in list(self.path.iterdir()):
            if child.name.startswith((BUILDING, SPARE)):
                try_to_remove(child)
            elif _COPY_NAME.fullmatch(child.name):
                try:
                    by_age.append(((child / READY).stat().st_mtime, child.name))
                except MISSING:
                    try_to_remove(child)
        self._served = [name for _age, name in sorted(by_age)]

    def state(self) -> LocalState | None:
        """What was served last.

        Raises:
            UnsupportedFormatVersion: a newer version of this package wrote it.
            DocumentDamaged: it can not be understood.
        """
        path = self.path / "state.json"
        try:
            self._state = LocalState.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        return self._state

    def write_state(self, state: LocalState) -> None:
        """Name what is served, durably, for the next start and for people; nothing is done when it is named already."""
        if state == self._state:
            return
        replace_file(self.path / "state.json", state.to_bytes())
        link = self.path / f"{BUILDING}{new_ulid()}"
        link.symlink_to(copy_name(state.incarnation, state.snapshot_id))
        link.replace(self.path / "current")
        sync_folder(self.path)
        self._state = state

    def forget_state(self) -> None:
        """Name nothing as served."""
        if self._state is None:
            return
        (self.path / "current").unlink(missing_ok=True)
        (self.path / "state.json").unlink(missing_ok=True)
        sync_folder(self.path)
        self._state = None

    def building(self) -> Path:
        """A new, empty folder to build a copy in."""
        folder = self.path / f"{BUILDING}{new_ulid()}"
        folder.mkdir()
        return folder

    def hand_down(self, wanted: Set[str], target: Path) -> int:
        """Move these files of a retired copy, if one is spare and they are nobody else's, into the empty `target`.

        Returns:
            The bytes that they take on the disk; what they hold is any old content.
        """
        return self._spares.hand_down(self.path, wanted, target)

    def make_room(self) -> None:
        """Give up every copy that is only there to be built in, those of the reader's other datasets too."""
        self._spares.remove()

    def find(self, name: str, *, manifest_digest: str | None = None, digests: bool = False) -> LocalCopy | None:
        """The ready copy of a name, with a use counted for the caller; a damaged one is removed and counts as none.

        Args:
            name: the folder's name.
            manifest_digest: the digest that its manifest must have.
            digests: read all its files and check their digests, not only their sizes.

        Raises:
            SnapshotDamaged: it is damaged, and can not be removed while somebody uses it.
            UnsupportedFormatVersion: a newer version of this package wrote it.
        """
        with self._lock:
            if name not in self._served:
                return None
            self._uses[name] = self._uses.get(name, 0) + 1
        try:
            copy = LocalCopy.read(self.path / name, manifest_digest)
            copy.check_dataset(self.path.name)
            copy.check_sizes()
            if digests:
                copy.check_digests()
        except SnapshotDamaged as error:
            if not self.discard(name):
                raise
            _log.warning("%s: it is removed, and fetched again when it is needed", error)
            return None
        except BaseException:
            self.give_back(name)
            raise
        return copy

    def adopt(self, name: str) -> None:
        """Take up a copy that has just become ready, with a use counted for the caller."""
        with self._lock:
            self._put_last(name)
            self._uses[name] = self._uses.get(name, 0) + 1

    @contextmanager
    def in_use(self) -> Iterator[list[LocalCopy]]:
        """Every copy that can be read, the one served last first, none of them deleted while the body runs."""
        with self._lock:
            names = self._served[::-1]
            for name in names:
                self._uses[name] = self._uses.get(name, 0) + 1
        try:
            yield [copy for name in names if (copy := self._read(name))]
        finally:
            for name in names:
                self.give_back(name)

    def _read(self, name: str) -> LocalCopy | None:
        try:
            return LocalCopy.read(self.path / name)
        except (SnapshotAssetsError, OSError) as error:
            _log.warning("nothing is reused from a local copy: %s", error)
            return None

    def names(self) -> tuple[str, ...]:
        """The names of the local copies, the one served last at the end."""
        with self._lock:
            return tuple(self._served)

    def served(self, copy: LocalCopy) -> None:
        """Note that a copy is the one served last, also across a restart."""
        with self._lock:
            self._put_last(copy.name)
        os.utime(copy.folder / READY)

    def use(self, name: str) -> None:
        """Count a use of a copy: it is not deleted before it is given back."""
        with self._lock:
            self._uses[name] = self._uses.get(name, 0) + 1

    def give_back(self, name: str) -> None:
        """End a use of a copy."""
        with self._lock:
            self._end_use(name)

    def retire(self, keep: int | None = None) -> None:
        """Delete the copies that are neither among the `keep` served last nor in use; what fails is tried again.

        The one that went out of the warm ones last stays as a spare, unless nothing is to be kept. An older one, whose
        lease ended late, does not: it may be of any size, and spares count to what this folder may take.
        """
        keep = self._keep if keep is None else keep
        with self._lock:
            old = [name for name in self._served[: max(len(self._served) - keep, 0)] if name not in self._uses]
            doomed = {name: path for name in old if (path := self._set_aside(name)) is not None}
            spare = doomed.pop(self._outgoing, None) if keep and self._outgoing else None
        if spare is not None:
            self._spares.keep(spare)
        for path in doomed.values():
            try_to_remove(path)
        if not keep:
            self._spares.remove(self.path)

    def discard(self, name: str) -> bool:
        """End the use of a copy that is damaged, and delete it if that was the last one; tell whether it is gone."""
        with self._lock:
            self._end_use(name)
            doomed = None if name in self._uses else self._set_aside(name)
            gone = name not in self._served
        if doomed is not None:
            try_to_remove(doomed)
        return gone

    def _put_last(self, name: str) -> None:
        self._served = [other for other in self._served if other != name] + [name]
        self._outgoing = self._served[-self._keep - 1] if len(self._served) > self._keep else None

    def _end_use(self, name: str) -> None:
        self._uses[name] -= 1
        if not self._uses[name]:
            del self._uses[name]

    def _set_aside(self, name: str) -> Path | None:
        """Take a copy's name away; the lock is held. What lies there now is the caller's to delete."""
        doomed = None
        try:
            doomed = set_aside(self.path / name)
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.warning("the local copy %s can not be removed now: %s", self.path / name, error)
            return None
        self._served.remove(name)
        return doomed
