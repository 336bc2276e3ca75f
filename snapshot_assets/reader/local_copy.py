"""Local copies: complete, checked, immutable folders of one snapshot each, and the state that names the served one."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapshot_assets.content.restore import INDEX_FILE
from snapshot_assets.content.segments import hash_files
from snapshot_assets.content.snapshot import Content
from snapshot_assets.durable import sync_folder
from snapshot_assets.engines.contract import StagedFile
from snapshot_assets.errors import (
    CorruptCapture,
    DocumentDamaged,
    PathOutsideAnchor,
    SnapshotAssetsError,
    SnapshotDamaged,
)
from snapshot_assets.ids import new_ulid
from snapshot_assets.model.document import dump_document, parse_document
from snapshot_assets.model.head import SnapshotEntry
from snapshot_assets.model.manifest import Manifest, digest_of
from snapshot_assets.reader.data_dir import BUILDING, replace_file, set_aside, try_to_remove

__all__ = ["DatasetFolder", "LocalCopy", "LocalState", "copy_name"]

_log = logging.getLogger(__name__)
_COPY_NAME: Final = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}-s\d+")
_READY: Final = "ready"

_MISSING: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""What says that a file is not there. Other refusals of the operating system pass, and say nothing of a copy."""


def copy_name(incarnation: str, snapshot_id: int) -> str:
    """The folder name of a local copy: its snapshot, not a generation, so that a rollback finds it again."""
    return f"{incarnation}-s{snapshot_id}"


@dataclass(frozen=True, slots=True)
class LocalState:
    """What is served, as `state.json` says it; `pinned` when a pin chose the snapshot."""

    incarnation: str
    generation: int
    snapshot_id: int
    pinned: bool = False

    @classmethod
    def parse(cls, data: bytes, where: str) -> LocalState:
        """Read a state document.

        Raises:
            UnsupportedFormatVersion: a newer version of this package wrote it.
            DocumentDamaged: it breaks a rule of the format.
        """
        document = parse_document(data, where)
        return cls(
            document.text("incarnation"),
            document.count("generation"),
            document.count("snapshot_id"),
            "pinned" in document.rest and document.flag("pinned"),
        )

    def to_bytes(self) -> bytes:
        """The document as it is written."""
        return dump_document(
            {"incarnation": self.incarnation, "generation": self.generation, "snapshot_id": self.snapshot_id}
            | ({"pinned": True} if self.pinned else {})
        )


