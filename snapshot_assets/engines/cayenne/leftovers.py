"""Removing files that no table refers to: what a change replaced, and what a crash left behind.

Within a table's folder, whatever the metastore does not name is a leftover. Folders of tables that a change makes or
drops are written down in `<data>/.unfinished` before, in a file that the change keeps locked, so that a killed process
leaves no folder that nobody knows of.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import UUID

from snapshot_assets.engines.cayenne.gates import may_delete
from snapshot_assets.engines.cayenne.metastore import metastore_error, table_folder
from snapshot_assets.engines.cayenne.state import Part, TableState, load_state
from snapshot_assets.ids import new_ulid

__all__ = ["Unfinished", "remove_leftovers", "sweep", "unknown_folders"]

_NOTES: Final = ".unfinished"


def remove_leftovers(connection: sqlite3.Connection, state: TableState, data: Path) -> None:
    """Remove every file in the table's folders that the metastore does not name, unless somebody reads the table now.

    The caller is the table's only writer, and nothing of its own is uncommitted.
    """
    with may_delete(state.folder) as nobody_reads:
        now = load_state(connection, state.name, data)
        if nobody_reads and now is not None and now.table_id == state.table_id:
            for part in now.parts:
                _clean(part)


def _clean(part: Part) -> None:
    needed = {file.path for file in part.files} | {file.deletes.path for file in part.files if file.deletes}
    folders: list[Path] = []
    for folder, names, files in os.walk(part.folder):
        if Path(folder) == part.folder:
            continue  # the locks lie here
        folders += [Path(folder) / name for name in names]
        for name in files:
            if (path := Path(folder) / name) not in needed:
                path.unlink(missing_ok=True)
    folders += [path for path in part.folder.iterdir() if path.is_dir()] if part.folder.exists() else []
    for path in sorted(folders, key=lambda path: -len(path.parts)):
        with suppress(OSError):  # not empty
            path.rmdir()


class Unfinished:
    """What one change makes or drops beside its table's own folder.

    Args:
        data: the data folder.
        metastore: the metastore that knows the tables; a data folder may serve several.
        owner: the table, whose deletion gate guards the folders.
    """

    def __init__(self, data: Path, metastore: Path, owner: str) -> None:
        self._folder = data / _NOTES
        self._heading = json.dumps({"owner": owner, "metastore": str(metastore)})
        self._descriptor: int | None = None

    def note(self, *table_ids: str) -> None:
        """Write folders of tables down, before they are made or dropped. Nobody removes them before `close`."""
        if self._descriptor is None and table_ids:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._locked()
            os.write(self._descriptor, f"{self._heading}\n".encode())
        for table_id in table_ids:
            assert self._descriptor is not None
            os.write(self._descriptor, f"{table_id}\n".encode())

    def _locked(self) -> int:
        """A new file, and the only lock on it."""
        while True:
            descriptor = os.open(self._folder / new_ulid(), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)  # another process swept it between the two calls

    def close(self) -> None:
        """Leave what was written down to `sweep`."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def sweep(connection: sqlite3.Connection, data: Path, metastore: Path) -> None:
    """Remove every folder that a change wrote down and no table has, once the change has ended and nobody reads it."""
    for path in sorted((data / _NOTES).glob("*")):
        with suppress(FileNotFoundError), _unlocked(path) as content:
            if content is not None and _settled(connection, data, metastore, content):
                path.unlink()


@contextmanager
def _unlocked(path: Path) -> Iterator[str | None]:
    """What a note says, or nothing as long as its change goes on."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path.read_text()
    except BlockingIOError:
        yield None
    finally:
        os.close(descriptor)


def _settled(connection: sqlite3.Connection, data: Path, metastore: Path, content: str) -> bool:
    """Whether no folder of a note waits to be removed any more."""
    heading, *table_ids = content.splitlines() or ["{}"]
    try:
        noted = json.loads(heading)
    except ValueError:
        return True  # its change was killed before it made anything
    if noted.get("metastore") != str(metastore):
        return False
    folders = unknown_folders(connection, data, table_ids)
    if not folders:
        return True
    with may_delete(table_folder(data, noted["owner"])) as nobody_reads:
        for folder in folders if nobody_reads else ():
            shutil.rmtree(folder)
        return nobody_reads


def unknown_folders(connection: sqlite3.Connection, data: Path, table_ids: Sequence[str]) -> list[Path]:
    """The folders that are there of tables that the metastore does not have."""
    unknown = [table_id for table_id in table_ids if not _is_known(connection, table_id)]
    return [folder for table_id in unknown if (folder := table_folder(data, table_id)).exists()]


def _is_known(connection: sqlite3.Connection, table_id: str) -> bool:
    """Whether a table has the id; so it is with a line that was not written to its end."""
    try:
        UUID(table_id)
        found = connection.execute("SELECT 1 FROM cayenne_table WHERE table_id = ?", (table_id,)).fetchone()
    except ValueError:
        return True
    except sqlite3.Error as error:
        raise metastore_error(error, connection) from error
    return found is not None
