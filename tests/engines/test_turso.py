"""Turso under the engine contract, its live connections, and what is refused."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import turso

from snapshot_assets.engines.turso import TursoEngine
from snapshot_assets.errors import LiveDatabaseBusy, UnsupportedLiveDatabase
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.testing import EngineContract
from snapshot_assets.testing.engine_contract import manifest_for

ENGINE = TursoEngine()
FEATURES = "views,custom_types,generated_columns,index_method,encryption,multiprocess_wal"

# What a program of another process finds when it reads the table t.
READ = """
import sys
module = __import__(sys.argv[2])
try:
    connection = module.connect(sys.argv[1])
    connection.execute("pragma busy_timeout = 0")
    rows = connection.execute("select count(*) from t").fetchone()[0]
    connection.close()
    print(rows, flush=True)
except Exception as error:
    print("locked" if "locked" in str(error) else error, flush=True)
"""

HOLD = """
import sys
module = __import__(sys.argv[2])
connection = module.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[3:]:
    connection.execute(statement).fetchall()
print("held", flush=True)
sys.stdin.readline()
"""

NAIVE = """
import sys, turso
connection = turso.connect(sys.argv[1], isolation_level=None)
connection.execute("create table t (i integer)")
turso.connect(sys.argv[1]).close()
print("two connections", flush=True)
sys.stdin.readline()
connection.execute("insert into t values (1)")
print("committed", flush=True)
sys.stdin.readline()
"""

Start = Callable[..., Any]


class TestTurso(EngineContract):
    engine_name = "turso"
    # The capture brings what the log holds into the file.
    keeps_live_files = False
    # Turso stores NaN as NULL, and a real that is whole as an integer, which has no -0.
    special_floats = (math.inf, -math.inf)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset("planes", "turso", tmp_path / "planes.db")


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    folder = tmp_path / "staging"
    folder.mkdir()
    return folder


def by_turso(path: Path, *statements: str, **options: Any) -> turso.Connection:
    connection = turso.connect(str(path), isolation_level=None, **options)
    for statement in statements:
        connection.execute(statement).fetchall()
    return connection


def by_sqlite(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def count(dataset: Dataset) -> int:
    with ENGINE.connect_live(dataset) as connection:
        return int(connection.execute("select count(*) from t").fetchone()[0])


# live connections


def test_a_live_connection_commits_and_an_error_rolls_back(dataset: Dataset) -> None:
    with ENGINE.connect_live(dataset) as connection:
        connection.execute("create table t (i integer)")
        connection.execute("insert into t values (1)")
    with ENGINE.connect_live(dataset) as other:
        with pytest.raises(RuntimeError, match="mine"), ENGINE.connect_live(dataset) as connection:
            connection.execute("insert into t values (2)")
            raise RuntimeError("mine")
        other.execute("pragma busy_timeout = 0")
        other.execute("insert into t values (3)")
    assert count(dataset) == 2


def test_a_commit_that_fails_is_an_error_and_undone(dataset: Dataset) -> None:
    """The naive way, the connection's own `with`, loses the error."""
    with ENGINE.connect_live(dataset) as connection:
        connection.execute("create table parent (i integer primary key)")
        connection.execute("create table t (i integer references parent (i) deferrable initially deferred)")
        with connection:
            connection.execute("insert into t values (5)")
        connection.rollback()
    with pytest.raises(turso.IntegrityError, match="FOREIGN KEY"), ENGINE.connect_live(dataset) as connection:
        connection.execute("insert into t values (5)")
    assert count(dataset) == 0


def test_the_file_is_free_when_the_block_ends_although_the_connection_is_still_named(
    dataset: Dataset, program: Start
) -> None:
    with ENGINE.connect_live(dataset) as connection:
        connection.execute("create table t (i integer)")
        assert program(READ, dataset.path, "turso").hear() == "locked"
    connection.close()
    with pytest.raises(turso.ProgrammingError, match="closed"):
        connection.execute("select 1")
    assert program(READ, dataset.path, "turso").hear() == "0"


