"""Local copies: complete, checked, immutable folders of one snapshot each, and the state that names the served one."""

from __future__ import annotations

import os
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
    SnapshotDamaged,
)
from snapshot_assets.model.document import dump_document, parse_document
from snapshot_assets.model.head import SnapshotEntry
from snapshot_assets.model.manifest import Manifest, digest_of

__all__ = ["MISSING", "READY", "LocalCopy", "LocalState", "copy_name"]

READY: Final = "ready"
"""The file that is written last: a copy without it is unfinished."""

MISSING: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
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
            (folder / READY).stat()
            document = parse_document((folder / "snapshot.json").read_bytes(), where)
            incarnation = document.text("incarnation")
            manifest_bytes = document.text("manifest").encode()
            entry = SnapshotEntry.parse(document.document("entry"))
            manifest = Manifest.parse(manifest_bytes, where)
        except (*MISSING, DocumentDamaged, PathOutsideAnchor, UnicodeError) as error:
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
        except MISSING as error:
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
            except MISSING as error:
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
        with (self.folder / READY).open("wb") as file:
            os.fsync(file.fileno())
        sync_folder(self.folder)
