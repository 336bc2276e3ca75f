"""What a capture of a Lance dataset takes, whatever other programs do to the dataset meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from snapshot_assets.engines import lance_capture
from snapshot_assets.engines.contract import Captured
from snapshot_assets.engines.lance import LanceEngine
from snapshot_assets.engines.links import stage_file
from snapshot_assets.errors import CorruptCapture, LiveDatabaseBusy, UnsupportedLiveDatabase
from snapshot_assets.ids import new_operation_id
from snapshot_assets.model.dataset import Dataset

ENGINE = LanceEngine()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset("orders", "lance", tmp_path / "live" / "orders.lance")


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    folder = tmp_path / "staging"
    folder.mkdir()
    return folder


def rows(first: int, count: int) -> pa.Table:
    return pa.table({"id": range(first, first + count), "name": [f"order {n}" for n in range(first, first + count)]})


def write(dataset: Dataset, first: int = 0, count: int = 100) -> lance.LanceDataset:
    with ENGINE.connect_live(dataset) as table:
        return table.write(rows(first, count))


def capture(dataset: Dataset, folder: Path, timeout: float = 20) -> Captured:
    """Capture, look at all of the copy, and fail unless it holds exactly the files that were told of."""
    folder.mkdir(exist_ok=True)
    captured = ENGINE.capture(dataset, folder, timeout=timeout)
    files = [file.path for file in captured.files]
    assert sorted(files) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    ENGINE.verify(folder, files, ENGINE.describe(dataset, folder, files), "full")
    return captured


def ids(folder: Path) -> list[int]:
    return sorted(lance.dataset(folder / "orders.lance").to_table()["id"].to_pylist())


def contents(captured: Captured) -> dict[str, bytes]:
    return {file.path: file.source.read_bytes() for file in captured.files}


# what travels


def test_a_copy_is_hard_links_to_the_files_of_one_version(dataset: Dataset, staging: Path) -> None:
    write(dataset)
    captured = capture(dataset, staging)
    for file in captured.files:
        assert file.source.samefile(dataset.path / Path(file.path).relative_to("orders.lance"))
    assert ids(staging) == list(range(100))


def test_no_history_travels(dataset: Dataset, staging: Path) -> None:
    for first in range(0, 500, 100):
        live = write(dataset, first)
    live.delete("id < 10")
    live.tags.create("mine", 2)
    live.create_branch("other", 3)
    captured = capture(dataset, staging)
    kinds = [Path(file.path).parts[1] for file in captured.files]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"_versions": 1, "_deletions": 1, "data": 5}


def test_a_small_append_adds_its_own_file_and_a_manifest(dataset: Dataset, tmp_path: Path) -> None:
    write(dataset).create_scalar_index("id", "BTREE")
    before = contents(capture(dataset, tmp_path / "before"))
    write(dataset, 100, 5)
    after = contents(capture(dataset, tmp_path / "after"))
    new = sorted(Path(path).parts[1] for path in after.keys() - before.keys())
    assert new == ["_versions", "data"]
    assert all(after[path] == before[path] for path in after.keys() & before.keys())


def test_neither_captures_nor_tags_change_what_is_captured(dataset: Dataset, tmp_path: Path) -> None:
    live = write(dataset)
    first = capture(dataset, tmp_path / "first")
    live.tags.create("mine", live.version)
    second = capture(dataset, tmp_path / "second")
    assert contents(first) == contents(second)
    assert list(lance.dataset(dataset.path).tags.list()) == ["mine"]
    assert len(lance.dataset(dataset.path).versions()) == 1


def test_manifests_named_in_the_old_way_are_captured(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(rows(0, 10), enable_v2_manifest_paths=False)
        table.write(rows(10, 10))
    captured = capture(dataset, tmp_path / "staging")
    assert "orders.lance/_versions/2.manifest" in [file.path for file in captured.files]
    assert ids(tmp_path / "staging") == list(range(20))


def test_where_no_link_is_possible_the_files_are_copied(
    dataset: Dataset, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(dataset)

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    captured = capture(dataset, staging)
    assert all(file.source.stat().st_nlink == 1 for file in captured.files)
    assert ids(staging) == list(range(100))


def test_files_that_lie_elsewhere_are_refused(dataset: Dataset, staging: Path, tmp_path: Path) -> None:
    live = write(dataset)
    live.shallow_clone(str(tmp_path / "clone.lance"), live.version)
    live.create_branch("other", live.version)
    for path in (tmp_path / "clone.lance", dataset.path / "tree" / "other"):
        with pytest.raises(UnsupportedLiveDatabase, match="lie in") as caught:
            ENGINE.capture(Dataset("orders", "lance", path), staging, timeout=0)
        assert str(dataset.path) in caught.value.message
        assert "deep_clone" in caught.value.hint
    live.deep_clone(str(tmp_path / "deep.lance"), live.version)
    capture(Dataset("orders", "lance", tmp_path / "deep.lance"), tmp_path / "deep")
    assert ids(tmp_path / "deep") == list(range(100))


def test_a_link_within_the_dataset_is_refused(dataset: Dataset, staging: Path, tmp_path: Path) -> None:
    write(dataset)
    (data,) = (dataset.path / "data").iterdir()
    data.rename(tmp_path / "moved")
    data.symlink_to(tmp_path / "moved")
    with pytest.raises(UnsupportedLiveDatabase, match="not a plain file"):
        ENGINE.capture(dataset, staging, timeout=0)


def test_a_dataset_that_lacks_a_file_is_named_at_once(dataset: Dataset, staging: Path) -> None:
    write(dataset)
    (data,) = (dataset.path / "data").iterdir()
    data.unlink()
    with pytest.raises(CorruptCapture, match=data.name):
        ENGINE.capture(dataset, staging, timeout=30)
    assert list(staging.iterdir()) == []


# other programs at work


def clean_up(path: Path) -> None:
    """Remove all versions but the latest and, as a clean-up does that began before they were made, tagged ones too."""
    live = lance.dataset(path)
    for tag in live.tags.list():
        live.tags.delete(tag)
    live.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)


@contextmanager
def after_each_file(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> Iterator[None]:
    """Do something before each file is staged; it is told how many were staged before."""
    count = iter(range(1_000))

    def staged(live: Path, target: Path) -> int:
        act(next(count))
        return stage_file(live, target)

    with monkeypatch.context() as patch:
        patch.setattr(lance_capture, "stage_file", staged)
        yield


def test_a_version_that_is_cleaned_up_while_it_is_captured_is_given_up_for_the_next(
    dataset: Dataset, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(dataset)

    def act(files: int) -> None:
        if files == 1:
            lance.write_dataset(rows(0, 7), dataset.path, mode="overwrite")
            clean_up(dataset.path)

    with after_each_file(monkeypatch, act):
        capture(dataset, staging)
    assert ids(staging) == list(range(7))


def test_versions_that_are_always_cleaned_up_in_time_end_in_an_error(
    dataset: Dataset, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(dataset)

    def act(files: int) -> None:
        lance.write_dataset(rows(0, files), dataset.path, mode="overwrite")
        clean_up(dataset.path)

    with after_each_file(monkeypatch, act), pytest.raises(LiveDatabaseBusy):
        ENGINE.capture(dataset, staging, timeout=0.2)
    assert list(staging.iterdir()) == []
    assert lance.dataset(dataset.path).tags.list() == {}


def test_a_tagged_version_outlives_a_clean_up_while_it_is_captured(
    dataset: Dataset, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(dataset)
    refused = []

    def act(files: int) -> None:
        if files == 1:
            live = lance.write_dataset(rows(0, 7), dataset.path, mode="overwrite")
            try:
                live.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
            except OSError as error:
                refused.append(str(error))
            live.cleanup_old_versions(
                older_than=timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False
            )

    with after_each_file(monkeypatch, act):
        capture(dataset, staging)
    assert ids(staging) == list(range(100))
    assert len(refused) == 1
    assert lance.dataset(dataset.path).tags.list() == {}


def test_blobs_are_captured_anew_when_another_version_was_committed(
    dataset: Dataset, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library does not name their files, so nothing else tells that one was cleaned up before it was tagged."""
    schema = pa.schema([lance.blob_field("blob")])

    def blobs(byte: bytes) -> pa.Table:
        return pa.table([lance.blob_array([byte * 200_000])], schema=schema)

    with ENGINE.connect_live(dataset) as table:
        table.write(blobs(b"a"))

    def act(files: int) -> None:
        if files == 1:
            lance.write_dataset(blobs(b"b"), dataset.path, mode="append")

    with after_each_file(monkeypatch, act):
        captured = capture(dataset, staging)
    assert sum(file.path.endswith(".blob") for file in captured.files) == 2


