"""Bringing a snapshot back as a live table, beside the other datasets of a metastore."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Final

from snapshot_assets.engines.cayenne.change import changing
from snapshot_assets.engines.cayenne.copies import SLICE_NAME
from snapshot_assets.engines.cayenne.metastore import data_folder
from snapshot_assets.engines.cayenne.table import live_table
from snapshot_assets.errors import CorruptCapture

__all__ = ["restore_table"]

_WAIT_SECONDS: Final = 30.0


def restore_table(copy: Path, root: Path, name: str, *, metastore: Path | None = None) -> None:
    """Make a live table what a checked copy of its snapshot is, in one step for everybody who reads the metastore.

    Other datasets of the metastore stay as they are, and in use. What the table had before is replaced; files that
    nobody refers to any more go. The files of the copy are moved, so it is of no use afterwards.

    Args:
        copy: the snapshot's files; on the file system of `root`.
        root: the folder of the tables; it is made if there is none.
        name: the table, which is the dataset.
        metastore: the metastore; `<root>/metadata/cayenne.db` when it is left out. It is made if there is none.

    Raises:
        CorruptCapture: the copy has no slice.
        LiveDatabaseBusy: another writer of the table, or of the metastore, was at work for half a minute.
        ConfigurationError: another dataset has an id, a name or a folder that the snapshot needs.
    """
    try:
        document = (copy / SLICE_NAME).read_bytes()
    except FileNotFoundError as error:
        raise CorruptCapture(f"the copy {copy} has no {SLICE_NAME}", dataset=name) from error
    live = live_table(root, name, metastore, create=True)
    with closing(live.connection), changing(live, timeout=_WAIT_SECONDS) as change:
        change.replace_by_slice(document, data_folder(copy))
