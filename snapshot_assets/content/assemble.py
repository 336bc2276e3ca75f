"""One segment of a `blocks` file put together from its chunks: from donors where they have them, else from frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

from blake3 import blake3

from snapshot_assets.content.donors import Stretch, read_stretch
from snapshot_assets.content.index import ChunkTable, Frame, Location
from snapshot_assets.content.tables import PackReader, batches
from snapshot_assets.ids import OperationId

__all__ = ["Assembled", "PackSpan", "assemble"]


class PackSpan(NamedTuple):
    """Bytes of a pack that were read already."""

    operation: OperationId
    pack: int
    offset: int
    data: memoryview

    def frame(self, place: Location) -> memoryview | None:
        """The stored bytes of a frame, if it lies in the span."""
        start = place.offset - self.offset
        if (place.operation, place.pack) != self[:2] or start < 0 or start + place.stored > len(self.data):
            return None
        return self.data[start : start + place.stored]


@dataclass(frozen=True, slots=True)
class Assembled:
    """How many plain bytes came from donors, and how many stored bytes were read besides the span."""

    reused_bytes: int
    fetched_bytes: int


def assemble(
    target: memoryview,
    digest: bytes,
    table: ChunkTable,
    lengths: Sequence[int],
    *,
    packs: PackReader,
    operations: Mapping[bytes, OperationId],
    span: PackSpan,
    donated: Mapping[tuple[bytes, int], Stretch],
) -> Assembled:
    """Fill `target` with the segment's plain bytes.

    The digest of the whole segment vouches for every byte; chunk digests are only looked at when it does not match, to
    find what a donor got wrong and fetch it instead, or to name what is damaged.

    Raises:
        SnapshotDamaged: packs are missing, or do not hold what the table and the digest promise.
    """
    chunks = _Chunks(target, table, [0, *accumulate(lengths)])
    donor_chunks = chunks.fill_from_donors(donated) if donated else set()
    frames = _Frames(chunks, packs, operations, span)
    frames.fill([number for number in range(len(lengths)) if number not in donor_chunks])
    if blake3(target).digest() != digest:
        wrong = chunks.wrong()
        rotten = donor_chunks.intersection(wrong)
        donor_chunks -= rotten
        frames.fill(sorted(rotten))
        if blake3(target).digest() != digest:
            raise frames.damaged(min(set(wrong) - rotten, default=0))
    return Assembled(sum(lengths[number] for number in donor_chunks), frames.fetched_bytes)


class _Chunks:
    """The chunks of a segment by number: where they belong and what they should be."""

    def __init__(self, target: memoryview, table: ChunkTable, bounds: Sequence[int]) -> None:
        self.target = target
        self.table = table
        self.bounds = bounds

    def fill_from_donors(self, donated: Mapping[tuple[bytes, int], Stretch]) -> set[int]:
        """Read what donors have; the chunks that were read."""
        filled: set[int] = set()
        # Chunks that lie in a row both here and in the donor's file share one read, and one file and distance.
        for found, group in groupby(range(len(self.table.digests)), key=lambda number: self._donor(number, donated)):
            if found is None:
                continue
            run = list(group)
            start, end = self.bounds[run[0]], self.bounds[run[-1] + 1]
            if read_stretch(Stretch(found.file, found.offset + start), self.target[start:end]):
                filled.update(run)
        return filled

    def _donor(self, number: int, donated: Mapping[tuple[bytes, int], Stretch]) -> Stretch | None:
        start, end = self.bounds[number], self.bounds[number + 1]
        found = donated.get((self.table.digests[number], end - start))
        return None if found is None else Stretch(found.file, found.offset - start)

    def wrong(self) -> list[int]:
        """The chunks that do not have their digest."""
        return [
            number
            for number, (start, end) in enumerate(pairwise(self.bounds))
            if blake3(self.target[start:end]).digest(16) != self.table.digests[number]
        ]


class _Frames:
    """Fills chunks from their frames, a bounded number of frames at a time."""

    def __init__(
        self, chunks: _Chunks, packs: PackReader, operations: Mapping[bytes, OperationId], span: PackSpan
    ) -> None:
        self._chunks = chunks
        self._packs = packs
        self._operations = operations
        self._span = span
        self.fetched_bytes = 0

    def fill(self, numbers: Sequence[int]) -> None:
        """Put these chunks, in ascending order, where they belong."""
        elsewhere = {}
        for frame, runs in self._runs(numbers).items():
            place = self._place(frame)
            stored = self._span.frame(place)
            if stored is None:
                elsewhere[place] = runs
            else:
                self._copy(stored, place, runs)
        for batch in batches(sorted(elsewhere)):
            ranges = [(place.offset, place.stored) for place in batch]
            self.fetched_bytes += sum(place.stored for place in batch)
            found = self._packs.read(batch[0].operation, batch[0].pack, ranges)
            for place, data in zip(batch, found, strict=True):
                self._copy(data, place, elsewhere[place])

    def damaged(self, number: int) -> Exception:
        """The error that names the frame of a chunk; the caller raises it."""
        table = self._chunks.table
        place = self._place(table.frames[table.numbers[number]])
        return self._packs.damaged(
            f"the frame at {place.offset} of {self._packs.key(place.operation, place.pack)} "
            "does not hold the bytes that the index promises"
        )

    def _runs(self, numbers: Sequence[int]) -> dict[Frame, list[_Run]]:
        """For each frame what to copy from it; chunks that follow each other both here and there are one run."""
        table, bounds = self._chunks.table, self._chunks.bounds
        by_frame: dict[int, list[_Run]] = {}
        last_frame = start = end = at = -1
        for number in numbers:
            frame, offset = table.numbers[number], table.offsets[number]
            if frame == last_frame and bounds[number] == end and offset == at + end - start:
                end = bounds[number + 1]
                by_frame[frame][-1] = (start, end, at)
            else:
                last_frame, start, end, at = frame, bounds[number], bounds[number + 1], offset
                by_frame.setdefault(frame, []).append((start, end, at))
        return {table.frames[frame]: runs for frame, runs in by_frame.items()}

    def _place(self, frame: Frame) -> Location:
        try:
            return Location(self._operations[frame.operation], *frame[1:])
        except KeyError as error:
            raise self._packs.damaged("a chunk table names an operation that the manifest does not") from error

    def _copy(self, stored: bytes | memoryview, place: Location, runs: Sequence[_Run]) -> None:
        plain = memoryview(self._packs.decode(stored, place))
        for start, end, at in runs:
            self._chunks.target[start:end] = plain[at : at + end - start]


_Run = tuple[int, int, int]
"""Start and end in the segment, and the offset in the plain frame."""
