"""A publish uploads what the base does not hold, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from snapshot_assets.content.base import Base
from snapshot_assets.content.index import KIND_CHUNK_TABLE, ChunkTable
from snapshot_assets.content.packs import PackUploads
from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.segments import hash_files
from snapshot_assets.content.upload import store_content
from snapshot_assets.engines.contract import StagedFile
from snapshot_assets.errors import ConfigurationError, IncarnationChanged, StoreUnavailable
from snapshot_assets.ids import new_operation_id
from snapshot_assets.store.memory import MemoryStore
from tests.content.conftest import DUCKDB, SQLITE, WHOLE, Publisher, noise, read_folder

MIB = 1024 * 1024


class CountingStore(MemoryStore):
    """Counts the reads of packs."""

    reads = 0

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        self.reads += 1
        return super().read_ranges(key, ranges)


def uploaded(publisher: Publisher) -> int:
    assert publisher.stored is not None
    return sum(publisher.stored.pack_sizes.values())


def edited(data: bytes, *edits: tuple[int, bytes]) -> bytes:
    content = bytearray(data)
    for at, new in edits:
        content[at : at + len(new)] = new
    return bytes(content)


@pytest.mark.parametrize("layout", [SQLITE, DUCKDB, WHOLE])
def test_an_unchanged_file_uploads_nothing_and_reads_no_chunk_table(tmp_path: Path, layout: object) -> None:
    objects = CountingStore()
    publisher = Publisher(objects, tmp_path / "staging")
    data = noise(20 * MIB)
    first = publisher.publish({"a": data}, layout)  # type: ignore[arg-type]
    again = publisher.publish({"a": data}, layout)  # type: ignore[arg-type]
    assert uploaded(publisher) == 0
    assert objects.reads == 0
    assert [row.location for row in again.index.rows] == [row.location for row in first.index.rows]
    assert again.manifest.operations == (again.manifest.operation_id, first.manifest.operation_id)


def test_a_changed_page_uploads_the_page_and_one_chunk_table(publisher: Publisher, tmp_path: Path) -> None:
    data = noise(40 * MIB)
    publisher.publish({"a": data}, SQLITE)
    changed = edited(data, (20 * MIB + 17, b"changed"))
    content = publisher.publish({"a": changed}, SQLITE)
    assert 4096 < uploaded(publisher) < 4096 + 100_000
    restore_files(publisher.objects, content, tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"a": changed}


def test_an_appended_and_a_shortened_file_reuse_what_they_share(publisher: Publisher, tmp_path: Path) -> None:
    data = noise(20 * MIB)
    publisher.publish({"a": data}, DUCKDB)
    grown = data + noise(MIB, 1)
    publisher.publish({"a": grown}, DUCKDB)
    assert uploaded(publisher) < MIB + 600_000
    content = publisher.publish({"a": grown[: 17 * MIB]}, DUCKDB)
    assert uploaded(publisher) < 300_000
    restore_files(publisher.objects, content, tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"a": grown[: 17 * MIB]}


def test_a_moved_file_and_an_equal_file_are_stored_once(publisher: Publisher, tmp_path: Path) -> None:
    data = noise(9 * MIB)
    publisher.publish({"a": data, "b": data}, WHOLE)
    assert uploaded(publisher) < 9.1 * MIB
    content = publisher.publish({"c": data}, WHOLE)
    assert uploaded(publisher) == 0
    restore_files(publisher.objects, content, tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"c": data}


def test_equal_chunks_of_a_segment_are_stored_once(publisher: Publisher) -> None:
    page = noise(4096)
    publisher.publish({"a": page * 2000}, SQLITE)
    assert uploaded(publisher) < 4096 + 50_000


def test_chunks_that_follow_each_other_share_frames_of_at_most_one_mib(
    publisher: Publisher, objects: MemoryStore
) -> None:
    content = publisher.publish({"a": noise(3 * MIB + 5)}, SQLITE)
    [row] = content.index.rows
    segment = next(iter(Base(objects, content).segments))
    table = Base(objects, content).table(segment)
    assert [frame.raw for frame in table.frames] == [MIB, MIB, MIB, 5]
    assert {frame.codec for frame in table.frames} == {0}
    assert row.kind == KIND_CHUNK_TABLE


def test_the_same_input_gives_the_same_packs(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"".join(noise(70_000, n % 9) for n in range(700)))
    hashed = hash_files([StagedFile("a", source, source.stat().st_size, 0o600, SQLITE)])
    operation = new_operation_id()
    stores = [MemoryStore() for _ in range(3)]
    for objects in stores:
        store_content(objects, hashed, dataset="orders", incarnation="i", operation_id=operation)
    first, *others = [{item.key: objects.read(item.key).data for item in objects.list("")} for objects in stores]
    assert first
    assert all(other == first for other in others)


def test_the_cache_spares_reading_chunk_tables_and_a_torn_cache_only_costs_reads(tmp_path: Path) -> None:
    objects = CountingStore()
    publisher = Publisher(objects, tmp_path / "staging", tmp_path / "cache")
    data = noise(20 * MIB)
    publisher.publish({"a": data}, SQLITE)
    data = edited(data, (5, b"x"))
    publisher.publish({"a": data}, SQLITE)
    assert objects.reads == 0
    assert len(list((tmp_path / "cache").iterdir())) == 3  # the base's two and the new one
    for table in (tmp_path / "cache").iterdir():
        table.write_bytes(table.read_bytes()[:-100])
    content = publisher.publish({"a": edited(data, (5, b"y"))}, SQLITE)
    assert objects.reads == 1
    assert uploaded(publisher) < 110_000
    restore_files(objects, content, tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"a": edited(data, (5, b"y"))}


def test_on_pack_is_called_once_for_each_upload_and_its_error_stops_the_publish(publisher: Publisher) -> None:
    calls: list[int] = []
    data = b"".join(noise(MIB, n) for n in range(70))
    publisher.publish({"a": data}, DUCKDB, on_pack=lambda: calls.append(1))
    assert publisher.stored is not None
    assert len(calls) == len(publisher.stored.pack_sizes) == 2

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        publisher.publish({"a": noise(MIB, 99)}, DUCKDB, on_pack=stop)


def test_a_failed_upload_is_raised(tmp_path: Path) -> None:
    class Broken(MemoryStore):
        def upload(self, key: str, source: object) -> None:
            raise StoreUnavailable("gone")

    with pytest.raises(StoreUnavailable):
        Publisher(Broken(), tmp_path).publish({"a": noise(200 * MIB // 100)}, DUCKDB)


def test_more_packs_than_the_format_counts_are_refused(objects: MemoryStore) -> None:
    with PackUploads(objects, str) as packs:
        packs._number = 65_535
        assert packs.append(b"last") == (65_535, 0)
        packs.append(bytes(64 * MIB - 4))
        with pytest.raises(ConfigurationError, match="packs"):
            packs.append(b"one too many")


def test_a_pack_stays_as_it_is_while_it_is_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(MemoryStore):
        def upload(self, key: str, source: bytes | bytearray | memoryview | Path) -> None:
            time.sleep(0.01)
            super().upload(key, source)

    monkeypatch.setattr("snapshot_assets.content.packs.MAX_PACK_BYTES", 10_000)
    objects = Slow()
    frames = [noise(3000 + number % 7, number) for number in range(60)]
    with PackUploads(objects, str) as packs:
        places = [packs.append(frame) for frame in frames]
        packs.finish()
    assert len(packs.sizes) == 20
    for (pack, offset), frame in zip(places, frames, strict=True):
        assert objects.read_ranges(str(pack), [(offset, len(frame))]) == [frame]
    assert packs.sizes == {listed.key: listed.size for listed in objects.list("")}


def test_a_base_of_another_incarnation_is_refused(publisher: Publisher) -> None:
    publisher.publish({"a": noise(5000)})
    publisher.incarnation = type(publisher.incarnation)("01JD0000000000000000000000")
    with pytest.raises(IncarnationChanged):
        publisher.publish({"a": noise(5000)})


def test_a_chunk_table_is_an_arrow_stream_of_the_stated_columns(publisher: Publisher, objects: MemoryStore) -> None:
    content = publisher.publish({"a": noise(5000)})
    [segment] = Base(objects, content).segments
    table: ChunkTable = Base(objects, content).table(segment)
    read = pa.ipc.open_stream(table.to_bytes()).read_all()
    assert [(field.name, str(field.type)) for field in read.schema] == [
        ("digest", "fixed_size_binary[16]"), ("operation", "fixed_size_binary[16]"), ("pack", "uint16"),
        ("frame_offset", "uint64"), ("frame_stored", "uint32"), ("frame_raw", "uint32"), ("codec", "uint8"),
        ("offset_in_frame", "uint32"),
    ]  # fmt: skip
    root = pa.ipc.open_file(content.index_bytes).read_all()
    assert [(field.name, str(field.type)) for field in root.schema] == [
        ("file", "uint32"), ("plain_bytes", "uint64"), ("digest", "fixed_size_binary[32]"), ("kind", "uint8"),
        ("operation", "uint16"), ("pack", "uint16"), ("offset", "uint64"), ("stored", "uint32"), ("raw", "uint32"),
        ("codec", "uint8"),
    ]  # fmt: skip
