"""A writer of another host that is gone: nobody can ask whether it lives, so its lease has to be seen to run out."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshot_assets.errors import WriterBusy
from snapshot_assets.ids import new_ulid
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.lease import Holder, WriterLease, lease_key
from snapshot_assets.model.sidecar import Sidecar, SidecarKind, sidecar_key
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.faults.scene import NAME, HeldClock, add_orders

ELSEWHERE = Holder("elsewhere pid:[4026531836]", "00000000-0000-0000-0000-000000000000", 7, "1")


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = Dataset(NAME, "sqlite", tmp_path / "orders.sqlite")
    add_orders(dataset, range(10))
    return dataset


@pytest.fixture
def store(dataset: Dataset, clock: HeldClock) -> SnapshotStore:
    """A published dataset, with the lease and the sidecar of a writer elsewhere."""
    store = SnapshotStore.over(MemoryStore(), clock=clock)
    Publisher(store, clock=clock).publish(dataset)
    head = store.head(NAME)
    store.objects.delete([lease_key(NAME)])
    held = WriterLease(NAME, ELSEWHERE, new_ulid(), new_ulid(), 60_000, 1)
    store.objects.write_if_absent(lease_key(NAME), held.to_bytes())
    made = Sidecar(new_ulid(), SidecarKind.PUBLISH, NAME, head.incarnation, head.epoch, 0, None, {}, 0)  # type: ignore[arg-type]
    store.objects.write_if_absent(sidecar_key(NAME, made.operation_id), made.to_bytes())
    return store


def test_a_publisher_takes_over_what_it_has_seen_unchanged_for_the_whole_duration(
    store: SnapshotStore, dataset: Dataset, clock: HeldClock
) -> None:
    publisher = Publisher(store, clock=clock)
    with pytest.raises(WriterBusy):
        publisher.publish(dataset)
    clock.advance(59.0)
    with pytest.raises(WriterBusy):
        publisher.publish(dataset)
    clock.advance(1.0)
    assert publisher.publish(dataset).outcome == "unchanged"
    assert not list(store.objects.list("recovery/"))


def test_a_publisher_that_waits_takes_over_at_its_first_call(
    store: SnapshotStore, dataset: Dataset, clock: HeldClock
) -> None:
    assert Publisher(store, wait=61.0, clock=clock).publish(dataset).outcome == "unchanged"


def test_a_repair_settles_what_a_writer_elsewhere_left_once_its_lease_has_run_out(
    store: SnapshotStore, clock: HeldClock
) -> None:
    operator = Maintenance(store, clock=clock)
    [row] = operator.repair(NAME, confirm=True)
    assert isinstance(row.error, WriterBusy)
    clock.advance(3600.0)
    [row] = operator.repair(NAME, confirm=True)
    assert row.done


def test_a_repair_that_waits_settles_it_at_its_first_call(store: SnapshotStore, clock: HeldClock) -> None:
    [row] = Maintenance(store, clock=clock).repair(NAME, confirm=True, wait=61.0)
    assert row.done
