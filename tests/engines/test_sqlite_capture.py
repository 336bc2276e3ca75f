"""Capturing SQLite beside whatever else happens; in each test the naive way is shown to be wrong."""

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

from snapshot_assets.engines import sqlite_capture
from snapshot_assets.engines.contract import Captured
from snapshot_assets.engines.sqlite import SQLiteEngine
from snapshot_assets.engines.sqlite_connection import open_live
from snapshot_assets.errors import (
    CaptureError,
    CorruptCapture,
    LiveDatabaseBusy,
    LiveDatabaseMissing,
    UnsupportedLiveDatabase,
)
from snapshot_assets.model.dataset import Dataset

from .conftest import During

ENGINE = SQLiteEngine()
ROWS = 2_000

# Moves money between two tables, one transaction a move, as fast as it can.
WRITER = """
import random, sqlite3, sys, threading
connection = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)
connection.execute("pragma synchronous = off")
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), done.set()), daemon=True).start()
moves = 0
while not done.is_set():
    connection.execute("begin immediate")
    amount = random.randrange(100)
    rows = (random.randrange({rows}), random.randrange({rows}))
    connection.execute("update a set money = money - ? where i = ?", (amount, rows[0]))
    connection.execute("update b set money = money + ? where i = ?", (amount, rows[1]))
    connection.execute("insert into moves values (?)", (amount,))
    connection.execute("commit")
    moves += 1
    if moves == 1:
        print("writing", flush=True)
print(moves, flush=True)
""".replace("{rows}", str(ROWS))

# Holds a read snapshot, or a lock, until it is told to stop.
HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
print("held", flush=True)
sys.stdin.readline()
connection.close()
"""

TRY_TO_WRITE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("begin immediate")
    print("written", flush=True)
except sqlite3.OperationalError:
    print("refused", flush=True)
"""

Start = Callable[..., Any]


@contextmanager
def opened(path: Path, *, immutable: bool = False) -> Iterator[sqlite3.Connection]:
    name = f"file:{path}{'?mode=ro&immutable=1' if immutable else ''}"
    with closing(sqlite3.connect(name, uri=True, isolation_level=None)) as connection:
        connection.execute("pragma synchronous = off")
        yield connection


def build(path: Path, mode: str) -> Dataset:
    with opened(path) as connection:
        connection.execute(f"pragma journal_mode = {mode}")
        connection.execute("begin")
        for table in ("a", "b"):
            connection.execute(f"create table {table} (i integer primary key, money integer, padding text)")
            connection.executemany(f"insert into {table} values (?, 1000, ?)", ((i, f"{i:0100}") for i in range(ROWS)))
        connection.execute("create table moves (amount integer)")
        connection.execute("commit")
    return Dataset("bank", "sqlite", path)


@pytest.fixture(params=["wal", "delete", "truncate", "persist"])
def dataset(tmp_path: Path, request: pytest.FixtureRequest) -> Dataset:
    return build(tmp_path / "live.sqlite", request.param)


@pytest.fixture
def wal(tmp_path: Path) -> Dataset:
    return build(tmp_path / "live.sqlite", "wal")


