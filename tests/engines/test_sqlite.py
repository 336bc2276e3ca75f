"""What a SQLite snapshot says of its tables, and how it is written and served."""

from __future__ import annotations

import os
import resource
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlite_utils

from snapshot_assets.engines.sqlite import SQLiteEngine
from snapshot_assets.engines.sqlite_connection import open_immutable
from snapshot_assets.engines.sqlite_pool import SQLitePool
from snapshot_assets.errors import (
    ConfigurationError,
    CorruptCapture,
    LiveDatabaseBusy,
    ReaderError,
    SnapshotDamaged,
    UnsupportedLiveDatabase,
)
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import Manifest, TableContent
from snapshot_assets.testing.engine_contract import manifest_for

ENGINE = SQLiteEngine()


def staged(tmp_path: Path, *statements: str) -> tuple[Path, dict[str, TableContent], Manifest]:
    """Build, capture and describe a live database."""
    dataset = Dataset("weather", "sqlite", tmp_path / "live.sqlite")
    with ENGINE.connect_live(dataset) as connection:
        for statement in statements:
            connection.execute(statement)
    folder = tmp_path / "staging"
    folder.mkdir()
    captured = ENGINE.capture(dataset, folder, timeout=10)
    tables = dict(ENGINE.describe(dataset, folder, ["weather.sqlite"]))
    ENGINE.verify(folder, ["weather.sqlite"], tables, "full")
    return folder, tables, manifest_for(dataset, captured, tables)


def pool_of(tmp_path: Path, *statements: str) -> SQLitePool:
    folder, _, manifest = staged(tmp_path, *statements)
    return ENGINE.open_pool(folder, manifest)


def columns(table: TableContent) -> list[tuple[str, str, bool]]:
    return [(field.name, field.type, field.nullable) for field in table.schema.fields]


@pytest.mark.parametrize(
    ("declared", "arrow"),
    [
        ("INTEGER", "int64"),
        ("bigint", "int64"),
        ("REAL", "double"),
        ("DOUBLE PRECISION", "double"),
        ("FLOAT", "double"),
        ("TEXT", "string"),
        ("VARCHAR(20)", "string"),
        ("CLOB", "string"),
        ("BLOB", "binary"),
        ("", "binary"),
        ("BOOLEAN", "int64"),
        ("DATE", "string"),
        ("TIMESTAMP", "string"),
        ("JSON", "string"),
        ("NUMERIC", "double"),
        ("DECIMAL(9, 2)", "double"),
    ],
)
def test_declared_types_are_described_by_their_affinity(tmp_path: Path, declared: str, arrow: str) -> None:
    _, tables, _ = staged(tmp_path, f"create table t (a {declared})")
    assert columns(tables["t"]) == [("a", arrow, True)]


def test_what_can_not_be_null_is_described_so(tmp_path: Path) -> None:
    _, tables, _ = staged(
        tmp_path,
        "create table by_rowid (id integer primary key, a text not null, b text)",
        "create table by_int (id int primary key)",
        "create table by_two (a integer, b integer, primary key (a, b))",
        "create table without (a integer, b text, primary key (a, b)) without rowid",
        "create table strict_one (a integer, b any) strict",
    )
    assert columns(tables["by_rowid"]) == [("id", "int64", False), ("a", "string", False), ("b", "string", True)]
    assert columns(tables["by_int"]) == [("id", "int64", True)]
    assert columns(tables["by_two"]) == [("a", "int64", True), ("b", "int64", True)]
    assert columns(tables["without"]) == [("a", "int64", False), ("b", "string", False)]
    assert [column[:2] for column in columns(tables["strict_one"])] == [("a", "int64"), ("b", "double")]


