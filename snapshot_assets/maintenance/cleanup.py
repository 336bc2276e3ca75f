"""Collection: snapshots that retention gives up leave the head, and after a grace their objects leave the store.

The order is what makes it safe. Objects are listed first, then the operations in progress, then the head is read: an
object that is explained by neither was written by nobody who is still at work. What shall go is written down in a
sidecar; the entries leave the head by compare-and-swap of the very revision that the plan was made on; the keys are
deleted after the grace, minus all that a listed snapshot needs by then. Writers check what they reuse in their own
compare-and-swap, so their safety rests on no clock; the grace is for readers that are still downloading.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from snapshot_assets.clock import Clock
from snapshot_assets.content.needed import Needed, needed_by
from snapshot_assets.errors import Conflict, DatasetSealed, SnapshotAssetsError, SnapshotDamaged
from snapshot_assets.failpoints import (
    CLEANUP_AFTER_COMMIT,
    CLEANUP_AFTER_END,
    CLEANUP_AFTER_PLAN,
    CLEANUP_AFTER_SIDECAR,
    NO_FAILPOINTS,
    Failpoints,
)
from snapshot_assets.ids import new_operation_id
from snapshot_assets.maintenance.readers import KnownReader, served_snapshots
from snapshot_assets.maintenance.retention import RetentionPlan, RetentionPolicy, protected_snapshots
from snapshot_assets.model.audit import Outcome, audit_prefix
from snapshot_assets.model.head import Head, Status
from snapshot_assets.model.manifest import data_prefix, dataset_prefix
from snapshot_assets.model.sidecar import Sidecar, SidecarKind, sidecar_key
from snapshot_assets.publish.heads import change_head
from snapshot_assets.publish.lease import this_holder
from snapshot_assets.publish.recovery import Verdict, classify, heal, pending_sidecars, retire, write_audit
from snapshot_assets.store.contract import Listed
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["Cleaner", "CleanupOutcome", "CleanupRow"]

_log = logging.getLogger(__name__)

CleanupOutcome = Literal["planned", "cleaned", "nothing_to_do", "failed"]
"""`planned`: what a confirmed run would do. `failed`: this dataset's error; nothing of it was removed by this run."""

_ATTEMPTS: Final = 5
_MOST_KEYS: Final = 200_000
_ORPHAN_MARGIN_MS: Final = 24 * 60 * 60 * 1000
_AUDIT_AGE_MS: Final = 90 * 24 * 60 * 60 * 1000


class _HeadMoved(Exception):
    """The head is another one than the plan was made on."""


