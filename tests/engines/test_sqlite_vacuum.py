"""Optimizing SQLite and Turso: when a file is rewritten, what stays, and what a crash leaves."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets.engines.contract import Optimized
from snapshot_assets.engines.sqlite import SQLiteEngine
from snapshot_assets.engines.turso import TursoEngine
from snapshot_assets.errors import CaptureError, LiveDatabaseBusy, LiveDatabaseMissing, UnsupportedLiveDatabase
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import TableContent

ENGINES: Mapping[str, SQLiteEngine | TursoEngine] = {"sqlite": SQLiteEngine(), "turso": TursoEngine()}

OPTIMIZE = """
import sys
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.model.dataset import Dataset
dataset = Dataset("shop", sys.argv[1], sys.argv[2])
engine = engine_named(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
engine.optimize(dataset, timeout=5)
print("done", flush=True)
"""

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
print("held", flush=True)
sys.stdin.readline()
"""

Start = Callable[..., Any]


@pytest.fixture(params=["sqlite", "turso"])
def dataset(tmp_path: Path, request: pytest.FixtureRequest) -> Dataset:
    return Dataset("shop", request.param, tmp_path / "live.db")


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("pragma synchronous = off")
        yield connection


def fill(path: Path, *settings: str, rows: int = 4_000, keep: int = 4) -> None:
    """Make a table with an index, and delete all rows but one in `keep`."""
    with opened(path) as connection:
        for setting in settings:
            connection.execute(f"pragma {setting}")
        connection.execute("begin")
        connection.execute("create table t (i integer primary key, text text not null, real real)")
        connection.execute("create table counted (i integer primary key autoincrement, text text)")
        connection.execute("create table untouched (a, b)")
        connection.execute("create index by_text on t (text desc) where i > 10")
        connection.execute("create view seen as select i + 1 as j from t")
        connection.execute("create trigger moved after insert on t begin insert into untouched values (new.i, 1); end")
        connection.execute("insert into untouched values (1, 'x'), (2, null)")
        connection.execute("insert into counted (text) values ('a'), ('b')")
        values = ((i, f"{i * 7919 % 10007:05}{'x' * 200}", i / 3) for i in range(rows))
        connection.executemany("insert into t values (?, ?, ?)", values)
        connection.execute("delete from untouched where b = 1")
        connection.execute("delete from t where i % ? <> 0", (keep,))
        connection.execute("commit")


def optimize(dataset: Dataset, timeout: float = 5) -> Optimized:
    return ENGINES[dataset.engine].optimize(dataset, timeout=timeout)


def content(dataset: Dataset, folder: Path) -> tuple[dict[str, TableContent], dict[str, list[Any]]]:
    """Tables, schemas, and every row with its rowid, as a reader would find them."""
    engine = ENGINES[dataset.engine]
    folder.mkdir()
    files = [file.path for file in engine.capture(dataset, folder, timeout=10).files]
    tables = dict(engine.describe(dataset, folder, files))
    engine.verify(folder, files, tables, "full")
    with engine.staged_query(folder, files) as query:
        rows = {name: query(f"select rowid, * from {name} order by rowid") for name in tables}
        rows["seen"] = query("select j from seen order by j")
        rows["sequence"] = query("select * from sqlite_sequence")
        rows["kinds"] = query("select type, name from sqlite_schema where name in ('by_text', 'moved') order by name")
    return tables, rows


def test_a_file_with_much_free_space_is_made_small_and_keeps_its_content(dataset: Dataset, tmp_path: Path) -> None:
    fill(dataset.path)
    before, size = content(dataset, tmp_path / "before"), dataset.path.stat().st_size
    done = optimize(dataset)
    assert done.skipped is None
    assert dataset.path.stat().st_size < size / 2
    assert done.figures["bytes_before"] == size
    assert done.figures["bytes_after"] == dataset.path.stat().st_size
    assert done.figures["free_bytes_before"] > size / 2
    assert done.figures["free_bytes_after"] == 0
    assert content(dataset, tmp_path / "after") == before
    assert len(before[1]["t"]) == 1_000


def test_a_second_run_finds_nothing_to_do(dataset: Dataset) -> None:
    fill(dataset.path)
    optimize(dataset)
    rewritten = dataset.path.read_bytes()
    again = optimize(dataset)
    assert again.skipped == "nothing_to_do"
    assert again.figures == {"bytes_before": dataset.path.stat().st_size, "free_bytes_before": 0}
    assert dataset.path.read_bytes() == rewritten


def test_a_file_with_little_free_space_is_left_alone(dataset: Dataset) -> None:
    fill(dataset.path, keep=1)
    with opened(dataset.path) as connection:
        connection.execute("delete from t where i < 300")
        assert connection.execute("pragma freelist_count").fetchone()[0] > 0
    done = optimize(dataset)
    assert done.skipped == "nothing_to_do"
    assert 0 < done.figures["free_bytes_before"] < done.figures["bytes_before"] / 10


def test_an_empty_database_has_nothing_to_do(dataset: Dataset) -> None:
    dataset.path.touch()
    assert optimize(dataset).skipped == "nothing_to_do"


@pytest.mark.parametrize("mode", ["wal", "delete", "persist"])
def test_the_journal_mode_and_the_page_size_stay(tmp_path: Path, mode: str) -> None:
    dataset = Dataset("shop", "sqlite", tmp_path / "live.db")
    fill(dataset.path, "page_size = 2048", "auto_vacuum = none", "user_version = 7", f"journal_mode = {mode}")
    assert optimize(dataset).skipped is None
    with opened(dataset.path) as connection:
        assert connection.execute("pragma page_size").fetchone() == (2_048,)
        assert connection.execute("pragma user_version").fetchone() == (7,)
        kept = connection.execute("pragma journal_mode").fetchone()
        assert kept == ("wal" if mode == "wal" else "delete",)


def test_a_missing_database_is_refused_and_not_made(dataset: Dataset) -> None:
    with pytest.raises(LiveDatabaseMissing):
        optimize(dataset)
    assert not dataset.path.exists()


def test_a_file_of_another_kind_is_refused(dataset: Dataset) -> None:
    dataset.path.write_text("name,price\n" * 1_000)
    with pytest.raises(UnsupportedLiveDatabase):
        optimize(dataset)
    assert dataset.path.read_text() == "name,price\n" * 1_000


def test_a_writer_of_another_process_is_waited_for_in_vain(dataset: Dataset, tmp_path: Path, program: Start) -> None:
    fill(dataset.path)
    size = dataset.path.stat().st_size
    holder = program(HOLD, dataset.path, "begin immediate", "insert into untouched values (3, 3)")
    assert holder.hear() == "held"
    with pytest.raises(LiveDatabaseBusy) as caught:
        optimize(dataset, timeout=0.3)
    assert caught.value.dataset == "shop"
    holder.kill()
    if dataset.engine == "turso":
        # Turso does not undo what SQLite left half done.
        with opened(dataset.path) as connection:
            connection.execute("select count(*) from t").fetchone()
    assert dataset.path.stat().st_size == size
    assert optimize(dataset).skipped is None


def test_a_reader_of_the_same_process_keeps_turso_from_rewriting(tmp_path: Path) -> None:
    dataset = Dataset("shop", "turso", tmp_path / "live.db")
    fill(dataset.path)
    with ENGINES["turso"].connect_live(dataset) as reader:
        reader.execute("begin")
        (before,) = reader.execute("select count(*) from t").fetchone()
        with pytest.raises(LiveDatabaseBusy):
            optimize(dataset, timeout=0.3)
        assert reader.execute("select count(*) from t").fetchone() == (before,)
        timer = threading.Timer(0.3, reader.rollback)
        timer.start()
        assert optimize(dataset).skipped is None
        timer.join()
        assert reader.execute("select count(*) from t").fetchone() == (before,)


def test_what_turso_does_not_rebuild_is_left_as_it_was(tmp_path: Path) -> None:
    dataset = Dataset("shop", "turso", tmp_path / "live.db")
    fill(dataset.path)
    with opened(dataset.path) as connection:
        connection.execute("create table without (k text primary key) without rowid")
        connection.execute("insert into without values ('x')")
        connection.execute("pragma journal_mode = wal")
    before = dataset.path.read_bytes()
    with pytest.raises(CaptureError, match="WITHOUT ROWID"):
        optimize(dataset)
    assert dataset.path.read_bytes() == before


def test_a_connection_that_was_opened_otherwise_is_named_to_whoever_waits(tmp_path: Path) -> None:
    import turso

    dataset = Dataset("shop", "turso", tmp_path / "live.db")
    fill(dataset.path)
    other = turso.connect(str(dataset.path))
    with pytest.raises(LiveDatabaseBusy, match="open in this process"):
        optimize(dataset)
    other.close()


def test_a_process_that_is_killed_at_any_moment_leaves_all_rows(
    dataset: Dataset, tmp_path: Path, program: Start
) -> None:
    engine, attempts = ENGINES[dataset.engine], 6
    fill(dataset.path, rows=12_000)
    original, before = dataset.path.read_bytes(), content(dataset, tmp_path / "before")
    child = program(OPTIMIZE, dataset.engine, dataset.path)
    assert child.hear() == "ready"
    began = time.monotonic()
    child.say()
    assert child.hear() == "done"
    takes = time.monotonic() - began
    for number in range(attempts):
        for path in dataset.path.parent.glob("live.db*"):
            path.unlink()
        dataset.path.write_bytes(original)
        child = program(OPTIMIZE, dataset.engine, dataset.path)
        assert child.hear() == "ready"
        child.say()
        time.sleep(takes * (number + 0.5) / attempts)
        child.kill()
        assert content(dataset, tmp_path / f"after{number}") == before
        engine.optimize(dataset, timeout=5)
        with opened(dataset.path) as connection:
            assert connection.execute("pragma freelist_count").fetchone() == (0,)
