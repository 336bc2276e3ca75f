"""Capturing Turso beside whatever else happens; in each test the naive way is shown to be wrong."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import turso

from snapshot_assets.engines import sqlite_capture, turso_capture
from snapshot_assets.engines.contract import Captured
from snapshot_assets.engines.copying import copy_live_file
from snapshot_assets.engines.turso import TursoEngine
from snapshot_assets.engines.turso_connection import open_live
from snapshot_assets.errors import LiveDatabaseBusy, UnsupportedLiveDatabase
from snapshot_assets.model.dataset import Dataset

from .conftest import During

ENGINE = TursoEngine()
ROWS = 1_000

# Commits a row and goes on until it is killed.
LEAVE = """
import sys, turso
connection = turso.connect(sys.argv[1], isolation_level=None)
connection.execute("insert into moves values (0)")
connection.execute("begin immediate")
connection.execute("insert into moves values (77)")
print("held", flush=True)
sys.stdin.readline()
"""

TRY_TO_OPEN = """
import sys
module = __import__(sys.argv[2])
try:
    connection = module.connect(sys.argv[1], isolation_level=None)
    connection.execute("pragma busy_timeout = 0")
    connection.execute("begin immediate")
    print("written", flush=True)
except Exception as error:
    print("refused" if "locked" in str(error) else error, flush=True)
"""

Start = Callable[..., Any]


@contextmanager
def opened(dataset: Dataset) -> Iterator[turso.Connection]:
    with ENGINE.connect_live(dataset) as connection:
        connection.isolation_level = None
        connection.execute("pragma synchronous = off")
        yield connection


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = Dataset("bank", "turso", tmp_path / "live.db")
    with opened(dataset) as connection:
        connection.execute("begin")
        for table in ("a", "b"):
            connection.execute(f"create table {table} (i integer primary key, money integer, padding text)")
            connection.executemany(f"insert into {table} values (?, 1000, ?)", [(i, f"{i:0100}") for i in range(ROWS)])
        connection.execute("create table moves (amount integer)")
        connection.execute("commit")
        connection.execute("pragma wal_checkpoint(truncate)").fetchall()
    return dataset


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return tmp_path / "staging"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the log too, soon."""
    monkeypatch.setattr(sqlite_capture, "_PATIENCE_SECONDS", 0.2)


@pytest.fixture
def plain_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def unneeded(*_: object) -> int:
        raise AssertionError("the log was copied")

    monkeypatch.setattr(turso_capture, "_copy_with_log", unneeded)


def capture(dataset: Dataset, staging: Path, timeout: float = 20) -> Captured:
    staging.mkdir()
    captured = ENGINE.capture(dataset, staging, timeout=timeout)
    assert [path.name for path in staging.iterdir()] == ["bank.db"]
    return captured


