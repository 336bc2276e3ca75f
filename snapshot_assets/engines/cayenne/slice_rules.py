"""What must hold of a slice, at export and at import: whole, about one dataset, and portable."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from snapshot_assets.engines.cayenne.metastore import (
    TABLES,
    MetastoreTable,
    child_table_name,
    legacy_child_table_name,
    table_key,
)
from snapshot_assets.engines.cayenne.slice_document import (
    Row,
    Slice,
    Value,
    lowest_version,
    read_document,
    slice_bytes,
)
from snapshot_assets.errors import DocumentDamaged, PathOutsideAnchor
from snapshot_assets.model.manifest import check_paths

__all__ = ["checked_slice", "child_names", "parse_slice", "slice_files"]

_NAME_COLUMNS: Final = ("current_snapshot_id", "snapshot_id")
"""Names of folders: one plain name each."""


def parse_slice(document: bytes | Mapping[str, Any]) -> Slice:
    """Read a slice document, in JSON or as the object that JSON stands for, and check everything that it says.

    Whatever the bytes are, nothing but these errors is raised:

    Raises:
        UnsupportedFormatVersion: the version is not one of those that this package reads.
        EngineMismatch: it is of another engine.
        PathOutsideAnchor: a path is absolute, climbs, or is not portable.
        DocumentDamaged: it is not a slice, too large, not whole, or has rows of another dataset.
    """
    version, content = read_document(document if isinstance(document, bytes) else slice_bytes(document))
    content = checked_slice(content)
    if version < (lowest := lowest_version(content)):
        raise DocumentDamaged(f"the slice says version {version} and holds rows that only version {lowest} can carry")
    return content


def slice_files(document: bytes | Mapping[str, Any]) -> tuple[str, ...]:
    """The files that a slice refers to, sorted: data files and delete files, as paths relative to the anchor.

    Raises:
        PathOutsideAnchor: two of them differ in case only, or one lies beneath another; else as `parse_slice`.
    """
    content = parse_slice(document)
    folders = {row[0]: str(row[2]) for row in content.tables["cayenne_table"]}
    files = {f"{folders[row[0]]}/{row[2]!s}" for row in content.tables["cayenne_snapshot_file"]}
    files |= {str(row[2]) for row in content.tables["cayenne_delete_file"]}
    check_paths(sorted(files))
    return tuple(sorted(files))


def child_names(dataset: str, owner: str, key: str, values_json: Value) -> list[str]:
    """The names that the table of a partition may have.

    Usually its owner is the dataset's own table. A child may own the partition row as well, and is then named after
    either.
    """
    parents = dict.fromkeys([owner, dataset])
    names = [child_table_name(parent, key) for parent in parents]
    if values := _partition_values(values_json):
        names += [legacy_child_table_name(parent, values) for parent in parents]
    return names


def checked_slice(content: Slice) -> Slice:
    """The slice with its rows in their fixed order and its flags set, if it keeps all rules.

    Raises:
        PathOutsideAnchor: a path is absolute, climbs, or is not portable.
        DocumentDamaged: it is not whole, or has rows of another dataset.
    """
    _check_tables(content)
    _check_owners(content)
    tables = {
        table.name: tuple(sorted((_checked_row(table, row) for row in content.tables[table.name]), key=_order))
        for table in TABLES
    }
    _check_children(content.dataset_name, tables)
    name = content.dataset_name
    tables["cayenne_table"] = tuple(sorted(tables["cayenne_table"], key=lambda row: (row[1] != name, row[1])))
    return replace(content, tables=tables)


def _check_tables(content: Slice) -> None:
    """There is one table of the dataset's name, and all tables can be told apart."""
    rows = content.tables["cayenne_table"]
    for row in rows:
        _plain_name(row[0], "table id")
        if not isinstance(row[1], str) or not row[1]:
            raise DocumentDamaged(f"the slice's table {row[0]!r} has no name")
    if content.dataset_name not in {row[1] for row in rows}:
        raise DocumentDamaged(f"the slice has no table {content.dataset_name!r}, the dataset itself")
    for what, values in (
        ("name", [row[1] for row in rows]),
        ("id", [table_key(str(row[0])) for row in rows]),
        ("path", [row[2] for row in rows]),
    ):
        if len(set(values)) != len(values):
            raise DocumentDamaged(f"two tables of the slice have the same {what}")


def _check_owners(content: Slice) -> None:
    ids = {row[0] for row in content.tables["cayenne_table"]}
    keys = {table_key(str(table_id)) for table_id in ids}
    for table in TABLES:
        owner = table.position("table_id")
        known = keys if table.blob_keyed else ids
        for row in content.tables[table.name]:
            if row[owner] not in known:
                raise DocumentDamaged(
                    f"a row of {table.name} is owned by {row[owner]!r}, which is no table of the slice"
                )


def _checked_row(table: MetastoreTable, row: Row) -> Row:
    """The row with its flag set. Files are relative to the table's folder, and the slice carries them as they are."""
    for column, value in zip(table.columns, row, strict=True):
        if column == "file_path" or (column == "source_data_file_path" and value is not None):
            _safe_path(value, f"{table.name}.{column}")
        if column in _NAME_COLUMNS and value not in {"", None}:
            _plain_name(value, f"{table.name}.{column}")
    if table.path_column is None or table.flag_column is None:
        return row
    _safe_path(row[table.path_column], f"{table.name}.path")
    return (*row[: table.flag_column], True, *row[table.flag_column + 1 :])


def _check_children(dataset: str, tables: Mapping[str, Sequence[Row]]) -> None:
    """Each partition has one table, with its name and its path; each table but the dataset's has one partition."""
    names = {row[0]: str(row[1]) for row in tables["cayenne_table"]}
    unclaimed = {row[1]: row[2] for row in tables["cayenne_table"] if row[1] != dataset}
    for _, owner, _, values, key, path, *_ in tables["cayenne_partition"]:
        if not isinstance(key, str):
            raise DocumentDamaged(f"a partition of {names[owner]!r} has no key")
        mine = [name for name in child_names(dataset, names[owner], key, values) if unclaimed.get(name) == path]
        if not mine:
            raise DocumentDamaged(f"partition {key!r} of {names[owner]!r} has no table of its own at {path!r}")
        del unclaimed[mine[0]]
    if unclaimed:
        raise DocumentDamaged(
            f"{', '.join(map(repr, unclaimed))}: neither the table of {dataset!r} nor of a partition of it"
        )


def _partition_values(values_json: Value) -> list[str]:
    try:
        values = json.loads(values_json) if isinstance(values_json, str) else None
        if isinstance(values, list):
            return [value if isinstance(value, str) else json.dumps(value) for value in values]
    except (ValueError, RecursionError):
        pass
    return []


def _safe_path(value: Value, what: str) -> None:
    if not isinstance(value, str):
        raise DocumentDamaged(f"{what} of the slice is not a path")
    check_paths([value])


def _plain_name(value: Value, what: str) -> None:
    _safe_path(value, what)
    if "/" in str(value):
        raise PathOutsideAnchor(f"{what} {value!r} is not one plain name")


def _order(row: Row) -> list[tuple[str, Any]]:
    """Any fixed order will do: values of one kind by themselves, the kinds by their names."""
    return [(type(value).__name__, 0 if value is None else value) for value in row]
