"""The index: a root with a row for each segment, and a chunk table for each segment of a `blocks` file.

Bytes from a store are believed in nothing: every count, length and offset is checked before memory is taken for it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pyarrow as pa

from snapshot_assets.content.arrow import (
    ArrowDamaged,
    bytes_column,
    number_column,
    read_columns,
    to_file_bytes,
    to_stream_bytes,
)
from snapshot_assets.content.frames import CODEC_RAW, CODEC_ZSTD, MAX_CHUNK_FRAME_BYTES, MAX_PACK_BYTES
from snapshot_assets.content.segments import content_digest, segment_count, segment_lengths
from snapshot_assets.errors import SnapshotDamaged
from snapshot_assets.ids import OperationId, ulid_to_bytes
from snapshot_assets.model.manifest import FileEntry, Manifest

__all__ = [
    "KIND_CHUNK_TABLE",
    "KIND_SEGMENT",
    "MAX_SEGMENTS",
    "ChunkTable",
    "Frame",
    "Location",
    "RootIndex",
    "SegmentRow",
    "max_table_bytes",
    "operation_bytes",
]

KIND_CHUNK_TABLE: Final = 0
KIND_SEGMENT: Final = 1
MAX_SEGMENTS: Final = 2_000_000
"""The most rows of a root: 32 TiB in `blocks` files."""


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


_ROOT_SCHEMA: Final = _schema(
    file=pa.uint32(),
    plain_bytes=pa.uint64(),
    digest=pa.binary(32),
    kind=pa.uint8(),
    operation=pa.uint16(),
    pack=pa.uint16(),
    offset=pa.uint64(),
    stored=pa.uint32(),
    raw=pa.uint32(),
    codec=pa.uint8(),
)
_CHUNK_SCHEMA: Final = _schema(
    digest=pa.binary(16),
    operation=pa.binary(16),
    pack=pa.uint16(),
    frame_offset=pa.uint64(),
    frame_stored=pa.uint32(),
    frame_raw=pa.uint32(),
    codec=pa.uint8(),
    offset_in_frame=pa.uint32(),
)


def max_table_bytes(chunks: int) -> int:
    """The most plain bytes of a chunk table with this many rows."""
    return 16 * 1024 + 64 * chunks


class Frame(NamedTuple):
    """Where a frame of chunks lies, and what it is. `operation` is the 16 bytes of the ULID."""

    operation: bytes
    pack: int
    offset: int
    stored: int
    raw: int
    codec: int


class Location(NamedTuple):
    """Where a frame that a root row speaks of lies, and what it is."""

    operation: OperationId
    pack: int
    offset: int
    stored: int
    raw: int
    codec: int


class SegmentRow(NamedTuple):
    """One segment of a file; `location` holds its chunk table (kind 0) or its bytes (kind 1)."""

    file: int
    plain_bytes: int
    digest: bytes
    kind: int
    location: Location


def _frame_is_sound(frame: Frame | Location, most: int) -> bool:
    _, _, offset, stored, raw, codec = frame
    return (
        0 < raw <= most
        and (stored == raw if codec == CODEC_RAW else codec == CODEC_ZSTD and 0 < stored <= raw)
        and offset + stored <= MAX_PACK_BYTES
    )


@dataclass(frozen=True, slots=True)
class RootIndex:
    """The root: the segments of all files, in file order, and the operations whose packs they need."""

    operations: tuple[OperationId, ...]
    rows: tuple[SegmentRow, ...]

    @classmethod
    def parse(cls, data: bytes, manifest: Manifest) -> RootIndex:
        """Read a root and check it against the manifest whose files it describes.

        Raises:
            SnapshotDamaged: it is damaged, breaks a limit, or speaks of other files.
        """
        count = sum(segment_count(file.size, file.layout) for file in manifest.files)
        if count > MAX_SEGMENTS:
            raise SnapshotDamaged(f"the manifest's files have {count} segments; the limit is {MAX_SEGMENTS}")
        try:
            numbers, plain, digests, kinds, *places = read_columns(data, _ROOT_SCHEMA, count, file=True)
            locations = _locations(places, manifest.operations)
            rows = tuple(map(SegmentRow._make, zip(numbers, plain, digests, kinds, locations, strict=True)))
            _check_rows(rows, manifest.files)
        except ArrowDamaged as error:
            raise SnapshotDamaged(f"the index of operation {manifest.operation_id} is damaged: {error}") from error
        return cls(manifest.operations, rows)

    def to_bytes(self) -> bytes:
        """The object as it is stored."""
        position = {operation: number for number, operation in enumerate(self.operations)}
        rows, locations = self.rows, [row.location for row in self.rows]
        columns = [
            number_column((row.file for row in rows), pa.uint32()),
            number_column((row.plain_bytes for row in rows), pa.uint64()),
            bytes_column([row.digest for row in rows], 32),
            number_column((row.kind for row in rows), pa.uint8()),
            number_column((position[place.operation] for place in locations), pa.uint16()),
            number_column((place.pack for place in locations), pa.uint16()),
            number_column((place.offset for place in locations), pa.uint64()),
            number_column((place.stored for place in locations), pa.uint32()),
            number_column((place.raw for place in locations), pa.uint32()),
            number_column((place.codec for place in locations), pa.uint8()),
        ]
        return to_file_bytes(columns, _ROOT_SCHEMA)

    def placed(self) -> Iterator[tuple[SegmentRow, int, int]]:
        """Each row with its position among the segments of its file and its offset in the file."""
        file, position, offset = -1, 0, 0
        for row in self.rows:
            if row.file != file:
                file, position, offset = row.file, 0, 0
            yield row, position, offset
            position += 1
            offset += row.plain_bytes


def _locations(columns: Sequence[Sequence[int]], operations: Sequence[OperationId]) -> Iterator[Location]:
    positions, *rest = columns
    if any(position >= len(operations) for position in positions):
        raise ArrowDamaged("a row names an operation that the manifest does not")
    return map(Location._make, zip((operations[position] for position in positions), *rest, strict=True))


def _check_rows(rows: Sequence[SegmentRow], files: Sequence[FileEntry]) -> None:
    waiting = iter(rows)
    for number, file in enumerate(files):
        blocks = file.layout.kind == "blocks"
        digests = []
        for length in segment_lengths(file.size, file.layout):
            row = next(waiting)
            if row.file != number or row.plain_bytes != length:
                raise ArrowDamaged(f"its rows do not add up to the segments of {file.path!r}")
            most = max_table_bytes(_most_chunks(file, length)) if blocks else length
            if (
                row.kind != (KIND_CHUNK_TABLE if blocks else KIND_SEGMENT)
                or not _frame_is_sound(row.location, most)
                or (not blocks and row.location.raw != length)
            ):
                raise ArrowDamaged(f"a row of {file.path!r} breaks a limit")
            digests.append(row.digest)
        if content_digest(file.size, digests) != file.content_digest:
            raise ArrowDamaged(f"its digests are not those of {file.path!r}")


def _most_chunks(file: FileEntry, length: int) -> int:
    assert file.layout.chunk_bytes is not None
    return length // file.layout.chunk_bytes + 2


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """Where each chunk of a segment lies.

    `digests`, `numbers` and `offsets` have an entry for each chunk: its digest, the position in `frames` of the frame
    that holds it, and its offset in the plain frame. `frames` are distinct.
    """

    digests: Sequence[bytes]
    frames: Sequence[Frame]
    numbers: Sequence[int]
    offsets: Sequence[int]

    @classmethod
    def parse(cls, data: bytes | memoryview, lengths: Sequence[int]) -> ChunkTable:
        """Read a chunk table; `lengths` are the plain bytes of the segment's chunks.

        Raises:
            SnapshotDamaged: it is damaged, breaks a limit, or describes another number of chunks.
        """
        try:
            digests, *places, offsets = read_columns(data, _CHUNK_SCHEMA, len(lengths), file=False)
            distinct: dict[tuple[Any, ...], int] = {}
            numbers = [distinct.setdefault(place, len(distinct)) for place in zip(*places, strict=True)]
            frames = list(map(Frame._make, distinct))
        except ArrowDamaged as error:
            raise SnapshotDamaged(f"a chunk table is damaged: {error}") from error
        room = [frame.raw for frame in frames]
        ends = map(operator.add, offsets, lengths)
        if not all(_frame_is_sound(frame, MAX_CHUNK_FRAME_BYTES) for frame in frames) or any(
            map(operator.gt, ends, map(room.__getitem__, numbers))
        ):
            raise SnapshotDamaged("a chunk table is damaged: a row breaks a limit")
        return cls(digests, frames, numbers, offsets)

    def to_bytes(self) -> bytes:
        """The Arrow IPC stream that becomes a frame."""
        operations, packs, frame_offsets, stored, raw, codecs = zip(*self.frames, strict=True)
        columns = [
            bytes_column(self.digests, 16),
            bytes_column([operations[number] for number in self.numbers], 16),
            number_column(map(packs.__getitem__, self.numbers), pa.uint16()),
            number_column(map(frame_offsets.__getitem__, self.numbers), pa.uint64()),
            number_column(map(stored.__getitem__, self.numbers), pa.uint32()),
            number_column(map(raw.__getitem__, self.numbers), pa.uint32()),
            number_column(map(codecs.__getitem__, self.numbers), pa.uint8()),
            number_column(self.offsets, pa.uint32()),
        ]
        return to_stream_bytes(columns, _CHUNK_SCHEMA)

    def plain_bytes_by_pack(self, lengths: Sequence[int]) -> Mapping[tuple[bytes, int], int]:
        """The plain bytes of the table's distinct chunks, for each (operation, pack) that holds some."""
        by_frame = [0] * len(self.frames)
        for (number, _), length in dict(
            zip(zip(self.numbers, self.offsets, strict=True), lengths, strict=True)
        ).items():
            by_frame[number] += length
        total: dict[tuple[bytes, int], int] = {}
        for frame, size in zip(self.frames, by_frame, strict=True):
            pack = (frame.operation, frame.pack)
            total[pack] = total.get(pack, 0) + size
        return total


def operation_bytes(operations: Sequence[OperationId]) -> dict[bytes, OperationId]:
    """The operations by the 16 bytes that chunk tables name them with."""
    return {ulid_to_bytes(operation): operation for operation in operations}
