"""How an immutable file is staged: linked where that is possible, else copied, and nothing but plain files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets.engines.links import stage_file
from snapshot_assets.errors import CaptureError, LiveDatabaseMissing, UnsupportedLiveDatabase


@pytest.fixture
def live(tmp_path: Path) -> Path:
    path = tmp_path / "live"
    path.write_bytes(b"x" * 100_000)
    path.chmod(0o640)
    return path


@pytest.fixture(params=[errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on which this process can make no hard link."""

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuse)


def test_a_staged_file_is_the_live_file_under_another_name(live: Path, tmp_path: Path) -> None:
    target = tmp_path / "staging" / "deep" / "file"
    assert stage_file(live, target) == 0o640
    assert target.samefile(live)


def test_a_staged_file_outlives_the_live_one(live: Path, tmp_path: Path) -> None:
    stage_file(live, tmp_path / "target")
    live.unlink()
    assert (tmp_path / "target").read_bytes() == b"x" * 100_000


@pytest.mark.usefixtures("no_links")
def test_where_no_link_is_possible_the_file_is_copied(live: Path, tmp_path: Path) -> None:
    target = tmp_path / "staging" / "deep" / "file"
    assert stage_file(live, target) == 0o640
    assert not target.samefile(live)
    assert target.read_bytes() == b"x" * 100_000
    assert target.stat().st_mode & 0o777 == 0o640


def test_another_file_system_is_copied_to(live: Path, tmp_path: Path) -> None:
    other = Path("/dev/shm") / f"links-{os.getpid()}"
    assert other.parent.stat().st_dev != live.stat().st_dev
    try:
        assert stage_file(live, other) == 0o640
        assert other.read_bytes() == b"x" * 100_000
    finally:
        other.unlink(missing_ok=True)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LiveDatabaseMissing, match="no_such_file"):
        stage_file(tmp_path / "no_such_file", tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.usefixtures("no_links")
def test_a_missing_file_is_named_where_no_link_is_possible(tmp_path: Path) -> None:
    with pytest.raises(LiveDatabaseMissing, match="no_such_file"):
        stage_file(tmp_path / "no_such_file", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def make(kind: str, path: Path) -> None:
    if kind == "link":
        path.with_name("secret").write_text("secret")
        path.symlink_to(path.with_name("secret"))
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_only_plain_files_are_staged(kind: str, tmp_path: Path) -> None:
    make(kind, tmp_path / "odd")
    with pytest.raises(UnsupportedLiveDatabase, match="odd"):
        stage_file(tmp_path / "odd", tmp_path / "target")
    assert not os.path.lexists(tmp_path / "target")


@pytest.mark.usefixtures("no_links")
@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_only_plain_files_are_copied(kind: str, tmp_path: Path) -> None:
    make(kind, tmp_path / "odd")
    with pytest.raises(UnsupportedLiveDatabase, match="odd"):
        stage_file(tmp_path / "odd", tmp_path / "target")
    assert not os.path.lexists(tmp_path / "target")


def test_a_target_that_exists_is_left_alone(live: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    with pytest.raises(CaptureError, match="target"):
        stage_file(live, tmp_path / "target")
    assert (tmp_path / "target").read_text() == "mine"


@pytest.mark.usefixtures("no_links")
def test_a_target_that_exists_is_not_copied_over(live: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    with pytest.raises(CaptureError, match="target"):
        stage_file(live, tmp_path / "target")
    assert (tmp_path / "target").read_text() == "mine"


@pytest.mark.usefixtures("no_links")
def test_a_copy_that_does_not_fit_leaves_nothing(live: Path, tmp_path: Path, file_size_limit: Any) -> None:
    file_size_limit(50_000)
    with pytest.raises(CaptureError) as caught:
        stage_file(live, tmp_path / "target")
    file_size_limit(-1)
    assert "Free disk space" in caught.value.hint
    assert not (tmp_path / "target").exists()
