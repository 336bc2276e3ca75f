"""The slice document: its form, written and read, and what is refused whatever its bytes are."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from snapshot_assets.engines.cayenne import slice_document
from snapshot_assets.engines.cayenne.metastore import TABLES
from snapshot_assets.engines.cayenne.slice_document import CLEARED_BY_VERSION_1, lowest_version, slice_bytes
from snapshot_assets.engines.cayenne.slice_rules import parse_slice
from snapshot_assets.errors import (
    DocumentDamaged,
    EngineMismatch,
    PathOutsideAnchor,
    SnapshotAssetsError,
    UnsupportedFormatVersion,
)
from tests.engines.cayenne.slices import BY_NAME, FIXTURES, Document, cell, changed, document

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("version", [1, 2])
def test_a_slice_that_was_read_is_written_as_it_was(version: int) -> None:
    content = document(version)
    again = parse_slice(json.dumps(content).encode()).to_json()
    assert again == content
    assert [*again] == ["format_version", "engine", "dataset_name", "exported_at_ms", "tables"]
    assert [*again["tables"]] == sorted(BY_NAME), "the tables stand in the order of their names, also the empty ones"


def test_a_slice_is_compact_utf8() -> None:
    data = slice_bytes(document(1))
    assert "größe".encode() in data
    assert b": " not in data.replace(b"\\", b"")
    assert parse_slice(data) == parse_slice((FIXTURES / "version_1.slice.json").read_bytes())


def test_the_fixtures_have_every_kind_of_value() -> None:
    tags = {one["t"] for row in document(1)["tables"].values() for values in row for one in values}
    assert tags == {"i", "s", "b", "x", "n"}


values = st.none() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary() | st.booleans()


@QUICK
@given(st.lists(st.tuples(st.binary(min_size=1), values), unique_by=lambda row: row[0], max_size=5))
def test_values_of_every_kind_come_back_as_they_were(rows: list[tuple[bytes, Any]]) -> None:
    content = document(1)
    owner = content["tables"]["cayenne_insert_record"][0][0]
    content["tables"]["cayenne_insert_record"] = [[owner, cell(pk), cell(value)] for pk, value in rows]
    parsed = parse_slice(slice_bytes(content))
    assert sorted(row[1:] for row in parsed.tables["cayenne_insert_record"]) == sorted(
        rows, key=lambda row: (row[0], repr(row[1]))
    )
    assert parse_slice(slice_bytes(parsed.to_json())) == parsed


def test_the_order_of_rows_does_not_matter() -> None:
    content = document(2)
    shuffled = copy.deepcopy(content)
    for rows in shuffled["tables"].values():
        rows.reverse()
    assert shuffled != content
    assert parse_slice(shuffled).to_json() == content


def test_a_slice_of_the_first_generation_is_read() -> None:
    content = document(1)
    expected = changed(content, "cayenne_table_statistics", 0, "num_rows_exact", None)
    expected["tables"]["cayenne_snapshot_file"] = []
    content["tables"]["cayenne_table_statistics"][0].pop()
    del content["tables"]["cayenne_snapshot_file"], content["tables"]["cayenne_pending_write_back"]
    assert parse_slice(content).to_json() == expected


def test_what_a_later_version_added_is_left_out() -> None:
    content = document(1)
    content["tables"]["cayenne_index_run"] = [["anything"]]
    content["tables"]["cayenne_cold_tier_file"] = []
    content["written_by"] = "somebody"
    assert parse_slice(content).to_json() == document(1)


def test_files_of_a_cold_tier_are_refused_since_no_snapshot_has_them() -> None:
    content = document(1)
    content["tables"]["cayenne_cold_tier_file"] = [[cell("t"), cell("s3://bucket/file")]]
    with pytest.raises(PathOutsideAnchor, match="cold tier"):
        parse_slice(content)


@pytest.mark.parametrize("version", [-1, 0, 3, 10**30])
def test_another_version_is_refused_with_the_range_and_what_to_do(version: int) -> None:
    content = {"format_version": version, "engine": "another", "anything": "else"}
    with pytest.raises(UnsupportedFormatVersion, match=f"version {version}; .* versions 1 to 2") as refusal:
        parse_slice(content)
    assert "Upgrade snapshot-assets" in refusal.value.hint


def test_another_engine_is_refused_before_its_tables_are_looked_at() -> None:
    with pytest.raises(EngineMismatch, match="'duckdb'"):
        parse_slice({"format_version": 1, "engine": "duckdb"})


def test_a_slice_declares_the_lowest_version_that_expresses_it() -> None:
    plain, partitioned = document(1), document(2)
    assert lowest_version(parse_slice(plain)) == 1
    assert lowest_version(parse_slice({**plain, "format_version": 2})) == 1, "a higher label is no harm"
    assert parse_slice({**plain, "format_version": 2}).to_json()["format_version"] == 1
    partitioned["tables"]["cayenne_pending_write_back"] = []
    assert lowest_version(parse_slice(partitioned)) == 2, "child tables"
    owner = plain["tables"]["cayenne_insert_record"][0][0]
    plain["tables"]["cayenne_pending_write_back"] = [[owner, cell(b"\1"), cell(1), cell(1)]]
    plain["format_version"] = 2
    assert lowest_version(parse_slice(plain)) == 2, "pending write-backs"


@pytest.mark.parametrize("without", ["children", "write-backs"])
def test_rows_that_an_importer_of_version_1_could_not_clear_are_refused_under_version_1(without: str) -> None:
    content = document(2) | {"format_version": 1}
    if without == "children":
        parent = content["tables"]["cayenne_table"][0]
        content["tables"] = {name: [] for name in content["tables"]} | {
            "cayenne_table": [parent],
            "cayenne_pending_write_back": [content["tables"]["cayenne_pending_write_back"][2]],
        }
    else:
        content["tables"]["cayenne_pending_write_back"] = []
    with pytest.raises(DocumentDamaged, match="says version 1 and holds rows that only version 2"):
        parse_slice(content)
    parse_slice(content | {"format_version": 2})


def test_the_table_that_an_importer_of_version_1_clears_is_blob_keyed() -> None:
    assert BY_NAME[CLEARED_BY_VERSION_1].blob_keyed


def _without(key: str) -> Callable[[Document], object]:
    return lambda content: content.pop(key)


def _with(key: str, value: Any) -> Callable[[Document], object]:
    return lambda content: content.update({key: value})


def _table(name: str, rows: Any) -> Callable[[Document], object]:
    return lambda content: content["tables"].update({name: rows})


def _cell(value: Any) -> Callable[[Document], object]:
    return lambda content: content["tables"]["cayenne_table"][0].__setitem__(4, value)


DAMAGE: dict[str, Callable[[Document], object]] = {
    **{f"no {key}": _without(key) for key in ("format_version", "engine", "dataset_name", "exported_at_ms", "tables")},
    **{f"no {table.name}": _table(table.name, None) for table in TABLES},
    "a table of the first generation left out": lambda content: content["tables"].pop("cayenne_delete_file"),
    "a version that is text": _with("format_version", "1"),
    "a version that is a truth": _with("format_version", True),
    "a version with a fraction": _with("format_version", 1.0),
    "a name that is a number": _with("dataset_name", 5),
    "half a surrogate pair in the name": _with("dataset_name", "\ud800"),
    "a time before all times": _with("exported_at_ms", -1),
    "tables in a list": _with("tables", []),
    "rows in an object": _table("cayenne_pk_index", {}),
    "a row that is an object": _table("cayenne_pk_index", [{}]),
    "a row that is too short": _table("cayenne_pk_index", [[cell("t"), cell("s")]]),
    "a row that is too long": _table("cayenne_pk_index", [[cell("t"), cell("s"), cell(b""), cell(None)]]),
    "an empty row": _table("cayenne_pk_index", [[]]),
    "a bare value": _cell("text"),
    "a value in a list": _cell(["s", "text"]),
    "a value without a kind": _cell({"v": "text"}),
    "a kind without a value": _cell({"t": "s"}),
    "a null with a value": _cell({"t": "n", "v": 0}),
    "an unknown kind": _cell({"t": "f", "v": 0.5}),
    "a kind that is no text": _cell({"t": ["i"], "v": 0}),
    "more than a value": _cell({"t": "i", "v": 0, "w": 0}),
    "a number with a fraction": _cell({"t": "i", "v": 1.0}),
    "a number that is a truth": _cell({"t": "i", "v": True}),
    "a truth that is a number": _cell({"t": "b", "v": 1}),
    "a number over 64 bits": _cell({"t": "i", "v": 2**63}),
    "a number under 64 bits": _cell({"t": "i", "v": -(2**63) - 1}),
    "a text that is a number": _cell({"t": "s", "v": 1}),
    "half a surrogate pair": _cell({"t": "s", "v": "a\udfffb"}),
    "bytes that are no base64": _cell({"t": "x", "v": "a b="}),
    "bytes with a line end among them": _cell({"t": "x", "v": "Y\nQ=="}),
    "bytes without their padding": _cell({"t": "x", "v": "YQ"}),
    "bytes in the other base64": _cell({"t": "x", "v": "_-8="}),
    "bytes that are not even ASCII": _cell({"t": "x", "v": "ä"}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_malformed_slice_is_refused(damage: Callable[[Document], object]) -> None:
    content = document(1)
    damage(content)
    with pytest.raises(DocumentDamaged):
        parse_slice(content)
    with pytest.raises(DocumentDamaged):
        parse_slice(json.dumps(content).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"format_version": 1',
        b'{"format_version": NaN}',
        b'{"format_version": 1, "engine": "cayenne", "dataset_name": "a", "exported_at_ms": Infinity}',
        b'{"format_version": 1, "format_version": 1}',
        b'{"format_version": ' + b"9" * 10_000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda data: data[:20].decode(errors="replace"),
)
def test_bytes_that_are_no_slice_are_refused(data: bytes) -> None:
    with pytest.raises(DocumentDamaged):
        parse_slice(data)


def test_what_is_no_number_of_json_is_refused_also_where_nobody_reads_it() -> None:
    data = slice_bytes(document(1) | {"more": 0})
    parse_slice(data)
    with pytest.raises(DocumentDamaged, match="NaN"):
        parse_slice(data.replace(b'"more":0', b'"more":NaN'))


def test_a_key_that_stands_twice_is_refused_at_any_depth() -> None:
    data = slice_bytes(document(1)).replace(b'{"t":"n"}', b'{"t":"n","t":"n"}', 1)
    with pytest.raises(DocumentDamaged, match="a key twice"):
        parse_slice(data)


@pytest.mark.parametrize("content", [{"a": {1, 2}}, {"a": float("nan")}, {"a": b"x"}, {("a",): 1}, {"a": "\ud800"}])
def test_what_json_has_no_form_for_is_refused(content: Any) -> None:
    with pytest.raises(DocumentDamaged):
        parse_slice(content)


def test_an_object_that_holds_itself_is_refused() -> None:
    content: Document = {}
    content["a"] = content
    with pytest.raises(DocumentDamaged):
        parse_slice(content)


def test_size_and_rows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = document(1)
    size, rows = len(slice_bytes(content)), sum(map(len, content["tables"].values()))
    monkeypatch.setattr(slice_document, "MAX_SLICE_BYTES", size)
    monkeypatch.setattr(slice_document, "MAX_ROWS", rows)
    parse_slice(content)
    monkeypatch.setattr(slice_document, "MAX_ROWS", rows - 1)
    with pytest.raises(DocumentDamaged, match=f"more than {rows - 1} rows"):
        parse_slice(content)
    monkeypatch.setattr(slice_document, "MAX_SLICE_BYTES", size - 1)
    for refused in (slice_bytes, lambda content: parse_slice(slice_bytes(content))):
        with pytest.raises(DocumentDamaged, match=f"{size:,} bytes"):
            refused(content)
    with pytest.raises(DocumentDamaged, match="the limit is"):
        parse_slice(b" " * size)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["t", "v", "i"])
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)
cells = st.builds(cell, values) | st.fixed_dictionaries({"t": st.sampled_from("isbxnf"), "v": scalars}) | anything


@QUICK
@given(st.data())
def test_a_hostile_slice_is_read_or_refused_with_a_typed_error(data: st.DataObject) -> None:
    content = document(data.draw(st.sampled_from([1, 2])))
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(BY_NAME)))
        rows = content["tables"][name]
        match data.draw(st.sampled_from(["table", "row", "cell", "key"])):
            case "table":
                content["tables"][name] = data.draw(anything)
            case "row" if isinstance(rows, list):
                rows.append(data.draw(st.lists(cells, max_size=12)))
            case "cell" if isinstance(rows, list) and rows and isinstance(rows[0], list) and rows[0]:
                rows[0][data.draw(st.integers(0, len(rows[0]) - 1))] = data.draw(cells)
            case _:
                content[data.draw(st.sampled_from(sorted(content)))] = data.draw(anything)
                if not isinstance(content["tables"], dict):
                    break
                content["tables"] = {one: [] for one in BY_NAME} | content["tables"]
    try:
        parsed = parse_slice(json.dumps(content).encode())
    except SnapshotAssetsError:
        return
    assert parse_slice(slice_bytes(parsed.to_json())) == parsed


@QUICK
@given(st.binary(max_size=200))
@example(b"1e999")
@example('"größe"'.encode("latin-1"))
def test_any_bytes_are_read_or_refused_with_a_typed_error(data: bytes) -> None:
    with pytest.raises((DocumentDamaged, UnsupportedFormatVersion)):
        parse_slice(data)


@QUICK
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=3))
def test_a_slice_with_other_bytes_is_read_or_refused_with_a_typed_error(at: int, other: bytes) -> None:
    data = slice_bytes(document(2))
    at %= len(data)
    try:
        parse_slice(data[:at] + other + data[at + len(other) :])
    except SnapshotAssetsError:
        return