def moves_in(path: Path) -> int:
    """Check that a copy is sound and a committed state; how many moves it holds."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        (total,) = connection.execute("select (select sum(money) from a) + (select sum(money) from b)").fetchone()
        assert total == 2 * ROWS * 1_000
        (moved,) = connection.execute("select sum(money) - ? from b", (ROWS * 1_000,)).fetchone()
        amount, count = connection.execute("select coalesce(sum(amount), 0), count(*) from moves").fetchone()
        assert moved == amount
        return int(count)


def move(connection: turso.Connection, amount: int) -> None:
    connection.execute("begin immediate")
    connection.execute("update a set money = money - ?", (amount,))
    connection.execute("update b set money = money + ?", (amount,))
    connection.execute("insert into moves values (?)", (amount * ROWS,))
    connection.execute("commit")


def test_rows_in_the_log_are_captured(dataset: Dataset, staging: Path, tmp_path: Path) -> None:
    """The naive way, copying the file, gives an older state without an error."""
    with opened(dataset) as connection:
        move(connection, 5)
        shutil.copyfile(dataset.path, tmp_path / "naive.db")
    capture(dataset, staging)
    assert moves_in(tmp_path / "naive.db") == 0
    assert moves_in(staging / "bank.db") == 1


def test_rows_that_a_killed_writer_left_in_the_log_are_captured(
    dataset: Dataset, staging: Path, tmp_path: Path, program: Start
) -> None:
    writer = program(LEAVE, dataset.path)
    assert writer.hear() == "held"
    writer.kill()
    shutil.copyfile(dataset.path, tmp_path / "naive.db")
    capture(dataset, staging)
    assert moves_in(tmp_path / "naive.db") == 0
    assert moves_in(staging / "bank.db") == 1


def test_a_reader_that_keeps_the_checkpoint_busy_does_not_spoil_the_capture(
    dataset: Dataset, staging: Path, tmp_path: Path, impatient: None
) -> None:
    """The naive way, a checkpoint whose answer nobody looks at and then the copy, gives an older state.

    Content has the same bytes whichever way it was copied.
    """
    with opened(dataset) as reader, opened(dataset) as connection:
        reader.execute("begin")
        reader.execute("select count(*) from a").fetchall()
        move(connection, 5)
        assert connection.execute("pragma wal_checkpoint(truncate)").fetchall() == [(1, None, None)]
        shutil.copyfile(dataset.path, tmp_path / "naive.db")
        capture(dataset, tmp_path / "beside")
        assert reader.execute("select count(*) from moves").fetchall() == [(0,)]
        reader.execute("rollback")
    capture(dataset, staging)
    assert moves_in(tmp_path / "naive.db") == 0
    assert moves_in(tmp_path / "beside" / "bank.db") == 1
    assert (tmp_path / "beside" / "bank.db").read_bytes() == (staging / "bank.db").read_bytes()


def test_a_reader_that_leaves_in_time_lets_the_plain_copy_go_ahead(
    dataset: Dataset, staging: Path, plain_only: None
) -> None:
    with opened(dataset) as reader, opened(dataset) as connection:
        reader.execute("begin")
        reader.execute("select count(*) from a").fetchall()
        move(connection, 5)
        timer = threading.Timer(0.3, reader.rollback)
        timer.start()
        capture(dataset, staging)
        timer.join()
    assert moves_in(staging / "bank.db") == 1


def test_an_open_transaction_is_not_captured(dataset: Dataset, staging: Path, impatient: None) -> None:
    with opened(dataset) as connection:
        move(connection, 5)
        connection.execute("begin immediate")
        connection.execute("insert into moves values (77)")
        capture(dataset, staging)
        connection.execute("commit")
    assert moves_in(staging / "bank.db") == 1


@pytest.mark.parametrize("patience", [0.0, 20.0])
def test_every_copy_beside_writing_threads_is_a_committed_state(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr(sqlite_capture, "_PATIENCE_SECONDS", patience)
    done, failures, written = threading.Event(), list[BaseException](), [0, 0]

    def write(number: int) -> None:
        try:
            with opened(dataset) as connection:
                while not done.is_set():
                    try:
                        move(connection, number + 1)
                        written[number] += 1
                    except turso.OperationalError:
                        connection.rollback()
                    time.sleep(0.01)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    counts = []
    try:
        for number in range(5):
            before = sum(written)
            counts.append(moves_in(capture(dataset, tmp_path / f"staging{number}", 60).files[0].source))
            assert counts[-1] >= before
    finally:
        done.set()
        for thread in threads:
            thread.join(30)
    assert not failures
    assert counts == sorted(counts)
    assert moves_in(capture(dataset, tmp_path / "last").files[0].source) == sum(written) > 0


def test_writers_wait_while_the_file_is_copied(
    dataset: Dataset, staging: Path, program: Start, during_copy: During
) -> None:
    answers: list[str] = []

    def act() -> None:
        answers.extend(program(TRY_TO_OPEN, dataset.path, library).hear() for library in ("turso", "sqlite3"))
        with opened(dataset) as connection:
            connection.execute("pragma busy_timeout = 0")
            with pytest.raises(turso.OperationalError, match="locked"):
                move(connection, 5)
            assert connection.execute("select count(*) from moves").fetchall() == [(0,)]

    during_copy(lambda: capture(dataset, staging), act)
    assert answers == ["refused", "refused"]
    assert moves_in(staging / "bank.db") == 0


def test_a_commit_between_checkpoint_and_lock_is_noticed(
    dataset: Dataset, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The naive way, looking at the log before the lock is held, misses the commit."""
    refuse = sqlite_capture.refuse_leftovers
    looks: list[str] = []

    class Interloper:
        """Commits right after the first checkpoint."""

        def __init__(self, connection: turso.Connection) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

        def execute(self, sql: str) -> Any:
            if sql == "begin immediate" and not looks:
                with opened(dataset) as other:
                    move(other, 5)
            return self._connection.execute(sql)

    @contextmanager
    def interlope(*arguments: Any, **options: Any) -> Iterator[Interloper]:
        with open_live(*arguments, **options) as connection:
            yield Interloper(connection)

    def look(live: Path) -> None:
        looks.append("look")
        refuse(live)

    monkeypatch.setattr(turso_capture, "open_live", interlope)
    monkeypatch.setattr(turso_capture, "refuse_leftovers", look)
    capture(dataset, staging)
    assert looks == ["look", "look", "look"]
    assert moves_in(staging / "bank.db") == 1