@pytest.fixture
def rollback(tmp_path: Path) -> Dataset:
    return build(tmp_path / "live.sqlite", "delete")


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    folder = tmp_path / "staging"
    folder.mkdir()
    return folder


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Go over to the backup API soon."""
    monkeypatch.setattr(sqlite_capture, "_PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(sqlite_capture, "_LOCK_SECONDS", 0.1)


def capture(dataset: Dataset, staging: Path, timeout: float = 20) -> Captured:
    staging.mkdir(exist_ok=True)
    captured = ENGINE.capture(dataset, staging, timeout=timeout)
    assert [path.name for path in staging.iterdir()] == ["bank.sqlite"]
    return captured


def moves_in(path: Path) -> int:
    """Check that a copy is sound and a committed state; how many moves it holds."""
    with opened(path, immutable=True) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        (total,) = connection.execute("select (select sum(money) from a) + (select sum(money) from b)").fetchone()
        assert total == 2 * ROWS * 1_000
        (moved,) = connection.execute("select sum(money) - ? from b", (ROWS * 1_000,)).fetchone()
        amount, count = connection.execute("select coalesce(sum(amount), 0), count(*) from moves").fetchone()
        assert moved == amount
        return int(count)


def move(connection: sqlite3.Connection, amount: int) -> None:
    connection.execute("begin")
    connection.execute("update a set money = money - ?", (amount,))
    connection.execute("update b set money = money + ?", (amount,))
    connection.execute("insert into moves values (?)", (amount * ROWS,))
    connection.execute("commit")


def test_rows_in_the_log_are_captured(wal: Dataset, staging: Path, tmp_path: Path) -> None:
    """The naive way, copying the file, gives an older state without an error."""
    with opened(wal.path) as connection:
        move(connection, 5)
        shutil.copyfile(wal.path, tmp_path / "naive.sqlite")
        capture(wal, staging)
    assert moves_in(tmp_path / "naive.sqlite") == 0
    assert moves_in(staging / "bank.sqlite") == 1


def test_rows_that_a_killed_writer_left_in_the_log_are_captured(
    wal: Dataset, staging: Path, tmp_path: Path, program: Start
) -> None:
    writer = program(HOLD, wal.path, "insert into moves values (0)")
    assert writer.hear() == "held"
    writer.kill()
    shutil.copyfile(wal.path, tmp_path / "naive.sqlite")
    capture(wal, staging)
    assert moves_in(tmp_path / "naive.sqlite") == 0
    assert moves_in(staging / "bank.sqlite") == 1


def test_a_reader_that_keeps_the_checkpoint_busy_does_not_spoil_the_capture(
    wal: Dataset, staging: Path, tmp_path: Path, program: Start, impatient: None
) -> None:
    """The naive way, a checkpoint whose answer nobody looks at and then the copy, gives a mixture of states."""
    reader = program(HOLD, wal.path, "begin", "select count(*) from a")
    assert reader.hear() == "held"
    with opened(wal.path) as connection:
        move(connection, 5)
        connection.execute("create table added as select * from a")
        connection.execute("insert into moves values (0)")
        connection.execute("pragma busy_timeout = 50")
        assert connection.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 1
        shutil.copyfile(wal.path, tmp_path / "naive.sqlite")
        began = time.monotonic()
        capture(wal, staging)
        assert 0.3 <= time.monotonic() - began < 10
    with pytest.raises((sqlite3.Error, AssertionError)):
        assert moves_in(tmp_path / "naive.sqlite") == 2
    assert moves_in(staging / "bank.sqlite") == 2


def test_a_reader_that_leaves_in_time_lets_the_plain_copy_go_ahead(
    wal: Dataset, staging: Path, program: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unneeded(*_: object) -> int:
        raise AssertionError("the backup API was used")

    monkeypatch.setattr(sqlite_capture, "_back_up", unneeded)
    reader = program(HOLD, wal.path, "begin", "select count(*) from a")
    assert reader.hear() == "held"
    with opened(wal.path) as connection:
        move(connection, 5)
    threading.Timer(0.5, reader.say).start()
    capture(wal, staging)
    assert moves_in(staging / "bank.sqlite") == 1


def test_a_reader_does_not_stop_the_capture_of_a_rollback_journal_database(
    rollback: Dataset, staging: Path, program: Start, impatient: None
) -> None:
    reader = program(HOLD, rollback.path, "begin", "select count(*) from a")
    assert reader.hear() == "held"
    capture(rollback, staging)
    assert moves_in(staging / "bank.sqlite") == 0


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_every_copy_beside_a_writer_process_is_a_committed_state(tmp_path: Path, program: Start, mode: str) -> None:
    dataset = build(tmp_path / "live.sqlite", mode)
    writer = program(WRITER, dataset.path)
    assert writer.hear() == "writing"
    counts = []
    for number in range(6):
        captured = capture(dataset, tmp_path / f"staging{number}")
        counts.append(moves_in(captured.files[0].source))
    writer.say()
    final = int(writer.hear())
    assert counts == sorted(counts)
    assert 1 <= counts[0] <= counts[-1] <= final
    assert moves_in(capture(dataset, tmp_path / "last").files[0].source) == final


def test_a_writer_waits_while_the_file_is_copied(
    dataset: Dataset, staging: Path, tmp_path: Path, program: Start, during_copy: During
) -> None:
    """The naive way, copying without a lock, mixes the state before with the state after."""
    answers: list[str] = []
    during_copy(lambda: capture(dataset, staging), lambda: answers.append(program(TRY_TO_WRITE, dataset.path).hear()))
    assert answers == ["refused"]
    assert moves_in(staging / "bank.sqlite") == 0
    with opened(dataset.path) as connection, dataset.path.open("rb") as file:
        content = file.read(dataset.path.stat().st_size // 2)
        move(connection, 5)
        connection.execute("pragma wal_checkpoint(truncate)")
        (tmp_path / "naive.sqlite").write_bytes(content + file.read())
    with pytest.raises((sqlite3.Error, AssertionError)):
        moves_in(tmp_path / "naive.sqlite")


def test_a_commit_between_checkpoint_and_lock_is_noticed(
    wal: Dataset, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The naive way, looking at the log before the lock is held, misses the commit."""
    refuse = sqlite_capture.refuse_leftovers
    looks: list[str] = []

    class Interloper:
        """Commits right after the first checkpoint."""

        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

        def execute(self, sql: str) -> Any:
            if sql == "begin immediate" and not looks:
                with opened(wal.path) as other:
                    move(other, 5)
            return self._connection.execute(sql)

    def look(live: Path) -> None:
        looks.append("look")
        refuse(live)

    monkeypatch.setattr(sqlite_capture, "open_live", lambda *a, **k: Interloper(open_live(*a, **k)))
    monkeypatch.setattr(sqlite_capture, "refuse_leftovers", look)
    capture(wal, staging)
    assert looks == ["look", "look"]
    assert moves_in(staging / "bank.sqlite") == 1


