"""Handing a filter that DuckDB pushes into a scan on to SQLite, as far as both mean the same by it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from snapshot_assets.engines.sql import quoted

if TYPE_CHECKING:
    from pyarrow.compute import Expression

__all__ = ["where_of"]

_COMPARISON: Final = re.compile(r"\((?P<name>.+) (?P<operator>==|<=|>=|<|>) (?P<literal>.+)\)", re.DOTALL)
_IS_VALID: Final = re.compile(r"is_valid\((?P<name>.+)\)", re.DOTALL)
_IS_NULL: Final = re.compile(r"is_null\((?P<name>.+), \{nan_is_null=false\}\)", re.DOTALL)
_LONGEST: Final = 2_000
_INT64: Final = range(-(2**63), 2**63)


def where_of(row_filter: Expression | None, schema: pa.Schema) -> str:
    """SQLite's condition for a filter: true of every row that the filter keeps, and hardly of any other.

    Nothing for a filter that is more than comparisons of columns with values, and tests for null, joined by `and`; and
    for comparisons in which SQLite's order of values is not Arrow's. The filter has to be applied to the rows again.
    """
    if row_filter is None or len(text := str(row_filter)) > _LONGEST:
        return ""
    for expression, where in _read(text, schema):
        # The text does not tell for sure what it was made of: what was read of it has to be the filter again.
        if expression.equals(row_filter):
            return where
    return ""


def _read(text: str, schema: pa.Schema) -> Iterator[tuple[Expression, str]]:
    """What the text of a filter may mean, and SQLite's condition for it."""
    if found := _COMPARISON.fullmatch(text):
        yield from _comparison(found["name"], found["operator"], found["literal"], schema)
    for pattern, condition in ((_IS_VALID, "is not null"), (_IS_NULL, "is null")):
        if (found := pattern.fullmatch(text)) and found["name"] in schema.names:
            field = pc.field(found["name"])
            expression = field.is_valid() if pattern is _IS_VALID else field.is_null()
            yield expression, f"{quoted(found['name'])} {condition}"
    if text.startswith("(") and text.endswith(")"):
        inner = text[1:-1]
        for joint in re.finditer(" and ", inner):
            for left, left_where in _read(inner[: joint.start()], schema):
                for right, right_where in _read(inner[joint.end() :], schema):
                    yield left & right, f"{left_where} and {right_where}"


def _comparison(name: str, operator: str, literal: str, schema: pa.Schema) -> Iterator[tuple[Expression, str]]:
    if name not in schema.names:
        return
    type_, field, column = schema.field(name).type, pc.field(name), quoted(name)
    value: Any
    if type_ == pa.int64() and re.fullmatch(r"-?\d{1,19}", literal) and (value := int(literal)) in _INT64:
        yield _compared(field, operator, pa.scalar(value, type_)), f"{column} {operator} {value}"
    elif type_ == pa.float64() and re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", literal):
        value = float(literal)
        if math.isfinite(value):
            yield _compared(field, operator, pa.scalar(value, type_)), f"{column} {operator} {value!r}"
    elif type_ == pa.string() and operator == "==" and literal[:1] == literal[-1:] == '"' and "\0" not in literal:
        value = literal[1:-1]
        # A blob of the same bytes is read as this text; and the column's own collation may find other texts equal.
        same = "'" + value.replace("'", "''") + "'"
        yield field == pa.scalar(value, type_), f"{column} collate binary in ({same}, x'{value.encode().hex()}')"


def _compared(field: Expression, operator: str, value: pa.Scalar[Any]) -> Expression:
    match operator:
        case "==":
            return field == value
        case "<":
            return field < value
        case "<=":
            return field <= value
        case ">":
            return field > value
        case _:
            return field >= value
