"""What a reader hands connections out of. It survives swaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from snapshot_assets.errors import NotLoaded, ReaderError
from snapshot_assets.reader.serving import Lease, Serving
from snapshot_assets.reader.settings import Current

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SnapshotProvider"]


class SnapshotProvider:
    """The newest loaded generation of one dataset, read-only. Safe to use from several threads, across all swaps."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self._serving: Serving | None = None
        self._closed = False

    def connect(self) -> Lease:
        """A lease of the newest generation: ``with provider.connect() as connection``.

        The connection is the engine's own, read-only, and sees one generation from beginning to end. The generation is
        chosen when the block is entered.

        Raises:
            NotLoaded: on entering, when nothing is loaded yet.
            ReaderError: on entering, when the reader is closed.
        """
        return Lease(self.find)

    def query(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> pa.Table:
        """Run one statement on the newest generation and fetch its whole result as Arrow.

        Raises:
            NotLoaded: nothing is loaded yet.
            ReadOnlyDataset: the statement writes.
            ReaderError: the reader is closed.
        """
        lease = Lease(self.find)
        with lease as connection:
            return lease.serving.pool.query(sql, parameters, connection=connection)

    @property
    def current(self) -> Current:
        """What is served now.

        Raises:
            NotLoaded: nothing is loaded yet.
            ReaderError: the reader is closed.
        """
        return self.find().current

    @property
    def tables(self) -> dict[str, pa.Schema]:
        """The tables that are served now, with their Arrow schemas. Raises what `current` raises."""
        return {name: table.schema.to_arrow() for name, table in self.find().copy.manifest.tables.items()}

    @property
    def serving(self) -> Serving | None:
        """What new leases go to; for the reader, which swaps it."""
        return self._serving

    def swap(self, serving: Serving | None) -> Serving | None:
        """Send new leases elsewhere and return where they went before. Waits for nobody; for the reader only."""
        before, self._serving = self._serving, serving
        return before

    def close(self) -> Serving | None:
        """Give no more leases and return what was served; for the reader only."""
        self._closed = True
        return self.swap(None)

    def find(self) -> Serving:
        """What new leases go to. Raises what `current` raises."""
        serving = self._serving
        if serving is None:
            if self._closed:
                raise ReaderError("this reader is closed", hint="Open a new SnapshotReader.", dataset=self.dataset)
            raise NotLoaded(f"nothing of {self.dataset!r} is loaded yet", dataset=self.dataset)
        return serving
