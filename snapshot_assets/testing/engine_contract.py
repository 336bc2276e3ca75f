"""The engine contract as tests: subclass `EngineContract`, name the engine, and pytest runs the suite.

    class TestMyEngine(EngineContract):
        engine_name = "mine"

The suite talks SQL to the live connection and to the pool. An engine with another language overrides `fill`, `append`
and the statements below.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from snapshot_assets.engines.contract import Captured, Engine, Pool
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.errors import (
    ConfigurationError,
    CorruptCapture,
    LiveDatabaseMissing,
    ReadOnlyDataset,
    UnsupportedLiveDatabase,
    ValidationFailed,
)
from snapshot_assets.ids import new_incarnation_id, new_operation_id
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import FileEntry, Manifest, TableContent, check_paths, digest_of

__all__ = ["EngineContract", "manifest_for"]


def manifest_for(dataset: Dataset, captured: Captured, tables: Mapping[str, TableContent]) -> Manifest:
    """The manifest that a publish of the staged copy would write, as far as an engine looks at it."""
    operation = new_operation_id()
    files = tuple(
        FileEntry(file.path, file.size, file.mode, file.layout, digest_of(file.source.read_bytes()))
        for file in captured.files
    )
    return Manifest(
        operation_id=operation,
        dataset=dataset.name,
        incarnation=new_incarnation_id(),
        engine=dataset.engine,
        engine_version=captured.engine_version,
        storage_version=captured.storage_version,
        created_at_ms=0,
        tables=tables,
        files=files,
        operations=(operation,),
        index_digest=digest_of(b""),
        content_digest=digest_of(b""),
    )


class EngineContract:
    """What every engine promises, as tests."""

    engine_name: ClassVar[str]
    timeout: ClassVar[float] = 10.0
    count_orders: ClassVar[str] = "select count(*) as n, sum(id) as total from orders"
    insert_order: ClassVar[str] = "insert into orders values (999999, 'forbidden')"
    wrong_statement: ClassVar[str] = "select nothing from nowhere"

    def fill(self, connection: Any, rows: int = 1_000) -> None:
        """Make the tables `orders` (id integer, name text) with ids from 0 and `customers` (id), which is empty."""
        connection.execute("create table orders (id integer not null, name text)")
        connection.execute("create table customers (id integer)")
        self.append(connection, 0, rows)

    def append(self, connection: Any, first: int, rows: int) -> None:
        """Add orders with ids from `first`, committed."""
        values = ",".join(f"({number}, 'order {number}')" for number in range(first, first + rows))
        connection.execute(f"insert into orders values {values}")
        connection.commit()

    @pytest.fixture
    def engine(self) -> Engine:
        """The engine under test."""
        return engine_named(self.engine_name)

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Dataset:
        """A dataset whose live database does not exist yet, nor the folder that it lies in."""
        return Dataset("shop", self.engine_name, tmp_path / "live" / f"shop.{self.engine_name}")

    @pytest.fixture
    def staging(self, tmp_path: Path) -> Path:
        """An empty folder."""
        folder = tmp_path / "staging"
        folder.mkdir()
        return folder

    def build(self, engine: Engine, dataset: Dataset, rows: int = 1_000) -> None:
        """Make the live database."""
        with engine.connect_live(dataset) as connection:
            self.fill(connection, rows)

    def capture(self, engine: Engine, dataset: Dataset, folder: Path) -> Captured:
        """Capture into a folder that is made if need be."""
        folder.mkdir(exist_ok=True)
        return engine.capture(dataset, folder, timeout=self.timeout)

    def open_pool(self, engine: Engine, dataset: Dataset, folder: Path) -> Pool:
        """Capture into the folder and open it as a reader would."""
        captured = self.capture(engine, dataset, folder)
        manifest = manifest_for(dataset, captured, engine.describe(dataset, folder, _paths(captured)))
        engine.check_readable(manifest)
        engine.install(folder, manifest)
        return engine.open_pool(folder, manifest)

    def count(self, pool: Pool) -> int:
        """How many orders a pool serves; their ids must be 0, 1, 2 ..."""
        (row,) = pool.query(self.count_orders).to_pylist()
        assert row["total"] == row["n"] * (row["n"] - 1) // 2
        return int(row["n"])

    # capture

    def test_capture_holds_everything_that_was_committed(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        with engine.connect_live(dataset) as connection:
            self.fill(connection)
            self.append(connection, 1_000, 500)
        pool = self.open_pool(engine, dataset, staging)
        assert self.count(pool) == 1_500
        pool.close()

    def test_captured_files_are_safe_complete_and_in_staging(
        self, engine: Engine, dataset: Dataset, staging: Path
    ) -> None:
        self.build(engine, dataset)
        captured = self.capture(engine, dataset, staging)
        check_paths(_paths(captured))
        found = {path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()}
        assert found == set(_paths(captured))
        for file in captured.files:
            assert file.source == staging / file.path
            assert file.size == file.source.stat().st_size
            assert file.layout.chunk_bytes is None or file.layout.chunk_bytes >= 512
        assert captured.engine_version == engine.version()
        assert captured.storage_version

    def test_unchanged_content_gives_the_same_bytes(self, engine: Engine, dataset: Dataset, tmp_path: Path) -> None:
        self.build(engine, dataset)
        first = self.capture(engine, dataset, tmp_path / "first")
        with engine.connect_live(dataset):
            pass
        second = self.capture(engine, dataset, tmp_path / "second")
        assert _bytes(first) == _bytes(second)

    def test_changed_content_gives_other_bytes(self, engine: Engine, dataset: Dataset, tmp_path: Path) -> None:
        self.build(engine, dataset)
        first = self.capture(engine, dataset, tmp_path / "first")
        with engine.connect_live(dataset) as connection:
            self.append(connection, 1_000, 1)
        second = self.capture(engine, dataset, tmp_path / "second")
        assert _bytes(first) != _bytes(second)

    def test_capture_leaves_the_live_database_as_it_was(self, engine: Engine, dataset: Dataset, tmp_path: Path) -> None:
        self.build(engine, dataset)
        before = sorted(path.name for path in dataset.path.parent.iterdir())
        self.capture(engine, dataset, tmp_path / "first")
        assert sorted(path.name for path in dataset.path.parent.iterdir()) == before
        with engine.connect_live(dataset) as connection:
            self.append(connection, 1_000, 10)
        pool = self.open_pool(engine, dataset, tmp_path / "second")
        assert self.count(pool) == 1_010
        pool.close()

    def test_capture_beside_an_open_connection_of_this_process(
        self, engine: Engine, dataset: Dataset, staging: Path
    ) -> None:
        with engine.connect_live(dataset) as connection:
            self.fill(connection)
            pool = self.open_pool(engine, dataset, staging)
            assert self.count(pool) == 1_000
            self.append(connection, 1_000, 1)
            assert self.count(pool) == 1_000
        pool.close()

    def test_capture_through_a_symlink(self, engine: Engine, dataset: Dataset, staging: Path, tmp_path: Path) -> None:
        self.build(engine, dataset)
        link = tmp_path / "link"
        link.symlink_to(dataset.path)
        linked = replace_path(dataset, link)
        with engine.connect_live(linked) as connection:
            self.append(connection, 1_000, 5)
            pool = self.open_pool(engine, linked, staging)
        assert self.count(pool) == 1_005
        pool.close()

    def test_missing_live_database_is_refused_and_not_made(
        self, engine: Engine, dataset: Dataset, staging: Path
    ) -> None:
        with pytest.raises(LiveDatabaseMissing):
            engine.capture(dataset, staging, timeout=1)
        assert not dataset.path.exists()

    def test_a_folder_in_place_of_the_live_database_is_refused(
        self, engine: Engine, dataset: Dataset, staging: Path
    ) -> None:
        dataset.path.mkdir(parents=True)
        with pytest.raises(UnsupportedLiveDatabase):
            engine.capture(dataset, staging, timeout=1)

    def test_a_file_of_another_kind_is_refused(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        dataset.path.parent.mkdir()
        content = b"name,price\n" + b"tea,5\n" * 5_000
        dataset.path.write_bytes(content)
        with pytest.raises(UnsupportedLiveDatabase):
            engine.check_dataset(dataset)
        with pytest.raises(UnsupportedLiveDatabase):
            engine.capture(dataset, staging, timeout=1)
        with pytest.raises(UnsupportedLiveDatabase), engine.connect_live(dataset):
            pass
        assert dataset.path.read_bytes() == content

    def test_a_dataset_can_be_declared_before_its_live_database_exists(self, engine: Engine, dataset: Dataset) -> None:
        engine.check_dataset(dataset)
        assert not dataset.path.parent.exists()

    def test_unknown_options_are_refused(self, engine: Engine, dataset: Dataset) -> None:
        wrong = Dataset(dataset.name, dataset.engine, dataset.path, options={"no_such_option": 1})
        with pytest.raises(ConfigurationError, match="no_such_option"):
            engine.check_dataset(wrong)

    # describe and verify

    def test_describe_tells_schemas_and_counts(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset)
        captured = self.capture(engine, dataset, staging)
        tables = engine.describe(dataset, staging, _paths(captured))
        assert {name: table.row_count for name, table in tables.items()} == {"orders": 1_000, "customers": 0}
        columns = {field.name: field.nullable for field in tables["orders"].schema.fields}
        assert columns == {"id": False, "name": True}

    def test_describe_keeps_to_the_tables_that_the_dataset_names(
        self, engine: Engine, dataset: Dataset, staging: Path
    ) -> None:
        self.build(engine, dataset)
        paths = _paths(self.capture(engine, dataset, staging))
        some = Dataset(dataset.name, dataset.engine, dataset.path, tables=["orders"])
        assert list(engine.describe(some, staging, paths)) == ["orders"]
        wrong = Dataset(dataset.name, dataset.engine, dataset.path, tables=["orders", "ordres"])
        with pytest.raises(ConfigurationError, match="ordres"):
            engine.describe(wrong, staging, paths)

    def test_verify_accepts_a_good_copy(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset)
        paths = _paths(self.capture(engine, dataset, staging))
        tables = engine.describe(dataset, staging, paths)
        engine.verify(staging, paths, tables, "quick")
        engine.verify(staging, paths, tables, "full")

    def test_verify_refuses_a_copy_that_holds_something_else(
        self, engine: Engine, dataset: Dataset, staging: Path
    ) -> None:
        self.build(engine, dataset)
        paths = _paths(self.capture(engine, dataset, staging))
        tables = engine.describe(dataset, staging, paths)
        orders = tables["orders"]
        wrong = (
            {"orders": replace(orders, row_count=999)},
            {"orders": replace(orders, schema=tables["customers"].schema)},
            {"ordres": orders},
        )
        for expected in wrong:
            with pytest.raises(CorruptCapture):
                engine.verify(staging, paths, expected, "quick")
            engine.verify(staging, paths, expected, "none")

    def test_a_truncated_copy_is_corrupt(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset, rows=5_000)
        captured = self.capture(engine, dataset, staging)
        tables = engine.describe(dataset, staging, _paths(captured))
        largest = max(captured.files, key=lambda file: file.size)
        os.truncate(largest.source, largest.size // 2)
        with pytest.raises(CorruptCapture):
            engine.verify(staging, _paths(captured), tables, "full")

    def test_flipped_bytes_in_the_data_are_corrupt(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset, rows=5_000)
        captured = self.capture(engine, dataset, staging)
        tables = engine.describe(dataset, staging, _paths(captured))
        largest = max(captured.files, key=lambda file: file.size)
        content = bytearray(largest.source.read_bytes())
        for position in range(len(content) // 3, len(content), 4_096):
            content[position] ^= 0xFF
        largest.source.write_bytes(content)
        with pytest.raises(CorruptCapture):
            engine.verify(staging, _paths(captured), tables, "full")

    def test_a_missing_file_is_corrupt(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset)
        captured = self.capture(engine, dataset, staging)
        tables = engine.describe(dataset, staging, _paths(captured))
        captured.files[0].source.unlink()
        with pytest.raises(CorruptCapture):
            engine.verify(staging, _paths(captured), tables, "quick")

    def test_staged_query_reads_and_never_writes(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset)
        captured = self.capture(engine, dataset, staging)
        before = _bytes(captured)
        with engine.staged_query(staging, _paths(captured)) as query:
            assert query(self.count_orders) == [(1_000, 499_500)]
            with pytest.raises(ValidationFailed):
                query(self.insert_order)
            with pytest.raises(ValidationFailed):
                query(self.wrong_statement)
        assert _bytes(captured) == before

    # pools

    def test_a_pool_serves_its_own_copy(self, engine: Engine, dataset: Dataset, tmp_path: Path) -> None:
        self.build(engine, dataset)
        old = self.open_pool(engine, dataset, tmp_path / "old")
        with engine.connect_live(dataset) as connection:
            self.append(connection, 1_000, 1)
        new = self.open_pool(engine, dataset, tmp_path / "new")
        assert (self.count(old), self.count(new), self.count(old)) == (1_000, 1_001, 1_000)
        old.close()
        assert self.count(new) == 1_001
        new.close()

    def test_a_pool_refuses_writes(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset)
        pool = self.open_pool(engine, dataset, staging)
        with pytest.raises(ReadOnlyDataset, match="shop"):
            pool.query(self.insert_order)
        connection = pool.acquire()
        with pytest.raises(Exception, match=r"(?i)read-?only"):
            connection.execute(self.insert_order)
        pool.release(connection)
        assert self.count(pool) == 1_000
        pool.close()

    def test_reading_leaves_nothing_beside_the_local_copy(
        self, engine: Engine, dataset: Dataset, staging: Path
    ) -> None:
        self.build(engine, dataset)
        pool = self.open_pool(engine, dataset, staging)
        before = sorted(staging.rglob("*"))
        connection = pool.acquire()
        assert len(connection.execute(self.count_orders).fetchall()) == 1
        self.count(pool)
        assert sorted(staging.rglob("*")) == before
        pool.release(connection)
        pool.close()
        assert sorted(staging.rglob("*")) == before

    def test_a_pool_serves_many_threads(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset)
        pool = self.open_pool(engine, dataset, staging)
        answers: list[Any] = []

        def work() -> None:
            for _ in range(20):
                connection = pool.acquire()
                answers.append(tuple(connection.execute(self.count_orders).fetchall()[0]))
                pool.release(connection)
                answers.append((self.count(pool), 499_500))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        pool.close()
        assert set(answers) == {(1_000, 499_500)}
        assert len(answers) == 160

    def test_a_lease_begins_with_a_clean_session(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset)
        pool = self.open_pool(engine, dataset, staging)
        first = pool.acquire()
        first.execute("create temp table mine as select 1 as one")
        first.execute("begin")
        pool.release(first)
        second = pool.acquire()
        with pytest.raises(Exception, match="mine"):
            second.execute("select * from mine")
        second.execute("begin")
        pool.release(second)
        pool.close()

    # live connections

    def test_a_live_connection_is_closed_after_its_block(self, engine: Engine, dataset: Dataset) -> None:
        with engine.connect_live(dataset) as connection:
            self.fill(connection)
        with pytest.raises(Exception, match=r"(?i)closed"):
            connection.execute(self.count_orders)
        with pytest.raises(RuntimeError, match="mine"), engine.connect_live(dataset) as connection:
            raise RuntimeError("mine")
        with pytest.raises(Exception, match=r"(?i)closed"):
            connection.execute(self.count_orders)


def replace_path(dataset: Dataset, path: Path) -> Dataset:
    """The same dataset with another live database."""
    return Dataset(dataset.name, dataset.engine, path)


def _paths(captured: Captured) -> Sequence[str]:
    return [file.path for file in captured.files]


def _bytes(captured: Captured) -> dict[str, bytes]:
    return {file.path: file.source.read_bytes() for file in captured.files}
