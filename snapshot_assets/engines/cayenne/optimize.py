"""Merging the small files of a table, and leaving out what is deleted in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import pyarrow as pa

from snapshot_assets.engines.cayenne.change import Change, LiveTable, changing
from snapshot_assets.engines.cayenne.data_files import ROWS_PER_FILE, read_batches
from snapshot_assets.engines.cayenne.deletions import read_positions
from snapshot_assets.engines.cayenne.state import DataFile, Part, TableState
from snapshot_assets.engines.contract import Optimized
from snapshot_assets.errors import LiveDatabaseMissing

__all__ = ["optimize_table"]

_SMALL_ROWS: Final = ROWS_PER_FILE // 2
_SMALL_BYTES: Final = 64 << 20


def optimize_table(live: LiveTable, *, timeout: float) -> Optimized:
    """Write the small files of each part anew as one, and files with deleted rows without them.

    Raises:
        LiveDatabaseMissing: there is no such table.
        LiveDatabaseBusy: another writer was at work for `timeout` seconds.
        CaptureError: a file can not be read or written; the table is as it was.
    """
    with changing(live, timeout=timeout) as change:
        before = change.before
        if before is None:
            raise LiveDatabaseMissing(f"there is no table {live.name!r} yet", dataset=live.name)
        after = replace(before, parts=tuple(_merged(change, before.schema, part) for part in before.parts))
        files, deletes, size = _counted(before)
        figures = {"files_before": files, "deleted_rows_before": deletes, "bytes_before": size}
        if after == before:
            return Optimized("nothing_to_do", "no file is small beside others or has deleted rows", figures)
        change.commit(after)
    files_after, _, size_after = _counted(after)
    return Optimized(
        None,
        f"{files} files became {files_after}, without {deletes} deleted rows",
        figures | {"files_after": files_after, "deleted_rows_after": 0, "bytes_after": size_after},
    )


def _merged(change: Change, schema: pa.Schema, part: Part) -> Part:
    """The part with fewer files; the same part if it would have as many."""
    chosen = [file for file in part.files if file.deletes or _is_small(file)]
    if len(chosen) < 2 and not any(file.deletes for file in chosen):
        return part
    rewritten = change.rewritten(part, schema, chosen, _rows(chosen, schema))
    is_worth_it = any(file.deletes for file in chosen) or len(rewritten.files) < len(part.files)
    return rewritten if is_worth_it else part


def _is_small(file: DataFile) -> bool:
    return file.row_count < _SMALL_ROWS and file.size < _SMALL_BYTES


def _rows(files: Sequence[DataFile], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for file in files:
        deleted = read_positions(file.deletes.path, file.row_count) if file.deletes else None
        yield from read_batches(file.path, schema, deleted=deleted)


def _counted(state: TableState) -> tuple[int, int, int]:
    """How many files, deleted rows and bytes of data files a table has."""
    files = [file for part in state.parts for file in part.files]
    deleted = sum(file.row_count - file.live_rows for file in files)
    return len(files), deleted, sum(file.size for file in files)
