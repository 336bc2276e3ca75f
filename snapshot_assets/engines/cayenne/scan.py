"""Reading a table: columns and filters are pushed into its files, partitions that can not match are left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset

from snapshot_assets.engines.cayenne.data_files import read_batches
from snapshot_assets.engines.cayenne.deletions import read_positions
from snapshot_assets.engines.cayenne.predicates import check_filter, columns_read, in_partitions, vortex_filter
from snapshot_assets.engines.cayenne.state import Part, TableState
from snapshot_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from pyarrow.compute import Expression

__all__ = ["CayenneScan", "matching_parts", "scan_state"]


def scan_state(
    state: TableState, columns: Sequence[str] | None = None, row_filter: Expression | None = None
) -> pa.RecordBatchReader:
    """The rows of a table, read while the reader is used.

    Raises:
        ConfigurationError: there is no such column, or the filter does not fit the table.
    """
    chosen = state.schema.names if columns is None else list(columns)
    if unknown := [name for name in chosen if name not in state.schema.names]:
        raise ConfigurationError(f"the table {state.name!r} has no column {', '.join(map(repr, unknown))}")
    if row_filter is not None:
        check_filter(row_filter, state.schema)
    schema = pa.schema([state.schema.field(name) for name in chosen], metadata=state.schema.metadata)
    return pa.RecordBatchReader.from_batches(schema, _batches(state, chosen, row_filter))


def matching_parts(state: TableState, row_filter: Expression | None) -> Sequence[Part]:
    """The parts that may hold rows for which the filter is true."""
    if row_filter is None or not state.partition_by:
        return state.parts
    return in_partitions(row_filter, state.schema, [(part, state.guarantee(part)) for part in state.parts])


def _batches(state: TableState, chosen: list[str], row_filter: Expression | None) -> Iterator[pa.RecordBatch]:
    needed, pushed = set(chosen), None
    if row_filter is not None:
        needed |= set(columns_read(row_filter, state.schema))
        pushed = vortex_filter(row_filter, state.schema)
    schema = pa.schema([field for field in state.schema if field.name in needed])
    for part in matching_parts(state, row_filter):
        for file in part.files:
            deleted = read_positions(file.deletes.path, file.row_count) if file.deletes else None
            for batch in read_batches(file.path, schema, row_filter=pushed, deleted=deleted):
                kept = batch if row_filter is None else batch.filter(row_filter)
                if kept.num_rows:
                    yield kept.select(chosen)


class CayenneScan(pyarrow.dataset.Dataset):  # type: ignore[misc]  # pyarrow has no types
    """One table of a local copy, as an Arrow dataset that DuckDB scans as often as it likes."""

    # pyarrow's own datasets can not be constructed; DuckDB calls the two members below and no other.
    def __init__(self, state: TableState) -> None:
        self._state = state

    @property
    def schema(self) -> pa.Schema:
        """The table's columns."""
        return self._state.schema

    def scanner(
        self,
        columns: Sequence[str] | None = None,
        filter: Expression | None = None,  # noqa: A002 - the name that DuckDB calls it by
        **_options: object,
    ) -> pyarrow.dataset.Scanner:
        """A new scan of the columns, of the rows for which the filter holds."""
        return pyarrow.dataset.Scanner.from_batches(scan_state(self._state, columns, filter))
