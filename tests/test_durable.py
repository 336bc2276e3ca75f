"""Steps that a power cut can not undo, and what a full disk is called."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshot_assets.durable import is_full, sync_folder, write_synced


@pytest.mark.parametrize("source", [b"data", bytearray(b"data"), memoryview(b"data"), io.BytesIO(b"data")])
def test_a_file_is_written_whole_and_synced(tmp_path: Path, source: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("snapshot_assets.durable.os.fsync", lambda file: synced.append(os.fstat(file).st_size))
    write_synced(tmp_path / "file", source)
    assert (tmp_path / "file").read_bytes() == b"data"
    assert synced == [4]


def test_a_file_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_synced(tmp_path / "file", b"other")
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_folder_is_synced_and_a_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("snapshot_assets.durable.os.fsync", lambda folder: synced.append(os.fstat(folder).st_ino))
    sync_folder(tmp_path)
    assert synced == [tmp_path.stat().st_ino]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        sync_folder(tmp_path / "file")


def test_what_the_system_says_without_room_is_a_full_disk(
    tmp_path: Path, file_size_limit: Callable[[int], None]
) -> None:
    with pytest.raises(OSError, match="No space left") as full, Path("/dev/full").open("wb", buffering=0) as device:
        device.write(b"x")
    assert is_full(full.value)
    file_size_limit(1)
    with pytest.raises(OSError, match="too large") as full:
        write_synced(tmp_path / "file", bytes(10))
    assert is_full(full.value)
    file_size_limit(-1)
    with pytest.raises(FileExistsError) as other:
        write_synced(tmp_path / "file", bytes(10))
    assert not is_full(other.value)