def test_no_program_can_come_between_a_live_connection_and_its_log(
    dataset: Dataset, staging: Path, tmp_path: Path, program: Start
) -> None:
    """The naive way, opening the file for each connection, gives the lock up; then a committed row is lost."""
    naive = tmp_path / "naive.db"
    writer = program(NAIVE, naive)
    assert writer.hear() == "two connections"
    assert program(READ, naive, "sqlite3").hear() == "0"
    writer.say()
    assert writer.hear() == "committed"
    writer.kill()
    assert program(READ, naive, "turso").hear() == "0"

    with ENGINE.connect_live(dataset) as connection:
        connection.execute("create table t (i integer)")
        with ENGINE.connect_live(dataset) as other:
            other.execute("insert into t values (1)")
        ENGINE.capture(dataset, staging, timeout=10)
        ENGINE.optimize(dataset, timeout=1)
        assert program(READ, dataset.path, "sqlite3").hear() == "locked"
        assert program(READ, dataset.path, "turso").hear() == "locked"
        connection.execute("insert into t values (2)")
    assert program(READ, dataset.path, "turso").hear() == "2"


@pytest.mark.parametrize("library", ["turso", "sqlite3"])
def test_a_database_that_another_process_has_open_is_busy(
    dataset: Dataset, staging: Path, program: Start, library: str
) -> None:
    by_turso(dataset.path, "create table t (i integer)").close()
    holder = program(HOLD, dataset.path, library, "begin", "select * from t")
    assert holder.hear() == "held"
    with pytest.raises(LiveDatabaseBusy), ENGINE.connect_live(dataset):
        pass
    with pytest.raises(LiveDatabaseBusy):
        ENGINE.capture(dataset, staging, timeout=0.3)
    with pytest.raises(LiveDatabaseBusy):
        ENGINE.optimize(dataset, timeout=0.3)
    holder.kill()
    ENGINE.capture(dataset, staging, timeout=5)


def test_a_database_that_another_process_gives_back_in_time_is_captured(
    dataset: Dataset, staging: Path, program: Start
) -> None:
    by_turso(dataset.path, "create table t (i integer)").close()
    holder = program(HOLD, dataset.path, "turso", "select * from t")
    assert holder.hear() == "held"
    timer = threading.Timer(0.5, holder.say)
    timer.start()
    ENGINE.capture(dataset, staging, timeout=20)
    timer.join()


# snapshots


def test_a_snapshot_is_one_plain_sqlite_file(dataset: Dataset, staging: Path) -> None:
    with ENGINE.connect_live(dataset) as connection:
        connection.execute("create table t (i integer primary key autoincrement, text text not null)")
        connection.execute("create index by_text on t (text)")
        connection.execute("insert into t (text) values ('a'), ('b')")
    captured = ENGINE.capture(dataset, staging, timeout=10)
    assert [path.name for path in staging.iterdir()] == ["planes.db"]
    assert captured.engine_version == version("pyturso")
    assert captured.storage_version == "4"
    with closing(sqlite3.connect(staging / "planes.db")) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("delete",)
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert connection.execute("select * from t order by text desc").fetchall() == [(2, "b"), (1, "a")]
    tables = ENGINE.describe(dataset, staging, ["planes.db"])
    assert list(tables) == ["t"]
    assert [(field.name, field.nullable) for field in tables["t"].schema.fields] == [("i", False), ("text", False)]
    pool = ENGINE.open_pool(staging, manifest_for(dataset, captured, tables))
    assert isinstance(pool.acquire(), sqlite3.Connection)


def test_a_database_that_sqlite_made_is_captured(dataset: Dataset, staging: Path) -> None:
    by_sqlite(
        dataset.path,
        "pragma page_size = 8192",
        "create table t (i integer, text text)",
        "create index few on t (i desc) where i > 1",
        "create table without (k text primary key, v) without rowid",
        "create table strict_one (i integer, anything any) strict",
        "create view seen as select i + 1 as j from t",
        "create trigger moved after insert on t begin insert into without values (new.i, new.text); end",
    )
    with ENGINE.connect_live(dataset) as connection:
        connection.execute("insert into t values (5, 'x')")
    ENGINE.capture(dataset, staging, timeout=10)
    tables = ENGINE.describe(dataset, staging, ["planes.db"])
    assert {name: table.row_count for name, table in tables.items()} == {"t": 1, "strict_one": 0, "without": 1}
    ENGINE.verify(staging, ["planes.db"], tables, "full")
    with ENGINE.staged_query(staging, ["planes.db"]) as query:
        assert query("select j from seen") == [(6,)]


