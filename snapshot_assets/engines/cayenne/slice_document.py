"""The slice document: one dataset's rows of the metastore as JSON, in the form that other Cayenne systems read too.

    {"format_version": 1, "engine": "cayenne", "dataset_name": "orders", "exported_at_ms": 1793..., "tables": {...}}

`tables` has every known table, sorted by name, also the empty ones: a list of rows, each the list of its values in
column order. A value is `{"t": "i", "v": integer}`, `{"t": "s", "v": text}`, `{"t": "b", "v": boolean}`,
`{"t": "x", "v": base64}` or `{"t": "n"}` for null.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from snapshot_assets.engines.cayenne.metastore import TABLES, MetastoreTable
from snapshot_assets.errors import DocumentDamaged, EngineMismatch, PathOutsideAnchor, UnsupportedFormatVersion
from snapshot_assets.model.document import MAX_COUNT, Document

__all__ = [
    "COLD_TIER",
    "ENGINE",
    "MAX_ROWS",
    "MAX_SLICE_BYTES",
    "NEWEST_VERSION",
    "Row",
    "Slice",
    "Value",
    "lowest_version",
    "read_document",
    "slice_bytes",
]

ENGINE: Final = "cayenne"
NEWEST_VERSION: Final = 2
MAX_SLICE_BYTES: Final = 64 * 1024 * 1024
MAX_ROWS: Final = 1_000_000

COLD_TIER: Final = "cayenne_cold_tier_file"
"""The table of data that lies outside the data folder: a dataset with rows there is refused in both directions."""

CLEARED_BY_VERSION_1: Final = "cayenne_insert_record"
"""The one blob-keyed table whose old rows an importer of version 1 removes."""

Value = None | bool | int | str | bytes
"""What a cell holds; a boolean is a flag of the slice, since SQLite itself has only numbers."""

Row = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """One dataset's rows. All paths are relative; every table of `TABLES` is there, with full rows in one fixed order.

    `slice_rules.checked_slice` makes them, so that every slice in memory keeps the rules.
    """

    dataset_name: str
    exported_at_ms: int
    tables: Mapping[str, tuple[Row, ...]]

    def to_json(self) -> dict[str, Any]:
        """The slice as its document, labelled with the lowest version that can express it."""
        return {
            "format_version": lowest_version(self),
            "engine": ENGINE,
            "dataset_name": self.dataset_name,
            "exported_at_ms": self.exported_at_ms,
            "tables": {
                name: [[_encode(value) for value in row] for row in self.tables[name]] for name in sorted(self.tables)
            },
        }


def lowest_version(content: Slice) -> int:
    """2 when there is what an importer of version 1 could not clear: child tables, or other blob-keyed rows."""
    unclearable = [table.name for table in TABLES if table.blob_keyed and table.name != CLEARED_BY_VERSION_1]
    return 2 if len(content.tables["cayenne_table"]) > 1 or any(content.tables[name] for name in unclearable) else 1


def slice_bytes(document: Mapping[str, Any]) -> bytes:
    """The bytes of a slice document: compact UTF-8 JSON. Equal documents have equal bytes.

    Raises:
        DocumentDamaged: JSON has no form for it, or it is larger than `MAX_SLICE_BYTES`.
    """
    try:
        data = json.dumps(dict(document), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DocumentDamaged(f"the slice can not be written as JSON: {error}") from error
    _check_size(data)
    return data


def read_document(data: bytes) -> tuple[int, Slice]:
    """The version that a document is labelled with, and its rows, with values of the right form in rows of full length.

    Only the form is checked here, not what the rows say.

    Raises:
        UnsupportedFormatVersion: the version is not one of those that this package reads.
        EngineMismatch: it is of another engine.
        PathOutsideAnchor: it names files of a cold tier, which lie outside the data folder.
        DocumentDamaged: it is not a slice, or too large.
    """
    _check_size(data)
    try:
        content = json.loads(data.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DocumentDamaged(f"the slice is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DocumentDamaged("the slice is not a JSON object")
    document = Document(content, "the slice")
    version = document.take("format_version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise document.damaged("'format_version' is not a whole number")
    if not 1 <= version <= NEWEST_VERSION:
        raise UnsupportedFormatVersion(
            f"the slice has format version {version}; this snapshot-assets reads versions 1 to {NEWEST_VERSION}",
            hint="Upgrade snapshot-assets, or export the slice again with a version that it reads.",
        )
    engine = document.text("engine")
    if engine != ENGINE:
        raise EngineMismatch(f"the slice is of the engine {engine!r}, not of {ENGINE!r}")
    name = document.text("dataset_name")
    exported_at_ms = document.count("exported_at_ms", MAX_COUNT)
    return version, Slice(name, exported_at_ms, _read_tables(Document(document.mapping("tables"), "the slice: tables")))


def _read_tables(document: Document) -> dict[str, tuple[Row, ...]]:
    rows = {
        table.name: () if table.later and table.name not in document.rest else document.items(table.name)
        for table in TABLES
    }
    if document.rest.get(COLD_TIER):
        raise PathOutsideAnchor(
            "the slice names files of a cold tier, which lie outside the data folder",
            hint="Move the dataset's data out of the cold tier before it is published.",
        )
    if sum(map(len, rows.values())) > MAX_ROWS:
        raise document.damaged(f"there are more than {MAX_ROWS:,} rows")
    return {
        table.name: tuple(
            _read_row(row, table, document, f"row {position} of {table.name}")
            for position, row in enumerate(rows[table.name])
        )
        for table in TABLES
    }


def _read_row(row: object, table: MetastoreTable, document: Document, where: str) -> Row:
    width = len(table.columns)
    if not isinstance(row, list) or not width - table.later_columns <= len(row) <= width:
        raise document.damaged(f"{where} is not a list of {width} values")
    values = [
        _decode(value, document, f"{where}, column {name}") for name, value in zip(table.columns, row, strict=False)
    ]
    return (*values, *[None] * (width - len(row)))


def _encode(value: Value) -> dict[str, Any]:
    match value:
        case None:
            return {"t": "n"}
        case bool():
            return {"t": "b", "v": value}
        case int():
            return {"t": "i", "v": value}
        case str():
            return {"t": "s", "v": value}
        case bytes():
            return {"t": "x", "v": base64.b64encode(value).decode()}


def _decode(cell: object, document: Document, where: str) -> Value:
    match cell:
        case {"t": "n", **rest} if not rest:
            return None
        case {"t": "b", "v": bool(flag), **rest} if not rest:
            return flag
        case {"t": "i", "v": int(number), **rest} if not rest and not isinstance(number, bool):
            if not -MAX_COUNT - 1 <= number <= MAX_COUNT:
                raise document.damaged(f"{where} is beyond 64 bits")
            return number
        case {"t": "s", "v": str(text), **rest} if not rest:
            return _check_text(text, document, where)
        case {"t": "x", "v": str(text), **rest} if not rest:
            try:
                return base64.b64decode(text, validate=True)
            except ValueError as error:
                raise document.damaged(f"{where} is not base64: {error}") from error
    raise document.damaged(f"{where} is not a value of a slice")


def _check_text(text: str, document: Document, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise document.damaged(f"{where} holds half a surrogate pair") from error
    return text


def _check_size(data: bytes) -> None:
    if len(data) > MAX_SLICE_BYTES:
        raise DocumentDamaged(f"the slice has {len(data):,} bytes; the limit is {MAX_SLICE_BYTES:,}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("an object has a key twice")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
