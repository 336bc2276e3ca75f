"""A dataset as a plain model sees it: what is published, what is listed, and what readers may show."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.errors import (
    DatasetDropped,
    DatasetSealed,
    NotFound,
    NotLoaded,
    SchemaChangeRefused,
    SnapshotAssetsError,
)
from snapshot_assets.failpoints import NO_FAILPOINTS, Failpoints
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.maintenance.rollback import Undo
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import Head, SnapshotEntry, Status
from snapshot_assets.publish.publisher import Publisher, PublishResult
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.store.contract import Store
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Died, Fault, FaultStore
from tests.faults.scene import HOUR, LEASE_AND_MORE, NAME, HeldClock, copying_in_this_process

KEEP: Final = 3

Content = tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]
"""The columns of the table, and its rows in the order of ids."""


class Stalled:
    """A publish in a thread of its own that waits at a failpoint until it may go on."""

    def __init__(self, publisher: Callable[[Failpoints], Publisher], dataset: Dataset, place: str) -> None:
        self.result: PublishResult | None = None
        self.error: BaseException | None = None
        self.is_over = False
        self._reached = threading.Event()
        self._go_on = threading.Event()
        self._publisher = publisher(Failpoints({place: self._wait}))
        self._dataset = dataset
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._reached.wait(30)

    def _wait(self) -> None:
        self._reached.set()
        assert self._go_on.wait(60)

    def _run(self) -> None:
        try:
            self.result = self._publisher.publish(self._dataset, force=True, allow_schema_change=True)
        except SnapshotAssetsError as error:
            self.error = error
        finally:
            self.is_over = True
            self._reached.set()

    def go_on(self) -> None:
        self._go_on.set()
        self._thread.join(60)
        assert self.is_over


class Model(RuleBasedStateMachine):
    """What must be true, in plain Python, and the means to bring a dataset about."""

    def make_store(self) -> Store:
        """A fresh store underneath."""
        raise NotImplementedError

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.exits = contextlib.ExitStack()
        self.folder = Path(
            self.exits.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        )
        self.exits.enter_context(copying_in_this_process())
        self.clock = HeldClock()
        self.objects = self.make_store()
        self.store = SnapshotStore.over(self.objects, clock=self.clock)
        self.dataset = Dataset(NAME, "sqlite", self.folder / "live" / "orders.sqlite")
        self.dataset.path.parent.mkdir()
        self.names = 0
        # the model
        self.columns: tuple[str, ...] = ("id", "note")
        self.rows: dict[int, dict[str, str]] = {}
        self.contents: dict[tuple[str, int], Content] = {}
        self.listed: dict[int, str] = {}
        self.used: set[tuple[str, int]] = set()
        self.current: dict[int, tuple[str, int] | None] = {}
        self.keys: dict[str, tuple[str, int]] = {}
        self.pins: dict[str, tuple[int, float]] = {}
        self.before: Head | None = None
        self.undo: Undo | None = None
        self.stalled: tuple[Stalled, Content] | None = None
        self.readers: dict[str, tuple[SnapshotReader, FaultStore]] = {}
        self.seen: dict[str, int] = {}
        self.backup: Store | None = None
        self._execute("create table orders (id integer primary key, note text)")
        self.append(5)

    # what the model is told, and what it checks

    def live_content(self) -> Content:
        rows = ((number, *(values.get(name) for name in self.columns[1:])) for number, values in self.rows.items())
        return self.columns, tuple(sorted(rows))

    def head(self) -> Head | None:
        try:
            return self.store.head(NAME)
        except NotFound:
            return None

    def sync(self, *, may_leave: set[int] | None = None, published: Content | None = None) -> Head | None:
        """Take over what the head says, after checking that it may say so.

        Args:
            may_leave: the snapshots that may have left the list.
            published: what a new snapshot, if there is one, must hold; one that was published without an answer too.
        """
        head = self.head()
        if head is None:
            assert self.before is None
            return None
        old = self.before
        if old is not None:
            assert head.revision >= old.revision
            assert head.epoch >= old.epoch
            assert head.generation >= old.generation
            if (head.current_snapshot_id, head.incarnation) != (old.current_snapshot_id, old.incarnation):
                assert head.generation > old.generation
            if head.incarnation != old.incarnation:
                assert old.status is Status.DROPPED
                self.listed, self.pins = {}, {}
        now = {entry.snapshot_id: str(entry.operation_id) for entry in head.snapshots}
        assert set(self.listed) - set(now) <= (may_leave or set())
        for snapshot_id, operation in now.items():
            if snapshot_id in self.listed:
                assert self.listed[snapshot_id] == operation
                continue
            name = (head.incarnation, snapshot_id)
            assert name not in self.used, "an id stands for two snapshots"
            assert published is not None, "a snapshot came from nowhere"
            self.used.add(name)
            self.contents[name] = published
            self.restores(head, head.entry(snapshot_id))
        self.listed = now
        self.pins = {name: pin for name, pin in self.pins.items() if pin[0] in now}
        shown = None if head.current_snapshot_id is None else (str(head.incarnation), head.current_snapshot_id)
        assert self.current.setdefault(head.generation, shown) == shown, "one generation, two states"
        self.before = head
        return head

    def restores(self, head: Head, entry: SnapshotEntry | None) -> None:
        """A snapshot of the store holds, restored, what the model says."""
        assert entry is not None
        folder = self.folder / "restored"
        shutil.rmtree(folder, ignore_errors=True)
        content = read_content(self.objects, NAME, head.incarnation, entry.operation_id, entry.manifest_digest)
        restore_files(self.objects, content, folder)
        [file] = content.manifest.files
        with closing(sqlite3.connect(folder / file.path)) as connection:
            found = connection.execute("select * from orders order by id")
            columns = tuple(column[0] for column in found.description)
            assert (columns, tuple(found)) == self.contents[head.incarnation, entry.snapshot_id]

    @invariant()
    def readers_show_what_was_current(self) -> None:
        for name, (reader, _) in getattr(self, "readers", {}).items():
            try:
                served = reader.follow(NAME).current
            except NotLoaded:
                assert name not in self.seen
                continue
            shown = (served.incarnation, served.snapshot_id)
            assert self.current[served.generation] == shown
            assert served.generation >= self.seen.get(name, 0)
            self.seen[name] = served.generation
            table = reader.follow(NAME).query("select * from orders order by id")
            rows = tuple(tuple(row.values()) for row in table.to_pylist())
            assert (tuple(table.column_names), rows) == self.contents[shown]

    def teardown(self) -> None:
        if not hasattr(self, "exits"):
            return
        try:
            if self.stalled is not None:
                self.resume()
            head = self.sync()
            if head is not None:
                for entry in head.snapshots:
                    self.restores(head, entry)
            self.settles()
        finally:
            for reader, _ in self.readers.values():
                reader.close()
            self.exits.close()

    def settles(self) -> None:
        """In the end the next writer and the next cleanup find their way, and nothing is left in progress."""
        head = self.before
        if head is None:
            return
        if head.status is Status.SEALED:
            self.operator().unseal(NAME)
        if head.status is Status.DROPPED:
            self.operator().recreate(NAME)
        self.publisher().publish(self.dataset, allow_schema_change=True)
        self.clock.advance(2 * HOUR)
        self.publisher().publish(self.dataset)
        assert not list(self.objects.list(f"recovery/{NAME}/"))

    # what every run begins and ends with

    @rule(count=st.integers(1, 30))
    def append(self, count: int) -> None:
        first = max(self.rows, default=-1) + 1
        for number in range(first, first + count):
            note = f"note {number} {self.chance.getrandbits(64):x}"
            self.rows[number] = {self.columns[1]: note}
            self._execute(f"insert into orders (id, {self.columns[1]}) values (?, ?)", (number, note))

    @precondition(lambda self: self.stalled is not None)
    @rule()
    def resume(self) -> None:
        assert self.stalled is not None
        (stalled, content), self.stalled = self.stalled, None
        stalled.go_on()
        head = self.sync(published=content)
        if stalled.result is not None:
            name = (stalled.result.incarnation, stalled.result.snapshot_id)
            assert self.contents[name] == content, "it was acknowledged, and holds something else"
        else:
            assert stalled.error is not None
            assert head is not None

    # means

    def publisher(self, points: Failpoints = NO_FAILPOINTS, store: SnapshotStore | None = None) -> Publisher:
        return Publisher(
            store or self.store,
            staging_dir=self.folder / "staging",
            wait=LEASE_AND_MORE,
            clock=self.clock,
            failpoints=points,
        )

    def operator(self, points: Failpoints = NO_FAILPOINTS, store: SnapshotStore | None = None) -> Maintenance:
        return Maintenance(store or self.store, clock=self.clock, failpoints=points)

    def refused_as(self, *, allow: bool) -> type[SnapshotAssetsError] | None:
        """What a publish must be told now, if it can not be done."""
        head = self.before
        if head is None:
            return None
        if head.status is not Status.ACTIVE:
            return DatasetSealed if head.status is Status.SEALED else DatasetDropped
        if head.current is None or allow:
            return None
        known = self.contents[head.incarnation, head.current.snapshot_id][0]
        return None if set(known) <= set(self.columns) else SchemaChangeRefused

    def published(self, *, key: str | None = None, force: bool = False, allow: bool = False) -> PublishResult | None:
        refusal = self.refused_as(allow=allow)
        content = self.live_content()
        try:
            result = self.publisher().publish(self.dataset, idempotency_key=key, force=force, allow_schema_change=allow)
        except SnapshotAssetsError as error:
            if type(error) is not refusal:
                raise
            self.sync()
            return None
        known = None if key is None else self.keys.get(key)
        if known is None:
            assert refusal is None
        before = self.before
        head = self.sync(published=content)
        assert head is not None
        name = (result.incarnation, result.snapshot_id)
        if result.outcome == "already_published":
            assert known == name
            return result
        assert (head.incarnation, head.current_snapshot_id) == name
        assert self.contents[name] == content
        if result.outcome == "unchanged":
            assert not force
            assert before is not None
            assert (before.generation, before.current_snapshot_id) == (head.generation, head.current_snapshot_id)
        if key is not None and result.outcome == "published":
            self.keys[key] = name
        return result

    @contextlib.contextmanager
    def mortal(self, place: str | None, nth: int) -> Iterator[tuple[SnapshotStore, Failpoints]]:
        """A store and failpoints for somebody who dies at a failpoint, or else at the n-th store call."""
        faults = FaultStore(self.objects)

        def die() -> None:
            faults.is_dead = True
            raise Died

        store = SnapshotStore.over(faults, clock=self.clock)
        if place is None:
            faults.arm(Fault(self.chance.choice(["die_before", "die_after"]), nth=nth))
        with contextlib.suppress(Died, SnapshotAssetsError):
            yield store, Failpoints({} if place is None else {place: die})

    def _execute(self, sql: str, parameters: Any = ()) -> None:
        with closing(sqlite3.connect(self.dataset.path)) as connection, connection:
            connection.execute(sql, parameters)

    def _is(self, *statuses: Status) -> bool:
        return self.before is not None and self.before.status in statuses

    def _protected(self) -> set[int]:
        """What a cleanup must not take now."""
        head = self.before
        assert head is not None
        kept = set(sorted(self.listed)[-KEEP:]) | {
            pin[0] for pin in self.pins.values() if pin[1] > self.clock.monotonic()
        }
        return kept if head.current_snapshot_id is None else kept | {head.current_snapshot_id}
