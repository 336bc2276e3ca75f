"""Arrow IPC bytes read with a limit on what they expand to, and columns as plain Python values.

The library takes whatever memory a compressed buffer claims to need. So the claims, which stand in each record batch's
metadata and at the head of each compressed buffer, are added up first.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final

import pyarrow as pa

__all__ = ["ArrowDamaged", "bytes_column", "number_column", "read_columns", "to_file_bytes", "to_stream_bytes"]

_MAGIC: Final = b"ARROW1"
_COLUMN_SLACK: Final = 1024
_CODES: Final[dict[pa.DataType, str]] = {pa.uint8(): "B", pa.uint16(): "H", pa.uint32(): "I", pa.uint64(): "Q"}


class ArrowDamaged(ValueError):
    """The bytes are not the table that they should be."""


def read_columns(data: bytes | memoryview, schema: pa.Schema, rows: int, *, file: bool) -> list[list[Any]]:
    """The columns of a table of exactly `rows` rows, without nulls.

    Args:
        data: an Arrow IPC file, or an Arrow IPC stream.
        schema: names and types in order; nullability and metadata do not matter.
        rows: how many rows there have to be.
        file: whether it is a file.

    Raises:
        ArrowDamaged: it is something else, or would expand to more than such a table.
    """
    try:
        batches = _read_batches(pa.py_buffer(data), schema, rows, file=file)
        columns = []
        for position, field in enumerate(schema):
            column: list[Any] = []
            for batch in batches:
                column += _values(batch.column(position), field.type)
            columns.append(column)
    except (pa.ArrowException, ValueError, OSError, MemoryError, TypeError, StopIteration, struct.error) as error:
        raise ArrowDamaged(f"not the Arrow table that it should be: {error}") from error
    return columns


def _read_batches(data: pa.Buffer, schema: pa.Schema, rows: int, *, file: bool) -> list[pa.RecordBatch]:
    if file:
        # A file is a stream between two magic words, with a footer that is of use only to those who seek.
        if data.size < 14 or data[:8].to_pybytes() != _MAGIC + b"\0\0" or data[data.size - 6 :].to_pybytes() != _MAGIC:
            raise ArrowDamaged("it is not an Arrow IPC file")
        data = data[8:]
    messages = pa.ipc.MessageReader.open_stream(data)
    first = messages.read_next_message()
    if first.type != "schema":
        # The library would read the header of any message as if it were a schema, wherever that leads.
        raise ArrowDamaged(f"it begins with a {first.type} message")
    found = pa.ipc.read_schema(first)
    if [(field.name, field.type) for field in found] != [(field.name, field.type) for field in schema]:
        raise ArrowDamaged("its columns are not those of the format")
    limit = sum(field.type.bit_width // 8 * rows + rows // 8 + _COLUMN_SLACK for field in schema)
    batches = []
    total = 0
    for message in messages:
        if message.type != "record batch":
            raise ArrowDamaged(f"it holds a {message.type} message")
        _refuse_expansion(message.metadata, message.body, limit)
        batch = pa.ipc.read_record_batch(message, found)
        batch.validate(full=True)
        total += batch.num_rows
        if total > rows:
            break
        if batch.num_rows:
            batches.append(batch)
    if total != rows:
        raise ArrowDamaged(f"it has not the {rows} rows that it should have")
    return batches


def _refuse_expansion(metadata: pa.Buffer, body: pa.Buffer | None, limit: int) -> None:
    """Add up the sizes that a record batch's buffers claim; flatbuffers as the Arrow format lays them out."""

    def number(code: str, at: int) -> int:
        if at < 0:
            raise ArrowDamaged("its metadata points outside itself")
        value: int = struct.unpack_from(f"<{code}", metadata, at)[0]
        return value

    def field(table: int, position: int) -> int:
        vtable = table - number("i", table)
        entry = 4 + 2 * position
        distance = number("H", vtable + entry) if entry < number("H", vtable) else 0
        return table + distance if distance else 0

    def target(at: int) -> int:
        return at + number("I", at)

    batch = target(field(number("I", 0), 2))
    buffers_at = field(batch, 2)
    compressed = field(batch, 3) != 0
    if not buffers_at or body is None:
        return
    vector = target(buffers_at)
    total = 0
    for index in range(number("I", vector)):
        offset, length = (number("q", vector + 4 + 16 * index + part) for part in (0, 8))
        if compressed and length >= 8 and offset >= 0:
            claimed: int = struct.unpack_from("<q", body, offset)[0]
            length = length if claimed == -1 else claimed
        if length < 0:
            raise ArrowDamaged("a buffer claims a negative size")
        total += length
        if total > limit:
            raise ArrowDamaged("it claims to be larger than it may be")


def _values(column: pa.Array[Any], kind: pa.DataType) -> list[Any]:
    if column.null_count:
        raise ArrowDamaged("it holds nulls")
    width = kind.bit_width // 8
    buffer = column.buffers()[1]
    if buffer is None:
        raise ArrowDamaged("a column has no values")
    content = memoryview(buffer).cast("B")
    content = content[column.offset * width : (column.offset + len(column)) * width]
    if pa.types.is_fixed_size_binary(kind):
        plain = content.tobytes()
        return [plain[at : at + width] for at in range(0, len(plain), width)]
    numbers = array(_CODES[kind])
    numbers.frombytes(content)
    return numbers.tolist()


def number_column(values: Iterable[int], kind: pa.DataType) -> pa.Array[Any]:
    """A column of unsigned numbers."""
    content = array(_CODES[kind], values)
    return pa.Array.from_buffers(kind, len(content), [None, pa.py_buffer(content)])


def bytes_column(values: Sequence[bytes], width: int) -> pa.Array[Any]:
    """A column of byte strings of one width."""
    return pa.Array.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(b"".join(values))])


def to_file_bytes(columns: Sequence[pa.Array[Any]], schema: pa.Schema) -> bytes:
    """An Arrow IPC file with one batch, its body compressed with zstd."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    plain: bytes = sink.getvalue().to_pybytes()
    return plain


def to_stream_bytes(columns: Sequence[pa.Array[Any]], schema: pa.Schema) -> bytes:
    """An Arrow IPC stream with one batch, not compressed: the frame that it becomes is."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    plain: bytes = sink.getvalue().to_pybytes()
    return plain
