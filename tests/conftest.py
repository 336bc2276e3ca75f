from __future__ import annotations

import resource
from collections.abc import Callable, Iterator

import pytest

pytest.register_assert_rewrite("snapshot_assets.testing.store_contract")

from snapshot_assets.testing.servers import S3Server, weed_server  # noqa: E402


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A SeaweedFS of this pytest process (under xdist: of this worker), started when the first test asks for it."""
    with weed_server() as server:
        yield server


@pytest.fixture
def s3_url(s3_server: S3Server) -> str:
    """The URL of a prefix of its own for this test."""
    return f"{s3_server.new_url()}/some/prefix"


@pytest.fixture
def s3_options(s3_server: S3Server) -> dict[str, str]:
    """The options with which `s3_url` opens."""
    return s3_server.options


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Lets no file of this process grow beyond a number of bytes, as on a disk without room; -1 takes that back."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size < 0 else size, before[1]))

    yield limit
    limit(-1)
