"""What an Arrow filter means for Vortex files and for partitions: which columns it reads, and what can be left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.fs
import vortex
from substrait.proto import ExtendedExpression  # type: ignore[import-untyped]
from vortex.substrait import extended_expression

from snapshot_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from vortex.expr import Expr

__all__ = ["check_filter", "columns_read", "in_partitions", "vortex_filter"]

_Partition = TypeVar("_Partition")

_SAME_IN_VORTEX: Final = frozenset(
    {"and", "or", "not", "equal", "not_equal", "lt", "lte", "gt", "gte", "is_null", "is_not_null"}
)
"""The functions that Vortex computes as Arrow does, floating point numbers aside."""

_PLAIN: Final = {
    pa.large_string(): pa.string(),
    pa.large_binary(): pa.binary(),
}


def check_filter(row_filter: pc.Expression, schema: pa.Schema) -> None:
    """Refuse a filter that can not be computed on rows of the schema.

    Raises:
        ConfigurationError: it is no expression, names an unknown column, or is not true or false.
    """
    if not isinstance(row_filter, pc.Expression):
        raise ConfigurationError(f"a filter is a pyarrow.compute expression, this is a {type(row_filter).__name__}")
    try:
        _bind(row_filter, schema)
    except (pa.ArrowException, LookupError) as error:
        raise ConfigurationError(f"the filter {row_filter} does not fit the table: {error}") from error


def columns_read(row_filter: pc.Expression, schema: pa.Schema) -> list[str]:
    """The columns that a filter reads, in the order of the schema; never too few.

    An expression tells nothing of itself but its text, and a name may stand in it by accident.
    """
    text = str(row_filter)
    named = [name for name in schema.names if name in text]
    try:
        _bind(row_filter, pa.schema([schema.field(name) for name in named]))
    except (pa.ArrowException, LookupError):
        return list(schema.names)
    return named


def _bind(row_filter: pc.Expression, schema: pa.Schema) -> None:
    reader = schema.empty_table().to_reader()
    pyarrow.dataset.Scanner.from_batches(reader, filter=row_filter).to_table()


def in_partitions(
    row_filter: pc.Expression, schema: pa.Schema, partitions: Sequence[tuple[_Partition, pc.Expression]]
) -> list[_Partition]:
    """The partitions that may hold rows for which the filter is true.

    Args:
        row_filter: the filter.
        schema: the columns of the rows.
        partitions: each with what is true of all its rows.
    """
    numbered = pyarrow.dataset.FileSystemDataset.from_paths(
        [str(position) for position in range(len(partitions))],
        schema=schema,
        format=pyarrow.dataset.IpcFileFormat(),
        filesystem=pyarrow.fs.LocalFileSystem(),
        partitions=[guarantee for _, guarantee in partitions],
    )
    chosen = sorted(int(fragment.path) for fragment in numbered.get_fragments(filter=row_filter))
    return [partitions[position][0] for position in chosen]


def vortex_filter(row_filter: pc.Expression, schema: pa.Schema) -> Expr | None:
    """A Vortex filter that lets through every row that the Arrow filter lets through, and few others.

    What Vortex does not compute as Arrow does is left out: functions of its own, and anything about floating point
    numbers, which Vortex orders totally, with NaN above all others and -0.0 below 0.0.
    """
    plain = pa.schema([field.with_type(_PLAIN.get(field.type, field.type)) for field in schema])
    message = ExtendedExpression()
    try:
        message.ParseFromString(bytes(row_filter.to_substrait(plain)))
    except (pa.ArrowException, NotImplementedError):
        return None
    functions = {
        entry.extension_function.function_anchor: entry.extension_function.name
        for entry in message.extensions
        if entry.WhichOneof("mapping_type") == "extension_function"
    }
    scope = vortex.array(schema.empty_table())
    found: Expr | None = None
    for conjunct in _conjuncts(message.referred_expr[0].expression, functions):
        if _is_same(conjunct, functions, plain):
            pushed = _converted(message, conjunct, scope)
            if pushed is not None:
                found = pushed if found is None else found & pushed
    return found


def _conjuncts(expression: Any, functions: dict[int, str]) -> Iterator[Any]:
    """The parts that must all be true of a row."""
    kind = expression.WhichOneof("rex_type")
    if kind == "scalar_function" and functions.get(expression.scalar_function.function_reference) == "and":
        for argument in expression.scalar_function.arguments:
            yield from _conjuncts(argument.value, functions)
    elif kind == "if_then" and _else_is_null(expression.if_then):
        # DuckDB guards a list of values in this way.
        (clause,) = expression.if_then.ifs
        yield from _conjuncts(getattr(clause, "if"), functions)
        yield from _conjuncts(clause.then, functions)
    else:
        yield expression


def _else_is_null(if_then: Any) -> bool:
    otherwise = getattr(if_then, "else")
    return (
        len(if_then.ifs) == 1
        and otherwise.WhichOneof("rex_type") == "literal"
        and otherwise.literal.WhichOneof("literal_type") == "null"
    )


def _is_same(expression: Any, functions: dict[int, str], schema: pa.Schema) -> bool:
    """Whether Vortex is known to give the same answer for every row."""
    kind = expression.WhichOneof("rex_type")
    if kind == "literal":
        return expression.literal.WhichOneof("literal_type") not in {"fp32", "fp64"}
    if kind == "selection":
        segment = expression.selection.direct_reference.struct_field
        return not segment.HasField("child") and not pa.types.is_floating(schema.field(segment.field).type)
    if kind == "scalar_function":
        call = expression.scalar_function
        return functions.get(call.function_reference) in _SAME_IN_VORTEX and all(
            _is_same(argument.value, functions, schema) for argument in call.arguments
        )
    if kind == "singular_or_list":
        values = expression.singular_or_list
        return all(_is_same(value, functions, schema) for value in [values.value, *values.options])
    return False


def _converted(message: Any, conjunct: Any, scope: Any) -> Expr | None:
    """The conjunct for Vortex, if it has it and if it fits the columns' types."""
    alone = ExtendedExpression()
    alone.CopyFrom(message)
    alone.referred_expr[0].expression.CopyFrom(conjunct)
    try:
        (converted,) = extended_expression(alone)
        dtype = scope.apply(converted).dtype
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
    return converted if dtype == vortex.bool_(nullable=dtype.is_nullable()) else None
