"""A writer that is killed at any step leaves the table as before or as after; the next change clears up."""

from __future__ import annotations

import fcntl
import signal
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from snapshot_assets.engines.cayenne import CayenneTable
from snapshot_assets.engines.cayenne.leftovers import Unfinished
from snapshot_assets.engines.cayenne.metastore import TABLES
from tests.engines.cayenne.conftest import Program

WRITER = """
import os, signal, sys
import pyarrow as pa, pyarrow.compute as pc
from pathlib import Path
from snapshot_assets.engines.cayenne import CayenneTable, change, commit, data_files, leftovers
from snapshot_assets.engines.cayenne.optimize import optimize_table
from snapshot_assets.engines.cayenne.table import live_table

root, method, point = sys.argv[1:]

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def after(module, name):
    real = getattr(module, name)
    def call(*arguments, **options):
        real(*arguments, **options)
        die()
    setattr(module, name, call)

match point:
    case "a file is half done": data_files.file_digest = die
    case "the files are written": change.commit_state = die
    case "the transaction is open": commit._write_sequence = die
    case "the transaction is done": after(change, "commit_state")
    case "one file is removed": after(Path, "unlink")

rows = pa.table({"id": [2, 9], "land": ["de", "it"]})
if method == "optimize":
    optimize_table(live_table(Path(root), "people", None, create=False), timeout=5)
with CayenneTable.create(root, "people", rows.schema, primary_key=["id"], partition_by=["land"]) as table:
    if method == "delete":
        table.delete(pc.field("id") == 2)
    else:
        getattr(table, method)(rows.slice(1) if method == "append" else rows)
"""

BEFORE = {1: "de", 2: "fr", 3: "fr"}
AFTER = {
    "append": BEFORE | {9: "it"},
    "upsert": BEFORE | {2: "de", 9: "it"},
    "overwrite": {2: "de", 9: "it"},
    "delete": {1: "de", 3: "fr"},
    "optimize": BEFORE,
}


def rows(content: dict[int, str]) -> pa.Table:
    return pa.table({"id": pa.array(list(content), pa.int64()), "land": pa.array(list(content.values()), pa.string())})


def content_of(table: CayenneTable) -> dict[int, str]:
    found = table.scan().read_all().to_pydict()
    return dict(zip(found["id"], found["land"], strict=True))


def check_tidy(root: Path, table: CayenneTable) -> None:
    """Nothing lies in the data folder but the locks and what the table refers to."""
    state: Any = table._load()
    needed = {file.path for part in state.parts for file in part.files}
    needed |= {file.deletes.path for part in state.parts for file in part.files if file.deletes}
    found = {path for path in (root / "data").rglob("*") if path.is_file() and not path.name.endswith(".lock")}
    assert found == needed
    ids = {state.table_id, *(part.table_id for part in state.parts)}
    for known in TABLES:
        owners = table._live.connection.execute(f"SELECT table_id FROM {known.name}")  # type: ignore[union-attr]
        assert {owner for (owner,) in owners} <= ids
    folders = {path.name for path in (root / "data").iterdir()}
    assert folders == {".unfinished", *ids}


@pytest.mark.parametrize(
    ("point", "is_done"),
    [
        ("a file is half done", False),
        ("the files are written", False),
        ("the transaction is open", False),
        ("the transaction is done", True),
        ("one file is removed", True),
    ],
)
def test_a_killed_writer_leaves_the_table_whole(root: Path, python: Program, point: str, is_done: bool) -> None:
    methods = [method for method in AFTER if (method, point) != ("delete", "a file is half done")]
    if point == "one file is removed":
        methods = ["upsert", "overwrite", "delete", "optimize"]
    children: dict[str, subprocess.Popen[str]] = {}
    for method in methods:
        with CayenneTable.create(
            root / method, "people", rows(BEFORE).schema, primary_key=["id"], partition_by=["land"]
        ) as table:
            for key, land in BEFORE.items():
                table.append(rows({key: land}))
            if method in {"delete", "optimize"}:
                table.append(rows({4: "fr", 5: "fr"}))
                table.overwrite(table.scan())
                table.delete(pa.compute.field("id") > 4)
                table.delete(pa.compute.field("id") > 3)
                table.append(rows({8: "fr"}))
                table.delete(pa.compute.field("id") == 8)
        children[method] = python(WRITER, root / method, method, point)
    for method, child in children.items():
        assert child.wait(60) == -signal.SIGKILL, method
        with CayenneTable.open(root / method, "people") as table:
            assert content_of(table) == (AFTER[method] if is_done else BEFORE), method
            assert table.count() == len(content_of(table))
            table.upsert(rows({1: "de"}))
            assert content_of(table) == (AFTER[method] if is_done else BEFORE) | {1: "de"}
            check_tidy(root / method, table)


@pytest.mark.parametrize("point", ["a file is half done", "the transaction is open", "the transaction is done"])
def test_a_killed_first_writer_leaves_no_table_or_all_of_it(root: Path, python: Program, point: str) -> None:
    code = WRITER.replace(
        'with CayenneTable.create(root, "people", rows.schema, primary_key=["id"], partition_by=["land"]) as table:',
        'with CayenneTable._opened(root, "people", None, create=True) as table:',
    )
    assert code != WRITER
    assert python(code, root, "overwrite", point).wait(60) == -signal.SIGKILL
    with CayenneTable._opened(root, "people", None, create=False) as table:
        assert table.exists == (point == "the transaction is done")
        if not table.exists:
            assert any((root / "data").rglob("*.vortex"))
        table.overwrite(rows({1: "de"}))
        assert content_of(table) == {1: "de"}
        check_tidy(root, table)


def test_a_note_that_was_swept_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock

    def too_late(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        for path in (tmp_path / ".unfinished").iterdir():
            path.unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    unfinished = Unfinished(tmp_path, tmp_path / "meta.db", "owner")
    unfinished.note("folder")
    (note,) = (tmp_path / ".unfinished").iterdir()
    assert note.read_text().endswith("folder\n")
    unfinished.close()


def test_a_commit_can_not_be_lost_once_what_it_replaced_is_removed(root: Path) -> None:
    """In WAL mode only `synchronous = FULL` (2) writes a commit through to the disk, so that no power cut undoes it."""
    with CayenneTable.create(root, "people", rows(BEFORE).schema) as table:
        assert table._live is not None
        assert table._live.connection.execute("PRAGMA synchronous").fetchone() == (2,)
