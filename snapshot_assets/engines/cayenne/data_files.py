"""Vortex files: written once, synced and digested; read in batches, with columns and filters pushed down."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import vortex
import vortex.io
from blake3 import blake3

from snapshot_assets.durable import is_full, sync_folder
from snapshot_assets.engines.sql import folded
from snapshot_assets.errors import CaptureError, CorruptCapture, SnapshotAssetsError, UnsupportedLiveDatabase
from snapshot_assets.ids import new_ulid

if TYPE_CHECKING:
    import numpy.typing as npt
    from vortex.expr import Expr

__all__ = [
    "ROWS_PER_FILE",
    "SUFFIX",
    "WrittenFile",
    "check_schema",
    "count_rows",
    "file_digest",
    "file_version",
    "read_batches",
    "write_files",
]

SUFFIX: Final = ".vortex"

ROWS_PER_FILE: Final = 1 << 20
"""The most rows in a data file. A larger one costs more memory to write, and to read when rows of it are deleted."""

_BYTES_PER_FILE: Final = 128 << 20
_ROWS_AT_ONCE: Final = 1 << 16
_MAGIC: Final = b"VTXF"
_NOT_READ_BY_ALL: Final = (
    pa.types.is_float16,
    pa.types.is_decimal256,
    pa.types.is_string_view,
    pa.types.is_binary_view,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
    pa.types.is_run_end_encoded,
)
_TAIL_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A data file that is complete and durable. `digest` is the BLAKE3 of its bytes, in hexadecimal."""

    name: str
    row_count: int
    size: int
    digest: str


def check_schema(schema: pa.Schema) -> None:
    """Refuse columns that Vortex could not give back as they were.

    Raises:
        UnsupportedLiveDatabase: there is no column, SQL could not tell two names apart, or Vortex has no such type.
    """
    if not len(schema) or len(set(map(folded, schema.names))) != len(schema):
        raise UnsupportedLiveDatabase(
            "a table has at least one column, and every column a name of its own, whatever the case of its letters"
        )
    for field in schema:
        nulls = pa.table([pa.nulls(1, field.type)], schema=pa.schema([field.with_nullable(True)]))
        wanted = pa.struct(nulls.schema)
        try:
            kept = bool(vortex.array(nulls).to_arrow_array(arrow_type=wanted).type == wanted)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            kept = False
        if not kept or not _is_read_by_all(field.type):
            raise UnsupportedLiveDatabase(
                f"column {field.name!r} is of type {field.type}, which can not be kept in Vortex files and read in SQL",
                hint="Cast the column first: e.g. string for string_view, binary for fixed_size_binary, int64 for "
                "duration, float for halffloat.",
            )


def _is_read_by_all(data_type: pa.DataType) -> bool:
    """Whether Arrow can filter rows with values of the type, and DuckDB can scan them."""
    if isinstance(data_type, pa.BaseExtensionType):
        return _is_read_by_all(data_type.storage_type)
    inner = [data_type.field(position).type for position in range(data_type.num_fields)]
    return not any(is_one(data_type) for is_one in _NOT_READ_BY_ALL) and all(map(_is_read_by_all, inner))


