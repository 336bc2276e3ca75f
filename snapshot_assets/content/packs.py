"""Packs being filled in memory and uploaded two at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final

from snapshot_assets.content.frames import MAX_PACK_BYTES
from snapshot_assets.errors import ConfigurationError
from snapshot_assets.store.contract import Store

__all__ = ["PackUploads"]

_UPLOADS: Final = 2
_MAX_PACKS: Final = 65_536
_HELD_BYTES: Final = 2 * MAX_PACK_BYTES


class PackUploads:
    """Takes frames in order and uploads them as packs; the frames of one publish always give the same packs.

    A context manager: leaving it waits for the uploads that are under way, also after an error. At most 128 MiB of
    packs are held in memory, whatever the store's pace.

    Args:
        objects: the store.
        key: names the pack of a number.
        on_pack: called after each upload, by one thread at a time.
    """

    def __init__(self, objects: Store, key: Callable[[int], str], on_pack: Callable[[], None] | None = None) -> None:
        self._objects = objects
        self._key = key
        self._on_pack = on_pack
        self._pool = ThreadPoolExecutor(_UPLOADS, thread_name_prefix="packs")
        self._turn = threading.Lock()
        self._filling = bytearray()
        self._number = 0
        self._under_way: deque[tuple[int, Future[None]]] = deque()
        self._held = 0
        self.sizes: dict[str, int] = {}

    def __enter__(self) -> PackUploads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def append(self, stored: bytes) -> tuple[int, int]:
        """Put a frame into a pack.

        Returns:
            The pack's number and the frame's offset in it.

        Raises:
            ConfigurationError: the publish would need more packs than the format can count.
        """
        if len(self._filling) + len(stored) > MAX_PACK_BYTES:
            self._close()
        while self._under_way and self._held + len(self._filling) + len(stored) > _HELD_BYTES:
            self._settle_oldest()
        if self._number >= _MAX_PACKS:
            raise ConfigurationError(
                f"one publish would write more than {_MAX_PACKS} packs of 64 MiB",
                hint="Split the dataset: the store format holds 4 TiB of new data a publish.",
            )
        offset = len(self._filling)
        self._filling += stored
        return self._number, offset

    def finish(self) -> None:
        """Upload the last pack and wait until all are there."""
        if self._filling:
            self._close()
        while self._under_way:
            self._settle_oldest()

    def _close(self) -> None:
        pack, self._filling = self._filling, bytearray()
        key = self._key(self._number)
        self.sizes[key] = len(pack)
        self._held += len(pack)
        self._number += 1
        self._under_way.append((len(pack), self._pool.submit(self._upload, key, pack)))

    def _upload(self, key: str, pack: bytearray) -> None:
        self._objects.upload(key, pack)
        if self._on_pack is not None:
            with self._turn:
                self._on_pack()

    def _settle_oldest(self) -> None:
        size, upload = self._under_way.popleft()
        upload.result()
        self._held -= size