def test_writers_go_on_while_the_log_is_copied_too(
    dataset: Dataset, staging: Path, during_copy: During, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The naive way, copying the file and its log without reading meanwhile, can mix two states."""
    monkeypatch.setattr(sqlite_capture, "_PATIENCE_SECONDS", 0)
    with opened(dataset) as connection:
        move(connection, 5)

        def act() -> None:
            for amount in range(3):
                move(connection, amount)
                connection.execute("pragma wal_checkpoint(passive)").fetchall()
            connection.execute("begin immediate")
            connection.execute("insert into moves values (77)")

        during_copy(lambda: capture(dataset, staging), act)
        connection.execute("rollback")
    assert moves_in(staging / "bank.db") == 4


def test_a_log_that_was_begun_anew_meanwhile_is_noticed(
    dataset: Dataset, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = iter([b"one", b"another", b"same", b"same"])
    monkeypatch.setattr(sqlite_capture, "_PATIENCE_SECONDS", 0)
    monkeypatch.setattr(turso_capture, "read_live_header", lambda *_: next(headers))
    capture(dataset, staging)
    assert not list(headers)
    assert moves_in(staging / "bank.db") == 0


def test_a_log_that_sqlite_reads_only_in_part_is_not_taken_for_all(
    dataset: Dataset, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Path] = []

    def shorten_the_first(live: Path, target: Path, **options: Any) -> Any:
        copied = copy_live_file(live, target, **options)
        copies.append(target)
        if len(copies) == 2:
            os.truncate(target, target.stat().st_size - 1)
        return copied

    monkeypatch.setattr(sqlite_capture, "_PATIENCE_SECONDS", 0)
    monkeypatch.setattr(turso_capture, "copy_live_file", shorten_the_first)
    with opened(dataset) as connection:
        move(connection, 5)
        capture(dataset, staging)
    assert [path.name for path in copies] == ["bank.db", "bank.db-wal"] * 2
    assert moves_in(staging / "bank.db") == 1


def test_a_database_that_stays_locked_is_busy_and_left_to_its_writer(
    dataset: Dataset, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(dataset) as connection:
        connection.execute("begin immediate")
        with monkeypatch.context() as patch, pytest.raises(LiveDatabaseBusy, match="kept locked for"):
            patch.setattr(sqlite_capture, "_PATIENCE_SECONDS", 60)
            patch.setattr(turso_capture, "_copy_with_log", turso_capture._copy)
            capture(dataset, staging, timeout=0.5)
        connection.execute("rollback")
        move(connection, 5)
    staging.rmdir()
    capture(dataset, staging)
    assert moves_in(staging / "bank.db") == 1


def test_what_only_turso_reads_is_refused_when_the_log_is_copied_too(
    tmp_path: Path, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset("bank", "turso", tmp_path / "views.db")
    connection = turso.connect(str(dataset.path), experimental_features="views")
    connection.execute("create table t (g integer, i integer)")
    connection.execute("create materialized view sums as select g, sum(i) as s from t group by g")
    monkeypatch.setattr(sqlite_capture, "_PATIENCE_SECONDS", 0)
    with pytest.raises(UnsupportedLiveDatabase, match="SQLite"):
        capture(dataset, staging)
    connection.close()


@pytest.mark.parametrize("patience", [0.0, 20.0])
def test_a_database_without_anything_in_it_is_captured(
    tmp_path: Path, staging: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr(sqlite_capture, "_PATIENCE_SECONDS", patience)
    dataset = Dataset("bank", "turso", tmp_path / "new.db")
    with opened(dataset):
        pass
    capture(dataset, staging)
    assert ENGINE.describe(dataset, staging, ["bank.db"]) == {}