def write_files(folder: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> list[WrittenFile]:
    """Write rows to new files of a folder, which is made; nothing at all when there are no rows.

    Whatever the batches raise goes through. After any error, what was written by then is removed.

    Raises:
        CaptureError: they can not be written.
    """
    written: list[WrittenFile] = []
    source = _Pieces(batches)
    try:
        while source.has_more():
            if not written:
                folder.mkdir(parents=True, exist_ok=True)
            written.append(_write(folder / f"{new_ulid()}{SUFFIX}", schema, source))
        if written:
            for changed in (folder, *folder.parents[:3]):
                sync_folder(changed)
    except BaseException as error:
        for file in written:
            (folder / file.name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error is not source.failure:
            hint = "Free disk space." if is_full(error) else "Make the data folder writable."
            raise CaptureError(f"{folder} can not be written: {error.strerror or error}", hint=hint) from error
        raise
    return written


def _write(path: Path, schema: pa.Schema, source: _Pieces) -> WrittenFile:
    try:
        vortex.io.write(pa.RecordBatchReader.from_batches(schema, source.piece()), str(path))
        with path.open("rb") as file:
            os.fsync(file.fileno())
        written = WrittenFile(path.name, source.rows, path.stat().st_size, file_digest(path))
        counted = count_rows(path)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if source.failure is not None:
            raise source.failure from None
        if isinstance(error, OSError) or not _is_of_vortex(error):
            raise
        raise CaptureError(f"Vortex can not write {path}: {_first_line(error)}") from error
    if counted != written.row_count:
        path.unlink()
        raise CaptureError(f"Vortex wrote {counted} of {written.row_count} rows to {path}")
    return written


class _Pieces:
    """A stream of batches, cut into pieces that make a file each.

    Attributes:
        rows: how many rows the last piece has.
        failure: the error with which the stream ended; Vortex would hand on only its text.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self._waiting: pa.RecordBatch | None = None
        self.rows = 0
        self.failure: BaseException | None = None

    def has_more(self) -> bool:
        try:
            while self._waiting is None or self._waiting.num_rows == 0:
                self._waiting = next(self._batches, None)
                if self._waiting is None:
                    return False
        except BaseException as error:
            self.failure = error
            raise
        return True

    def piece(self) -> Iterator[pa.RecordBatch]:
        self.rows, taken = 0, 0
        while taken < _BYTES_PER_FILE and self.rows < ROWS_PER_FILE and self.has_more():
            assert self._waiting is not None
            batch = self._waiting.slice(0, min(_ROWS_AT_ONCE, ROWS_PER_FILE - self.rows))
            self._waiting = self._waiting.slice(batch.num_rows)
            self.rows += batch.num_rows
            taken += batch.nbytes
            yield batch


def read_batches(
    path: Path,
    schema: pa.Schema,
    *,
    row_filter: Expr | None = None,
    deleted: npt.NDArray[np.uint64] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of a file, in their order.

    Args:
        path: the file.
        schema: the columns to read, with the types that they shall have.
        row_filter: only rows for which it is true.
        deleted: positions of rows to leave out, in order.

    Raises:
        CorruptCapture: the file is missing or damaged.
    """
    wanted = pa.struct(schema)
    with _errors_of(path):
        file = vortex.open(str(path))
        indices = None
        if deleted is not None and len(deleted):
            kept = np.ones(len(file), dtype=np.bool_)
            kept[deleted] = False
            indices = vortex.array(pa.array(np.flatnonzero(kept).astype(np.uint64)))
        # Not `to_arrow`: what Vortex finds wrong with a damaged file behind that ends the whole process.
        arrays = file.scan(schema.names, expr=row_filter, indices=indices)
    while True:
        with _errors_of(path):
            array = next(arrays, None)
            if array is None:
                return
            found = array.to_arrow_array(arrow_type=wanted)
            chunks = found.chunks if isinstance(found, pa.ChunkedArray) else [found]
            batches = [_batch(chunk, schema) for chunk in chunks]
        yield from batches


def _batch(chunk: pa.StructArray, schema: pa.Schema) -> pa.RecordBatch:
    if not len(schema):
        return pa.RecordBatch.from_struct_array(chunk)
    return pa.RecordBatch.from_arrays(chunk.flatten(), schema=schema)


def count_rows(path: Path) -> int:
    """The rows of a file by its footer.

    Raises:
        CorruptCapture: the file is missing or damaged.
    """
    with _errors_of(path):
        return len(vortex.open(str(path)))


def file_digest(path: Path) -> str:
    """The BLAKE3 of a file's bytes, in hexadecimal."""
    digest = blake3()
    with path.open("rb") as file:
        while block := file.read(4 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_version(path: Path) -> int:
    """The version of the Vortex file format that a file says it has.

    Raises:
        CorruptCapture: it is no Vortex file.
    """
    try:
        with path.open("rb") as file:
            file.seek(-_TAIL_BYTES, os.SEEK_END)
            tail = file.read(_TAIL_BYTES)
    except OSError as error:
        raise CorruptCapture(f"{path} can not be read: {error.strerror}") from error
    if tail[-len(_MAGIC) :] != _MAGIC:
        raise CorruptCapture(f"{path} is not a Vortex file")
    return int.from_bytes(tail[:2], "little")


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Whatever Vortex finds wrong with a file is a `CorruptCapture`."""
    try:
        yield
    except SnapshotAssetsError:
        raise
    except BaseException as error:
        if not _is_of_vortex(error):
            raise
        raise CorruptCapture(f"{path} can not be read: {_first_line(error)}") from error


def _is_of_vortex(error: BaseException) -> bool:
    """Whether Vortex raised it: it has no errors of its own, and its panics are not even an `Exception`."""
    known = isinstance(error, RuntimeError | ValueError | OSError | IndexError | pa.ArrowException)
    return known or type(error).__module__ == "pyo3_runtime"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
