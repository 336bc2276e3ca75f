"""Copies of one dataset: the slice, and beneath `data` the files that it names. They never change."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from snapshot_assets.durable import sync_folder
from snapshot_assets.engines.cayenne.data_files import count_rows, file_digest
from snapshot_assets.engines.cayenne.deletions import read_positions
from snapshot_assets.engines.cayenne.metastore import create_tables, data_folder, open_metastore
from snapshot_assets.engines.cayenne.scan import scan_state
from snapshot_assets.engines.cayenne.slice_import import import_slice
from snapshot_assets.engines.cayenne.slice_rules import parse_slice, slice_files
from snapshot_assets.engines.cayenne.state import DataFile, TableState, load_state
from snapshot_assets.errors import CorruptCapture, PathOutsideAnchor, SnapshotAssetsError, SnapshotDamaged
from snapshot_assets.ids import new_ulid
from snapshot_assets.paths import real_path

__all__ = [
    "METASTORE_NAME",
    "SLICE_NAME",
    "check_content",
    "check_files",
    "install_metastore",
    "installed_state",
    "staged_state",
]

SLICE_NAME: Final = "cayenne.slice.json"
"""The staged file with the dataset's rows of the metastore."""

METASTORE_NAME: Final = "metastore.sqlite"
"""The metastore that a local copy gets when it is installed; it is no file of the snapshot."""


def staged_state(folder: Path, files: Sequence[str]) -> TableState:
    """The table of a copy, as its slice has it.

    Raises:
        CorruptCapture: there is no slice, or it can not be read.
    """
    if SLICE_NAME not in files:
        raise CorruptCapture(
            f"the copy {folder} has no {SLICE_NAME}",
            hint="It was not captured by this engine. Capture the live database again.",
        )
    with _corrupt(folder), closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        return _imported(connection, folder)


def _imported(connection: sqlite3.Connection, folder: Path) -> TableState:
    """The table of a copy, once its slice is in a metastore."""
    anchor = data_folder(real_path(folder))
    content = (folder / SLICE_NAME).read_bytes()
    create_tables(connection)
    import_slice(connection, content, anchor)
    name = parse_slice(content).dataset_name
    state = load_state(connection, name, anchor)
    assert state is not None
    return state


@contextmanager
def _corrupt(folder: Path) -> Iterator[None]:
    try:
        yield
    except CorruptCapture:
        raise
    except (SnapshotAssetsError, OSError) as error:
        raise CorruptCapture(f"the copy {folder} can not be read: {error}") from error


def check_files(folder: Path, files: Sequence[str], state: TableState) -> None:
    """Require exactly the files that the slice names, each of its size and with its number of rows.

    Raises:
        CorruptCapture: one is missing, too many, or differs.
    """
    with _corrupt(folder):
        named = {f"data/{path}" for path in slice_files((folder / SLICE_NAME).read_bytes())} | {SLICE_NAME}
        if differing := sorted(named ^ set(files)):
            raise CorruptCapture(f"the copy {folder} lacks, or has besides what its slice names: {differing[0]}")
        for file in _data_files(state):
            if file.path.stat().st_size != file.size or count_rows(file.path) != file.row_count:
                raise CorruptCapture(f"{file.path} has not the size and the rows that its slice names")
            if file.deletes is not None:
                count = len(read_positions(file.deletes.path, file.row_count))
                if count != file.deletes.delete_count:
                    raise CorruptCapture(f"{file.deletes.path} has not the deletes that its slice names")


def check_content(state: TableState) -> None:
    """Read everything: the digest of each file, and each row.

    Raises:
        CorruptCapture: a file is damaged.
    """
    for file in _data_files(state):
        # Vortex does not notice every damage, and reads on with wrong values.
        if file.digest is not None and file_digest(file.path) != file.digest:
            raise CorruptCapture(f"{file.path} is damaged: it has not the digest that it was written with")
    count = sum(batch.num_rows for batch in scan_state(state))
    if count != state.live_rows:
        raise CorruptCapture(f"the copy of {state.name!r} has {count} rows, not {state.live_rows}")


def _data_files(state: TableState) -> Iterator[DataFile]:
    return (file for part in state.parts for file in part.files)


def install_metastore(folder: Path) -> None:
    """Make the metastore of a local copy, for the path where the copy is now. A second time, it is made anew.

    Raises:
        SnapshotDamaged: there is no slice, or it can not be read.
    """
    target = folder / METASTORE_NAME
    temporary = folder / f".{METASTORE_NAME}-{new_ulid()}"
    try:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            _imported(connection, folder)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(folder)
    except (SnapshotAssetsError, OSError, sqlite3.Error) as error:
        raise SnapshotDamaged(f"the metastore of the local copy {folder} can not be made: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def installed_state(folder: Path, name: str) -> TableState:
    """The table of a local copy, wherever it was moved since it was installed. Nothing is written.

    Raises:
        SnapshotDamaged: it can not be read.
    """
    try:
        return _installed_here(folder, name) or staged_state(folder, [SLICE_NAME])
    except SnapshotAssetsError as error:
        raise SnapshotDamaged(f"the local copy {folder} can not be read: {error}", dataset=name) from error


def _installed_here(folder: Path, name: str) -> TableState | None:
    """What the copy's metastore says; nothing, if the copy was moved since."""
    with closing(open_metastore(folder / METASTORE_NAME, read_only=True)) as connection:
        try:
            return load_state(connection, name, data_folder(real_path(folder)))
        except PathOutsideAnchor:
            return None
