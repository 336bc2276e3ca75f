"""Aborting: from then on no call of the store is begun, by whichever thread of the writing."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from snapshot_assets.errors import Aborted
from snapshot_assets.store.contract import MAX_DOCUMENT_BYTES, Listed, Store, Versioned
from snapshot_assets.store.settled import SettledStore
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["AbortSwitch"]


class AbortSwitch:
    """Whether a writing was aborted. Safe to use from several threads.

    Args:
        dataset: what is written.

    Attributes:
        event: set when it was aborted; waits wait on it, so that it wakes them.
    """

    def __init__(self, dataset: str) -> None:
        self.event = threading.Event()
        self._dataset = dataset

    def abort(self) -> None:
        """Abort the writing. A second time changes nothing."""
        self.event.set()

    def check(self) -> None:
        """Go on, or not.

        Raises:
            Aborted: the writing was aborted.
        """
        if self.event.is_set():
            raise Aborted(
                f"the writing of {self._dataset!r} was aborted; nothing of it became visible", dataset=self._dataset
            )

    def guard(self, objects: Store) -> Store:
        """The store, each call of which raises `Aborted` instead of being begun after the abort, retries included."""
        if isinstance(objects, SettledStore):
            return objects.through(lambda inner: _GuardedStore(inner, self))
        return _GuardedStore(objects, self)

    def guarded(self, store: SnapshotStore) -> SnapshotStore:
        """The store of snapshots over guarded objects."""
        return SnapshotStore(self.guard(store.objects), read_only=store.read_only)


class _GuardedStore:
    """Another store, until the switch is thrown."""

    def __init__(self, inner: Store, switch: AbortSwitch) -> None:
        self._inner = inner
        self._switch = switch

    @property
    def url(self) -> str:
        return self._inner.url

    def read(self, key: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned:
        self._switch.check()
        return self._inner.read(key, limit=limit)

    def read_if_changed(self, key: str, token: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned | None:
        self._switch.check()
        return self._inner.read_if_changed(key, token, limit=limit)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        self._switch.check()
        return self._inner.read_ranges(key, ranges)

    def write_if_absent(self, key: str, data: bytes) -> str:
        self._switch.check()
        return self._inner.write_if_absent(key, data)

    def write_if_match(self, key: str, data: bytes, token: str) -> str:
        self._switch.check()
        return self._inner.write_if_match(key, data, token)

    def upload(self, key: str, source: bytes | bytearray | memoryview | Path) -> None:
        self._switch.check()
        self._inner.upload(key, source)

    def list(self, prefix: str) -> Iterator[Listed]:
        self._switch.check()
        return self._inner.list(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        self._switch.check()
        self._inner.delete(keys)
