"""The child process that copies live files."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets.engines import _copier, copying
from snapshot_assets.engines.copying import copy_live_file, read_live_header
from snapshot_assets.errors import CaptureError, LiveDatabaseMissing, UnsupportedLiveDatabase

from .conftest import During

TRY_TO_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("locked", flush=True)
    except OSError:
        print("refused", flush=True)
"""


@pytest.fixture
def live(tmp_path: Path) -> Path:
    path = tmp_path / "live"
    path.write_bytes(os.urandom(3_000_000))
    return path


def test_the_copy_has_the_same_bytes(live: Path, tmp_path: Path) -> None:
    copy = copy_live_file(live, tmp_path / "copy", header_bytes=100, timeout=10)
    assert (tmp_path / "copy").read_bytes() == live.read_bytes()
    assert (copy.size, copy.moved) == (3_000_000, ())


def test_an_empty_file_is_copied(tmp_path: Path) -> None:
    (tmp_path / "live").touch()
    assert copy_live_file(tmp_path / "live", tmp_path / "copy", header_bytes=100, timeout=10).size == 0
    assert (tmp_path / "copy").read_bytes() == b""


def test_an_older_and_longer_copy_is_overwritten(live: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(b"x" * 5_000_000)
    copy_live_file(live, tmp_path / "copy", timeout=10)
    assert (tmp_path / "copy").read_bytes() == live.read_bytes()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_systems_without_copy_file_range_are_served(
    live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def unable(*_: object) -> int:
        raise OSError(code, "unable")

    monkeypatch.setattr(os, "copy_file_range", unable)
    target = tmp_path / "copy"
    answer = _copier.main({"live": str(live), "target": str(target), "header_bytes": 0, "absent": []})
    assert answer["moved"] == []
    assert target.read_bytes() == live.read_bytes()


def test_locks_of_this_process_survive_the_copy(live: Path, tmp_path: Path, program: Callable[..., Any]) -> None:
    """The naive way, opening and closing the file in this process, gives up every POSIX lock that it has on it."""
    with live.open("r+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        copy_live_file(live, tmp_path / "copy", header_bytes=100, timeout=10)
        read_live_header(live, 16)
        assert program(TRY_TO_LOCK, live).hear() == "refused"
        shutil.copyfile(live, tmp_path / "naive")
        assert program(TRY_TO_LOCK, live).hear() == "locked"


def change_header(live: Path) -> None:
    with live.open("r+b") as file:
        file.write(b"changed")
    os.utime(live, ns=(0, 0))


def grow(live: Path) -> None:
    with live.open("ab") as file:
        file.write(b"more")


def touch(live: Path) -> None:
    os.utime(live, ns=(1, 1))


def replace(live: Path) -> None:
    twin = live.with_name("twin")
    shutil.copy2(live, twin)
    twin.replace(live)


def log(live: Path) -> None:
    live.with_name("live.wal").touch()


@pytest.mark.parametrize("act", [change_header, grow, touch, replace, log])
def test_whatever_happens_during_the_copy_is_noticed(
    live: Path, tmp_path: Path, during_copy: During, act: Callable[[Path], None]
) -> None:
    absent = [tmp_path / "live.wal"]
    before = live.stat()
    os.utime(live, ns=(before.st_atime_ns, 0))

    def capture() -> copying.FileCopy:
        return copy_live_file(live, tmp_path / "copy", header_bytes=100, absent=absent, timeout=10)

    copy = during_copy(capture, lambda: act(live))
    assert copy.moved == (("live.wal",) if act is log else ("the file changed",))


def test_a_quiet_copy_that_takes_long_is_good(live: Path, tmp_path: Path, during_copy: During) -> None:
    copy = during_copy(lambda: copy_live_file(live, tmp_path / "copy", header_bytes=100, timeout=10), lambda: None)
    assert copy.moved == ()
    assert (tmp_path / "copy").read_bytes() == live.read_bytes()


def test_a_full_disk_is_a_typed_error(live: Path) -> None:
    with pytest.raises(CaptureError, match="No space left") as caught:
        copy_live_file(live, Path("/dev/full"), timeout=10)
    assert "Free disk space" in caught.value.hint


def test_a_staging_folder_that_is_gone_is_a_typed_error(live: Path, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="staged copy") as caught:
        copy_live_file(live, tmp_path / "gone" / "copy", timeout=10)
    assert not isinstance(caught.value, LiveDatabaseMissing)


def test_a_missing_live_file_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(LiveDatabaseMissing):
        copy_live_file(tmp_path / "none", tmp_path / "copy", timeout=10)
    with pytest.raises(LiveDatabaseMissing):
        read_live_header(tmp_path / "none", 16)
    with pytest.raises(UnsupportedLiveDatabase):
        read_live_header(tmp_path, 16)


def test_a_live_file_that_vanishes_during_the_copy_is_a_typed_error(
    live: Path, tmp_path: Path, during_copy: During
) -> None:
    with pytest.raises(LiveDatabaseMissing, match="vanished"):
        during_copy(lambda: copy_live_file(live, tmp_path / "copy", timeout=10), live.unlink)


def test_a_copy_that_hangs_is_stopped(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = tmp_path / "hanging.py"
    hanging.write_text("import time\ntime.sleep(30)\n")
    monkeypatch.setattr(copying, "_COPIER", hanging)
    monkeypatch.setattr(copying, "_LEAST_SECONDS", 0.2)
    with pytest.raises(CaptureError, match="was stopped"):
        copy_live_file(live, tmp_path / "copy", timeout=0)


def test_a_child_that_breaks_is_a_typed_error(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no luck')\n")
    monkeypatch.setattr(copying, "_COPIER", broken)
    with pytest.raises(CaptureError, match="no luck"):
        copy_live_file(live, tmp_path / "copy", timeout=5)
