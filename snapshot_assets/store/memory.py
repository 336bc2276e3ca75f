"""A store in this process's memory: for tests, and for trying things out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from snapshot_assets.errors import Conflict, NotFound
from snapshot_assets.store.contract import MAX_DOCUMENT_BYTES, Listed, Versioned
from snapshot_assets.store.keys import check_key, check_prefix, check_ranges, check_size

__all__ = ["MemoryStore"]


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    token: str
    written_ms: int


class MemoryStore:
    """Objects in a dictionary, gone with the process.

    Args:
        name: shown in the URL.
    """

    def __init__(self, name: str = "") -> None:
        self._url = f"memory://{name}"
        self._objects: dict[str, _Object] = {}
        self._writes = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return self._url

    def read(self, key: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned:
        found = self._get(key)
        check_size(key, len(found.data), limit)
        return Versioned(found.data, found.token)

    def read_if_changed(self, key: str, token: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned | None:
        found = self._get(key)
        if found.token == token:
            return None
        check_size(key, len(found.data), limit)
        return Versioned(found.data, found.token)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        data = memoryview(self._get(key).data)
        check_ranges(key, ranges, len(data))
        return [data[offset : offset + length] for offset, length in ranges]

    def write_if_absent(self, key: str, data: bytes) -> str:
        check_key(key)
        with self._lock:
            if key in self._objects:
                raise Conflict(f"{key} exists already")
            return self._put(key, data)

    def write_if_match(self, key: str, data: bytes, token: str) -> str:
        check_key(key)
        with self._lock:
            found = self._objects.get(key)
            if found is None or found.token != token:
                raise Conflict(f"{key} is {'gone' if found is None else 'another version by now'}")
            return self._put(key, data)

    def upload(self, key: str, source: bytes | bytearray | memoryview | Path) -> None:
        self.write_if_absent(key, source.read_bytes() if isinstance(source, Path) else bytes(source))

    def list(self, prefix: str) -> Iterator[Listed]:
        check_prefix(prefix)
        with self._lock:
            found = [(key, stored) for key, stored in self._objects.items() if key.startswith(prefix)]
        for key, stored in found:
            yield Listed(key, len(stored.data), stored.token, stored.written_ms)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            check_key(key)
            with self._lock:
                self._objects.pop(key, None)

    def _get(self, key: str) -> _Object:
        check_key(key)
        with self._lock:
            found = self._objects.get(key)
        if found is None:
            raise NotFound(f"{key} is not in {self._url}")
        return found

    def _put(self, key: str, data: bytes) -> str:
        self._writes += 1
        stored = _Object(bytes(data), str(self._writes), time.time_ns() // 1_000_000)
        self._objects[key] = stored
        return stored.token
