"""Interleavings: whoever stalls at whichever store call while somebody else does all of his work, nothing is lost.

A subject is stopped before its n-th call of the store; another actor runs from beginning to end; then the subject goes
on with what it knew. The store is the same at the start of each cell: five snapshots, a publish that died before its
commit, and a cleanup that died before it deleted anything.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

from snapshot_assets import failpoints
from snapshot_assets.clock import SYSTEM_CLOCK
from snapshot_assets.errors import (
    DatasetDropped,
    DatasetSealed,
    IncarnationChanged,
    MaintenanceError,
    SnapshotAssetsError,
    Superseded,
    WriterBusy,
)
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.maintenance.cleanup import Cleaner
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.maintenance.retention import RetentionPolicy
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import MAX_SNAPSHOTS, Status
from snapshot_assets.publish.publisher import Publisher, PublishResult
from snapshot_assets.store.contract import Store
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Fault, FaultStore
from tests.maintenance.support import DAY, orders_in, pass_lease, publish_more
from tests.publish.support import check_store

STRIDE = 16
"""In the normal run, each actor comes at every sixteenth call of each subject, and each at other calls."""


REFUSED = (DatasetSealed, DatasetDropped, IncarnationChanged, Superseded, WriterBusy)
"""What a writer may be told when somebody else was faster."""


class CopiedStore(MemoryStore):
    """A store in memory that begins with the objects of another one."""

    def __init__(self, other: MemoryStore | None = None) -> None:
        super().__init__("cell")
        if other is not None:
            self._objects, self._writes = dict(other._objects), other._writes


class StallingStore(FaultStore):
    """A store at whose n-th call somebody else does his work before the call goes on."""

    def __init__(self, inner: Store, nth: int, meanwhile: Callable[[], None]) -> None:
        super().__init__(inner)
        self._nth = nth
        self._meanwhile = meanwhile
        self.stalled = False

    def _enter(self, operation: str, key: str) -> Fault | None:
        fault = super()._enter(operation, key)
        with self._lock:
            now = not self.stalled and len(self.calls) >= self._nth
            self.stalled = self.stalled or now
        if now:
            self._meanwhile()
        return fault


class Dies(BaseException):
    """The process of a subject ends."""


@dataclass
class World:
    """One cell: the store as everybody but the subject sees it, and what was acknowledged."""

    store: SnapshotStore
    mine: Dataset
    others: Dataset
    published: list[PublishResult] = field(default_factory=list, init=False)

    def publish(self, store: SnapshotStore, dataset: Dataset) -> None:
        change(dataset)
        self.published.append(Publisher(store).publish(dataset, force=True))


def change(dataset: Dataset) -> None:
    with closing(sqlite3.connect(dataset.path)) as connection, connection:
        connection.execute("insert into t (note) values (hex(randomblob(20)))")


def clean(store: SnapshotStore) -> None:
    for row in Maintenance(store).cleanup(keep=3, confirm=True, grace=0):
        assert row.error is None or isinstance(row.error, DatasetSealed), row.error


def sweep(store: SnapshotStore) -> None:
    """A cleanup for which everything is old."""
    policy = RetentionPolicy(keep=MAX_SNAPSHOTS)
    tomorrow = SYSTEM_CLOCK.now_ms() + 2 * DAY * 1000
    row = Cleaner(store, policy, [], now_ms=tomorrow, grace_ms=0, confirm=True, clock=SYSTEM_CLOCK).clean("orders")
    assert row.error is None or isinstance(row.error, DatasetSealed), row.error


def repair(store: SnapshotStore) -> None:
    for row in Maintenance(store).repair(confirm=True):
        assert row.error is None or isinstance(row.error, REFUSED), (row, row.error)


def drop_and_recreate(world: World, store: SnapshotStore) -> None:
    Maintenance(store).drop("orders", confirm=True)
    Maintenance(store).recreate("orders")
    world.publish(store, world.others)


def roll_back_and_publish(world: World, store: SnapshotStore) -> None:
    entries = store.head("orders").snapshots
    if entries:
        Maintenance(store).rollback("orders", entries[0].snapshot_id)
    world.publish(store, world.others)


def publish_collect_and_publish(world: World, store: SnapshotStore) -> None:
    world.publish(store, world.others)
    clean(store)
    sweep(store)
    world.publish(store, world.others)


def seal_and_unseal(store: SnapshotStore) -> None:
    Maintenance(store).seal("orders")
    Maintenance(store).unseal("orders")


ACTORS: dict[str, Callable[[World, SnapshotStore], None]] = {
    "publish": lambda world, store: world.publish(store, world.others),
    "rollback_publish": roll_back_and_publish,
    "cleanup": lambda _, store: clean(store),
    "sweep": lambda _, store: sweep(store),
    "drop_recreate_publish": drop_and_recreate,
    "repair": lambda _, store: repair(store),
    "seal_unseal": lambda _, store: seal_and_unseal(store),
    "publish_collect_publish": publish_collect_and_publish,
}

SUBJECTS: dict[str, Callable[[World, SnapshotStore], object]] = {
    "publish": lambda world, store: world.publish(store, world.mine),
    "rollback": lambda _, store: Maintenance(store).rollback("orders", 1),
    "cleanup": lambda _, store: clean(store),
    "sweep": lambda _, store: sweep(store),
    "drop": lambda _, store: Maintenance(store).drop("orders", confirm=True),
    "drop_recreate": drop_and_recreate,
    "repair": lambda _, store: repair(store),
}


def stop() -> NoReturn:
    raise RuntimeError("the process stops here")


@pytest.fixture(scope="module")
def beginning(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryStore, Path]:
    """Five snapshots, a dead publish and a dead cleanup; and the folder of the live database."""
    folder = tmp_path_factory.mktemp("beginning")
    objects = MemoryStore("beginning")
    store = SnapshotStore.over(objects, retry_for=0.0)
    dataset = orders_in(folder)
    publish_more(store, dataset, 6, rows=30)
    with pytest.raises(RuntimeError):
        Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_BEFORE_COMMIT: stop})).publish(dataset, force=True)
    with pytest.raises(RuntimeError):
        Maintenance(store, failpoints=Failpoints({failpoints.CLEANUP_AFTER_COMMIT: stop})).cleanup(
            keep=5, confirm=True, grace=0
        )
    assert len(list(objects.list("recovery/"))) == 2
    return objects, folder


@pytest.fixture
def worlds(beginning: tuple[MemoryStore, Path], tmp_path: Path) -> Callable[[], World]:
    """Makes a world of its own for each cell; the live databases are shared."""
    objects, folder = beginning
    live = []
    for name in ("mine", "others"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "orders.sqlite", tmp_path / name / "orders.sqlite")
        live.append(orders_in(tmp_path / name))

    def make() -> World:
        return World(SnapshotStore.over(CopiedStore(objects), retry_for=0.0), *live)

    return make


def stall(world: World, subject: str, actor: str, nth: int, *, goes_on: bool) -> bool:
    """Run a subject that stalls, or dies, before its n-th call; tell whether it had so many."""

    def meanwhile() -> None:
        pass_lease(world.store)  # that of whoever stalls has run out
        # Refused at a dataset that the subject has sealed or dropped, or that was never dropped: that is all it may be.
        with contextlib.suppress(*REFUSED, MaintenanceError):
            ACTORS[actor](world, world.store)
        pass_lease(world.store)
        if not goes_on:
            raise Dies

    stalling = StallingStore(world.store.objects, nth, meanwhile)
    with contextlib.suppress(*REFUSED, MaintenanceError, Dies):
        SUBJECTS[subject](world, SnapshotStore(stalling, read_only=False))
    return stalling.stalled


def check(world: World, scratch: Path) -> None:
    """Nothing that was acknowledged is lost, all that is listed restores, and nothing else is left at the end."""
    store = world.store
    maintenance = Maintenance(store)
    head = store.head("orders")
    listed = [entry.snapshot_id for entry in head.snapshots]
    for result in world.published:
        dropped = result.incarnation != head.incarnation or head.status is Status.DROPPED
        if not dropped and result.snapshot_id not in listed:
            # Only a cleanup took it, and a cleanup leaves three that are newer.
            assert sum(snapshot_id > result.snapshot_id for snapshot_id in listed) >= 3, (result, listed)
    for entry in head.snapshots:
        maintenance.verify("orders", entry.snapshot_id, "digest")
    if head.status is Status.SEALED:
        maintenance.unseal("orders")
    elif head.status is Status.DROPPED:
        maintenance.recreate("orders")
    pass_lease(store)
    Publisher(store).publish(world.others, force=True)
    sweep(store)
    check_store(store, scratch)
    assert not list(store.objects.list("quarantine/"))


def cells(
    subject: str, actor: str, worlds: Callable[[], World], tmp_path: Path, *, first: int, stride: int, goes_on: bool
) -> int:
    """Check every `stride`-th call of a subject; how many there were."""
    nth, checked = first, 0
    while True:
        world = worlds()
        try:
            if not stall(world, subject, actor, nth, goes_on=goes_on):
                return checked
            check(world, tmp_path / f"scratch-{nth}")
        except (AssertionError, SnapshotAssetsError, KeyError) as error:
            raise AssertionError(f"{subject} stalled before its call {nth} for {actor}: {error!r}") from error
        shutil.rmtree(tmp_path / f"scratch-{nth}")
        nth += stride
        checked += 1


@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_whoever_stalls_at_some_store_call_hurts_nobody(
    subject: str, actor: str, worlds: Callable[[], World], tmp_path: Path
) -> None:
    stride = 2 if subject == "rollback" else STRIDE  # it has few
    first = 1 + list(ACTORS).index(actor) % stride
    assert cells(subject, actor, worlds, tmp_path, first=first, stride=stride, goes_on=True) > 0


@pytest.mark.soak
@pytest.mark.parametrize("goes_on", [True, False], ids=["goes_on", "dies"])
@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_whoever_stalls_or_dies_at_any_store_call_hurts_nobody(
    subject: str, actor: str, worlds: Callable[[], World], tmp_path: Path, goes_on: bool
) -> None:
    assert cells(subject, actor, worlds, tmp_path, first=1, stride=1, goes_on=goes_on) > 1
