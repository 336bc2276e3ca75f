"""Every operation of the matrix: the store that it starts from, what it does, and how one sees that it is done."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from snapshot_assets.engines.registry import engine_named
from snapshot_assets.errors import DatasetDropped, MaintenanceError, SidecarUnreadable, SnapshotAssetsError
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import Head, Status
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.provider import SnapshotProvider
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import FaultStore
from tests.faults.beginnings import (
    dead,
    dropped,
    empty,
    five,
    half_dropped,
    many,
    one,
    operate,
    pinned,
    rolled_back,
    sealed,
    two,
    waiting,
)
from tests.faults.scene import HOUR, LEASE_AND_MORE, NAME, Scene, add_orders


class NotedFailpoints(Failpoints):
    """Failpoints that note which were hit, and take what happens there at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.hits: list[str] = []
        self.actions: dict[str, Callable[[], None]] = {}

    def hit(self, name: str) -> None:
        self.hits.append(name)
        if name in self.actions:
            self.actions[name]()


@dataclass(slots=True)
class Cell:
    """One run of an operation: the store that it sees, and a folder of its own."""

    scene: Scene
    objects: FaultStore
    folder: Path
    retry_for: float = 0.0
    failpoints: NotedFailpoints = field(default_factory=NotedFailpoints)
    reader: SnapshotReader | None = None

    def store(self, *, read_only: bool = False) -> SnapshotStore:
        return SnapshotStore.over(self.objects, clock=self.scene.clock, retry_for=self.retry_for, read_only=read_only)

    def publisher(self, **settings: Any) -> Publisher:
        return Publisher(
            self.store(),
            **{"staging_dir": self.folder / "staging", "wait": LEASE_AND_MORE, **settings},
            clock=self.scene.clock,
            failpoints=self.failpoints,
        )

    def maintenance(self) -> Maintenance:
        return Maintenance(self.store(), clock=self.scene.clock, failpoints=self.failpoints)

    def open_reader(self) -> SnapshotReader:
        self.reader = SnapshotReader(
            self.store(read_only=True),
            self.folder / "data",
            ReaderSettings(refresh_interval=None, announce_interval=None),
            clock=self.scene.clock,
            failpoints=self.failpoints,
        )
        return self.reader

    def head(self) -> Head:
        return self.store(read_only=True).head(NAME)

    def has_current(self, rows: int) -> bool:
        """Whether the current snapshot has so many rows."""
        with contextlib.suppress(SnapshotAssetsError):
            current = self.head().current
            return current is not None and current.row_count == rows
        return False


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the matrix.

    Attributes:
        before: fills the store that it starts from.
        run: what is done, with the store that may fail.
        achieved: whether it is done.
        already: what a second run raises when the first one had been done.
        prepare: what has to be there before the first fault.
        is_atomic: whether an error, other than `RecoveryRequired`, means that nothing of it is visible.
        leaves_pending: whether it leaves something to be done later, also when nothing fails.
        engines: of which engines it has a row.
    """

    name: str
    before: Callable[[Scene, MemoryStore], None]
    run: Callable[[Cell], object]
    achieved: Callable[[Cell], bool]
    already: tuple[type[SnapshotAssetsError], ...] = ()
    prepare: Callable[[Cell], object] = field(default=lambda _cell: None)
    is_atomic: bool = False
    leaves_pending: bool = False
    engines: tuple[str, ...] = ("sqlite", "duckdb")


ALL_ENGINES: Final = ("sqlite", "duckdb", "turso", "cayenne", "lance")


# what is done


def _clean(cell: Cell, **settings: Any) -> object:
    [row] = cell.maintenance().cleanup([NAME], keep=3, **settings)
    if row.error is not None:
        raise row.error
    return row


def _lists(cell: Cell, *ids: int) -> bool:
    return [entry.snapshot_id for entry in cell.head().snapshots] == list(ids)


def _repair(cell: Cell) -> object:
    rows = cell.maintenance().repair(NAME, confirm=True)
    for row in rows:
        if row.error is not None:
            raise row.error
        if not row.done:
            raise SidecarUnreadable(f"{row.subject} was not settled: {row.found}")
    return rows


def _optimize(cell: Cell) -> object:
    done = cell.maintenance().optimize(
        Dataset(NAME, "sqlite", cell.folder / "orders.sqlite"), publisher=cell.publisher()
    )
    if done.publish is None:  # it was rewritten when the publish failed
        return cell.publisher().publish(Dataset(NAME, "sqlite", cell.folder / "orders.sqlite"))
    return done


def _bring_holes(cell: Cell) -> None:
    """A live database of its own, half of which is free."""
    shutil.copy(cell.scene.live(3).path, cell.folder / "orders.sqlite")
    dataset = Dataset(NAME, "sqlite", cell.folder / "orders.sqlite")
    add_orders(dataset, range(1_000, 3_000))
    with engine_named("sqlite").connect_live(dataset) as connection:
        connection.execute("delete from orders where id >= 1000")
        connection.commit()


def _follow(cell: Cell) -> SnapshotProvider:
    assert cell.reader is not None
    return cell.reader.follow(NAME)


def _serves(cell: Cell, rows: int) -> bool:
    """Whether a reader serves so many rows, every one of them right."""
    if cell.reader is None or NAME not in cell.reader.status():
        return False
    found = _follow(cell).query("select count(*), sum(id) from orders").to_pylist()[0]
    count, total = map(int, found.values())
    assert total == count * (count - 1) // 2
    return count == rows


def _start_reader(cell: Cell) -> None:
    """A reader that serves from its disk, snapshot 0 at first; the store is not asked."""
    if not (cell.folder / "data").exists():
        shutil.copytree(_served_folder(cell.scene), cell.folder / "data", symlinks=True)
    cell.open_reader().follow(NAME)
    assert _serves(cell, 100) or _serves(cell, 200)


def _served_folder(scene: Scene) -> Path:
    """The data folder of a reader that has ended, made the first time: it served snapshot 0 of `two`."""
    folder = scene.folder / "served"
    if not folder.exists():
        objects = scene.store("two", two)
        operate(scene, objects).rollback(NAME, 0)
        settings = ReaderSettings(refresh_interval=None, announce_interval=None)
        with SnapshotReader(SnapshotStore.over(objects, read_only=True), folder, settings) as reader:
            reader.follow(NAME)
        # It served it under the generation that snapshot 0 had at first.
        state = folder / NAME / "state.json"
        state.write_text(state.read_text().replace('"generation": 3', '"generation": 1'))
    return folder


OPERATIONS: Final = [
    Operation(
        "first publish", empty, lambda cell: cell.publisher().publish(cell.scene.live(1)),
        lambda cell: cell.has_current(100), is_atomic=True, engines=ALL_ENGINES,
    ),
    Operation(
        "second publish", one, lambda cell: cell.publisher().publish(cell.scene.live(2)),
        lambda cell: cell.has_current(200), is_atomic=True, engines=ALL_ENGINES,
    ),
    Operation(
        "publish that reads back", one,
        lambda cell: cell.publisher(verify="full", verify_upload="restore").publish(cell.scene.live(2)),
        lambda cell: cell.has_current(200), is_atomic=True,
    ),
    Operation(
        "publish that rewrites packs", many,
        lambda cell: cell.publisher().publish(
            Dataset(NAME, cell.scene.engine, cell.scene.folder / "often" / f"orders.{cell.scene.engine}")
        ),
        lambda cell: len(cell.head().snapshots) == 4, is_atomic=True, engines=("sqlite",),
    ),
    Operation(
        "unchanged publish", one, lambda cell: cell.publisher().publish(cell.scene.live(1)),
        lambda cell: cell.has_current(100) and len(cell.head().snapshots) == 1,
    ),
    Operation(
        "forced publish", one, lambda cell: cell.publisher().publish(cell.scene.live(1), force=True),
        lambda cell: (cell.head().current_snapshot_id or 0) > 0, is_atomic=True,
    ),
    Operation(
        "publish once more under its key", one,
        lambda cell: cell.publisher().publish(cell.scene.live(2), idempotency_key="monday"),
        lambda cell: cell.has_current(100) and len(cell.head().snapshots) == 1,
    ),
    Operation(
        "heal", dead, lambda cell: cell.publisher().publish(cell.scene.live(3)),
        lambda cell: cell.has_current(300),
    ),
    Operation(
        "publish that makes room", five, lambda cell: cell.publisher(max_snapshots=3).publish(cell.scene.live(3)),
        lambda cell: _lists(cell, 3, 4, 5), is_atomic=True,
    ),
    Operation(
        "rollback", two, lambda cell: cell.maintenance().rollback(NAME, 0), lambda cell: cell.has_current(100),
        is_atomic=True,
    ),
    Operation(
        "rollback of a rollback", rolled_back, lambda cell: cell.maintenance().rollback(NAME, 1),
        lambda cell: cell.has_current(200), is_atomic=True,
    ),
    Operation(
        "pin", two, lambda cell: cell.maintenance().pin(NAME, "audit", 0, owner="anna", expires=HOUR),
        lambda cell: [pin.name for pin in cell.head().pins] == ["audit"], is_atomic=True,
    ),
    Operation(
        "unpin", pinned, lambda cell: cell.maintenance().unpin(NAME, "audit"), lambda cell: not cell.head().pins,
        already=(MaintenanceError,), is_atomic=True,
    ),
    Operation(
        "cleanup without grace", five, lambda cell: _clean(cell, grace=0, confirm=True),
        lambda cell: _lists(cell, 2, 3, 4),
    ),
    Operation(
        "cleanup with grace", five, lambda cell: _clean(cell, grace=HOUR, confirm=True),
        lambda cell: _lists(cell, 2, 3, 4), leaves_pending=True,
    ),
    Operation(
        "cleanup that finishes", waiting, lambda cell: _clean(cell, confirm=True),
        lambda cell: _lists(cell, 2, 3, 4),
    ),
    Operation("plan of a cleanup", five, _clean, lambda cell: len(cell.head().snapshots) == 5),
    Operation(
        "seal", two, lambda cell: cell.maintenance().seal(NAME), lambda cell: cell.head().status is Status.SEALED,
        is_atomic=True,
    ),
    Operation(
        "unseal", sealed, lambda cell: cell.maintenance().unseal(NAME),
        lambda cell: cell.head().status is Status.ACTIVE, already=(MaintenanceError,), is_atomic=True,
    ),
    Operation(
        "drop", two, lambda cell: cell.maintenance().drop(NAME, confirm=True), lambda cell: _is_gone(cell),
        already=(DatasetDropped,),
    ),
    Operation(
        "drop that finishes", half_dropped, lambda cell: cell.maintenance().drop(NAME, confirm=True),
        lambda cell: _is_gone(cell), already=(DatasetDropped,),
    ),
    Operation(
        "recreate", dropped, lambda cell: cell.maintenance().recreate(NAME),
        lambda cell: cell.head().status is Status.ACTIVE and not cell.head().snapshots,
        already=(MaintenanceError,), is_atomic=True,
    ),
    Operation(
        "repair", dead, _repair,
        lambda cell: cell.has_current(200) and not list(cell.objects.list(f"recovery/{NAME}/")),
    ),
    Operation(
        "optimize", one, _optimize, lambda cell: cell.has_current(300), prepare=_bring_holes, engines=("sqlite",)
    ),
    Operation(
        "bootstrap", two, _follow, lambda cell: _serves(cell, 200), prepare=Cell.open_reader, is_atomic=True,
        engines=ALL_ENGINES,
    ),
    Operation(
        "refresh", two, lambda cell: cell.reader and cell.reader.refresh(NAME), lambda cell: _serves(cell, 200),
        prepare=_start_reader, is_atomic=True, engines=ALL_ENGINES,
    ),
    Operation(
        "look again", two, lambda cell: cell.reader and cell.reader.refresh(NAME), lambda cell: _serves(cell, 200),
        prepare=lambda cell: cell.open_reader().follow(NAME),
    ),
    Operation("verify", two, lambda cell: cell.maintenance().verify(NAME, level="digest"), lambda _cell: True),
    Operation("verify a restore", two, lambda cell: cell.maintenance().verify(NAME, 0, "restore"), lambda _cell: True),
]  # fmt: skip


def _is_gone(cell: Cell) -> bool:
    return cell.head().status is Status.DROPPED and not list(cell.objects.list(f"data/{NAME}/"))
