"""One snapshot's manifest and root, read from the store and checked."""

from __future__ import annotations

from dataclasses import dataclass

from snapshot_assets.content.index import RootIndex
from snapshot_assets.errors import DocumentDamaged, NotFound, SnapshotDamaged
from snapshot_assets.model.manifest import MAX_MANIFEST_BYTES, Manifest, digest_of, index_key, manifest_key
from snapshot_assets.store.contract import MAX_DOCUMENT_BYTES, Store

__all__ = ["Content", "read_content", "read_manifest"]


@dataclass(frozen=True, slots=True)
class Content:
    """What a snapshot consists of: its manifest and the root of its index, as values and as they are stored."""

    manifest: Manifest
    manifest_bytes: bytes
    index_bytes: bytes
    index: RootIndex

    @classmethod
    def parse(cls, manifest_bytes: bytes, index_bytes: bytes, where: str) -> Content:
        """Read both; `where` names the manifest in errors.

        Raises:
            SnapshotDamaged: one of them is damaged, or they do not belong together.
            PathOutsideAnchor: a file's path could leave its folder.
            UnsupportedFormatVersion: a newer version of this package wrote it.
        """
        try:
            manifest = Manifest.parse(manifest_bytes, where)
        except DocumentDamaged as error:
            raise SnapshotDamaged(error.message) from error
        if digest_of(index_bytes) != manifest.index_digest:
            raise SnapshotDamaged(
                f"the index that belongs to {where} does not have the digest that {where} names",
                dataset=manifest.dataset,
                operation_id=manifest.operation_id,
            )
        return cls(manifest, manifest_bytes, index_bytes, RootIndex.parse(index_bytes, manifest))


def read_content(objects: Store, dataset: str, incarnation: str, operation_id: str, manifest_digest: str) -> Content:
    """Read a snapshot's manifest and index from the store; digests are checked before anything is parsed.

    Raises:
        SnapshotDamaged: one of them is missing, or is not what the digest promises.
        PathOutsideAnchor: a file's path could leave its folder.
        UnsupportedFormatVersion: a newer version of this package wrote it.
        StoreUnavailable: the store does not answer.
    """
    key = manifest_key(dataset, incarnation, operation_id)
    manifest_bytes = _read_manifest_bytes(objects, key, manifest_digest, dataset, operation_id)
    index = index_key(dataset, incarnation, operation_id)
    index_bytes = _read(objects, index, MAX_DOCUMENT_BYTES, dataset, operation_id)
    content = Content.parse(manifest_bytes, index_bytes, key)
    _check_place(content.manifest, key, dataset, incarnation, operation_id)
    return content


def read_manifest(objects: Store, dataset: str, incarnation: str, operation_id: str, manifest_digest: str) -> Manifest:
    """Read a snapshot's manifest alone. Raises what `read_content` raises."""
    key = manifest_key(dataset, incarnation, operation_id)
    data = _read_manifest_bytes(objects, key, manifest_digest, dataset, operation_id)
    try:
        manifest = Manifest.parse(data, key)
    except DocumentDamaged as error:
        raise SnapshotDamaged(error.message, dataset=dataset, operation_id=operation_id) from error
    _check_place(manifest, key, dataset, incarnation, operation_id)
    return manifest


def _read_manifest_bytes(objects: Store, key: str, digest: str, dataset: str, operation_id: str) -> bytes:
    data = _read(objects, key, MAX_MANIFEST_BYTES, dataset, operation_id)
    if digest_of(data) != digest:
        raise SnapshotDamaged(
            f"{key} does not have the digest that the head names", dataset=dataset, operation_id=operation_id
        )
    return data


def _read(objects: Store, key: str, limit: int, dataset: str, operation_id: str) -> bytes:
    try:
        return objects.read(key, limit=limit).data
    except NotFound as error:
        raise SnapshotDamaged(f"{key} is missing", dataset=dataset, operation_id=operation_id) from error
    except DocumentDamaged as error:
        raise SnapshotDamaged(error.message, dataset=dataset, operation_id=operation_id) from error


def _check_place(found: Manifest, key: str, dataset: str, incarnation: str, operation_id: str) -> None:
    if (found.dataset, found.incarnation, found.operation_id) != (dataset, incarnation, operation_id):
        raise SnapshotDamaged(f"{key} describes another snapshot", dataset=dataset, operation_id=operation_id)
