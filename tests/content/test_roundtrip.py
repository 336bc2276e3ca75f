"""What was stored comes back bit for bit, whatever the shape of the files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3

from snapshot_assets.content.index import KIND_SEGMENT
from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.segments import chunk_lengths, hash_files, segment_count, segment_lengths
from snapshot_assets.content.upload import store_content
from snapshot_assets.engines.contract import StagedFile
from snapshot_assets.errors import CorruptCapture
from snapshot_assets.model.manifest import Layout
from tests.content.conftest import DUCKDB, SQLITE, WHOLE, Publisher, noise, read_folder

MIB = 1024 * 1024
SIZES = [
    0,
    1,
    4095,
    4096,
    4097,
    12288,
    12289,
    300_000,
    8 * MIB,
    16 * MIB,
    16 * MIB + 12288,
    16 * MIB + 12289,
    35 * MIB + 7,
]
LAYOUTS = [SQLITE, DUCKDB, WHOLE, Layout.blocks(100, 3000), Layout.blocks(4096, MIB)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_a_file_of_any_size_and_layout_comes_back(
    publisher: Publisher, tmp_path: Path, layout: Layout, size: int
) -> None:
    data = (noise(min(size, 100_000)) + bytes(size))[:size]
    content = publisher.publish({"a.db": data}, layout)
    restored = restore_files(publisher.objects, content, tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"a.db": data}
    assert (tmp_path / "out" / "a.db").stat().st_mode & 0o7777 == 0o640
    assert (restored.fetched_bytes > 0) == (size > 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_segments_and_chunks_add_up_and_no_chunk_is_cut(layout: Layout, size: int) -> None:
    lengths = list(segment_lengths(size, layout))
    assert sum(lengths) == size
    assert len(lengths) == segment_count(size, layout)
    if layout.kind == "blocks":
        chunks = [chunk for n, length in enumerate(lengths) for chunk in chunk_lengths(length, layout, first=n == 0)]
        assert sum(chunks) == size
        body = chunks[1:] if layout.header_bytes else chunks
        assert all(chunk == layout.chunk_bytes for chunk in body[:-1])


def test_the_content_digest_of_a_file_is_that_of_the_format(tmp_path: Path) -> None:
    data = noise(17 * MIB)
    (tmp_path / "a").write_bytes(data)
    [hashed] = hash_files([StagedFile("a", tmp_path / "a", len(data), 0o600, DUCKDB)])
    cut = 16 * MIB + 12288
    segments = (blake3(data[:cut]).digest(), blake3(data[cut:]).digest())
    assert hashed.digests == segments
    expected = blake3(len(data).to_bytes(8, "little") + b"".join(segments)).hexdigest()
    assert hashed.entry.content_digest == f"blake3:{expected}"


def test_many_small_whole_files_come_back_and_share_packs(publisher: Publisher, tmp_path: Path) -> None:
    files = {f"part/{n // 100}/{n}.bin": noise(200 + n % 300, n) for n in range(3_000)}
    content = publisher.publish(files, WHOLE)
    assert publisher.stored is not None
    assert len(publisher.stored.pack_sizes) == 1
    assert {row.kind for row in content.index.rows} == {KIND_SEGMENT}
    restore_files(publisher.objects, content, tmp_path / "out")
    assert read_folder(tmp_path / "out") == files


def test_files_of_several_layouts_share_a_snapshot(publisher: Publisher, tmp_path: Path) -> None:
    zeros = bytes(MIB)
    files = {"a.duckdb": zeros, "b.sqlite": zeros, "c.bin": zeros, "d.sqlite": noise(20 * MIB), "empty": b""}
    layouts = {"a.duckdb": DUCKDB, "c.bin": WHOLE}
    content = publisher.publish(files, layouts=layouts)
    restore_files(publisher.objects, content, tmp_path / "out")
    assert read_folder(tmp_path / "out") == files


def test_data_larger_than_a_pack_is_spread_over_packs_of_at_most_64_mib(publisher: Publisher, tmp_path: Path) -> None:
    data = b"".join(noise(MIB, n) for n in range(130))
    content = publisher.publish({"a.db": data}, DUCKDB)
    assert publisher.stored is not None
    assert len(publisher.stored.pack_sizes) == 3
    assert max(publisher.stored.pack_sizes.values()) <= 64 * MIB
    restore_files(publisher.objects, content, tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"a.db": data}


def test_a_file_that_changes_after_it_was_hashed_stops_the_publish(tmp_path: Path, publisher: Publisher) -> None:
    source = tmp_path / "a"
    source.write_bytes(noise(MIB))
    staged = StagedFile("a", source, MIB, 0o600, SQLITE)

    hashed = hash_files([staged])
    source.write_bytes(noise(MIB, 1))
    with pytest.raises(CorruptCapture, match="changed"):
        store_content(
            publisher.objects, hashed, dataset="orders", incarnation="i", operation_id="01JD0000000000000000000000"
        )
    source.unlink()
    with pytest.raises(CorruptCapture, match="disappeared"):
        hash_files([staged])
    source.write_bytes(b"short")
    with pytest.raises(CorruptCapture, match="size"):
        hash_files([staged])


_MEMORY_SCRIPT = """
import random, resource, sys
from pathlib import Path
from snapshot_assets.content.restore import restore_files
from snapshot_assets.engines.contract import StagedFile
from snapshot_assets.model.manifest import Layout
from snapshot_assets.store.local import LocalStore
from tests.content.conftest import Publisher

folder = Path(sys.argv[1])
source = folder / "source"
size = 640 * 1024 * 1024
noise = random.Random(7)
with source.open("wb") as file:
    file.truncate(size)
    for at in range(0, size, 2 * 1024 * 1024):
        file.seek(at)
        file.write(noise.randbytes(1024 * 1024))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
publisher = Publisher(LocalStore(folder / "store"), folder / "staging")
content = publisher.publish_staged([StagedFile("a.db", source, size, 0o600, Layout.blocks(0, 65536))])
restore_files(publisher.objects, content, folder / "out")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_publish_and_restore_of_a_large_file_stay_under_300_mib(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _MEMORY_SCRIPT, str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert int(answer.stdout) < 300


def test_frames_that_compress_and_frames_that_do_not_share_a_segment(publisher: Publisher, tmp_path: Path) -> None:
    def mixed(seed: int) -> bytes:
        return b"".join(noise(64 * 1024, seed + n) if n % 3 else bytes([seed % 256]) * 65_536 for n in range(300))

    first = mixed(0)
    publisher.publish({"a": first})
    # Single pages all over, so that frames are put together from many stretches of the segment.
    changed = bytearray(first)
    for page in range(0, len(first) // 4096, 3):
        new = noise(4096, page) if page % 2 else page.to_bytes(4, "little") * 1024
        changed[page * 4096 : page * 4096 + 4096] = new
    for data in (bytes(changed), mixed(1000)):
        restore_files(publisher.objects, publisher.publish({"a": data}), tmp_path / str(len(data)) / str(data[0]))
        assert read_folder(tmp_path / str(len(data)) / str(data[0])) == {"a": data}
