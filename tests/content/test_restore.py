"""A restore takes what it can from local copies, trusts none of it, and never writes outside its folder."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets.content.restore import INDEX_FILE, Donor, restore_files
from snapshot_assets.content.snapshot import Content, read_content
from snapshot_assets.errors import PathOutsideAnchor, SnapshotDamaged, StoreUnavailable
from snapshot_assets.model.manifest import Layout, digest_of, index_key, manifest_key, pack_key
from snapshot_assets.store.memory import MemoryStore
from tests.content.conftest import DUCKDB, SQLITE, WHOLE, Publisher, noise, read_folder

MIB = 1024 * 1024


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def overwrite(objects: MemoryStore, key: str, data: bytes) -> None:
    objects.delete([key])
    objects.write_if_absent(key, data)


def two_snapshots(publisher: Publisher, folder: Path, layout: Layout) -> tuple[Donor, Content, bytes]:
    """A local copy of a first snapshot, and a second one that differs by a few bytes in its second segment."""
    data = noise(34 * MIB)
    first = publisher.publish({"a": data}, layout)
    index = folder / "index"
    restore_files(publisher.objects, first, folder / "first", index_folder=index)
    changed = bytearray(data)
    changed[20 * MIB : 20 * MIB + 10] = b"0123456789"
    return Donor(folder / "first", first, index), publisher.publish({"a": bytes(changed)}, layout), bytes(changed)


@pytest.mark.parametrize("layout", [SQLITE, DUCKDB])
def test_a_refresh_fetches_the_changed_chunks_and_their_table(
    publisher: Publisher, tmp_path: Path, layout: Layout
) -> None:
    donor, content, expected = two_snapshots(publisher, tmp_path, layout)
    assert publisher.stored is not None
    restored = restore_files(publisher.objects, content, tmp_path / "out", donors=[donor], index_folder=tmp_path / "i")
    assert read_folder(tmp_path / "out") == {"a": expected}
    assert restored.fetched_bytes == sum(publisher.stored.pack_sizes.values())
    assert restored.reused_bytes == len(expected) - layout.chunk_bytes  # type: ignore[operator]
    assert (tmp_path / "i" / INDEX_FILE).read_bytes() == content.index_bytes
    assert len(list((tmp_path / "i").glob("*.table"))) == 3


def test_changed_chunks_between_unchanged_ones_land_where_they_belong(publisher: Publisher, tmp_path: Path) -> None:
    pages = [noise(4096, n) for n in range(40)]
    first = publisher.publish({"a": b"".join(pages)}, SQLITE)
    restore_files(publisher.objects, first, tmp_path / "first", index_folder=tmp_path / "index")
    for n in range(1, 40, 2):
        pages[n] = noise(4096, 100 + n)
    content = publisher.publish({"a": b"".join(pages)}, SQLITE)
    donor = Donor(tmp_path / "first", first, tmp_path / "index")
    restored = restore_files(publisher.objects, content, tmp_path / "out", donors=[donor])
    assert restored.reused_bytes == 20 * 4096
    restore_files(publisher.objects, content, tmp_path / "bare")
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "bare") == {"a": b"".join(pages)}


@pytest.mark.parametrize("at", [5, 18 * MIB, 33 * MIB])
def test_a_rotten_donor_is_replaced_by_the_store(publisher: Publisher, tmp_path: Path, at: int) -> None:
    donor, content, expected = two_snapshots(publisher, tmp_path, SQLITE)
    flip(donor.folder / "a", at)
    restored = restore_files(publisher.objects, content, tmp_path / "out", donors=[donor])
    assert read_folder(tmp_path / "out") == {"a": expected}
    assert restored.reused_bytes < len(expected) - 4096


@pytest.mark.parametrize("damage", ["missing file", "short file", "no index", "torn index", "link"])
def test_a_broken_donor_only_costs_bytes(publisher: Publisher, tmp_path: Path, damage: str) -> None:
    donor, content, expected = two_snapshots(publisher, tmp_path, SQLITE)
    file = donor.folder / "a"
    if damage == "missing file":
        file.unlink()
    elif damage == "short file":
        os.truncate(file, 19 * MIB)
    elif damage == "no index":
        donor = replace(donor, index_folder=None)
    elif damage == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        assert donor.index_folder is not None
        for table in donor.index_folder.glob("*.table"):
            table.write_bytes(table.read_bytes()[:50])
    restore_files(publisher.objects, content, tmp_path / "out", donors=[donor], index_folder=tmp_path / "i")
    assert read_folder(tmp_path / "out") == {"a": expected}
    assert len(list((tmp_path / "i").glob("*.table"))) == 3


def test_the_index_folder_of_a_copy_is_complete_also_when_everything_was_reused(
    publisher: Publisher, tmp_path: Path
) -> None:
    donor, _, _ = two_snapshots(publisher, tmp_path, SQLITE)
    restored = restore_files(
        publisher.objects, donor.content, tmp_path / "out", donors=[donor], index_folder=tmp_path / "i"
    )
    assert restored.fetched_bytes == 0
    tables = sorted(path.name for path in (tmp_path / "i").glob("*.table"))
    assert donor.index_folder is not None
    assert tables == sorted(path.name for path in donor.index_folder.glob("*.table"))


def test_progress_adds_up_to_the_plain_bytes(publisher: Publisher, tmp_path: Path) -> None:
    content = publisher.publish({"a": noise(33 * MIB), "b": noise(10)}, DUCKDB)
    done: list[int] = []
    calls: list[int] = []
    restore_files(
        publisher.objects, content, tmp_path / "out", on_progress=done.append, on_segment=lambda: calls.append(1)
    )
    assert sum(done) == content.manifest.data_bytes
    assert len(calls) == len(content.index.rows) == 4

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        restore_files(publisher.objects, content, tmp_path / "other", on_segment=stop)


@pytest.mark.parametrize("layout", [SQLITE, DUCKDB, WHOLE])
def test_a_flipped_bit_anywhere_in_a_pack_is_noticed(publisher: Publisher, tmp_path: Path, layout: Layout) -> None:
    data = noise(300_000) + bytes(300_000) + (b"text " * 60_000)
    content = publisher.publish({"a": data}, layout)
    assert publisher.stored is not None
    [key] = publisher.stored.pack_sizes
    sound = publisher.objects.read(key).data
    assert isinstance(publisher.objects, MemoryStore)
    for number in range(60):
        at = len(sound) * number // 60
        rotten = bytearray(sound)
        rotten[at] ^= 1 << number % 8
        overwrite(publisher.objects, key, bytes(rotten))
        try:
            restore_files(publisher.objects, content, tmp_path / str(number))
        except SnapshotDamaged:
            continue
        # Padding inside a chunk table's Arrow stream means nothing; whatever was written is right all the same.
        assert read_folder(tmp_path / str(number)) == {"a": data}


@pytest.mark.parametrize("damage", ["missing", "short", "other"])
def test_a_missing_short_or_foreign_pack_is_named(publisher: Publisher, tmp_path: Path, damage: str) -> None:
    content = publisher.publish({"a": noise(MIB)}, SQLITE)
    key = pack_key("orders", publisher.incarnation, content.manifest.operation_id, 0)
    sound = publisher.objects.read(key).data
    assert isinstance(publisher.objects, MemoryStore)
    if damage == "missing":
        publisher.objects.delete([key])
    else:
        overwrite(publisher.objects, key, sound[:-1] if damage == "short" else noise(4096, 9) + sound[4096:])
    with pytest.raises(SnapshotDamaged, match=key):
        restore_files(publisher.objects, content, tmp_path / "out")


def test_a_store_that_does_not_answer_is_not_damage(publisher: Publisher, tmp_path: Path) -> None:
    content = publisher.publish({"a": noise(MIB)}, SQLITE)

    class Gone(MemoryStore):
        def read_ranges(self, key: str, ranges: object) -> list[memoryview]:
            raise StoreUnavailable("gone")

    with pytest.raises(StoreUnavailable):
        restore_files(Gone(), content, tmp_path / "out")


def test_missing_damaged_and_foreign_documents_are_named(publisher: Publisher) -> None:
    content = publisher.publish({"a": noise(9000)}, SQLITE)
    other = publisher.publish({"a": noise(9000, 1)}, SQLITE)
    operation, incarnation = content.manifest.operation_id, publisher.incarnation
    digest = digest_of(content.manifest_bytes)
    objects = publisher.objects
    assert isinstance(objects, MemoryStore)
    assert read_content(objects, "orders", incarnation, operation, digest) == content
    index, manifest = index_key("orders", incarnation, operation), manifest_key("orders", incarnation, operation)
    overwrite(objects, index, other.index_bytes)
    with pytest.raises(SnapshotDamaged, match="digest"):
        read_content(objects, "orders", incarnation, operation, digest)
    objects.delete([index])
    with pytest.raises(SnapshotDamaged, match=index):
        read_content(objects, "orders", incarnation, operation, digest)
    overwrite(objects, manifest, other.manifest_bytes)
    with pytest.raises(SnapshotDamaged, match="digest"):
        read_content(objects, "orders", incarnation, operation, digest)
    overwrite(objects, index, other.index_bytes)
    with pytest.raises(SnapshotDamaged, match="another snapshot"):
        read_content(objects, "orders", incarnation, operation, digest_of(other.manifest_bytes))
    objects.delete([manifest])
    with pytest.raises(SnapshotDamaged, match=manifest):
        read_content(objects, "orders", incarnation, operation, digest)


def test_links_in_the_target_folder_are_never_followed(publisher: Publisher, tmp_path: Path) -> None:
    content = publisher.publish({"inner/a": noise(9000)}, SQLITE)
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "inner").symlink_to(outside)
    with pytest.raises(PathOutsideAnchor):
        restore_files(publisher.objects, content, tmp_path / "one")
    (tmp_path / "two" / "inner").mkdir(parents=True)
    (tmp_path / "two" / "inner" / "a").symlink_to(outside / "b")
    with pytest.raises(FileExistsError):
        restore_files(publisher.objects, content, tmp_path / "two")
    assert list(outside.iterdir()) == []


def written_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each write into a file that is restored, from now on."""
    lengths: list[int] = []
    pwrite = os.pwrite

    def note(descriptor: int, data: bytes, offset: int) -> int:
        lengths.append(len(data))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", note)
    return lengths


