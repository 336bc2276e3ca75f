"""The facts about this server that Flight SQL clients ask for when they connect."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import pyarrow as pa

__all__ = ["SQL_INFO_SCHEMA", "sql_info"]

_VALUE: Final = pa.dense_union(
    [
        pa.field("string_value", pa.string()),
        pa.field("bool_value", pa.bool_()),
        pa.field("bigint_value", pa.int64()),
        pa.field("int32_bitmask", pa.int32()),
        pa.field("string_list", pa.list_(pa.field("item", pa.string()))),
        pa.field("int32_to_int32_list_map", pa.map_(pa.int32(), pa.list_(pa.field("item", pa.int32())))),
    ]
)
_STRING, _BOOL, _BIGINT, _BITMASK = range(4)

SQL_INFO_SCHEMA: Final = pa.schema(
    [pa.field("info_name", pa.uint32(), nullable=False), pa.field("value", _VALUE, nullable=False)]
)
"""Exactly as the specification has it: some clients trust it blindly and crash on any other."""


def sql_info(wanted: Collection[int], version: str) -> pa.Table:
    """The facts of these numbers, or all; numbers that are not known are left out."""
    facts: dict[int, tuple[int, str | bool | int]] = {
        0: (_STRING, "snapshot-assets"),  # server name
        1: (_STRING, version),
        2: (_STRING, pa.__version__),
        3: (_BOOL, True),  # read only
        4: (_BOOL, True),  # understands SQL
        5: (_BOOL, False),  # understands Substrait
        8: (_BITMASK, 0),  # transactions: none
        9: (_BOOL, True),  # can cancel
        100: (_BIGINT, 0),  # statement timeout: the node's own
        500: (_BOOL, False),  # CREATE and DROP of catalogs
        501: (_BOOL, False),  # ... of schemas
        502: (_BOOL, False),  # ... of tables
        503: (_BIGINT, 1),  # identifiers ignore case
        504: (_STRING, '"'),  # quotes identifiers
        505: (_BIGINT, 1),  # quoted identifiers ignore case too
    }
    chosen = [(name, *facts[name]) for name in (sorted(wanted) if wanted else facts) if name in facts]
    children: list[list[object]] = [[] for _ in range(_VALUE.num_fields)]
    kinds: list[int] = []
    offsets: list[int] = []
    for _, kind, value in chosen:
        kinds.append(kind)
        offsets.append(len(children[kind]))
        children[kind].append(value)
    values = pa.UnionArray.from_dense(
        pa.array(kinds, pa.int8()),
        pa.array(offsets, pa.int32()),
        [pa.array(child, _VALUE.field(number).type) for number, child in enumerate(children)],
        [_VALUE.field(number).name for number in range(_VALUE.num_fields)],
    )
    return pa.Table.from_arrays([pa.array([name for name, *_ in chosen], pa.uint32()), values], schema=SQL_INFO_SCHEMA)
