"""Live databases, staged copies and pools for the engine contract's tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from snapshot_assets.engines.contract import Captured, Engine, Pool
from snapshot_assets.ids import new_incarnation_id, new_operation_id
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import FileEntry, Manifest, TableContent, digest_of
from snapshot_assets.testing.engine_hooks import EngineHooks

__all__ = ["EngineStaging", "bytes_of", "manifest_for", "paths_of"]


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


class EngineStaging(EngineHooks):
    """What the tests without a store begin with."""

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
        manifest = manifest_for(dataset, captured, engine.describe(dataset, folder, paths_of(captured)))
        engine.check_readable(manifest)
        engine.install(folder, manifest)
        return engine.open_pool(folder, manifest)

    def count(self, pool: Pool) -> int:
        """How many orders a pool serves; their ids must be 0, 1, 2 ..."""
        (row,) = pool.query(self.count_orders).to_pylist()
        assert row["total"] == row["n"] * (row["n"] - 1) // 2
        return int(row["n"])


def paths_of(captured: Captured) -> Sequence[str]:
    """The paths of the staged files."""
    return [file.path for file in captured.files]


def bytes_of(captured: Captured) -> dict[str, bytes]:
    """What is in the staged files."""
    return {file.path: file.source.read_bytes() for file in captured.files}
