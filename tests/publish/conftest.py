"""A store and a live database for each engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshot_assets.model.dataset import Dataset
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.publish.support import grow


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore.open(str(tmp_path / "store"))


@pytest.fixture(params=["duckdb", "sqlite"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    made = Dataset("orders", request.param, tmp_path / "live" / f"orders.{request.param}")
    made.path.parent.mkdir()
    grow(made, 100)
    return made
