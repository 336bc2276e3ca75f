"""A place on each kind of store, and a crew that is gone when the test ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults_real.crew import Crew
from tests.faults_real.place import Place


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.close()


@pytest.fixture
def local_place(tmp_path: Path) -> Place:
    return Place(tmp_path, str(tmp_path / "store"))


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """SQLite on a real S3 server, and DuckDB on a local store."""
    if request.param == "local":
        return Place(tmp_path, str(tmp_path / "store"), engine="duckdb")
    return Place(tmp_path, request.getfixturevalue("s3_url"), request.getfixturevalue("s3_options"))
