"""`seal`, `unseal`, `drop`, `recreate`."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.head import Status
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.cli.conftest import Cli


@pytest.fixture
def store(cli: Cli, stock: Path) -> SnapshotStore:
    cli.publish("stock", stock)
    return SnapshotStore.open(cli.store)


def test_a_sealed_dataset_takes_no_writers_until_it_is_unsealed(cli: Cli, store: SnapshotStore, stock: Path) -> None:
    sealed = cli.json("seal", "stock")
    assert set(sealed) == {"dataset", "status", "engine", "incarnation", "generation", "epoch", "revision"}
    assert sealed["status"] == "sealed"
    refused = cli.json("publish", "stock", "--engine", "sqlite", "--path", stock, code=1)["error"]
    assert refused["kind"] == "DatasetSealed"
    assert "snapshot-assets unseal stock" in refused["hint"]
    assert "snapshot-assets unseal stock" in cli.run("seal", "stock").out
    assert cli.json("unseal", "stock")["status"] == "active"
    assert cli.json("unseal", "stock", code=1)["error"]["kind"] == "MaintenanceError"
    assert cli.publish("stock", stock)["outcome"] == "unchanged"


def test_a_drop_is_planned_then_confirmed_and_the_name_stays_taken(cli: Cli, store: SnapshotStore, stock: Path) -> None:
    planned = cli.json("drop", "stock")
    assert (planned["outcome"], planned["snapshots"], planned["deleted_objects"]) == ("planned", 1, 3)
    ran = cli.run("drop", "stock")
    assert (ran.code, ran.err) == (0, "")
    assert "Nothing was changed" in ran.out
    assert "snapshot-assets drop stock --confirm" in ran.out
    assert store.head("stock").status is Status.ACTIVE
    dropped = cli.run("drop", "stock", "--confirm")
    assert (dropped.code, dropped.err) == (0, "")
    assert "3 objects" in dropped.out
    assert not list(store.objects.list("data/"))
    for call in (
        ("drop", "stock"),
        ("drop", "stock", "--confirm"),
        ("publish", "stock", "--engine", "sqlite", "--path", stock),
    ):
        assert cli.json(*call, code=1)["error"]["kind"] == "DatasetDropped"
    assert "snapshot-assets recreate stock" in dropped.out
    made = cli.json("recreate", "stock", "--engine", "duckdb")
    assert (made["status"], made["engine"]) == ("active", "duckdb")
    assert cli.json("recreate", "stock", code=1)["error"]["kind"] == "MaintenanceError"


def test_what_is_needed_is_dropped_only_by_force(cli: Cli, store: SnapshotStore) -> None:
    Maintenance(store).pin("stock", "audit", 0, owner="me")
    ran = cli.run("drop", "stock")
    assert "needed by pin 'audit' of me" in ran.out
    assert "--confirm --force" in ran.out
    error = cli.json("drop", "stock", "--confirm", code=1)["error"]
    assert error["kind"] == "SnapshotInUse"
    assert "snapshot-assets unseal stock" in error["hint"]
    assert store.head("stock").status is Status.SEALED
    assert cli.json("drop", "stock", "--confirm", "--force")["outcome"] == "dropped"


@pytest.mark.parametrize("wrong", [["drop", "stock", "--force"], ["drop"], ["seal"], ["recreate"]])
def test_wrong_usage(cli: Cli, store: SnapshotStore, wrong: list[str]) -> None:
    before = store.head("stock")
    assert cli.run(*wrong).code == 2
    assert store.head("stock") == before
