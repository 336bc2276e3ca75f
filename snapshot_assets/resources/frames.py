"""What assets return and ask for, as Arrow data and back: Arrow, pandas, polars, DuckDB relations."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from snapshot_assets.errors import ConfigurationError
from snapshot_assets.model.schema import SchemaChange, TableSchema, classify_schemas

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LOADERS", "arrow_rows", "fits", "fitted", "loader_of", "rows_digest"]

_PIECE_ROWS: Final = 65_536


@contextmanager
def arrow_rows(value: object) -> Iterator[pa.Table]:
    """What an asset returned, as an Arrow table that can be read more than once.

    A stream of batches and a DuckDB relation are written to a temporary file, so memory holds one batch of them.
    Categories become what they stand for.

    Raises:
        ConfigurationError: it is no table.
    """
    import pyarrow as pa

    source = _as_arrow(value)
    with tempfile.TemporaryDirectory(prefix="snapshot-assets-") as folder:
        if isinstance(source, pa.RecordBatchReader):
            source = _spooled(source, Path(folder) / "rows.arrow")
        if not source.column_names:
            raise ConfigurationError("the asset returned a table without columns", hint="Return at least one column.")
        # SQL does not tell A from a, and DuckDB would give one of them another name.
        if len({name.lower() for name in source.column_names}) < len(source.column_names):
            raise ConfigurationError(
                f"the asset returned two columns of one name: {', '.join(source.column_names)}",
                hint="Rename one of them.",
            )
        # Small pieces, because some casts refuse a piece with more than 2 GiB of text.
        pieces = pa.Table.from_batches(source.to_batches(max_chunksize=_PIECE_ROWS), source.schema)
        yield pieces.cast(_plain_schema(source.schema))


def _as_arrow(value: Any) -> pa.Table | pa.RecordBatchReader:
    import pyarrow as pa

    if isinstance(value, pa.Table | pa.RecordBatchReader):
        return value
    if isinstance(value, pa.RecordBatch):
        return pa.Table.from_batches([value])
    pandas, polars = sys.modules.get("pandas"), sys.modules.get("polars")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        try:
            return pa.Table.from_pandas(value, preserve_index=False)
        except (pa.ArrowException, TypeError) as error:
            raise ConfigurationError(
                f"the asset returned a pandas frame with a column that has no Arrow type: {error}",
                hint="Give the column values of one type.",
            ) from error
    if polars is not None and isinstance(value, polars.DataFrame | polars.LazyFrame):
        return value.lazy().collect().to_arrow()
    if hasattr(value, "__arrow_c_stream__"):
        return pa.RecordBatchReader.from_stream(value)
    raise ConfigurationError(
        f"the asset returned a {type(value).__name__}, which can not become a table",
        hint="Return an Arrow table, a record batch reader, a pandas or polars frame, or a DuckDB relation.",
    )


def _spooled(reader: pa.RecordBatchReader, path: Path) -> pa.Table:
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
    # The file may be removed while the table is in use: the mapping keeps it.
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema without categories, and without the metadata of the library that the rows came from."""
    import pyarrow as pa

    return pa.schema([pa.field(field.name, _plain(field.type), field.nullable) for field in schema])


