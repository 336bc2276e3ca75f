from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshot_assets.errors import AccessDenied, Conflict, NotFound, StoreUnavailable
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.store.object import ObjectStore
from snapshot_assets.store.settled import SettledStore
from snapshot_assets.testing.faults import Fault, FaultStore
from snapshot_assets.testing.relay import Relay, Request, Verdict
from snapshot_assets.testing.servers import S3Server

LARGE = bytes(range(256)) * 80_000


class FastClock:
    """A clock on which waiting takes no time, but counts."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def now_ms(self) -> int:
        return int(self.now * 1000)

    def monotonic(self) -> float:
        return self.now

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.now += seconds
        self.pauses.append(seconds)
        return event.is_set()


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


def settled(memory: MemoryStore, *faults: Fault) -> tuple[SettledStore, FaultStore, FastClock]:
    clock = FastClock()
    faulty = FaultStore(memory, *faults)
    return SettledStore(faulty, clock), faulty, clock


def test_a_lost_answer_of_a_creation_that_is_ours_is_success(memory: MemoryStore) -> None:
    store, faulty, clock = settled(memory, Fault("after", "write_if_absent"), Fault("after", "upload"))
    assert store.write_if_absent("a", b"ours") == memory.read("a").token
    store.upload("b", LARGE)
    assert memory.read("b").data == LARGE
    assert not faulty.unfired
    assert (faulty.count("write_if_absent"), faulty.count("upload"), clock.pauses) == (1, 1, [])


@pytest.mark.parametrize("theirs", [b"", b"thei", b"their", b"theirs, and longer"])
def test_a_lost_answer_of_a_creation_that_somebody_else_won_is_a_conflict(memory: MemoryStore, theirs: bytes) -> None:
    memory.write_if_absent("a", theirs)
    memory.write_if_absent("data/b", theirs)
    store, faulty, clock = settled(memory, Fault("before", "write_if_absent"), Fault("before", "upload"))
    with pytest.raises(Conflict):
        store.write_if_absent("a", b"ours!")
    with pytest.raises(Conflict):
        store.upload("data/b", b"ours!")
    assert not faulty.unfired
    assert (memory.read("a").data, memory.read("data/b").data, clock.pauses) == (theirs, theirs, [])


def test_a_creation_that_nobody_made_is_sent_again_with_the_same_bytes(memory: MemoryStore, tmp_path: Path) -> None:
    store, faulty, clock = settled(
        memory, Fault("before", "write_if_absent", times=3), Fault("before", "upload", times=2)
    )
    source = tmp_path / "source"
    source.write_bytes(LARGE)
    store.write_if_absent("a", b"ours")
    store.upload("b", source)
    assert (memory.read("a").data, memory.read("b").data) == (b"ours", LARGE)
    assert (faulty.count("write_if_absent"), faulty.count("upload"), len(clock.pauses)) == (4, 3, 5)


def test_a_conflict_with_our_own_bytes_is_our_own_first_attempt(memory: MemoryStore, tmp_path: Path) -> None:
    store, faulty, _ = settled(memory)
    source = tmp_path / "source"
    source.write_bytes(LARGE)
    token = memory.write_if_absent("a", b"ours")
    memory.upload("data/b", LARGE)
    assert store.write_if_absent("a", b"ours") == token
    store.upload("data/b", source)
    store.upload("data/b", memoryview(LARGE))
    assert faulty.count("write_if_absent") == 1


@pytest.mark.parametrize("position", [0, len(LARGE) // 2, len(LARGE) - 1])
def test_one_byte_decides_whose_an_upload_is(memory: MemoryStore, position: int) -> None:
    theirs = bytearray(LARGE)
    theirs[position] ^= 1
    memory.upload("data/b", theirs)
    store, _, _ = settled(memory)
    with pytest.raises(Conflict):
        store.upload("data/b", LARGE)


def test_an_answer_that_is_lost_twice_is_still_decided(memory: MemoryStore) -> None:
    store, faulty, _ = settled(memory, Fault("after", "write_if_absent"), Fault("before", "read", times=2))
    store.write_if_absent("a", b"ours")
    assert not faulty.unfired
    assert memory.read("a").data == b"ours"


def test_a_replacement_is_never_sent_again(memory: MemoryStore) -> None:
    token = memory.write_if_absent("head", b"one")
    store, faulty, clock = settled(memory, Fault("after", "write_if_match"))
    with pytest.raises(StoreUnavailable):
        store.write_if_match("head", b"two", token)
    with pytest.raises(Conflict):
        store.write_if_match("head", b"three", token)
    assert memory.read("head").data == b"two"
    assert (faulty.count("write_if_match"), faulty.count("read*"), clock.pauses) == (2, 0, [])


def test_reads_listings_and_deletions_are_asked_again(memory: MemoryStore) -> None:
    token = memory.write_if_absent("a/b", b"x")
    operations = ("read", "read_if_changed", "read_ranges", "list", "delete")
    store, faulty, clock = settled(memory, *(Fault("before", name, times=2) for name in operations))
    assert store.read("a/b").data == b"x"
    assert store.read_if_changed("a/b", token) is None
    assert store.read_ranges("a/b", [(0, 1)]) == [b"x"]
    assert [listed.key for listed in store.list("a/")] == ["a/b"]
    store.delete(iter(["a/b"]))
    assert list(memory.list("")) == []
    assert not faulty.unfired
    assert len(clock.pauses) == 10


def test_what_is_certain_is_never_asked_again(memory: MemoryStore) -> None:
    store, faulty, clock = settled(memory, Fault("before", "delete", error=AccessDenied))
    attempts: list[Callable[[], object]] = [
        lambda: store.read("missing"),
        lambda: store.read_if_changed("missing", "token"),
        lambda: store.read_ranges("missing", [(0, 1)]),
    ]
    for attempt in attempts:
        with pytest.raises(NotFound):
            attempt()
    with pytest.raises(AccessDenied):
        store.delete(["a"])
    assert (len(faulty.calls), clock.pauses) == (4, [])


def test_retries_end_in_time_with_growing_jittered_pauses(memory: MemoryStore) -> None:
    store, _, clock = settled(memory, Fault("before", times=1000))
    for attempt in (lambda: store.read("a"), lambda: store.write_if_absent("a", b"x"), lambda: list(store.list(""))):
        clock.now, clock.pauses = 0.0, []
        with pytest.raises(StoreUnavailable):
            attempt()
        assert 20.0 < clock.now <= 30.0
        assert 5 < len(clock.pauses) < 20
        assert clock.pauses[0] < 0.2
        assert max(clock.pauses) <= 7.5
        assert len(set(clock.pauses)) == len(clock.pauses)


def test_retries_can_be_turned_off(memory: MemoryStore) -> None:
    faulty = FaultStore(memory, Fault("before", times=1000))
    with pytest.raises(StoreUnavailable):
        SettledStore(faulty, FastClock(), retry_for=0).read("a")
    assert len(faulty.calls) == 1


def test_answers_that_a_real_connection_loses_are_decided(
    s3_server: S3Server, s3_url: str, s3_options: dict[str, str]
) -> None:
    lost: list[Request] = []

    def judge(request: Request) -> Verdict:
        if request.method == "PUT" and len(lost) < 2 and request.path not in {other.path for other in lost}:
            lost.append(request)
            return "lose"
        return "relay"

    with Relay(s3_server.endpoint, judge) as relay:
        store = SettledStore(ObjectStore(s3_url, {**s3_options, "endpoint": relay.endpoint}))
        token = store.write_if_absent("a", b"ours")
        store.upload("data/pack", LARGE)
    direct = ObjectStore(s3_url, s3_options)
    assert len(lost) == 2
    assert relay.methods().count("PUT") == 2
    assert (direct.read("a").data, direct.read("a").token) == (b"ours", token)
    assert direct.read("data/pack").data == LARGE


def test_a_store_that_is_overloaded_for_a_while_is_asked_until_it_answers(
    s3_server: S3Server, s3_url: str, s3_options: dict[str, str]
) -> None:
    refused: list[Request] = []

    def judge(request: Request) -> Verdict:
        if len(refused) < 2:
            refused.append(request)
            return "refuse"
        return "relay"

    with Relay(s3_server.endpoint, judge) as relay:
        store = SettledStore(ObjectStore(s3_url, {**s3_options, "endpoint": relay.endpoint}))
        store.write_if_absent("a", b"ours")
        assert store.read("a").data == b"ours"
    assert len(refused) == 2
