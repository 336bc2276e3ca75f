"""What is pushed into Vortex, what is left out, and that the answer is Arrow's."""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import vortex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snapshot_assets.engines.arrow_sql import ArrowSQL
from snapshot_assets.engines.cayenne import CayenneTable, data_files
from snapshot_assets.engines.cayenne.predicates import columns_read, vortex_filter
from snapshot_assets.engines.cayenne.scan import CayenneScan

ROWS = 200_000


class Asked:
    """What Vortex was asked for, and how many rows it gave."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.columns: list[list[str]] = []
        self.filters = 0
        self.rows = 0

    def open(self, path: str) -> Any:
        self.files.append(path)
        return _Watched(self, _OPEN(path))


_OPEN = vortex.open


class _Watched:
    def __init__(self, asked: Asked, file: Any) -> None:
        self._asked, self._file = asked, file

    def __len__(self) -> int:
        return len(self._file)

    def scan(self, columns: list[str], *, expr: Any, indices: Any) -> Iterator[Any]:
        self._asked.columns.append(columns)
        self._asked.filters += expr is not None
        for array in self._file.scan(columns, expr=expr, indices=indices):
            self._asked.rows += len(array)
            yield array


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    watched = Asked()
    monkeypatch.setattr(vortex, "open", watched.open)
    return watched


@pytest.fixture
def table(root: Path) -> Iterator[CayenneTable]:
    rows = pa.table(
        {
            "id": pa.array(range(ROWS), pa.int64()),
            "text": pa.array([f"text {number % 100}" for number in range(ROWS)]),
            "price": pa.array([float(number) for number in range(ROWS)]),
        }
    )
    with CayenneTable.create(root, "t", rows.schema) as table:
        table.append(rows)
        yield table


def test_only_the_columns_that_are_needed_are_read(table: CayenneTable, asked: Asked) -> None:
    assert table.scan(["text"]).read_all().num_rows == ROWS
    assert table.scan(["text"], filter=pc.field("id") < 3).read_all().num_rows == 3
    assert table.scan([]).read_all().num_rows == ROWS
    assert asked.columns == [["text"], ["id", "text"], []]


def test_rows_are_left_out_by_vortex(table: CayenneTable, asked: Asked) -> None:
    assert table.scan(filter=(pc.field("id") >= 150_000) & (pc.field("text") == "text 7")).read_all().num_rows == 500
    assert (asked.filters, asked.rows) == (1, 500)


def test_what_vortex_can_not_compute_is_left_to_arrow_and_the_rest_is_pushed(table: CayenneTable, asked: Asked) -> None:
    found = table.scan(filter=(pc.field("id") < 1_000) & (pc.field("price") >= 10.0)).read_all()
    assert (found.num_rows, asked.filters, asked.rows) == (990, 1, 1_000)
    assert table.scan(filter=pc.starts_with(pc.field("text"), "text 99")).read_all().num_rows == ROWS // 100
    assert asked.filters == 1


def test_deleted_rows_are_not_even_read_and_filters_still_pushed(table: CayenneTable, asked: Asked) -> None:
    table.delete(pc.field("text") == "text 7")
    asked.rows = 0
    assert table.scan(["id"]).read_all().num_rows == asked.rows == ROWS - ROWS // 100
    asked.rows = 0
    assert table.scan(["id"], filter=pc.field("id") < 1_000).read_all().num_rows == asked.rows == 990


def test_partitions_that_can_not_match_are_not_opened(root: Path, asked: Asked) -> None:
    schema = pa.schema([("id", pa.int64()), ("land", pa.string()), ("year", pa.int32())])
    rows = [(n, land, year) for n, (land, year) in enumerate([("de", 1), ("de", 2), ("fr", 1), (None, 1)])]
    with CayenneTable.create(root, "parted", schema, partition_by=["land", "year"]) as table:
        table.append(pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema))
        for row_filter, ids, opened in (
            (pc.field("land") == "de", [0, 1], 2),
            ((pc.field("land") == "de") & (pc.field("year") > 1), [1], 1),
            (pc.field("land").is_null(), [3], 1),
            (pc.field("land").isin(["fr", "it"]) & (pc.field("id") < 100), [2], 1),
            (pc.field("land") == "it", [], 0),
            (pc.field("id") == 3, [3], 4),
        ):
            asked.files.clear()
            found = table.scan(["id"], filter=row_filter).read_all()["id"].to_pylist()
            assert (sorted(found), len(asked.files)) == (ids, opened)
        asked.files.clear()
        assert table.delete(pc.field("land") == "fr") == 1
        assert len(asked.files) == 1


def test_sql_pushes_down_what_it_asks_for(table: CayenneTable, asked: Asked) -> None:
    state = table._load()
    assert state is not None
    sql = ArrowSQL("t", {"t": CayenneScan(state)})
    assert sql.rows("select sum(id) from t where id < 10 and text in ('text 3', 'text 4')") == [(7,)]
    assert (asked.columns, asked.rows) == ([["id", "text"]], 2)
    assert sql.rows("select count(*) from t where price > 199997") == [(2,)]
    sql.close()


def test_a_name_within_a_name_or_a_value_is_read_once_too_often_at_most() -> None:
    schema = pa.schema([("id", pa.int64()), ("order id", pa.int64()), ("note", pa.string()), ('"q"', pa.int64())])
    assert columns_read(pc.field("order id") == 1, schema)[-1] == "order id"
    assert columns_read((pc.field("id") == 1) & (pc.field('"q"') == 1), schema) == ["id", '"q"']
    assert "id" in columns_read(pc.field("note") == "id", schema)


@pytest.mark.parametrize(
    ("type_", "value", "literal"),
    [
        (pa.uuid(), uuid.UUID(int=5).bytes, f"'{uuid.UUID(int=5)}'"),
        (pa.dictionary(pa.int32(), pa.string()), "a", "'a'"),
        (pa.large_string(), "a", "'a'"),
        (pa.large_binary(), b"a", "'a'::blob"),
        (pa.uint8(), 1, "1"),
        (pa.decimal32(5, 2), Decimal("1.00"), "1.00"),
        (pa.date64(), datetime.date(2020, 1, 1), "'2020-01-01'"),
        (pa.time32("s"), datetime.time(0, 0, 1), "'00:00:01'"),
        (pa.timestamp("ns", "UTC"), 1, "'1970-01-01 00:00:00.000000001+00'"),
        (pa.timestamp("s", "Europe/Berlin"), 0, "'1970-01-01 00:00:00+00'"),
        (pa.list_(pa.int64()), [1], "[1]"),
    ],
)
def test_columns_of_types_that_duckdb_has_not_are_found_by_sql(
    root: Path, type_: pa.DataType, value: Any, literal: str
) -> None:
    with CayenneTable.create(root, "t", pa.schema([("id", pa.int64()), ("c", type_)])) as table:
        table.append(pa.table([pa.array([1, 2]), pa.array([value, None], type_)], schema=table.schema))
        state = table._load()
        assert state is not None
        sql = ArrowSQL("t", {"t": CayenneScan(state)})
        for condition in (f"c = {literal}", f"c in ({literal}, {literal})", f"c >= {literal} and id < 9"):
            assert sql.rows(f"select id from t where {condition}") == [(1,)]
        assert sql.rows("select id from t where c is null") == [(2,)]
        sql.close()


FLOATS = [0.0, -0.0, 1.0, -1.0, math.nan, -math.nan, math.inf, -math.inf, None]
SAMPLE = pa.table(
    {
        "i": pa.array([0, 1, -1, 2**62, None, 5, 6, 7, 8], pa.int64()),
        "small": pa.array([0, 1, 255, 3, None, 5, 6, 7, 8], pa.uint8()),
        "f": pa.array(FLOATS),
        "g": pa.array(FLOATS[::-1]),
        "s": pa.array(["", "a", "b", None, "ab", "A", "ä", "z", "\0"]),
        "flag": pa.array([True, False, None] * 3),
    }
)
_LEAVES = st.one_of(
    st.builds(
        lambda name, op, value: getattr(pc.field(name), op)(pa.scalar(value, SAMPLE.schema.field(name).type)),
        st.sampled_from(["i", "small"]),
        st.sampled_from(["__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"]),
        st.integers(0, 8),
    ),
    st.builds(
        lambda op, value: getattr(pc.field("f"), op)(value),
        st.sampled_from(["__eq__", "__ne__", "__lt__", "__gt__"]),
        st.sampled_from([0.0, -0.0, 1.0, math.nan]),
    ),
    st.builds(lambda value: pc.field("s") >= value, st.sampled_from(["", "a", "ä"])),
    st.builds(
        lambda values: pc.field("s").isin(pa.array(values, pa.string())),
        st.lists(st.sampled_from(["a", "z", None]), max_size=3),
    ),
    st.builds(lambda values: pc.field("i").isin(pa.array(values, pa.int64())), st.lists(st.integers(0, 8), max_size=3)),
    st.builds(lambda name: pc.field(name).is_null(), st.sampled_from(SAMPLE.schema.names)),
    st.just(pc.field("flag")),
    st.sampled_from([pc.field("i") < pc.field("small"), pc.field("f") < pc.field("g"), pc.field("f") == pc.field("g")]),
)
_FILTERS = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
        st.builds(lambda a, b: pc.if_else(a, b, pa.scalar(None, pa.bool_())), inner, inner),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def sample_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "sample.vortex"
    vortex.io.write(SAMPLE, str(path))
    return path


@settings(max_examples=150, deadline=None)
@given(row_filter=_FILTERS)
@example(row_filter=~(pc.field("f") == pc.field("g")))
@example(row_filter=pc.field("f") != pc.field("g"))
def test_vortex_never_drops_a_row_that_arrow_keeps(sample_file: Path, row_filter: pc.Expression) -> None:
    pushed = vortex_filter(row_filter, SAMPLE.schema)
    batches = data_files.read_batches(sample_file, SAMPLE.schema, row_filter=pushed)
    found = pa.Table.from_batches(batches, schema=SAMPLE.schema).filter(row_filter)
    assert repr(found.to_pylist()) == repr(SAMPLE.filter(row_filter).to_pylist())


def test_usual_filters_are_pushed() -> None:
    for row_filter in (
        pc.field("i") == 5,
        (pc.field("i") > 5) & (pc.field("s") != "x"),
        pc.field("s").isin(["a", "b"]),
        ~pc.field("s").is_null() | (pc.field("i") <= 3),
        pc.field("flag"),
        pc.if_else(pc.field("s").is_valid(), pc.field("s").isin(["a"]), pa.scalar(None, pa.bool_())),
        (pc.field("f") > 1.0) & (pc.field("i") == 1),
    ):
        assert vortex_filter(row_filter, SAMPLE.schema) is not None, row_filter
    for row_filter in (pc.field("f") > 1.0, ~(pc.field("f") < 0.0), pc.is_nan(pc.field("f")), pc.field("i") + 1 > 3):
        assert vortex_filter(row_filter, SAMPLE.schema) is None, row_filter
