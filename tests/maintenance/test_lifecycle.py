"""Seal, unseal, drop and recreate: sealed or dropped, never between; and incarnations that never mix."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshot_assets import failpoints
from snapshot_assets.errors import (
    ConfirmationRequired,
    DatasetDropped,
    DatasetSealed,
    IncarnationChanged,
    MaintenanceError,
    SnapshotInUse,
    UnsupportedEngine,
)
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.ids import OperationId, new_operation_id
from snapshot_assets.maintenance import lifecycle
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import Status
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.maintenance.support import SlowStore, announce, data_keys, killed_at, listed_ids, publish_more
from tests.publish.support import audits, check_store

DROP_FAILPOINTS = sorted(
    value for name, value in vars(failpoints).items() if name.startswith("DROP_") and isinstance(value, str)
)
DROPPED_AFTER = {failpoints.DROP_AFTER_COMMIT, failpoints.DROP_AFTER_END}


@pytest.fixture
def store(tmp_path: Path, dataset: Dataset) -> SnapshotStore:
    """A store with three snapshots of `orders`."""
    store = SnapshotStore.open(str(tmp_path / "store"))
    publish_more(store, dataset, 3)
    return store


def check_gone(store: SnapshotStore) -> None:
    head = store.head("orders")
    assert (head.status, head.snapshots, head.current_snapshot_id) == (Status.DROPPED, (), None)
    assert not data_keys(store)
    assert not list(store.objects.list("recovery/"))


class TestSeal:
    def test_a_sealed_dataset_takes_no_writers_and_is_read_on(
        self, store: SnapshotStore, dataset: Dataset, tmp_path: Path
    ) -> None:
        head = Maintenance(store).seal("orders")
        assert (head.status, head.generation) == (Status.SEALED, 3)
        with pytest.raises(DatasetSealed):
            Publisher(store).publish(dataset)
        with pytest.raises(DatasetSealed):
            Maintenance(store).rollback("orders", 0)
        with SnapshotReader(store, tmp_path / "reader", ReaderSettings(refresh_interval=None)) as reader:
            assert reader.follow("orders").current.snapshot_id == 2

    def test_a_writer_in_flight_is_fenced_also_when_it_is_unsealed_again(
        self, store: SnapshotStore, dataset: Dataset, tmp_path: Path
    ) -> None:
        def seal_and_unseal() -> None:
            Maintenance(store).seal("orders")
            Maintenance(store).unseal("orders")

        fenced = Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_BEFORE_COMMIT: seal_and_unseal}))
        with pytest.raises(Exception, match="claimed"):
            fenced.publish(dataset, force=True)
        assert listed_ids(store) == [0, 1, 2]
        publish_more(store, dataset)
        check_store(store, tmp_path / "scratch")

    def test_unsealing_what_is_not_sealed_is_refused(self, store: SnapshotStore) -> None:
        with pytest.raises(MaintenanceError, match="not sealed"):
            Maintenance(store).unseal("orders")

    def test_sealing_twice_is_sealing_once(self, store: SnapshotStore) -> None:
        maintenance = Maintenance(store)
        assert maintenance.seal("orders").epoch == maintenance.seal("orders").epoch
        assert maintenance.unseal("orders").status is Status.ACTIVE


class TestDrop:
    def test_a_plan_changes_nothing_and_tells_who_needs_it(self, store: SnapshotStore) -> None:
        maintenance = Maintenance(store)
        maintenance.pin("orders", "audit", 1, owner="me")
        announce(store, 2)
        before = store.head("orders")
        planned = maintenance.drop("orders")
        assert (planned.outcome, planned.needed_by) == ("planned", ("pin 'audit' of me", "reader reader-1"))
        assert store.head("orders") == before

    def test_what_is_needed_is_sealed_and_not_dropped_unless_forced(self, store: SnapshotStore) -> None:
        maintenance = Maintenance(store)
        maintenance.pin("orders", "audit", 1, owner="me")
        with pytest.raises(ConfirmationRequired):
            maintenance.drop("orders", force=True)
        with pytest.raises(SnapshotInUse, match="sealed now"):
            maintenance.drop("orders", confirm=True)
        assert store.head("orders").status is Status.SEALED
        assert listed_ids(store) == [0, 1, 2]
        result = maintenance.drop("orders", confirm=True, force=True)
        assert (result.outcome, result.deleted_objects > 0) == ("dropped", True)
        check_gone(store)

    @pytest.mark.parametrize("announcement", [b"{}", b'{"format_version": 2}'])
    def test_a_reader_that_can_not_be_understood_may_need_it(self, store: SnapshotStore, announcement: bytes) -> None:
        store.objects.write_if_absent("readers/somebody.json", announcement)
        maintenance = Maintenance(store)
        assert "readers/somebody.json" in maintenance.drop("orders").needed_by[0]
        with pytest.raises(SnapshotInUse, match="readers/somebody.json"):
            maintenance.drop("orders", confirm=True)
        assert maintenance.drop("orders", confirm=True, force=True).outcome == "dropped"
        check_gone(store)

    def test_a_dropped_name_is_not_brought_back_by_a_publish(self, store: SnapshotStore, dataset: Dataset) -> None:
        maintenance = Maintenance(store)
        maintenance.drop("orders", confirm=True)
        check_gone(store)
        for call in (
            lambda: Publisher(store).publish(dataset),
            lambda: maintenance.drop("orders", confirm=True),
            lambda: maintenance.seal("orders"),
            lambda: maintenance.unseal("orders"),
        ):
            with pytest.raises(DatasetDropped):
                call()
        check_gone(store)

    def test_every_operation_has_exactly_the_outcome_that_it_had(self, store: SnapshotStore, dataset: Dataset) -> None:
        published = {entry.operation_id for entry in store.head("orders").snapshots}
        unretired = Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_AFTER_COMMIT: _fail}))
        with pytest.raises(RuntimeError):
            unretired.publish(dataset, force=True)
        published |= {store.head("orders").snapshots[-1].operation_id}
        Maintenance(store).drop("orders", confirm=True)
        rows = audits(store)
        assert {rows[operation] for operation in published} == {"committed"}
        check_gone(store)

    @pytest.mark.parametrize("failpoint", DROP_FAILPOINTS)
    def test_a_drop_killed_anywhere_ends_sealed_or_dropped_and_can_be_finished(
        self, store: SnapshotStore, failpoint: str
    ) -> None:
        killed_at(store, failpoint, "maintenance.drop('orders', confirm=True)")
        dropped = failpoint in DROPPED_AFTER
        assert store.head("orders").status is (Status.DROPPED if dropped else Status.SEALED)
        if failpoint != failpoints.DROP_AFTER_END:
            assert Maintenance(store).drop("orders", confirm=True).outcome == "dropped"
        check_gone(store)

    @pytest.mark.parametrize("failpoint", [one for one in DROP_FAILPOINTS if one not in DROPPED_AFTER])
    def test_a_drop_killed_before_its_commit_can_be_undone(
        self, store: SnapshotStore, dataset: Dataset, tmp_path: Path, failpoint: str
    ) -> None:
        killed_at(store, failpoint, "maintenance.drop('orders', confirm=True)")
        Maintenance(store).unseal("orders")
        publish_more(store, dataset)
        assert listed_ids(store) == [0, 1, 2, 3]
        check_store(store, tmp_path / "scratch")

    def test_a_name_that_was_recreated_before_the_seal_is_left_alone(
        self, store: SnapshotStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The dropper stalls between its look at the head and its seal."""

        def stall() -> OperationId:
            monkeypatch.undo()
            Maintenance(store).drop("orders", confirm=True)
            Maintenance(store).recreate("orders")
            publish_more(store, dataset)
            return new_operation_id()

        monkeypatch.setattr(lifecycle, "new_operation_id", stall)
        with pytest.raises(IncarnationChanged, match="left alone"):
            Maintenance(store).drop("orders", confirm=True)
        assert (store.head("orders").status, listed_ids(store)) == (Status.ACTIVE, [0])

    def test_a_seal_that_somebody_else_made_is_not_committed(self, store: SnapshotStore) -> None:
        """The dropper stalls; meanwhile its seal is undone, and the dataset is sealed again for another reason."""

        def reseal() -> None:
            Maintenance(store).unseal("orders")
            Maintenance(store).seal("orders")

        dropper = Maintenance(store, failpoints=Failpoints({failpoints.DROP_AFTER_SIDECAR: reseal}))
        with pytest.raises(MaintenanceError, match="unsealed while"):
            dropper.drop("orders", confirm=True)
        assert (store.head("orders").status, listed_ids(store)) == (Status.SEALED, [0, 1, 2])
        assert data_keys(store)

    def test_of_two_droppers_both_end_it(self, store: SnapshotStore) -> None:
        others = []

        def drop() -> None:
            others.append(Maintenance(store).drop("orders", confirm=True))

        for failpoint in (failpoints.DROP_AFTER_SIDECAR, failpoints.DROP_AFTER_SEAL):
            others.clear()
            mine = Maintenance(store, failpoints=Failpoints({failpoint: drop})).drop("orders", confirm=True)
            assert [mine.outcome, *(other.outcome for other in others)] == ["dropped", "dropped"]
            check_gone(store)
            Maintenance(store).recreate("orders")

    def test_a_dropper_that_another_one_overtook_leaves_the_new_incarnation_alone(
        self, store: SnapshotStore, dataset: Dataset, tmp_path: Path
    ) -> None:
        def drop_and_recreate() -> None:
            Maintenance(store).drop("orders", confirm=True)
            Maintenance(store).recreate("orders")
            publish_more(store, dataset)

        for failpoint in (failpoints.DROP_AFTER_SEAL, failpoints.DROP_AFTER_SETTLED, failpoints.DROP_AFTER_SIDECAR):
            with pytest.raises(IncarnationChanged, match="left alone"):
                Maintenance(store, failpoints=Failpoints({failpoint: drop_and_recreate})).drop("orders", confirm=True)
            publish_more(store, dataset)
            assert (store.head("orders").status, listed_ids(store)) == (Status.ACTIVE, [0, 1])
            check_store(store, tmp_path / f"scratch-{failpoint}")

    def test_a_drop_that_was_cut_short_after_its_commit_is_planned_and_finished(self, store: SnapshotStore) -> None:
        killed_at(store, failpoints.DROP_AFTER_COMMIT, "maintenance.drop('orders', confirm=True)")
        planned = Maintenance(store).drop("orders")
        assert (planned.outcome, planned.deleted_objects) == ("planned", len(data_keys(store)))
        assert planned.deleted_objects > 0
        assert Maintenance(store).drop("orders", confirm=True).deleted_objects == planned.deleted_objects
        check_gone(store)

    def test_what_a_lost_incarnation_left_is_settled_by_the_next_drop(
        self, store: SnapshotStore, dataset: Dataset
    ) -> None:
        with pytest.raises(RuntimeError):
            Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_AFTER_EFFECTS: _fail})).publish(
                dataset, force=True
            )
        [left] = [listed.key for listed in store.objects.list("recovery/")]
        body = store.objects.read(left).data
        maintenance = Maintenance(store)
        maintenance.drop("orders", confirm=True)
        maintenance.recreate("orders")
        # It comes back as that of a writer would that stalled before it armed.
        store.objects.write_if_absent(left, body)
        maintenance.drop("orders", confirm=True)
        check_gone(store)
        with pytest.raises(DatasetDropped, match="nothing of it is left"):
            maintenance.drop("orders", confirm=True)


