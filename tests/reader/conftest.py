from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshot_assets.reader.spare import _all_users_are_known
from tests.reader.world import World


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where temporary folders lie on a file system that keeps no spares, as that of a container does."""
    if _all_users_are_known(tmp_path):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()
