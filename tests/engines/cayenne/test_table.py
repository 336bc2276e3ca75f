"""What the table API promises: whole changes, rows that keep the schema, and the same answers as a plain model."""

from __future__ import annotations

import datetime
import errno
import math
import os
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshot_assets.engines.cayenne import CayenneTable
from snapshot_assets.errors import (
    CaptureError,
    ConfigurationError,
    CorruptCapture,
    InvalidDatasetName,
    LiveDatabaseMissing,
    ReadOnlyDataset,
    SnapshotAssetsError,
    UnsupportedLiveDatabase,
)

PEOPLE = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("name", pa.string()), ("land", pa.string())])


def people(*rows: tuple[Any, ...]) -> pa.Table:
    columns = [[row[position] for row in rows] for position in range(3)]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, PEOPLE, strict=True)], schema=PEOPLE
    )


def rows_of(table: CayenneTable) -> list[tuple[Any, ...]]:
    return sorted(tuple(row.values()) for row in table.scan().read_all().to_pylist())


def files_in(root: Path) -> set[str]:
    """Everything in the data folder but the locks."""
    return {path.name for path in (root / "data").rglob("*") if path.is_file() and not path.name.endswith(".lock")}


# tables


def test_a_table_is_made_once_and_opened_again(root: Path) -> None:
    with CayenneTable.create(root, "people", PEOPLE, primary_key=["id"], partition_by=["land"]) as table:
        assert (table.count(), table.exists) == (0, True)
        table.append(people((1, "Ann", "de")))
    with CayenneTable.create(root, "people", PEOPLE, primary_key=["id"], partition_by=["land"]) as table:
        assert rows_of(table) == [(1, "Ann", "de")]
    with CayenneTable.open(root, "people") as table:
        assert (table.schema, table.primary_key, table.partition_by) == (PEOPLE, ("id",), ("land",))
        assert table.count() == 1


def test_a_table_that_is_there_with_other_columns_or_keys_is_left_alone(root: Path) -> None:
    CayenneTable.create(root, "people", PEOPLE).close()
    for schema, key in ((PEOPLE, ["id"]), (PEOPLE.remove(2), [])):
        with pytest.raises(ConfigurationError, match="there already"):
            CayenneTable.create(root, "people", schema, primary_key=key)
    with CayenneTable.open(root, "people") as table:
        assert (table.schema, table.primary_key) == (PEOPLE, ())


def test_what_is_not_there_is_not_opened_and_not_made(root: Path) -> None:
    with pytest.raises(LiveDatabaseMissing):
        CayenneTable.open(root, "people")
    assert not root.exists()
    CayenneTable.create(root, "people", PEOPLE).close()
    with pytest.raises(LiveDatabaseMissing, match="others"):
        CayenneTable.open(root, "others")
    with pytest.raises(InvalidDatasetName):
        CayenneTable.open(root, "../others")


def test_a_metastore_elsewhere_holds_tables_of_several_roots(tmp_path: Path) -> None:
    metastore = tmp_path / "catalogue" / "meta.db"
    with CayenneTable.create(tmp_path / "a", "people", PEOPLE, metastore=metastore) as table:
        table.append(people((1, "Ann", "de")))
    with CayenneTable.create(tmp_path / "b", "others", PEOPLE, metastore=metastore) as table:
        table.append(people((2, "Bob", "fr")))
    assert not (tmp_path / "a" / "metadata").exists()
    with CayenneTable.open(tmp_path / "a", "people", metastore=metastore) as table:
        assert rows_of(table) == [(1, "Ann", "de")]


def test_a_read_only_table_and_a_closed_one_refuse(root: Path) -> None:
    table = CayenneTable.create(root, "people", PEOPLE)
    with CayenneTable.open(root, "people", read_only=True) as reader:
        assert reader.count() == 0
        for change in (reader.append, reader.overwrite, reader.upsert):
            with pytest.raises(ReadOnlyDataset, match="read-only"):
                change(people((1, "Ann", "de")))
        with pytest.raises(ReadOnlyDataset):
            reader.delete(pc.field("id") == 1)
    table.close()
    for use in (table.count, table.scan, lambda: table.append(people())):
        with pytest.raises(ConfigurationError, match="closed"):
            use()