class TestRecreate:
    def test_an_answer_that_was_lost_names_the_incarnation_that_lives(self, store: SnapshotStore) -> None:
        """The first request gets no answer, and lands while the second one is under way."""
        Maintenance(store).drop("orders", confirm=True)
        slow = SlowStore(store.objects)
        made = Maintenance(SnapshotStore.over(slow, retry_for=0.0)).recreate("orders")
        assert slow.first is not None
        assert made.incarnation == store.head("orders").incarnation

    def test_counters_go_on_and_readers_follow(self, store: SnapshotStore, dataset: Dataset, tmp_path: Path) -> None:
        maintenance = Maintenance(store)
        with SnapshotReader(store, tmp_path / "reader", ReaderSettings(refresh_interval=None)) as reader:
            provider = reader.follow("orders", refresh=False)
            before = store.head("orders")
            maintenance.drop("orders", confirm=True)
            assert reader.refresh("orders").outcome == "not_modified"
            assert provider.query("select count(*) as n from t").to_pylist() == [{"n": 600}]
            made = maintenance.recreate("orders")
            assert made.incarnation != before.incarnation
            assert made.revision > before.revision
            assert made.generation > before.generation
            assert made.epoch > before.epoch
            assert (made.next_snapshot_id, made.snapshots) == (0, ())
            dataset.path.unlink()
            publish_more(store, dataset, rows=7)
            assert reader.refresh("orders").outcome == "loaded"
            assert provider.current.incarnation == made.incarnation
            assert provider.query("select count(*) as n from t").to_pylist() == [{"n": 7}]
        check_store(store, tmp_path / "scratch")

    def test_only_a_dropped_name_can_be_recreated(self, store: SnapshotStore) -> None:
        maintenance = Maintenance(store)
        with pytest.raises(MaintenanceError, match="active"):
            maintenance.recreate("orders")
        maintenance.seal("orders")
        with pytest.raises(MaintenanceError, match="sealed"):
            maintenance.recreate("orders")

    def test_another_engine_may_take_the_name_over(self, store: SnapshotStore) -> None:
        maintenance = Maintenance(store)
        maintenance.drop("orders", confirm=True)
        with pytest.raises(UnsupportedEngine):
            maintenance.recreate("orders", engine="oracle")
        assert maintenance.recreate("orders", engine="duckdb").engine == "duckdb"

    def test_a_writer_of_the_old_incarnation_is_told(
        self, store: SnapshotStore, dataset: Dataset, tmp_path: Path
    ) -> None:
        def drop_and_recreate() -> None:
            Maintenance(store).drop("orders", confirm=True)
            Maintenance(store).recreate("orders")

        late = Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_BEFORE_COMMIT: drop_and_recreate}))
        with pytest.raises(IncarnationChanged):
            late.publish(dataset, force=True)
        publish_more(store, dataset)
        assert listed_ids(store) == [0]
        check_store(store, tmp_path / "scratch")

    @pytest.mark.parametrize("failpoint", sorted(DROPPED_AFTER))
    def test_a_dropper_that_stalls_after_its_commit_hurts_no_new_incarnation(
        self, store: SnapshotStore, dataset: Dataset, tmp_path: Path, failpoint: str
    ) -> None:
        def recreate() -> None:
            Maintenance(store).recreate("orders")
            publish_more(store, dataset)

        Maintenance(store, failpoints=Failpoints({failpoint: recreate})).drop("orders", confirm=True)
        publish_more(store, dataset)
        assert listed_ids(store) == [0, 1]
        check_store(store, tmp_path / "scratch")

    def test_a_dropper_that_stalls_beside_a_writer_of_the_new_incarnation_leaves_its_objects(
        self, store: SnapshotStore, dataset: Dataset, tmp_path: Path
    ) -> None:
        """The new incarnation's operation is in progress, with its sidecar, when the old one's data is deleted."""
        at_work: set[str] = set()

        def recreate_and_begin() -> None:
            Maintenance(store).recreate("orders")
            with pytest.raises(RuntimeError):
                Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_AFTER_EFFECTS: _fail})).publish(dataset)
            at_work.update(key for key in data_keys(store) if store.head("orders").incarnation in key)

        dropper = Maintenance(store, failpoints=Failpoints({failpoints.DROP_AFTER_COMMIT: recreate_and_begin}))
        dropper.drop("orders", confirm=True)
        assert at_work
        assert data_keys(store) == at_work
        publish_more(store, dataset)
        check_store(store, tmp_path / "scratch")


def _fail() -> None:
    raise RuntimeError("the process stops here")