def test_a_hot_journal_is_rolled_back_before_the_copy(
    rollback: Dataset, staging: Path, tmp_path: Path, program: Start
) -> None:
    """The naive way, copying the file, takes half a transaction with it."""
    writer = program(
        HOLD,
        rollback.path,
        "pragma cache_size = 5",
        "pragma cache_spill = 1",
        "begin immediate",
        "update a set money = money - 7, padding = hex(randomblob(50))",
    )
    assert writer.hear() == "held"
    writer.kill()
    journal = rollback.path.with_name("live.sqlite-journal")
    assert journal.read_bytes()[:8] == sqlite_capture._JOURNAL_MAGIC
    shutil.copyfile(rollback.path, tmp_path / "naive.sqlite")
    capture(rollback, staging)
    with pytest.raises((sqlite3.Error, AssertionError)):
        moves_in(tmp_path / "naive.sqlite")
    assert moves_in(staging / "bank.sqlite") == 0
    assert not journal.exists()


def test_a_journal_that_still_undoes_something_is_never_copied_beside(rollback: Dataset) -> None:
    journal = rollback.path.with_name("live.sqlite-journal")
    journal.write_bytes(sqlite_capture._JOURNAL_MAGIC + bytes(600))
    with pytest.raises(sqlite_capture.Busy):
        sqlite_capture.refuse_leftovers(rollback.path)
    journal.write_bytes(bytes(600))
    sqlite_capture.refuse_leftovers(rollback.path)