# rows that break the rules


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (pa.table({"id": [1], "name": ["x"]}), "no column 'land'"),
        (people((1, "x", "y")).append_column("more", pa.array([1])), "'more' too many"),
        (people((1, "x", "y")).set_column(0, "id", pa.array([1], pa.int32())), "'id' is int32, not int64"),
        (people((1, "x", "y")).append_column("id", pa.array([1])), "stands twice"),
        (people((1, "x", "y"), (None, "x", "y")), "'id' holds a null"),
        (people((1, "x", "y"), (2, "x", "y"), (1, "z", "y")), "stand twice among the rows"),
        ([{"id": 1}], "Arrow"),
    ],
)
@pytest.mark.parametrize("method", ["append", "overwrite", "upsert"])
def test_rows_that_break_the_schema_change_nothing(root: Path, rows: Any, what: str, method: str) -> None:
    with CayenneTable.create(root, "people", PEOPLE, primary_key=["id"]) as table:
        table.append(people((7, "Ann", "de")))
        before = files_in(root)
        with pytest.raises(ConfigurationError, match=what):
            getattr(table, method)(rows)
        assert rows_of(table) == [(7, "Ann", "de")]
        assert files_in(root) == before


def test_a_bad_row_late_in_a_stream_changes_nothing(root: Path) -> None:
    good = people(*((number, "x", "y") for number in range(5_000))).to_batches()[0]
    bad = people((None, "x", "y")).to_batches()[0]
    with CayenneTable.create(root, "people", PEOPLE) as table:
        with pytest.raises(ConfigurationError, match="null"):
            table.append(pa.RecordBatchReader.from_batches(PEOPLE, iter([good, good, bad])))
        assert table.count() == 0
        assert files_in(root) == set()


@pytest.mark.parametrize("error", [KeyError("mine"), FileNotFoundError(2, "mine"), ValueError("mine")])
@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("partition_by", [[], ["land"]])
def test_an_error_of_the_callers_stream_comes_back_as_it_was(
    root: Path, error: Exception, rows: int, partition_by: list[str]
) -> None:
    def stream() -> Any:
        yield from people(*[(1, "x", "y")] * rows).to_batches()
        raise error

    with CayenneTable.create(root, "people", PEOPLE, partition_by=partition_by) as table:
        with pytest.raises(type(error), match="mine"):
            table.overwrite(pa.RecordBatchReader.from_batches(PEOPLE, stream()))
        assert (table.count(), files_in(root)) == (0, set())


def test_a_disk_that_can_not_be_written_is_a_typed_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with CayenneTable.create(root, "people", PEOPLE) as table:
        table.append(people((1, "x", "y")))
        before = files_in(root)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(CaptureError, match="No space") as refused:
            table.append(people((2, "x", "y")))
        assert "Free disk space" in refused.value.hint
        monkeypatch.undo()
        assert (rows_of(table), files_in(root)) == ([(1, "x", "y")], before)


@pytest.mark.parametrize(
    "type_",
    [
        pa.struct([pa.field("a", pa.int64(), nullable=False)]),
        pa.list_(pa.field("item", pa.int64(), nullable=False)),
        pa.map_(pa.string(), pa.field("value", pa.int64(), nullable=False)),
    ],
)
def test_a_null_within_a_value_is_refused_where_there_may_be_none(root: Path, type_: pa.DataType) -> None:
    """Vortex would make a zero of it, without a word."""
    loose = {
        "struct": pa.array([{"a": None}], pa.struct([("a", pa.int64())])),
        "list": pa.array([[1, None]], pa.list_(pa.int64())),
        "map": pa.array([[("k", None)]], pa.map_(pa.string(), pa.int64())),
    }[str(type_).split("<")[0]]
    bad = pa.Array.from_buffers(
        type_, len(loose), loose.buffers()[: type_.num_buffers], children=_children(loose, type_)
    )
    with CayenneTable.create(root, "nested", pa.schema([("v", type_)])) as table:
        with pytest.raises(ConfigurationError, match=r"v\.\w+.* holds a null"):
            table.append(pa.table([bad], schema=table.schema))
        table.append(pa.table([pa.nulls(1, type_)], schema=table.schema))
        assert table.scan().read_all().to_pylist() == [{"v": None}]


