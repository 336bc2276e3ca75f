"""A live database that is not there, as on a fresh host: made of the newest snapshot, so that a write loses nothing."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from snapshot_assets.durable import sync_folder
from snapshot_assets.errors import ConfigurationError, LiveDatabaseMissing, NotFound
from snapshot_assets.ids import new_ulid
from snapshot_assets.model.dataset import Dataset

if TYPE_CHECKING:
    from snapshot_assets.content.snapshot import Content
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["restore_live_database"]

_GATE_SUFFIX = ".snapshot-assets.lock"


def restore_live_database(store: SnapshotStore, dataset: Dataset) -> int | None:
    """Make the live database of the current snapshot, if there is none, and tell its id. The write gate is held.

    Crash-safe: what is built has another name until it is complete.

    Raises:
        ConfigurationError: there is no live database, but the log of one.
        SnapshotDamaged: the snapshot can not be restored.
        StoreError: the store can not be read.
    """
    from snapshot_assets.content.restore import restore_files
    from snapshot_assets.content.snapshot import read_content
    from snapshot_assets.reader.data_dir import BUILDING, remove_folder

    live = dataset.real_path
    if _is_there(dataset):
        return None
    try:
        head = store.head(dataset.name)
    except NotFound:
        return None
    entry = head.current
    if entry is None or head.engine != dataset.engine:  # the publish will say so
        return None
    content = read_content(store.objects, dataset.name, head.incarnation, entry.operation_id, entry.manifest_digest)
    building = live.parent / f"{BUILDING}{new_ulid()}"
    try:
        building.mkdir(parents=True)
        restore_files(store.objects, content, building)
        _put(dataset, content, building, live)
        sync_folder(live.parent)
    finally:
        remove_folder(building)
    return entry.snapshot_id


def _is_there(dataset: Dataset) -> bool:
    live = dataset.real_path
    if dataset.engine == "cayenne":
        from snapshot_assets.engines.cayenne.table import live_table

        try:
            table = live_table(live, dataset.name, None, create=False)
        except LiveDatabaseMissing:
            return False
        with closing(table.connection):
            return table.load() is not None
    if live.exists():
        return True
    left = [path for path in live.parent.glob(f"{live.name}*") if not path.name.endswith(_GATE_SUFFIX)]
    if left:
        raise ConfigurationError(
            f"{live} is not there, and {left[0].name}, which belongs to it, is",
            hint="Bring the live database back, or remove what is left of it.",
            dataset=dataset.name,
        )
    return False


def _put(dataset: Dataset, content: Content, building: Path, live: Path) -> None:
    if dataset.engine == "cayenne":
        from snapshot_assets.engines.cayenne.restore import restore_table

        restore_table(building, live, dataset.name)
        return
    # A file, or the folder in which all files are.
    (top,) = {Path(file.path).parts[0] for file in content.manifest.files}
    (building / top).rename(live)
