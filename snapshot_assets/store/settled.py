"""A store whose transient failures are retried and whose lost answers are decided."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, TypeVar

from snapshot_assets.clock import SYSTEM_CLOCK, Clock
from snapshot_assets.errors import Conflict, DocumentDamaged, NotFound, StoreUnavailable
from snapshot_assets.store.contract import MAX_DOCUMENT_BYTES, Listed, Store, Versioned

__all__ = ["SettledStore", "retry_unavailable"]

T = TypeVar("T")

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_COMPARE_BYTES: Final = 8 * 1024 * 1024


class SettledStore:
    """Another store, asked again while it is unavailable.

    Only `StoreUnavailable` is retried, with pauses that double and are jittered; what happened last is raised when
    `retry_for` seconds have passed. An object that is created (`write_if_absent`, `upload`) is read back whenever the
    store says that it exists, or the answer was lost: equal length and bytes mean that it is ours and make a success,
    other bytes are somebody else's and make a `Conflict`, and no object means that the same bytes are sent again.

    `write_if_match` is never retried, because an object that changes may have changed again: after `StoreUnavailable`
    and after `Conflict` the caller reads it and looks for its own operation in it.

    Args:
        inner: the store.
        clock: for the pauses and their bound.
        retry_for: seconds after the first attempt within which a new one is still begun; 0 turns retries off.
    """

    def __init__(self, inner: Store, clock: Clock = SYSTEM_CLOCK, retry_for: float = 30.0) -> None:
        self._inner = inner
        self._clock = clock
        self._retry_for = retry_for

    @property
    def url(self) -> str:
        return self._inner.url

    def through(self, wrap: Callable[[Store], Store]) -> SettledStore:
        """The same store, with each single attempt going through what `wrap` makes of the store underneath."""
        return SettledStore(wrap(self._inner), self._clock, self._retry_for)

    def read(self, key: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned:
        return self._retried(lambda: self._inner.read(key, limit=limit))

    def read_if_changed(self, key: str, token: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned | None:
        return self._retried(lambda: self._inner.read_if_changed(key, token, limit=limit))

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        return self._retried(lambda: self._inner.read_ranges(key, ranges))

    def write_if_absent(self, key: str, data: bytes) -> str:
        return self._created(lambda: self._inner.write_if_absent(key, data), lambda: self._token_if_equal(key, data))

    def write_if_match(self, key: str, data: bytes, token: str) -> str:
        return self._inner.write_if_match(key, data, token)

    def upload(self, key: str, source: bytes | bytearray | memoryview | Path) -> None:
        self._created(lambda: self._inner.upload(key, source), lambda: self._is_equal(key, source))

    def list(self, prefix: str) -> Iterator[Listed]:
        # Complete before the first entry is given out, so that a failure on the way neither repeats nor loses any.
        return iter(self._retried(lambda: list(self._inner.list(prefix))))

    def delete(self, keys: Iterable[str]) -> None:
        doomed = list(keys)
        self._retried(lambda: self._inner.delete(doomed))

    def _retried(self, attempt: Callable[[], T]) -> T:
        return retry_unavailable(attempt, self._clock, self._retry_for)

    def _created(self, create: Callable[[], T], read_back: Callable[[], T | None]) -> T:
        def attempt() -> T:
            try:
                return create()
            except (Conflict, StoreUnavailable) as error:
                try:
                    found = read_back()
                except NotFound:
                    raise StoreUnavailable(str(error)) from error
                if found is None:
                    raise Conflict(str(error)) from error
                return found

        return self._retried(attempt)

    def _token_if_equal(self, key: str, data: bytes) -> str | None:
        """The token of the object if it holds the bytes."""
        try:
            found = self._inner.read(key, limit=len(data))
        except DocumentDamaged:
            return None
        return found.token if found.data == data else None

    def _is_equal(self, key: str, source: bytes | bytearray | memoryview | Path) -> Literal[True] | None:
        """True if the object holds the bytes of the source; it is compared block by block."""
        folder = key[: key.rfind("/") + 1]
        size = next((listed.size for listed in self._inner.list(folder) if listed.key == key), None)
        if size is None:
            raise NotFound(f"{key} is not in {self.url}")
        expected = source.stat().st_size if isinstance(source, Path) else len(source)
        if size != expected:
            return None
        offset = 0
        for block in _blocks(source):
            if self._inner.read_ranges(key, [(offset, len(block))])[0] != block:
                return None
            offset += len(block)
        return True


def retry_unavailable(attempt: Callable[[], T], clock: Clock, retry_for: float) -> T:
    """Attempt, and attempt again after `StoreUnavailable`, with growing, jittered pauses, for a bounded time.

    Args:
        attempt: something that may be done more than once.
        clock: for the pauses and their bound.
        retry_for: seconds after the first attempt within which a new one is still begun.
    """
    deadline = clock.monotonic() + retry_for
    pause = _FIRST_PAUSE
    while True:
        try:
            return attempt()
        except StoreUnavailable:
            wait = pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, no secret
            if clock.monotonic() + wait > deadline:
                raise
        clock.wait(threading.Event(), wait)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _blocks(source: bytes | bytearray | memoryview | Path) -> Iterator[bytes]:
    if isinstance(source, Path):
        with source.open("rb") as file:
            while block := file.read(_COMPARE_BYTES):
                yield block
    else:
        view = memoryview(source)
        for offset in range(0, len(view), _COMPARE_BYTES):
            yield bytes(view[offset : offset + _COMPARE_BYTES])