@dataclass(frozen=True, slots=True)
class LocalCopy:
    """One local copy: where it lies, and what it is a copy of.

    Its methods raise `SnapshotDamaged` on evidence only: something is missing, or is not what it should be. What stands
    in the way of looking, such as too many open files, is an `OSError`.
    """

    folder: Path
    incarnation: str
    entry: SnapshotEntry
    manifest: Manifest
    manifest_bytes: bytes

    @classmethod
    def read(cls, folder: Path, manifest_digest: str | None = None) -> LocalCopy:
        """Read the description of the copy in a folder.

        Raises:
            SnapshotDamaged: it is missing, not ready, contradicts itself, or has not the manifest that was asked for.
            UnsupportedFormatVersion: a newer version of this package wrote it.
        """
        where = str(folder / "snapshot.json")
        try:
            (folder / _READY).stat()
            document = parse_document((folder / "snapshot.json").read_bytes(), where)
            incarnation = document.text("incarnation")
            manifest_bytes = document.text("manifest").encode()
            entry = SnapshotEntry.parse(document.document("entry"))
            manifest = Manifest.parse(manifest_bytes, where)
        except (*_MISSING, DocumentDamaged, PathOutsideAnchor, UnicodeError) as error:
            raise SnapshotDamaged(f"the local copy {folder} is not complete: {error}") from error
        if (
            digest_of(manifest_bytes) != entry.manifest_digest
            or entry.manifest_digest != (manifest_digest or entry.manifest_digest)
            or folder.name != copy_name(incarnation, entry.snapshot_id)
        ):
            raise SnapshotDamaged(f"the local copy {folder} is not what its name says")
        return cls(folder, incarnation, entry, manifest, manifest_bytes)

    def describe(self) -> bytes:
        """The content of its `snapshot.json`. The manifest is kept as text, since its digest is of its exact bytes."""
        return dump_document(
            {
                "dataset": self.manifest.dataset,
                "incarnation": self.incarnation,
                "entry": self.entry.to_json(),
                "manifest": self.manifest_bytes.decode(),
            }
        )

    @property
    def name(self) -> str:
        """The folder's final name."""
        return copy_name(self.incarnation, self.entry.snapshot_id)

    @property
    def files(self) -> Path:
        """Where the snapshot's files lie under their manifest paths."""
        return self.folder / "files"

    @property
    def index(self) -> Path:
        """Where the root and the chunk tables of the index lie."""
        return self.folder / "index"

    def content(self) -> Content:
        """The snapshot as a donor of bytes.

        Raises:
            SnapshotDamaged: its index is missing or is another one.
        """
        try:
            index_bytes = (self.index / INDEX_FILE).read_bytes()
        except _MISSING as error:
            raise SnapshotDamaged(f"the local copy {self.folder} has no index: {error}") from error
        return Content.parse(self.manifest_bytes, index_bytes, str(self.folder / "snapshot.json"))

    def check_dataset(self, dataset: str) -> None:
        """Check that it is a copy of this dataset: somebody may have moved folders.

        Raises:
            SnapshotDamaged: it is one of another.
        """
        if self.manifest.dataset != dataset:
            raise SnapshotDamaged(f"the local copy {self.folder} is one of {self.manifest.dataset!r}")

    def check_sizes(self) -> None:
        """Check that every file is there with its size.

        Raises:
            SnapshotDamaged: one is not.
        """
        for file in self.manifest.files:
            path = self.files / file.path
            try:
                size = path.stat().st_size
            except _MISSING as error:
                raise SnapshotDamaged(f"{path} is missing from its local copy") from error
            if size != file.size:
                raise SnapshotDamaged(f"{path} has {size} bytes, not {file.size}")

    def check_digests(self) -> None:
        """Read every file and check its digest.

        Raises:
            SnapshotDamaged: a file is missing or holds other bytes.
        """
        staged = [
            StagedFile(file.path, self.files / file.path, file.size, file.mode, file.layout)
            for file in self.manifest.files
        ]
        try:
            found = hash_files(staged)
        except CorruptCapture as error:
            raise SnapshotDamaged(f"the local copy {self.folder} is not complete: {error}") from error
        for hashed, file in zip(found, self.manifest.files, strict=True):
            if hashed.entry.content_digest != file.content_digest:
                raise SnapshotDamaged(f"{self.files / file.path} does not have the digest of its manifest")

    def mark_ready(self) -> None:
        """Say, last of all and durably, that the copy may be opened."""
        with (self.folder / _READY).open("wb") as file:
            os.fsync(file.fileno())
        sync_folder(self.folder)


class DatasetFolder:
    """The local copies of one dataset, which of them are in use, and which one is served.

    Safe to call from several threads; copies are made and served by one thread at a time, the dataset's refresh. A copy
    loses its name while the lock is held, and is deleted afterwards: a new copy may have the name by then.
    """

    def __init__(self, path: Path, *, keep: int) -> None:
        self.path = path
        self._keep = keep
        self._lock = threading.Lock()
        self._uses: dict[str, int] = {}
        self._served: list[str] = []
        self._state: LocalState | None = None

    def recover(self) -> None:
        """Remove what an earlier process left unfinished. Nothing of this folder is open.

        A copy without its `ready` is unfinished, whatever else it holds. What can not be removed is left for later.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        by_age: list[tuple[float, str]] = []
        for child in list(self.path.iterdir()):
            if child.name.startswith(BUILDING):
                try_to_remove(child)
            elif _COPY_NAME.fullmatch(child.name):
                try:
                    by_age.append(((child / _READY).stat().st_mtime, child.name))
                except _MISSING:
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
            self._served.append(name)
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
            self._served = [name for name in self._served if name != copy.name] + [copy.name]
        os.utime(copy.folder / _READY)

    def use(self, name: str) -> None:
        """Count a use of a copy: it is not deleted before it is given back."""
        with self._lock:
            self._uses[name] = self._uses.get(name, 0) + 1

    def give_back(self, name: str) -> None:
        """End a use of a copy."""
        with self._lock:
            self._end_use(name)

    def retire(self, keep: int | None = None) -> None:
        """Delete the copies that are neither among the `keep` served last nor in use; what fails is tried again."""
        keep = self._keep if keep is None else keep
        with self._lock:
            old = self._served[: max(len(self._served) - keep, 0)]
            doomed = [self._set_aside(name) for name in old if name not in self._uses]
        for path in doomed:
            if path is not None:
                try_to_remove(path)

    def discard(self, name: str) -> bool:
        """End the use of a copy that is damaged, and delete it if that was the last one; tell whether it is gone."""
        with self._lock:
            self._end_use(name)
            doomed = None if name in self._uses else self._set_aside(name)
            gone = name not in self._served
        if doomed is not None:
            try_to_remove(doomed)
        return gone

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
