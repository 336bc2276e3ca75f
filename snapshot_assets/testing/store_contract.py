"""The store contract as tests. Subclass it, give it a `store` fixture, and pytest runs it against your store."""

from __future__ import annotations

import threading
import time
import tracemalloc
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest

from snapshot_assets.errors import ConfigurationError, Conflict, DocumentDamaged, NotFound
from snapshot_assets.store.contract import Listed, Store
from snapshot_assets.store.probe import probe_store

__all__ = ["StoreContract"]

T = TypeVar("T")

_CLAIMANTS = 8
_ODD_KEYS = (
    "plain", "with space", "ünï/cödé", "日本/語", "percent%20sign", "plus+sign", "equals=sign", "hash#sign",
    "question?mark", "ampersand&", "star*", "tilde~", "colon:", "quote'", 'double"quote', "comma,semi;colon",
    "[brackets]", "{braces}", "pipe|", "caret^", "ends.with.dot.", "-dash", "deep/er/and/deep/er/still", "x" * 255,
)  # fmt: skip
_BAD_KEYS = (
    "", "/", "/absolute", "..", "../outside", "a/../../outside", "a/..", ".", "./a", "a//b", "a/", "a\\b", "nul\0",
    "new\nline", "tab\t", ".locks/a", "a/.hidden", "x" * 256, "lone\ud800surrogate", "/".join(["deep"] * 200),
)  # fmt: skip


