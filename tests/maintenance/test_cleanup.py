"""Cleanup: what goes, what is kept, in which order, and whom a crash or a stall can hurt."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from snapshot_assets import failpoints
from snapshot_assets.errors import (
    ConfigurationError,
    DatasetSealed,
    DocumentDamaged,
    NotFound,
    RetentionPolicyMissing,
    SidecarUnreadable,
)
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.maintenance.support import (
    DAY,
    LateStore,
    age,
    announce,
    data_keys,
    killed_at,
    listed_ids,
    publish_more,
)
from tests.publish.support import audits, check_store

CLEANUP_FAILPOINTS = sorted(
    value for name, value in vars(failpoints).items() if name.startswith("CLEANUP_") and isinstance(value, str)
)


@pytest.fixture
def store(tmp_path: Path, dataset: Dataset) -> SnapshotStore:
    """A store with six snapshots of `orders`, 0 to 5."""
    store = SnapshotStore.open(str(tmp_path / "store"))
    publish_more(store, dataset, 6)
    return store


def sidecars(store: SnapshotStore) -> int:
    return len(list(store.objects.list("recovery/")))


class TestPolicy:
    def test_without_a_policy_nothing_is_planned(self, store: SnapshotStore) -> None:
        with pytest.raises(RetentionPolicyMissing):
            Maintenance(store).cleanup()

    @pytest.mark.parametrize("settings", [{"keep": 2}, {"older_than": -1}, {"keep": 3, "concurrency": 0}])
    def test_a_setting_that_makes_no_sense_is_refused(self, store: SnapshotStore, settings: dict[str, int]) -> None:
        with pytest.raises(ConfigurationError):
            Maintenance(store).cleanup(**settings)  # type: ignore[arg-type]

    def test_a_plan_changes_nothing(self, store: SnapshotStore) -> None:
        before = (data_keys(store), store.head("orders"))
        [row] = Maintenance(store).cleanup(keep=3)
        assert (row.outcome, row.removes, row.objects > 0) == ("planned", (0, 1, 2), True)
        assert (data_keys(store), store.head("orders")) == before
        assert not sidecars(store)

    def test_only_what_both_rules_allow_goes(self, store: SnapshotStore) -> None:
        maintenance = Maintenance(store)
        [row] = maintenance.cleanup(keep=3, older_than=timedelta(days=1))
        assert row.outcome == "nothing_to_do"
        [row] = maintenance.cleanup(older_than=0.0)
        assert (row.removes, row.protected) == ((0, 1, 2, 3, 4), {5: "current"})

    def test_a_dataset_that_was_never_published_fails_alone(self, store: SnapshotStore) -> None:
        rows = Maintenance(store).cleanup(["orders", "planes"], keep=3, confirm=True, grace=0)
        assert [row.outcome for row in rows] == ["cleaned", "failed"]
        assert isinstance(rows[1].error, NotFound)


class TestProtection:
    def test_current_pinned_and_served_snapshots_stay(self, store: SnapshotStore) -> None:
        maintenance = Maintenance(store)
        maintenance.rollback("orders", 0)
        maintenance.pin("orders", "audit", 1, owner="me")
        announce(store, 2)
        [row] = maintenance.cleanup(keep=3, confirm=True, grace=0)
        assert listed_ids(store) == [0, 1, 2, 3, 4, 5]
        assert (row.removes, set(row.protected)) == ((), {0, 1, 2})
        assert "served by reader reader-1" in row.protected[2]

    def test_an_expired_pin_and_a_silent_reader_protect_nothing(self, store: SnapshotStore) -> None:
        maintenance = Maintenance(store)
        maintenance.pin("orders", "audit", 1, owner="me", expires=0)
        age(store, announce(store, 2), 26 * 60)
        [row] = maintenance.cleanup(keep=3, confirm=True, grace=0)
        assert row.removes == (0, 1, 2)
        assert store.head("orders").pins == ()
        check_listed(store)

    def test_what_an_operation_in_progress_builds_on_stays(self, store: SnapshotStore, dataset: Dataset) -> None:
        """Seen from within a publish: its base is neither current any more nor among the newest three."""
        maintenance = Maintenance(store)
        maintenance.rollback("orders", 0)
        rows = []

        def clean() -> None:
            maintenance.rollback("orders", 5)
            rows.extend(maintenance.cleanup(keep=3, confirm=True, grace=0))

        Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_AFTER_EFFECTS: clean})).publish(dataset, force=True)
        assert rows[0].removes == (1, 2)
        assert "builds on it" in rows[0].protected[0]
        assert listed_ids(store) == [0, 3, 4, 5, 6]
        check_listed(store)

    def test_the_objects_of_an_operation_in_progress_stay_however_old_they_are(
        self, store: SnapshotStore, dataset: Dataset
    ) -> None:
        before = data_keys(store)
        rows = []

        def clean() -> None:
            for key in data_keys(store) - before:
                age(store, key, DAY + 60)
            rows.extend(Maintenance(store).cleanup(keep=100, confirm=True, grace=0))

        Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_AFTER_EFFECTS: clean})).publish(dataset, force=True)
        assert [row.outcome for row in rows] == ["nothing_to_do"]
        check_listed(store)

    def test_a_base_that_went_before_the_publish_was_armed_is_noticed(
        self, store: SnapshotStore, dataset: Dataset
    ) -> None:
        maintenance = Maintenance(store)
        maintenance.rollback("orders", 0)
        cleaned: list[tuple[int, ...]] = []

        def clean() -> None:
            if not cleaned:
                maintenance.rollback("orders", 5)
                cleaned.extend(row.removes for row in maintenance.cleanup(keep=3, confirm=True, grace=0))

        result = Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_AFTER_PLAN: clean})).publish(
            dataset, force=True
        )
        assert cleaned == [(0, 1, 2)]
        assert (result.outcome, listed_ids(store)) == ("published", [3, 4, 5, 6])
        check_listed(store)

    @pytest.mark.parametrize(("key", "kind"), [
        ("recovery/orders/01JD0000000000000000000000.json", SidecarUnreadable),
        ("readers/somebody.json", DocumentDamaged),
    ])  # fmt: skip
    def test_nothing_of_a_dataset_goes_while_a_document_can_not_be_read(
        self, store: SnapshotStore, key: str, kind: type[Exception]
    ) -> None:
        store.objects.write_if_absent(key, b"{}")
        before = data_keys(store)
        [row] = Maintenance(store).cleanup(keep=3, confirm=True, grace=0)
        assert (row.outcome, type(row.error)) == ("failed", kind)
        assert (data_keys(store), listed_ids(store)) == (before, [0, 1, 2, 3, 4, 5])

    def test_a_sealed_dataset_is_left_alone(self, store: SnapshotStore) -> None:
        maintenance = Maintenance(store)
        maintenance.seal("orders")
        [row] = maintenance.cleanup(keep=3, confirm=True, grace=0)
        assert isinstance(row.error, DatasetSealed)
        assert len(listed_ids(store)) == 6


class TestCollection:
    def test_objects_stay_for_the_grace_and_the_next_cleanup_deletes_them(self, store: SnapshotStore) -> None:
        maintenance = Maintenance(store)
        before = data_keys(store)
        [row] = maintenance.cleanup(keep=3, confirm=True, grace=timedelta(milliseconds=300))
        assert (row.outcome, row.deleted_objects) == ("cleaned", 0)
        assert (listed_ids(store), data_keys(store)) == ([3, 4, 5], before)
        for key in before:
            age(store, key, DAY + 60)
        [again] = maintenance.cleanup(keep=3)
        assert again.outcome == "nothing_to_do", "what is marked already is not marked again"
        marked = row.objects
        while sidecars(store):
            [row] = maintenance.cleanup(keep=3, confirm=True)
        assert (row.outcome, row.deleted_objects) == ("cleaned", marked)
        assert marked == len(before - data_keys(store)) > 0
        check_listed(store)

    def test_the_next_writer_deletes_them_too(self, store: SnapshotStore, dataset: Dataset) -> None:
        before = data_keys(store)
        Maintenance(store).cleanup(keep=3, confirm=True, grace=0.05)
        while sidecars(store):
            publish_more(store, dataset)
        assert not before <= data_keys(store)
        check_listed(store)

    def test_a_writer_need_not_claim_anything_while_a_grace_lasts(self, store: SnapshotStore, dataset: Dataset) -> None:
        Maintenance(store).cleanup(keep=3, confirm=True, grace=3_600)
        epoch = store.head("orders").epoch
        publish_more(store, dataset)
        assert store.head("orders").epoch == epoch
        assert sidecars(store) == 1

    def test_everything_that_is_kept_restores_and_nothing_else_is_left(
        self, store: SnapshotStore, tmp_path: Path
    ) -> None:
        Maintenance(store).cleanup(keep=3, confirm=True, grace=0)
        check_store(store, tmp_path / "scratch")
        assert sorted(set(audits(store).values())) == ["committed", "rolled_forward"]

    def test_an_old_object_that_nothing_explains_goes_and_a_young_one_stays(self, store: SnapshotStore) -> None:
        incarnation = store.head("orders").incarnation
        old, young = (f"data/orders/{incarnation}/01JD000000000000000000000{n}/0000.pack" for n in (1, 2))
        other = "data/orders/01JD0000000000000000000003/01JD0000000000000000000004/0000.pack"
        for key in (old, young, other):
            store.objects.write_if_absent(key, b"nobody's")
        for key in (old, other):
            age(store, key, DAY + 60)
        [row] = Maintenance(store).cleanup(keep=100, confirm=True, grace=0)
        assert (row.outcome, row.orphans, row.deleted_objects) == ("cleaned", 2, 2)
        assert data_keys(store) & {old, young, other} == {young}
        check_listed(store)

    def test_what_a_commit_dropped_for_want_of_room_is_collected(self, store: SnapshotStore, dataset: Dataset) -> None:
        publish_more(store, dataset)
        Publisher(store, max_snapshots=3).publish(dataset, force=True)
        dropped = data_keys(store)
        for key in dropped:
            age(store, key, DAY + 60)
        [row] = Maintenance(store).cleanup(keep=3, confirm=True, grace=0)
        assert row.orphans == row.deleted_objects > 0
        check_listed(store)

    def test_a_damaged_snapshot_can_go_and_a_kept_one_stops_the_collection(
        self, store: SnapshotStore, tmp_path: Path
    ) -> None:
        for snapshot_id, outcome in ((0, "cleaned"), (5, "failed")):
            entry = store.head("orders").entry(snapshot_id)
            assert entry is not None
            [manifest] = tmp_path.glob(f"store/data/orders/*/{entry.operation_id}/manifest.json")
            manifest.write_bytes(b"{}")
            [row] = Maintenance(store).cleanup(keep=3, confirm=True, grace=0)
            assert row.outcome == outcome

    def test_old_audit_rows_go_and_those_of_pending_operations_stay(self, store: SnapshotStore) -> None:
        rows = [listed.key for listed in store.objects.list("audit/orders/")]
        for key in rows[:3]:
            age(store, key, 91 * DAY)
        Maintenance(store).cleanup(keep=100, confirm=True)
        assert {listed.key for listed in store.objects.list("audit/orders/")} == set(rows[3:])

    def test_a_store_that_is_cleaned_after_each_publish_stays_small(
        self, store: SnapshotStore, dataset: Dataset
    ) -> None:
        """At most 1.3 times what the kept snapshots need, however long it goes on."""
        maintenance = Maintenance(store)
        for _ in range(20):
            publish_more(store, dataset, rows=50)
            maintenance.cleanup(keep=3, confirm=True, grace=0)
        sizes = {listed.key: listed.size for listed in store.objects.list("data/")}
        needed = maintenance.verify("orders", level="digest").read_bytes
        assert sum(sizes.values()) <= 1.3 * needed + 3 * 16 * 1024
        check_listed(store)

    def test_a_damaged_snapshot_holds_up_neither_writers_nor_the_cleanup_that_removes_it(
        self, store: SnapshotStore, dataset: Dataset, tmp_path: Path
    ) -> None:
        """An earlier cleanup is due, and can not tell what it may delete: it waits, and nobody else does."""
        maintenance = Maintenance(store)
        maintenance.cleanup(keep=5, confirm=True, grace=0.01)
        entry = store.head("orders").entry(1)
        assert entry is not None
        [manifest] = tmp_path.glob(f"store/data/orders/*/{entry.operation_id}/manifest.json")
        manifest.write_bytes(b"{}")
        publish_more(store, dataset)
        [row] = maintenance.cleanup(keep=3, confirm=True, grace=0)
        assert (row.outcome, row.removes) == ("cleaned", (1, 2, 3))
        publish_more(store, dataset)
        for key in data_keys(store):
            age(store, key, DAY + 60)
        maintenance.cleanup(keep=4, confirm=True, grace=0)
        check_store(store, tmp_path / "scratch")

    def test_a_cleanup_whose_answer_was_lost_long_ago_is_finished_and_not_called_discarded(
        self, store: SnapshotStore, tmp_path: Path
    ) -> None:
        late = LateStore(store.objects)

        def change_often() -> None:
            for _ in range(20):
                Maintenance(store).pin("orders", "busy", 5, owner="me")

        late.meanwhile = change_often
        [row] = Maintenance(SnapshotStore.over(late, retry_for=0.0)).cleanup(keep=3, confirm=True, grace=0)
        assert (row.outcome, listed_ids(store)) == ("cleaned", [3, 4, 5])
        assert row.deleted_objects > 0
        assert "discarded" not in audits(store).values()
        check_store(store, tmp_path / "scratch")


class TestRaces:
    def test_a_publish_that_comes_between_is_planned_with(self, store: SnapshotStore, dataset: Dataset) -> None:
        def publish() -> None:
            if len(listed_ids(store)) == 6:
                publish_more(store, dataset)

        maintenance = Maintenance(store, failpoints=Failpoints({failpoints.CLEANUP_AFTER_SIDECAR: publish}))
        [row] = maintenance.cleanup(keep=3, confirm=True, grace=0)
        assert (row.outcome, row.removes, listed_ids(store)) == ("cleaned", (0, 1, 2, 3), [4, 5, 6])
        assert "discarded" in audits(store).values()
        check_listed(store)

    @pytest.mark.parametrize("failpoint", CLEANUP_FAILPOINTS)
    def test_a_cleaner_that_stalls_anywhere_hurts_nobody(
        self, store: SnapshotStore, dataset: Dataset, tmp_path: Path, failpoint: str
    ) -> None:
        """While it stalls, others publish, roll back and clean; then it goes on with what it knew."""
        stalled: list[bool] = []

        def stall() -> None:
            if not stalled:
                stalled.append(True)
                publish_more(store, dataset, 2)
                others = Maintenance(store)
                others.rollback("orders", 5)
                others.cleanup(keep=3, confirm=True, grace=0)
                publish_more(store, dataset)

        Maintenance(store, failpoints=Failpoints({failpoint: stall})).cleanup(keep=4, confirm=True, grace=0)
        assert stalled
        publish_more(store, dataset)
        check_store(store, tmp_path / "scratch")

    @pytest.mark.parametrize("failpoint", CLEANUP_FAILPOINTS)
    @pytest.mark.parametrize("next_one", ["cleanup", "publish"])
    def test_a_cleaner_killed_anywhere_is_settled_by_the_next_one(
        self, store: SnapshotStore, dataset: Dataset, tmp_path: Path, failpoint: str, next_one: str
    ) -> None:
        killed_at(store, failpoint, "maintenance.cleanup(keep=3, confirm=True, grace=0)")
        if next_one == "publish":
            publish_more(store, dataset)
        Maintenance(store).cleanup(keep=3, confirm=True, grace=0)
        publish_more(store, dataset)
        check_store(store, tmp_path / "scratch")
        assert len(listed_ids(store)) <= 5


def check_listed(store: SnapshotStore) -> None:
    """Every listed snapshot is whole in the store."""
    for snapshot_id in listed_ids(store):
        Maintenance(store).verify("orders", snapshot_id, "digest")
