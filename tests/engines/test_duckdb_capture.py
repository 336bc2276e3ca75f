"""Capturing DuckDB beside whatever else happens; in each test the naive way is shown to be wrong."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from snapshot_assets.engines import duckdb as engine_module
from snapshot_assets.engines import duckdb_live
from snapshot_assets.engines.contract import Captured
from snapshot_assets.engines.copying import copy_live_file
from snapshot_assets.engines.duckdb import DuckDBEngine
from snapshot_assets.errors import CaptureError, LiveDatabaseBusy, UnsupportedLiveDatabase
from snapshot_assets.model.dataset import Dataset

from .conftest import During

ENGINE = DuckDBEngine()

HOLD = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read-only")
print("held", flush=True)
sys.stdin.readline()
"""

TRY_TO_OPEN = """
import sys, duckdb
try:
    duckdb.connect(sys.argv[1])
    print("opened", flush=True)
except duckdb.IOException:
    print("refused", flush=True)
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    with duckdb.connect(str(tmp_path / "live.duckdb")) as connection:
        connection.execute("create table a as select range i, 0 version, hash(range)::varchar text from range(30000)")
        connection.execute("create table b as select range i, 0 version from range(30000)")
    return Dataset("shop", "duckdb", tmp_path / "live.duckdb")


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    folder = tmp_path / "staging"
    folder.mkdir()
    return folder


def change(connection: duckdb.DuckDBPyConnection, version: int) -> None:
    """One transaction over both tables: a committed state has one version everywhere."""
    connection.execute("begin")
    connection.execute("update a set version = ?, text = hash(i + ?)::varchar", [version, version])
    connection.execute("update b set version = ?", [version])
    connection.execute("commit")


def versions(path: Path) -> set[int]:
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.execute("select count(*) from a where text <> hash(i + version)::varchar").fetchall() == [
            (0,)
        ]
        return {
            version for (version,) in connection.execute("select version from a union select version from b").fetchall()
        }


def capture(dataset: Dataset, staging: Path, timeout: float = 10) -> Captured:
    return ENGINE.capture(dataset, staging, timeout=timeout)


def test_rows_in_the_log_are_captured(dataset: Dataset, staging: Path, tmp_path: Path) -> None:
    """The naive way, copying the file, gives an older state without an error."""
    with duckdb.connect(str(dataset.path)) as connection:
        change(connection, 1)
        shutil.copyfile(dataset.path, tmp_path / "naive.duckdb")
        capture(dataset, staging)
    assert versions(tmp_path / "naive.duckdb") == {0}
    assert versions(staging / "shop.duckdb") == {1}


def test_rows_that_a_killed_writer_left_in_the_log_are_captured(
    dataset: Dataset, staging: Path, program: Callable[..., Any]
) -> None:
    writer = program(
        "import sys, duckdb\n"
        "connection = duckdb.connect(sys.argv[1])\n"
        "connection.execute('insert into b values (-1, 0)')\n"
        "print('written', flush=True)\n"
        "sys.stdin.readline()",
        dataset.path,
    )
    assert writer.hear() == "written"
    writer.kill()
    assert dataset.path.with_name("live.duckdb.wal").exists()
    capture(dataset, staging)
    with duckdb.connect(str(staging / "shop.duckdb"), read_only=True) as connection:
        assert connection.execute("select count(*) from b").fetchall() == [(30_001,)]


@pytest.mark.parametrize("how", ["read-write", "read-only"])
def test_a_file_held_by_another_process_is_busy_and_its_holder_is_named(
    dataset: Dataset, staging: Path, program: Callable[..., Any], how: str
) -> None:
    holder = program(HOLD, dataset.path, how)
    assert holder.hear() == "held"
    began = time.monotonic()
    with pytest.raises(LiveDatabaseBusy, match=rf"process {holder.pid} ") as caught:
        capture(dataset, staging, timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 5
    assert caught.value.dataset == "shop"
    with pytest.raises(LiveDatabaseBusy), ENGINE.connect_live(dataset):
        pass
    threading.Timer(0.3, holder.say).start()
    capture(dataset, staging)
    assert versions(staging / "shop.duckdb") == {0}


def test_a_file_open_in_this_process_with_other_settings_is_busy(dataset: Dataset, staging: Path) -> None:
    with duckdb.connect(str(dataset.path), read_only=True), pytest.raises(LiveDatabaseBusy, match="in this process"):
        capture(dataset, staging, timeout=0.1)
    with duckdb.connect() as connection:
        connection.execute(f"attach '{dataset.path}' as live")
        with pytest.raises(LiveDatabaseBusy, match="in this process"):
            capture(dataset, staging, timeout=0.1)


def test_a_commit_during_the_copy_is_noticed_and_captured(
    dataset: Dataset, staging: Path, tmp_path: Path, during_copy: During
) -> None:
    """The naive way, a checkpoint and then the copy, gives the state before the commit."""
    with duckdb.connect(str(dataset.path)) as other:

        def act() -> None:
            change(other, 1)
            shutil.copyfile(dataset.path, tmp_path / "naive.duckdb")

        during_copy(lambda: capture(dataset, staging), act)
        assert versions(tmp_path / "naive.duckdb") == {0}
        assert versions(staging / "shop.duckdb") == {1}


def test_a_checkpoint_during_the_copy_is_noticed(
    dataset: Dataset, staging: Path, tmp_path: Path, during_copy: During
) -> None:
    """The naive way gives a file whose header belongs to one state and whose blocks belong to another."""

    def rewrite(connection: duckdb.DuckDBPyConnection, first: int) -> None:
        for version in range(first, first + 3):
            change(connection, version)
            connection.execute("checkpoint")

    with duckdb.connect(str(dataset.path)) as other:
        other.execute("checkpoint")
        with dataset.path.open("rb") as file:
            content = file.read(dataset.path.stat().st_size // 2)
            rewrite(other, 1)
            content += file.read()
        (tmp_path / "naive.duckdb").write_bytes(content)
        with pytest.raises((duckdb.Error, AssertionError)):
            versions(tmp_path / "naive.duckdb")

        during_copy(lambda: capture(dataset, staging), lambda: rewrite(other, 4))
        assert versions(staging / "shop.duckdb") == {6}


def test_every_capture_beside_a_busy_thread_is_a_committed_state(dataset: Dataset, tmp_path: Path) -> None:
    done = threading.Event()
    with duckdb.connect(str(dataset.path)) as other:

        def work() -> None:
            version = 0
            while not done.is_set():
                version += 1
                change(other, version)
                if version % 3 == 0:
                    other.execute("checkpoint")
                done.wait(0.3)

        thread = threading.Thread(target=work)
        thread.start()
        seen = []
        for number in range(4):
            folder = tmp_path / f"staging{number}"
            folder.mkdir()
            capture(dataset, folder, timeout=30)
            (version,) = versions(folder / "shop.duckdb")
            seen.append(version)
        done.set()
        thread.join(20)
    assert seen == sorted(seen)


def test_a_file_that_never_rests_is_busy(dataset: Dataset, staging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def restless(*arguments: Any, **named: Any) -> Any:
        return replace(copy_live_file(*arguments, **named), moved=("live.duckdb.wal",))

    monkeypatch.setattr(engine_module, "copy_live_file", restless)
    with pytest.raises(LiveDatabaseBusy, match=r"kept writing.*live\.duckdb\.wal"):
        capture(dataset, staging, timeout=0.3)


def test_a_checkpoint_that_an_open_transaction_refuses_is_tried_again(dataset: Dataset, staging: Path) -> None:
    with duckdb.connect(str(dataset.path)) as other:
        other.execute("begin")
        other.execute("update b set version = 1")
        with pytest.raises(duckdb.TransactionException), duckdb.connect(str(dataset.path)) as naive:
            naive.execute("checkpoint")
        with pytest.raises(LiveDatabaseBusy, match="transaction"):
            capture(dataset, staging, timeout=0.2)
        other.execute("update a set version = 1, text = hash(i + 1)::varchar")
        timer = threading.Timer(0.3, other.execute, ["commit"])
        timer.start()
        capture(dataset, staging)
        timer.join()
    assert versions(staging / "shop.duckdb") == {1}


class _Broken:
    """A connection whose checkpoint fails."""

    def execute(self, sql: str) -> Any:
        if sql == "checkpoint":
            raise duckdb.IOException("No space left on device")
        return duckdb.connect().execute("select 'v1.0.0', 262144")

    def close(self) -> None:
        """Nothing to close."""


def test_a_checkpoint_that_breaks_is_not_called_busy(
    dataset: Dataset, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duckdb_live, "connect", lambda *_, **__: _Broken())
    with pytest.raises(CaptureError, match="No space left") as caught:
        capture(dataset, staging)
    assert not isinstance(caught.value, LiveDatabaseBusy)


def test_the_lock_of_this_process_is_still_held_after_a_capture(
    dataset: Dataset, staging: Path, tmp_path: Path, program: Callable[..., Any]
) -> None:
    """The naive way, copying in this process, lets another process write to a file that this one has open."""
    with duckdb.connect(str(dataset.path)) as connection:
        ENGINE.check_dataset(dataset)
        capture(dataset, staging)
        assert program(TRY_TO_OPEN, dataset.path).hear() == "refused"
        change(connection, 1)
        shutil.copyfile(dataset.path, tmp_path / "naive.duckdb")
        assert program(TRY_TO_OPEN, dataset.path).hear() == "opened"


def test_unchanged_content_keeps_its_bytes_across_checkpoints_and_processes(
    dataset: Dataset, tmp_path: Path, program: Callable[..., Any]
) -> None:
    copies = []
    for number in range(3):
        folder = tmp_path / f"staging{number}"
        folder.mkdir()
        capture(dataset, folder)
        copies.append((folder / "shop.duckdb").read_bytes())
        holder = program(HOLD, dataset.path, "read-write")
        assert holder.hear() == "held"
        holder.say()
        assert holder.end() == 0
    assert copies[0] == copies[1] == copies[2]


@pytest.mark.parametrize("damage", ["empty", "short", "cut", "text", "sqlite"])
def test_a_damaged_or_foreign_file_is_refused(dataset: Dataset, staging: Path, damage: str) -> None:
    content = {
        "empty": b"",
        "short": b"DUCK",
        "cut": dataset.path.read_bytes()[:9_000],
        "text": b"not a database\n" * 2_000,
        "sqlite": b"SQLite format 3\0" + bytes(8_176),
    }[damage]
    dataset.path.write_bytes(content)
    with pytest.raises(UnsupportedLiveDatabase):
        capture(dataset, staging, timeout=1)
    with pytest.raises(UnsupportedLiveDatabase), ENGINE.connect_live(dataset):
        pass
    assert dataset.path.read_bytes() == content