class StoreContract:
    """What `snapshot_assets.store.contract.Store` promises, each promise a test.

    Attributes:
        equal_writes_share_tokens: the store's tokens derive from the content, so that two writes of equal bytes to one
            key have one token. Set it for stores whose tokens are such entity tags.
        large_bytes: the size of the large uploads; set it beyond what the store creates with a single request.
    """

    equal_writes_share_tokens: ClassVar[bool] = False
    large_bytes: ClassVar[int] = 5 * 1024 * 1024 + 17

    @pytest.fixture
    def store(self) -> Store:
        """An empty store."""
        raise NotImplementedError("override the fixture with one that returns your store, empty")

    def test_what_was_written_is_read_with_the_token_of_its_write(self, store: Store) -> None:
        token = store.write_if_absent("a/b", b"content")
        found = store.read("a/b")
        assert (found.data, found.token) == (b"content", token)
        assert type(found.data) is bytes

    def test_empty_objects_are_objects(self, store: Store) -> None:
        token = store.write_if_absent("empty", b"")
        assert store.read("empty").data == b""
        assert store.read("empty", limit=0).token == token
        assert [listed.size for listed in store.list("")] == [0]

    def test_reading_what_is_missing_is_not_found(self, store: Store) -> None:
        store.write_if_absent("folder/object", b"x")
        for key in ("missing", "folder", "folder/missing", "folder/object/beneath"):
            with pytest.raises(NotFound):
                store.read(key)
            with pytest.raises(NotFound):
                store.read_if_changed(key, "token")
            with pytest.raises(NotFound):
                store.read_ranges(key, [(0, 1)])

    def test_an_unchanged_object_is_not_read_again(self, store: Store) -> None:
        first = store.write_if_absent("key", b"one")
        assert store.read_if_changed("key", first) is None
        second = store.write_if_match("key", b"two", first)
        changed = store.read_if_changed("key", first)
        assert changed is not None
        assert (changed.data, changed.token) == (b"two", second)
        assert store.read_if_changed("key", second) is None

    def test_a_larger_object_than_the_limit_is_refused_before_memory_is_taken(self, store: Store) -> None:
        size = 24 * 1024 * 1024
        store.upload("large", bytes(size))
        reads: list[Callable[[], object]] = [
            lambda: store.read("large", limit=size - 1),
            lambda: store.read_if_changed("large", "another token", limit=size - 1),
        ]
        for read in reads:
            tracemalloc.start()
            try:
                with pytest.raises(DocumentDamaged, match="limit"):
                    read()
                assert tracemalloc.get_traced_memory()[1] < size / 8
            finally:
                tracemalloc.stop()
        assert len(store.read("large", limit=size).data) == size

    def test_ranges_come_in_the_order_asked_for(self, store: Store) -> None:
        data = _pattern(4 * 1024 * 1024)
        store.upload("pack", data)
        ranges = [(3_500_000, 1000), (0, 10), (5, 10), (0, 10), (100, 0), (1_200_000, 7), (len(data) - 1, 1)]
        assert store.read_ranges("pack", ranges) == [data[offset : offset + length] for offset, length in ranges]
        assert store.read_ranges("pack", [(0, len(data))]) == [data]
        assert store.read_ranges("pack", []) == []
        assert store.read_ranges("pack", [(7, 0)]) == [b""]

    def test_ranges_are_views_of_bytes_that_stay_as_they_were_read(self, store: Store) -> None:
        store.write_if_absent("pack", b"content")
        views = store.read_ranges("pack", [(0, 7), (3, 4), (2, 0)])
        store.delete(["pack"])
        store.write_if_absent("pack", b"another")
        for view, expected in zip(views, (b"content", b"tent", b""), strict=True):
            assert type(view) is memoryview
            assert (view.format, view.ndim, view.nbytes, view.readonly) == ("B", 1, len(expected), True)
            assert view.tobytes() == expected

    @pytest.mark.parametrize("reach", [(90, 11), (99, 2), (100, 1), (5000, 10), (3_000_000, 1)])
    def test_a_range_beyond_the_end_is_an_error_and_never_short_data(
        self, store: Store, reach: tuple[int, int]
    ) -> None:
        store.write_if_absent("short", bytes(100))
        with pytest.raises(DocumentDamaged):
            store.read_ranges("short", [reach])
        with pytest.raises(DocumentDamaged):
            store.read_ranges("short", [(0, 100), reach])

    def test_an_object_that_exists_is_never_created_again(self, store: Store) -> None:
        token = store.write_if_absent("key", b"first")
        with pytest.raises(Conflict):
            store.write_if_absent("key", b"second")
        with pytest.raises(Conflict):
            store.upload("key", b"third")
        found = store.read("key")
        assert (found.data, found.token) == (b"first", token)

    def test_exactly_one_claimant_wins(self, store: Store) -> None:
        def claim(key: str, me: int) -> str:
            return store.write_if_absent(key, b"%d" % me)

        for number in range(3):
            key = f"claims/{number}"
            won = _race(_CLAIMANTS, partial(claim, key))
            assert len(won) == 1
            (winner,) = won
            found = store.read(key)
            assert (found.data, found.token) == (b"%d" % winner, won[winner])

    def test_exactly_one_of_many_replacements_wins(self, store: Store) -> None:
        def replace(token: str, me: int) -> str:
            return store.write_if_match("head", f"{token} {me}".encode(), token)

        token = store.write_if_absent("head", b"start")
        for _ in range(3):
            won = _race(_CLAIMANTS, partial(replace, token))
            assert len(won) == 1
            (token,) = won.values()
            assert store.read("head").token == token

    def test_no_increment_is_lost(self, store: Store) -> None:
        store.write_if_absent("counter", b"0")

        def increment(_: int) -> None:
            for _ in range(5):
                while True:
                    found = store.read("counter")
                    try:
                        store.write_if_match("counter", b"%d" % (int(found.data) + 1), found.token)
                        break
                    except Conflict:
                        time.sleep(0.001)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(increment, range(4)))
        assert store.read("counter").data == b"20"

    def test_a_stale_or_invented_token_is_a_conflict(self, store: Store) -> None:
        first = store.write_if_absent("head", b"one")
        second = store.write_if_match("head", b"two", first)
        assert second != first
        for stale in (first, "invented", '"0123456789abcdef0123456789abcdef"'):
            with pytest.raises(Conflict):
                store.write_if_match("head", b"three", stale)
        assert store.read("head").data == b"two"

    def test_replacing_what_is_missing_is_a_conflict_and_creates_nothing(self, store: Store) -> None:
        token = store.write_if_absent("gone", b"x")
        store.delete(["gone"])
        with pytest.raises(Conflict):
            store.write_if_match("gone", b"y", token)
        with pytest.raises(Conflict):
            store.write_if_match("never", b"y", token)
        assert list(store.list("")) == []

    def test_every_write_has_a_token_of_its_own(self, store: Store) -> None:
        token = store.write_if_absent("key", b"same")
        tokens = [token]
        for data in (b"same", b"diff", b"same", b"same"):
            token = store.write_if_match("key", data, token)
            tokens.append(token)
        store.delete(["key"])
        tokens.append(store.write_if_absent("key", b"same"))
        distinct = 2 if self.equal_writes_share_tokens else len(tokens)
        assert len(set(tokens)) == distinct

    def test_the_listing_gives_the_tokens_and_sizes_of_reading(self, store: Store) -> None:
        started_ms = time.time() * 1000
        written = {f"heads/d{number}.json": b"x" * number for number in range(5)}
        tokens = {key: store.write_if_absent(key, data) for key, data in written.items()}
        tokens["heads/d3.json"] = store.write_if_match("heads/d3.json", b"other", tokens["heads/d3.json"])
        written["heads/d3.json"] = b"other"
        store.upload("heads/large", _pattern(self.large_bytes))
        listed = _listed(store, "heads/")
        assert listed.pop("heads/large").size == self.large_bytes
        assert {key: entry.token for key, entry in listed.items()} == tokens
        assert {key: entry.token for key, entry in listed.items()} == {key: store.read(key).token for key in written}
        assert {key: entry.size for key, entry in listed.items()} == {key: len(data) for key, data in written.items()}
        assert all(abs(entry.last_modified_ms - started_ms) < 60_000 for entry in listed.values())

    def test_a_prefix_shows_everything_beneath_it_and_nothing_beside_it(self, store: Store) -> None:
        keys = {"a/1", "a/b/2", "a/b/c/3", "ab/4", "a-b/5", "a.b", "b/a/6"}
        for key in keys:
            store.write_if_absent(key, b"x")
        assert set(_listed(store, "a/")) == {"a/1", "a/b/2", "a/b/c/3"}
        assert set(_listed(store, "a/b/")) == {"a/b/2", "a/b/c/3"}
        assert set(_listed(store, "")) == keys
        assert _listed(store, "nothing/") == {}
        assert _listed(store, "a/1/") == {}
        with pytest.raises(ConfigurationError):
            list(store.list("a"))

    def test_many_objects_are_all_listed_once(self, store: Store) -> None:
        keys = {f"many/{number:05}" for number in range(1050)}
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda key: store.write_if_absent(key, b"x"), keys))
        names = [listed.key for listed in store.list("many/")]
        assert len(names) == len(keys)
        assert set(names) == keys
        store.delete(keys)
        assert list(store.list("many/")) == []

    def test_deleting_what_is_missing_is_success(self, store: Store) -> None:
        store.write_if_absent("folder/a", b"x")
        store.write_if_absent("folder/b", b"x")
        store.delete([])
        store.delete(["folder/missing", "folder/a", "missing/too", "folder"])
        store.delete(iter(["folder/a"]))
        assert set(_listed(store, "")) == {"folder/b"}
        store.write_if_absent("folder/a", b"again")

    @pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "path"])
    def test_a_large_upload_arrives_whole(self, store: Store, tmp_path: Path, kind: str) -> None:
        data = _pattern(self.large_bytes)
        file = tmp_path / "source"
        file.write_bytes(data)
        sources: dict[str, bytes | bytearray | memoryview | Path] = {
            "bytes": data, "bytearray": bytearray(data), "memoryview": memoryview(data), "path": file,
        }  # fmt: skip
        store.upload("data/pack", sources[kind])
        assert store.read("data/pack").data == data
        with pytest.raises(Conflict):
            store.upload("data/pack", b"x" * len(data))
        assert store.read("data/pack").data == data
        assert set(_listed(store, "")) == {"data/pack"}

    def test_an_empty_upload_is_an_object(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        store.upload("a", b"")
        store.upload("b", tmp_path / "empty")
        assert {key: entry.size for key, entry in _listed(store, "").items()} == {"a": 0, "b": 0}

    def test_an_upload_without_its_source_leaves_nothing(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            store.upload("data/pack", tmp_path / "missing")
        assert list(store.list("")) == []

    def test_exactly_one_uploader_wins(self, store: Store) -> None:
        def upload(me: int) -> str:
            store.upload("data/pack", bytes([me]) * self.large_bytes)
            return ""

        (winner,) = _race(4, upload)
        assert store.read("data/pack").data == bytes([winner]) * self.large_bytes

    def test_a_name_stands_for_complete_content_the_instant_it_appears(self, store: Store) -> None:
        data = _pattern(self.large_bytes)
        versions = [b"%d " % number * 200_000 for number in range(4)]
        done = threading.Event()
        seen: list[bytes] = []

        def watch(key: str) -> Iterator[bytes]:
            while not done.is_set():
                if any(listed.key == key for listed in store.list("data/")):
                    yield store.read(key).data

        with ThreadPoolExecutor(2) as threads:
            packs = threads.submit(lambda: all(found == data for found in watch("data/pack")))
            heads = threads.submit(lambda: seen.extend(set(watch("data/head"))))
            try:
                store.upload("data/pack", data)
                token = store.write_if_absent("data/head", versions[0])
                for version in versions[1:]:
                    token = store.write_if_match("data/head", version, token)
                time.sleep(0.05)
            finally:
                done.set()
            assert packs.result(timeout=60)
            heads.result(timeout=60)
        assert seen
        assert set(seen) <= set(versions)

    def test_odd_characters_come_back_as_they_were(self, store: Store) -> None:
        keys = {f"odd/{key}" for key in _ODD_KEYS}
        for key in keys:
            store.write_if_absent(key, key.encode())
        assert set(_listed(store, "odd/")) == keys
        assert all(store.read(key).data == key.encode() for key in keys)
        store.delete(keys)
        assert list(store.list("")) == []

    @pytest.mark.parametrize("key", _BAD_KEYS)
    def test_keys_that_would_escape_or_hide_are_refused(self, store: Store, key: str) -> None:
        attempts: list[Callable[[], object]] = [
            lambda: store.read(key),
            lambda: store.read_if_changed(key, "token"),
            lambda: store.read_ranges(key, [(0, 1)]),
            lambda: store.write_if_absent(key, b"x"),
            lambda: store.write_if_match(key, b"x", "token"),
            lambda: store.upload(key, b"x"),
            lambda: store.delete([key]),
        ]
        for attempt in attempts:
            with pytest.raises(ConfigurationError):
                attempt()
        assert list(store.list("")) == []

    def test_the_url_names_the_store_without_credentials(self, store: Store) -> None:
        assert "://" in store.url
        assert "@" not in store.url

    def test_it_passes_the_probe_which_leaves_nothing(self, store: Store) -> None:
        probe_store(store)
        assert list(store.list("")) == []


def _listed(store: Store, prefix: str) -> dict[str, Listed]:
    found = list(store.list(prefix))
    assert len({listed.key for listed in found}) == len(found), "an object was listed twice"
    return {listed.key: listed for listed in found}


def _pattern(size: int) -> bytes:
    """Bytes of which no two stretches are alike, so that a part in the wrong place shows."""
    return array("I", range(size // 4 + 1)).tobytes()[:size]


def _race(runners: int, run: Callable[[int], T]) -> dict[int, T]:
    """Let all runners go at once; what each of those who met no conflict returned, by runner."""
    barrier = threading.Barrier(runners)

    def one(me: int) -> tuple[int, T] | None:
        barrier.wait(timeout=60)
        try:
            return me, run(me)
        except Conflict:
            return None

    with ThreadPoolExecutor(runners) as threads:
        return dict(result for result in threads.map(one, range(runners)) if result is not None)
