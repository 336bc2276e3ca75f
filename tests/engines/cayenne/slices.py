"""Slice documents to import, and ways to change them."""

from __future__ import annotations

import base64
import copy
import json
import sqlite3
from pathlib import Path
from typing import Any

from snapshot_assets.engines.cayenne.metastore import TABLES

FIXTURES = Path(__file__).parent / "fixtures"
BY_NAME = {table.name: table for table in TABLES}
NULL = {"t": "n"}

Document = dict[str, Any]
Dump = dict[str, list[tuple[Any, ...]]]


def document(version: int) -> Document:
    """The hand-written slice of a version: 1 is the plain dataset `orders`, 2 the partitioned `trips`."""
    content: Document = json.loads((FIXTURES / f"version_{version}.slice.json").read_text())
    return content


def cell(value: Any) -> dict[str, Any]:
    """A value as a slice writes it, by this project's reading of the format and not by its code."""
    if value is None:
        return dict(NULL)
    if isinstance(value, bytes):
        return {"t": "x", "v": base64.b64encode(value).decode()}
    return {"t": {bool: "b", int: "i", str: "s"}[type(value)], "v": value}


def changed(content: Document, table: str, row: int, column: str, value: Any) -> Document:
    """A copy with one other value."""
    content = copy.deepcopy(content)
    content["tables"][table][row][BY_NAME[table].columns.index(column)] = cell(value)
    return content


def renamed(content: Document, old: str, new: str) -> Document:
    """The same dataset under another name, with ids and folders of its own."""
    text = json.dumps(content, ensure_ascii=False)
    ids = {row[0]["v"] for row in content["tables"]["cayenne_table"]}
    prefixes = {
        "0198f3a2-a000": "0298f3a2-a000",
        "0198f3b0-0000-7000-8000-0000000000a": "0298f3b0-0000-7000-8000-0000000000a",
    }
    for one in ids:
        text = text.replace(one, f"{new}-{one}")
    for one, other in prefixes.items():
        text = text.replace(one, other)
    other = json.loads(text.replace(f'"{old}', f'"{new}'))
    for table in ("cayenne_insert_record", "cayenne_pending_write_back"):
        other["tables"][table] = []
    return dict(other)


def dump(connection: sqlite3.Connection) -> Dump:
    """Everything that the metastore has."""
    return {
        table.name: sorted(connection.execute(f"SELECT * FROM {table.name}").fetchall(), key=repr) for table in TABLES
    }