def _children(array: pa.Array, type_: pa.DataType) -> list[pa.Array]:
    if pa.types.is_struct(type_):
        return [array.field(0)]
    if pa.types.is_list(type_):
        return [array.values]
    return [pa.StructArray.from_arrays([array.keys, array.items], fields=[type_.key_field, type_.item_field])]


def test_text_that_is_no_text_is_refused(root: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    with CayenneTable.create(root, "texts", pa.schema([("t", pa.string())])) as table:
        with pytest.raises(ConfigurationError, match="'t'"):
            table.append(pa.table([bad], names=["t"]))
        assert files_in(root) == set()


@pytest.mark.parametrize(
    "type_",
    [
        pa.binary(3),
        pa.duration("us"),
        pa.string_view(),
        pa.binary_view(),
        pa.list_(pa.string_view()),
        pa.float16(),
        pa.struct([("a", pa.list_(pa.decimal256(60, 2)))]),
        pa.list_view(pa.int8()),
        pa.run_end_encoded(pa.int32(), pa.int64()),
        pa.month_day_nano_interval(),
        pa.dense_union([pa.field("a", pa.int64())]),
    ],
)
def test_a_column_that_vortex_can_not_keep_is_refused(root: Path, type_: pa.DataType) -> None:
    with pytest.raises(UnsupportedLiveDatabase, match="'odd'"):
        CayenneTable.create(root, "odd", pa.schema([("id", pa.int64()), ("odd", type_)]))
    with pytest.raises(LiveDatabaseMissing):
        CayenneTable.open(root, "odd")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"primary_key": ["price"]}, "double can not be a primary key"),
        ({"partition_by": ["price"]}, "double can not be a partition"),
        ({"primary_key": ["nothing"]}, "'nothing' is not in the schema"),
        ({"partition_by": ["id", "id"]}, "twice"),
    ],
)
def test_keys_that_can_not_be_keys_are_refused(root: Path, options: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        CayenneTable.create(root, "t", pa.schema([("id", pa.int64()), ("price", pa.float64())]), **options)


def test_tables_without_columns_or_with_one_twice_are_refused(root: Path) -> None:
    for schema in (pa.schema([]), pa.schema([("a", pa.int64()), ("a", pa.int64())])):
        with pytest.raises(UnsupportedLiveDatabase):
            CayenneTable.create(root, "t", schema)


# types


def test_values_of_every_type_come_back_as_they_were(root: Path) -> None:
    day = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)
    columns = {
        "f32": pa.array([1.5, None, -0.0], pa.float32()),
        "f64": pa.array([math.nan, None, -math.inf]),
        "d32": pa.array([Decimal("1.25"), None, Decimal("-9.99")], pa.decimal32(3, 2)),
        "d64": pa.array([Decimal("1.25"), None, Decimal("-9.99")], pa.decimal64(13, 2)),
        "u64": pa.array([2**64 - 1, None, 0], pa.uint64()),
        "text": pa.array(["", None, "ü😀"], pa.large_string()),
        "blob": pa.array([b"", None, b"\0\xff"], pa.large_binary()),
        "bool": pa.array([True, None, False]),
        "date64": pa.array([datetime.date(1, 1, 1), None, datetime.date(9999, 12, 31)], pa.date64()),
        "time": pa.array([datetime.time(1, 2, 3), None, datetime.time(0)], pa.time32("s")),
        "nanos": pa.array([1, None, -1], pa.timestamp("ns")),
        "zone": pa.array([day, None, day], pa.timestamp("us", "Europe/Berlin")),
        "offset": pa.array([day, None, day], pa.timestamp("s", "+02:00")),
        "null": pa.nulls(3),
        "list": pa.array([["a", None], None, []], pa.large_list(pa.large_string())),
        "array": pa.array([[1, 2], None, [3, None]], pa.list_(pa.int16(), 2)),
        "struct": pa.array([{"a": [1]}, None, {"a": None}]),
        "map": pa.array([[("a", 1), ("b", None)], None, []], pa.map_(pa.string(), pa.int64())),
        "dict": pa.array(["x", None, "x"]).dictionary_encode(),
        "uuid": pa.array([b"0" * 16, None, b"1" * 16], pa.uuid()),
    }
    rows = pa.table({"id": pa.array([1, 2, 3]), **columns})
    rows = rows.replace_schema_metadata({"origin": "here"})
    with CayenneTable.create(root, "types", rows.schema, primary_key=["id"], partition_by=["bool"]) as table:
        table.append(rows)
        table.delete(pc.field("id") == 99)
        found = table.scan().read_all().sort_by("id")
        assert found.schema == table.schema
        assert table.scan().schema.metadata == {b"origin": b"here"}
        assert repr(found.to_pylist()) == repr(rows.to_pylist())
        only = table.scan(filter=pc.field("id") == 3).read_all()
        assert repr(only.to_pylist()) == repr(rows.slice(2).to_pylist())


