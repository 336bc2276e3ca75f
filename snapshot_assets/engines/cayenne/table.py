"""Cayenne tables: Vortex files that a metastore describes, changed by whole transactions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from snapshot_assets.engines.cayenne.change import Change, LiveTable, changing
from snapshot_assets.engines.cayenne.gates import deletion_gate
from snapshot_assets.engines.cayenne.metastore import data_folder, default_metastore, open_metastore
from snapshot_assets.engines.cayenne.predicates import check_filter, columns_read
from snapshot_assets.engines.cayenne.rows import KeyedRows, arrow_reader, checked_batches, checked_schema
from snapshot_assets.engines.cayenne.scan import matching_parts, scan_state
from snapshot_assets.engines.cayenne.state import TableState
from snapshot_assets.errors import ConfigurationError, LiveDatabaseBusy, LiveDatabaseMissing, ReadOnlyDataset
from snapshot_assets.ids import check_dataset_name
from snapshot_assets.paths import real_path

__all__ = ["CayenneTable", "live_table"]

_WAIT_SECONDS: Final = 30.0


def live_table(root: Path, name: str, metastore: Path | None, *, create: bool) -> LiveTable:
    """A live table by its root, with a connection to its metastore; the table need not exist.

    Raises:
        InvalidDatasetName: no dataset can have the name.
        LiveDatabaseMissing: there is no metastore, and `create` is off.
        LiveDatabaseBusy: another program kept the metastore locked.
        UnsupportedLiveDatabase: the metastore is none, or of a newer version.
    """
    root, name = real_path(root), check_dataset_name(name)
    path = default_metastore(root) if metastore is None else real_path(metastore)
    connection = open_metastore(path, create=create)
    # Files that a commit replaced are removed right after it, so no power cut may take the commit back.
    connection.execute("PRAGMA synchronous = FULL")
    return LiveTable(name, data_folder(root), path, connection)


class CayenneTable:
    """One table. Every change is all or nothing, also across a crash or a power cut, and readers see whole states.

    Changes of several processes wait for each other, up to 30 seconds. Rows are given as an Arrow table, batch or
    reader, or anything else with an Arrow stream; columns go by name and must have the table's types. A table object
    may be used from several threads.

    `create`, `open` and the engine's connections make these objects.
    """

    def __init__(self, live: LiveTable | None, state: TableState | None, *, read_only: bool) -> None:
        self._live = live
        self._fixed = state
        self._read_only = read_only
        self._is_closed = False

    @classmethod
    def create(
        cls,
        root: str | Path,
        name: str,
        schema: pa.Schema,
        *,
        metastore: str | Path | None = None,
        primary_key: Sequence[str] = (),
        partition_by: Sequence[str] = (),
    ) -> Self:
        """Make a table, or open it if it is there with the same schema and keys.

        Args:
            root: the folder of the tables; their files lie in `<root>/data`.
            name: the table, which is also the dataset.
            schema: the columns.
            metastore: the metastore; `<root>/metadata/cayenne.db` when it is left out.
            primary_key: columns that tell rows apart; they can not be null.
            partition_by: columns by whose values the rows are laid apart.

        Raises:
            ConfigurationError: it is there and differs, or a key can not be one.
            UnsupportedLiveDatabase: a column is of a type that Vortex files can not keep.
        """
        table = cls._opened(root, name, metastore, create=True)
        try:
            table.define(schema, primary_key=primary_key, partition_by=partition_by)
        except BaseException:
            table.close()
            raise
        return table

    @classmethod
    def open(cls, root: str | Path, name: str, *, metastore: str | Path | None = None, read_only: bool = False) -> Self:
        """Open a table that is there.

        Raises:
            LiveDatabaseMissing: there is no such table.
        """
        table = cls._opened(root, name, metastore, create=False, read_only=read_only)
        try:
            table.count()
        except BaseException:
            table.close()
            raise
        return table

    @classmethod
    def _opened(
        cls, root: str | Path, name: str, metastore: str | Path | None, *, create: bool, read_only: bool = False
    ) -> Self:
        path = None if metastore is None else Path(metastore)
        return cls(live_table(Path(root), name, path, create=create), None, read_only=read_only)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the table. What its scans still have to read, they still can."""
        self._is_closed = True
        if self._live is not None:
            with self._live.lock:
                self._live.connection.close()

    @property
    def exists(self) -> bool:
        """Whether the table has been made. A live connection of a dataset may stand for one that is yet to be."""
        return self._load() is not None

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return self._state().schema

    @property
    def primary_key(self) -> tuple[str, ...]:
        """The columns that tell rows apart; none, if the table has no primary key."""
        return self._state().primary_key

    @property
    def partition_by(self) -> tuple[str, ...]:
        """The columns by whose values the rows are laid apart."""
        return self._state().partition_by

    def count(self) -> int:
        """The number of rows; no file is read."""
        return self._state().live_rows

    def scan(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002 - Arrow's own word
    ) -> pa.RecordBatchReader:
        """The rows as they are now, in batches; later changes do not show.

        Columns and the filter are pushed into the files. The files stay where they are until the reader is used up,
        or dropped.

        Args:
            columns: those to read, in this order; all, when it is left out.
            filter: only rows for which it is true.

        Raises:
            ConfigurationError: there is no such column, or the filter does not fit the table.
            CorruptCapture: while it is read: a file is missing or damaged.
        """
        if self._live is None:
            return scan_state(self._state(), columns, filter)
        with ExitStack() as held:
            folder = self._state().folder
            held.enter_context(deletion_gate(folder, timeout=_WAIT_SECONDS))
            state = self._state()
            if state.folder != folder:
                raise LiveDatabaseBusy(f"the table {state.name!r} was made anew meanwhile", dataset=state.name)
            reader = scan_state(state, columns, filter)
            return pa.RecordBatchReader.from_batches(reader.schema, _while_held(held.pop_all(), reader))

    def define(self, schema: pa.Schema, *, primary_key: Sequence[str] = (), partition_by: Sequence[str] = ()) -> None:
        """Make the table without rows, if it is not there.

        Raises:
            ConfigurationError: it is there with another schema or other keys, or a key can not be one.
            UnsupportedLiveDatabase: a column is of a type that Vortex files can not keep.
        """
        wanted = (checked_schema(schema, primary_key, partition_by), tuple(primary_key), tuple(partition_by))
        with self._changing() as change:
            if change.before is None:
                change.commit(change.emptied(*wanted))
                return
            found = (change.before.schema, change.before.primary_key, change.before.partition_by)
            if found != wanted:
                raise ConfigurationError(
                    f"the table {change.before.name!r} is there already, with another schema or other keys",
                    hint="Overwrite it with allow_schema_change=True to give it other columns.",
                )

    def append(self, arrow: Any) -> int:
        """Add rows; return how many. A table that is not there is made, with the rows' columns and without keys.

        Raises:
            ConfigurationError: the rows break the table's schema, or a primary key stands twice or is there already.
                Nothing is changed.
        """
        reader = arrow_reader(arrow)
        with self._changing() as change:
            before = change.before or change.emptied(checked_schema(reader.schema, (), ()), (), ())
            rows = KeyedRows(checked_batches(reader, before.schema), before.primary_key)
            after = change.added(before, rows)
            keys = rows.distinct_keys()
            if keys is not None and _without_keys(change, after, keys) != after:
                raise ConfigurationError(
                    f"primary keys of the rows are in the table {before.name!r} already",
                    hint="Use upsert, which replaces the rows that are there.",
                    dataset=before.name,
                )
            return _committed(change, change.before, after)

    def overwrite(self, arrow: Any, *, allow_schema_change: bool = False) -> int:
        """Replace all rows; return how many there are now. A table that is not there is made, as by `append`.

        Args:
            arrow: the rows. They may come from a scan of this table.
            allow_schema_change: the table takes the columns of the rows; its keys stay.

        Raises:
            ConfigurationError: the rows break the table's schema, or a primary key stands twice. Nothing is changed.
        """
        reader = arrow_reader(arrow)
        with self._changing() as change:
            found = change.before
            primary_key, partition_by = (found.primary_key, found.partition_by) if found else ((), ())
            schema = reader.schema if found is None or allow_schema_change else found.schema
            empty = change.emptied(checked_schema(schema, primary_key, partition_by), primary_key, partition_by)
            rows = KeyedRows(checked_batches(reader, empty.schema), primary_key)
            after = change.added(empty, rows)
            rows.distinct_keys()
            return _committed(change, None, after)

    def upsert(self, arrow: Any) -> int:
        """Add rows, in place of those with the same primary keys; return how many were given.

        Raises:
            ConfigurationError: the table has no primary key, the rows break its schema, or a primary key stands twice
                among them. Nothing is changed.
        """
        reader = arrow_reader(arrow)
        with self._changing() as change:
            before = self._present(change.before)
            if not before.primary_key:
                raise ConfigurationError(f"the table {before.name!r} has no primary key", dataset=before.name)
            rows = KeyedRows(checked_batches(reader, before.schema), before.primary_key)
            after = change.added(before, rows)
            keys = rows.distinct_keys()
            if keys is None:
                return 0
            _committed(change, before, _without_keys(change, after, keys))
            return int(keys.num_rows)

    def delete(self, predicate: pc.Expression) -> int:
        """Remove the rows for which the predicate is true; return how many.

        Raises:
            ConfigurationError: the predicate does not fit the table. Nothing is changed.
        """
        with self._changing() as change:
            before = self._present(change.before)
            check_filter(predicate, before.schema)
            names = columns_read(predicate, before.schema) or before.schema.names[:1]
            columns = pa.schema([before.schema.field(name) for name in names])
            touched = {part.table_id for part in matching_parts(before, predicate)}

            def matching(rows: pa.Table) -> npt.NDArray[np.uint64]:
                numbered, position = _numbered(rows)
                return _as_positions(numbered.filter(predicate).column(position))

            parts = [
                change.without(part, columns, matching) if part.table_id in touched else part for part in before.parts
            ]
            return -_committed(change, before, replace(before, parts=tuple(parts)))

    @contextmanager
    def _changing(self) -> Iterator[Change]:
        self._check_open()
        if self._live is None or self._read_only:
            raise ReadOnlyDataset("this Cayenne table was opened read-only")
        with changing(self._live, timeout=_WAIT_SECONDS) as change:
            yield change

    def _load(self) -> TableState | None:
        self._check_open()
        return self._fixed if self._live is None else self._live.load()

    def _state(self) -> TableState:
        return self._present(self._load())

    def _present(self, state: TableState | None) -> TableState:
        if state is None:
            name = self._live.name if self._live else None
            raise LiveDatabaseMissing(f"there is no table {name!r} yet", dataset=name)
        return state

    def _check_open(self) -> None:
        if self._is_closed:
            raise ConfigurationError("this Cayenne table is closed")


def _committed(change: Change, before: TableState | None, after: TableState) -> int:
    """Make the change if it changes anything; return how many rows the table has more than before."""
    if after != before:
        change.commit(after)
    return after.live_rows - (before.live_rows if before else 0)


def _without_keys(change: Change, state: TableState, keys: pa.Table) -> TableState:
    """The state without the rows that were there before and have one of the keys."""
    columns = pa.schema([state.schema.field(name) for name in keys.column_names])

    def matching(rows: pa.Table) -> npt.NDArray[np.uint64]:
        numbered, position = _numbered(rows)
        found = numbered.join(keys, keys=keys.column_names, join_type="left semi")
        return _as_positions(found.column(position))

    return replace(state, parts=tuple(change.without(part, columns, matching) for part in state.parts))


def _numbered(rows: pa.Table) -> tuple[pa.Table, str]:
    """The rows with a column of their positions, and the name of that column."""
    name = "position"
    while name in rows.column_names:
        name += "_"
    return rows.append_column(name, pa.array(np.arange(rows.num_rows, dtype=np.uint64))), name


def _as_positions(column: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    return np.asarray(column.to_numpy(), dtype=np.uint64)


def _while_held(held: ExitStack, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    with held:
        yield from reader
