"""Optimize merges small files, leaves deleted rows out, keeps every row, and finds nothing to do right after."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from snapshot_assets.engines.cayenne import CayenneTable, data_files, gates, optimize
from snapshot_assets.engines.cayenne.engine import CayenneEngine
from snapshot_assets.errors import CorruptCapture, LiveDatabaseBusy, LiveDatabaseMissing
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.snapshot_store import SnapshotStore

ENGINE = CayenneEngine()
NUMBERS = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("part", pa.string())])


def numbers(first: int, rows: int) -> pa.Table:
    ids = range(first, first + rows)
    return pa.table([list(ids), ["ab"[number % 2] for number in ids]], schema=NUMBERS)


@pytest.fixture
def dataset(root: Path) -> Dataset:
    return Dataset("numbers", "cayenne", root)


def files_in(root: Path) -> list[Path]:
    return sorted(path for path in (root / "data").rglob("*") if path.suffix in {".vortex", ".arrow"})


def ids_in(dataset: Dataset) -> list[int]:
    with CayenneTable.open(dataset.path, "numbers") as table:
        return sorted(table.scan(["id"]).read_all()["id"].to_pylist())


@pytest.mark.parametrize("partition_by", [[], ["part"]])
def test_small_files_and_deletes_become_one_file_a_part(dataset: Dataset, partition_by: list[str]) -> None:
    with CayenneTable.create(dataset.path, "numbers", NUMBERS, primary_key=["id"], partition_by=partition_by) as table:
        for first in range(0, 50, 10):
            table.append(numbers(first, 10))
        table.delete(pc.field("id") < 15)
        expected = sorted(table.scan(["id"]).read_all()["id"].to_pylist())
        state = table._load()
        assert state is not None
    before = files_in(dataset.path)
    done = ENGINE.optimize(dataset, timeout=5)
    parts = 2 if partition_by else 1
    assert (done.skipped, done.figures["deleted_rows_before"], done.figures["deleted_rows_after"]) == (None, 5, 0)
    assert (done.figures["files_before"], done.figures["files_after"]) == (4 * parts, parts)
    assert ids_in(dataset) == expected == list(range(15, 50))
    assert len(files_in(dataset.path)) == parts
    assert not set(before) & set(files_in(dataset.path))

    after = files_in(dataset.path)
    again = ENGINE.optimize(dataset, timeout=5)
    assert again.skipped == "nothing_to_do"
    assert again.figures["files_before"] == parts
    assert files_in(dataset.path) == after
    with CayenneTable.open(dataset.path, "numbers") as table:
        now = table._load()
        assert now is not None
        assert now.sequence == state.sequence + 1
        assert (now.schema, now.primary_key, now.partition_by) == (state.schema, ("id",), tuple(partition_by))
        table.upsert(numbers(49, 2))
        assert table.count() == 36


def test_one_small_file_and_large_ones_are_left(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (data_files, optimize):
        monkeypatch.setattr(module, "ROWS_PER_FILE", 100)
    monkeypatch.setattr(optimize, "_SMALL_ROWS", 50)
    with CayenneTable.create(dataset.path, "numbers", NUMBERS) as table:
        table.append(numbers(0, 230))
    assert len(files_in(dataset.path)) == 3
    large = files_in(dataset.path)
    assert ENGINE.optimize(dataset, timeout=5).skipped == "nothing_to_do"
    with CayenneTable.open(dataset.path, "numbers") as table:
        table.append(numbers(230, 40))
        table.append(numbers(270, 45))
    done = ENGINE.optimize(dataset, timeout=5)
    assert (done.figures["files_before"], done.figures["files_after"]) == (5, 4)
    assert len(set(large) & set(files_in(dataset.path))) == 2
    assert ids_in(dataset) == list(range(315))
    assert ENGINE.optimize(dataset, timeout=5).skipped == "nothing_to_do"


def test_files_that_merging_would_only_cut_again_are_left(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are small on disk and large in memory would be merged again and again."""
    monkeypatch.setattr(data_files, "_BYTES_PER_FILE", 1_000)
    with CayenneTable.create(dataset.path, "numbers", NUMBERS) as table:
        for first in range(0, 1_000, 250):
            table.append(numbers(first, 250))
    before = files_in(dataset.path)
    assert ENGINE.optimize(dataset, timeout=5).skipped == "nothing_to_do"
    assert files_in(dataset.path) == before


def test_what_is_not_there_or_busy_is_a_typed_error(dataset: Dataset) -> None:
    with pytest.raises(LiveDatabaseMissing):
        ENGINE.optimize(dataset, timeout=1)
    assert not dataset.path.exists()
    with ENGINE.connect_live(dataset):
        pass
    with pytest.raises(LiveDatabaseMissing):
        ENGINE.optimize(dataset, timeout=1)
    with CayenneTable.create(dataset.path, "numbers", NUMBERS) as table:
        table.append(numbers(0, 10))
        table.append(numbers(10, 10))
        state = table._load()
        assert state is not None
        with gates.writing(state.folder, timeout=1), pytest.raises(LiveDatabaseBusy):
            ENGINE.optimize(dataset, timeout=0.1)
    assert ids_in(dataset) == list(range(20))


def test_a_damaged_file_stops_it_and_nothing_is_changed(dataset: Dataset) -> None:
    with CayenneTable.create(dataset.path, "numbers", NUMBERS) as table:
        table.append(numbers(0, 10))
        table.append(numbers(10, 10))
    before = files_in(dataset.path)
    content = before[1].read_bytes()
    before[1].write_bytes(content[:100])
    with pytest.raises(CorruptCapture):
        ENGINE.optimize(dataset, timeout=5)
    before[1].write_bytes(content)
    assert files_in(dataset.path) == before
    assert ids_in(dataset) == list(range(20))


def test_a_scan_goes_on_while_files_are_merged(dataset: Dataset) -> None:
    with CayenneTable.create(dataset.path, "numbers", NUMBERS) as table:
        for first in range(0, 40, 10):
            table.append(numbers(first, 10))
        reader = table.scan(["id"])
        first_batch = reader.read_next_batch()
        assert ENGINE.optimize(dataset, timeout=5).skipped is None
        assert pa.Table.from_batches([first_batch, *reader]).num_rows == 40
        table.append(numbers(40, 1))
    assert len(files_in(dataset.path)) == 2


def test_a_publish_after_it_has_the_same_rows(dataset: Dataset) -> None:
    with CayenneTable.create(dataset.path, "numbers", NUMBERS) as table:
        table.append(numbers(0, 10))
        table.append(numbers(10, 10))
    publisher = Publisher(SnapshotStore.open("memory://"), verify="full")
    publisher.publish(dataset)
    ENGINE.optimize(dataset, timeout=5)
    again = publisher.publish(dataset)
    assert (again.outcome, again.row_counts) == ("published", {"numbers": 20})
    assert publisher.publish(dataset).outcome == "unchanged"
