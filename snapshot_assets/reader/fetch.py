"""From a listed snapshot to a local copy that is ready to be opened."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from snapshot_assets.content.restore import Donor, restore_files
from snapshot_assets.content.snapshot import Content, read_content
from snapshot_assets.durable import sync_folder, write_synced
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.errors import CorruptCapture, DiskFull, SnapshotAssetsError, SnapshotDamaged
from snapshot_assets.failpoints import (
    REFRESH_AFTER_FETCH,
    REFRESH_AFTER_INSTALL,
    REFRESH_AFTER_READY,
    REFRESH_AFTER_RENAME,
    REFRESH_AFTER_SPARE,
    REFRESH_DURING_FETCH,
    Failpoints,
)
from snapshot_assets.model.head import Head, SnapshotEntry
from snapshot_assets.model.schema import schemas_compatible
from snapshot_assets.reader.data_dir import disk_errors, fsync_tree, remove_folder, try_to_remove
from snapshot_assets.reader.dataset_folder import DatasetFolder
from snapshot_assets.reader.local_copy import LocalCopy, copy_name
from snapshot_assets.store.contract import Store

__all__ = ["Obtained", "obtain_copy"]

_log = logging.getLogger(__name__)

_ROOM_BYTES: Final = 16 * 1024 * 1024
"""What a copy needs beyond its files: its index, its documents, and room for the file system itself."""


@dataclass(frozen=True, slots=True)
class Obtained:
    """A ready local copy, with a use counted for the caller, and what it cost."""

    copy: LocalCopy
    fetched_bytes: int = 0
    reused_bytes: int = 0


def obtain_copy(
    objects: Store,
    folder: DatasetFolder,
    head: Head,
    entry: SnapshotEntry,
    failpoints: Failpoints,
    check_open: Callable[[], None],
) -> Obtained:
    """The local copy of a snapshot that the head lists: a warm one if there is one, else fetched.

    A failure leaves nothing behind.

    Args:
        objects: where to fetch from.
        folder: where the dataset's local copies lie.
        head: the dataset's head.
        entry: the snapshot, one that the head lists.
        failpoints: what tests break.
        check_open: called while bytes arrive; what it raises ends the fetch.

    Raises:
        SnapshotDamaged: an object is missing or holds other bytes, or the engine does not open what they make.
        EngineTooOld: this process's engine can not read it; nothing was downloaded.
        DiskFull: it would not, or did not, fit.
        ReaderError: the operating system refuses something; a local copy that is there stays.
        StoreUnavailable: the store does not answer.
    """
    name = copy_name(head.incarnation, entry.snapshot_id)
    warm = folder.find(name, manifest_digest=entry.manifest_digest)
    if warm is not None:
        return Obtained(warm)
    content = read_content(objects, head.dataset, head.incarnation, entry.operation_id, entry.manifest_digest)
    manifest = content.manifest
    if not schemas_compatible(head.tables(entry.schema_id), manifest.schemas):
        raise SnapshotDamaged(
            f"the manifest of snapshot {entry.snapshot_id} has other columns than the head says", dataset=head.dataset
        )
    engine_named(manifest.engine).check_readable(manifest)
    with disk_errors("a local copy can not be made", head.dataset, folder.path):
        building = folder.building()
        try:
            copy = LocalCopy(building, head.incarnation, entry, manifest, content.manifest_bytes)
            copy.files.mkdir()
            copy.index.mkdir()
            handed_down = folder.hand_down({file.path for file in manifest.files}, copy.files)
            failpoints.hit(REFRESH_AFTER_SPARE)
            _check_room(folder, content, handed_down)
            fetched_bytes, reused_bytes = _fill(objects, folder, copy, content, failpoints, check_open)
            failpoints.hit(REFRESH_AFTER_FETCH)
            ready = _put_in_place(folder, copy, failpoints)
        except BaseException:
            try_to_remove(building)
            raise
    return Obtained(ready, fetched_bytes, reused_bytes)


def _check_room(folder: DatasetFolder, content: Content, handed_down: int) -> None:
    needed = content.manifest.data_bytes + len(content.index_bytes) + _ROOM_BYTES - handed_down
    free = shutil.disk_usage(folder.path).free
    if free < needed:
        folder.make_room()
        free = shutil.disk_usage(folder.path).free
    if free < needed:
        raise DiskFull(
            f"a local copy of {content.manifest.dataset!r} takes {needed:,} bytes and {folder.path} has {free:,} free",
            dataset=content.manifest.dataset,
        )


def _fill(
    objects: Store,
    folder: DatasetFolder,
    copy: LocalCopy,
    content: Content,
    failpoints: Failpoints,
    check_open: Callable[[], None],
) -> tuple[int, int]:
    def on_segment() -> None:
        failpoints.hit(REFRESH_DURING_FETCH)
        check_open()

    with folder.in_use() as local_copies:
        restored = restore_files(
            objects,
            content,
            copy.files,
            donors=_donors(local_copies),
            index_folder=copy.index,
            over=True,
            on_segment=on_segment,
        )
    # The files were made durable when they were restored.
    fsync_tree(copy.index)
    write_synced(copy.folder / "snapshot.json", copy.describe())
    sync_folder(copy.folder)
    return restored.fetched_bytes, restored.reused_bytes


def _donors(local_copies: list[LocalCopy]) -> list[Donor]:
    donors = []
    for local in local_copies:
        try:
            donors.append(Donor(local.files, local.content(), local.index))
        except (SnapshotAssetsError, OSError) as error:
            _log.warning("nothing is reused from the local copy %s: %s", local.folder, error)
    return donors


def _put_in_place(folder: DatasetFolder, copy: LocalCopy, failpoints: Failpoints) -> LocalCopy:
    """Give the copy its final name, let the engine open it there, and only then call it ready."""
    final = folder.path / copy.name
    remove_folder(final)
    copy.folder.rename(final)
    try:
        sync_folder(folder.path)
        failpoints.hit(REFRESH_AFTER_RENAME)
        placed = LocalCopy(final, copy.incarnation, copy.entry, copy.manifest, copy.manifest_bytes)
        manifest = placed.manifest
        engine = engine_named(manifest.engine)
        engine.install(placed.files, manifest)
        try:
            engine.verify(placed.files, [file.path for file in manifest.files], manifest.tables, "quick")
        except CorruptCapture as error:
            raise SnapshotDamaged(
                f"snapshot {placed.entry.snapshot_id} has the right digests and does not verify: {error}",
                dataset=manifest.dataset,
            ) from error
        failpoints.hit(REFRESH_AFTER_INSTALL)
        # What `install` wrote among the files; where it wrote nothing they are durable already, and this is cheap.
        fsync_tree(placed.files)
        placed.mark_ready()
        failpoints.hit(REFRESH_AFTER_READY)
    except BaseException:
        try_to_remove(final)
        raise
    folder.adopt(placed.name)
    return placed
