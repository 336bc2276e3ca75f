"""What a slice may say: it is whole, speaks of one dataset, and every path in it is safe and portable."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from snapshot_assets.engines.cayenne.metastore import TABLES, child_table_name
from snapshot_assets.engines.cayenne.slice_rules import parse_slice, slice_files
from snapshot_assets.errors import DocumentDamaged, PathOutsideAnchor
from tests.engines.cayenne.slices import BY_NAME, Document, cell, changed, document

PATHS = [
    (1, "cayenne_table", "path"),
    (1, "cayenne_delete_file", "path"),
    (2, "cayenne_partition", "path"),
    (1, "cayenne_snapshot_file", "file_path"),
    (1, "cayenne_snapshot_file_statistics", "file_path"),
    (1, "cayenne_delete_file", "source_data_file_path"),
]
UNSAFE = [
    "/etc/passwd",
    "../other",
    "a/../../other",
    "a/..",
    "..",
    ".",
    "./a",
    "",
    "a//b",
    "a/",
    "a\\b",
    "C:/a",
    "a\0b",
    "a" * 256,
    "a/" * 600 + "a",
]


@pytest.mark.parametrize("path", UNSAFE, ids=lambda path: path[:12])
@pytest.mark.parametrize(("version", "table", "column"), PATHS)
def test_a_path_that_could_leave_its_folder_is_refused(version: int, table: str, column: str, path: str) -> None:
    with pytest.raises(PathOutsideAnchor):
        parse_slice(changed(document(version), table, 0, column, path))


@pytest.mark.parametrize("value", [None, 1, b"a", True])
@pytest.mark.parametrize(("version", "table", "column"), PATHS)
def test_a_path_that_is_no_text_is_refused(version: int, table: str, column: str, value: Any) -> None:
    content = changed(document(version), table, 0, column, value)
    if column == "source_data_file_path" and value is None:
        assert parse_slice(content).to_json() == content, "a delete file need not belong to one data file"
        return
    with pytest.raises(DocumentDamaged):
        parse_slice(content)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("cayenne_table", "table_id"),
        ("cayenne_table", "current_snapshot_id"),
        ("cayenne_snapshot_sequence", "snapshot_id"),
        ("cayenne_snapshot_file", "snapshot_id"),
        ("cayenne_pk_index", "snapshot_id"),
    ],
)
@pytest.mark.parametrize("name", ["../s", "/s", "a/b", ".."])
def test_ids_that_name_folders_are_plain_names(table: str, column: str, name: str) -> None:
    with pytest.raises(PathOutsideAnchor):
        parse_slice(changed(document(1), table, 0, column, name))


@pytest.mark.parametrize("flag", [0, 1, False, None])
def test_a_safe_path_is_relative_whatever_its_flag_says(flag: Any) -> None:
    assert parse_slice(changed(document(1), "cayenne_table", 0, "path_is_relative", flag)).to_json() == document(1)


def test_a_slice_lists_its_files_by_their_paths_beneath_the_anchor() -> None:
    table, first, second = (
        "0198f3a2-7c41-7d10-9a55-3f1c2b7e8d01",
        "0198f3a2-8000-7000-8000-000000000001",
        "0198f3a2-9000-7000-8000-000000000002",
    )
    assert slice_files(document(1)) == (
        f"{table}/{first}/part-0.vortex",
        f"{table}/{second}/deletions/0001.arrow",
        f"{table}/{second}/part-1.vortex",
    )
    assert slice_files(document(2)) == (
        "trips/0198f3b0-0000-7000-8000-0000000000c2/s-2/a.vortex",
        "trips/trips-child-1/s-1/a.vortex",
    )


def test_files_that_collide_where_case_is_folded_are_refused() -> None:
    content = document(1)
    row = copy.deepcopy(content["tables"]["cayenne_snapshot_file"][1])
    row[2] = cell(row[2]["v"].replace("part", "PART"))
    content["tables"]["cayenne_snapshot_file"].append(row)
    with pytest.raises(PathOutsideAnchor, match="collides"):
        slice_files(content)


def test_a_slice_without_a_row_for_the_dataset_itself_is_refused() -> None:
    for content in (
        {**document(2), "dataset_name": "other"},
        changed(document(1), "cayenne_table", 0, "table_name", "other"),
    ):
        with pytest.raises(DocumentDamaged, match="the dataset itself"):
            parse_slice(content)


@pytest.mark.parametrize("name", [None, "", 5, b"trips"])
def test_a_table_without_a_name_is_refused(name: Any) -> None:
    with pytest.raises(DocumentDamaged, match="has no name"):
        parse_slice(changed(document(2), "cayenne_table", 1, "table_name", name))


def test_a_table_that_is_neither_the_dataset_s_nor_its_child_is_refused() -> None:
    content = document(1)
    content["tables"]["cayenne_table"].append(table_row("intruder", "customers", "customers"))
    with pytest.raises(DocumentDamaged, match="'customers': neither the table of 'orders' nor of a partition of it"):
        parse_slice(content)


@pytest.mark.parametrize("child", [1, 2])
def test_a_partition_without_a_table_of_its_own_is_refused(child: int) -> None:
    content = document(2)
    del content["tables"]["cayenne_table"][child]
    for table in TABLES:
        if table.name not in {"cayenne_table", "cayenne_partition"}:
            content["tables"][table.name] = []
    with pytest.raises(DocumentDamaged, match="has no table of its own"):
        parse_slice(content)


def test_a_child_without_its_partition_is_refused() -> None:
    content = document(2)
    del content["tables"]["cayenne_partition"][0]
    with pytest.raises(DocumentDamaged, match="neither the table of 'trips' nor of a partition"):
        parse_slice(content)


def test_children_that_swap_their_folders_are_refused() -> None:
    content = document(2)
    one, two = (content["tables"]["cayenne_table"][at] for at in (1, 2))
    one[2], two[2] = two[2], one[2]
    with pytest.raises(DocumentDamaged, match="has no table of its own at"):
        parse_slice(content)


def test_a_partition_that_is_owned_by_another_dataset_is_refused() -> None:
    with pytest.raises(DocumentDamaged, match="cayenne_partition is owned by 'another'"):
        parse_slice(changed(document(2), "cayenne_partition", 0, "table_id", "another"))


def test_a_partition_that_is_owned_by_a_child_itself_is_accepted() -> None:
    content = changed(document(2), "cayenne_partition", 0, "table_id", "trips-child-1")
    assert parse_slice(content).to_json() == content


def test_a_partition_of_a_child_is_accepted_with_its_own_table() -> None:
    content = document(2)
    child = content["tables"]["cayenne_table"][2]
    partition = copy.deepcopy(content["tables"]["cayenne_partition"][0])
    partition[0], partition[1], partition[4], partition[5] = map(cell, ("nested", "trips-child-1", "k", "trips/nested"))
    content["tables"]["cayenne_partition"].append(partition)
    name = child_table_name(child[1]["v"], "k")
    content["tables"]["cayenne_table"].append(table_row("grandchild", name, "trips/nested"))
    assert name in {row[1] for row in parse_slice(content).tables["cayenne_table"]}


@pytest.mark.parametrize("table", sorted(set(BY_NAME) - {"cayenne_table"}))
def test_a_row_of_another_dataset_is_refused_in_any_table(table: str) -> None:
    content = document(1) | {"format_version": 2}
    at = BY_NAME[table]
    row = [cell(None)] * len(at.columns)
    row[at.columns.index("table_id")] = cell(b"another" if at.blob_keyed else "another")
    content["tables"][table].append(row)
    with pytest.raises(DocumentDamaged, match=f"{table} is owned by"):
        parse_slice(content)


def test_a_blob_keyed_row_is_owned_by_the_key_and_not_by_the_id() -> None:
    content = document(1)
    content["tables"]["cayenne_insert_record"][0][0] = content["tables"]["cayenne_table"][0][0]
    with pytest.raises(DocumentDamaged, match="cayenne_insert_record is owned by"):
        parse_slice(content)


@pytest.mark.parametrize(("column", "what"), [("table_name", "name"), ("path", "path"), ("table_id", "id")])
def test_two_tables_that_can_not_be_told_apart_are_refused(column: str, what: str) -> None:
    content = document(2)
    value = content["tables"]["cayenne_table"][1][BY_NAME["cayenne_table"].columns.index(column)]["v"]
    content["tables"]["cayenne_table"].append(table_row("third", "third", "third"))
    with pytest.raises(DocumentDamaged, match=f"the same {what}"):
        parse_slice(changed(content, "cayenne_table", 3, column, value.upper() if column == "table_id" else value))


@pytest.mark.parametrize("values", [None, 5, "no JSON", "{}", "[]", "[" * 100_000, '["2026-02", 7]'])
def test_a_legacy_child_needs_the_partition_values_that_its_name_joins(values: Any) -> None:
    with pytest.raises(DocumentDamaged, match="has no table of its own"):
        parse_slice(changed(document(2), "cayenne_partition", 1, "partition_values_json", values))


def test_a_legacy_child_of_numbers_is_known_by_their_text() -> None:
    content = changed(document(2), "cayenne_partition", 1, "partition_values_json", "[2026, true]")
    content = changed(content, "cayenne_table", 1, "table_name", "trips_2026_true")
    assert parse_slice(content).to_json() == content


def table_row(table_id: str, name: str, path: str) -> list[Document]:
    return [cell(value) for value in (table_id, name, path, True, "{}", None, None, "", None, None, 0)]
