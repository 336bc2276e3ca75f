"""`cleanup`, `repair`, `readers`: the plan, the deed, what failed, and what it says to people and to programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshot_assets import failpoints
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.cli.conftest import Cli
from tests.maintenance.support import announce, publish_more

UNREADABLE = "recovery/orders/01JD0000000000000000000000.json"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset("orders", "sqlite", tmp_path / "orders.sqlite")


@pytest.fixture
def store(cli: Cli, dataset: Dataset) -> SnapshotStore:
    """Six snapshots of `orders`, 0 to 5, and one of `stock`."""
    opened = SnapshotStore.open(cli.store)
    publish_more(opened, dataset, 6, rows=10)
    Publisher(opened).publish(Dataset("stock", "sqlite", dataset.path))
    return opened


def objects(store: SnapshotStore) -> set[str]:
    return {listed.key for listed in store.objects.list("")}


def die(store: SnapshotStore, dataset: Dataset) -> None:
    def stop() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_BEFORE_COMMIT: stop})).publish(dataset, force=True)


class TestCleanup:
    def test_without_confirm_it_tells_what_would_go_and_what_to_type(self, cli: Cli, store: SnapshotStore) -> None:
        before = objects(store)
        ran = cli.run("cleanup", "--keep", "3", "--older-than", "0s", "orders")
        assert (ran.code, ran.err) == (0, "")
        assert "0 to 2" in ran.out
        assert "Nothing was changed" in ran.out
        [command] = [line.strip() for line in ran.out.splitlines() if "snapshot-assets cleanup" in line]
        assert objects(store) == before
        assert cli.run(*command.split()[1:]).code == 0
        assert [entry.snapshot_id for entry in store.head("orders").snapshots] == [3, 4, 5]

    def test_the_plan_as_json(self, cli: Cli, store: SnapshotStore) -> None:
        Maintenance(store).pin("orders", "audit", 1, owner="me")
        orders, stock = cli.json("cleanup", "--keep", "3")["datasets"]
        assert (orders["dataset"], orders["outcome"], orders["removes"]) == ("orders", "planned", [0, 2])
        assert orders["protected"] == {"1": "pinned as 'audit' by me"}
        assert (stock["dataset"], stock["outcome"], stock["error"]) == ("stock", "nothing_to_do", None)

    def test_confirmed_it_says_until_when_the_objects_stay_and_what_it_deleted(
        self, cli: Cli, store: SnapshotStore
    ) -> None:
        ran = cli.run("cleanup", "--keep", "4", "--confirm")
        assert (ran.code, ran.err) == (0, "")
        assert "The objects stay until" in ran.out
        [row] = cli.json("cleanup", "orders", "--keep", "3", "--grace", "0s", "--confirm")["datasets"]
        assert (row["outcome"], row["deleted_objects"] > 0) == ("cleaned", True)

    def test_one_dataset_that_fails_makes_the_exit_code_after_all_the_others_were_done(
        self, cli: Cli, store: SnapshotStore
    ) -> None:
        Maintenance(store).seal("stock")
        ran = cli.run("cleanup", "--keep", "3", "--grace", "0s", "--confirm")
        assert ran.code == 1
        assert "cleaned" in ran.out
        assert "FAILED" in ran.out
        assert ran.err.startswith("DatasetSealed: ")
        told = cli.json("cleanup", "--keep", "3", code=1)["datasets"]
        assert [row["error"] and row["error"]["kind"] for row in told] == [None, "DatasetSealed"]

    @pytest.mark.parametrize(
        "wrong", [[], ["--keep", "2"], ["--keep", "3", "--grace", "soon"], ["--older-than", "yesterday"]]
    )
    def test_wrong_usage(self, cli: Cli, store: SnapshotStore, wrong: list[str]) -> None:
        before = objects(store)
        for more in ([], ["--confirm"]):
            assert cli.run("cleanup", *wrong, *more).code == 2
        assert objects(store) == before

    def test_a_store_that_does_not_exist_is_not_made_by_a_plan(self, cli: Cli) -> None:
        assert "no datasets" in cli.run("cleanup", "--keep", "3").out
        assert not cli.store.exists()


class TestRepair:
    def test_a_healthy_store(self, cli: Cli, store: SnapshotStore) -> None:
        before = objects(store)
        assert cli.json("repair") == {"findings": []}
        assert cli.run("repair").out == "Nothing to repair.\n"
        assert objects(store) == before

    def test_first_the_findings_then_the_deed(self, cli: Cli, store: SnapshotStore, dataset: Dataset) -> None:
        die(store, dataset)
        before = objects(store)
        ran = cli.run("repair", "orders")
        assert (ran.code, ran.err) == (0, "")
        assert "Nothing was changed" in ran.out
        assert "snapshot-assets repair orders --confirm" in ran.out
        assert objects(store) == before
        [finding] = cli.json("repair")["findings"]
        assert (finding["dataset"], finding["kind"], finding["done"]) == ("orders", "publish", False)
        done = cli.run("repair", "orders", "--confirm")
        assert (done.code, "  done" in done.out) == (0, True)
        assert cli.json("repair") == {"findings": []}

    def test_what_can_not_be_understood_fails_until_it_is_forced(
        self, cli: Cli, store: SnapshotStore, dataset: Dataset
    ) -> None:
        store.objects.write_if_absent(UNREADABLE, b"{}")
        assert "--force" in cli.run("repair").out
        ran = cli.run("repair", "--confirm")
        assert (ran.code, "FAILED" in ran.out) == (1, True)
        assert ran.err.startswith("ConfirmationRequired: ")
        [finding] = cli.json("repair", "--confirm", "--force")["findings"]
        assert (finding["subject"], finding["done"]) == (UNREADABLE, True)
        assert cli.json("publish", "orders", "--engine", "sqlite", "--path", dataset.path)["outcome"] == "unchanged"

    def test_force_alone_is_wrong_usage(self, cli: Cli, store: SnapshotStore) -> None:
        assert cli.run("repair", "--force").code == 2

    def test_a_dataset_that_is_not_there(self, cli: Cli, store: SnapshotStore) -> None:
        assert cli.json("repair", "planes", code=1)["findings"][0]["error"]["kind"] == "NotFound"


class TestPending:
    """`status` and `doctor` tell what is pending, by kind, and what settles it."""

    @pytest.fixture
    def pending(self, store: SnapshotStore, dataset: Dataset) -> None:
        die(store, dataset)
        Maintenance(store).cleanup(["orders"], keep=3, confirm=True)
        store.objects.write_if_absent("recovery/stock/01JD0000000000000000000000.json", b"{}")

    @pytest.mark.usefixtures("pending")
    def test_status(self, cli: Cli) -> None:
        told = {one["kind"]: one for one in cli.json("status")["unfinished"]}
        assert set(told) == {"publish", "cleanup", "unreadable"}
        assert "repair orders --confirm" in told["publish"]["settled_by"]
        assert "after its grace" in told["cleanup"]["settled_by"]
        assert "repair stock --force --confirm" in told["unreadable"]["settled_by"]
        text = cli.run("status").out
        assert all(f"settled by {one['settled_by']}" in text for one in told.values())

    @pytest.mark.usefixtures("pending")
    def test_doctor(self, cli: Cli) -> None:
        [check] = [check for check in cli.json("doctor")["checks"] if check["name"] == "pending"]
        assert check["state"] == "warning"
        assert [line.split()[1] for line in check["detail"].splitlines()] == ["publish", "cleanup", "unreadable"]


def test_readers(cli: Cli, store: SnapshotStore) -> None:
    assert cli.run("readers").out == "No reader has announced itself.\n"
    announce(store, 5)
    [reader] = cli.json("readers")["readers"]
    assert (reader["reader_id"], reader["alive"]) == ("reader-1", True)
    assert reader["datasets"]["orders"]["snapshot_id"] == 5
    assert "reader-1" in cli.run("readers").out
