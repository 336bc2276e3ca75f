"""A version of a Lance dataset as an Arrow dataset that DuckDB scans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import duckdb
import lance
import pyarrow as pa
import pyarrow.dataset

from snapshot_assets.engines.lance_live import LANCE_ERRORS
from snapshot_assets.engines.sql import folded
from snapshot_assets.engines.tables import plain_field

if TYPE_CHECKING:
    from pyarrow.compute import Expression

__all__ = ["LanceScan"]


class LanceScan(pyarrow.dataset.Dataset):  # type: ignore[misc]  # pyarrow has no types
    """The columns as a scan gives them, which for blobs is where they lie and how long they are.

    Lance reads only the columns that are asked for and, with its indexes, only the rows; of a filter that it does not
    understand, Arrow picks the rows. Columns of types that DuckDB does not know, such as 16-bit floats and 256-bit
    decimals, are left out, and so are columns whose names differ in case only: DuckDB would take one for the other.
    """

    # pyarrow's own datasets can not be constructed; DuckDB calls the two members below and no other.
    def __init__(self, source: lance.LanceDataset) -> None:
        self._source = source
        scanned = source.scanner().projected_schema
        names = Counter(map(folded, scanned.names))
        with duckdb.connect(":memory:") as connection:
            self._schema = pa.schema(
                [field for field in scanned if names[folded(field.name)] == 1 and _is_known(connection, field)]
            )

    @property
    def schema(self) -> pa.Schema:
        """The columns that DuckDB can read."""
        return self._schema

    def scanner(
        self,
        columns: Sequence[str] | None = None,
        filter: Expression | None = None,  # noqa: A002 - the name that DuckDB calls it by
        **_options: object,
    ) -> pyarrow.dataset.Scanner:
        """A new scan of the columns, of the rows for which the filter holds."""
        chosen = self._schema.names if columns is None else list(columns)
        try:
            scanner = self._source.scanner(columns=chosen, filter=filter)
            _ = scanner.projected_schema  # plans the scan, and so tells whether Lance understands the filter
        except LANCE_ERRORS:
            if filter is None:
                raise
            # A name that merely stands in the filter's text costs a column that nobody asked for, no more.
            text = str(filter)
            needed = [name for name in self._schema.names if name in chosen or name in text]
            rows = self._source.scanner(columns=needed).to_reader()
            return pyarrow.dataset.Scanner.from_batches(rows, columns=chosen, filter=filter)
        return scanner


def _is_known(connection: duckdb.DuckDBPyConnection, field: pa.Field[pa.DataType]) -> bool:
    try:
        connection.from_arrow(pa.schema([plain_field(field)]).empty_table())
    except duckdb.NotImplementedException:
        return False
    return True