def test_only_the_users_tables_are_described(tmp_path: Path) -> None:
    folder, tables, manifest = staged(
        tmp_path,
        "create table numbered (id integer primary key autoincrement, a text)",
        "insert into numbered (a) values ('x'), ('y')",
        "create view seen as select * from numbered",
        "create virtual table words using fts5 (body)",
        "insert into words values ('hello world')",
        "create index by_a on numbered (a)",
        "analyze",
    )
    assert {name: table.row_count for name, table in tables.items()} == {"numbered": 2}
    pool = ENGINE.open_pool(folder, manifest)
    assert pool.query("select body from words where words match 'hello'").to_pylist() == [{"body": "hello world"}]
    assert pool.query("select count(*) as n from seen").to_pylist() == [{"n": 2}]


def test_odd_names_and_generated_columns_are_described(tmp_path: Path) -> None:
    _, tables, _ = staged(
        tmp_path,
        """create table "a ""quoted"" table; --" ("the 'column'" integer,
           twice integer generated always as ("the 'column'" * 2) virtual,
           kept text generated always as ('x') stored)""",
        """insert into "a ""quoted"" table; --" ("the 'column'") values (1)""",
        'create table "Größe" ("λ" real)',
    )
    odd = tables['a "quoted" table; --']
    assert odd.row_count == 1
    assert columns(odd) == [("the 'column'", "int64", True), ("twice", "int64", True), ("kept", "string", True)]
    assert columns(tables["Größe"]) == [("λ", "double", True)]


def test_a_flipped_byte_in_a_page_is_found_by_full_verification(tmp_path: Path) -> None:
    folder, tables, _ = staged(
        tmp_path,
        "create table t (i integer primary key, text text)",
        "create index by_text on t (text)",
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 5000) "
        "insert into t select i, hex(i * 7919) from n",
    )
    path = folder / "weather.sqlite"
    content = bytearray(path.read_bytes())
    for page in range(1, len(content) // 4_096):
        content[page * 4_096] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CorruptCapture):
        ENGINE.verify(folder, ["weather.sqlite"], tables, "full")


# live connections


def test_a_live_connection_commits_and_an_error_rolls_back(tmp_path: Path) -> None:
    dataset = Dataset("weather", "sqlite", tmp_path / "new" / "live.sqlite")
    with ENGINE.connect_live(dataset) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
        assert connection.execute("pragma foreign_keys").fetchone() == (1,)
        connection.execute("create table t (i integer)")
        connection.execute("insert into t values (1)")
    with pytest.raises(RuntimeError, match="mine"), ENGINE.connect_live(dataset) as connection:
        connection.execute("insert into t values (2)")
        raise RuntimeError("mine")
    with ENGINE.connect_live(dataset) as connection:
        assert connection.execute("select i from t").fetchall() == [(1,)]


def test_sqlite_utils_works_on_a_live_connection(tmp_path: Path) -> None:
    dataset = Dataset("weather", "sqlite", tmp_path / "live.sqlite")
    with ENGINE.connect_live(dataset) as connection:
        database: Any = sqlite_utils.Database(connection)
        database["stations"].insert_all([{"id": 1, "name": "JFK"}, {"id": 2, "name": "LGA"}], pk="id")
        database["stations"].upsert({"id": 2, "name": "EWR"}, pk="id")
        database["stations"].enable_fts(["name"])
    (tmp_path / "staging").mkdir()
    ENGINE.capture(dataset, tmp_path / "staging", timeout=5)
    tables = ENGINE.describe(dataset, tmp_path / "staging", ["weather.sqlite"])
    assert {name: table.row_count for name, table in tables.items()} == {"stations": 2}
    assert columns(tables["stations"])[0] == ("id", "int64", False)


def test_a_live_database_that_can_not_be_opened_is_a_typed_error(
    tmp_path: Path, program: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapshot_assets.engines.sqlite._LOCK_SECONDS", 0.1)
    dataset = Dataset("weather", "sqlite", tmp_path / "live.sqlite")
    holder = program(
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1])\n"
        "connection.execute('begin exclusive')\n"
        "print('held', flush=True)\n"
        "sys.stdin.readline()",
        dataset.path,
    )
    assert holder.hear() == "held"
    with pytest.raises(LiveDatabaseBusy), ENGINE.connect_live(dataset):
        pass
    text = Dataset("weather", "sqlite", tmp_path / "text.sqlite")
    text.path.write_text("not a database\n" * 500)
    with pytest.raises(UnsupportedLiveDatabase), ENGINE.connect_live(text):
        pass


