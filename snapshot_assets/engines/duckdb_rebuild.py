"""The process that rebuilds a live DuckDB file; see `duckdb_optimize`.

From before the first look until its end it holds DuckDB's exclusive lock on the live file, so nobody else has the file
open. The live path leads to a whole database at every moment: to the old file, and after one rename to the fresh one,
which is checked and durable by then.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import duckdb

from snapshot_assets.durable import is_full, sync_folder
from snapshot_assets.engines.duckdb_live import HEADER_BYTES, checkpoint, connect_by, logs, storage, table_paths
from snapshot_assets.engines.duckdb_optimize import rebuild_folder
from snapshot_assets.engines.sql import quoted
from snapshot_assets.errors import CaptureError, LiveDatabaseBusy, SnapshotAssetsError

__all__ = ["main"]

_FRESH: Final = "snapshot_assets_fresh"
_MAIN_HEADER_BYTES: Final = 4096
_WHAT_IT_HOLDS: Final = (
    "duckdb_columns",
    "duckdb_constraints",
    "duckdb_functions",
    "duckdb_indexes",
    "duckdb_schemas",
    "duckdb_sequences",
    "duckdb_tables",
    "duckdb_triggers",
    "duckdb_types",
    "duckdb_views",
)
"""Every kind of object that a file can hold, as DuckDB lists them. A version lists those that it knows."""

_OF_ONE_FILE: Final = frozenset({"oid", "estimated_size", "constraint_index", "start_value"})
"""Columns of those lists that say nothing about what the file holds; so do all that end with `_oid`.

A sequence starts, once its file was opened again, where it stands; its `sql` and `last_value` tell.
"""

_USED: Final = """
    select used_blocks * block_size from pragma_database_size() where database_name = current_database()
"""


def main(task: Mapping[str, Any]) -> None:
    """Rebuild, print one JSON object on standard output, and end this process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The answer stands alone on standard output, whatever else a library prints, such as a progress bar.
    answers = os.dup(1)
    os.dup2(2, 1)
    live, dataset, status = Path(task["live"]), task["dataset"], 0
    try:
        try:
            connection = connect_by(time.monotonic() + task["timeout"], live, dataset)
            answer = _rebuild(connection, live, dataset)
        except SnapshotAssetsError as error:
            answer = {"error": error.to_json()}
        with os.fdopen(answers, "w") as output:
            json.dump(answer, output)
    except BaseException:  # noqa: BLE001 - whatever it is, the interpreter must not go its usual way out
        traceback.print_exc()
        status = 1
    # The connection is still referred to, so DuckDB never closes it: another process may have the fresh file and its
    # log by now, and what DuckDB does with a log at the end, it does by its path.
    os._exit(status)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def _rebuild(connection: duckdb.DuckDBPyConnection, live: Path, dataset: str) -> dict[str, Any]:
    stood_in_the_way = checkpoint(connection, live, dataset) or ", ".join(
        log.name for log in logs(live) if log.exists()
    )
    if stood_in_the_way:
        raise LiveDatabaseBusy(f"{live} does not come to rest: {stood_in_the_way}", dataset=dataset)
    # Nobody can be building in it: the lock on the live file is ours.
    folder = rebuild_folder(live)
    shutil.rmtree(folder, ignore_errors=True)
    size = live.stat().st_size
    free = _free_bytes(connection, size)
    figures = {"bytes_before": size, "free_bytes_before": free}
    if 2 * free <= size:
        connection.close()
        return _nothing_to_do(f"{free:,} of {size:,} bytes are free, not more than half", figures)
    try:
        # Never closed before this process ends: closing it would give up DuckDB's lock.
        old = os.open(live, os.O_WRONLY | os.O_CLOEXEC)
        if os.fstat(old).st_nlink > 1:
            raise CaptureError(
                f"{live} has other names (hard links), which would go on leading to the old file",
                hint="Remove the other names, or copy the file instead of linking it.",
                dataset=dataset,
            )
        fresh = folder / live.name
        folder.mkdir(mode=0o700)
        _build(connection, fresh)
        with closing(duckdb.connect(str(fresh), read_only=True)) as built:
            _check(connection, built, dataset)
            fresh_size = fresh.stat().st_size
            figures |= {"bytes_after": fresh_size, "free_bytes_after": _free_bytes(built, fresh_size)}
        if fresh_size >= size:
            return _nothing_to_do("a fresh file would not be smaller", figures)
        _settle(fresh, live, old, dataset)
        _replace(fresh, live, old, dataset)
    except duckdb.Error as error:
        raise CaptureError(f"DuckDB does not rebuild {live}: {error}", dataset=dataset) from error
    except OSError as error:
        hint = "Free disk space: the fresh file needs room beside the old one." if is_full(error) else None
        raise CaptureError(f"{live} can not be rebuilt: {error}", hint=hint, dataset=dataset) from error
    detail = f"a fresh file made {size:,} bytes {fresh_size:,}"
    return {"skipped": None, "detail": detail, "figures": figures}


