"""What a DuckDB snapshot says of its tables, who can read it, and how it is served."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from snapshot_assets.engines import duckdb_pool
from snapshot_assets.engines.duckdb import DuckDBEngine
from snapshot_assets.engines.duckdb_pool import DuckDBPool
from snapshot_assets.errors import (
    ConfigurationError,
    CorruptCapture,
    EngineTooOld,
    ReaderError,
    SnapshotDamaged,
    UnsupportedLiveDatabase,
    ValidationFailed,
)
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import Manifest, TableContent
from snapshot_assets.testing.engine_contract import manifest_for

ENGINE = DuckDBEngine()


def staged(tmp_path: Path, *statements: str) -> tuple[Path, dict[str, TableContent], Manifest]:
    """Build, capture and describe a live database."""
    dataset = Dataset("flights", "duckdb", tmp_path / "live.duckdb")
    with ENGINE.connect_live(dataset) as connection:
        for statement in statements:
            connection.execute(statement)
    folder = tmp_path / "staging"
    folder.mkdir()
    captured = ENGINE.capture(dataset, folder, timeout=10)
    tables = dict(ENGINE.describe(dataset, folder, ["flights.duckdb"]))
    ENGINE.verify(folder, ["flights.duckdb"], tables, "full")
    return folder, tables, manifest_for(dataset, captured, tables)


def columns(table: TableContent) -> list[tuple[str, str, bool]]:
    return [(field.name, field.type, field.nullable) for field in table.schema.fields]


def test_tables_of_schema_main_go_by_their_name_and_others_by_both(tmp_path: Path) -> None:
    _, tables, _ = staged(
        tmp_path,
        "create table flights (id integer primary key, day date not null, delay decimal(9, 2))",
        "insert into flights values (1, '2013-01-01', 1.5)",
        "create schema other",
        "create table other.planes (tail varchar)",
        'create table "od""d ta.ble; --" ("a ""b" integer)',
        "create view late as from flights where delay > 0",
        "create temp table scratch as select 1",
    )
    assert {name: table.row_count for name, table in tables.items()} == {
        "flights": 1,
        "other.planes": 0,
        'od"d ta.ble; --': 0,
    }
    assert columns(tables["flights"]) == [
        ("id", "int32", False),
        ("day", "date32[day]", False),
        ("delay", "decimal128(9, 2)", True),
    ]
    assert columns(tables['od"d ta.ble; --']) == [('a "b', "int32", True)]


def test_two_tables_that_would_share_a_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLiveDatabase, match="one name"):
        staged(tmp_path, "create schema a", "create table a.b (i int)", 'create table "a.b" (j int)')


def test_every_type_is_described_and_read(tmp_path: Path) -> None:
    _, tables, _ = staged(
        tmp_path,
        "create type mood as enum ('good', 'bad')",
        """create table types as select
            1::utinyint a, 2::hugeint b, 1.5::decimal(18, 3) c, 'bad'::mood d, {'x': 1, 'y': [1, 2]} e, map {'k': 1} f,
            now() g, current_date h, uuid() i, 'x'::blob j, interval 1 day k, time '10:00' l, '0101'::bit m,
            union_value(n := 1) n, [1, 2]::integer[2] o, null::integer p, '{}'::json q, now()::timestamp_ns r,
            true s""",
        "create table generated (a integer, b integer generated always as (a + 1))",
        "insert into generated values (1)",
    )
    assert len(tables["types"].schema.fields) == 19
    assert columns(tables["generated"]) == [("a", "int32", True), ("b", "int32", True)]


def test_the_schema_does_not_depend_on_the_time_zone_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The naive schema of a timestamp with time zone names the zone of whoever looked."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        folder, tables, _ = staged(tmp_path, "create table t (seen timestamptz)")
        with duckdb.connect(str(folder / "flights.duckdb"), read_only=True) as connection:
            naive = connection.sql("from t").to_arrow_table().schema
    finally:
        monkeypatch.undo()
        time.tzset()
    assert str(naive.field("seen").type) == "timestamp[us, tz=Asia/Tokyo]"
    assert columns(tables["t"]) == [("seen", "timestamp[us, tz=UTC]", True)]


def test_an_empty_database_is_a_snapshot_without_tables(tmp_path: Path) -> None:
    folder, tables, manifest = staged(tmp_path)
    assert tables == {}
    pool = ENGINE.open_pool(folder, manifest)
    assert pool.query("select 1 as one").to_pylist() == [{"one": 1}]
    pool.close()


def test_the_layout_is_the_block_size_of_the_file(tmp_path: Path) -> None:
    _, _, manifest = staged(tmp_path / "new", "create table t (i int)")
    assert (manifest.files[0].layout.header_bytes, manifest.files[0].layout.chunk_bytes) == (12_288, 262_144)
    (tmp_path / "old").mkdir()
    with duckdb.connect() as connection:
        connection.execute(
            f"attach '{tmp_path / 'old' / 'live.duckdb'}' as live (storage_version 'v1.0.0', block_size 16384)"
        )
        connection.execute("create table live.t (i integer)")
    _, _, manifest = staged(tmp_path / "old")
    assert manifest.files[0].layout.chunk_bytes == 16_384
    assert manifest.storage_version == "v1.0.0+"


@pytest.mark.parametrize(
    ("storage", "engine", "readable"),
    [
        ("v1.0.0+", "1.4.0", True),
        ("v1.0.0+", "99.0.0", True),
        ("v99.0.0+", "99.0.0", False),
        ("v2.9999.0+", "2.9999.0", False),
        ("unknown", "1.0.0", True),
        ("unknown", "99.0.0", False),
        ("", "99.1.0.dev7", False),
    ],
)
def test_what_this_library_can_not_open_is_refused(tmp_path: Path, storage: str, engine: str, readable: bool) -> None:
    _, _, manifest = staged(tmp_path, "create table t (i int)")
    ENGINE.check_readable(manifest)
    other = replace(manifest, storage_version=storage, engine_version=engine)
    if readable:
        ENGINE.check_readable(other)
    else:
        with pytest.raises(EngineTooOld, match=duckdb.__version__):
            ENGINE.check_readable(other)


def test_a_flipped_byte_is_found_by_full_verification_wherever_it_is(tmp_path: Path) -> None:
    folder, tables, _ = staged(
        tmp_path,
        "create table t as select range i, hash(range)::varchar a, hash(range + 1)::varchar b from range(60000)",
    )
    path = folder / "flights.duckdb"
    good = path.read_bytes()
    for block in range((len(good) - 12_288) // 262_144):
        content = bytearray(good)
        content[12_288 + block * 262_144 + 5_000] ^= 1
        path.write_bytes(content)
        if content == good:
            continue
        with pytest.raises(CorruptCapture):
            ENGINE.verify(folder, ["flights.duckdb"], tables, "full")
    path.write_bytes(good)
    ENGINE.verify(folder, ["flights.duckdb"], tables, "full")


def test_the_dataset_is_the_catalog(tmp_path: Path) -> None:
    folder, _, manifest = staged(tmp_path, "create table flights as select 7 i")
    pool = ENGINE.open_pool(folder, manifest)
    connection = pool.acquire()
    assert connection.execute("select i from flights.main.flights").fetchall() == [(7,)]
    assert connection.execute("select i from flights").fetchall() == [(7,)]
    pool.release(connection)
    pool.close()


def test_a_query_sees_no_python_variables_and_fetches_no_extension(tmp_path: Path) -> None:
    folder, _, manifest = staged(tmp_path, "create table t as select 7 i")
    pool = ENGINE.open_pool(folder, manifest)
    secret = pa.table({"i": [1]})
    assert secret.num_rows == 1
    with pytest.raises(duckdb.CatalogException):
        pool.query("select * from secret")
    settings = "'autoinstall_known_extensions', 'autoload_known_extensions'"
    answer = pool.query(f"select distinct value from duckdb_settings() where name in ({settings})")
    assert answer.to_pylist() == [{"value": "false"}]
    pool.close()


def test_queries_take_parameters_and_return_arrow(tmp_path: Path) -> None:
    folder, _, manifest = staged(tmp_path, "create table t as select range i, range::varchar s from range(10)")
    pool = ENGINE.open_pool(folder, manifest)
    assert pool.query("select s from t where i = ?", [3]).to_pylist() == [{"s": "3"}]
    assert pool.query("select s from t where i = $i", {"i": 4}).to_pylist() == [{"s": "4"}]
    assert pool.query("select i, s from t where false").schema.types == [pa.int64(), pa.string()]
    assert pool.query("describe t").num_rows == 2
    assert pool.query("").num_columns == 0
    with pytest.raises(duckdb.ParserException):
        pool.query("selekt")
    pool.close()


def test_a_damaged_local_copy_is_a_typed_error(tmp_path: Path) -> None:
    folder, _, manifest = staged(tmp_path, "create table t as select 7 i")
    os.truncate(folder / "flights.duckdb", 9_000)
    with pytest.raises(SnapshotDamaged, match="flights"):
        ENGINE.open_pool(folder, manifest)


@pytest.mark.parametrize(
    "broken",
    [
        lambda good: b"",
        lambda good: good[:20_000],
        lambda good: os.urandom(len(good)),
        lambda good: good[:4_100] + b"?" + good[4_101:],
        lambda good: good[:12_300] + b"?" + good[12_301:],
        lambda good: b"SQLite format 3\0" + bytes(len(good)),
        None,
    ],
)
def test_what_is_no_longer_a_database_is_damage(tmp_path: Path, broken: Callable[[bytes], bytes] | None) -> None:
    folder, _, manifest = staged(tmp_path, "create table t as select 7 i")
    path = folder / "flights.duckdb"
    if broken is None:
        path.unlink()
    else:
        path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(SnapshotDamaged, match="flights"):
        ENGINE.open_pool(folder, manifest)


def test_what_keeps_a_whole_copy_from_being_opened_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, manifest = staged(tmp_path, "create table t as select 7 i")
    path = folder / "flights.duckdb"

    def refused(words: str) -> None:
        with pytest.raises(ReaderError, match=words) as raised:
            ENGINE.open_pool(folder, manifest)
        assert not isinstance(raised.value, SnapshotDamaged)

    with duckdb.connect(str(path), read_only=True):
        refused("different configuration")
    with monkeypatch.context() as patch:
        patch.setitem(duckdb_pool.READER_CONFIG, "memory_limit", "100KB")
        refused("(?i)memory")

    def no_descriptors(*_: object, **__: object) -> None:
        # With no descriptor left at all, DuckDB ends the process; this is what it says a little earlier.
        raise duckdb.IOException(f'IO Error: Cannot open file "{path}": Too many open files')

    with monkeypatch.context() as patch:
        patch.setattr(duckdb, "connect", no_descriptors)
        refused("Too many open files")
    ENGINE.open_pool(folder, manifest).close()


def test_a_connection_is_the_engines_own_cursor_with_nothing_in_between(tmp_path: Path) -> None:
    folder, _, _ = staged(tmp_path, "create table t as select 7 i")
    pool = DuckDBPool(folder / "flights.duckdb", "flights")
    assert type(pool.acquire) is type(pool._instance.cursor)
    assert pool.acquire.__self__ is pool._instance  # type: ignore[attr-defined]
    pool.close()


def test_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="threads"):
        ENGINE.check_dataset(Dataset("flights", "duckdb", tmp_path / "x.duckdb", options={"threads": 1}))


def test_schemas_in_schemas_and_schemas_of_the_datasets_name_are_captured(tmp_path: Path) -> None:
    _, tables, _ = staged(
        tmp_path,
        "create schema flights",
        "create table flights.legs as select range i from range(3)",
        "create schema flights.old",
        "create table flights.old.legs(i bigint not null)",
        "create table main.legs as select 1 i",
    )
    assert {name: table.row_count for name, table in tables.items()} == {
        "flights.legs": 3,
        "flights.old.legs": 0,
        "legs": 1,
    }
    assert columns(tables["flights.old.legs"]) == [("i", "int64", False)]


def test_types_that_packages_of_a_process_add_do_not_change_the_columns(tmp_path: Path) -> None:
    folder, tables, _ = staged(tmp_path, "create table points as select 'POINT(1 1)'::geometry as place")

    class Place(pa.ExtensionType):  # type: ignore[misc]  # pyarrow has no types
        def __init__(self) -> None:
            super().__init__(pa.binary(), "geoarrow.wkb")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, _storage: pa.DataType, _serialized: bytes) -> Place:
            return cls()

    pa.register_extension_type(Place())
    try:
        ENGINE.verify(folder, ["flights.duckdb"], tables, "full")
    finally:
        pa.unregister_extension_type("geoarrow.wkb")


@pytest.mark.parametrize("name", ["a?b.duckdb", "a\\b.duckdb"])
def test_a_path_that_duckdb_takes_for_another_is_refused(tmp_path: Path, name: str) -> None:
    duckdb.connect(str(tmp_path / "live.duckdb")).close()
    live = (tmp_path / "live.duckdb").rename(tmp_path / name)
    dataset = Dataset("flights", "duckdb", live)
    with pytest.raises(UnsupportedLiveDatabase, match="backslash or a question mark"):
        ENGINE.check_dataset(dataset)
    with pytest.raises(UnsupportedLiveDatabase, match="backslash or a question mark"):
        ENGINE.capture(dataset, tmp_path, timeout=1)


@pytest.mark.parametrize("text", ["", ";", "-- nothing"])
def test_a_validators_text_without_a_statement_fails(tmp_path: Path, text: str) -> None:
    folder, _, _ = staged(tmp_path, "create table t(i int)")
    with ENGINE.staged_query(folder, ["flights.duckdb"]) as query, pytest.raises(ValidationFailed):
        query(text)