def check_captures(dataset: Dataset, tmp_path: Path) -> None:
    """Capture until a writer, which adds one row after the other, was met in many states; each must be whole."""
    seen: list[int] = []
    deadline = time.monotonic() + 60
    while len(set(seen)) < 8:
        assert time.monotonic() < deadline, f"the writer stands still at {seen[-1]} rows"
        capture(dataset, tmp_path / "copy")
        found = ids(tmp_path / "copy")
        assert found == list(range(len(found)))
        seen.append(len(found))
        shutil.rmtree(tmp_path / "copy")
    assert seen == sorted(seen)


_BUSY_WRITER = """
import sys
from datetime import timedelta
import lance, pyarrow as pa
path, first = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
for number in range(first, first + 1_000_000):
    live = lance.write_dataset(pa.table({"id": [number], "name": [f"order {number}"]}), path, mode="append")
    if number % 5 == 0:
        live.optimize.compact_files()
    if number % 3 == 0:
        try:
            live.cleanup_old_versions(
                older_than=timedelta(0), delete_unverified=True, error_if_tagged_old_versions=number % 2 == 0
            )
        except OSError:  # a capture is at work
            pass
"""


def test_captures_beside_another_process_that_commits_compacts_and_cleans_up(
    dataset: Dataset, tmp_path: Path, program: Callable[..., Any]
) -> None:
    write(dataset)
    writer = program(_BUSY_WRITER, dataset.path, 100)
    assert writer.hear() == "ready"
    check_captures(dataset, tmp_path)
    writer.kill()