@pytest.mark.parametrize("mode", ["wal", "delete", "persist"])
@pytest.mark.parametrize("vacuum", ["none", "full", "incremental"])
@pytest.mark.parametrize("page_size", [512, 4_096, 65_536])
def test_unchanged_content_has_the_same_bytes_whichever_way_it_was_copied(
    tmp_path: Path, mode: str, vacuum: str, page_size: int
) -> None:
    """The naive copies differ: in the journal mode, the change counters and the schema cookie."""
    live, plain, backup = tmp_path / "live.sqlite", tmp_path / "plain.sqlite", tmp_path / "backup.sqlite"
    with opened(live) as connection:
        connection.execute(f"pragma page_size = {page_size}")
        connection.execute(f"pragma auto_vacuum = {vacuum}")
        connection.execute(f"pragma journal_mode = {mode}")
        connection.execute("pragma user_version = 42")
        connection.execute("begin")
        connection.execute("create table t (i integer primary key, text text)")
        connection.executemany("insert into t values (?, ?)", ((i, "x" * 50) for i in range(3_000)))
        connection.execute("delete from t where i % 3 = 0 or i > 2000")
        connection.execute("create index by_text on t (text)")
        connection.execute("commit")
        connection.execute("drop index by_text")
    sqlite_capture.capture_file(live, plain, "bank", timeout=5)
    with opened(live) as connection:
        sqlite_capture._back_up(connection, live, backup, time.monotonic() + 5)
    assert plain.read_bytes() != backup.read_bytes()
    assert sqlite_capture.normalise(plain) == page_size
    assert sqlite_capture.normalise(backup) == page_size
    assert plain.read_bytes() == backup.read_bytes()
    assert plain.stat().st_size % page_size == 0
    with opened(plain, immutable=True) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert connection.execute("pragma user_version").fetchone() == (42,)
        assert connection.execute("pragma page_count").fetchone()[0] * page_size == plain.stat().st_size
        assert connection.execute("select count(*) from t").fetchone() == (1_334,)


def test_unchanged_content_keeps_its_bytes_when_the_journal_mode_changes(wal: Dataset, tmp_path: Path) -> None:
    first = capture(wal, tmp_path / "first").files[0].source.read_bytes()
    with opened(wal.path) as connection:
        assert connection.execute("pragma journal_mode = delete").fetchone() == ("delete",)
        connection.execute("create table passing (i)")
        connection.execute("drop table passing")
    second = capture(wal, tmp_path / "second").files[0].source.read_bytes()
    assert len(first) <= len(second)
    with opened(wal.path) as connection:
        connection.execute("pragma journal_mode = wal")
    assert capture(wal, tmp_path / "third").files[0].source.read_bytes() == second


def test_a_copy_without_a_valid_size_in_its_header_keeps_all_pages(wal: Dataset, staging: Path) -> None:
    """A header that an old library wrote: SQLite must not begin to trust its size."""
    capture(wal, staging)
    path = staging / "bank.sqlite"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(28)
        file.write((3).to_bytes(4, "big"))
        file.seek(92)
        file.write((77).to_bytes(4, "big"))
    sqlite_capture.normalise(path)
    assert path.stat().st_size == size
    assert moves_in(path) == 0


def test_pages_beyond_the_database_are_cut_off(wal: Dataset, staging: Path) -> None:
    capture(wal, staging)
    path = staging / "bank.sqlite"
    content = path.read_bytes()
    with path.open("ab") as file:
        file.write(bytes(64 * 1024))
    sqlite_capture.normalise(path)
    assert path.read_bytes() == content


def test_locks_of_this_process_are_still_held_after_a_capture(
    rollback: Dataset, staging: Path, tmp_path: Path, program: Start, impatient: None
) -> None:
    """The naive way, copying in this process, lets another process write under an open transaction."""
    with opened(rollback.path) as connection:
        connection.execute("begin immediate")
        ENGINE.check_dataset(rollback)
        capture(rollback, staging)
        assert program(TRY_TO_WRITE, rollback.path).hear() == "refused"
        shutil.copyfile(rollback.path, tmp_path / "naive.sqlite")
        assert program(TRY_TO_WRITE, rollback.path).hear() == "written"


