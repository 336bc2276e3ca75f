from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshot_assets.errors import (
    AccessDenied,
    ConfigurationError,
    DocumentDamaged,
    InvalidDatasetName,
    NotFound,
    StoreUnavailable,
    UnsupportedFormatVersion,
)
from snapshot_assets.ids import IncarnationId, new_ulid
from snapshot_assets.model.head import Head, head_key
from snapshot_assets.store import snapshot_store
from snapshot_assets.store.local import LocalStore
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.store.object import ObjectStore
from snapshot_assets.store.open import open_objects
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Fault, FaultStore
from snapshot_assets.testing.relay import Relay
from snapshot_assets.testing.servers import S3Server


def head(name: str, revision: int = 0) -> Head:
    return Head(dataset=name, incarnation=IncarnationId(new_ulid()), engine="duckdb", revision=revision)


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


class TestOpening:
    def test_the_first_opening_makes_the_store_and_later_ones_keep_it(self, tmp_path: Path) -> None:
        first = SnapshotStore.open(str(tmp_path / "store"))
        document = json.loads((tmp_path / "store" / "store.json").read_bytes())
        assert document.keys() == {"format_version", "store_id", "created_at_ms"}
        assert (document["format_version"], document["store_id"]) == (1, first.store_id)
        assert SnapshotStore.open((tmp_path / "store").as_uri()).store_id == first.store_id
        assert SnapshotStore.open(str(tmp_path / "store"), read_only=True).store_id == first.store_id
        assert [listed.key for listed in first.objects.list("")] == ["store.json"]

    def test_opening_for_reading_writes_and_asks_nothing(self, memory: MemoryStore, tmp_path: Path) -> None:
        faulty = FaultStore(memory)
        store = SnapshotStore.over(faulty, read_only=True)
        assert faulty.calls == []
        assert store.read_only
        with pytest.raises(NotFound):
            _ = store.store_id
        SnapshotStore.open(str(tmp_path / "store"), read_only=True)
        assert not (tmp_path / "store").exists()

    def test_of_many_that_make_a_store_at_once_all_get_the_same_one(self, memory: MemoryStore) -> None:
        barrier = threading.Barrier(8)

        def make(_: int) -> str:
            barrier.wait(timeout=30)
            return SnapshotStore.over(memory).store_id

        with ThreadPoolExecutor(8) as threads:
            ids = set(threads.map(make, range(8)))
        assert len(ids) == 1
        assert SnapshotStore.over(memory).store_id in ids

    def test_a_lost_answer_while_the_store_is_made_is_decided(self, memory: MemoryStore) -> None:
        store = SnapshotStore.over(FaultStore(memory, Fault("after", "write_if_absent", "store.json")))
        assert SnapshotStore.over(memory).store_id == store.store_id

    def test_a_newer_store_is_refused_and_nothing_is_touched(self, tmp_path: Path) -> None:
        document = b'{"format_version": 2, "store_id": "?", "more": true}'
        (tmp_path / "store.json").write_bytes(document)
        with pytest.raises(UnsupportedFormatVersion) as caught:
            SnapshotStore.open(str(tmp_path))
        assert "Upgrade snapshot-assets" in caught.value.hint
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"store.json": document}
        with pytest.raises(UnsupportedFormatVersion):
            _ = SnapshotStore.open(str(tmp_path), read_only=True).store_id

    @pytest.mark.parametrize(
        "document",
        [b"", b"[]", b"{}", b'{"format_version":1}', b'{"format_version":1,"store_id":"x","created_at_ms":1}'],
    )
    def test_a_damaged_store_document_is_refused_and_kept(self, memory: MemoryStore, document: bytes) -> None:
        memory.write_if_absent("store.json", document)
        with pytest.raises(DocumentDamaged):
            SnapshotStore.over(memory)
        assert memory.read("store.json").data == document

    def test_the_probe_runs_once_per_process_and_url(
        self, s3_server: S3Server, s3_url: str, s3_options: dict[str, str]
    ) -> None:
        with Relay(s3_server.endpoint) as relay:
            options = {**s3_options, "endpoint": relay.endpoint}
            SnapshotStore.open(s3_url, options)
            probed = len(relay.requests)
            assert any("/probe/" in request.path for request in relay.requests)
            SnapshotStore.open(s3_url, options)
            assert len(relay.requests) == probed + 1

    def test_the_same_url_at_another_endpoint_is_another_store_to_probe(
        self, s3_server: S3Server, s3_url: str, s3_options: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def probes(relay: Relay) -> bool:
            return any("/probe/" in request.path for request in relay.requests)

        with (
            Relay(s3_server.endpoint) as first,
            Relay(s3_server.endpoint) as second,
            Relay(s3_server.endpoint) as third,
        ):
            SnapshotStore.open(s3_url, {**s3_options, "endpoint": first.endpoint})
            SnapshotStore.open(s3_url, {**s3_options, "endpoint": second.endpoint})
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", third.endpoint)
            SnapshotStore.open(s3_url, {name: value for name, value in s3_options.items() if name != "endpoint"})
            assert [probes(relay) for relay in (first, second, third)] == [True, True, True]

    def test_a_container_of_another_account_is_another_store_to_probe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "three")
        given: list[dict[str, str]] = [{"account_name": "one"}, {"account_name": "two"}, {}]
        assert len({ObjectStore("az://container/p", options).service for options in given}) == 3

    def test_a_probe_that_failed_runs_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        attempts: list[str] = []

        def failing(objects: object) -> bool:
            attempts.append("probe")
            raise StoreUnavailable("not now")

        monkeypatch.setattr(snapshot_store, "probe_store", failing)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                SnapshotStore.open(str(tmp_path), retry_for=0)
        assert len(attempts) == 2

    def test_who_may_not_write_opens_and_reads(
        self, s3_server: S3Server, s3_url: str, s3_options: dict[str, str]
    ) -> None:
        made = SnapshotStore.open(f"{s3_url}/made", s3_options)
        made.objects.write_if_absent(head_key("orders"), head("orders").to_bytes())
        store = SnapshotStore.open(f"{s3_url}/made", s3_server.reader_options)
        assert store.store_id == made.store_id
        assert store.head("orders").dataset == "orders"
        with pytest.raises(AccessDenied):
            store.objects.write_if_absent("a", b"x")
        empty = SnapshotStore.open(f"{s3_url}/empty", s3_server.reader_options)
        assert empty.heads() == {}

    def test_a_store_that_does_not_answer_is_unavailable_in_bounded_time(self) -> None:
        options = {"access_key_id": "k", "secret_access_key": "s", "endpoint": "http://127.0.0.1:1"}
        with pytest.raises(StoreUnavailable) as caught:
            SnapshotStore.open("s3://bucket", options, retry_for=0.2)
        assert "endpoint" in caught.value.hint


