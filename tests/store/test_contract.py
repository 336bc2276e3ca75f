from __future__ import annotations

from pathlib import Path

import pytest

from snapshot_assets.store.contract import Store
from snapshot_assets.store.local import LocalStore
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.store.object import ObjectStore
from snapshot_assets.store.settled import SettledStore
from snapshot_assets.testing.faults import FaultStore
from snapshot_assets.testing.store_contract import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path / "made by the first write" / "store")


class TestObjectStoreOnS3(StoreContract):
    equal_writes_share_tokens = True

    @pytest.fixture
    def store(self, s3_url: str, s3_options: dict[str, str]) -> Store:
        return ObjectStore(s3_url, s3_options)


class TestSettledStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return SettledStore(MemoryStore())


class TestFaultStoreWithoutFaults(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return FaultStore(MemoryStore())