@dataclass(frozen=True, slots=True)
class CleanupRow:
    """What a cleanup did, or would do, to one dataset.

    Attributes:
        removes: the snapshots that leave the head.
        protected: those that the policy would remove, and what keeps them.
        objects: how many objects were put up for deletion by this run, snapshots' and orphans' together.
        data_bytes: their size.
        orphans: how many of them no snapshot ever needed, or needs any more.
        not_before_ms: when they may be deleted; the next cleanup, or the next writer, then does it.
        deleted_objects: how many objects this run deleted, most of them put up by earlier runs.
        deleted_bytes: their size.
        error: why nothing was done.
    """

    dataset: str
    outcome: CleanupOutcome
    removes: tuple[int, ...] = ()
    protected: Mapping[int, str] = field(default_factory=dict)
    objects: int = 0
    data_bytes: int = 0
    orphans: int = 0
    not_before_ms: int | None = None
    deleted_objects: int = 0
    deleted_bytes: int = 0
    error: SnapshotAssetsError | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as the command line prints it."""
        return {
            "dataset": self.dataset,
            "outcome": self.outcome,
            "removes": list(self.removes),
            "protected": {str(snapshot_id): why for snapshot_id, why in self.protected.items()},
            "objects": self.objects,
            "data_bytes": self.data_bytes,
            "orphans": self.orphans,
            "not_before_ms": self.not_before_ms,
            "deleted_objects": self.deleted_objects,
            "deleted_bytes": self.deleted_bytes,
            "error": None if self.error is None else self.error.to_json(),
        }


@dataclass(frozen=True, slots=True)
class _Plan:
    """What was found, and what shall go."""

    head: Head
    retention: RetentionPlan
    doomed: tuple[Listed, ...]
    orphans: int


class Cleaner:
    """Cleans datasets of one store, one call a dataset; safe to use from several threads.

    Args:
        store: what to clean.
        policy: which snapshots go.
        readers: who announces what; snapshots that live readers serve are kept. An error where that is not known: no
            dataset is cleaned then.
        now_ms: the time by the store's own clock.
        grace_ms: how long objects stay after their snapshot has left the head.
        confirm: do it, rather than only plan it.
        clock: this process's clock, for the grace.
        failpoints: for tests.
    """

    def __init__(
        self,
        store: SnapshotStore,
        policy: RetentionPolicy,
        readers: list[KnownReader] | SnapshotAssetsError,
        *,
        now_ms: int,
        grace_ms: int,
        confirm: bool,
        clock: Clock,
        failpoints: Failpoints = NO_FAILPOINTS,
    ) -> None:
        self._store = store
        self._objects = store.objects
        self._policy = policy
        self._readers = readers
        self._now_ms = now_ms
        self._grace_ms = grace_ms
        self._confirm = confirm
        self._clock = clock
        self._failpoints = failpoints
        self._by = f"cleanup by {this_holder()}"

    def clean(self, dataset: str) -> CleanupRow:
        """Clean one dataset. Its failure is in the row, and reaches no other dataset."""
        try:
            for _ in range(_ATTEMPTS):
                try:
                    return self._clean(dataset)
                except _HeadMoved:
                    _log.info("%s: the head moved while its cleanup was planned; planning anew", dataset)
            raise Conflict(f"the head of {dataset!r} moved {_ATTEMPTS} times during its cleanup", dataset=dataset)
        except SnapshotAssetsError as error:
            return CleanupRow(dataset, "failed", error=error)

    def _clean(self, dataset: str) -> CleanupRow:
        # In this order: objects, operations in progress, head. See the module's description.
        listed = list(self._objects.list(dataset_prefix(dataset)))
        sidecars = pending_sidecars(self._objects, dataset)
        head = self._store.head(dataset)
        if head.status is Status.SEALED:
            raise DatasetSealed(f"{dataset!r} is sealed; it is cleaned when it is unsealed or dropped", dataset=dataset)
        deleted: list[Listed] = []
        if self._confirm:
            deleted = self._finish(head, sidecars, listed)
            self._forget_audits(dataset, sidecars)
        gone = {one.key for one in deleted}
        try:
            plan = self._plan(head, sidecars, [one for one in listed if one.key not in gone])
        except SnapshotDamaged:
            if self._store.head(dataset).revision != head.revision:
                raise _HeadMoved from None  # what is missing may have been collected by another cleanup
            raise
        self._failpoints.hit(CLEANUP_AFTER_PLAN)
        row = CleanupRow(
            dataset,
            "planned" if plan.retention.removes or plan.doomed else "nothing_to_do",
            removes=plan.retention.removes,
            protected=plan.retention.protected,
            objects=len(plan.doomed),
            data_bytes=sum(one.size for one in plan.doomed),
            orphans=plan.orphans,
            deleted_objects=len(deleted),
            deleted_bytes=sum(one.size for one in deleted),
        )
        if not self._confirm:
            return row
        if row.outcome == "planned":
            row = self._carry_out(plan, row)
        return replace(row, outcome="cleaned") if row.deleted_objects else row

    def _finish(self, head: Head, sidecars: Iterable[Sidecar], listed: list[Listed]) -> list[Listed]:
        """End earlier cleanups and drops whose time has come; what of the listed objects is gone now."""
        due = [
            sidecar
            for sidecar in sidecars
            if sidecar.kind is not SidecarKind.PUBLISH
            and classify(sidecar, head, self._clock.now_ms()) in {Verdict.FINISHING, Verdict.ORPHANED}
        ]
        if not due:
            return []
        heal(self._store, head, due, clock=self._clock, by=self._by)
        left = {one.key for one in self._objects.list(dataset_prefix(head.dataset))}
        return [one for one in listed if one.key not in left]

    def _plan(self, head: Head, sidecars: list[Sidecar], listed: list[Listed]) -> _Plan:
        if isinstance(self._readers, SnapshotAssetsError):
            raise self._readers
        served = served_snapshots(self._readers, head.dataset, head.incarnation)
        protected = protected_snapshots(head, sidecars, served, self._now_ms)
        retention = self._policy.plan(head, protected, self._now_ms)
        kept = head.without(retention.removes)
        needed = needed_by(self._objects, kept)
        released = self._needed_by_removed(head, retention.removes)
        at_work = {data_prefix(one.dataset, one.incarnation, one.operation_id) for one in sidecars}
        marked = {key for one in sidecars for key in one.keys or ()}
        doomed, orphans = [], 0
        for one in listed:
            if one.key in needed or one.key in marked or one.key.rpartition("/")[0] + "/" in at_work:
                continue
            is_released = one.key in released
            if is_released or self._now_ms - one.last_modified_ms >= _ORPHAN_MARGIN_MS:
                doomed.append(one)
                orphans += not is_released
        return _Plan(head, retention, tuple(doomed[:_MOST_KEYS]), orphans)

    def _needed_by_removed(self, head: Head, removes: tuple[int, ...]) -> Needed:
        """What the snapshots that go have needed. Of one that can not be read, what it wrote itself is left to age."""
        needed = Needed()
        for snapshot_id in removes:
            entry = head.entry(snapshot_id)
            try:
                if entry is not None:
                    needed.add(self._objects, head, entry)
            except SnapshotDamaged as error:
                _log.warning("%s: snapshot %s goes, and is damaged: %s", head.dataset, snapshot_id, error)
        return needed

    def _carry_out(self, plan: _Plan, row: CleanupRow) -> CleanupRow:
        head = plan.head
        now_ms = self._clock.now_ms()
        sidecar = Sidecar(
            operation_id=new_operation_id(),
            kind=SidecarKind.CLEANUP,
            dataset=head.dataset,
            incarnation=head.incarnation,
            epoch=head.epoch,
            base_snapshot_id=None,
            idempotency_key=None,
            owner=this_holder().to_json(),
            started_at_ms=now_ms,
            removes=plan.retention.removes,
            keys=tuple(one.key for one in plan.doomed),
            not_before_ms=now_ms + self._grace_ms,
        )
        self._objects.write_if_absent(sidecar_key(head.dataset, sidecar.operation_id), sidecar.to_bytes())
        self._failpoints.hit(CLEANUP_AFTER_SIDECAR)
        after = self._remove_entries(head, sidecar) if sidecar.removes else head
        self._failpoints.hit(CLEANUP_AFTER_COMMIT)
        row = replace(row, outcome="cleaned", not_before_ms=sidecar.not_before_ms)
        if self._grace_ms:
            return row
        verdicts = heal(self._store, after, [sidecar], clock=self._clock, by=self._by)
        self._failpoints.hit(CLEANUP_AFTER_END)
        if verdicts[sidecar.operation_id].outcome is None:
            return row
        return replace(
            row, deleted_objects=row.deleted_objects + row.objects, deleted_bytes=row.deleted_bytes + row.data_bytes
        )

    def _remove_entries(self, head: Head, sidecar: Sidecar) -> Head:
        found: list[Head] = []

        def remove(now: Head) -> Head:
            found.append(now)
            if now.revision != head.revision:
                raise _HeadMoved
            return now.without(sidecar.removes or ())

        try:
            return change_head(self._store, head.dataset, sidecar.operation_id, remove, clock=self._clock)
        except _HeadMoved:
            # The revision that it was planned on is gone, so it can not take effect any more. When its entries are
            # gone, too, it did, perhaps, and the answer was lost: the next pass finds its sidecar and finishes it.
            if any(found[-1].entry(snapshot_id) for snapshot_id in sidecar.removes or ()):
                write_audit(self._objects, sidecar, Outcome.DISCARDED, clock=self._clock, by=self._by)
                retire(self._objects, sidecar)
            raise

    def _forget_audits(self, dataset: str, sidecars: list[Sidecar]) -> None:
        pending = {sidecar.operation_id for sidecar in sidecars}
        old = [
            one.key
            for one in self._objects.list(audit_prefix(dataset))
            if self._now_ms - one.last_modified_ms > _AUDIT_AGE_MS
            and one.key.removeprefix(audit_prefix(dataset)).removesuffix(".json") not in pending
        ]
        self._objects.delete(old)