# changes


def test_an_arrow_stream_of_another_library_is_taken(root: Path) -> None:
    stream = duckdb.sql("select range as id, 'n' || range as name, null::varchar as land from range(5)")
    with CayenneTable.create(root, "people", PEOPLE) as table:
        assert table.append(stream) == 5
        assert table.append(people((9, "x", "y")).to_batches()[0]) == 1
        assert table.count() == 6


def test_overwriting_a_table_with_its_own_rows_keeps_them(root: Path) -> None:
    rows = people(*((number, "x", "abc"[number % 3]) for number in range(1_000)))
    for name, partition_by in (("plain", []), ("parted", ["land"])):
        with CayenneTable.create(root, name, PEOPLE, partition_by=partition_by) as table:
            table.append(rows)
            assert table.overwrite(table.scan(filter=pc.field("id") < 100)) == 100
            assert rows_of(table) == rows_of_table(rows.slice(0, 100))


def rows_of_table(rows: pa.Table) -> list[tuple[Any, ...]]:
    return sorted(tuple(row.values()) for row in rows.to_pylist())


def test_other_columns_come_by_overwrite_and_only_on_purpose(root: Path) -> None:
    wide = people((1, "Ann", "de")).append_column("age", pa.array([7]))
    with CayenneTable.create(root, "people", PEOPLE, primary_key=["id"], partition_by=["land"]) as table:
        with pytest.raises(ConfigurationError, match="age"):
            table.overwrite(wide)
        assert table.overwrite(wide, allow_schema_change=True) == 1
        assert table.schema.names == ["id", "name", "land", "age"]
        assert (table.primary_key, table.partition_by) == (("id",), ("land",))
        with pytest.raises(ConfigurationError, match="'land' is not in the schema"):
            table.overwrite(wide.drop(["land"]), allow_schema_change=True)
        assert table.scan().read_all().to_pylist() == wide.to_pylist()


def test_appending_a_primary_key_that_is_there_is_refused(root: Path) -> None:
    with CayenneTable.create(root, "people", PEOPLE, primary_key=["id"], partition_by=["land"]) as table:
        table.append(people((1, "Ann", "de"), (2, "Bob", "fr")))
        before = files_in(root)
        with pytest.raises(ConfigurationError, match="already"):
            table.append(people((3, "Cid", "it"), (2, "Bob", "it")))
        assert files_in(root) == before
        table.delete(pc.field("id") == 2)
        assert table.append(people((2, "Bob", "it"))) == 1
        assert rows_of(table) == [(1, "Ann", "de"), (2, "Bob", "it")]


def test_upsert_needs_a_primary_key(root: Path) -> None:
    with CayenneTable.create(root, "people", PEOPLE) as table, pytest.raises(ConfigurationError, match="primary key"):
        table.upsert(people((1, "Ann", "de")))


