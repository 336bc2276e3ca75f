"""What an engine promises of staged and local copies: describe, verify, and pools of connections."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from snapshot_assets.engines.contract import Engine
from snapshot_assets.errors import ConfigurationError, CorruptCapture, ReadOnlyDataset, ValidationFailed
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.schema import TableSchema
from snapshot_assets.testing.engine_staging import EngineStaging, bytes_of, paths_of

__all__ = ["EngineCopies"]


class EngineCopies(EngineStaging):
    """Copies: what is in them is told, damage is found, and they are read and never written."""

    def test_describe_tells_schemas_and_counts(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset)
        captured = self.capture(engine, dataset, staging)
        tables = engine.describe(dataset, staging, paths_of(captured))
        counts = {"orders": 1_000} | ({"customers": 0} if self.has_many_tables else {})
        assert {name: table.row_count for name, table in tables.items()} == counts
        columns = {field.name: field.nullable for field in tables["orders"].schema.fields}
        assert columns == {"id": False, "name": True}

    def test_describe_keeps_to_the_tables_that_the_dataset_names(
        self, engine: Engine, dataset: Dataset, staging: Path
    ) -> None:
        self.build(engine, dataset)
        paths = paths_of(self.capture(engine, dataset, staging))
        some = Dataset(dataset.name, dataset.engine, dataset.path, tables=["orders"])
        assert list(engine.describe(some, staging, paths)) == ["orders"]
        wrong = Dataset(dataset.name, dataset.engine, dataset.path, tables=["orders", "ordres"])
        with pytest.raises(ConfigurationError, match="ordres"):
            engine.describe(wrong, staging, paths)

    def test_verify_accepts_a_good_copy(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset)
        paths = paths_of(self.capture(engine, dataset, staging))
        tables = engine.describe(dataset, staging, paths)
        engine.verify(staging, paths, tables, "quick")
        engine.verify(staging, paths, tables, "full")

    def test_verify_refuses_a_copy_that_holds_something_else(
        self, engine: Engine, dataset: Dataset, staging: Path
    ) -> None:
        self.build(engine, dataset)
        paths = paths_of(self.capture(engine, dataset, staging))
        tables = engine.describe(dataset, staging, paths)
        orders = tables["orders"]
        other = TableSchema.from_arrow(pa.schema([("id", pa.int64())]))
        wrong = (
            {"orders": replace(orders, row_count=999)},
            {"orders": replace(orders, schema=other)},
            {"ordres": orders},
        )
        for expected in wrong:
            with pytest.raises(CorruptCapture):
                engine.verify(staging, paths, expected, "quick")
            engine.verify(staging, paths, expected, "none")

    def test_a_truncated_copy_is_corrupt(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset, rows=5_000)
        captured = self.capture(engine, dataset, staging)
        tables = engine.describe(dataset, staging, paths_of(captured))
        largest = max(captured.files, key=lambda file: file.size)
        half = largest.source.read_bytes()[: largest.size // 2]
        largest.source.unlink()  # a staged file may be a link to the live one
        largest.source.write_bytes(half)
        with pytest.raises(CorruptCapture):
            engine.verify(staging, paths_of(captured), tables, "full")

    def test_flipped_bytes_in_the_data_are_corrupt(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset, rows=5_000)
        captured = self.capture(engine, dataset, staging)
        tables = engine.describe(dataset, staging, paths_of(captured))
        largest = max(captured.files, key=lambda file: file.size)
        content = bytearray(largest.source.read_bytes())
        for position in range(len(content) // 3, len(content), 4_096):
            content[position] ^= 0xFF
        largest.source.unlink()  # a staged file may be a link to the live one
        largest.source.write_bytes(content)
        try:
            engine.verify(staging, paths_of(captured), tables, "full")
        except CorruptCapture:
            return
        assert not self.detects_flipped_bytes

    def test_a_missing_file_is_corrupt(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset)
        captured = self.capture(engine, dataset, staging)
        tables = engine.describe(dataset, staging, paths_of(captured))
        for file in captured.files:
            aside = file.source.rename(staging / "aside")
            with pytest.raises(CorruptCapture):
                engine.verify(staging, paths_of(captured), tables, "quick")
            aside.rename(file.source)
        engine.verify(staging, paths_of(captured), tables, "quick")

    def test_staged_query_reads_and_never_writes(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset)
        captured = self.capture(engine, dataset, staging)
        before = bytes_of(captured)
        with engine.staged_query(staging, paths_of(captured)) as query:
            assert query(self.count_orders) == [(1_000, 499_500)]
            with pytest.raises(ValidationFailed):
                query(self.insert_order)
            with pytest.raises(ValidationFailed):
                query(self.wrong_statement)
        assert bytes_of(captured) == before

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
        with pytest.raises(ReadOnlyDataset, match="orders"):
            pool.query(self.insert_order)
        lease = pool.acquire()
        with pytest.raises(Exception, match=self.refusal):
            self.write_to(lease)
        pool.release(lease)
        assert self.count(pool) == 1_000
        pool.close()

    def test_reading_leaves_nothing_beside_the_local_copy(
        self, engine: Engine, dataset: Dataset, staging: Path
    ) -> None:
        self.build(engine, dataset)
        pool = self.open_pool(engine, dataset, staging)
        before = sorted(staging.rglob("*"))
        lease = pool.acquire()
        assert self.count_of(lease) == (1_000, 499_500)
        self.count(pool)
        assert sorted(staging.rglob("*")) == before
        pool.release(lease)
        pool.close()
        assert sorted(staging.rglob("*")) == before

    def test_a_pool_serves_many_threads(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        self.build(engine, dataset)
        pool = self.open_pool(engine, dataset, staging)
        answers: list[Any] = []

        def work() -> None:
            for _ in range(20):
                lease = pool.acquire()
                answers.append(self.count_of(lease))
                pool.release(lease)
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
        self.disturb(first)
        pool.release(first)
        second = pool.acquire()
        self.check_undisturbed(second)
        pool.release(second)
        pool.close()