# refusals


def refused_everywhere(dataset: Dataset, staging: Path, pattern: str, *, when_declared: bool = True) -> None:
    if when_declared:
        with pytest.raises(UnsupportedLiveDatabase, match=pattern):
            ENGINE.check_dataset(dataset)
    # Turso puts a file in WAL mode before it looks further; that is two bytes of the header.
    content = dataset.path.read_bytes()[20:]
    for attempt in (
        lambda: ENGINE.capture(dataset, staging, timeout=1),
        lambda: ENGINE.optimize(dataset, timeout=1),
        lambda: ENGINE.connect_live(dataset).__enter__(),
    ):
        with pytest.raises(UnsupportedLiveDatabase, match=pattern) as caught:
            attempt()
        assert caught.value.dataset == "planes"
    assert dataset.path.read_bytes()[20:] == content


def test_an_mvcc_database_is_refused(dataset: Dataset, staging: Path) -> None:
    """The naive way, copying the file, leaves out the rows that were committed last."""
    connection = by_turso(
        dataset.path, "create table t (i integer)", "pragma journal_mode = 'mvcc'", "insert into t values (1)"
    )
    with pytest.raises(UnsupportedLiveDatabase, match="MVCC"):
        ENGINE.capture(dataset, staging, timeout=1)
    log = Path(f"{dataset.path}-log")
    assert log.stat().st_size
    connection.close()
    del connection
    refused_everywhere(dataset, staging, "MVCC")

    connection = by_turso(dataset.path, "pragma wal_checkpoint(truncate)")
    connection.close()
    del connection
    assert not log.stat().st_size
    refused_everywhere(dataset, staging, "MVCC")

    connection = by_turso(dataset.path, "pragma journal_mode = 'wal'")
    connection.close()
    del connection
    ENGINE.capture(dataset, staging, timeout=5)
    assert ENGINE.describe(dataset, staging, ["planes.db"])["t"].row_count == 1


def test_a_live_connection_that_turned_to_mvcc_is_noticed_by_the_capture(dataset: Dataset, staging: Path) -> None:
    with ENGINE.connect_live(dataset) as connection:
        connection.execute("create table t (i integer)")
        connection.execute("pragma journal_mode = 'mvcc'").fetchall()
        with pytest.raises(UnsupportedLiveDatabase, match="MVCC"):
            ENGINE.capture(dataset, staging, timeout=1)


@pytest.mark.parametrize(
    "statement",
    [
        "create virtual table words using fts5 (body)",
        "create virtual table boxes using rtree (id, least, most)",
        "create table doubled (i integer, twice integer as (i * 2) stored)",
        "create table doubled (i integer, twice integer as (i * 2))",
    ],
)
def test_what_turso_does_not_read_is_refused_with_a_way_out(dataset: Dataset, staging: Path, statement: str) -> None:
    by_sqlite(dataset.path, "create table t (i integer)", statement)
    refused_everywhere(dataset, staging, "Turso does not read", when_declared=False)
    with pytest.raises(UnsupportedLiveDatabase) as caught:
        ENGINE.capture(dataset, staging, timeout=1)
    assert "engine 'sqlite'" in caught.value.hint


def test_text_that_is_not_utf8_is_refused(dataset: Dataset, staging: Path) -> None:
    by_sqlite(dataset.path, "pragma encoding = 'UTF-16le'", "create table t (i integer)")
    refused_everywhere(dataset, staging, "UTF-16", when_declared=False)