def test_another_process_does_not_remove_the_log_of_a_connection_after_a_capture(
    wal: Dataset, staging: Path, tmp_path: Path, program: Start
) -> None:
    """The naive way, copying in this process, lets another process take itself for the last one and unlink the log."""
    log = wal.path.with_name("live.sqlite-wal")
    with opened(wal.path) as connection:
        connection.execute("select count(*) from a").fetchall()
        ENGINE.check_dataset(wal)
        capture(wal, staging)
        other = program(HOLD, wal.path, "insert into moves values (0)")
        assert other.hear() == "held"
        other.say()
        assert other.end() == 0
        assert log.exists()
        move(connection, 5)
        capture(wal, staging)
        assert moves_in(staging / "bank.sqlite") == 2

        shutil.copyfile(wal.path, tmp_path / "naive.sqlite")
        other = program(HOLD, wal.path, "insert into moves values (0)")
        assert other.hear() == "held"
        other.say()
        assert other.end() == 0
        assert not log.exists()


def test_a_database_that_stays_locked_is_busy(dataset: Dataset, staging: Path, program: Start, impatient: None) -> None:
    holder = program(HOLD, dataset.path, "pragma locking_mode = exclusive", "begin exclusive", "delete from moves")
    assert holder.hear() == "held"
    began = time.monotonic()
    with pytest.raises(LiveDatabaseBusy, match="locked") as caught:
        ENGINE.capture(dataset, staging, timeout=1)
    assert 1 <= time.monotonic() - began < 6
    assert caught.value.dataset == "bank"
    holder.say()
    assert holder.end() == 0
    capture(dataset, staging)
    assert moves_in(staging / "bank.sqlite") == 0


def test_an_open_write_transaction_of_a_wal_database_is_left_out(
    wal: Dataset, staging: Path, program: Start, impatient: None
) -> None:
    writer = program(HOLD, wal.path, "begin immediate", "update a set money = 0")
    assert writer.hear() == "held"
    capture(wal, staging)
    assert moves_in(staging / "bank.sqlite") == 0


def test_an_empty_file_is_an_empty_database(tmp_path: Path, staging: Path) -> None:
    dataset = Dataset("bank", "sqlite", tmp_path / "live.sqlite")
    dataset.path.touch()
    ENGINE.check_dataset(dataset)
    captured = capture(dataset, staging)
    assert captured.files[0].size == 0
    tables = ENGINE.describe(dataset, staging, ["bank.sqlite"])
    assert tables == {}
    ENGINE.verify(staging, ["bank.sqlite"], tables, "full")


@pytest.mark.parametrize("content", [b"?", b"SQLite format 3\0", b"not a database\n" * 500, bytes(10_000)])
def test_a_foreign_file_is_refused(tmp_path: Path, staging: Path, content: bytes) -> None:
    dataset = Dataset("bank", "sqlite", tmp_path / "live.sqlite")
    dataset.path.write_bytes(content)
    with pytest.raises(UnsupportedLiveDatabase):
        ENGINE.capture(dataset, staging, timeout=1)
    assert dataset.path.read_bytes() == content


def test_a_truncated_live_database_gives_no_snapshot(wal: Dataset, staging: Path) -> None:
    os.truncate(wal.path, wal.path.stat().st_size // 2)
    with pytest.raises((CaptureError, CorruptCapture)):
        capture(wal, staging)
        ENGINE.describe(wal, staging, ["bank.sqlite"])


def test_a_staging_folder_that_is_full_or_gone_is_a_typed_error(
    wal: Dataset, tmp_path: Path, impatient: None, program: Start
) -> None:
    with pytest.raises(CaptureError) as caught:
        ENGINE.capture(wal, tmp_path / "gone", timeout=1)
    assert not isinstance(caught.value, LiveDatabaseMissing | LiveDatabaseBusy)
    reader = program(HOLD, wal.path, "begin", "select count(*) from a")
    assert reader.hear() == "held"
    with opened(wal.path) as connection:
        move(connection, 5)
    with pytest.raises(CaptureError) as caught:
        ENGINE.capture(wal, tmp_path / "gone", timeout=1)
    assert not isinstance(caught.value, LiveDatabaseMissing | LiveDatabaseBusy)
