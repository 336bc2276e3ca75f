"""Rows on their way into a table: they have its columns and keep its rules, and each goes to its partition."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

from snapshot_assets.engines.cayenne.data_files import check_schema
from snapshot_assets.errors import ConfigurationError

__all__ = ["KeyedRows", "arrow_reader", "checked_batches", "checked_schema", "partition_key", "partitioned"]

_KEY_TYPES: Final = (
    t.is_integer,
    t.is_string,
    t.is_large_string,
    t.is_binary,
    t.is_large_binary,
    t.is_boolean,
    t.is_date,
    t.is_time,
    t.is_timestamp,
    t.is_decimal128,
)
_PARTITION_TYPES: Final = (t.is_integer, t.is_string, t.is_boolean, t.is_date32)


def checked_schema(schema: pa.Schema, primary_key: Sequence[str], partition_by: Sequence[str]) -> pa.Schema:
    """The schema of a table with these columns: those of the primary key can not be null.

    Raises:
        UnsupportedLiveDatabase: a column can not be kept in Vortex files.
        ConfigurationError: a key is of a type that can not be one, stands twice, or is no column.
    """
    check_schema(schema)
    for what, names, kinds in (("primary key", primary_key, _KEY_TYPES), ("partition", partition_by, _PARTITION_TYPES)):
        if len(set(names)) != len(names):
            raise ConfigurationError(f"a column stands twice in the {what}: {', '.join(names)}")
        for name in names:
            if name not in schema.names:
                raise ConfigurationError(f"the {what} column {name!r} is not in the schema")
            if not any(kind(schema.field(name).type) for kind in kinds):
                raise ConfigurationError(f"column {name!r} of type {schema.field(name).type} can not be a {what}")
    fields = [field.with_nullable(field.nullable and field.name not in primary_key) for field in schema]
    return pa.schema(fields, metadata=schema.metadata)


def arrow_reader(arrow: Any) -> pa.RecordBatchReader:
    """The batches of a table, a batch, a reader, or of anything else that gives an Arrow stream.

    Raises:
        ConfigurationError: it gives none.
    """
    if isinstance(arrow, pa.RecordBatchReader):
        return arrow
    if isinstance(arrow, pa.RecordBatch):
        return pa.RecordBatchReader.from_batches(arrow.schema, [arrow])
    if hasattr(arrow, "__arrow_c_stream__"):
        return pa.RecordBatchReader.from_stream(arrow)
    raise ConfigurationError(f"rows are given as Arrow tables, batches or readers, not as {type(arrow).__name__}")


def checked_batches(reader: pa.RecordBatchReader, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows, with their columns in the table's order.

    Raises:
        ConfigurationError: other columns or types than the table's; or, while they are read, a null where there may be
            none, or a value that is none of its type.
    """
    differences = [f"no column {name!r}" for name in schema.names if name not in reader.schema.names]
    differences += [f"a column {name!r} too many" for name in reader.schema.names if name not in schema.names]
    differences += [
        f"column {field.name!r} is {reader.schema.field(field.name).type}, not {field.type}"
        for field in schema
        if reader.schema.names.count(field.name) == 1 and reader.schema.field(field.name).type != field.type
    ]
    if differences or len(reader.schema) != len(schema):
        raise ConfigurationError(
            f"the rows do not have the table's columns: {'; '.join(differences) or 'a column stands twice'}",
            hint="Give rows of the table's types, e.g. `rows.select(table.schema.names).cast(table.schema)`.",
        )
    return (_checked(batch, schema) for batch in reader)


def _checked(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [batch.column(name) for name in schema.names]
    for column, field in zip(columns, schema, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise ConfigurationError(f"column {field.name!r} holds what is no {field.type}: {error}") from error
        if where := _forbidden_null(column, field):
            raise ConfigurationError(f"column {where!r} holds a null, and may not")
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _forbidden_null(array: pa.Array, field: pa.Field) -> str | None:
    """The column or inner field that holds a null against its rule. Vortex would make a zero of an inner one."""
    if not field.nullable and array.null_count:
        return str(field.name)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    inner: list[tuple[pa.Array, pa.Field]] = []
    if t.is_nested(array.type) and array.null_count:
        array = array.drop_null()
    if t.is_struct(array.type):
        inner = [(array.field(position), array.type.field(position)) for position in range(array.type.num_fields)]
    elif t.is_map(array.type):
        inner = [(array.items, array.type.item_field)]
    elif t.is_list(array.type) or t.is_large_list(array.type) or t.is_fixed_size_list(array.type):
        inner = [(array.flatten(), array.type.value_field)]
    for values, rule in inner:
        if found := _forbidden_null(values, rule):
            return f"{field.name}.{found}"
    return None


class KeyedRows:
    """Rows on their way through; their primary keys are kept in memory.

    Args:
        batches: the rows.
        primary_key: the names of the key's columns; none, if the table has no primary key.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch], primary_key: Sequence[str]) -> None:
        self._batches = batches
        self._names = list(primary_key)
        self._keys: list[pa.RecordBatch] = []

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            if self._names:
                self._keys.append(batch.select(self._names))
            yield batch

    def distinct_keys(self) -> pa.Table | None:
        """The keys of all rows that went through; none if there were no rows, or is no key.

        Raises:
            ConfigurationError: one stands twice.
        """
        if not self._keys:
            return None
        keys = pa.Table.from_batches(self._keys)
        counted = keys.group_by(self._names).aggregate([([], "count_all")])
        twice = counted.filter(pc.field("count_all") > 1)
        if twice.num_rows:
            example = twice.select(self._names).slice(0, 1).to_pylist()[0]
            raise ConfigurationError(f"{twice.num_rows} primary keys stand twice among the rows, such as {example}")
        return keys


def partition_key(values: Sequence[Any]) -> str:
    """The text that tells the partitions of a table apart: its values as compact JSON."""
    return json.dumps(list(values), ensure_ascii=False, separators=(",", ":"), default=str)


def partitioned(batch: pa.RecordBatch, names: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pa.RecordBatch]]:
    """The rows of each partition, with the partition's values."""
    numbers = pa.array(np.arange(batch.num_rows))
    keyed = pa.table([*(batch.column(name) for name in names), numbers], names=[*map(str, range(len(names))), "row"])
    columns = [str(position) for position in range(len(names))]
    grouped = keyed.group_by(columns).aggregate([("row", "list")])
    for position in range(grouped.num_rows):
        values = tuple(grouped.column(column)[position].as_py() for column in columns)
        yield values, batch.take(grouped.column("row_list")[position].values)
