"""Aborting: the store is left alone from then on, nothing becomes visible, and the next writer finds its way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshot_assets import failpoints
from snapshot_assets.engines.gate import write_gate
from snapshot_assets.errors import Aborted, RecoveryRequired
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import head_key
from snapshot_assets.model.lease import lease_key
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Call, Fault, FaultStore
from tests.publish.support import audits, check_store, grow

BEFORE_COMMIT = sorted(
    value
    for name, value in vars(failpoints).items()
    if name.startswith("PUBLISH_")
    and isinstance(value, str)
    and name not in {"PUBLISH_AFTER_COMMIT", "PUBLISH_AFTER_AUDIT", "PUBLISH_AFTER_RETIRE"}
)
AFTER_COMMIT = [failpoints.PUBLISH_AFTER_COMMIT, failpoints.PUBLISH_AFTER_AUDIT, failpoints.PUBLISH_AFTER_RETIRE]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    made = Dataset("orders", "sqlite", tmp_path / "live" / "orders.sqlite")
    made.path.parent.mkdir()
    grow(made, 100)
    return made


@pytest.fixture
def faults(store: SnapshotStore) -> FaultStore:
    return FaultStore(store.objects)


class Aborting:
    """A publisher that is aborted at a failpoint, and the calls of the store at that moment."""

    def __init__(self, faults: FaultStore, failpoint: str, *, retry_for: float = 0.0) -> None:
        self.calls: list[Call] = []
        self._faults = faults
        self.publisher = Publisher(
            SnapshotStore.over(faults, retry_for=retry_for),
            lease_duration=1.0,
            failpoints=Failpoints({failpoint: self._abort}),
        )

    def _abort(self) -> None:
        self.publisher.abort()
        self.calls = list(self._faults.calls)


@pytest.mark.parametrize("failpoint", BEFORE_COMMIT)
def test_after_an_abort_no_call_of_the_store_is_begun_and_nothing_is_visible(
    store: SnapshotStore, faults: FaultStore, dataset: Dataset, tmp_path: Path, failpoint: str
) -> None:
    Publisher(store).publish(dataset)
    before = store.head("orders")
    grow(dataset, 10)
    aborting = Aborting(faults, failpoint)
    with pytest.raises(Aborted) as caught:
        aborting.publisher.publish(dataset)
    assert caught.value.dataset == "orders"
    assert faults.calls == aborting.calls != []
    assert store.head("orders") == before
    result = Publisher(store, wait=30.0).publish(dataset)
    assert (result.outcome, result.snapshot_id) == ("published", 1)
    check_store(store, tmp_path / "scratch")
    assert set(audits(store).values()) <= {"committed", "rolled_back"}


@pytest.mark.parametrize("failpoint", AFTER_COMMIT)
def test_what_was_committed_before_the_abort_is_published(
    store: SnapshotStore, faults: FaultStore, dataset: Dataset, tmp_path: Path, failpoint: str
) -> None:
    aborting = Aborting(faults, failpoint)
    assert aborting.publisher.publish(dataset).outcome == "published"
    assert faults.calls == aborting.calls
    assert Publisher(store, wait=30.0).publish(dataset).outcome == "unchanged"
    check_store(store, tmp_path / "scratch")


def test_a_commit_whose_answer_was_lost_is_not_called_aborted(
    store: SnapshotStore, faults: FaultStore, dataset: Dataset
) -> None:
    Publisher(store).publish(dataset)
    publisher = Publisher(SnapshotStore.over(faults, retry_for=0.0))

    class Late(Fault):
        def matches(self, call: Call) -> bool:
            found = super().matches(call)
            if found:
                publisher.abort()
            return found

    faults.arm(Late("after", "write_if_match", head_key("orders")))
    with pytest.raises(RecoveryRequired):
        publisher.publish(dataset, force=True)
    assert faults.fired
    assert store.head("orders").current_snapshot_id == 1


def test_an_aborted_publisher_begins_nothing_more_and_can_be_aborted_and_closed_again(
    faults: FaultStore, dataset: Dataset
) -> None:
    with Publisher(SnapshotStore.over(faults)) as publisher:
        publisher.abort()
        publisher.abort()
        before = list(faults.calls)
        with pytest.raises(Aborted):
            publisher.publish(dataset)
        assert faults.calls == before


def test_a_writing_is_aborted_alone(store: SnapshotStore, faults: FaultStore, dataset: Dataset) -> None:
    publisher = Publisher(SnapshotStore.over(faults), lease_duration=1.0)
    with publisher.writing(dataset) as writing:
        writing.abort()
        writing.abort()
        before = list(faults.calls)
        for call in (writing.publish, writing.connect, writing.optimize):
            with pytest.raises(Aborted):
                call()
    assert faults.calls == before
    assert store.heads() == {}
    other = Dataset("planes", dataset.engine, dataset.path)
    assert publisher.publish(other).outcome == "published"


def test_a_lease_is_neither_renewed_nor_given_back_after_an_abort(faults: FaultStore, dataset: Dataset) -> None:
    publisher = Publisher(SnapshotStore.over(faults), lease_duration=1.0)
    with publisher.writing(dataset) as writing:
        writing.abort()
        before = faults.count(key=lease_key("orders"))
        time.sleep(1.0)  # three renewals long
    assert faults.count(key=lease_key("orders")) == before


def aborted_while(publisher: Publisher, dataset: Dataset, is_waiting: Callable[[], bool]) -> BaseException | None:
    """The error of a publish, in a thread of its own, that is aborted when it waits."""
    with ThreadPoolExecutor(1) as threads:
        publishing = threads.submit(publisher.publish, dataset)
        deadline = time.monotonic() + 60
        while not is_waiting():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        publisher.abort()
        return publishing.exception(timeout=60)


def test_who_waits_for_the_lease_is_woken(store: SnapshotStore, faults: FaultStore, dataset: Dataset) -> None:
    waiting = Publisher(SnapshotStore.over(faults), wait=86_400.0)
    with Publisher(store).writing(dataset):
        error = aborted_while(waiting, dataset, lambda: faults.count("read", lease_key("orders")) > 1)
    assert isinstance(error, Aborted)


def test_who_waits_for_the_write_gate_is_woken(store: SnapshotStore, faults: FaultStore, dataset: Dataset) -> None:
    waiting = Publisher(SnapshotStore.over(faults), capture_timeout=86_400.0)
    with write_gate(dataset.real_path):
        error = aborted_while(waiting, dataset, lambda: faults.count("list", "recovery/orders/") > 0)
    assert isinstance(error, Aborted)
    assert store.heads() == {}


def test_who_asks_a_failing_store_again_and_again_is_woken(
    store: SnapshotStore, faults: FaultStore, dataset: Dataset
) -> None:
    publisher = Publisher(SnapshotStore.over(faults, retry_for=60.0))
    faults.arm(Fault("before", "upload", "data/*", times=1_000_000))
    error = aborted_while(publisher, dataset, lambda: faults.count("upload") > 1)
    assert isinstance(error, Aborted)
    assert faults.count("write_if_match", lease_key("orders")) == 0, "the lease was given back"
    assert store.head("orders").snapshots == ()


def test_closing_waits_for_what_another_thread_publishes(store: SnapshotStore, dataset: Dataset) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go_on.wait(60)

    publisher = Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_BEFORE_COMMIT: hold}))
    with ThreadPoolExecutor(2) as threads:
        publishing = threads.submit(publisher.publish, dataset)
        assert begun.wait(60)
        closing = threads.submit(publisher.close)
        assert not closing.done()
        go_on.set()
        closing.result(timeout=60)
        assert store.head("orders").current_snapshot_id == 0
        assert publishing.result(timeout=60).outcome == "published"


def test_a_thread_can_close_the_publisher_that_it_publishes_with(store: SnapshotStore, dataset: Dataset) -> None:
    with Publisher(store).writing(dataset) as writing, Publisher(store) as other:
        other.close()
        assert writing.publish().outcome == "published"
