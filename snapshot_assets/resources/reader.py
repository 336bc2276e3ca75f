"""A reader inside a run, as a Dagster resource."""

# Dagster reads the annotations of a resource's fields as objects, so they are not postponed here.

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from snapshot_assets.resources.store import SnapshotStoreResource

if TYPE_CHECKING:
    from snapshot_assets.reader.reader import SnapshotReader

__all__ = ["SnapshotReaderResource"]


class SnapshotReaderResource(dg.ConfigurableResource[Any]):
    """Reads published snapshots in an asset or an op, never the live database that a writer has locked.

    Example:
        .. code-block:: python

            @dg.asset(deps=["flights"])
            def delays(snapshots: SnapshotReaderResource) -> dg.MaterializeResult:
                with snapshots.open_reader() as reader:
                    table = reader.follow("flights", refresh=False).query("select ...")
    """

    store: dg.ResourceDependency[SnapshotStoreResource]
    data_dir: str | None = Field(
        default=None,
        description=(
            "Where local copies are kept from run to run; one process at a time can use it. "
            "By default a temporary folder that goes when the reader is closed."
        ),
    )

    @contextmanager
    def open_reader(self) -> Iterator["SnapshotReader"]:
        """A reader of the store; what it fetched is closed, and without a `data_dir` removed, at the end.

        Raises:
            DataDirBusy: another process uses the folder.
        """
        from snapshot_assets.reader.reader import SnapshotReader
        from snapshot_assets.reader.settings import ReaderSettings

        store = self.store.open_store(read_only=True)
        # It lives for a run: nobody rolls anything out to it, and what it reads lies on its own disk.
        settings = ReaderSettings(announce_interval=None)
        if self.data_dir is not None:
            with SnapshotReader(store, Path(self.data_dir), settings) as reader:
                yield reader
            return
        with (
            tempfile.TemporaryDirectory(prefix="snapshot-assets-") as folder,
            SnapshotReader(store, Path(folder), settings) as reader,
        ):
            yield reader