class TestHeads:
    def test_one_listing_tells_which_datasets_changed(self, memory: MemoryStore) -> None:
        faulty = FaultStore(memory)
        store = SnapshotStore.over(faulty, read_only=True)
        tokens = {name: memory.write_if_absent(head_key(name), head(name).to_bytes()) for name in ("a", "b", "c")}
        assert store.heads() == tokens
        tokens["b"] = memory.write_if_match(head_key("b"), head("b", 1).to_bytes(), tokens["b"])
        assert store.heads() == tokens
        assert [(call.operation, call.key) for call in faulty.calls] == [("list", "heads/")] * 2
        assert store.read_head("b")[1] == tokens["b"]

    @pytest.mark.parametrize(
        "key",
        ["heads/Orders.json", "heads/main.json", "heads/orders", "heads/orders.json.bak", "heads/.json",
         "heads/a/orders.json", "heads/1st.json", "headsorders.json", "leases/orders.json"],
    )  # fmt: skip
    def test_other_objects_among_the_heads_are_left_out(self, memory: MemoryStore, key: str) -> None:
        if not key.endswith("/.json"):
            memory.write_if_absent(key, b"x")
        memory.write_if_absent(head_key("orders2"), b"x")
        assert set(SnapshotStore.over(memory, read_only=True).heads()) == {"orders2"}

    def test_a_head_is_read_with_its_token_and_only_when_it_changed(self, memory: MemoryStore) -> None:
        faulty = FaultStore(memory)
        store = SnapshotStore.over(faulty, read_only=True)
        first = memory.write_if_absent(head_key("orders"), head("orders", 1).to_bytes())
        assert store.head("orders").revision == 1
        assert store.read_head_if_changed("orders", first) is None
        second = memory.write_if_match(head_key("orders"), head("orders", 2).to_bytes(), first)
        changed = store.read_head_if_changed("orders", first)
        assert changed is not None
        assert (changed[0].revision, changed[1]) == (2, second)
        assert faulty.count("read_if_changed") == 2
        assert len(faulty.calls) == 3

    def test_a_dataset_that_is_not_there_is_not_found_by_name(self, memory: MemoryStore) -> None:
        store = SnapshotStore.over(memory, read_only=True)
        for read in (store.head, store.read_head, lambda name: store.read_head_if_changed(name, "token")):
            with pytest.raises(NotFound, match="orders") as caught:
                read("orders")
            assert caught.value.dataset == "orders"
            with pytest.raises(InvalidDatasetName):
                read("../orders")

    def test_a_damaged_or_newer_head_is_refused_and_kept(self, memory: MemoryStore) -> None:
        store = SnapshotStore.over(memory, read_only=True)
        memory.write_if_absent(head_key("damaged"), b"{")
        memory.write_if_absent(head_key("newer"), b'{"format_version": 99}')
        with pytest.raises(DocumentDamaged):
            store.head("damaged")
        with pytest.raises(UnsupportedFormatVersion):
            store.head("newer")
        assert set(store.heads()) == {"damaged", "newer"}