def test_an_upsert_moves_a_row_to_another_partition(root: Path) -> None:
    with CayenneTable.create(root, "people", PEOPLE, primary_key=["id"], partition_by=["land"]) as table:
        table.append(people((1, "Ann", "de"), (2, "Bob", "de")))
        assert table.upsert(people((1, "Ann", "fr"), (3, "Cid", "de"))) == 2
        assert rows_of(table) == [(1, "Ann", "fr"), (2, "Bob", "de"), (3, "Cid", "de")]


@pytest.mark.parametrize(
    "type_",
    [
        *(pa.int8(), pa.uint64(), pa.string(), pa.large_string(), pa.binary(), pa.bool_(), pa.date32(), pa.date64()),
        *(pa.time64("us"), pa.time32("s"), pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.decimal128(21, 2)),
    ],
)
def test_any_type_of_key_tells_rows_apart(root: Path, type_: pa.DataType) -> None:
    keys = pa.array([0, 1, 1], pa.int64()) if not pa.types.is_binary(type_) else pa.array(["0", "1", "1"])
    if pa.types.is_date64(type_):
        keys = pc.multiply(keys, 86_400_000)
    keys = (keys.cast(pa.int32()) if pa.types.is_date32(type_) or pa.types.is_time32(type_) else keys).cast(type_)
    schema = pa.schema([("key", type_), ("part", pa.int8()), ("value", pa.int64())])
    with CayenneTable.create(root, "keys", schema, primary_key=["key", "part"]) as table:
        table.append(pa.table([keys, pa.array([1, 1, 2], pa.int8()), pa.array([10, 11, 12])], schema=table.schema))
        table.upsert(pa.table([keys[1:2], pa.array([1], pa.int8()), pa.array([99])], schema=table.schema))
        assert sorted(table.scan(["value"]).read_all()["value"].to_pylist()) == [10, 12, 99]


def test_a_file_without_rows_left_and_replaced_files_are_removed(root: Path) -> None:
    with CayenneTable.create(root, "people", PEOPLE) as table:
        table.append(people((1, "x", "y"), (2, "x", "y")))
        table.append(people((3, "x", "y")))
        assert len(files_in(root)) == 2
        assert table.delete(pc.field("id") == 1) == 1
        assert len(files_in(root)) == 3
        assert table.delete(pc.field("id") == 1) == 0
        first = files_in(root)
        assert table.delete(pc.field("id") <= 3) == 2
        assert (table.count(), files_in(root) & first) == (0, set())
        table.append(people((4, "x", "y")))
        table.overwrite(people())
        assert (rows_of(table), files_in(root)) == ([], set())


def test_a_predicate_keeps_rows_for_which_it_is_null(root: Path) -> None:
    with CayenneTable.create(root, "people", PEOPLE) as table:
        table.append(people((1, None, "y"), (2, "x", "y")))
        assert table.delete(pc.field("name") != "z") == 1
        assert rows_of(table) == [(1, None, "y")]
        assert table.delete(pc.scalar(True)) == 1


def test_a_filter_that_does_not_fit_is_refused(root: Path) -> None:
    with CayenneTable.create(root, "people", PEOPLE) as table:
        table.append(people((1, "x", "y")))
        for wrong in (pc.field("nothing") == 1, pc.field("id") + 1, pc.field("id") == "text", "id = 1"):
            with pytest.raises(ConfigurationError):
                table.scan(filter=wrong)
            with pytest.raises(ConfigurationError):
                table.delete(wrong)
        with pytest.raises(ConfigurationError, match="nothing"):
            table.scan(["id", "nothing"])
        assert table.count() == 1


def test_columns_come_in_the_order_that_was_asked_for(root: Path) -> None:
    with CayenneTable.create(root, "people", PEOPLE) as table:
        table.append(people((1, "x", "y"), (2, "x", "z")))
        found = table.scan(["land", "id"], filter=pc.field("name") == "x").read_all()
        assert found.to_pydict() == {"land": ["y", "z"], "id": [1, 2]}
        assert table.scan([]).read_all().num_rows == 2
        assert table.scan([], filter=pc.field("id") == 2).read_all().num_rows == 1


# damage