def test_captures_beside_threads_that_commit_and_compact(dataset: Dataset, tmp_path: Path) -> None:
    write(dataset)
    stop = threading.Event()

    def work() -> None:
        number = 100
        while not stop.is_set():
            live = lance.write_dataset(rows(number, 1), dataset.path, mode="append")
            number += 1
            if number % 5 == 0:
                live.optimize.compact_files()

    writer = threading.Thread(target=work)
    writer.start()
    try:
        check_captures(dataset, tmp_path)
    finally:
        stop.set()
        writer.join(30)
    assert lance.dataset(dataset.path).tags.list() == {}


# captures that die


_DYING_CAPTURE = """
import os, signal, sys
from pathlib import Path
import lance
from lance.dataset import Tags
from snapshot_assets.engines import lance_capture
from snapshot_assets.engines.lance import LanceEngine
from snapshot_assets.model.dataset import Dataset
path, staging, step = sys.argv[1:]
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
stage, create, delete = lance_capture.stage_file, Tags.create, Tags.delete
staged = []
def stage_file(live, target):
    if len(staged) == 1 and step == "while it stages":
        die()
    staged.append(target)
    return stage(live, target)
def created(self, *arguments):
    if step == "before its tag": die()
    create(self, *arguments)
    if step == "after its tag": die()
def deleted(self, *arguments):
    if step == "before its tag is removed": die()
    delete(self, *arguments)
    if step == "after its tag is removed": die()
lance_capture.stage_file, Tags.create, Tags.delete = stage_file, created, deleted
LanceEngine().capture(Dataset("orders", "lance", path), Path(staging), timeout=10)
"""


@pytest.mark.parametrize(
    ("step", "tags"),
    [
        ("before its tag", 0),
        ("after its tag", 1),
        ("while it stages", 1),
        ("before its tag is removed", 1),
        ("after its tag is removed", 0),
    ],
)
def test_a_capture_that_is_killed_leaves_at_most_a_tag_that_the_next_one_removes(
    dataset: Dataset, staging: Path, tmp_path: Path, step: str, tags: int
) -> None:
    live = write(dataset)
    live.tags.create("mine", live.version)
    live.tags.create("snapshot-assets-mine", live.version)
    before = contents(capture(dataset, tmp_path / "before"))
    died = subprocess.run([sys.executable, "-c", _DYING_CAPTURE, dataset.path, staging, step], timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(live.tags.list()) == 2 + tags
    assert lance.dataset(dataset.path).versions() == live.versions()
    after = contents(capture(dataset, tmp_path / "after"))
    assert after == before
    assert sorted(live.tags.list()) == ["mine", "snapshot-assets-mine"]


def test_a_tag_that_was_left_behind_is_removed_although_its_version_is_old(dataset: Dataset, staging: Path) -> None:
    write(dataset).tags.create(f"snapshot-assets-{new_operation_id()}", 1)
    write(dataset, 100)
    capture(dataset, staging)
    assert lance.dataset(dataset.path).tags.list() == {}
