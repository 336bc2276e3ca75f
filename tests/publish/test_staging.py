"""Staging folders: nothing of the dead stays, nothing of the living goes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from snapshot_assets.errors import CaptureError
from snapshot_assets.publish.staging import staging_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from snapshot_assets.publish.staging import staging_folder
with staging_folder(Path(sys.argv[1]), "dead") as folder:
    (folder / "copy").write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_a_folder_is_empty_and_gone_at_the_end(tmp_path: Path) -> None:
    with staging_folder(tmp_path / "root", "one") as folder:
        assert list(folder.iterdir()) == []
        (folder / "copy").write_bytes(b"x")
    assert folders(tmp_path / "root") == []


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert folders(tmp_path) == ["dead"]
    with staging_folder(tmp_path, "living") as living, staging_folder(tmp_path, "second"):
        assert folders(tmp_path) == ["living", "second"]
        assert living.exists()
    assert folders(tmp_path) == []


def test_a_staging_folder_that_can_not_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CaptureError, match="staging folder"), staging_folder(tmp_path / "file", "one"):
        pass


def test_many_threads_never_take_each_others_folder_for_a_dead_one(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                with staging_folder(tmp_path, f"{number}-{turn}") as folder:
                    (folder / "copy").write_bytes(b"x")
                    assert (folder / "copy").read_bytes() == b"x"
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
