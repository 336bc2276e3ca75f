"""Files as sequences of segments and chunks, and the first pass over them: hashing whole segments."""

from __future__ import annotations

import itertools
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from blake3 import blake3

from snapshot_assets.engines.contract import StagedFile
from snapshot_assets.errors import CorruptCapture
from snapshot_assets.model.manifest import FileEntry, Layout

__all__ = [
    "BLOCKS_SEGMENT_BYTES",
    "MAX_SEGMENT_BYTES",
    "WHOLE_SEGMENT_BYTES",
    "HashedFile",
    "ScratchBuffers",
    "chunk_lengths",
    "content_digest",
    "hash_files",
    "hash_stretch",
    "in_order",
    "new_buffer",
    "open_staged",
    "read_into",
    "segment_count",
    "segment_lengths",
]

BLOCKS_SEGMENT_BYTES: Final = 16 * 1024 * 1024
"""The plain bytes of chunks in a segment of a `blocks` file; the first segment holds the header besides."""

WHOLE_SEGMENT_BYTES: Final = 8 * 1024 * 1024
"""The plain bytes of a segment of a `whole` file."""

MAX_SEGMENT_BYTES: Final = BLOCKS_SEGMENT_BYTES + 1024 * 1024
"""No segment is larger: the header is at most 1 MiB."""

_HASHED_BYTES: Final = 1024 * 1024
"""Read and hashed at a time: what stays in the processor's cache takes a third of the time."""

_BATCH_FILES: Final = 256

T = TypeVar("T")
R = TypeVar("R")


def _cut(layout: Layout) -> tuple[int, int]:
    """The header's bytes, and the bytes of every segment beyond them; chunks are never cut."""
    if layout.kind == "whole":
        return 0, WHOLE_SEGMENT_BYTES
    assert layout.header_bytes is not None
    assert layout.chunk_bytes is not None
    return layout.header_bytes, BLOCKS_SEGMENT_BYTES // layout.chunk_bytes * layout.chunk_bytes


def segment_count(size: int, layout: Layout) -> int:
    """How many segments a file of this size has."""
    header, body = _cut(layout)
    return max(-(-(size - header) // body), 1) if size else 0


def segment_lengths(size: int, layout: Layout) -> Iterator[int]:
    """The plain bytes of each segment of a file, in order; none for an empty file."""
    header, body = _cut(layout)
    length = header + body
    while size > 0:
        yield min(length, size)
        size -= length
        length = body


def chunk_lengths(plain_bytes: int, layout: Layout, *, first: bool) -> list[int]:
    """The plain bytes of each chunk of a segment; `first` says that it begins its `blocks` file."""
    assert layout.chunk_bytes is not None
    lengths = []
    if first and layout.header_bytes:
        lengths.append(min(layout.header_bytes, plain_bytes))
        plain_bytes -= lengths[0]
    whole, rest = divmod(plain_bytes, layout.chunk_bytes)
    lengths += [layout.chunk_bytes] * whole
    if rest:
        lengths.append(rest)
    return lengths


def content_digest(size: int, digests: Iterable[bytes]) -> str:
    """The digest of a file: BLAKE3 of its size and its segments' digests."""
    digest = blake3(size.to_bytes(8, "little"))
    for segment in digests:
        digest.update(segment)
    return f"blake3:{digest.hexdigest()}"


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A staged file, the digests of its segments, and its entry in the manifest."""

    staged: StagedFile
    digests: tuple[bytes, ...]
    entry: FileEntry


class ScratchBuffers(threading.local):
    """One buffer a thread, large enough for any segment; what it held is overwritten by the next use."""

    _buffer: memoryview | None = None

    def take(self, length: int) -> memoryview:
        """The first `length` bytes of this thread's buffer."""
        if self._buffer is None:
            self._buffer = new_buffer(MAX_SEGMENT_BYTES)
        return self._buffer[:length]


def new_buffer(length: int) -> memoryview:
    """Memory to be written to; what is never written to costs nothing."""
    return memoryview(mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


@contextmanager
def open_staged(path: Path) -> Iterator[int]:
    """A descriptor to read a staged file from.

    Raises:
        CorruptCapture: the file is gone.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise CorruptCapture(f"{path} disappeared while it was being published") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_into(descriptor: int, target: memoryview, offset: int) -> bool:
    """Fill `target` from the file at `offset`; false when the file ends before."""
    done = 0
    while done < len(target):
        got = os.preadv(descriptor, [target[done:]], offset + done)
        if got == 0:
            return False
        done += got
    return True


def hash_stretch(descriptor: int, offset: int, length: int, buffers: ScratchBuffers) -> bytes | None:
    """The digest of a stretch of a file; none when the file ends before."""
    digest = blake3()
    for start in range(offset, offset + length, _HASHED_BYTES):
        piece = buffers.take(min(_HASHED_BYTES, offset + length - start))
        if not read_into(descriptor, piece, start):
            return None
        digest.update(piece)
    return digest.digest()


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], *, ahead: int
) -> Generator[R, None, None]:
    """The results of `work` in the order of `items`, with at most `ahead` of them begun and not yet taken.

    Close it when its results are no longer wanted: what has not started then never will.
    """
    begun: deque[Future[R]] = deque()
    waiting = iter(items)
    try:
        while True:
            for item in itertools.islice(waiting, ahead - len(begun)):
                begun.append(pool.submit(work, item))
            if not begun:
                return
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


def hash_files(files: Sequence[StagedFile], *, threads: int = 2) -> tuple[HashedFile, ...]:
    """Hash every segment of every file; nothing is written. Memory is bounded whatever the size of the files.

    Raises:
        CorruptCapture: a file is gone, or is not of the size that its capture found.
    """
    digests: list[list[bytes]] = [[] for _ in files]
    buffers = ScratchBuffers()

    def hash_batch(batch: list[tuple[int, int, int]]) -> list[tuple[int, bytes]]:
        return [(number, _hash_segment(files[number], offset, length, buffers)) for number, offset, length in batch]

    with (
        ThreadPoolExecutor(threads, thread_name_prefix="hash") as pool,
        closing(in_order(pool, hash_batch, _batches(files), ahead=2 * threads)) as hashed,
    ):
        for batch in hashed:
            for number, digest in batch:
                digests[number].append(digest)
    return tuple(
        HashedFile(
            file,
            tuple(found),
            FileEntry(file.path, file.size, file.mode, file.layout, content_digest(file.size, found)),
        )
        for file, found in zip(files, digests, strict=True)
    )


def _batches(files: Sequence[StagedFile]) -> Iterator[list[tuple[int, int, int]]]:
    """Segments as (file, offset, length), in order, small ones many at a time so that a small file costs little."""
    batch: list[tuple[int, int, int]] = []
    batch_bytes = 0
    for number, file in enumerate(files):
        offset = 0
        for length in segment_lengths(file.size, file.layout):
            batch.append((number, offset, length))
            batch_bytes += length
            offset += length
            if batch_bytes >= WHOLE_SEGMENT_BYTES or len(batch) >= _BATCH_FILES:
                yield batch
                batch, batch_bytes = [], 0
    if batch:
        yield batch


def _hash_segment(file: StagedFile, offset: int, length: int, buffers: ScratchBuffers) -> bytes:
    with open_staged(file.source) as descriptor:
        digest = hash_stretch(descriptor, offset, length, buffers)
        if digest is None or os.fstat(descriptor).st_size != file.size:
            raise CorruptCapture(f"{file.source} changed its size while it was being published")
    return digest