def _plain(data_type: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_dictionary(data_type):
        return _plain(data_type.value_type)
    if pa.types.is_struct(data_type):
        return pa.struct([field.with_type(_plain(field.type)) for field in data_type.fields])
    if pa.types.is_list(data_type):
        return pa.list_(data_type.value_field.with_type(_plain(data_type.value_type)))
    if pa.types.is_large_list(data_type):
        return pa.large_list(data_type.value_field.with_type(_plain(data_type.value_type)))
    return data_type


def fitted(rows: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """The rows under another schema with the same column names; every value is kept exactly.

    Args:
        rows: the rows.
        schema: their new columns, in their new order.
        what: whose columns these are, for the error.

    Raises:
        ConfigurationError: a value would change.
    """
    import pyarrow as pa

    columns = []
    for field in schema:
        column = rows.column(field.name)
        if not fits(column, field.type):
            raise ConfigurationError(
                f"column {field.name!r} holds values of type {column.type} that {what} can not hold as {field.type}",
                hint="Cast the column to a type that fits.",
            )
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=pa.schema([pa.field(field.name, field.type) for field in schema]))


def fits(column: Any, data_type: Any) -> bool:
    """Whether every value of a column has an equal one in another type of the same kind."""
    import pyarrow as pa

    if column.type == data_type or pa.types.is_null(column.type):
        return True
    old, new = ({"c": TableSchema.from_arrow(pa.schema([pa.field("c", one)]))} for one in (column.type, data_type))
    is_wide = classify_schemas(old, new) is not SchemaChange.INCOMPATIBLE
    if not is_wide and _kind(column.type) != _kind(data_type):
        return False
    try:
        there = column.cast(data_type)
        return is_wide or there.cast(column.type).equals(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False


def _kind(data_type: Any) -> str:
    """Types between which a cast keeps the meaning of a value, if it keeps the value."""
    import pyarrow.types as t

    if t.is_integer(data_type) or t.is_floating(data_type) or t.is_decimal(data_type):
        return "number"
    if t.is_timestamp(data_type):
        return "instant" if data_type.tz else "time of day and date"
    if t.is_time(data_type):
        return "time of day"
    if t.is_date(data_type):
        return "date"
    if t.is_nested(data_type):
        return "nested"
    return "text" if "string" in str(data_type) else str(data_type).partition("[")[0].removeprefix("large_")


def rows_digest(rows: pa.Table) -> str:
    """A digest of columns and rows in their order, the same however the rows lie in memory."""
    import pyarrow as pa
    from blake3 import blake3

    digest = blake3(str(rows.schema).encode())
    for start in range(0, rows.num_rows, _PIECE_ROWS):
        piece = rows.slice(start, _PIECE_ROWS)
        # Taken anew, the rows begin where their memory begins, and nothing lies where a value is missing.
        for batch in piece.take(pa.array(range(piece.num_rows), pa.int64())).combine_chunks().to_batches():
            digest.update(memoryview(batch.serialize()))
    return f"blake3:{digest.hexdigest()}"


Loader = Callable[["pa.RecordBatchReader"], Any]


def _to_pandas(reader: pa.RecordBatchReader) -> Any:
    return reader.read_all().to_pandas()


def _to_polars(reader: pa.RecordBatchReader) -> Any:
    import polars as pl

    return pl.from_arrow(reader.read_all())


def _to_relation(reader: pa.RecordBatchReader) -> Any:
    import duckdb

    # The relation keeps its connection, and that the table.
    return duckdb.connect().from_arrow(reader.read_all())


LOADERS: Final[Mapping[tuple[str, str], Loader]] = {
    ("pyarrow", "Table"): lambda reader: reader.read_all(),
    ("pyarrow", "RecordBatchReader"): lambda reader: reader,
    ("pandas", "DataFrame"): _to_pandas,
    ("polars", "DataFrame"): _to_polars,
    ("polars", "LazyFrame"): lambda reader: _to_polars(reader).lazy(),
    ("duckdb", "DuckDBPyRelation"): _to_relation,
}
"""What an input can be loaded as: the module and the name of its type."""


def loader_of(annotation: object, default: tuple[str, str]) -> tuple[str, str]:
    """The name in `LOADERS` of the type with which an input is annotated; `default` when it has no annotation.

    Raises:
        ConfigurationError: an input can not be loaded as this type.
    """
    if annotation is Any or annotation is None:
        return default
    for module, name in LOADERS:
        # A module that nobody has imported can not be what the annotation names.
        if module in sys.modules and annotation is getattr(sys.modules[module], name):
            return module, name
    known = ", ".join(f"{module}.{name}" for module, name in LOADERS)
    raise ConfigurationError(
        f"an input can not be loaded as {getattr(annotation, '__qualname__', annotation)}",
        hint=f"Annotate the input with one of {known}.",
    )
