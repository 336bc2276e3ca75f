"""Which objects the listed snapshots of a dataset need: what collection must never touch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

from snapshot_assets.content.account import PackAccount
from snapshot_assets.content.snapshot import read_manifest
from snapshot_assets.model.head import Head, SnapshotEntry
from snapshot_assets.model.manifest import data_prefix, index_key, manifest_key, pack_key
from snapshot_assets.store.contract import Store

__all__ = ["Needed", "needed_by"]

_THREADS: Final = 8


class Needed:
    """The keys that a set of snapshots needs: exact ones, and whole folders of operations where no account tells."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._folders: set[str] = set()

    def add(self, objects: Store, head: Head, entry: SnapshotEntry) -> None:
        """Add what one listed snapshot needs; its manifest is read, and checked against the head."""
        manifest = read_manifest(objects, head.dataset, head.incarnation, entry.operation_id, entry.manifest_digest)
        self._keys |= {make(head.dataset, head.incarnation, entry.operation_id) for make in (manifest_key, index_key)}
        account = PackAccount.parse(manifest.properties)
        if account is None:
            # Another program wrote it, and only the chunk tables would tell which packs of these it needs.
            self._folders |= {data_prefix(head.dataset, head.incarnation, one) for one in manifest.operations}
        else:
            self._keys |= {pack_key(head.dataset, head.incarnation, *pack) for pack in account.packs}

    def __contains__(self, key: str) -> bool:
        return key in self._keys or key.rpartition("/")[0] + "/" in self._folders


def needed_by(objects: Store, head: Head) -> Needed:
    """What the listed snapshots of a head need, all together.

    Raises:
        SnapshotDamaged: the manifest of a listed snapshot is missing or damaged, so that nobody can tell.
        StoreUnavailable: the store does not answer.
    """
    needed = Needed()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="manifests") as threads:
        for _ in threads.map(lambda entry: needed.add(objects, head, entry), head.snapshots):
            pass
    return needed
