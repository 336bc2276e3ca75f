"""One segment made ready for a pack: read, checked, cut, compared with the base, compressed. Runs in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from blake3 import blake3

from snapshot_assets.content.base import Base, BaseSegment
from snapshot_assets.content.frames import CODEC_RAW, MAX_CHUNK_FRAME_BYTES, encode_frame
from snapshot_assets.content.index import Frame
from snapshot_assets.content.segments import MAX_SEGMENT_BYTES, chunk_lengths, new_buffer, open_staged, read_into
from snapshot_assets.engines.contract import StagedFile
from snapshot_assets.errors import CorruptCapture

__all__ = ["NewFrame", "NewSegment", "PreparedBatch", "PreparedSegment", "Preparer"]


@dataclass(frozen=True, slots=True)
class NewSegment:
    """A segment that has to be stored."""

    file: int
    staged: StagedFile
    offset: int
    length: int
    digest: bytes
    base: BaseSegment | None
    """The base's segment at the same position of the same file."""

    @property
    def lengths(self) -> list[int]:
        """The plain bytes of each of its chunks."""
        return chunk_lengths(self.length, self.staged.layout, first=self.offset == 0)


@dataclass(frozen=True, slots=True)
class NewFrame:
    """A frame on its way into a pack. `stored` lies in the buffer of its batch."""

    stored: memoryview
    raw: int
    codec: int


@dataclass(frozen=True, slots=True)
class PreparedSegment:
    """A segment ready for a pack.

    `places` has an entry for each chunk: the frame in the base, or the number of the new frame, and the offset in it.
    A segment without chunks has one new frame and no places.
    """

    segment: NewSegment
    frames: list[NewFrame]
    digests: list[bytes] = field(default_factory=list)
    places: list[tuple[Frame | int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """Segments ready for packs, and the buffer in which their frames lie."""

    segments: list[PreparedSegment]
    buffer: memoryview


class Preparer:
    """Prepares segments; safe to call from several threads.

    Args:
        base: whose chunks may be referred to.
        given_up: packs, as chunk tables name them, whose chunks are stored anew.
    """

    def __init__(self, base: Base | None, given_up: Collection[tuple[bytes, int]]) -> None:
        self._base = base
        self._given_up = given_up
        self._buffers: deque[memoryview] = deque()

    def prepare(self, segments: Sequence[NewSegment]) -> PreparedBatch:
        """Prepare a few segments, which have at most `MAX_SEGMENT_BYTES` together.

        Raises:
            CorruptCapture: a file is not what it was when it was hashed.
        """
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = new_buffer(MAX_SEGMENT_BYTES)
        ends = [0, *accumulate(segment.length for segment in segments)]
        prepared = [
            self._prepare(segment, buffer[start:end])
            for segment, (start, end) in zip(segments, pairwise(ends), strict=True)
        ]
        return PreparedBatch(prepared, buffer)

    def written(self, batch: PreparedBatch) -> None:
        """Use the buffer of a batch again."""
        self._buffers.append(batch.buffer)

    def _prepare(self, segment: NewSegment, plain: memoryview) -> PreparedSegment:
        source = segment.staged.source
        with open_staged(source) as descriptor:
            complete = read_into(descriptor, plain, segment.offset)
        if not complete or blake3(plain).digest() != segment.digest:
            raise CorruptCapture(f"{source} changed while it was being published")
        if segment.staged.layout.kind == "whole":
            return PreparedSegment(segment, [_new_frame(plain, [(0, segment.length)], 0)])
        return self._cut(segment, plain)

    def _cut(self, segment: NewSegment, plain: memoryview) -> PreparedSegment:
        """Chunks that the base or an earlier chunk of the segment holds are referred to, the others fill frames."""
        lengths = segment.lengths
        bounds = [0, *accumulate(lengths)]
        digests = [blake3(plain[start:end]).digest(16) for start, end in pairwise(bounds)]
        places = self._known(segment)
        frames: list[NewFrame] = []
        runs: list[tuple[int, int]] = []  # stretches of the segment that make up the frame being filled
        filled = stored = 0

        def close_frame() -> None:
            nonlocal stored
            frames.append(_new_frame(plain, runs, stored))
            stored += len(frames[-1].stored)

        for digest, (start, end) in zip(digests, pairwise(bounds), strict=True):
            if digest in places:
                continue
            if filled + end - start > MAX_CHUNK_FRAME_BYTES:
                close_frame()
                runs, filled = [], 0
            places[digest] = (len(frames), filled)
            filled += end - start
            if runs and runs[-1][1] == start:
                start = runs.pop()[0]
            runs.append((start, end))
        if runs:
            close_frame()
        return PreparedSegment(segment, frames, digests, [places[digest] for digest in digests])

    def _known(self, segment: NewSegment) -> dict[bytes, tuple[Frame | int, int]]:
        if self._base is None or segment.base is None:
            return {}
        table = self._base.table(segment.base)
        kept = [frame[:2] not in self._given_up for frame in table.frames]
        return {
            digest: (table.frames[number], offset)
            for digest, number, offset in zip(table.digests, table.numbers, table.offsets, strict=True)
            if kept[number]
        }


def _new_frame(plain: memoryview, runs: Sequence[tuple[int, int]], at: int) -> NewFrame:
    """Make a frame of stretches of `plain`, and keep it in `plain` from `at` on: it takes no memory of its own.

    What it overwrites is done with: a frame is never larger than its stretches, and frames are made in order.
    """
    (start, end), *others = runs
    frame = b"".join(plain[start:end] for start, end in runs) if others else plain[start:end]
    stored, codec = encode_frame(frame)
    kept = plain[at : at + len(stored)]
    if others or codec != CODEC_RAW or at != start:
        kept[:] = stored
    return NewFrame(kept, len(frame), codec)
