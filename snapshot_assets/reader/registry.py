"""Which pool stands open for which database file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from snapshot_assets.engines.contract import Pool

__all__ = ["InstanceKey", "PoolRegistry"]


@dataclass(frozen=True, slots=True)
class InstanceKey:
    """What a pool is open on: a real path, or memory. Two spellings of one path are one key."""

    path: Path | None

    @classmethod
    def file(cls, path: str | Path) -> InstanceKey:
        """The key of a file or folder; links are followed."""
        return cls(Path(path).resolve())

    @classmethod
    def memory(cls) -> InstanceKey:
        """The one key of a database without a file."""
        return cls(None)


class PoolRegistry:
    """Pools by instance key. Concurrent first calls for a key build one pool. Safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[InstanceKey, Pool] = {}

    def get_or_create(self, key: InstanceKey, factory: Callable[[], Pool]) -> Pool:
        """The pool of the key, made by the factory if there is none; a factory that raises leaves none behind."""
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                pool = self._pools[key] = factory()
            return pool

    def invalidate_instance(self, key: InstanceKey) -> Pool | None:
        """Forget the pool of the key and return it; nothing when there is none.

        Nothing is closed: whoever uses the pool goes on, and the caller closes it when they are done. The next
        `get_or_create` opens what is at the path then. Other keys are left alone.
        """
        with self._lock:
            return self._pools.pop(key, None)

    def invalidate_file_instance(self, path: str | Path) -> Pool | None:
        """`invalidate_instance` for a file or folder, under any spelling of its path."""
        return self.invalidate_instance(InstanceKey.file(path))
