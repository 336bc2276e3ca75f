"""A reader that follows each dataset at the snapshot that is chosen for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from snapshot_assets.errors import DataDirBusy, SnapshotMissing
from snapshot_assets.reader.provider import SnapshotProvider
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.resources.run_reads import Chosen
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["RunReader", "open_run_reader"]

# It lives for a run, so nobody rolls anything out to it, and each run decides anew what it makes of a schema.
_SETTINGS: Final = ReaderSettings(announce_interval=None, schema_policy="any")


class RunReader(SnapshotReader):
    """A reader whose `follow` goes to the snapshot that `choose` names, and to the newest where it names none."""

    choose: Callable[[str], Chosen | None]

    def follow(self, name: str, *, refresh: bool = True) -> SnapshotProvider:
        """Serve the chosen snapshot of a dataset; called again, the one that is chosen by then.

        Raises:
            SnapshotMissing: the chosen snapshot was removed, or the dataset was dropped and made anew.
            SnapshotAssetsError: what `SnapshotReader.follow` raises.
        """
        return self.follow_at(name, self.choose(name), refresh=refresh)

    def follow_at(self, name: str, chosen: Chosen | None, *, refresh: bool = False) -> SnapshotProvider:
        """As `follow`, with the snapshot chosen by the caller; none: the newest at this moment."""
        followed = self._know(name)
        with followed.starting:
            followed.recover()
            # Without a choice, what an earlier reader left in the folder must not be taken for the newest.
            try:
                followed.pin(None if chosen is None else chosen.snapshot_id)
            except SnapshotMissing as error:
                raise error if chosen is None else _gone(name, chosen) from error
        provider = super().follow(name, refresh=refresh)
        if chosen is not None and chosen.incarnation not in {None, provider.current.incarnation}:
            raise _gone(name, chosen)
        return provider


def _gone(dataset: str, chosen: Chosen) -> SnapshotMissing:
    return SnapshotMissing(
        f"snapshot {chosen.snapshot_id} of {dataset!r}, which this run reads, is not in the store any more",
        hint="Launch a new run, which reads the newest snapshot, or change the pin; keep snapshots for longer than "
        "runs take.",
        dataset=dataset,
    )


@contextmanager
def open_run_reader(
    store: SnapshotStore, data_dir: Path | None, choose: Callable[[str], Chosen | None]
) -> Iterator[RunReader]:
    """A reader in a data folder of its own: a temporary one, or the first within `data_dir` that nobody uses."""
    with ExitStack() as stack:
        if data_dir is None:
            folder = stack.enter_context(TemporaryDirectory(prefix="snapshot-assets-"))
            reader = RunReader(store, Path(folder), _SETTINGS)
        else:
            reader = _in_free_folder(store, data_dir)
        reader.choose = choose
        yield stack.enter_context(reader)


def _in_free_folder(store: SnapshotStore, data_dir: Path) -> RunReader:
    for number in count():
        try:
            return RunReader(store, data_dir / f"reader-{number}", _SETTINGS)
        except DataDirBusy:
            continue
    raise AssertionError("there is always another number")
