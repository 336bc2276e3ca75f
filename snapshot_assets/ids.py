"""Identifiers: ULIDs for operations, incarnations, stores and processes."""

from __future__ import annotations

import re
from typing import NewType

from ulid import ULID

from snapshot_assets.errors import DocumentDamaged, InvalidDatasetName

__all__ = [
    "IncarnationId",
    "OperationId",
    "check_dataset_name",
    "new_incarnation_id",
    "new_operation_id",
    "new_ulid",
    "ulid_from_bytes",
    "ulid_to_bytes",
]

OperationId = NewType("OperationId", str)
IncarnationId = NewType("IncarnationId", str)

_DATASET_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_RESERVED = frozenset({"main", "temp", "system", "memory", "pg_catalog", "information_schema"})


def new_ulid() -> str:
    """A fresh ULID: 26 characters whose order is, to the millisecond, the order of their making."""
    return str(ULID())


def new_operation_id() -> OperationId:
    """The id of one attempt at a change. A retry takes a new one."""
    return OperationId(new_ulid())


def new_incarnation_id() -> IncarnationId:
    """The id of one life of a dataset, from creation to drop."""
    return IncarnationId(new_ulid())


def ulid_to_bytes(text: str) -> bytes:
    """The 16 bytes of a ULID.

    Raises:
        DocumentDamaged: the text is not a ULID in its canonical form.
    """
    try:
        value = ULID.from_str(text)
    except ValueError as error:
        raise DocumentDamaged(f"{text!r} is not a ULID") from error
    if str(value) != text:
        raise DocumentDamaged(f"{text!r} is not a ULID in its canonical form")
    return bytes(value)


def ulid_from_bytes(data: bytes) -> str:
    """The text of a ULID's 16 bytes."""
    return str(ULID(data))


def check_dataset_name(name: str) -> str:
    """Return the name if it is one that a Dagster asset, a SQL identifier and a folder can all bear.

    Raises:
        InvalidDatasetName: it is not.
    """
    if not _DATASET_NAME.fullmatch(name) or name in _RESERVED:
        raise InvalidDatasetName(f"{name!r} is not a valid dataset name")
    return name