def test_a_database_with_auto_vacuum_is_refused(dataset: Dataset, staging: Path) -> None:
    by_sqlite(dataset.path, "pragma auto_vacuum = incremental", "create table t (i integer)")
    refused_everywhere(dataset, staging, "auto_vacuum")
    by_sqlite(dataset.path, "pragma auto_vacuum = none", "vacuum")
    ENGINE.capture(dataset, staging, timeout=5)


def test_an_encrypted_database_is_refused(dataset: Dataset, staging: Path) -> None:
    key = turso.EncryptionOpts("aes256gcm", "ab" * 32)
    connection = by_turso(
        dataset.path,
        "create table t (i integer)",
        "pragma wal_checkpoint(truncate)",
        experimental_features=FEATURES,
        encryption=key,
    )
    connection.close()
    del connection
    refused_everywhere(dataset, staging, "encrypted")


def test_a_database_that_several_processes_share_is_refused(dataset: Dataset, staging: Path, program: Start) -> None:
    """The naive way, relying on the lock: there is none, and the other process could write while the file is copied."""
    connection = by_turso(dataset.path, "create table t (i integer)", experimental_features=FEATURES)
    assert program(READ, dataset.path, "turso").hear() == "0"
    connection.close()
    del connection
    refused_everywhere(dataset, staging, "several processes")


def test_a_transaction_that_sqlite_left_half_done_is_refused_until_sqlite_undid_it(
    dataset: Dataset, staging: Path, program: Start
) -> None:
    """The naive way: Turso takes the half transaction for rows."""
    by_sqlite(
        dataset.path,
        "create table t (i integer, padding text)",
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000) "
        "insert into t select i, i from n",
    )
    spill = ("pragma cache_size = 5", "pragma cache_spill = 1", "begin immediate")
    writer = program(HOLD, dataset.path, "sqlite3", *spill, "update t set padding = hex(randomblob(50))")
    assert writer.hear() == "held"
    writer.kill()
    refused_everywhere(dataset, staging, "half done")
    with closing(sqlite3.connect(dataset.path)) as connection:
        connection.execute("select count(*) from sqlite_schema").fetchone()
    ENGINE.capture(dataset, staging, timeout=5)
    with ENGINE.staged_query(staging, ["planes.db"]) as query:
        assert query("select count(*) from t where padding = cast(i as text)") == [(3_000,)]


@pytest.mark.parametrize(
    "statements",
    [
        ("create materialized view sums as select g, sum(i) as s from t group by g",),
        ("create table typed (i integer, d uuid) strict",),
        ("create type cents base integer encode value * 100 decode value / 100", "create table typed (c cents) strict"),
        ("create index words on t using fts (text)",),
        ("create index distant on t (vector_extract(vector32(text)))",),
        ("create table near (text text, v as (vector32(text)))",),
    ],
    ids=["materialized view", "uuid", "custom type", "full text", "vector index", "generated vector"],
)
def test_what_only_turso_reads_is_refused_before_readers_meet_it(
    dataset: Dataset, staging: Path, statements: tuple[str, ...]
) -> None:
    """The naive way publishes a file that no reader can open, or not in full."""
    features = FEATURES.replace(",multiprocess_wal", "")
    table = "create table t (i integer, g integer, text text)"
    connection = by_turso(dataset.path, table, *statements, experimental_features=features)
    connection.execute("insert into t values (1, 2, '[1,2]')")
    with pytest.raises(UnsupportedLiveDatabase, match="SQLite") as caught:
        ENGINE.capture(dataset, staging, timeout=5)
    assert "only Turso knows" in caught.value.hint
    connection.close()


def test_vectors_in_plain_columns_are_captured(dataset: Dataset, staging: Path) -> None:
    with ENGINE.connect_live(dataset) as connection:
        connection.execute("create table t (i integer, v f32_blob(2))")
        connection.execute("insert into t values (1, vector32('[1,2]'))")
    ENGINE.capture(dataset, staging, timeout=5)
    with ENGINE.staged_query(staging, ["planes.db"]) as query:
        assert query("select v from t") == [(bytes.fromhex("0000803f00000040"),)]
