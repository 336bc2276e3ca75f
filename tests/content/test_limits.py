"""Hostile indexes: typed errors only, no crash, and no memory taken for what they merely claim."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshot_assets.content.base import Base
from snapshot_assets.content.frames import CODEC_ZSTD, FrameError, decode_frame, encode_frame
from snapshot_assets.content.index import ChunkTable, RootIndex
from snapshot_assets.content.snapshot import Content
from snapshot_assets.errors import SnapshotDamaged
from snapshot_assets.model.manifest import FileEntry
from snapshot_assets.store.memory import MemoryStore
from tests.content.conftest import SQLITE, WHOLE, Publisher, noise

LENGTHS = [4096] * 5 + [100]


@cache
def sample() -> tuple[Content, bytes, ChunkTable]:
    """A snapshot with files of both layouts, and the plain bytes of one of its chunk tables."""
    objects = MemoryStore()
    publisher = Publisher(objects, Path(mkdtemp()))
    publisher.publish({"a": noise(5 * 4096 + 100), "b": noise(70)}, layouts={"a": SQLITE, "b": WHOLE})
    content = publisher.publish({"a": noise(5 * 4096 + 100, 1), "b": noise(70)}, layouts={"a": SQLITE, "b": WHOLE})
    base = Base(objects, content)
    table = base.table(next(segment for segment in base.segments if segment.row.kind == 0))
    return content, table.to_bytes(), table


def mutated(data: bytes, edits: list[tuple[int, int]], cut: int) -> bytes:
    content = bytearray(data)
    for at, value in edits:
        content[at % len(content)] = value
    return bytes(content[: len(content) - cut])


_edits = st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), min_size=1, max_size=4)
_cuts = st.one_of(st.just(0), st.integers(0, 200))


@settings(max_examples=400, deadline=None)
@given(_edits, _cuts)
def test_a_mutated_root_is_refused_or_harmless(edits: list[tuple[int, int]], cut: int) -> None:
    content, _, _ = sample()
    try:
        index = RootIndex.parse(mutated(content.index_bytes, edits, cut), content.manifest)
    except SnapshotDamaged:
        return
    assert [row.digest for row in index.rows] == [row.digest for row in content.index.rows]


@settings(max_examples=400, deadline=None)
@given(_edits, _cuts)
def test_a_mutated_chunk_table_is_refused_or_within_its_limits(edits: list[tuple[int, int]], cut: int) -> None:
    _, plain, _ = sample()
    try:
        table = ChunkTable.parse(mutated(plain, edits, cut), LENGTHS)
    except SnapshotDamaged:
        return
    assert len(table.digests) == len(LENGTHS)
    for number, offset, length in zip(table.numbers, table.offsets, LENGTHS, strict=True):
        frame = table.frames[number]
        assert offset + length <= frame.raw <= 1024 * 1024
        assert frame.offset + frame.stored <= 64 * 1024 * 1024


def _rewritten(change: Callable[[dict[str, list[Any]]], None]) -> bytes:
    content, _, _ = sample()
    read = pa.ipc.open_file(content.index_bytes).read_all()
    columns = read.to_pydict()
    change(columns)
    table = pa.table(columns, schema=read.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _set(column: str, value: object) -> Callable[[dict[str, list[Any]]], None]:
    return lambda columns: columns[column].__setitem__(0, value)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("file", 1), ("file", 2**32 - 1), ("plain_bytes", 0), ("plain_bytes", 2**63), ("digest", bytes(32)),
        ("kind", 1), ("kind", 9), ("operation", 2), ("operation", 65535), ("offset", 2**63), ("offset", 64 * 2**20),
        ("stored", 0),
        ("stored", 2**32 - 1), ("raw", 0), ("raw", 2**32 - 1), ("codec", 2),
    ],
)  # fmt: skip
def test_a_root_row_beyond_a_limit_is_refused(column: str, value: object) -> None:
    content, _, _ = sample()
    assert RootIndex.parse(_rewritten(lambda _: None), content.manifest) == content.index
    with pytest.raises(SnapshotDamaged):
        RootIndex.parse(_rewritten(_set(column, value)), content.manifest)


def test_a_root_of_another_shape_is_refused() -> None:
    content, _, _ = sample()
    read = pa.ipc.open_file(content.index_bytes).read_all()
    shapes = [
        read.slice(0, 1),
        pa.concat_tables([read, read]),
        read.drop_columns(["codec"]),
        read.set_column(0, "file", pa.array([0, 1], pa.uint64())),
        read.set_column(0, "file", pa.array([0, None], pa.uint32())),
        read.rename_columns(["x", *read.schema.names[1:]]),
    ]
    for table in shapes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        with pytest.raises(SnapshotDamaged):
            RootIndex.parse(bytes(sink.getvalue()), content.manifest)


def test_a_manifest_of_absurd_size_is_refused_before_rows_are_counted_out() -> None:
    content, _, _ = sample()
    file = content.manifest.files[0]
    absurd = replace(
        content.manifest, files=(FileEntry(file.path, 2**62, file.mode, file.layout, file.content_digest),)
    )
    with pytest.raises(SnapshotDamaged, match="limit"):
        RootIndex.parse(content.index_bytes, absurd)


@pytest.mark.parametrize("file", [True, False])
def test_a_compression_bomb_is_refused_before_it_expands(file: bool) -> None:
    """A small body that claims a gigabyte of zeros."""
    content, _, table = sample()
    schema = pa.ipc.open_file(content.index_bytes).schema if file else pa.ipc.open_stream(table.to_bytes()).schema
    rows = 2**24
    arrays = [
        pa.Array.from_buffers(field.type, rows, [None, pa.py_buffer(bytes(rows * field.type.bit_width // 8))])
        for field in schema
    ]
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    opened = (
        pa.ipc.new_file(sink, schema, options=options) if file else pa.ipc.new_stream(sink, schema, options=options)
    )
    with opened as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    bomb = bytes(sink.getvalue())
    assert len(bomb) < 1_000_000
    del arrays
    before = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    peak = pool.max_memory()
    with pytest.raises(SnapshotDamaged, match="larger than it may be"):
        if file:
            RootIndex.parse(bomb, content.manifest)
        else:
            ChunkTable.parse(bomb, LENGTHS)
    assert pa.total_allocated_bytes() <= before + 1_000_000
    assert pool.max_memory() == peak


def test_a_frame_never_expands_beyond_what_the_index_says() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(100_000_000))
    with pytest.raises(FrameError):
        decode_frame(bomb, 1000, 1)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100_000_000))
    with pytest.raises(FrameError):
        decode_frame(unsized, 1000, 1)
    # A frame whose own header claims 1 TiB.
    claimed = b"\x28\xb5\x2f\xfd" + bytes([0xE0]) + struct.pack("<Q", 2**40) + b"\x01\x00\x00"
    with pytest.raises(FrameError):
        decode_frame(claimed, 1000, 1)
    stored, codec = encode_frame(bytes(1000))
    assert codec == 1
    for wrong in (stored[:-1], bytes(stored) + b"x", b"", stored[1:]):
        with pytest.raises(FrameError):
            decode_frame(wrong, 1000, 1)
    with pytest.raises(FrameError):
        decode_frame(b"123", 4, 0)


def test_a_chunk_table_that_names_a_foreign_operation_is_refused() -> None:
    content, _, _ = sample()
    objects = MemoryStore()
    publisher = Publisher(objects, Path(mkdtemp()))
    snapshot = publisher.publish({"a": noise(9000)})
    [segment] = Base(objects, snapshot).segments
    stranger = replace(snapshot, manifest=replace(snapshot.manifest, operations=content.manifest.operations))
    with pytest.raises(SnapshotDamaged, match="operation"):
        Base(objects, stranger).table(segment)


def test_frames_are_raw_when_compression_saves_under_five_percent() -> None:
    assert encode_frame(noise(10_000))[1] == 0
    assert encode_frame(noise(9_700) + bytes(300))[1] == 0
    assert encode_frame(noise(9_000) + bytes(1000))[1] == 1


@pytest.mark.parametrize("size", [256 * 1024, 1024 * 1024 - 1, 1024 * 1024, 8 * 1024 * 1024])
def test_large_frames_are_told_by_samples_and_no_stretch_that_matters_escapes_them(size: int) -> None:
    plain = noise(size)
    stored, codec = encode_frame(plain)
    assert codec == 0
    assert stored is plain
    stretch = size * 7 // 100
    for start in [*range(0, size - stretch, size // 23), size - stretch]:
        stored, codec = encode_frame(plain[:start] + bytes(stretch) + plain[start + stretch :])
        assert codec == 1
        assert len(stored) <= size * 0.95


def _records(count: int) -> bytes:
    """What hardly shrinks: noise between fields that repeat."""
    return b"".join(b"a field " + noise(56, number) for number in range(count))


def _lines(count: int) -> bytes:
    """What shrinks well."""
    return b"".join(b"%d;%x;shipped;paid;2024-05-%02d\n" % (n, n * 7919 % 65537, n % 28 + 1) for n in range(count))


@pytest.mark.parametrize(
    "plain",
    [_records(16_384), _lines(32_000), bytes(byte % 160 for byte in noise(1024 * 1024)), _lines(8000) + noise(600_000)],
    ids=["records", "lines", "few values", "mixed"],
)
def test_a_frame_is_never_much_larger_than_level_one_makes_it(plain: bytes) -> None:
    stored, codec = encode_frame(plain)
    assert codec == CODEC_ZSTD
    assert decode_frame(stored, len(plain), codec) == plain
    assert len(stored) <= len(zstandard.ZstdCompressor(level=1).compress(plain)) * 1.03
