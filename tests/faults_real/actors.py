"""What the processes of these tests do: each runs until it is done or killed, and writes down what came of it."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from snapshot_assets.clock import SYSTEM_CLOCK
from snapshot_assets.errors import SnapshotAssetsError
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.maintenance.cleanup import Cleaner
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.maintenance.retention import RetentionPolicy
from snapshot_assets.model.head import MAX_SNAPSHOTS
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.faults_real.place import NAME, Journal, Place, acknowledge, change, digest_of_rows

__all__ = ["KEEP", "Actor", "Part", "clean", "drop_and_recreate", "read", "roll_back", "serve", "sweep", "write"]

KEEP = 3
"""What every cleanup of these tests keeps at least."""

_TWO_DAYS_MS = 2 * 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Part:
    """How one actor plays.

    Args:
        actor: its name; its journal and its data folder bear it.
        live: which live database a writer writes.
        turns: after how many turns it ends; never, when it is left out.
        failpoint: where it sends itself a signal.
        call: before which call of the store it sends itself a signal: its number from 1, or its method and key.
        nth: at which hit of the failpoint.
        signal: which signal.
        wait: seconds that a writer waits for another one.
        retry_for: seconds for which a store that is unavailable is asked again.
        key: the idempotency key of a writer.
        pause: seconds between two turns.
        announces: whether a reader tells the store what it serves.
        must_load: whether a reader whose first load fails gives up.
        verify_upload: whether a writer restores what it uploaded before it commits.
    """

    actor: str
    live: str = "live"
    turns: int | None = None
    failpoint: str | None = None
    call: int | str | None = None
    nth: int = 1
    signal: int = signal.SIGKILL
    wait: float = 30.0
    retry_for: float = 30.0
    key: str | None = None
    pause: float = 0.0
    announces: bool = False
    must_load: bool = False
    verify_upload: bool = False


class Actor:
    """The surroundings of one part: its journal, its store, and the signal that it sends itself."""

    def __init__(self, place: Place, part: Part, *, read_only: bool = False) -> None:
        self.place = place
        self.part = part
        self.journal: Journal = place.journal(part.actor)
        self._hits = 0
        self._has_stopped = False
        self.failpoints = Failpoints({} if part.failpoint is None else {part.failpoint: self._hit})
        self._objects = place.watched(self.journal, self._at_call)
        self.store = SnapshotStore.over(self._objects, read_only=read_only, retry_for=part.retry_for)
        self.journal.write("ready")

    def _hit(self) -> None:
        self._hits += 1
        if self._hits == self.part.nth:
            self._stop()

    def _at_call(self, number: int, what: str) -> None:
        if self.part.call in {number, what} and not self._has_stopped:
            self._stop()

    def _stop(self) -> None:
        self._has_stopped = True
        self.journal.write("signal", signal=self.part.signal, at_failpoint=self.part.failpoint, at_call=self.part.call)
        with self._objects.alone:
            os.kill(os.getpid(), self.part.signal)

    def play(self, turn: Callable[[], None]) -> None:
        """Take turns until it is told to stop. A typed error is written down; any other one ends the process."""
        for _ in count() if self.part.turns is None else range(self.part.turns):
            if self.place.is_over():
                return
            try:
                turn()
            except SnapshotAssetsError as error:
                self.refused(error)
            except BaseException:
                self.journal.write("failed", error=traceback.format_exc())
                raise
            time.sleep(self.part.pause)

    def refused(self, error: SnapshotAssetsError) -> None:
        self.journal.write("refused", error=error.kind, message=f"{error} {traceback.format_exc()[-3000:]}")


def write(place: Place, part: Part) -> None:
    """Change the live database and publish it, again and again."""
    logging.disable()
    me = Actor(place, part)
    dataset = place.live(part.live)
    publisher = Publisher(
        me.store, lease_duration=1.0, wait=part.wait, max_snapshots=MAX_SNAPSHOTS, failpoints=me.failpoints,
        verify_upload="restore" if part.verify_upload else "sizes",
    )  # fmt: skip

    def turn() -> None:
        begun = time.monotonic()
        with publisher.writing(dataset, idempotency_key=part.key) as writing:
            if writing.already is None:
                with writing.connect() as live:
                    rows = change(live)
            else:
                rows = "unknown"
            me.journal.write("publishing", rows=rows)
            result = writing.publish(summary={"rows": rows})
        acknowledge(me.journal, result, rows, begun)

    me.play(turn)


def read(place: Place, part: Part) -> None:
    """Follow the dataset, and say what is served after each refresh."""
    logging.disable()
    me = Actor(place, part, read_only=True)
    settings = ReaderSettings(
        refresh_interval=None,
        on_bootstrap_failure="raise" if part.must_load else "warn",
        announce_interval=0.2 if part.announces else None,
    )
    with SnapshotReader(me.store, place.folder / part.actor, settings, failpoints=me.failpoints) as reader:
        provider = reader.follow(NAME)

        def turn() -> None:
            try:
                reader.refresh(NAME)
                is_fresh = True
            except SnapshotAssetsError as error:
                me.refused(error)
                is_fresh = False
            lease = provider.connect()
            with lease as connection:
                rows = digest_of_rows(connection.execute("select id, version, note from t order by id").fetchall())
                current = lease.current
            me.journal.write(
                "served",
                fresh=is_fresh,
                rows=rows,
                incarnation=current.incarnation,
                generation=current.generation,
                snapshot_id=current.snapshot_id,
            )

        me.play(turn)


def serve(place: Place, part: Part) -> None:
    """Be a reader node that looks for news all the time."""
    from snapshot_assets.serve.node import NodeSettings, ReaderNode

    logging.disable()
    me = Actor(place, part, read_only=True)
    node = NodeSettings(port=0, http_port=0, memory_limit="300MB", threads=1)
    settings = ReaderSettings(
        refresh_interval=0.1, on_bootstrap_failure="warn", announce_interval=None, catalog_config=node.catalog_config
    )
    with (
        SnapshotReader(me.store, place.folder / part.actor, settings, failpoints=me.failpoints) as reader,
        ReaderNode(reader, [NAME], node) as running,
    ):
        me.journal.write("node", flight=running.flight_url)
        while True:
            time.sleep(60)


def clean(place: Place, part: Part) -> None:
    """Remove what need not be kept, without any grace."""
    logging.disable()
    me = Actor(place, part)
    maintenance = Maintenance(me.store, failpoints=me.failpoints)

    def turn() -> None:
        for row in maintenance.cleanup([NAME], keep=KEEP, grace=0, confirm=True):
            if row.error is not None:
                raise row.error
            me.journal.write("cleaned", outcome=row.outcome, removes=list(row.removes), deleted=row.deleted_objects)

    me.play(turn)


def sweep(place: Place, part: Part) -> None:
    """Remove what nothing explains, as if all of it were two days old."""
    logging.disable()
    me = Actor(place, part)

    def turn() -> None:
        now_ms = SYSTEM_CLOCK.now_ms() + _TWO_DAYS_MS
        cleaner = Cleaner(
            me.store, RetentionPolicy(keep=MAX_SNAPSHOTS), [],
            now_ms=now_ms, grace_ms=0, confirm=True, clock=SYSTEM_CLOCK, failpoints=me.failpoints,
        )  # fmt: skip
        row = cleaner.clean(NAME)
        if row.error is not None:
            raise row.error
        me.journal.write("swept", outcome=row.outcome, orphans=row.orphans, deleted=row.deleted_objects)

    me.play(turn)


def drop_and_recreate(place: Place, part: Part) -> None:
    """Drop the dataset, and let its name live again."""
    logging.disable()
    me = Actor(place, part)
    maintenance = Maintenance(me.store, failpoints=me.failpoints)

    def turn() -> None:
        dropped = maintenance.drop(NAME, confirm=True, force=True)
        me.journal.write("dropped", incarnation=dropped.incarnation, deleted=dropped.deleted_objects)
        head = maintenance.recreate(NAME)
        me.journal.write("recreated", incarnation=head.incarnation, revision=head.revision)

    me.play(turn)


def roll_back(place: Place, part: Part) -> None:
    """Make some listed snapshot current, and pin one."""
    logging.disable()
    me = Actor(place, part)
    maintenance = Maintenance(me.store, failpoints=me.failpoints)

    def turn() -> None:
        listed: Any = [entry.snapshot_id for entry in me.store.head(NAME).snapshots]
        if not listed:
            return
        done = maintenance.rollback(NAME, random.choice(listed))
        me.journal.write("rolled_back", generation=done.generation, snapshot_id=done.snapshot_id)
        maintenance.pin(NAME, "mine", random.choice(listed), owner=part.actor)

    me.play(turn)
