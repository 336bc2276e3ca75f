"""What an engine promises of the live database: capture, optimize, connections, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshot_assets.engines.contract import Engine
from snapshot_assets.errors import ConfigurationError, LiveDatabaseMissing, UnsupportedLiveDatabase
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import check_paths
from snapshot_assets.testing.engine_staging import EngineStaging, bytes_of, paths_of

__all__ = ["EngineLive"]


class EngineLive(EngineStaging):
    """The live database: captured whole, left as it was, and refused when it is none."""

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
        check_paths(paths_of(captured))
        found = {path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()}
        assert found == set(paths_of(captured))
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
        assert bytes_of(first) == bytes_of(second)

    def test_changed_content_gives_other_bytes(self, engine: Engine, dataset: Dataset, tmp_path: Path) -> None:
        self.build(engine, dataset)
        first = self.capture(engine, dataset, tmp_path / "first")
        with engine.connect_live(dataset) as connection:
            self.append(connection, 1_000, 1)
        second = self.capture(engine, dataset, tmp_path / "second")
        assert bytes_of(first) != bytes_of(second)

    def test_capture_leaves_the_live_database_as_it_was(self, engine: Engine, dataset: Dataset, tmp_path: Path) -> None:
        self.build(engine, dataset)
        with engine.connect_live(dataset) as connection:
            rows = self.rows_of(connection)
        before = _files_in(dataset.path.parent)
        self.capture(engine, dataset, tmp_path / "first")
        after = _files_in(dataset.path.parent)
        assert after.keys() == before.keys()
        assert after == before or not self.keeps_live_files
        with engine.connect_live(dataset) as connection:
            assert self.rows_of(connection) == rows
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
        linked = _moved(dataset, link)
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

    def test_a_folder_without_a_live_database_is_refused(self, engine: Engine, dataset: Dataset, staging: Path) -> None:
        dataset.path.mkdir(parents=True)
        (dataset.path / "notes.txt").write_text("tea, 5")
        refusal = (LiveDatabaseMissing, UnsupportedLiveDatabase) if self.is_folder else UnsupportedLiveDatabase
        with pytest.raises(refusal):
            engine.capture(dataset, staging, timeout=1)
        assert [path.name for path in dataset.path.iterdir()] == ["notes.txt"]

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

    def test_a_live_connection_is_closed_after_its_block(self, engine: Engine, dataset: Dataset) -> None:
        with engine.connect_live(dataset) as connection:
            self.fill(connection)
        with pytest.raises(Exception, match=r"(?i)closed"):
            self.use(connection)
        with pytest.raises(RuntimeError, match="mine"), engine.connect_live(dataset) as connection:
            raise RuntimeError("mine")
        with pytest.raises(Exception, match=r"(?i)closed"):
            self.use(connection)

    def test_optimize_keeps_every_row_and_then_finds_nothing_to_do(
        self, engine: Engine, dataset: Dataset, tmp_path: Path
    ) -> None:
        self.build(engine, dataset, rows=20_000)
        with engine.connect_live(dataset) as connection:
            self.delete(connection, range(500, 20_000))
            self.update(connection, range(100, 200))
            rows = self.rows_of(connection)
        assert len(rows) == 500
        paths = paths_of(self.capture(engine, dataset, tmp_path / "before"))
        before = engine.describe(dataset, tmp_path / "before", paths)
        engine.optimize(dataset, timeout=self.timeout)
        with engine.connect_live(dataset) as connection:
            assert self.rows_of(connection) == rows
        captured = self.capture(engine, dataset, tmp_path / "after")
        assert engine.describe(dataset, tmp_path / "after", paths_of(captured)) == before
        assert engine.optimize(dataset, timeout=self.timeout).skipped is not None
        assert bytes_of(self.capture(engine, dataset, tmp_path / "again")) == bytes_of(captured)

    def test_optimize_of_nothing_is_refused(self, engine: Engine, dataset: Dataset) -> None:
        with pytest.raises(LiveDatabaseMissing):
            engine.optimize(dataset, timeout=1)
        assert not dataset.path.exists()

    def test_a_live_database_has_one_path_whatever_links_lead_there(
        self, engine: Engine, dataset: Dataset, tmp_path: Path
    ) -> None:
        before = engine.live_path(dataset)
        self.build(engine, dataset)
        (tmp_path / "link").symlink_to(dataset.path.parent)
        linked = _moved(dataset, tmp_path / "link" / dataset.path.name)
        assert before.is_absolute()
        assert engine.live_path(dataset) == engine.live_path(linked) == before
        assert engine.shares(dataset) == engine.shares(linked)


def _moved(dataset: Dataset, path: Path) -> Dataset:
    """The same dataset with another live database."""
    return Dataset(dataset.name, dataset.engine, path)


def _files_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }
