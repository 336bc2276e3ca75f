"""Writers that die, stall or lose: what the next writer finds, and that it settles it exactly once."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from snapshot_assets import failpoints
from snapshot_assets.clock import SYSTEM_CLOCK
from snapshot_assets.errors import (
    AccessDenied,
    DatasetDropped,
    DatasetSealed,
    DocumentDamaged,
    IncarnationChanged,
    RecoveryRequired,
    SidecarUnreadable,
    SnapshotAssetsError,
    StoreUnavailable,
    Superseded,
    WriterBusy,
)
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.ids import new_incarnation_id, new_operation_id
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import Head, Status, head_key
from snapshot_assets.model.manifest import data_prefix
from snapshot_assets.model.sidecar import Sidecar, SidecarKind, sidecar_key
from snapshot_assets.publish.heads import change_head
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.publish.recovery import Verdict, classify
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Fault, FaultStore
from tests.publish.support import audits, check_store, grow

PUBLISH_FAILPOINTS = [
    value for name, value in sorted(vars(failpoints).items()) if name.startswith("PUBLISH_") and isinstance(value, str)
]
VISIBLE_AFTER = {
    failpoints.PUBLISH_AFTER_COMMIT,
    failpoints.PUBLISH_AFTER_AUDIT,
    failpoints.PUBLISH_AFTER_RETIRE,
}

UNARMED_AT = {
    failpoints.PUBLISH_AFTER_LEASE,
    failpoints.PUBLISH_AFTER_RECOVERY,
    failpoints.PUBLISH_AFTER_CAPTURE,
    failpoints.PUBLISH_AFTER_PLAN,
}

KILLED_WRITER = """
import os, signal, sys
from snapshot_assets import Dataset, Publisher, SnapshotStore
from snapshot_assets.failpoints import Failpoints

url, name, engine, path, failpoint = sys.argv[1:]
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
Publisher(SnapshotStore.open(url), failpoints=Failpoints({failpoint: kill})).publish(Dataset(name, engine, path))
"""


def publish_and_be_killed(store: SnapshotStore, dataset: Dataset, failpoint: str) -> None:
    arguments = [store.url.removeprefix("file://"), dataset.name, dataset.engine, str(dataset.path), failpoint]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, *arguments], timeout=60, check=False, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("failpoint", PUBLISH_FAILPOINTS)
def test_a_writer_killed_at_any_phase_is_healed_by_the_next_one(
    store: SnapshotStore, dataset: Dataset, tmp_path: Path, failpoint: str
) -> None:
    first = Publisher(store).publish(dataset)
    grow(dataset, 50)
    publish_and_be_killed(store, dataset, failpoint)
    visible = failpoint in VISIBLE_AFTER
    assert store.head("orders").current_snapshot_id == (1 if visible else 0)
    result = Publisher(store).publish(dataset)
    assert result.outcome == ("unchanged" if visible else "published")
    assert result.snapshot_id == 1
    assert dict(result.row_counts) == {"t": 150}
    check_store(store, tmp_path / "scratch")
    outcomes = sorted(audits(store).values())
    undone = [] if visible or failpoint in UNARMED_AT else ["rolled_back"]
    assert outcomes == ["committed", "committed", *undone]
    assert first.operation_id in audits(store)
    staging = dataset.path.parent / ".snapshot-assets" / "orders" / "staging"
    assert not [path for path in staging.iterdir() if path.is_dir()]


def test_recovery_that_is_cut_short_anywhere_ends_the_same(tmp_path: Path) -> None:
    """The healing writer fails at each of its store calls in turn; the writer after it finishes the work."""
    dataset = Dataset("orders", "sqlite", tmp_path / "orders.sqlite")
    grow(dataset, 5)
    Publisher(SnapshotStore.open(str(tmp_path / "before"))).publish(dataset)
    grow(dataset, 5)
    dead = leave_a_dead_operation(SnapshotStore.open(str(tmp_path / "before")), dataset)
    cut = 1
    while True:
        shutil.copytree(tmp_path / "before", tmp_path / f"store-{cut}")
        plain = SnapshotStore.open(str(tmp_path / f"store-{cut}"))
        faults = FaultStore(plain.objects, Fault("before", nth=cut))
        with contextlib.suppress(StoreUnavailable, RecoveryRequired, WriterBusy):
            Publisher(SnapshotStore.over(faults, retry_for=0.0), lease_duration=1.0).publish(dataset)
        if not faults.fired:
            break
        Publisher(plain, wait=10.0).publish(dataset)
        check_store(plain, tmp_path / f"scratch-{cut}")
        assert audits(plain)[dead] == "rolled_back"
        assert plain.head("orders").snapshots[-1].row_count == 10
        cut += 1
    assert cut > 10


def leave_a_dead_operation(store: SnapshotStore, dataset: Dataset) -> str:
    """A publish that uploaded everything and died before its commit."""

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_BEFORE_COMMIT: die})).publish(dataset)
    [listed] = list(store.objects.list("recovery/orders/"))
    return listed.key.rpartition("/")[2].removesuffix(".json")


def test_a_writer_that_was_healed_away_can_no_longer_commit(
    store: SnapshotStore, dataset: Dataset, tmp_path: Path
) -> None:
    """It stalls before its commit, another writer takes its lease, heals and publishes; then it goes on."""
    from snapshot_assets.publish import lease

    def overtake() -> None:
        read = store.objects.read("leases/orders.json")
        content = json.loads(read.data)
        store.objects.write_if_match(
            "leases/orders.json", json.dumps(content | {"duration_ms": 0}).encode(), read.token
        )
        Publisher(store).publish(dataset)

    assert lease.this_holder().pid
    stalled = Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_BEFORE_COMMIT: overtake}))
    with pytest.raises(Superseded):
        stalled.publish(dataset)
    head = store.head("orders")
    assert [entry.snapshot_id for entry in head.snapshots] == [0]
    check_store(store, tmp_path / "scratch")
    assert sorted(audits(store).values()) == ["committed", "rolled_back"]


def test_a_writer_whose_dataset_was_recreated_can_no_longer_commit(store: SnapshotStore, dataset: Dataset) -> None:
    def recreate() -> None:
        fresh = new_incarnation_id()
        change_head(
            store,
            "orders",
            new_operation_id(),
            lambda head: replace(
                head,
                incarnation=fresh,
                generation=head.generation + 1,
                snapshots=(),
                schemas=(),
                current_snapshot_id=None,
            ),
            clock=SYSTEM_CLOCK,
        )

    with pytest.raises(IncarnationChanged):
        Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_BEFORE_COMMIT: recreate})).publish(dataset)
    Publisher(store).publish(dataset)
    assert sorted(audits(store).values()) == ["committed", "orphan_discarded"]


def test_a_base_that_retention_removed_meanwhile_makes_a_new_operation(
    store: SnapshotStore, dataset: Dataset, tmp_path: Path
) -> None:
    Publisher(store).publish(dataset)
    grow(dataset, 20)
    forgotten: list[bool] = []

    def forget_base() -> None:
        if forgotten:
            return
        forgotten.append(True)
        change_head(
            store,
            "orders",
            new_operation_id(),
            lambda head: replace(head, snapshots=(), schemas=(), current_snapshot_id=None),
            clock=SYSTEM_CLOCK,
        )

    result = Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_BEFORE_COMMIT: forget_base})).publish(dataset)
    assert result.snapshot_id == 1
    [entry] = store.head("orders").snapshots
    assert entry.reuses == ()
    grow(dataset, 1)
    Publisher(store).publish(dataset)
    assert "rolled_back" in audits(store).values()


def test_a_commit_whose_outcome_can_not_be_learned_says_so_and_names_its_operation(
    tmp_path: Path, dataset: Dataset
) -> None:
    plain = SnapshotStore.open(str(tmp_path / "store"))
    faults = FaultStore(plain.objects)
    store = SnapshotStore.over(faults, retry_for=0.2)

    def break_the_store() -> None:
        faults.arm(Fault("after", "write_if_match", head_key("orders")))
        faults.arm(Fault("before", "read", head_key("orders"), nth=2, times=1_000))

    publisher = Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_BEFORE_COMMIT: break_the_store}))
    with pytest.raises(RecoveryRequired) as caught:
        publisher.publish(dataset)
    assert "snapshot-assets show orders" in caught.value.hint
    assert caught.value.operation_id == plain.head("orders").snapshots[0].operation_id
    assert Publisher(plain).publish(dataset).outcome == "unchanged"
    check_store(plain, tmp_path / "scratch")


def test_a_head_that_can_still_change_is_never_called_unchanged(store: SnapshotStore, dataset: Dataset) -> None:
    """Every write of the head times out and every read answers: the last write may still be under way."""
    Publisher(store).publish(dataset)
    faults = FaultStore(store.objects, Fault("before", "write_if_match", head_key("orders"), times=1_000))
    broken = SnapshotStore.over(faults, retry_for=0.0)
    operation = new_operation_id()
    with pytest.raises(RecoveryRequired) as caught:
        change_head(broken, "orders", operation, lambda head: head, clock=SYSTEM_CLOCK, patience=0.3)
    assert caught.value.operation_id == operation


def test_a_read_back_that_is_denied_says_nothing_about_the_write(store: SnapshotStore, dataset: Dataset) -> None:
    Publisher(store).publish(dataset)
    faults = FaultStore(
        store.objects,
        Fault("after", "write_if_match", head_key("orders")),
        Fault("before", "read", head_key("orders"), nth=2, times=1_000, error=AccessDenied),
    )
    broken = SnapshotStore.over(faults, retry_for=0.0)
    with pytest.raises(RecoveryRequired):
        change_head(broken, "orders", new_operation_id(), lambda head: head, clock=SYSTEM_CLOCK)


class LateStore(FaultStore):
    """The answer to one replacement of the head comes only after many others have followed, and is lost."""

    meanwhile: Callable[[], None] | None = None

    def write_if_match(self, key: str, data: bytes, token: str) -> str:
        written = super().write_if_match(key, data, token)
        if self.meanwhile is not None and key == head_key("orders"):
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
            raise StoreUnavailable("the answer was lost")
        return written


def test_a_commit_that_landed_is_found_though_more_changes_followed_than_the_head_remembers(
    store: SnapshotStore, dataset: Dataset
) -> None:
    late = LateStore(store.objects)

    def change_often() -> None:
        for _ in range(20):
            change_head(store, "orders", new_operation_id(), lambda head: head, clock=SYSTEM_CLOCK)

    def arm() -> None:
        late.meanwhile = change_often

    publisher = Publisher(
        SnapshotStore.over(late, retry_for=0.0), failpoints=Failpoints({failpoints.PUBLISH_BEFORE_COMMIT: arm})
    )
    result = publisher.publish(dataset)
    assert (result.outcome, result.snapshot_id) == ("published", 0)
    head = store.head("orders")
    assert [entry.operation_id for entry in head.snapshots] == [result.operation_id]
    assert result.operation_id not in head.recent_operation_ids


@pytest.mark.parametrize("data", [b"", b"{", b'{"format_version": 2}', b'{"format_version": 1, "kind": "unheard of"}'])
def test_a_sidecar_that_can_not_be_understood_is_named_and_kept_and_writing_waits(
    store: SnapshotStore, dataset: Dataset, data: bytes
) -> None:
    Publisher(store).publish(dataset)
    key = sidecar_key("orders", new_operation_id())
    store.objects.write_if_absent(key, data)
    grow(dataset, 1)
    with pytest.raises(SidecarUnreadable, match=key):
        Publisher(store).publish(dataset)
    assert store.objects.read(key).data == data
    assert store.head("orders").current_snapshot_id == 0


def test_a_listing_that_fails_never_means_that_nothing_is_pending(tmp_path: Path, dataset: Dataset) -> None:
    plain = SnapshotStore.open(str(tmp_path / "store"))
    faults = FaultStore(plain.objects)
    store = SnapshotStore.over(faults, retry_for=0.0)
    faults.arm(Fault("before", "list", "recovery/orders/"))
    with pytest.raises(StoreUnavailable, match="can not be listed, so nothing was done"):
        Publisher(store).publish(dataset)
    assert plain.heads() == {}


def sidecar_of(kind: SidecarKind, head: Head, **changes: object) -> Sidecar:
    made = Sidecar(new_operation_id(), kind, head.dataset, head.incarnation, head.epoch, None, None, {}, 0)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_every_kind_of_sidecar_has_its_rows(store: SnapshotStore, dataset: Dataset) -> None:
    Publisher(store).publish(dataset)
    head = replace(store.head("orders"), epoch=3)
    now_ms = 1_000
    gone: dict[str, object] = {"removes": (77,), "keys": ("data/orders/x",), "epoch": 2}
    rows: dict[SidecarKind, list[tuple[dict[str, object], Head, Verdict]]] = {
        SidecarKind.PUBLISH: [
            ({"incarnation": new_incarnation_id()}, head, Verdict.ORPHANED),
            ({"operation_id": head.snapshots[0].operation_id}, head, Verdict.COMMITTED),
            ({"epoch": 2}, head, Verdict.UNDONE),
            ({}, head, Verdict.IN_PROGRESS),
        ],
        SidecarKind.CLEANUP: [
            ({"incarnation": new_incarnation_id()}, head, Verdict.ORPHANED),
            ({"removes": (0,), "epoch": 2}, head, Verdict.DISCARDED),
            ({"removes": (0,)}, head, Verdict.IN_PROGRESS),
            ({**gone, "not_before_ms": now_ms + 1}, head, Verdict.WAITING),
            ({**gone, "not_before_ms": now_ms + 1}, replace(head, status=Status.DROPPED), Verdict.FINISHING),
            ({**gone, "not_before_ms": now_ms}, head, Verdict.FINISHING),
            ({**gone, "removes": (), "epoch": 3, "not_before_ms": 0}, head, Verdict.FINISHING),
        ],
        SidecarKind.DROP: [
            ({"incarnation": new_incarnation_id()}, head, Verdict.ORPHANED),
            ({"epoch": 2}, replace(head, status=Status.SEALED), Verdict.IN_PROGRESS),
            ({"epoch": 2}, replace(head, status=Status.DROPPED), Verdict.FINISHING),
            ({"epoch": 2}, head, Verdict.DISCARDED),
        ],
    }
    assert rows.keys() == set(SidecarKind)
    for kind, of_kind in rows.items():
        for changes, found, verdict in of_kind:
            assert classify(sidecar_of(kind, head, **changes), found, now_ms) is verdict, (kind, changes)


def test_recovery_deletes_exactly_what_the_dead_operation_wrote(
    store: SnapshotStore, dataset: Dataset, tmp_path: Path
) -> None:
    Publisher(store).publish(dataset)
    grow(dataset, 10)
    dead = leave_a_dead_operation(store, dataset)
    head = store.head("orders")
    of_the_dead = data_prefix("orders", head.incarnation, dead)
    others = {listed.key for listed in store.objects.list("data/") if not listed.key.startswith(of_the_dead)}
    assert list(store.objects.list(of_the_dead))
    with Publisher(store).writing(dataset):
        pass
    assert {listed.key for listed in store.objects.list("data/")} == others
    assert audits(store)[dead] == "rolled_back"
    check_store(store, tmp_path / "scratch")


def _damaged(store: SnapshotStore) -> None:
    store.objects.write_if_absent(sidecar_key("orders", new_operation_id()), b"{")


def _newer(store: SnapshotStore) -> None:
    store.objects.write_if_absent(sidecar_key("orders", new_operation_id()), b'{"format_version": 2}')


def _change(store: SnapshotStore, **changes: object) -> None:
    change_head(
        store, "orders", new_operation_id(), lambda head: replace(head, **changes),  # type: ignore[arg-type]
        clock=SYSTEM_CLOCK,
    )  # fmt: skip


def _headless(store: SnapshotStore) -> None:
    sidecar = sidecar_of(SidecarKind.PUBLISH, store.head("orders"))
    store.objects.write_if_absent(sidecar_key("orders", sidecar.operation_id), sidecar.to_bytes())
    store.objects.delete([head_key("orders")])


def _leased(store: SnapshotStore) -> None:
    store.objects.delete(["leases/orders.json"])
    store.objects.write_if_absent("leases/orders.json", b"{")


@pytest.mark.parametrize(("prepare", "kind", "ways_out"), [
    (_damaged, SidecarUnreadable, ["Look at recovery/orders/", "snapshot-assets repair orders --force --confirm"]),
    (_newer, SidecarUnreadable, ["Upgrade", "snapshot-assets repair orders --force --confirm"]),
    (_headless, SidecarUnreadable, ["heads/orders.json from a backup"]),
    (_leased, DocumentDamaged, ["Delete leases/orders.json"]),
    (partial(_change, status=Status.SEALED), DatasetSealed,
     ["snapshot-assets unseal orders", "snapshot-assets drop orders --confirm"]),
    (partial(_change, status=Status.DROPPED), DatasetDropped, ["snapshot-assets recreate orders"]),
])  # fmt: skip
def test_what_stops_a_writer_names_the_way_out(
    store: SnapshotStore,
    tmp_path: Path,
    prepare: Callable[[SnapshotStore], None],
    kind: type[SnapshotAssetsError],
    ways_out: list[str],
) -> None:
    dataset = Dataset("orders", "sqlite", tmp_path / "orders.sqlite")
    grow(dataset, 5)
    Publisher(store).publish(dataset)
    prepare(store)
    before = {listed.key: listed.token for listed in store.objects.list("") if not listed.key.startswith("leases/")}
    grow(dataset, 5)
    with pytest.raises(kind) as caught:
        Publisher(store).publish(dataset)
    assert caught.value.dataset == "orders"
    for way_out in ways_out:
        assert way_out in caught.value.hint
    after = {listed.key: listed.token for listed in store.objects.list("") if not listed.key.startswith("leases/")}
    assert after == before