def test_an_old_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 31, 1))
    with pytest.raises(ConfigurationError, match=r"3\.37"):
        ENGINE.check_dataset(Dataset("weather", "sqlite", tmp_path / "live.sqlite"))


# queries


def test_values_keep_their_kind(tmp_path: Path) -> None:
    pool = pool_of(
        tmp_path,
        "create table t (i integer, r real, s text, b blob)",
        "insert into t values (1, 1.5, 'a', x'00ff'), (null, null, null, null)",
    )
    answer = pool.query("select * from t")
    assert answer.schema.names == ["i", "r", "s", "b"]
    assert answer.schema.types == [pa.int64(), pa.float64(), pa.string(), pa.binary()]
    assert answer.to_pylist()[0] == {"i": 1, "r": 1.5, "s": "a", "b": b"\x00\xff"}
    assert set(answer.to_pylist()[1].values()) == {None}


@pytest.mark.parametrize(
    ("values", "type_", "expected"),
    [
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        ([2**53, 0.5], pa.float64(), [float(2**53), 0.5]),
        ([2**60 + 1, 0.5], pa.string(), [str(2**60 + 1), "0.5"]),
        ([1, "a"], pa.string(), ["1", "a"]),
        ([0.1 + 0.2, "a"], pa.string(), ["0.30000000000000004", "a"]),
        (["a", b"\xff"], pa.binary(), [b"a", b"\xff"]),
        ([1, b"\xff"], pa.binary(), [b"1", b"\xff"]),
        ([None, 5], pa.int64(), [None, 5]),
        ([2**63 - 1, -(2**63)], pa.int64(), [2**63 - 1, -(2**63)]),
    ],
)
@pytest.mark.parametrize("distance", [0, 40_000])
def test_a_column_of_mixed_kinds_never_gives_a_wrong_answer(
    tmp_path: Path, values: list[Any], type_: Any, expected: list[Any], distance: int
) -> None:
    """The naive way, the types of the first batch, fails or rounds: 2**60 + 1 beside 0.5 becomes 2**60."""
    dataset = Dataset("weather", "sqlite", tmp_path / "live.sqlite")
    with ENGINE.connect_live(dataset) as connection:
        connection.execute("create table t (i integer primary key, a)")
        between = [values[0]] * distance
        connection.executemany("insert into t (a) values (?)", ((value,) for value in [values[0], *between, values[1]]))
    pool = SQLitePool(dataset.path, "weather")
    answer = pool.query("select a from t order by i").column("a")
    assert answer.type == type_
    assert [answer[0].as_py(), answer[-1].as_py()] == expected
    assert len(answer) == distance + 2


def test_columns_without_values_have_the_type_of_their_affinity(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "create table t (i integer, r real, s varchar(5), n numeric, b blob)")
    expected = [pa.int64(), pa.float64(), pa.string(), pa.null(), pa.null()]
    assert pool.query("select * from t").schema.types == expected
    assert pool.query("select * from t where i = ? -- all of it\n;", [1]).schema.types == expected
    assert pool.query("select s, null as x from t where i = :i", {"i": 1}).schema.types == [pa.string(), pa.null()]
    assert pool.query("select a.s, a.s from t as a").schema.names == ["s", "s"]
    assert pool.query("pragma foreign_key_list('t')").num_rows == 0