def test_a_damaged_file_is_an_error_and_not_the_end_of_the_process(root: Path) -> None:
    rows = people(*((number, f"name {number % 977}", "land") for number in range(20_000)))
    with CayenneTable.create(root, "people", PEOPLE) as table:
        table.append(rows)
        (path,) = (root / "data").rglob("*.vortex")
        content = path.read_bytes()
        refused = 0
        for position in range(8, len(content), len(content) // 40):
            damaged = bytearray(content)
            damaged[position] ^= 0xFF
            path.write_bytes(damaged)
            try:
                table.scan().read_all()
            except CorruptCapture:
                refused += 1
        assert refused
        for broken in (content[:1_000], b"", b"name,price\n" * 1_000):
            path.write_bytes(broken)
            with pytest.raises(CorruptCapture, match="vortex"):
                table.scan().read_all()
        path.unlink()
        with pytest.raises(CorruptCapture, match="vortex"):
            table.scan().read_all()


def test_a_damaged_delete_file_is_an_error(root: Path) -> None:
    with CayenneTable.create(root, "people", PEOPLE) as table:
        table.append(people(*((number, "x", "y") for number in range(100))))
        table.delete(pc.field("id") < 50)
        (path,) = (root / "data").rglob("*.arrow")
        content = path.read_bytes()
        for position in range(0, len(content), 7):
            damaged = bytearray(content)
            damaged[position] ^= 0x01
            path.write_bytes(damaged)
            try:
                assert table.scan().read_all().num_rows == 50
            except CorruptCapture:
                continue
        positions = content.index((49).to_bytes(8, "little"))
        path.write_bytes(content[:positions] + (50).to_bytes(8, "little") + content[positions + 8 :])
        with pytest.raises(CorruptCapture):
            table.scan().read_all()


# a plain model

Row = tuple[int, str | None, str | None]
_LANDS = st.sampled_from([None, "de", "fr", "a b/..", ""])
_ROWS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from([None, "x", "y"]), _LANDS), max_size=8)
_PREDICATES: list[tuple[pc.Expression, Callable[[Row], bool]]] = [
    (pc.field("id") < 5, lambda row: row[0] < 5),
    (pc.field("land") == "de", lambda row: row[2] == "de"),
    (pc.field("land").is_null() & (pc.field("id") > 3), lambda row: row[2] is None and row[0] > 3),
    (pc.field("name").is_valid(), lambda row: row[1] is not None),
    (~(pc.field("name") == "x"), lambda row: row[1] not in {None, "x"}),
    (pc.field("land").isin(["fr", ""]) | (pc.field("id") == 7), lambda row: row[2] in {"fr", ""} or row[0] == 7),
]
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["append", "upsert", "overwrite"]), _ROWS),
        st.tuples(st.just("delete"), st.integers(0, len(_PREDICATES) - 1)),
    ),
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(steps=_STEPS, partition_by=st.sampled_from([[], ["land"], ["land", "name"]]))
def test_any_changes_leave_what_a_plain_model_has(steps: list[tuple[str, Any]], partition_by: list[str]) -> None:
    model: dict[int, Row] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        CayenneTable.create(folder, "people", PEOPLE, primary_key=["id"], partition_by=partition_by) as table,
    ):
        for method, argument in steps:
            if method == "delete":
                predicate, matches = _PREDICATES[argument]
                gone = [key for key, row in model.items() if matches(row)]
                assert table.delete(predicate) == len(gone)
                for key in gone:
                    del model[key]
                continue
            keys = [row[0] for row in argument]
            new = {row[0]: row for row in argument}
            legal = len(new) == len(keys) and (method != "append" or not new.keys() & model.keys())
            try:
                getattr(table, method)(people(*argument))
                assert legal
            except SnapshotAssetsError:
                assert not legal
                continue
            model = new if method == "overwrite" else model | new
        assert rows_of_table(table.scan().read_all()) == sorted(model.values())
        assert table.count() == len(model)
        for predicate, matches in _PREDICATES:
            found = table.scan(filter=predicate).read_all()
            assert sorted(found["id"].to_pylist()) == sorted(row[0] for row in model.values() if matches(row))
