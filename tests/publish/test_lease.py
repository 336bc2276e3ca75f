"""The writer lease: one live writer a dataset, by liveness only."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from snapshot_assets.clock import SYSTEM_CLOCK, SystemClock
from snapshot_assets.errors import AccessDenied, WriterBusy
from snapshot_assets.ids import new_ulid
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.lease import Holder, WriterLease, lease_key
from snapshot_assets.publish.lease import LeaseBook, this_holder
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Fault, FaultStore
from tests.publish.support import check_store, grow


class SkippingClock(SystemClock):
    """A clock whose monotonic time can be moved forward."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.skipped


def lease_of_somebody_else(duration_ms: int = 60_000) -> WriterLease:
    return WriterLease("orders", Holder("another host", "boot", 4711, "1"), new_ulid(), new_ulid(), duration_ms, 0)


def read(objects: MemoryStore) -> WriterLease:
    return WriterLease.parse(objects.read(lease_key("orders")).data, "orders")


def test_a_lease_is_held_by_one_and_passes_on_when_it_is_released() -> None:
    objects = MemoryStore()
    book = LeaseBook(objects, 60.0, SYSTEM_CLOCK)
    with book.acquire("orders"), pytest.raises(WriterBusy, match=str(os.getpid())):
        LeaseBook(objects, 60.0, SYSTEM_CLOCK).acquire("orders")
    assert read(objects).duration_ms == 0
    with book.acquire("orders"), book.acquire("planes"):
        assert read(objects).duration_ms == 60_000


def test_a_lease_is_renewed_while_it_is_held() -> None:
    objects = MemoryStore()
    with LeaseBook(objects, 1.0, SYSTEM_CLOCK).acquire("orders"):
        first = read(objects).counter
        deadline = time.monotonic() + 5
        while read(objects).counter < first + 2:
            assert time.monotonic() < deadline, "the lease was not renewed"
            time.sleep(0.05)
        with pytest.raises(WriterBusy):
            LeaseBook(objects, 1.0, SYSTEM_CLOCK).acquire("orders", wait=1.5)


def test_a_renewal_that_is_denied_or_reads_nonsense_is_tried_again() -> None:
    objects = MemoryStore()
    faults = FaultStore(objects, Fault("before", "write_if_match", error=AccessDenied))
    with LeaseBook(faults, 1.0, SYSTEM_CLOCK).acquire("orders"):
        deadline = time.monotonic() + 5
        while read(objects).counter < 1:
            assert time.monotonic() < deadline, "the lease was not renewed"
            time.sleep(0.05)
    assert faults.fired
    assert read(objects).duration_ms == 0


def test_a_process_may_have_a_name_that_is_no_text() -> None:
    script = """
from pathlib import Path
from snapshot_assets.publish.lease import this_holder
Path("/proc/self/comm").write_bytes(b"caf\\xc3 ) (")
print(this_holder().start_time.isdigit())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "True\n", done.stderr


def test_a_silent_holder_is_replaced_only_after_its_own_duration_was_seen_to_pass() -> None:
    objects, clock = MemoryStore(), SkippingClock()
    objects.write_if_absent(lease_key("orders"), lease_of_somebody_else(30_000).to_bytes())
    book = LeaseBook(objects, 60.0, clock)
    with pytest.raises(WriterBusy, match="4711 on another host"):
        book.acquire("orders")
    clock.skipped = 29.0
    with pytest.raises(WriterBusy):
        book.acquire("orders")
    clock.skipped = 31.0
    with book.acquire("orders"):
        assert read(objects).holder == this_holder()


def test_a_holder_that_gave_a_sign_of_life_is_not_replaced() -> None:
    objects, clock = MemoryStore(), SkippingClock()
    lease = lease_of_somebody_else(30_000)
    token = objects.write_if_absent(lease_key("orders"), lease.to_bytes())
    book = LeaseBook(objects, 60.0, clock)
    for minute in range(1, 4):
        with pytest.raises(WriterBusy):
            book.acquire("orders")
        token = objects.write_if_match(lease_key("orders"), replace(lease, counter=minute).to_bytes(), token)
        clock.skipped += 31.0


def test_a_holder_of_this_host_that_is_gone_is_replaced_at_once() -> None:
    objects = MemoryStore()
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = replace(lease_of_somebody_else(), holder=replace(this_holder(), pid=int(gone.stdout), start_time="1"))
    objects.write_if_absent(lease_key("orders"), dead.to_bytes())
    with LeaseBook(objects, 60.0, SYSTEM_CLOCK).acquire("orders"):
        pass


def test_a_pid_that_was_given_to_another_process_counts_as_gone() -> None:
    objects = MemoryStore()
    reused = replace(lease_of_somebody_else(), holder=replace(this_holder(), start_time="1"))
    objects.write_if_absent(lease_key("orders"), reused.to_bytes())
    with LeaseBook(objects, 60.0, SYSTEM_CLOCK).acquire("orders"):
        pass


def test_a_lost_answer_of_the_acquiring_write_is_settled_by_reading() -> None:
    for number, prepare in enumerate([None, lease_of_somebody_else(0)]):
        objects = MemoryStore()
        if prepare is not None:
            objects.write_if_absent(lease_key("orders"), prepare.to_bytes())
        faults = FaultStore(objects, Fault("after", "write_*"))
        with LeaseBook(faults, 60.0, SYSTEM_CLOCK).acquire("orders"):
            assert read(objects).holder == this_holder()
        assert faults.fired, number
        assert read(objects).duration_ms == 0


def test_of_many_threads_one_holds_the_lease_at_a_time() -> None:
    objects = MemoryStore()
    inside, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with LeaseBook(objects, 60.0, SYSTEM_CLOCK).acquire("orders", wait=60.0):
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.002)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1


def test_many_writers_of_one_dataset_all_land_and_none_is_lost(tmp_path: Path) -> None:
    store = SnapshotStore.open(str(tmp_path / "store"))
    results = []

    def write(number: int) -> None:
        dataset = Dataset("orders", "duckdb", tmp_path / f"writer-{number}" / "orders.duckdb")
        dataset.path.parent.mkdir()
        grow(dataset, number + 1)
        results.append(Publisher(store, wait=60.0).publish(dataset))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(result.snapshot_id for result in results) == [0, 1, 2, 3]
    listed = {entry.operation_id for entry in store.head("orders").snapshots}
    assert listed == {result.operation_id for result in results}
    check_store(store, tmp_path / "scratch")