def _nothing_to_do(why: str, figures: Mapping[str, int]) -> dict[str, Any]:
    return {"skipped": "nothing_to_do", "detail": why, "figures": figures}


def _free_bytes(connection: duckdb.DuckDBPyConnection, size: int) -> int:
    """How much of a file of this size is free. DuckDB goes on counting free blocks that it has cut off the file."""
    return int(max(0, size - HEADER_BYTES - connection.execute(_USED).fetchall()[0][0]))


def _build(connection: duckdb.DuckDBPyConnection, fresh: Path) -> None:
    """Copy all that the connection's file holds into a new file, which is whole and closed at the end."""
    version, block_bytes = storage(connection)
    live = connection.execute("select current_database()").fetchall()[0][0]
    connection.execute("set enable_progress_bar = false")
    connection.execute("set autoinstall_known_extensions = false")
    connection.execute("set preserve_insertion_order = true")
    connection.execute(f"set temp_directory = {_text(fresh.with_name('spilled'))}")
    connection.execute(
        f"attach {_text(fresh)} as {_FRESH} (storage_version '{version.rstrip('+')}', block_size {block_bytes})"
    )
    connection.execute(f"copy from database {quoted(live)} to {_FRESH}")
    connection.execute(f"checkpoint {_FRESH}")
    connection.execute(f"detach {_FRESH}")


def _text(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _check(connection: duckdb.DuckDBPyConnection, built: duckdb.DuckDBPyConnection, dataset: str) -> None:
    """Refuse a fresh file that lacks anything; what DuckDB's copy leaves out differs by its version."""
    if storage(connection) != storage(built):
        raise CaptureError(
            f"the rebuilt file would have the storage {storage(built)}, not {storage(connection)}", dataset=dataset
        )
    wanted, found = _catalog(connection), _catalog(built)
    other = [name for name in wanted if wanted[name] != found.get(name)] + [
        name for name in found if name not in wanted
    ]
    if not other:
        rows, rebuilt = _rows(connection), _rows(built)
        other = [f"the rows of {'.'.join(table)}" for table in rows if rebuilt[table] != rows[table]]
    if other:
        raise CaptureError(
            f"DuckDB's copy of this database is not the same in: {', '.join(other[:10])}",
            hint="This database can not be rebuilt; it is as it was.",
            dataset=dataset,
        )


def _catalog(connection: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """The definitions of everything in the connection's file, by kind and name; overloads of a macro share a name."""
    known = {name for (name,) in connection.execute("select distinct function_name from duckdb_functions()").fetchall()}
    found: dict[str, list[str]] = {}
    for kind in _WHAT_IT_HOLDS:
        if kind not in known:
            continue
        listed = connection.execute(f"select * from {kind}() where database_name = current_database()")
        columns = [column[0] for column in listed.description or ()]
        for values in listed.fetchall():
            row = dict(zip(columns, values, strict=True))
            if row.get("internal"):
                continue
            name = ".".join(str(row[key]) for key in row if key.endswith("_name") and key != "database_name")
            told = {key: row[key] for key in row if key not in _OF_ONE_FILE and not key.endswith("_oid")}
            found.setdefault(f"{kind.removeprefix('duckdb_')} {name}", []).append(repr(told))
    return {name: sorted(told) for name, told in found.items()}


def _rows(connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, ...], tuple[int, int | None]]:
    """The number of rows of each table, and a sum over their contents."""
    found = {}
    for path in table_paths(connection):
        query = f"select count(*), sum(hash(*columns(*))) from {'.'.join(map(quoted, path))}"
        found[path[1:]] = connection.execute(query).fetchall()[0]
    return found


def _settle(fresh: Path, live: Path, old: int, dataset: str) -> None:
    """Make the fresh file durable, and like the old one in all that is not its content."""
    left = [log.name for log in logs(fresh) if log.exists()]
    if left:
        raise CaptureError(f"DuckDB left {', '.join(left)} beside the rebuilt file", dataset=dataset)
    before = os.fstat(old)
    os.chown(fresh, before.st_uid, before.st_gid)
    shutil.copystat(live, fresh)
    os.utime(fresh)
    descriptor = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(fresh: Path, live: Path, old: int, dataset: str) -> None:
    """Put the fresh file in the old one's place, durably, and make the old one unreadable.

    A process may have opened the old file and not asked for its lock yet. It gets the lock when this process ends, and
    would write to a file without a name; without a header, DuckDB refuses the file, and the next attempt finds the
    fresh one.
    """
    if not os.path.samestat(live.stat(), os.fstat(old)):
        raise CaptureError(f"another file was put at {live} meanwhile", dataset=dataset)
    fresh.replace(live)
    sync_folder(live.parent)
    os.pwrite(old, bytes(_MAIN_HEADER_BYTES), 0)
