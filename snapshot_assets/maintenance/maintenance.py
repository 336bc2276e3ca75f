"""Rollback, pins and verification: changes of the head that move no data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from snapshot_assets.clock import SYSTEM_CLOCK, Clock, in_seconds
from snapshot_assets.errors import Conflict, MaintenanceError, SnapshotMissing, StoreError
from snapshot_assets.ids import OperationId, new_operation_id
from snapshot_assets.maintenance.verify import VerifyDepth, VerifyReport, verify_snapshot
from snapshot_assets.model.audit import AuditRow, Outcome, audit_key
from snapshot_assets.model.head import Head, Pin, SnapshotEntry
from snapshot_assets.publish.heads import change_head, refuse_inactive
from snapshot_assets.publish.lease import this_holder
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["Maintenance", "Undo"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Undo:
    """What a rollback replaced, and the way back.

    Attributes:
        dataset: what was rolled back.
        snapshot_id: the snapshot that is current now.
        replaced_snapshot_id: the one that was current before.
        generation: the generation that the rollback made.
    """

    dataset: str
    snapshot_id: int
    replaced_snapshot_id: int | None
    generation: int
    _back: Callable[[], Undo]

    def undo(self) -> Undo:
        """Make the replaced snapshot current again.

        Raises:
            Conflict: something else was published or rolled back since.
        """
        return self._back()

    def to_json(self) -> dict[str, Any]:
        """The handle as the command line prints it."""
        return {
            "dataset": self.dataset,
            "snapshot_id": self.snapshot_id,
            "replaced_snapshot_id": self.replaced_snapshot_id,
            "generation": self.generation,
        }


class Maintenance:
    """An operator's commands on one store. Each is one compare-and-swap of the head, with an audit row of its own.

    Args:
        store: what to operate on.
        clock: where time comes from.
    """

    def __init__(self, store: SnapshotStore, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._store = store
        self._clock = clock

    def rollback(self, name: str, to_snapshot_id: int) -> Undo:
        """Make a listed snapshot current. The generation rises, so every live reader follows.

        The objects of the snapshot are looked at first; the next publish takes a new id and builds on what is current.

        Raises:
            SnapshotMissing: the head lists no such snapshot.
            SnapshotDamaged: an object of it is missing.
            DatasetSealed, DatasetDropped: the dataset takes no changes.
        """
        return self._make_current(name, to_snapshot_id, expected_generation=None)

    def _make_current(self, name: str, snapshot_id: int, expected_generation: int | None) -> Undo:
        head = self._store.head(name)
        verify_snapshot(self._store, head, _listed(head, snapshot_id), "sizes")
        replaced: list[int | None] = []

        def move(now: Head) -> Head:
            refuse_inactive(now)
            _listed(now, snapshot_id)
            if now.incarnation != head.incarnation or expected_generation not in {None, now.generation}:
                raise Conflict(f"{name!r} has changed since; look at it before it is rolled back", dataset=name)
            replaced[:] = [now.current_snapshot_id]
            return replace(
                now,
                generation=now.generation + 1,
                current_snapshot_id=snapshot_id,
                current_since_ms=self._clock.now_ms(),
            )

        changed = self._change(name, "rollback", move)
        before = replaced[0]

        def back() -> Undo:
            if before is None:
                raise MaintenanceError(f"no snapshot of {name!r} was current before the rollback", dataset=name)
            return self._make_current(name, before, changed.generation)

        return Undo(name, snapshot_id, before, changed.generation, back)

    def pin(
        self,
        name: str,
        pin: str,
        snapshot_id: int,
        *,
        owner: str,
        reason: str = "",
        expires: timedelta | float | None = None,
    ) -> Pin:
        """Protect a snapshot from retention under the name `pin`; a pin of that name is replaced.

        Args:
            name: the dataset.
            pin: the pin's name.
            snapshot_id: what to protect.
            owner: who asks for it.
            reason: why.
            expires: for how long, as a duration or in seconds; without end when it is left out.

        Raises:
            SnapshotMissing: the head lists no such snapshot.
            DatasetSealed, DatasetDropped: the dataset takes no changes.
        """
        now_ms = self._clock.now_ms()
        until = None if expires is None else now_ms + round(in_seconds("expires", expires) * 1000)
        made = Pin(pin, snapshot_id, owner, reason, now_ms, until)

        def add(head: Head) -> Head:
            refuse_inactive(head)
            _listed(head, snapshot_id)
            return replace(head, pins=(*(kept for kept in head.pins if kept.name != pin), made))

        self._change(name, "pin", add)
        return made

    def unpin(self, name: str, pin: str) -> None:
        """Remove a pin.

        Raises:
            MaintenanceError: there is no pin of that name.
            DatasetSealed, DatasetDropped: the dataset takes no changes.
        """

        def remove(head: Head) -> Head:
            refuse_inactive(head)
            kept = tuple(other for other in head.pins if other.name != pin)
            if len(kept) == len(head.pins):
                raise MaintenanceError(f"{name!r} has no pin called {pin!r}", hint="List its pins.", dataset=name)
            return replace(head, pins=kept)

        self._change(name, "unpin", remove)

    def verify(self, name: str, snapshot_id: int | None = None, level: VerifyDepth = "digest") -> VerifyReport:
        """Check a snapshot, by default the current one, in the store.

        Args:
            name: the dataset.
            snapshot_id: which of its snapshots.
            level: `sizes` looks whether every object is there; `digest` reads and checks all of it; `restore` opens
                what was read with the engine, too.

        Raises:
            SnapshotMissing: the head lists no such snapshot, or none is current.
            SnapshotDamaged: an object is missing or has another digest.
            CorruptCapture: the engine refuses what was restored.
        """
        head = self._store.head(name)
        wanted = head.current_snapshot_id if snapshot_id is None else snapshot_id
        if wanted is None:
            raise SnapshotMissing(f"{name!r} has no current snapshot", hint="Publish it first.", dataset=name)
        return verify_snapshot(self._store, head, _listed(head, wanted), level)

    def _change(self, name: str, kind: str, decide: Callable[[Head], Head]) -> Head:
        operation = new_operation_id()
        head = change_head(self._store, name, operation, decide, clock=self._clock)
        self._audit(name, operation, kind)
        return head

    def _audit(self, name: str, operation: OperationId, kind: str) -> None:
        holder = this_holder()
        by = f"process {holder.pid} on {holder.host}"
        row = AuditRow(operation, kind, Outcome.COMMITTED, self._clock.now_ms(), by)
        try:
            self._store.objects.write_if_absent(audit_key(name, operation), row.to_bytes())
        except StoreError as error:
            _log.warning("%s of %s is done; its audit row could not be written: %s", kind, name, error)


def _listed(head: Head, snapshot_id: int) -> SnapshotEntry:
    entry = head.entry(snapshot_id)
    if entry is None:
        listed = ", ".join(str(entry.snapshot_id) for entry in head.snapshots) or "none"
        raise SnapshotMissing(
            f"{head.dataset!r} lists no snapshot {snapshot_id}; it lists {listed}", dataset=head.dataset
        )
    return entry
