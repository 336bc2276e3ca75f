"""One change of a table: new files first, then one transaction, then what it replaced is removed."""

from __future__ import annotations

import filecmp
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import numpy as np
import pyarrow as pa

from snapshot_assets.durable import sync_folder
from snapshot_assets.engines.cayenne.commit import commit_state
from snapshot_assets.engines.cayenne.data_files import read_batches, write_files
from snapshot_assets.engines.cayenne.deletions import read_positions, write_positions
from snapshot_assets.engines.cayenne.gates import writing
from snapshot_assets.engines.cayenne.leftovers import Unfinished, remove_leftovers, sweep, unknown_folders
from snapshot_assets.engines.cayenne.metastore import deletions_folder, file_path, snapshot_folder, table_folder
from snapshot_assets.engines.cayenne.rows import partition_key, partitioned
from snapshot_assets.engines.cayenne.slice_import import import_slice
from snapshot_assets.engines.cayenne.slice_rules import parse_slice, slice_files
from snapshot_assets.engines.cayenne.state import DataFile, DeleteFile, Part, TableState, load_state
from snapshot_assets.errors import ConfigurationError, LiveDatabaseBusy, SnapshotAssetsError
from snapshot_assets.ids import new_ulid

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Change", "LiveTable", "Matching", "changing"]

Matching = Callable[[pa.Table], "npt.NDArray[np.uint64]"]
"""Tells which rows of a file are meant, by their positions in it."""

_BUFFER_BYTES: Final = 128 << 20


@dataclass(frozen=True, slots=True)
class LiveTable:
    """Where a live table is. The connection is used by one thread at a time, which holds `lock`."""

    name: str
    data: Path
    metastore: Path
    connection: sqlite3.Connection
    lock: threading.RLock = field(default_factory=threading.RLock)

    def load(self) -> TableState | None:
        """The table's state now, or none if there is no such table."""
        with self.lock:
            return load_state(self.connection, self.name, self.data)


@contextmanager
def changing(live: LiveTable, *, timeout: float) -> Iterator[Change]:
    """Be the only writer of a table for one change; it is not made before `Change.commit`.

    If the block ends with an error, the table is as it was.

    Raises:
        LiveDatabaseBusy: another writer was at work for `timeout` seconds, or came in between.
    """
    try:
        with ExitStack() as stack:
            change = _begun(live, stack, timeout)
            try:
                yield change
            except BaseException:
                change.undo()
                raise
            if change.before is not None:
                with _can_wait(), live.lock:
                    remove_leftovers(live.connection, change.before, live.data)
    finally:
        with _can_wait(), live.lock:
            sweep(live.connection, live.data, live.metastore)


def _begun(live: LiveTable, stack: ExitStack, timeout: float) -> Change:
    before = live.load()
    if before is not None:
        stack.enter_context(writing(before.folder, timeout=timeout))
        now = live.load()
        if now is None or now.table_id != before.table_id:
            raise LiveDatabaseBusy(f"the table {live.name!r} was made anew by another program", dataset=live.name)
        before = now
    change = Change(live, before)
    stack.callback(change.close)
    return change


def _can_wait() -> suppress:
    """For removing what nobody needs: the change is made or was not, and what stays, the next change removes."""
    return suppress(OSError, SnapshotAssetsError)