def test_a_query_leaves_nothing_on_its_callers_connection(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "create table result (i integer)", "insert into result values (7)")
    with closing(pool.acquire()) as connection:
        connection.execute("create temp table mine as select 1 as i")
        answer = pool.query("select i from result where i < 0", connection=connection)
        assert answer.schema.types == [pa.int64()]
        assert connection.execute("select name from temp.sqlite_schema").fetchall() == [("mine",)]
        assert connection.execute("select i from mine").fetchall() == [(1,)]
        assert connection.execute("select i from result").fetchall() == [(7,)]


def test_queries_take_parameters(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "create table t (i integer, s text)", "insert into t values (1, 'a'), (2, 'b')")
    assert pool.query("select s from t where i = ?", [2]).to_pylist() == [{"s": "b"}]
    assert pool.query("select s from t where i = :i", {"i": 1}).to_pylist() == [{"s": "a"}]
    with pytest.raises(sqlite3.OperationalError):
        pool.query("select nothing from t")


def test_wal_databases_are_served_from_read_only_folders_without_side_files(tmp_path: Path) -> None:
    """The naive copy keeps the WAL flag: opening it read-only makes -wal and -shm beside it."""
    folder, _, manifest = staged(tmp_path, "create table t (i integer)", "insert into t values (1)")
    naive = tmp_path / "naive"
    naive.mkdir()
    (naive / "weather.sqlite").write_bytes((tmp_path / "live.sqlite").read_bytes())
    with closing(sqlite3.connect(f"file:{naive / 'weather.sqlite'}?mode=ro", uri=True)) as connection:
        connection.execute("select * from t").fetchall()
        assert len(list(naive.iterdir())) == 3
    with closing(sqlite3.connect(f"file:{folder / 'weather.sqlite'}?mode=ro", uri=True)) as connection:
        connection.execute("select * from t").fetchall()
        assert len(list(folder.iterdir())) == 1
    pool = ENGINE.open_pool(folder, manifest)
    pool.query("select * from t")
    assert len(list(folder.iterdir())) == 1


def test_a_damaged_local_copy_is_a_typed_error(tmp_path: Path) -> None:
    folder, _, manifest = staged(tmp_path, "create table t (i integer)")
    (folder / "weather.sqlite").write_bytes(os.urandom(8_192))
    with pytest.raises(SnapshotDamaged, match="weather"):
        ENGINE.open_pool(folder, manifest)


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        (lambda good: good[:100] + os.urandom(len(good) - 100), SnapshotDamaged),
        (lambda good: good[:50], SnapshotDamaged),
        (lambda good: good[:200] + bytes(len(good) - 200), SnapshotDamaged),
    ],
)
def test_what_is_no_longer_a_database_is_damage(
    tmp_path: Path, broken: Callable[[bytes], bytes], kind: type[Exception]
) -> None:
    folder, _, manifest = staged(tmp_path, "create table t (i integer)")
    path = folder / "weather.sqlite"
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(kind):
        ENGINE.open_pool(folder, manifest)


def test_a_missing_file_is_damage_and_too_many_open_files_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, manifest = staged(tmp_path, "create table t (i integer)")
    with monkeypatch.context() as patch:
        patch.setattr("snapshot_assets.engines.sqlite_pool.open_immutable", open_without_descriptors)
        with pytest.raises(ReaderError) as raised:
            ENGINE.open_pool(folder, manifest)
    assert not isinstance(raised.value, SnapshotDamaged)
    ENGINE.open_pool(folder, manifest)
    (folder / "weather.sqlite").unlink()
    with pytest.raises(SnapshotDamaged):
        ENGINE.open_pool(folder, manifest)


def open_without_descriptors(path: Path) -> sqlite3.Connection:
    """Open a file while this process may open no more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        return open_immutable(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_folder_with_odd_characters_is_served(tmp_path: Path) -> None:
    odd = tmp_path / "a folder? 100% #1"
    odd.mkdir()
    folder, tables, manifest = staged(odd, "create table t (i integer)", "insert into t values (1)")
    assert tables["t"].row_count == 1
    assert ENGINE.open_pool(folder, manifest).query("select i from t").to_pylist() == [{"i": 1}]