@pytest.mark.parametrize("layout", [DUCKDB, WHOLE])
def test_over_old_files_only_what_differs_is_written(
    publisher: Publisher, tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    donor, content, expected = two_snapshots(publisher, tmp_path, layout)
    inode = (donor.folder / "a").stat().st_ino
    lengths = written_bytes(monkeypatch)
    restored = restore_files(publisher.objects, content, donor.folder, over=True)
    assert read_folder(donor.folder) == {"a": expected}
    assert (donor.folder / "a").stat().st_ino == inode
    assert (donor.folder / "a").stat().st_mode & 0o777 == 0o640
    assert 0 < sum(lengths) <= 64 * 1024
    assert (
        restored.reused_bytes
        == len(expected) - content.index.rows[20 * MIB // content.index.rows[0].plain_bytes].plain_bytes
    )


def test_over_old_files_a_donor_gives_what_is_not_in_place(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    donor, content, expected = two_snapshots(publisher, tmp_path, SQLITE)
    old = bytearray(expected)
    old[3 * MIB : 3 * MIB + 4] = b"old!"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_bytes(old)
    lengths = written_bytes(monkeypatch)
    restored = restore_files(publisher.objects, content, tmp_path / "out", donors=[donor], over=True)
    assert read_folder(tmp_path / "out") == {"a": expected}
    assert sum(lengths) == 64 * 1024
    assert (restored.fetched_bytes, restored.reused_bytes) == (0, len(expected))


@pytest.mark.parametrize("size", [0, 17 * MIB, 40 * MIB])
def test_over_an_old_file_of_any_size_and_content_lies_the_snapshot(
    publisher: Publisher, tmp_path: Path, size: int
) -> None:
    donor, content, expected = two_snapshots(publisher, tmp_path, SQLITE)
    old = bytearray(noise(size, 1))
    old[: len(expected) // 2] = expected[: min(len(expected) // 2, size)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_bytes(old[:size])
    restore_files(publisher.objects, content, tmp_path / "out", donors=[donor], over=True)
    assert read_folder(tmp_path / "out") == {"a": expected}


@pytest.mark.parametrize("at", [5, 18 * MIB])
def test_what_rotted_in_an_old_file_is_not_taken_over(publisher: Publisher, tmp_path: Path, at: int) -> None:
    donor, content, expected = two_snapshots(publisher, tmp_path, SQLITE)
    flip(donor.folder / "a", at)
    restore_files(publisher.objects, content, donor.folder, over=True)
    assert read_folder(donor.folder) == {"a": expected}


def test_what_can_not_be_read_of_an_old_file_is_written_anew(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    donor, content, expected = two_snapshots(publisher, tmp_path, SQLITE)
    bad = range(17 * MIB, 18 * MIB)

    def refuse(read: Any) -> Any:
        def reading(descriptor: int, what: Any, offset: int) -> Any:
            if offset in bad and Path(f"/proc/self/fd/{descriptor}").resolve() == donor.folder / "a":
                raise OSError(errno.EIO, "Input/output error")
            return read(descriptor, what, offset)

        return reading

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", refuse(os.preadv))
        patch.setattr(os, "pread", refuse(os.pread))
        restore_files(publisher.objects, content, donor.folder, over=True)
    assert read_folder(donor.folder) == {"a": expected}


def test_over_old_files_new_ones_are_made(publisher: Publisher, tmp_path: Path) -> None:
    files = {f"data/{number}": noise(1000, number) for number in range(20)}
    content = publisher.publish(files, WHOLE)
    old = tmp_path / "out" / "data"
    old.mkdir(parents=True)
    for number in range(0, 20, 2):
        (old / str(number)).write_bytes(files[f"data/{number}"])
    kept = {path.stat().st_ino for path in old.iterdir()}
    restored = restore_files(publisher.objects, content, tmp_path / "out", over=True)
    assert read_folder(tmp_path / "out") == files
    assert kept <= {path.stat().st_ino for path in old.iterdir()}
    assert restored.reused_bytes == 10_000


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_over_something_that_is_no_plain_file_nothing_is_restored(
    publisher: Publisher, tmp_path: Path, kind: str
) -> None:
    content = publisher.publish({"a": noise(1000)}, WHOLE)
    elsewhere, place = tmp_path / "elsewhere", tmp_path / "out" / "a"
    elsewhere.write_bytes(b"somebody's")
    place.parent.mkdir()
    if kind == "link":
        place.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(OSError, match="exists"):
        restore_files(publisher.objects, content, tmp_path / "out", over=True)
    assert elsewhere.read_bytes() == b"somebody's"
