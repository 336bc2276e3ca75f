"""Repair: what it finds, what it does only when told, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshot_assets import failpoints
from snapshot_assets.errors import ConfirmationRequired, SidecarUnreadable, WriterBusy
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.maintenance.support import DAY, age, data_keys, killed_at, listed_ids, orders_in, publish_more
from tests.publish.support import audits, check_store

UNREADABLE = "recovery/orders/01JD0000000000000000000000.json"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return orders_in(tmp_path)


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
    assert "backup" in row.action


def test_a_drop_that_was_cut_short_before_its_commit_is_the_operators_to_decide(store: SnapshotStore) -> None:
    killed_at(store, failpoints.DROP_AFTER_SIDECAR, "maintenance.drop('orders', confirm=True)")
    [row] = Maintenance(store).repair(confirm=True)
    assert ("unseal" in row.action, row.done) == (True, False)
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
