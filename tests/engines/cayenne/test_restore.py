"""Bringing a snapshot back as a live table of a metastore in which others are at work."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.engines.cayenne import CayenneTable
from snapshot_assets.engines.cayenne.restore import restore_table
from snapshot_assets.errors import ConfigurationError, CorruptCapture
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.snapshot_store import SnapshotStore


def rows(first: int, count: int) -> pa.Table:
    return pa.table({"id": pa.array(range(first, first + count), pa.int64())})


def ids(root: Path, name: str, metastore: Path | None = None) -> list[int]:
    with CayenneTable.open(root, name, metastore=metastore) as table:
        found = table.scan().read_all().column("id").to_pylist()
    return sorted(found)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def store(tmp_path: Path, root: Path) -> SnapshotStore:
    """A store with two snapshots of `orders`: 100 rows, and 150."""
    store = SnapshotStore.open(tmp_path / "store")
    with CayenneTable.create(root, "orders", rows(0, 0).schema, primary_key=["id"]) as table:
        for count in (100, 50):
            table.append(rows(table.count(), count))
            Publisher(store).publish(Dataset("orders", "cayenne", root))
    return store


def pulled(store: SnapshotStore, snapshot_id: int, folder: Path) -> Path:
    head = store.head("orders")
    entry = head.entry(snapshot_id)
    assert entry is not None
    content = read_content(store.objects, "orders", head.incarnation, entry.operation_id, entry.manifest_digest)
    folder.mkdir(parents=True)
    restore_files(store.objects, content, folder)
    return folder


def test_an_older_snapshot_takes_the_place_of_the_live_table(store: SnapshotStore, root: Path) -> None:
    with CayenneTable.open(root, "orders") as table:
        table.append(rows(1_000, 5))
    restore_table(pulled(store, 0, root / "copy"), root, "orders")
    assert ids(root, "orders") == list(range(100))
    with CayenneTable.open(root, "orders") as table:
        table.append(rows(100, 1))
    assert ids(root, "orders") == list(range(101))
    assert Publisher(store).publish(Dataset("orders", "cayenne", root)).row_counts == {"orders": 101}


def test_what_the_table_had_before_leaves_no_file_behind(store: SnapshotStore, root: Path) -> None:
    before = {path.name for path in root.glob("data/*/*/*.vortex")}
    with CayenneTable.open(root, "orders") as table:
        table.overwrite(rows(0, 7))
    restore_table(pulled(store, 1, root / "copy"), root, "orders")
    assert {path.name for path in root.glob("data/*/*/*.vortex")} == before


def test_a_table_made_anew_meanwhile_is_replaced_with_its_folder(store: SnapshotStore, root: Path) -> None:
    shutil.rmtree(root)
    with CayenneTable.create(root, "orders", rows(0, 0).schema) as table:
        table.append(rows(500, 3))
    restore_table(pulled(store, 0, root / "copy"), root, "orders")
    assert ids(root, "orders") == list(range(100))
    assert len([path for path in (root / "data").iterdir() if not path.name.startswith(".")]) == 1


def test_other_tables_of_the_metastore_are_written_and_read_meanwhile(store: SnapshotStore, root: Path) -> None:
    with CayenneTable.create(root, "planes", rows(0, 0).schema) as planes:
        stop = threading.Event()
        written: list[int] = []

        def write() -> None:
            while not stop.is_set():
                planes.append(rows(len(written), 1))
                written.append(1)
                assert planes.count() == len(written)

        thread = threading.Thread(target=write)
        thread.start()
        for number in range(6):
            restore_table(pulled(store, number % 2, root / f"copy-{number}"), root, "orders")
            assert len(ids(root, "orders")) == (100, 150)[number % 2]
        stop.set()
        thread.join(60)
    assert ids(root, "planes") == list(range(len(written)))
    assert len(written) > 3


def test_a_fresh_root_and_metastore_are_made(store: SnapshotStore, tmp_path: Path) -> None:
    other, metastore = tmp_path / "other", tmp_path / "elsewhere" / "cayenne.db"
    metastore.parent.mkdir()
    restore_table(pulled(store, 1, other / "copy"), other, "orders", metastore=metastore)
    assert ids(other, "orders", metastore) == list(range(150))


def test_the_slice_of_another_dataset_and_no_slice_are_refused(store: SnapshotStore, root: Path) -> None:
    copy = pulled(store, 0, root / "copy")
    with pytest.raises(ConfigurationError, match="orders"):
        restore_table(copy, root, "planes")
    (copy / "cayenne.slice.json").unlink()
    with pytest.raises(CorruptCapture, match="no cayenne.slice.json"):
        restore_table(copy, root, "orders")
    assert ids(root, "orders") == list(range(150))


def test_a_file_of_the_same_name_with_other_bytes_is_refused(store: SnapshotStore, root: Path) -> None:
    copy = pulled(store, 0, root / "copy")
    [path] = copy.glob("data/*/*/*.vortex")
    path.write_bytes(b"other")
    with pytest.raises(ConfigurationError, match="is not the file"):
        restore_table(copy, root, "orders")
    assert ids(root, "orders") == list(range(150))


_KILLED = """
import os, signal, sys
from pathlib import Path
import snapshot_assets.engines.cayenne.change as change
from snapshot_assets.engines.cayenne.restore import restore_table

def kill(*_args, **_named):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(change, sys.argv[3], kill)
restore_table(Path(sys.argv[1]), Path(sys.argv[2]), "orders")
"""


@pytest.mark.parametrize("at", ["sync_folder", "import_slice", "sweep"])
def test_a_restore_that_is_killed_leaves_the_table_before_or_after(
    store: SnapshotStore, tmp_path: Path, at: str
) -> None:
    root = tmp_path / "fresh"
    with CayenneTable.create(root, "orders", rows(0, 0).schema) as table:
        table.append(rows(500, 3))
    command = [sys.executable, "-c", _KILLED, str(pulled(store, 0, root / "copy")), str(root), at]
    done = subprocess.run(command, timeout=60, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert ids(root, "orders") == (list(range(100)) if at == "sweep" else [500, 501, 502])
    restore_table(pulled(store, 1, root / "again"), root, "orders")
    assert ids(root, "orders") == list(range(150))
    files = {path.name for path in root.glob("data/*/*/*.vortex")}
    assert len(files) == 2


def test_a_folder_of_another_metastores_table_is_not_touched(store: SnapshotStore, tmp_path: Path, root: Path) -> None:
    copy, other = pulled(store, 0, root / "copy"), tmp_path / "other.db"
    with pytest.raises(ConfigurationError, match="is of no table in"):
        restore_table(copy, root, "orders", metastore=other)
    assert ids(root, "orders") == list(range(150))
