from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets.errors import ReaderError
from snapshot_assets.reader.local_copy import LocalCopy
from snapshot_assets.reader.opening import open_copy
from snapshot_assets.reader.registry import InstanceKey, PoolRegistry
from tests.reader.world import World


class OpenPool:
    """A pool that knows whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def acquire(self) -> Any: ...
    def release(self, connection: Any) -> None: ...
    def query(self, sql: str, parameters: Any = None, *, connection: Any = None) -> Any: ...
    def close(self) -> None:
        self.closed = True


def test_a_key_has_one_pool_until_it_is_invalidated(tmp_path: Path) -> None:
    registry = PoolRegistry()
    key, other = InstanceKey.file(tmp_path / "a"), InstanceKey.file(tmp_path / "b")
    first = registry.get_or_create(key, OpenPool)
    kept = registry.get_or_create(other, OpenPool)
    assert registry.get_or_create(key, OpenPool) is first
    assert registry.invalidate_instance(key) is first
    assert not first.closed  # type: ignore[attr-defined]
    assert registry.get_or_create(key, OpenPool) is not first
    assert registry.get_or_create(other, OpenPool) is kept


def test_invalidating_what_is_not_there_does_nothing(tmp_path: Path) -> None:
    registry = PoolRegistry()
    assert registry.invalidate_instance(InstanceKey.memory()) is None
    assert registry.invalidate_file_instance(tmp_path / "absent") is None


def test_spellings_of_a_path_are_one_key(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    registry = PoolRegistry()
    pool = registry.get_or_create(InstanceKey.file(tmp_path / "real" / "x.duckdb"), OpenPool)
    assert registry.get_or_create(InstanceKey.file(tmp_path / "link" / "." / "x.duckdb"), OpenPool) is pool
    assert registry.invalidate_file_instance(f"{tmp_path}/link/../real/x.duckdb") is pool


def test_all_of_memory_is_one_key_and_no_files(tmp_path: Path) -> None:
    registry = PoolRegistry()
    pool = registry.get_or_create(InstanceKey.memory(), OpenPool)
    assert registry.get_or_create(InstanceKey.memory(), OpenPool) is pool
    assert registry.invalidate_file_instance(tmp_path) is None
    assert registry.invalidate_instance(InstanceKey.memory()) is pool


def test_concurrent_first_calls_build_one_pool() -> None:
    registry = PoolRegistry()
    built: list[OpenPool] = []
    barrier = threading.Barrier(8)

    def build() -> OpenPool:
        built.append(OpenPool())
        return built[-1]

    def first_call() -> None:
        barrier.wait()
        registry.get_or_create(InstanceKey.memory(), build)

    threads = [threading.Thread(target=first_call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_a_factory_that_raises_leaves_nothing_behind() -> None:
    registry = PoolRegistry()

    def broken() -> OpenPool:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        registry.get_or_create(InstanceKey.memory(), broken)
    assert isinstance(registry.get_or_create(InstanceKey.memory(), OpenPool), OpenPool)


def test_a_copy_that_is_open_is_never_given_to_a_second_owner(world: World) -> None:
    published = world.orders(1)
    with world.reader() as reader:
        reader.follow("orders")
    copy = LocalCopy.read(world.data_dir / "orders" / f"{published.incarnation}-s0")
    registry = PoolRegistry()
    pool = open_copy(registry, copy, world.folder / "scratch")
    with pytest.raises(ReaderError, match="open already"):
        open_copy(registry, copy, world.folder / "scratch")
    assert pool.query("select count(*) c from orders").to_pylist() == [{"c": 1_000}]
    pool.close()
