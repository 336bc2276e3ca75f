"""Verification: whether a snapshot in the store is what its manifest promises."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from snapshot_assets.content.account import PackAccount
from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.snapshot import Content, read_content
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.errors import SnapshotDamaged
from snapshot_assets.model.head import Head, SnapshotEntry
from snapshot_assets.model.manifest import data_prefix, pack_key
from snapshot_assets.store.contract import Store
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["VerifyDepth", "VerifyReport", "verify_snapshot"]

VerifyDepth = Literal["sizes", "digest", "restore"]
"""`sizes`: every object is there, and large enough. `digest`: all is read and checked. `restore`: it is opened, too."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at, and found in order."""

    dataset: str
    snapshot_id: int
    level: VerifyDepth
    files: int
    packs: int
    data_bytes: int
    read_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The report as the command line prints it."""
        return asdict(self)


def verify_snapshot(store: SnapshotStore, head: Head, entry: SnapshotEntry, level: VerifyDepth) -> VerifyReport:
    """Check one listed snapshot in the store. Reads only; `digest` and `restore` need its size in temporary space.

    Raises:
        SnapshotDamaged: an object is missing, or its bytes do not have the digest that they should.
        CorruptCapture: the engine refuses what was restored.
        StoreUnavailable: the store does not answer.
    """
    content = read_content(store.objects, head.dataset, head.incarnation, entry.operation_id, entry.manifest_digest)
    manifest = content.manifest
    packs = _needed_packs(content)
    _check_sizes(store.objects, head, entry, packs)
    read_bytes = 0
    if level != "sizes":
        with tempfile.TemporaryDirectory(prefix="snapshot-assets-verify-") as scratch:
            read_bytes = restore_files(store.objects, content, Path(scratch)).fetched_bytes
            if level == "restore":
                paths = [file.path for file in manifest.files]
                engine_named(manifest.engine).verify(Path(scratch), paths, manifest.tables, "full")
    return VerifyReport(
        head.dataset, entry.snapshot_id, level, len(manifest.files), len(packs), manifest.data_bytes, read_bytes
    )


def _needed_packs(content: Content) -> dict[tuple[str, int], int]:
    """The packs that the snapshot needs, and how many bytes each must have at least, as far as the root tells."""
    packs: dict[tuple[str, int], int] = {}
    for place in (row.location for row in content.index.rows):
        pack = (place.operation, place.pack)
        packs[pack] = max(packs.get(pack, 0), place.offset + place.stored)
    account = PackAccount.parse(content.manifest.properties)
    for pack in () if account is None else account.packs:
        packs.setdefault(pack, 1)
    return packs


def _check_sizes(objects: Store, head: Head, entry: SnapshotEntry, packs: Mapping[tuple[str, int], int]) -> None:
    for operation in sorted({operation for operation, _ in packs}):
        prefix = data_prefix(head.dataset, head.incarnation, operation)
        sizes = {listed.key: listed.size for listed in objects.list(prefix)}
        for (of, number), least in sorted(packs.items()):
            key = pack_key(head.dataset, head.incarnation, operation, number)
            if of == operation and sizes.get(key, 0) < least:
                found = f"has {sizes[key]} bytes, at least {least} are needed" if key in sizes else "is missing"
                raise SnapshotDamaged(
                    f"{key}, which snapshot {entry.snapshot_id} needs, {found}",
                    dataset=head.dataset,
                    operation_id=entry.operation_id,
                )
