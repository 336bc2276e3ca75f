"""Everything that people and processes can do to a dataset, in any order, against a model that fits on a page."""

from __future__ import annotations

import contextlib
from typing import Any, Final

import hypothesis.strategies as st
from hypothesis.stateful import precondition, rule

from snapshot_assets import failpoints
from snapshot_assets.errors import (
    Conflict,
    DatasetDropped,
    DatasetSealed,
    MaintenanceError,
    NotLoaded,
    SnapshotAssetsError,
    SnapshotInUse,
    SnapshotMissing,
    WriterBusy,
)
from snapshot_assets.model.announcement import Announced, Announcement, announcement_key
from snapshot_assets.model.head import Status
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.contract import Store
from snapshot_assets.store.local import LocalStore
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Died, Fault, FaultStore
from tests.faults.scene import HOUR, NAME
from tests.stateful.model import KEEP, Model, Stalled

PUBLISH_FAILPOINTS: Final = sorted(
    value for name, value in vars(failpoints).items() if name.startswith("PUBLISH_") and isinstance(value, str)
)
STALLS: Final = [
    failpoints.PUBLISH_AFTER_CAPTURE,
    failpoints.PUBLISH_AFTER_PLAN,
    failpoints.PUBLISH_AFTER_SIDECAR,
    failpoints.PUBLISH_DURING_EFFECTS,
    failpoints.PUBLISH_AFTER_EFFECTS,
    failpoints.PUBLISH_BEFORE_COMMIT,
    failpoints.PUBLISH_AFTER_COMMIT,
]
"""Where a writer has let go of the live database, so that others can go on."""

CLEANUP_FAILPOINTS: Final = [
    failpoints.CLEANUP_AFTER_PLAN,
    failpoints.CLEANUP_AFTER_SIDECAR,
    failpoints.CLEANUP_AFTER_COMMIT,
    failpoints.CLEANUP_AFTER_END,
]
DROP_FAILPOINTS: Final = [
    failpoints.DROP_AFTER_SEAL,
    failpoints.DROP_AFTER_SETTLED,
    failpoints.DROP_AFTER_SIDECAR,
    failpoints.DROP_AFTER_COMMIT,
    failpoints.DROP_AFTER_END,
]


