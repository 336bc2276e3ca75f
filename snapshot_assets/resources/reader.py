"""A reader inside a run, as a Dagster resource."""

# Dagster reads the annotations of a resource's fields as objects, so they are not postponed here.

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
from pydantic import Field, PrivateAttr

from snapshot_assets.errors import NotFound
from snapshot_assets.resources.run_reads import Chosen, RunReads
from snapshot_assets.resources.store import SnapshotStoreResource

if TYPE_CHECKING:
    from snapshot_assets.resources.run_reader import RunReader

__all__ = ["SnapshotReaderResource"]


class SnapshotReaderResource(dg.ConfigurableResource[Any]):
    """Reads published snapshots in an asset or an op, never the live database that a writer has locked.

    All steps of a run see one snapshot of each dataset, also in different processes and on different hosts: the newest
    of when the run first read the dataset. Where the run itself publishes the dataset, later reads see what it
    published.

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
            "Where local copies are kept from run to run, in a folder for each reader that is open at a time. "
            "By default a temporary folder that goes when the reader is closed."
        ),
    )
    pins: dict[str, int] = Field(
        default={}, description="For a dataset, the snapshot that is read whatever is published since."
    )
    consistency: Literal["run", "newest"] = Field(
        default="run",
        description="run: all steps of a run see one snapshot of a dataset. newest: each sees the newest of its time.",
    )

    _run_reads: RunReads | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Note the run; outside of one, reads see the newest snapshot."""
        if self.consistency == "run" and context.run is not None and context.instance is not None:
            self._run_reads = RunReads(context.instance, context.run)

    @contextmanager
    def open_reader(self) -> Iterator["RunReader"]:
        """A reader of the store; what it fetched is closed, and without a `data_dir` removed, at the end.

        Its `follow` goes to the pinned snapshot, or to the one that this run reads. Called again for a dataset that the
        run has published meanwhile, it goes to what was published.
        """
        from snapshot_assets.model.head import head_key
        from snapshot_assets.resources.run_reader import open_run_reader

        store = self.store.open_store(read_only=True)

        def newest(dataset: str) -> Chosen | None:
            try:
                head = store.head(dataset)
            except NotFound:
                return None
            current = head.current_snapshot_id
            return None if current is None else Chosen(current, head.incarnation)

        def choose(dataset: str) -> Chosen | None:
            if dataset in self.pins:
                return Chosen(self.pins[dataset], None)
            reads = self._run_reads
            head_url = f"{store.url.rstrip('/')}/{head_key(dataset)}"
            return None if reads is None else reads.choose(head_url, lambda: newest(dataset))

        data_dir = None if self.data_dir is None else Path(self.data_dir)
        with open_run_reader(store, data_dir, choose) as reader:
            yield reader