class Change:
    """The files that a change wrote, and the state that it will leave.

    Attributes:
        before: the table before the change; none if there is no table yet.
        table_id: the table's id, before and after.
        sequence: the table's sequence number after the change.
    """

    def __init__(self, live: LiveTable, before: TableState | None) -> None:
        self.before = before
        self.table_id = before.table_id if before else str(uuid4())
        self.sequence = before.sequence + 1 if before else 1
        self._live = live
        self._written: set[Path] = set()
        self._is_committing = False
        self._unfinished = Unfinished(live.data, live.metastore, self.table_id)
        if before is None:
            self._unfinished.note(self.table_id)

    @property
    def folder(self) -> Path:
        """The table's folder."""
        return self.before.folder if self.before else table_folder(self._live.data, self.table_id)

    def emptied(self, schema: pa.Schema, primary_key: tuple[str, ...], partition_by: tuple[str, ...]) -> TableState:
        """The table without rows, as a new snapshot."""
        snapshot_id = new_ulid()
        parts = () if partition_by else (Part(self.table_id, self.folder, snapshot_id),)
        return TableState(
            self.table_id, self._live.name, self.folder, schema, primary_key, partition_by, snapshot_id, 0, parts
        )

    def added(self, state: TableState, batches: Iterable[pa.RecordBatch]) -> TableState:
        """The state with new rows, which are written to files now."""
        if not state.partition_by:
            (part,) = state.parts
            return replace(state, parts=(self._with_rows(part, state.schema, batches),))
        parts = {part.key: part for part in state.parts}
        for values, rows in self._buffered(batches, state.partition_by):
            key = partition_key(values)
            part = parts.get(key) or self._new_partition(state, key, values)
            parts[key] = self._with_rows(part, state.schema, rows)
        return replace(state, parts=tuple(parts[key] for key in sorted(parts, key=str)))

    def _new_partition(self, state: TableState, key: str, values: tuple[Any, ...]) -> Part:
        table_id = str(uuid4())
        self._unfinished.note(table_id)
        return Part(table_id, table_folder(self._live.data, table_id), state.snapshot_id, (), key, values)

    def _buffered(
        self, batches: Iterable[pa.RecordBatch], names: tuple[str, ...]
    ) -> Iterator[tuple[tuple[Any, ...], list[pa.RecordBatch]]]:
        """The rows of each partition, as many at a time as may be held in memory."""
        held: dict[tuple[Any, ...], list[pa.RecordBatch]] = {}
        size = 0
        for batch in batches:
            size += batch.nbytes
            for values, rows in partitioned(batch, names):
                held.setdefault(values, []).append(rows)
            if size >= _BUFFER_BYTES:
                yield from held.items()
                held, size = {}, 0
        yield from held.items()

    def _with_rows(self, part: Part, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Part:
        folder = snapshot_folder(part.folder, part.snapshot_id)
        written = write_files(folder, schema, batches)
        self._written.update(folder / file.name for file in written)
        files = tuple(
            DataFile(
                part.snapshot_id,
                file_path(part.snapshot_id, file.name),
                folder / file.name,
                file.row_count,
                file.size,
                self.sequence,
                self.sequence,
                file.digest,
            )
            for file in written
        )
        return replace(part, files=part.files + files)

    def rewritten(
        self, part: Part, schema: pa.Schema, old: Sequence[DataFile], batches: Iterable[pa.RecordBatch]
    ) -> Part:
        """The part with new files of the rows in place of some old ones; it keeps the order of its rows by age."""
        kept = tuple(file for file in part.files if file not in old)
        first = min(file.first_sequence for file in old)
        added = self._with_rows(replace(part, files=()), schema, batches).files
        return replace(part, files=kept + tuple(replace(file, first_sequence=first) for file in added))

    def without(self, part: Part, columns: pa.Schema, matching: Matching) -> Part:
        """The part without the rows that match and were there before this change; the same part if there are none.

        Args:
            part: the part.
            columns: what `matching` looks at; at least one column.
            matching: tells which rows of a file go.
        """
        kept = [
            file if file.path in self._written else self._remaining(part, file, columns, matching)
            for file in part.files
        ]
        return replace(part, files=tuple(file for file in kept if file is not None))

    def _remaining(self, part: Part, file: DataFile, columns: pa.Schema, matching: Matching) -> DataFile | None:
        """The file without the rows that match; none if no row is left."""
        gone = read_positions(file.deletes.path, file.row_count) if file.deletes else np.empty(0, np.uint64)
        rows = pa.Table.from_batches(read_batches(file.path, columns), schema=columns)
        positions = np.union1d(gone, matching(rows))
        if len(positions) == len(gone):
            return file
        if len(positions) == file.row_count:
            return None
        folder = deletions_folder(part.folder, file.snapshot_id)
        written = write_positions(folder, positions)
        path = folder / written.name
        self._written.add(path)
        return replace(file, deletes=DeleteFile(new_ulid(), path, written.delete_count, written.size, self.sequence))

    def commit(self, after: TableState) -> None:
        """Make the change. Files that were written before are part of the table, or will be removed.

        Raises:
            LiveDatabaseBusy: another program changed the table meanwhile, or kept the metastore locked.
        """
        after = replace(after, sequence=self.sequence)
        kept = {part.table_id for part in after.parts}
        parts = self.before.parts if self.before else ()
        self._unfinished.note(*(part.table_id for part in parts if part.table_id not in kept))
        self._is_committing = True
        with self._live.lock:
            commit_state(self._live.connection, self.before, after)

    def replace_by_slice(self, document: bytes, files: Path) -> None:
        """Make the table what a slice says it is; this is a commit.

        The files that the slice names are moved here out of the folder `files`, which is on the same file system. One
        that is here already must have the same bytes.

        Raises:
            ConfigurationError: a file of the name is here and differs, the slice clashes with another dataset, or
                another metastore may have a table in a folder that the slice needs.
            PathOutsideAnchor, DocumentDamaged: the slice can not be imported; see `import_slice`.
            LiveDatabaseBusy: another program kept the metastore locked.
        """
        new = {str(row[0]) for row in parse_slice(document).tables["cayenne_table"]}
        old = {part.table_id for part in self.before.parts} | {self.table_id} if self.before else set()
        self._refuse_folders_of_others(sorted(new))
        self._unfinished.note(*sorted(new | old))
        for path in slice_files(document):
            target = self._live.data / path
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                (files / path).rename(target)
                self._written.add(target)
                sync_folder(target.parent)
            elif not filecmp.cmp(files / path, target, shallow=False):
                raise ConfigurationError(
                    f"{target} is there already, and is not the file that the snapshot has",
                    hint="Restore into another root.",
                    dataset=self._live.name,
                )
        self._is_committing = True
        with self._live.lock:
            import_slice(self._live.connection, document, self._live.data, name=self._live.name)

    def _refuse_folders_of_others(self, table_ids: Sequence[str]) -> None:
        """A folder of a table that this metastore does not have may be one of another, whose files would be taken."""
        live = self._live
        with live.lock:
            if unknown_folders(live.connection, live.data, table_ids):
                # A change of this metastore that was killed may have left them.
                sweep(live.connection, live.data, live.metastore)
            folders = unknown_folders(live.connection, live.data, table_ids)
        if folders:
            raise ConfigurationError(
                f"{folders[0]} is there already, and is of no table in {live.metastore}",
                hint="Name the metastore of this root, or restore into another root.",
                dataset=live.name,
            )

    def undo(self) -> None:
        """Remove the files of a change that was not made; once the transaction began, the next change decides."""
        if not self._is_committing:
            for path in self._written:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """The change has ended, whether or not it was made."""
        self._unfinished.close()
