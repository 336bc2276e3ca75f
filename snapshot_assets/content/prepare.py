"""One segment made ready for a pack: read, checked, cut, compared with the base, compressed. Runs in threads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from blake3 import blake3

from snapshot_assets.content.base import Base, BaseSegment
from snapshot_assets.content.frames import MAX_CHUNK_FRAME_BYTES, encode_frame
from snapshot_assets.content.index import Frame
from snapshot_assets.content.segments import ScratchBuffers, chunk_lengths, open_staged, read_into
from snapshot_assets.engines.contract import StagedFile
from snapshot_assets.errors import CorruptCapture

__all__ = ["NewFrame", "NewSegment", "PreparedSegment", "Preparer"]


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
    """A frame on its way into a pack."""

    stored: bytes
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


class Preparer:
    """Prepares segments; safe to call from several threads.

    Args:
        base: whose chunks may be referred to.
        given_up: packs, as chunk tables name them, whose chunks are stored anew.
    """

    def __init__(self, base: Base | None, given_up: Collection[tuple[bytes, int]]) -> None:
        self._base = base
        self._given_up = given_up
        self._buffers = ScratchBuffers()

    def prepare(self, segments: Sequence[NewSegment]) -> list[PreparedSegment]:
        """Prepare a few segments.

        Raises:
            CorruptCapture: a file is not what it was when it was hashed.
        """
        return [self._prepare(segment) for segment in segments]

    def _prepare(self, segment: NewSegment) -> PreparedSegment:
        plain = self._buffers.take(segment.length)
        source = segment.staged.source
        with open_staged(source) as descriptor:
            complete = read_into(descriptor, plain, segment.offset)
        if not complete or blake3(plain).digest() != segment.digest:
            raise CorruptCapture(f"{source} changed while it was being published")
        if segment.staged.layout.kind == "whole":
            return PreparedSegment(segment, [NewFrame(*_encoded(plain))])
        return self._cut(segment, plain)

    def _cut(self, segment: NewSegment, plain: memoryview) -> PreparedSegment:
        """Chunks that the base or an earlier chunk of the segment holds are referred to, the others fill frames."""
        lengths = segment.lengths
        bounds = [0, *accumulate(lengths)]
        digests = [blake3(plain[start:end]).digest(16) for start, end in pairwise(bounds)]
        places = self._known(segment)
        frames: list[NewFrame] = []
        runs: list[tuple[int, int]] = []  # stretches of the segment that make up the frame being filled
        filled = 0
        for digest, (start, end) in zip(digests, pairwise(bounds), strict=True):
            if digest in places:
                continue
            if filled + end - start > MAX_CHUNK_FRAME_BYTES:
                frames.append(_new_frame(plain, runs))
                runs, filled = [], 0
            places[digest] = (len(frames), filled)
            filled += end - start
            if runs and runs[-1][1] == start:
                start = runs.pop()[0]
            runs.append((start, end))
        if runs:
            frames.append(_new_frame(plain, runs))
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


def _new_frame(plain: memoryview, runs: Sequence[tuple[int, int]]) -> NewFrame:
    if len(runs) == 1:
        [(start, end)] = runs
        return NewFrame(*_encoded(plain[start:end]))
    return NewFrame(*_encoded(b"".join(plain[start:end] for start, end in runs)))


def _encoded(plain: bytes | memoryview) -> tuple[bytes, int, int]:
    stored, codec = encode_frame(plain)
    return stored, len(plain), codec
