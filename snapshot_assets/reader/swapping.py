"""From the local copy that is served to the next: open it, hand over, swap, and drain what was served before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from snapshot_assets.clock import Clock
from snapshot_assets.errors import SnapshotDamaged
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.reader.dataset_folder import DatasetFolder
from snapshot_assets.reader.dispatching import ReloadDispatcher
from snapshot_assets.reader.drain import Drains
from snapshot_assets.reader.local_copy import LocalCopy
from snapshot_assets.reader.opening import open_copy
from snapshot_assets.reader.provider import SnapshotProvider
from snapshot_assets.reader.registry import PoolRegistry
from snapshot_assets.reader.serving import Serving
from snapshot_assets.reader.settings import Current, ReaderSettings
from snapshot_assets.reader.spare import Spares
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["ReaderParts", "Swapper"]


@dataclass(frozen=True, slots=True)
class ReaderParts:
    """What all followed datasets of a reader share."""

    store: SnapshotStore
    settings: ReaderSettings
    clock: Clock
    failpoints: Failpoints
    registry: PoolRegistry
    drains: Drains
    spares: Spares
    spill: Path
    check_open: Callable[[], None]
    on_change: Callable[[], None]


class Swapper:
    """What one dataset's provider serves, and the only one who changes it; one change at a time.

    `floor` is the highest generation that was served, also before a restart: nothing lower ever is.
    """

    def __init__(self, provider: SnapshotProvider, folder: DatasetFolder, parts: ReaderParts) -> None:
        self.dispatcher = ReloadDispatcher(provider.dataset, lambda: provider.serving, parts.clock)
        self.floor = 0
        self._provider = provider
        self._folder = folder
        self._parts = parts
        self._closed = False

    def swap(self, copy: LocalCopy, generation: int, *, pinned: bool) -> Current:
        """Open a local copy, whose use passes on from the caller, try it, hand over to it, and swap to it.

        A copy that is damaged is deleted, unless somebody else still uses it; one that the hand-offs do not agree to
        stays warm. Raises what `open_copy` and the hand-offs raise.
        """
        try:
            # By the copy's name: a copy that still drains is the same DuckDB instance, and must have the same settings.
            pool = open_copy(self._parts.registry, copy, self._parts.spill / copy.name)
        except SnapshotDamaged:
            self._folder.discard(copy.name)
            raise
        except BaseException:
            self._folder.give_back(copy.name)
            raise
        current = Current(generation, copy.entry.snapshot_id, copy.incarnation, self._parts.clock.now_ms(), pinned)
        old, new = self._provider.serving, Serving(copy, pool, current)
        try:
            with self.dispatcher.around_swap(old, new):
                self._parts.check_open()
                self._provider.swap(new)
                self.floor = generation
        finally:
            unserved = old if self._provider.serving is new else new
            if unserved is not None:
                self._drain(unserved, keep=None)
        return current

    def note(self, current: Current) -> None:
        """Serve the same local copy as another generation, or by another choice."""
        self.floor = current.generation
        self._provider.find().current = current
        self._parts.on_change()

    def unload(self) -> None:
        """Serve nothing any more, and name nothing for the next start."""
        with self.dispatcher.around_end():
            old = self._provider.swap(None)
        if old is not None:
            self._drain(old, keep=0)
            self._parts.on_change()
        self._folder.forget_state()

    def close(self) -> None:
        """Give no more leases; the pool is closed when the last one has ended."""
        self._closed = True
        with self.dispatcher.around_end(closed=True):
            old = self._provider.close()
        if old is not None:
            self._drain(old, keep=None)

    def put_back(self, copy: LocalCopy, keep: int | None = None) -> None:
        """End a use of a local copy; copies that are neither warm nor in use any more are deleted."""
        self._folder.give_back(copy.name)
        if not self._closed:
            # After close the folder may already be another process's.
            self._folder.retire(keep)

    def _drain(self, old: Serving, keep: int | None) -> None:
        """Let go of what was served; `keep` is for the local copies that stay when it has ended."""

        def put_away() -> None:
            self.dispatcher.released(old)
            self.put_back(old.copy, keep)

        self._parts.registry.invalidate_file_instance(old.copy.files)
        self._parts.drains.add(old, put_away)
