"""The dataset that is maintained."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshot_assets.model.dataset import Dataset
from tests.maintenance.support import orders_in


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return orders_in(tmp_path)
