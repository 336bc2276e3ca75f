"""One cell: an operation meets one fault at one of its store calls; then somebody tries again, and all must be well."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from snapshot_assets.errors import NotFound, RecoveryRequired, SnapshotAssetsError
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.head import Head, Status
from snapshot_assets.model.lease import lease_key
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Call, Died, Fault, FaultKind, FaultStore
from tests.faults.operations import Cell, Operation
from tests.faults.scene import NAME, Scene
from tests.publish.support import check_store

READS: Final[tuple[FaultKind, ...]] = ("before", "hang", "die_before", "short", "corrupt")
LISTS: Final[tuple[FaultKind, ...]] = ("before", "hang", "die_before")
WRITES: Final[tuple[FaultKind, ...]] = ("before", "after", "hang", "late", "die_before", "die_after")

_MARGIN_MS: Final = 25 * 3600 * 1000
_HANG_SECONDS: Final = 100.0
_ULID: Final = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")


@dataclass(frozen=True, slots=True)
class Place:
    """One call of an operation: the how manieth of its kind. `key` is a pattern, with any id for every id."""

    operation: str
    key: str
    nth: int

    @property
    def faults(self) -> tuple[FaultKind, ...]:
        """What can go wrong there."""
        if self.operation == "list":
            return LISTS
        return READS if self.operation.startswith("read") else WRITES


def kind_of(call: Call) -> tuple[str, str]:
    """The kind of a call: its method, and the first of its keys with a pattern for each id in it."""
    return call.operation, _ULID.sub("?" * 26, call.key.split(" ")[0])


def places_of(calls: list[Call]) -> list[Place]:
    """Where each call stands among those of its kind."""
    seen: dict[tuple[str, str], int] = {}
    places = []
    for call in calls:
        kind = kind_of(call)
        seen[kind] = seen.get(kind, 0) + 1
        places.append(Place(*kind, seen[kind]))
    return places


_numbers: Final = itertools.count()


@contextlib.contextmanager
def a_cell(operation: Operation, scene: Scene, *, retry_for: float = 0.0) -> Iterator[tuple[Cell, MemoryStore]]:
    """A cell that is prepared, on a store of its own that does not fail yet, and that store."""
    inner = scene.store(operation.before.__name__, operation.before)
    folder = scene.fresh_folder(f"cell-{next(_numbers)}")
    cell = Cell(scene, FaultStore(inner, sleep=scene.clock.advance), folder, retry_for)
    try:
        operation.prepare(cell)
        cell.objects.calls.clear()
        cell.failpoints.hits.clear()
        yield cell, inner
    finally:
        if cell.reader is not None:
            cell.reader.close()
    shutil.rmtree(folder)


def record(operation: Operation, scene: Scene) -> tuple[list[Place], list[str]]:
    """The places of an operation that meets no fault, and the failpoints that it passes."""
    with a_cell(operation, scene) as (cell, inner):
        before = head_in(inner)
        operation.run(cell)
        hits = list(cell.failpoints.hits)
        calls = list(cell.objects.calls)
        assert operation.achieved(cell), "it was not done, though nothing failed"
        assert operation.leaves_pending == bool(list(inner.list(f"recovery/{NAME}/")))
        _check_all(operation, cell, inner, before)
    return places_of(calls), hits


def play(operation: Operation, scene: Scene, place: Place, kind: FaultKind) -> None:
    """Run an operation into a fault, and again without one; raise when anything is lost, left, or wrong."""
    with a_cell(operation, scene) as (cell, inner):
        before = head_in(inner)
        cell.objects.arm(Fault(kind, place.operation, place.key, nth=place.nth, seconds=_hang(kind)))
        ended: BaseException | None = None
        try:
            operation.run(cell)
        except (SnapshotAssetsError, Died) as error:
            ended = error
        assert len(cell.objects.fired) == 1, "the fault did not fire"
        assert isinstance(ended, Died) == kind.startswith("die")
        check_after(operation, cell, inner, before, ended)


def play_blink(operation: Operation, scene: Scene, place: Place, kind: FaultKind) -> None:
    """Run an operation on a store that fails once and is asked again: nobody may notice."""
    with a_cell(operation, scene, retry_for=30.0) as (cell, inner):
        before = head_in(inner)
        cell.objects.arm(Fault(kind, place.operation, place.key, nth=place.nth))
        operation.run(cell)
        assert len(cell.objects.fired) == 1, "the fault did not fire"
        check_after(operation, cell, inner, before, None)


def play_death(operation: Operation, scene: Scene, failpoint: str, nth: int) -> None:
    """Let an operation die when it passes a failpoint for the n-th time, and do it again."""
    with a_cell(operation, scene) as (cell, inner):
        before = head_in(inner)
        passed = 0

        def die() -> None:
            nonlocal passed
            passed += 1
            if passed == nth:
                cell.objects.is_dead = True
                raise Died(failpoint)

        cell.failpoints.actions[failpoint] = die
        try:
            operation.run(cell)
            raise AssertionError("the failpoint was not passed")
        except Died as death:
            check_after(operation, cell, inner, before, death)


def _hang(kind: FaultKind) -> float:
    return _HANG_SECONDS if kind == "hang" else 0.0


def check_after(
    operation: Operation, cell: Cell, inner: MemoryStore, before: Head | None, ended: BaseException | None
) -> None:
    """What holds once the operation has met its fault, and after it was done again."""
    faulty, clear = cell.objects, FaultStore(inner)
    faulty.disarm()
    faulty.land()
    cell.failpoints.actions.clear()
    cell.objects, cell.retry_for = clear, 30.0
    if ended is None:
        assert operation.achieved(cell), "it was acknowledged, and is not done"
    else:
        told = not isinstance(ended, RecoveryRequired | Died)
        if operation.is_atomic and told:
            assert not operation.achieved(cell), f"it is done, though it said: {ended}"
        faulty.is_dead = False
        if cell.reader is not None:
            # Its store is the one that failed before.
            _still_serves(cell)
        pass_on_the_lease(cell)
        try:
            operation.run(cell)
        except operation.already:
            pass
        assert operation.achieved(cell), "it was done again, and is not done"
    _check_all(operation, cell, inner, before)


def _still_serves(cell: Cell) -> None:
    assert cell.reader is not None
    for status in cell.reader.status().values():
        if status.current is not None:
            with cell.reader.follow(NAME).connect() as connection:
                assert connection is not None


def pass_on_the_lease(cell: Cell) -> None:
    """What the end of a lease comes to, without the wait for it."""
    cell.objects.delete([lease_key(NAME)])


def head_in(objects: MemoryStore) -> Head | None:
    try:
        return SnapshotStore(objects, read_only=True).head(NAME)
    except NotFound:
        return None


def _check_all(operation: Operation, cell: Cell, inner: MemoryStore, before: Head | None) -> None:
    """Settle what may rightly be pending, twice, and check every invariant."""
    store = SnapshotStore(inner, read_only=False)
    known = cell.scene.known(inner)
    _age(inner)
    cell.scene.clock.advance(2 * 3600.0)
    pass_on_the_lease(cell)
    first = _settle(cell, store)
    assert first == _settle(cell, store), "a second recovery changes what the first one left"
    after = store.head(NAME)
    check_store(store, cell.folder / "restored", known=known)
    _check_progress(before, after)
    staging = cell.folder / "staging" / NAME / "staging"
    assert not staging.exists() or not [path for path in staging.iterdir() if path.is_dir()]
    assert not list((cell.folder / "data").glob("orders/.building-*"))


def _age(objects: MemoryStore) -> None:
    """Make every object older than a cleanup's margin, so that what nothing explains goes."""
    objects._objects = {
        key: replace(one, written_ms=one.written_ms - _MARGIN_MS) for key, one in objects._objects.items()
    }


def _settle(cell: Cell, store: SnapshotStore) -> set[str]:
    maintenance = Maintenance(store, clock=cell.scene.clock)
    for row in maintenance.repair(NAME, confirm=True):
        assert row.error is None, row.error
    # What a repair puts up for deletion has its grace.
    cell.scene.clock.advance(2 * 3600.0)
    if store.head(NAME).status is Status.ACTIVE:
        [cleaned] = maintenance.cleanup([NAME], keep=100, grace=0, confirm=True)
        assert cleaned.error is None, cleaned.error
    pass_on_the_lease(cell)
    return {listed.key for listed in store.objects.list("") if not listed.key.startswith("leases/")}


def _check_progress(before: Head | None, after: Head) -> None:
    """Nothing of a head goes back, and no id stands for two things."""
    ids = [entry.snapshot_id for entry in after.snapshots]
    assert ids == sorted(set(ids))
    if before is None:
        return
    assert after.revision >= before.revision
    assert after.generation >= before.generation
    assert after.epoch >= before.epoch
    if after.incarnation == before.incarnation:
        assert after.next_snapshot_id >= before.next_snapshot_id
        for entry in before.snapshots:
            kept = after.entry(entry.snapshot_id)
            assert kept is None or kept.operation_id == entry.operation_id