class World(Model):
    """One dataset, its writers, operators and readers, and the clock of all of them."""

    # the live database

    @rule(part=st.integers(2, 5))
    def delete(self, part: int) -> None:
        self.rows = {number: values for number, values in self.rows.items() if number % part}
        self._execute(f"delete from orders where id % {part} = 0")

    @rule()
    def widen(self) -> None:
        self.names += 1
        self.columns += (f"extra_{self.names}",)
        self._execute(f"alter table orders add column {self.columns[-1]} text")

    @precondition(lambda self: len(self.columns) > 2)
    @rule()
    def rename_a_column(self) -> None:
        self.names += 1
        old, new = self.columns[-1], f"other_{self.names}"
        self.columns = (*self.columns[:-1], new)
        for values in self.rows.values():
            if old in values:
                values[new] = values.pop(old)
        self._execute(f"alter table orders rename column {old} to {new}")

    # writers

    @rule()
    def publish(self) -> None:
        self.published()

    @rule()
    def publish_twice(self) -> None:
        if self.published(allow=True) is not None:
            again = self.published()
            assert again is not None
            assert again.outcome == "unchanged"

    @rule()
    def publish_anyway(self) -> None:
        result = self.published(force=True)
        assert result is None or result.outcome == "published"

    @rule(key=st.sampled_from(["monday", "tuesday"]))
    def publish_under_a_key(self, key: str) -> None:
        known = self.keys.get(key)
        head = self.before
        listed = head is not None and known is not None and known[0] == head.incarnation and known[1] in self.listed
        if not listed:
            self.keys.pop(key, None)
        result = self.published(key=key, force=True)
        if listed and result is not None:
            assert result.outcome == "already_published"

    @rule()
    def publish_whatever_the_schema(self) -> None:
        self.published(allow=True)

    @rule(place=st.sampled_from(PUBLISH_FAILPOINTS))
    def a_writer_dies_at_a_failpoint(self, place: str) -> None:
        with self.mortal(place, 0) as (store, points):
            self.publisher(points, store).publish(self.dataset, force=True, allow_schema_change=True)
        self.sync(published=self.live_content())

    @rule(nth=st.integers(1, 20))
    def a_writer_dies_at_a_call(self, nth: int) -> None:
        with self.mortal(None, nth) as (store, _):
            self.publisher(store=store).publish(self.dataset, force=True, allow_schema_change=True)
        self.sync(published=self.live_content())

    @precondition(lambda self: self.stalled is None)
    @rule(place=st.sampled_from(STALLS))
    def stall(self, place: str) -> None:
        content = self.live_content()
        stalled = Stalled(self.publisher, self.dataset, place)
        if stalled.is_over:
            # Refused; or nothing was uploaded, since only an upload stalls in the midst of it.
            assert stalled.result or isinstance(stalled.error, DatasetSealed | DatasetDropped), stalled.error
        else:
            self.stalled = stalled, content
        self.sync(published=content)

    # operators

    @precondition(lambda self: self.before is not None)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        target = data.draw(st.sampled_from([*sorted(self.listed), 10_000]))
        try:
            self.undo = self.operator().rollback(NAME, target)
        except SnapshotMissing:
            assert target not in self.listed
        except (DatasetSealed, DatasetDropped):
            assert not self._is(Status.ACTIVE)
        head = self.sync()
        assert head is not None
        if self._is(Status.ACTIVE) and target in self.listed:
            assert head.current_snapshot_id == target

    @precondition(lambda self: self.undo is not None)
    @rule()
    def undo_a_rollback(self) -> None:
        assert self.undo is not None
        undo, self.undo = self.undo, None
        before = self.before
        assert before is not None
        try:
            undo.undo()
        except (Conflict, SnapshotMissing, DatasetSealed, DatasetDropped, MaintenanceError):
            self.sync()
            return
        head = self.sync()
        assert head is not None
        assert before.generation == undo.generation
        assert head.current_snapshot_id == undo.replaced_snapshot_id

    @precondition(lambda self: self._is(Status.ACTIVE) and self.listed)
    @rule(data=st.data(), name=st.sampled_from(["audit", "report"]), seconds=st.sampled_from([60.0, 10 * HOUR]))
    def pin(self, data: st.DataObject, name: str, seconds: float) -> None:
        target = data.draw(st.sampled_from(sorted(self.listed)))
        self.operator().pin(NAME, name, target, owner="anna", expires=seconds)
        self.pins[name] = (target, self.clock.monotonic() + seconds)
        self.sync()

    @precondition(lambda self: self._is(Status.ACTIVE))
    @rule(name=st.sampled_from(["audit", "report"]))
    def unpin(self, name: str) -> None:
        try:
            self.operator().unpin(NAME, name)
        except MaintenanceError:
            assert name not in self.pins
        self.pins.pop(name, None)
        head = self.sync()
        assert head is not None
        assert {pin.name for pin in head.pins} == set(self.pins)

    @rule(seconds=st.sampled_from([1.0, 61.0, HOUR, 24 * HOUR]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.before is not None)
    @rule()
    def plan_a_cleanup(self) -> None:
        [row] = self.operator().cleanup([NAME], keep=KEEP)
        if row.error is None:
            assert not set(row.removes) & self._protected()
        assert self.sync() == self.before

    @precondition(lambda self: self.before is not None)
    @rule(grace=st.sampled_from([0.0, HOUR]))
    def clean_up(self, grace: float) -> None:
        allowed = set(self.listed) - self._protected()
        [row] = self.operator().cleanup([NAME], keep=KEEP, grace=grace, confirm=True)
        if row.error is None:
            assert set(row.removes) <= allowed
            if self.stalled is None and not self.readers:
                # A pin ends by the store's own clock, which does not jump as this world's does.
                unpinned = allowed - {snapshot_id for snapshot_id, _ in self.pins.values()}
                assert unpinned <= set(row.removes) or list(self.objects.list(f"recovery/{NAME}/"))
        else:
            assert isinstance(row.error, DatasetSealed), row.error
        self.sync(may_leave=set(row.removes))

    @precondition(lambda self: self.before is not None)
    @rule(place=st.sampled_from(CLEANUP_FAILPOINTS))
    def a_cleaner_dies(self, place: str) -> None:
        allowed = set(self.listed) - self._protected()
        with self.mortal(place, 0) as (store, points):
            self.operator(points, store).cleanup([NAME], keep=KEEP, grace=0, confirm=True)
        self.sync(may_leave=allowed)

    @rule()
    def repair(self) -> None:
        for row in self.operator().repair(confirm=True):
            assert row.error is None or isinstance(row.error, WriterBusy), row.error
        self.sync()

    @precondition(lambda self: self.before is not None and self.chance.random() < 0.4)
    @rule()
    def seal(self) -> None:
        try:
            self.operator().seal(NAME)
        except DatasetDropped:
            assert self._is(Status.DROPPED)
        self.sync()
        assert not self._is(Status.ACTIVE)

    @precondition(lambda self: self._is(Status.SEALED))
    @rule()
    def unseal(self) -> None:
        self.operator().unseal(NAME)
        self.sync()
        assert self._is(Status.ACTIVE)

    @precondition(lambda self: self._is(Status.ACTIVE, Status.SEALED) and self.chance.random() < 0.4)
    @rule(force=st.booleans())
    def drop(self, force: bool) -> None:
        needed = bool(self.pins) or bool(list(self.objects.list("readers/")))
        try:
            self.operator().drop(NAME, confirm=True, force=force)
        except SnapshotInUse:
            assert needed
            assert not force
            self.sync()
            assert self._is(Status.SEALED)
            return
        self.sync(may_leave=set(self.listed))
        assert self._is(Status.DROPPED)
        assert not list(self.objects.list(f"data/{NAME}/")) or self.stalled is not None

    @precondition(lambda self: self._is(Status.ACTIVE, Status.SEALED) and self.chance.random() < 0.4)
    @rule(place=st.sampled_from(DROP_FAILPOINTS))
    def a_dropper_dies(self, place: str) -> None:
        with self.mortal(place, 0) as (store, points):
            self.operator(points, store).drop(NAME, confirm=True, force=True)
        self.sync(may_leave=set(self.listed))
        assert self._is(Status.SEALED, Status.DROPPED)
        assert bool(self.listed) == self._is(Status.SEALED) or not self.listed

    @precondition(lambda self: self._is(Status.DROPPED))
    @rule()
    def recreate(self) -> None:
        self.operator().recreate(NAME)
        head = self.sync()
        assert head is not None
        assert (head.status, head.current_snapshot_id, self.listed) == (Status.ACTIVE, None, {})

    # readers

    def _reader(self, name: str) -> tuple[SnapshotReader, FaultStore]:
        faults = FaultStore(self.objects)
        settings = ReaderSettings(
            refresh_interval=None, announce_interval=None, schema_policy="any", on_bootstrap_failure="warn"
        )
        store = SnapshotStore.over(faults, read_only=True, clock=self.clock, retry_for=0.0)
        reader = SnapshotReader(store, self.folder / name, settings, clock=self.clock)
        reader.follow(NAME)
        return reader, faults

    @rule(name=st.sampled_from(["reader_1", "reader_2"]))
    def start_a_reader(self, name: str) -> None:
        """Anew, where it was at work: what it showed last is the least that it shows now."""
        if name in self.readers:
            self.readers.pop(name)[0].close()
        self.readers[name] = self._reader(name)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def refresh(self, data: st.DataObject) -> None:
        reader, _ = self.readers[data.draw(st.sampled_from(sorted(self.readers)))]
        reader.refresh(NAME)
        head = self.before
        if head is not None and head.current_snapshot_id is not None:
            served = reader.follow(NAME).current
            assert (served.generation, served.snapshot_id) == (head.generation, head.current_snapshot_id)

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), kind=st.sampled_from(["before", "short", "corrupt", "die_before"]), nth=st.integers(1, 4))
    def a_refresh_fails(self, data: st.DataObject, kind: Any, nth: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.readers)))
        reader, faults = self.readers[name]
        faults.arm(Fault(kind, "read*", nth=nth))
        with contextlib.suppress(SnapshotAssetsError, Died):
            reader.refresh(NAME)
        faults.disarm()
        if faults.is_dead:
            faults.is_dead = False
            self.start_a_reader(name)

    @rule()
    def back_up_the_store(self) -> None:
        self.backup = twin_of(self.objects)

    @precondition(lambda self: self.backup is not None and self.readers)
    @rule(data=st.data())
    def a_reader_looks_at_a_store_that_went_back(self, data: st.DataObject) -> None:
        assert self.backup is not None
        reader, faults = self.readers[data.draw(st.sampled_from(sorted(self.readers)))]
        now, faults._inner = faults._inner, self.backup
        with contextlib.suppress(SnapshotAssetsError):
            reader.refresh(NAME)
        faults._inner = now

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def announce(self, data: st.DataObject) -> None:
        """A reader says what it serves, as it does by itself where it is told to."""
        name = data.draw(st.sampled_from(sorted(self.readers)))
        try:
            served = self.readers[name][0].follow(NAME).current
        except NotLoaded:
            return
        said = Announced("loaded", served.incarnation, served.generation, served.snapshot_id)
        announcement = Announcement(name, None, None, 300_000, self.clock.now_ms(), {NAME: said})
        self.objects.delete([announcement_key(name)])
        self.objects.write_if_absent(announcement_key(name), announcement.to_bytes())

    @rule()
    def readers_fall_silent(self) -> None:
        self.objects.delete([listed.key for listed in self.objects.list("readers/")])


def twin_of(objects: Store) -> MemoryStore:
    """What a store holds now, in memory."""
    twin = MemoryStore()
    for listed in objects.list(""):
        twin.write_if_absent(listed.key, objects.read(listed.key).data)
    return twin


class OnMemory(World):
    def make_store(self) -> Store:
        return MemoryStore()


class OnDisk(World):
    def make_store(self) -> Store:
        return LocalStore(self.folder / "store")
