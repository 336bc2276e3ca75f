from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from snapshot_assets.errors import Conflict, NotFound, StoreUnavailable
from snapshot_assets.store.local import LocalStore
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.testing.faults import Call, Fault, FaultStore


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


def test_calls_are_recorded_in_order(memory: MemoryStore) -> None:
    store = FaultStore(memory)
    token = store.write_if_absent("a", b"x")
    store.write_if_match("a", b"y", token)
    store.upload("p/q", b"z")
    list(store.list("p/"))
    store.delete(["a", "p/q"])
    with pytest.raises(NotFound):
        store.read("a")
    assert store.calls == [
        Call("write_if_absent", "a"), Call("write_if_match", "a"), Call("upload", "p/q"), Call("list", "p/"),
        Call("delete", "a p/q"), Call("read", "a"),
    ]  # fmt: skip
    assert (store.count(), store.count("write_*"), store.count(key="p/*"), store.count("read", "b")) == (6, 2, 3, 0)


def test_a_call_that_fails_before_has_no_effect_and_one_that_fails_after_has(memory: MemoryStore) -> None:
    store = FaultStore(memory, Fault("before", "upload"), Fault("after", "write_if_absent", error=Conflict))
    with pytest.raises(StoreUnavailable):
        store.upload("a", b"x")
    with pytest.raises(Conflict):
        store.write_if_absent("b", b"x")
    assert [listed.key for listed in memory.list("")] == ["b"]
    assert [call.key for _, call in store.fired] == ["a", "b"]


def test_a_fault_happens_from_the_nth_matching_call_on_so_many_times(memory: MemoryStore) -> None:
    memory.write_if_absent("heads/a", b"x")
    store = FaultStore(memory, Fault("before", "read*", "heads/*", nth=2, times=2))
    failed = []
    for _ in range(5):
        with pytest.raises(NotFound):
            store.read("other")
        try:
            store.read("heads/a")
            failed.append(False)
        except StoreUnavailable:
            failed.append(True)
    assert failed == [False, True, True, False, False]


def test_a_fault_that_never_happened_is_named(memory: MemoryStore) -> None:
    never = Fault("before", "delete")
    store = FaultStore(memory, Fault("before", "write_if_absent"), never)
    with pytest.raises(StoreUnavailable):
        store.write_if_absent("a", b"x")
    assert store.unfired == [never]
    store.disarm()
    store.write_if_absent("a", b"x")
    store.arm(Fault("before", "read"))
    with pytest.raises(StoreUnavailable):
        store.read("a")


@pytest.mark.parametrize(("kind", "expected"), [("short", b"conten"), ("corrupt", b"conten\x8b")])
def test_what_is_read_can_be_spoilt(memory: MemoryStore, kind: str, expected: bytes) -> None:
    token = memory.write_if_absent("a", b"content")
    store = FaultStore(memory, Fault(kind, "read*", times=3))  # type: ignore[arg-type]
    assert store.read("a").data == expected
    assert store.read_ranges("a", [(0, 3), (0, 7)]) == [b"con", expected]
    changed = store.read_if_changed("a", "other")
    assert changed is not None
    assert changed.data == expected
    assert store.read("a").data == b"content"
    assert store.read("a").token == token


def test_a_call_that_hangs_ends_in_an_error_without_effect(memory: MemoryStore) -> None:
    store = FaultStore(memory, Fault("hang", "upload", seconds=0.1))
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.upload("a", b"x")
    assert time.monotonic() - started >= 0.1
    assert list(memory.list("")) == []


@pytest.mark.parametrize(("kind", "keys"), [("exit_before", []), ("exit_after", ["a"])])
def test_the_process_ends_before_or_after_the_effect(tmp_path: Path, kind: str, keys: list[str]) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from snapshot_assets.store.local import LocalStore\n"
        "from snapshot_assets.testing.faults import Fault, FaultStore\n"
        "FaultStore(LocalStore(Path(sys.argv[1])), Fault(sys.argv[2], 'write_if_absent')).write_if_absent('a', b'x')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), kind], timeout=60, check=False)
    assert done.returncode == -9
    assert [listed.key for listed in LocalStore(tmp_path).list("")] == keys
