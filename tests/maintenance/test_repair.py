"""Repair: what it finds, what it does only when told, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshot_assets import failpoints
from snapshot_assets.errors import (
    AccessDenied,
    ConfirmationRequired,
    NotFound,
    SidecarUnreadable,
    StoreUnavailable,
    Superseded,
    WriterBusy,
)
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Fault, FaultStore
from tests.maintenance.support import (
    DAY,
    age,
    data_keys,
    killed_at,
    listed_ids,
    pass_lease,
    publish_more,
)
from tests.publish.support import audits, check_store

UNREADABLE = "recovery/orders/01JD0000000000000000000000.json"


@pytest.fixture
def store(tmp_path: Path, dataset: Dataset) -> SnapshotStore:
    store = SnapshotStore.open(str(tmp_path / "store"))
    publish_more(store, dataset, 4)
    return store


def leave_a_dead_publish(store: SnapshotStore, dataset: Dataset) -> None:
    def stop() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_AFTER_EFFECTS: stop})).publish(dataset, force=True)


def test_a_healthy_store_has_nothing_to_repair(store: SnapshotStore) -> None:
    assert Maintenance(store).repair() == []
    assert Maintenance(store).repair(confirm=True) == []


def test_a_preview_names_what_is_pending_and_changes_nothing(store: SnapshotStore, dataset: Dataset) -> None:
    leave_a_dead_publish(store, dataset)
    before = (data_keys(store), store.head("orders"))
    [row] = Maintenance(store).repair()
    assert (row.dataset, row.kind, row.found, row.done) == ("orders", "publish", "in progress", False)
    assert (data_keys(store), store.head("orders")) == before


def test_a_confirmed_repair_settles_it_and_the_store_is_healthy(
    store: SnapshotStore, dataset: Dataset, tmp_path: Path
) -> None:
    leave_a_dead_publish(store, dataset)
    [row] = Maintenance(store).repair(confirm=True)
    assert row.done
    assert "rolled_back" in audits(store).values()
    check_store(store, tmp_path / "scratch")
    assert Maintenance(store).repair() == []


def test_a_live_writer_is_left_alone(store: SnapshotStore, dataset: Dataset) -> None:
    rows = []

    def repair() -> None:
        rows.extend(Maintenance(store).repair(confirm=True))

    Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_AFTER_EFFECTS: repair})).publish(dataset, force=True)
    [row] = rows
    assert isinstance(row.error, WriterBusy)
    assert listed_ids(store) == [0, 1, 2, 3, 4]


def test_what_can_not_be_understood_is_kept_until_it_is_set_aside_by_force(
    store: SnapshotStore, dataset: Dataset, tmp_path: Path
) -> None:
    store.objects.write_if_absent(UNREADABLE, b"not JSON")
    leave_nothing = Maintenance(store)
    with pytest.raises(ConfirmationRequired):
        leave_nothing.repair(force=True)
    for confirm in (False, True):
        [row, *_] = leave_nothing.repair(confirm=confirm)
        assert (row.subject, row.needs_force, row.done) == (UNREADABLE, True, False)
        with pytest.raises(SidecarUnreadable):
            Publisher(store).publish(dataset, force=True)
    [row, *_] = leave_nothing.repair(confirm=True, force=True)
    assert row.done
    assert store.objects.read("quarantine/orders/01JD0000000000000000000000.json").data == b"not JSON"
    publish_more(store, dataset)
    check_store(store, tmp_path / "scratch")


def test_operations_without_a_head_are_named_with_the_way_out(store: SnapshotStore, dataset: Dataset) -> None:
    leave_a_dead_publish(store, dataset)
    store.objects.delete(["heads/orders.json"])
    [row, *_] = Maintenance(store).repair()
    assert row.found == "heads/orders.json is missing"
    assert "backup" in row.settled_by
    assert isinstance(row.error, SidecarUnreadable)
    before = {listed.key for listed in store.objects.list("")}
    [row, *_] = Maintenance(store).repair(confirm=True, force=True)
    assert not row.done
    assert {listed.key for listed in store.objects.list("recovery/")} <= before


def test_a_drop_that_was_cut_short_before_its_commit_is_the_operators_to_decide(store: SnapshotStore) -> None:
    killed_at(store, failpoints.DROP_AFTER_SIDECAR, "maintenance.drop('orders', confirm=True)")
    [row] = Maintenance(store).repair(confirm=True)
    assert ("unseal" in row.settled_by, row.done, row.error) == (True, False, None)
    assert listed_ids(store) == [0, 1, 2, 3]


def test_a_drop_that_was_cut_short_after_its_commit_is_finished(store: SnapshotStore) -> None:
    killed_at(store, failpoints.DROP_AFTER_COMMIT, "maintenance.drop('orders', confirm=True)")
    assert data_keys(store)
    assert [row.done for row in Maintenance(store).repair(confirm=True)] == [True]
    assert not data_keys(store)


def test_objects_that_nothing_explains_are_told_and_put_up_for_deletion(store: SnapshotStore) -> None:
    key = f"data/orders/{store.head('orders').incarnation}/01JD0000000000000000000001/0000.pack"
    store.objects.write_if_absent(key, b"nobody's")
    age(store, key, DAY + 60)
    [row] = Maintenance(store).repair()
    assert (row.kind, row.done) == ("orphans", False)
    [row] = Maintenance(store).repair(confirm=True)
    assert (row.kind, row.done) == ("orphans", True)


@pytest.mark.parametrize("damage", [b"not JSON", b'{"format_version": 2}'])
def test_a_writer_whose_record_is_set_aside_can_no_longer_commit(
    store: SnapshotStore, dataset: Dataset, tmp_path: Path, damage: bytes
) -> None:
    """It stalls before its commit, for so long that its objects, which nothing explains any more, are collected."""

    def repair() -> None:
        pass_lease(store)
        [record] = [listed.key for listed in store.objects.list("recovery/orders/")]
        store.objects.delete([record])
        store.objects.write_if_absent(record, damage)
        for key in data_keys(store):
            age(store, key, DAY + 60)
        rows = Maintenance(store).repair(confirm=True, force=True)
        assert {row.done for row in rows} == {True}
        Maintenance(store).cleanup(keep=100, confirm=True, grace=0)

    with pytest.raises(Superseded):
        Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_BEFORE_COMMIT: repair})).publish(dataset, force=True)
    assert listed_ids(store) == [0, 1, 2, 3]
    for snapshot_id in listed_ids(store):
        Maintenance(store).verify("orders", snapshot_id)
    assert store.head("orders").current_snapshot_id == 3


def test_a_name_that_is_not_in_the_store_is_told(store: SnapshotStore) -> None:
    [row] = Maintenance(store).repair("planes")
    assert isinstance(row.error, NotFound)


def test_every_finding_says_what_settles_it(store: SnapshotStore, dataset: Dataset) -> None:
    leave_a_dead_publish(store, dataset)
    [row] = Maintenance(store).repair()
    assert "snapshot-assets repair orders --confirm" in row.settled_by
    Maintenance(store).repair(confirm=True)
    Maintenance(store).cleanup(keep=3, confirm=True)
    [row] = Maintenance(store).repair(confirm=True)
    assert (row.kind, row.found, row.done, row.error) == ("cleanup", "waiting", False, None)
    assert "after its grace" in row.settled_by
    Maintenance(store).seal("orders")
    [row] = Maintenance(store).repair()
    assert row.kind == "cleanup"


@pytest.mark.parametrize("operation", ["list", "read"])
def test_what_can_not_be_listed_or_read_is_not_taken_for_nothing(
    store: SnapshotStore, dataset: Dataset, operation: str
) -> None:
    leave_a_dead_publish(store, dataset)
    for cause in (StoreUnavailable, AccessDenied):
        faults = FaultStore(store.objects, Fault("before", operation, "recovery/orders/*", times=100, error=cause))
        broken = SnapshotStore.over(faults, retry_for=0.0)
        [row] = Maintenance(broken).repair("orders", confirm=True)
        with pytest.raises(cause) as caught:
            Publisher(broken).publish(dataset)
        [cleaned] = Maintenance(broken).cleanup(["orders"], keep=3, confirm=True)
        for error in (row.error, caught.value, cleaned.error):
            assert isinstance(error, cause)
            assert error.dataset == "orders"
            assert "nothing was done" in error.message
            assert "doctor" in error.hint
            assert "snapshot-assets repair orders" in error.hint
    assert len(listed_ids(store)) == 4
