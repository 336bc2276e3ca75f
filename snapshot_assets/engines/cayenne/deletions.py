"""Delete files: the positions of the rows of one data file that are gone.

A delete file is an Arrow IPC file with one column `position` (uint64, ascending, no position twice). Its schema's
metadata holds the BLAKE3 of the positions as little-endian bytes, which is checked whenever the file is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from blake3 import blake3

from snapshot_assets.durable import sync_folder, write_synced
from snapshot_assets.errors import CaptureError, CorruptCapture
from snapshot_assets.ids import new_ulid

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["FORMAT", "WrittenDeletes", "read_positions", "write_positions"]

FORMAT: Final = "arrow-positions"
"""What `cayenne_delete_file.format` says of these files."""

_SUFFIX: Final = ".arrow"
_DIGEST: Final = b"blake3"


@dataclass(frozen=True, slots=True)
class WrittenDeletes:
    """A delete file that is complete and durable."""

    name: str
    delete_count: int
    size: int


def write_positions(folder: Path, positions: npt.NDArray[np.uint64]) -> WrittenDeletes:
    """Write a new delete file to a folder, which is made.

    Raises:
        CaptureError: it can not be written.
    """
    schema = pa.schema([pa.field("position", pa.uint64(), nullable=False)], metadata={_DIGEST: _digest(positions)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(positions)], schema=schema))
    content = sink.getvalue()
    path = folder / f"{new_ulid()}{_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_synced(path, memoryview(content))
        for changed in (folder, folder.parent, folder.parent.parent):
            sync_folder(changed)
    except OSError as error:
        raise CaptureError(f"{path} can not be written: {error.strerror}") from error
    return WrittenDeletes(path.name, len(positions), content.size)


def read_positions(path: Path, row_count: int) -> npt.NDArray[np.uint64]:
    """The positions in a delete file.

    Args:
        path: the delete file.
        row_count: how many rows its data file has.

    Raises:
        CorruptCapture: it is missing, damaged, or names rows that the data file does not have.
    """
    try:
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
            table = reader.read_all()
        positions: npt.NDArray[np.uint64] = table.column("position").to_numpy()
        expected = (table.schema.metadata or {}).get(_DIGEST)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise CorruptCapture(f"the delete file {path} can not be read: {error}") from error
    if positions.dtype != np.uint64 or _digest(positions) != expected:
        raise CorruptCapture(f"the delete file {path} is damaged")
    if len(positions) and (positions[-1] >= row_count or not bool(np.all(positions[1:] > positions[:-1]))):
        raise CorruptCapture(f"the delete file {path} names rows that its data file does not have")
    return positions


def _digest(positions: npt.NDArray[np.uint64]) -> bytes:
    return blake3(np.ascontiguousarray(positions, dtype="<u8").tobytes()).hexdigest().encode()
