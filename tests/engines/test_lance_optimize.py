"""Optimizing a live Lance dataset: what becomes better, what stays, and what it says when it does nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from lance.dataset import DatasetOptimizer

from snapshot_assets.engines.contract import Optimized
from snapshot_assets.engines.lance import LanceEngine
from snapshot_assets.errors import CaptureError, LiveDatabaseBusy, LiveDatabaseMissing, UnsupportedLiveDatabase
from snapshot_assets.model.dataset import Dataset

ENGINE = LanceEngine()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset("orders", "lance", tmp_path / "live" / "orders.lance")


def write(dataset: Dataset, first: int, count: int, **options: Any) -> lance.LanceDataset:
    ids = range(first, first + count)
    with ENGINE.connect_live(dataset) as table:
        return table.write(pa.table({"id": ids, "name": [f"order {number}" for number in ids]}), **options)


def optimize(dataset: Dataset, timeout: float = 10) -> Optimized:
    return ENGINE.optimize(dataset, timeout=timeout)


def figures(removed: int = 0, added: int = 0, indexes: int = 0, rows: int = 0) -> dict[str, int]:
    return {
        "fragments_removed": removed,
        "fragments_added": added,
        "indexes_updated": indexes,
        "unindexed_rows": rows,
    }


def check_settled(dataset: Dataset) -> None:
    """A second run right after finds nothing, and writes nothing."""
    before = lance.dataset(dataset.path).version
    again = optimize(dataset)
    assert (again.skipped, again.figures) == ("nothing_to_do", figures())
    assert lance.dataset(dataset.path).version == before


def ids(dataset: Dataset) -> list[int]:
    return sorted(lance.dataset(dataset.path).to_table()["id"].to_pylist())


def test_small_fragments_become_one_and_rows_and_schema_stay(dataset: Dataset) -> None:
    for first in range(0, 500, 100):
        write(dataset, first, 100)
    before = lance.dataset(dataset.path)
    done = optimize(dataset)
    assert (done.skipped, done.figures) == (None, figures(removed=5, added=1))
    after = lance.dataset(dataset.path)
    assert len(after.get_fragments()) == 1
    assert after.schema == before.schema
    assert ids(dataset) == list(range(500))
    assert after.tags.list() == {}
    check_settled(dataset)


def test_deleted_rows_are_taken_out_of_the_files(dataset: Dataset) -> None:
    write(dataset, 0, 1_000).delete("id >= 300")
    assert optimize(dataset).figures == figures(removed=1, added=1)
    assert lance.dataset(dataset.path).stats.dataset_stats()["num_deleted_rows"] == 0
    assert ids(dataset) == list(range(300))
    check_settled(dataset)


@pytest.mark.parametrize("kind", ["BTREE", "BITMAP", "ZONEMAP", "BLOOMFILTER", "INVERTED"])
def test_indexes_cover_every_row_afterwards(dataset: Dataset, kind: Any) -> None:
    column = "name" if kind == "INVERTED" else "id"
    write(dataset, 0, 1_000).create_scalar_index(column, kind)
    write(dataset, 1_000, 200)
    done = optimize(dataset)
    assert done.skipped is None
    assert done.figures == figures(removed=2, added=1, indexes=1, rows=200)
    after = lance.dataset(dataset.path)
    assert after.stats.index_stats(f"{column}_idx")["num_unindexed_rows"] == 0
    assert ids(dataset) == list(range(1_200))
    check_settled(dataset)


def test_stale_indexes_are_entered_on_when_there_is_nothing_to_compact(dataset: Dataset) -> None:
    write(dataset, 0, 1_000).create_scalar_index("id", "BTREE")
    live = write(dataset, 1_000, 200)
    live.update_config({"lance.compaction.target_rows_per_fragment": "100"})
    done = optimize(dataset)
    assert (done.skipped, done.figures) == (None, figures(indexes=1, rows=200))
    assert len(lance.dataset(dataset.path).get_fragments()) == 2
    check_settled(dataset)


def test_nothing_is_done_where_there_is_nothing_to_do(dataset: Dataset) -> None:
    write(dataset, 0, 100).delete("true")
    check_settled(dataset)
    write(dataset, 0, 100).create_scalar_index("id", "BTREE")
    check_settled(dataset)


def test_what_the_user_set_and_made_stays(dataset: Dataset) -> None:
    write(dataset, 0, 100, auto_cleanup_options={"interval": 1, "older_than_seconds": 86_400})
    live = write(dataset, 100, 100)
    live.tags.create("mine", 1)
    live.create_branch("other", 1)
    live.update_config({"some.key": "value"})
    live.update_schema_metadata({"owner": "me"})
    config = lance.dataset(dataset.path).config()
    optimize(dataset)
    after = lance.dataset(dataset.path)
    assert after.config() == config
    assert config["lance.auto_cleanup.interval"] == "1"
    assert after.schema.metadata == {b"owner": b"me"}
    assert list(after.tags.list()) == ["mine"]
    assert list(after.branches.list()) == ["other"]


def test_no_version_is_removed_although_the_dataset_cleans_up_by_itself(dataset: Dataset) -> None:
    for first in range(0, 300, 100):
        live = write(dataset, first, 100)
    live.update_config({"lance.auto_cleanup.interval": "1", "lance.auto_cleanup.older_than": "0s"})
    before = [version["version"] for version in lance.dataset(dataset.path).versions()]
    done = optimize(dataset)
    assert done.skipped is None
    after = [version["version"] for version in lance.dataset(dataset.path).versions()]
    assert after[: len(before)] == before
    assert len(after) > len(before)


def blobs(version: str) -> pa.Table:
    if version == "2.2":
        schema = pa.schema([pa.field("id", pa.int64()), lance.blob_field("blob")])
        return pa.table([[1, 2], lance.blob_array([b"b" * 200_000, b"small"])], schema=schema)
    field = pa.field("blob", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    return pa.table([[1, 2], [b"b" * 200_000, b"small"]], schema=pa.schema([pa.field("id", pa.int64()), field]))


@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_blob_columns_are_compacted(dataset: Dataset, version: str) -> None:
    with ENGINE.connect_live(dataset) as table:
        for _ in range(2):
            table.write(blobs(version), data_storage_version=version)
    assert optimize(dataset).figures == figures(removed=2, added=1)
    found = lance.dataset(dataset.path).take_blobs("blob", indices=[0, 1, 2, 3])
    assert [len(blob.read()) for blob in found if blob] == [200_000, 5, 200_000, 5]
    check_settled(dataset)


@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_blob_columns_that_can_not_be_compacted_are_skipped_and_indexes_are_not(dataset: Dataset, version: str) -> None:
    with ENGINE.connect_live(dataset) as table:
        for _ in range(2):
            table.write(blobs(version), data_storage_version=version)
        table.dataset.create_scalar_index("id", "BTREE")
        table.dataset.update_config({"lance.compaction.compaction_mode": "force_binary_copy"})
    done = optimize(dataset)
    assert (done.skipped, done.figures) == ("blob_columns", figures())
    assert len(lance.dataset(dataset.path).get_fragments()) == 2
    with ENGINE.connect_live(dataset) as table:
        table.write(blobs(version))
    done = optimize(dataset)
    assert (done.skipped, done.figures) == (None, figures(indexes=1, rows=2))
    assert optimize(dataset).skipped == "blob_columns"


def test_what_can_not_be_read_is_an_error(dataset: Dataset) -> None:
    with ENGINE.connect_live(dataset) as table:
        for _ in range(2):
            table.write(blobs("2.2"))
    next(dataset.path.rglob("*.blob")).unlink()
    before = lance.dataset(dataset.path).version
    with pytest.raises(CaptureError, match="blob"):
        optimize(dataset)
    assert lance.dataset(dataset.path).version == before
    assert lance.dataset(dataset.path).tags.list() == {}


def test_what_is_not_there_is_named(dataset: Dataset) -> None:
    with pytest.raises(LiveDatabaseMissing):
        optimize(dataset)
    dataset.path.mkdir(parents=True)
    with pytest.raises(UnsupportedLiveDatabase):
        optimize(dataset)


def test_rows_that_others_change_meanwhile_are_not_lost(dataset: Dataset) -> None:
    for first in range(0, 500, 100):
        write(dataset, first, 100)
    stop = threading.Event()
    changed = 0

    def work() -> None:
        nonlocal changed
        while not stop.is_set():
            live = write(dataset, 500 + changed, 1)
            live.update({"name": f"'{changed}'"}, where="id = 0")
            changed += 1

    writer = threading.Thread(target=work)
    writer.start()
    try:
        for _ in range(3):
            optimize(dataset, timeout=20)
    finally:
        stop.set()
        writer.join(30)
    assert not writer.is_alive()
    assert ids(dataset) == list(range(500 + changed))
    name = lance.dataset(dataset.path).to_table(filter="id = 0")["name"].to_pylist()
    assert name == [str(changed - 1)]


def test_a_conflict_that_does_not_end_is_busy(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in range(0, 200, 100):
        write(dataset, first, 100)
    compact = DatasetOptimizer.compact_files

    def conflicting(self: DatasetOptimizer) -> Any:
        lance.dataset(dataset.path).update({"name": "'other'"}, where="id = 0")
        return compact(self)

    monkeypatch.setattr(DatasetOptimizer, "compact_files", conflicting)
    with pytest.raises(LiveDatabaseBusy):
        optimize(dataset, timeout=0.2)
    assert lance.dataset(dataset.path).tags.list() == {}
    assert ids(dataset) == list(range(200))
