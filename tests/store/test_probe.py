from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets.errors import AccessDenied, Conflict, StoreUnavailable, UnsafeStore
from snapshot_assets.store.contract import Versioned
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.store.object import ObjectStore
from snapshot_assets.store.probe import probe_store
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Fault, FaultStore
from snapshot_assets.testing.servers import S3Server, rclone_server


@pytest.fixture(scope="module")
def careless() -> Iterator[S3Server]:
    with rclone_server() as server:
        yield server


def test_a_server_that_ignores_conditions_is_refused_and_left_as_it_was(careless: S3Server) -> None:
    url = careless.new_url()
    with pytest.raises(UnsafeStore, match="can not be trusted") as caught:
        SnapshotStore.open(url, careless.options)
    assert "If-None-Match" in caught.value.hint
    assert list(ObjectStore(url, careless.options).list("")) == []
    with pytest.raises(UnsafeStore):
        SnapshotStore.open(url, careless.options)


def test_a_server_that_ignores_conditions_can_still_be_read(careless: S3Server) -> None:
    assert SnapshotStore.open(careless.new_url(), careless.options, read_only=True).heads() == {}


class CreatesAgain(MemoryStore):
    def write_if_absent(self, key: str, data: bytes) -> str:
        self.delete([key])
        return super().write_if_absent(key, data)


class ReplacesAnyVersion(MemoryStore):
    def write_if_match(self, key: str, data: bytes, token: str) -> str:
        return super().write_if_match(key, data, self.read(key).token)


class UploadsAgain(MemoryStore):
    def upload(self, key: str, source: Any) -> None:
        self.delete([key])
        super().upload(key, source)


class CompletesPartsAgain(MemoryStore):
    def upload_in_parts(self, key: str, source: bytes) -> None:
        self.delete([key])
        self.upload(key, source)


class NeverUnchanged(MemoryStore):
    def read_if_changed(self, key: str, token: str, *, limit: int = 100) -> Versioned | None:
        return self.read(key)


class ListsOtherTokens(MemoryStore):
    def list(self, prefix: str) -> Any:
        for listed in super().list(prefix):
            yield type(listed)(listed.key, listed.size, listed.token + "!", 0)


class ConflictsButWrites(MemoryStore):
    def write_if_match(self, key: str, data: bytes, token: str) -> str:
        found = self.read(key).token
        written = super().write_if_match(key, data, found)
        if found != token:
            raise Conflict("so it says")
        return written


class KeepsTheOldVersion(MemoryStore):
    def write_if_match(self, key: str, data: bytes, token: str) -> str:
        if self.read(key).token != token:
            raise Conflict("stale")
        return "new token"


@pytest.mark.parametrize(
    "liar",
    [
        CreatesAgain, ReplacesAnyVersion, UploadsAgain, CompletesPartsAgain, NeverUnchanged, ListsOtherTokens,
        ConflictsButWrites, KeepsTheOldVersion,
    ],
)  # fmt: skip
def test_each_broken_promise_is_noticed(liar: type[MemoryStore]) -> None:
    store = liar()
    with pytest.raises(UnsafeStore):
        probe_store(store)
    assert list(MemoryStore.list(store, "")) == []


def test_the_probe_leaves_nothing_when_it_is_cut_short() -> None:
    memory = MemoryStore()
    with pytest.raises(StoreUnavailable):
        probe_store(FaultStore(memory, Fault("before", "read_if_changed")))
    assert list(memory.list("")) == []


def test_a_parts_upload_is_probed_on_s3(s3_url: str, s3_options: dict[str, str]) -> None:
    calls: list[str] = []

    class Watched(ObjectStore):
        def upload_in_parts(self, key: str, source: bytes | bytearray | memoryview | Path) -> None:
            calls.append(key)
            super().upload_in_parts(key, source)

    probe_store(Watched(s3_url, s3_options))
    assert len(calls) == 2
    assert calls[0] == calls[1]


def test_a_store_that_may_not_be_written_is_not_probed(
    s3_server: S3Server, s3_url: str, s3_options: dict[str, str]
) -> None:
    assert probe_store(ObjectStore(s3_url, s3_options)) is True
    assert probe_store(ObjectStore(s3_url, s3_server.reader_options)) is False


@pytest.mark.parametrize("operation", ["read", "read_if_changed", "list", "delete"])
def test_who_may_write_but_not_read_list_or_delete_is_told_so(operation: str) -> None:
    with pytest.raises(AccessDenied):
        probe_store(FaultStore(MemoryStore(), Fault("before", operation, error=AccessDenied, times=9)))


def test_a_refused_clean_up_does_not_hide_that_the_store_is_unsafe() -> None:
    with pytest.raises(UnsafeStore):
        probe_store(FaultStore(CreatesAgain(), Fault("before", "delete", error=AccessDenied)))
