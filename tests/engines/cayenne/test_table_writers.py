"""Several writers and readers of one table, in several processes."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from snapshot_assets.engines.cayenne import CayenneTable, change, data_files
from snapshot_assets.engines.cayenne import table as table_module
from snapshot_assets.errors import LiveDatabaseBusy
from tests.engines.cayenne.conftest import Program

NUMBERS = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("value", pa.int64())])

WRITER = """
import sys
import pyarrow as pa, pyarrow.compute as pc
from snapshot_assets.engines.cayenne import CayenneTable
root, first = sys.argv[1], int(sys.argv[2])
with CayenneTable.open(root, "numbers") as table:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(first, first + 15):
        table.append(pa.table({"id": [number], "value": [0]}, schema=table.schema))
        table.upsert(pa.table({"id": [number], "value": [number]}, schema=table.schema))
        if number % 3 == 0:
            table.delete(pc.field("id") == number)
"""


def numbers(*rows: tuple[int, int]) -> pa.Table:
    return pa.table([[row[0] for row in rows], [row[1] for row in rows]], schema=NUMBERS)


def files_in(root: Path) -> set[str]:
    return {path.name for path in (root / "data").rglob("*") if path.suffix in {".vortex", ".arrow"}}


def test_writers_in_two_processes_lose_no_row_of_each_other(root: Path, python: Program) -> None:
    with CayenneTable.create(root, "numbers", NUMBERS, primary_key=["id"]) as table:
        table.append(numbers((-1, 7)))
        children = [python(WRITER, root, first) for first in (0, 1_000)]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        for child in children:
            assert child.wait(60) == 0
        expected = {-1: 7} | {n: n for first in (0, 1_000) for n in range(first, first + 15) if n % 3}
        found = table.scan().read_all().to_pydict()
        assert dict(zip(found["id"], found["value"], strict=True)) == expected
        assert table.count() == len(expected)


def test_threads_share_a_table(root: Path) -> None:
    with CayenneTable.create(root, "numbers", NUMBERS, primary_key=["id"]) as table:
        failed: list[BaseException] = []

        def work(first: int) -> None:
            try:
                for number in range(first, first + 10):
                    table.append(numbers((number, number)))
                    assert number in table.scan(["id"]).read_all()["id"].to_pylist()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100, 200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failed == []
        assert table.count() == 30


def test_a_writer_waits_for_another_and_says_so_at_last(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CayenneTable.create(root, "numbers", NUMBERS) as table, CayenneTable.open(root, "numbers") as other:
        inside, go = threading.Event(), threading.Event()

        def slowly() -> pa.RecordBatchReader:
            def batches() -> object:
                inside.set()
                assert go.wait(30)
                yield numbers((1, 1)).to_batches()[0]

            return pa.RecordBatchReader.from_batches(NUMBERS, batches())

        thread = threading.Thread(target=table.append, args=(slowly(),))
        thread.start()
        assert inside.wait(30)
        with monkeypatch.context() as patched:
            patched.setattr(table_module, "_WAIT_SECONDS", 0.05)
            with pytest.raises(LiveDatabaseBusy, match="another writer"):
                other.append(numbers((2, 2)))
        second = threading.Thread(target=other.append, args=(numbers((3, 3)),))
        second.start()
        go.set()
        for each in (thread, second):
            each.join(30)
        assert sorted(table.scan().read_all()["id"].to_pylist()) == [1, 3]


def test_a_change_by_a_program_without_our_locks_is_noticed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = data_files.write_files
    with CayenneTable.create(root, "numbers", NUMBERS) as table:

        def and_meanwhile(*arguments: object) -> object:
            live = table._live
            assert live is not None
            live.connection.execute("UPDATE cayenne_table SET current_sequence_number = 77")
            return real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(change, "write_files", and_meanwhile)
        with pytest.raises(LiveDatabaseBusy, match="meanwhile"):
            table.append(numbers((1, 1)))
        monkeypatch.undo()
        assert table.count() == 0
        table.append(numbers((2, 2)))
        assert len(files_in(root)) == 1


def test_two_first_writers_make_one_table(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = data_files.write_files
    first = CayenneTable._opened(root, "numbers", None, create=True)
    second = CayenneTable._opened(root, "numbers", None, create=True)

    def and_meanwhile(*arguments: object) -> object:
        monkeypatch.undo()
        second.overwrite(numbers((2, 2)))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(change, "write_files", and_meanwhile)
    with first, second:
        with pytest.raises(LiveDatabaseBusy):
            first.overwrite(numbers((1, 1)))
        assert first.scan().read_all()["id"].to_pylist() == [2]
        first.append(numbers((3, 3)))
        assert second.count() == 2
        assert len(files_in(root)) == 2


@pytest.mark.parametrize("partition_by", [[], ["value"]])
def test_a_scan_reads_to_its_end_what_was_there_when_it_began(root: Path, partition_by: list[str]) -> None:
    with CayenneTable.create(root, "numbers", NUMBERS, primary_key=["id"], partition_by=partition_by) as table:
        for number in range(4):
            table.append(numbers((number, number)))
        reader = table.scan()
        first = reader.read_next_batch()
        table.delete(pc.field("id") == 3)
        table.overwrite(numbers((9, 9)))
        old = files_in(root)
        assert sorted(pa.Table.from_batches([first, *reader])["id"].to_pylist()) == [0, 1, 2, 3]
        assert len(old) == 5
        table.append(numbers((10, 10)))
        assert len(files_in(root)) == 2
        assert len([path for path in (root / "data").iterdir() if path.is_dir()]) == (4 if partition_by else 2)


def test_a_scan_that_is_dropped_lets_files_go(root: Path) -> None:
    with CayenneTable.create(root, "numbers", NUMBERS) as table:
        table.append(numbers((1, 1)))
        unused, begun = table.scan(), table.scan()
        begun.read_next_batch()
        table.overwrite(numbers((2, 2)))
        assert len(files_in(root)) == 2
        del unused, begun
        gc.collect()
        table.append(numbers((3, 3)))
        assert len(files_in(root)) == 2


def test_a_killed_reader_lets_files_go(root: Path, python: Program) -> None:
    with CayenneTable.create(root, "numbers", NUMBERS) as table:
        table.append(numbers((1, 1)))
        child = python(
            "import sys\n"
            "from snapshot_assets.engines.cayenne import CayenneTable\n"
            "reader = CayenneTable.open(sys.argv[1], 'numbers', read_only=True).scan()\n"
            "print(reader.read_next_batch().num_rows, flush=True)\n"
            "sys.stdin.readline()",
            root,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "1\n"
        table.overwrite(numbers((2, 2)))
        assert len(files_in(root)) == 2
        child.kill()
        child.wait(20)
        table.overwrite(numbers((3, 3)))
        assert len(files_in(root)) == 1
