"""An operator's commands: rollback with its undo, pins, verification."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets.errors import (
    ConfigurationError,
    Conflict,
    MaintenanceError,
    NotFound,
    SnapshotDamaged,
    SnapshotMissing,
)
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.publish.support import audits, grow


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """A store with three snapshots of `orders`."""
    store = SnapshotStore.open(str(tmp_path / "store"))
    dataset = Dataset("orders", "duckdb", tmp_path / "orders.duckdb")
    for _ in range(3):
        grow(dataset, 10)
        Publisher(store).publish(dataset)
    return store


def packs(tmp_path: Path, store: SnapshotStore, snapshot_id: int) -> list[Path]:
    entry = store.head("orders").entry(snapshot_id)
    assert entry is not None
    return sorted(tmp_path.glob(f"store/data/orders/*/{entry.operation_id}/*.pack"))


def test_a_rollback_makes_an_older_snapshot_current_under_a_higher_generation(store: SnapshotStore) -> None:
    undo = Maintenance(store).rollback("orders", 0)
    head = store.head("orders")
    assert (head.current_snapshot_id, head.generation, head.next_snapshot_id) == (0, 4, 3)
    assert [entry.snapshot_id for entry in head.snapshots] == [0, 1, 2]
    assert (undo.replaced_snapshot_id, undo.snapshot_id, undo.generation) == (2, 0, 4)
    assert len(audits(store)) == 4


def test_a_rollback_can_be_undone_once_and_not_over_somebody_else(store: SnapshotStore) -> None:
    maintenance = Maintenance(store)
    undo = maintenance.rollback("orders", 0)
    undo.undo()
    head = store.head("orders")
    assert (head.current_snapshot_id, head.generation) == (2, 5)
    with pytest.raises(Conflict):
        undo.undo()
    assert store.head("orders").generation == 5


def test_after_a_rollback_the_next_publish_takes_a_new_id_and_builds_on_what_is_current(
    store: SnapshotStore, tmp_path: Path
) -> None:
    Maintenance(store).rollback("orders", 0)
    result = Publisher(store).publish(Dataset("orders", "duckdb", tmp_path / "orders.duckdb"))
    entry = store.head("orders").snapshots[-1]
    assert (result.outcome, entry.snapshot_id, entry.parent_snapshot_id) == ("published", 3, 0)
    assert entry.content_digest == store.head("orders").snapshots[2].content_digest


def test_a_rollback_to_what_is_not_there_changes_nothing(store: SnapshotStore, tmp_path: Path) -> None:
    maintenance = Maintenance(store)
    before = store.head("orders")
    with pytest.raises(SnapshotMissing, match="lists 0, 1, 2"):
        maintenance.rollback("orders", 7)
    for pack in packs(tmp_path, store, 0):
        pack.unlink()
    with pytest.raises(SnapshotDamaged, match="missing"):
        maintenance.rollback("orders", 0)
    with pytest.raises(NotFound):
        maintenance.rollback("nothing", 0)
    assert store.head("orders") == before


def test_pins_are_kept_in_the_head_and_move_no_generation(store: SnapshotStore) -> None:
    maintenance = Maintenance(store)
    made = maintenance.pin("orders", "release", 1, owner="ops", reason="audit", expires=timedelta(days=1))
    assert made.expires_at_ms == made.created_at_ms + 86_400_000
    maintenance.pin("orders", "release", 2, owner="ops")
    head = store.head("orders")
    assert [(pin.name, pin.snapshot_id, pin.expires_at_ms) for pin in head.pins] == [("release", 2, None)]
    assert head.generation == 3
    maintenance.unpin("orders", "release")
    assert store.head("orders").pins == ()
    with pytest.raises(MaintenanceError, match="no pin called 'release'"):
        maintenance.unpin("orders", "release")
    with pytest.raises(SnapshotMissing):
        maintenance.pin("orders", "release", 9, owner="ops")


@pytest.mark.parametrize(
    "wrong", [{"owner": None}, {"expires": float("inf")}, {"expires": -1e13}, {"expires": 1e17}, {"reason": "\ud800"}]
)
def test_a_pin_that_nobody_could_read_again_is_refused(store: SnapshotStore, wrong: dict[str, Any]) -> None:
    before = store.head("orders")
    with pytest.raises(ConfigurationError):
        Maintenance(store).pin("orders", "release", 1, **{"owner": "ops", **wrong})
    assert store.head("orders") == before


@pytest.mark.parametrize("level", ["sizes", "digest", "restore"])
def test_a_sound_snapshot_verifies_at_every_level(store: SnapshotStore, level: str) -> None:
    report = Maintenance(store).verify("orders", level=level)  # type: ignore[arg-type]
    assert (report.snapshot_id, report.files) == (2, 1)
    assert (report.read_bytes > 0) == (level != "sizes")


def test_a_missing_pack_is_found_by_sizes_and_a_flipped_byte_by_digest(store: SnapshotStore, tmp_path: Path) -> None:
    maintenance = Maintenance(store)
    [pack] = packs(tmp_path, store, 0)
    data = bytearray(pack.read_bytes())
    data[len(data) // 3] ^= 0xFF
    pack.write_bytes(data)
    maintenance.verify("orders", 0, "sizes")
    with pytest.raises(SnapshotDamaged):
        maintenance.verify("orders", 0, "digest")
    pack.write_bytes(data[:10])
    with pytest.raises(SnapshotDamaged, match="has 10 bytes"):
        maintenance.verify("orders", 0, "sizes")
    pack.unlink()
    with pytest.raises(SnapshotDamaged, match=pack.name):
        maintenance.verify("orders", 0, "sizes")