class TestUrls:
    def test_a_memory_name_is_one_store_for_the_process(self) -> None:
        name = new_ulid()
        open_objects(f"memory://{name}").write_if_absent("a", b"x")
        assert open_objects(f"memory://{name}").read("a").data == b"x"
        with pytest.raises(NotFound):
            open_objects(f"memory://{name}2").read("a")
        assert open_objects(f"memory://{name}").url == f"memory://{name}"

    def test_memory_without_a_name_is_a_fresh_store_each_time(self) -> None:
        open_objects("memory://").write_if_absent("a", b"x")
        assert list(open_objects("memory://").list("")) == []

    def test_paths_and_file_urls_name_the_same_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        folder = tmp_path / "a store"
        open_objects(str(folder)).write_if_absent("a", b"x")
        for url in (folder.as_uri(), f"file://{folder}", "a store", "./a store", "~/a store", "x/../a store"):
            store = open_objects(url)
            assert isinstance(store, LocalStore)
            assert (store.url, store.read("a").data) == (folder.as_uri(), b"x")

    def test_object_store_urls_open_object_stores(self) -> None:
        for url in ("s3://bucket/p", "gs://bucket/p", "az://container/p"):
            store = open_objects(url)
            assert isinstance(store, ObjectStore)
            assert store.url == url

    @pytest.mark.parametrize(
        "url",
        ["", " ", "http://bucket/p", "S4://x", "file://host/share", "file://relative", "s3://", "memory://a/../b",
         "~nosuchuser/x", "a\0b", "file:///%00", "file:///a%00b", "file://[", "a\ud800", "s3:/bucket/p", 5, b"x", None],
    )  # fmt: skip
    def test_urls_that_name_no_store_are_refused(self, url: str) -> None:
        with pytest.raises(ConfigurationError):
            open_objects(url)

    def test_the_url_of_a_folder_leads_back_to_it_whatever_bytes_its_name_has(self, tmp_path: Path) -> None:
        folder = tmp_path / os.fsdecode(b"\xff%20 \xc3\xa9")
        store = open_objects(str(folder))
        store.write_if_absent("a", b"x")
        assert open_objects(store.url).read("a").data == b"x"

    def test_a_path_object_names_a_folder(self, tmp_path: Path) -> None:
        assert SnapshotStore.open(tmp_path / "store").url == (tmp_path / "store").as_uri()
        with pytest.raises(ConfigurationError, match="no URL"):
            open_objects(Path("s3://bucket/prefix"))

    @pytest.mark.parametrize("name", ["loop", "loop/store"])
    def test_a_path_through_links_without_an_end_is_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "loop").symlink_to(tmp_path / "other")
        (tmp_path / "other").symlink_to(tmp_path / "loop")
        for url in (str(tmp_path / name), (tmp_path / name).as_uri()):
            with pytest.raises(ConfigurationError, match="loop"):
                open_objects(url)

    def test_options_where_none_are_taken_are_refused(self, tmp_path: Path) -> None:
        for url in (str(tmp_path), tmp_path.as_uri(), "memory://"):
            with pytest.raises(ConfigurationError, match="region"):
                open_objects(url, {"region": "x"})
            with pytest.raises(ConfigurationError, match="credentials"):
                open_objects(url, credentials=object())
            open_objects(url, {})
