"""Packs being filled in memory and uploaded two at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final

from snapshot_assets.content.frames import MAX_PACK_BYTES
from snapshot_assets.content.segments import new_buffer
from snapshot_assets.errors import ConfigurationError
from snapshot_assets.store.contract import Store

__all__ = ["PackUploads"]

_UPLOADS: Final = 2
_MAX_PACKS: Final = 65_536


class PackUploads:
    """Takes frames in order and uploads them as packs; the frames of one publish always give the same packs.

    A context manager: leaving it waits for the uploads that are under way, also after an error. At most two packs
    (128 MiB) are held in memory, whatever the store's pace: filling one takes little of the time of an upload.

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
        # Buffers are used again and again: fresh memory costs about as much as filling it.
        self._buffers = [new_buffer(MAX_PACK_BYTES) for _ in range(_UPLOADS)]
        self._filled = 0
        self._number = 0
        self._under_way: deque[tuple[memoryview, Future[None]]] = deque()
        self.sizes: dict[str, int] = {}

    def __enter__(self) -> PackUploads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def append(self, stored: bytes | memoryview) -> tuple[int, int]:
        """Put a frame into a pack.

        Returns:
            The pack's number and the frame's offset in it.

        Raises:
            ConfigurationError: the publish would need more packs than the format can count.
        """
        if self._filled + len(stored) > MAX_PACK_BYTES:
            self._close()
        if not self._buffers:
            self._settle_oldest()
        if self._number >= _MAX_PACKS:
            raise ConfigurationError(
                f"one publish would write more than {_MAX_PACKS} packs of 64 MiB",
                hint="Split the dataset: the store format holds 4 TiB of new data a publish.",
            )
        offset = self._filled
        self._filled += len(stored)
        self._buffers[-1][offset : self._filled] = stored
        return self._number, offset

    def finish(self) -> None:
        """Upload the last pack and wait until all are there."""
        if self._filled:
            self._close()
        while self._under_way:
            self._settle_oldest()

    def _close(self) -> None:
        buffer = self._buffers.pop()
        key = self._key(self._number)
        self.sizes[key] = self._filled
        self._under_way.append((buffer, self._pool.submit(self._upload, key, buffer[: self._filled])))
        self._number += 1
        self._filled = 0

    def _upload(self, key: str, pack: memoryview) -> None:
        self._objects.upload(key, pack)
        if self._on_pack is not None:
            with self._turn:
                self._on_pack()

    def _settle_oldest(self) -> None:
        buffer, upload = self._under_way.popleft()
        upload.result()
        self._buffers.append(buffer)
