"""The folder of chunk tables: it only saves reads, so nothing that is wrong with it fails what it serves."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshot_assets.content.index import Location
from snapshot_assets.content.tables import TableFolder
from snapshot_assets.ids import new_operation_id

PLACE = Location(new_operation_id(), 0, 10, 5, 5, 0)
OTHER = Location(PLACE.operation, 0, 20, 5, 5, 0)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_table_is_kept_until_it_is_not_wanted(tmp_path: Path) -> None:
    folder = TableFolder(tmp_path / "cache")
    assert folder.read(PLACE) is None
    folder.write(PLACE, b"first")
    folder.write(OTHER, b"other")
    folder.keep_only([OTHER])
    assert (folder.read(PLACE), folder.read(OTHER)) == (None, b"other")


def test_a_full_disk_costs_the_table_and_is_said_once(
    tmp_path: Path, file_size_limit: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = TableFolder(tmp_path / "cache")
    file_size_limit(10)
    for place in (PLACE, OTHER, PLACE):
        folder.write(place, b"x" * 100)
        assert folder.read(place) is None
    file_size_limit(-1)
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(warnings_of(caplog)) == 1
    assert str(tmp_path / "cache") in warnings_of(caplog)[0]


@pytest.mark.parametrize("inner", ["cache", "cache/inner"])
def test_a_file_where_the_folder_should_be_costs_only_reads(
    tmp_path: Path, inner: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_bytes(b"mine")
    folder, good = TableFolder(tmp_path / inner), TableFolder(tmp_path / "good")
    good.write(PLACE, b"first")
    folder.write(PLACE, b"first")
    assert folder.read(PLACE) is None
    assert folder.adopt(PLACE, good)
    folder.keep_only([])
    assert (tmp_path / "cache").read_bytes() == b"mine"
    assert len(warnings_of(caplog)) == 1


def test_a_table_that_can_not_be_read_or_removed_counts_as_absent(tmp_path: Path) -> None:
    folder = TableFolder(tmp_path)
    folder.write(PLACE, b"first")
    [file] = tmp_path.iterdir()
    file.unlink()
    file.mkdir()
    assert folder.read(PLACE) is None
    folder.write(PLACE, b"first")
    folder.keep_only([])
    assert file.is_dir()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_a_file_system_without_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refused(*_: object) -> None:
        raise OSError(code, "no links here")

    source, target = TableFolder(tmp_path / "source"), TableFolder(tmp_path / "target")
    source.write(PLACE, b"first")
    monkeypatch.setattr("snapshot_assets.content.tables.os.link", refused)
    assert target.adopt(PLACE, source)
    assert target.read(PLACE) == b"first"


def test_a_torn_table_is_replaced_by_the_one_that_is_taken_over(tmp_path: Path) -> None:
    source, target = TableFolder(tmp_path / "source"), TableFolder(tmp_path / "target")
    source.write(PLACE, b"first")
    target.write(PLACE, b"first")
    [torn] = (tmp_path / "target").iterdir()
    torn.write_bytes(b"torn")
    assert target.adopt(PLACE, source)
    assert target.read(PLACE) == b"first"


def test_what_another_writer_is_writing_is_left_alone_and_what_a_dead_one_left_is_removed(tmp_path: Path) -> None:
    folder = TableFolder(tmp_path)
    folder.write(PLACE, b"first")
    young, old = tmp_path / ".young", tmp_path / ".old"
    for file in (young, old):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    folder.keep_only([])
    assert [file.name for file in tmp_path.iterdir()] == [".young"]
