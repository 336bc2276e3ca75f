"""Recovery: settling operations whose writer died, from what it left behind."""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from snapshot_assets.clock import Clock
from snapshot_assets.content.needed import Needed, needed_by
from snapshot_assets.errors import (
    AccessDenied,
    Conflict,
    DocumentDamaged,
    NotFound,
    SidecarUnreadable,
    SnapshotDamaged,
    StoreUnavailable,
    UnsupportedFormatVersion,
)
from snapshot_assets.ids import OperationId, new_operation_id
from snapshot_assets.model.audit import AuditRow, Outcome, audit_key
from snapshot_assets.model.head import Head, Status
from snapshot_assets.model.manifest import data_prefix, dataset_prefix, incarnation_prefix
from snapshot_assets.model.sidecar import MAX_SIDECAR_BYTES, Sidecar, SidecarKind, sidecar_key, sidecar_prefix
from snapshot_assets.publish.heads import change_head, refuse_inactive
from snapshot_assets.publish.lease import this_holder
from snapshot_assets.store.contract import Store
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = [
    "Verdict",
    "claim_epoch",
    "classify",
    "heal",
    "pending_sidecars",
    "read_sidecars",
    "retire",
    "write_audit",
]

_log = logging.getLogger(__name__)


class Verdict(enum.Enum):
    """What became of an operation, as the head tells."""

    COMMITTED = "committed"
    UNDONE = "undone"
    FINISHING = "finishing"
    DISCARDED = "discarded"
    ORPHANED = "orphaned"
    WAITING = "waiting"
    IN_PROGRESS = "in progress"

    @property
    def outcome(self) -> Outcome | None:
        """What the audit says of it; nothing while it is not at its end."""
        return _OUTCOMES.get(self)


_OUTCOMES: Final = {
    Verdict.COMMITTED: Outcome.COMMITTED,
    Verdict.UNDONE: Outcome.ROLLED_BACK,
    Verdict.FINISHING: Outcome.ROLLED_FORWARD,
    Verdict.DISCARDED: Outcome.DISCARDED,
    Verdict.ORPHANED: Outcome.ORPHAN_DISCARDED,
}


def classify(sidecar: Sidecar, head: Head, now_ms: int) -> Verdict:
    """Tell what became of the operation of a sidecar.

    An operation of an older epoch that has not taken effect never can: its compare-and-swap asks for the epoch, or for
    the very revision, that it started under. One of the head's own epoch may still be at work.
    """
    if sidecar.incarnation != head.incarnation:
        return Verdict.ORPHANED
    fenced = sidecar.epoch < head.epoch
    match sidecar.kind:
        case SidecarKind.PUBLISH:
            if head.entry_of_operation(sidecar.operation_id) or sidecar.operation_id in head.recent_operation_ids:
                return Verdict.COMMITTED
            return Verdict.UNDONE if fenced else Verdict.IN_PROGRESS
        case SidecarKind.CLEANUP:
            if any(head.entry(snapshot_id) for snapshot_id in sidecar.removes or ()):
                return Verdict.DISCARDED if fenced else Verdict.IN_PROGRESS
            waits = now_ms < (sidecar.not_before_ms or 0) and head.status is not Status.DROPPED
            return Verdict.WAITING if waits else Verdict.FINISHING
        case SidecarKind.DROP:
            if head.status is Status.DROPPED:
                return Verdict.FINISHING
            # Unsealed since, or sealed still: the operator finishes it or undoes it.
            return Verdict.DISCARDED if fenced and head.status is Status.ACTIVE else Verdict.IN_PROGRESS


def read_sidecars(objects: Store, dataset: str) -> tuple[list[Sidecar], dict[str, SidecarUnreadable]]:
    """The operations of a dataset that are not settled, oldest first, and by key what can not be understood.

    Raises:
        StoreUnavailable, AccessDenied: they can not be listed or read, which never means that nothing is pending.
    """
    sidecars, unreadable = [], {}
    with _told(dataset, "listed"):
        found = sorted(listed.key for listed in objects.list(sidecar_prefix(dataset)))
    set_aside = f"`snapshot-assets repair {dataset} --force --confirm` sets it aside, and writing can go on."
    for key in found:
        try:
            with _told(dataset, "read"):
                data = objects.read(key, limit=MAX_SIDECAR_BYTES).data
            sidecar = Sidecar.parse(data, key)
        except NotFound:
            continue  # somebody has settled it meanwhile
        except UnsupportedFormatVersion as error:
            hint = f"Upgrade snapshot-assets: a newer version is at work here. If nobody is any more: {set_aside}"
            unreadable[key] = SidecarUnreadable(f"{error}; it was kept", hint=hint, dataset=dataset)
        except DocumentDamaged as error:
            unreadable[key] = SidecarUnreadable(
                f"{error}; it was kept", hint=f"Look at {key}; {set_aside}", dataset=dataset
            )
        else:
            if key == sidecar_key(dataset, sidecar.operation_id) and sidecar.dataset == dataset:
                sidecars.append(sidecar)
                continue
            unreadable[key] = SidecarUnreadable(
                f"{key} does not belong where it lies; it was kept", hint=f"Look at {key}; {set_aside}", dataset=dataset
            )
    return sidecars, unreadable


@contextmanager
def _told(dataset: str, asked: str) -> Iterator[None]:
    """Say of a store's failure what could not be learned by it, and what to do."""
    try:
        yield
    except (AccessDenied, StoreUnavailable) as error:
        raise type(error)(
            f"what is pending of {dataset!r} can not be {asked}, so nothing was done: {error.message}",
            hint=f"Let the store answer first; `snapshot-assets doctor` tells what it permits. Then do the same again, "
            f"or see what is pending with `snapshot-assets repair {dataset}`.",
            dataset=dataset,
        ) from error


def pending_sidecars(objects: Store, dataset: str) -> list[Sidecar]:
    """The operations of a dataset that are not settled, oldest first.

    Raises:
        SidecarUnreadable: one can not be read or understood; it was kept.
        StoreUnavailable, AccessDenied: they can not be listed or read, which never means that nothing is pending.
    """
    sidecars, unreadable = read_sidecars(objects, dataset)
    for error in unreadable.values():
        raise error
    return sidecars


def claim_epoch(store: SnapshotStore, dataset: str, *, clock: Clock) -> Head:
    """Raise the epoch, so that every writer that started before can no longer commit.

    Only for the holder of the writer lease, after it has listed the sidecars.

    Raises:
        DatasetSealed, DatasetDropped: the head takes no writers; no epoch was minted.
    """

    def raise_epoch(head: Head) -> Head:
        refuse_inactive(head)
        return replace(head, epoch=head.epoch + 1)

    return change_head(store, dataset, new_operation_id(), raise_epoch, clock=clock)


def heal(
    store: SnapshotStore, head: Head, sidecars: Sequence[Sidecar], *, clock: Clock, by: str
) -> dict[OperationId, Verdict]:
    """Settle the operations of the sidecars, as far as the head allows. Idempotent; may be cut short anywhere.

    The head must have been read after the sidecars were listed; what is of its own epoch is left alone.

    Returns:
        What was found of each operation.
    """
    objects = store.objects
    verdicts = {}
    needed: Needed | None = None
    for sidecar in sidecars:
        verdict = classify(sidecar, head, clock.now_ms())
        if verdict is Verdict.FINISHING and sidecar.kind is SidecarKind.CLEANUP:
            try:
                needed = needed or _needed_now(store, head.dataset)
            except SnapshotDamaged as error:
                # Its objects can wait, and nobody else has to: a writer may be about to publish what is whole.
                _log.warning("%s: cleanup %s deletes nothing yet: %s", head.dataset, sidecar.operation_id, error)
                verdict = Verdict.WAITING
        verdicts[sidecar.operation_id] = verdict
        if verdict.outcome is None:
            continue
        is_mine = dict(sidecar.owner) == this_holder().to_json()
        _log.log(
            logging.INFO if is_mine else logging.WARNING,
            "%s: %s operation %s%s: %s",
            head.dataset, sidecar.kind.value, sidecar.operation_id, "" if is_mine else ", left by another process",
            verdict.value,
        )  # fmt: skip
        write_audit(objects, sidecar, verdict.outcome, clock=clock, by=by)
        objects.delete(_garbage(objects, head, sidecar, verdict, needed))
        retire(objects, sidecar)
    return verdicts


def _needed_now(store: SnapshotStore, dataset: str) -> Needed:
    """What the snapshots need that are listed now, or were while this looked.

    Raises:
        SnapshotDamaged: the manifest of a listed snapshot is missing or damaged, so that nobody can tell.
    """
    while True:
        head = store.head(dataset)
        try:
            return needed_by(store.objects, head)
        except SnapshotDamaged:
            # Missing, perhaps, because it was collected after it had left the head.
            if store.head(dataset).revision == head.revision:
                raise


def _garbage(objects: Store, head: Head, sidecar: Sidecar, verdict: Verdict, needed: Needed | None) -> list[str]:
    """The objects that an operation which is at its end leaves behind for nobody."""
    if verdict in {Verdict.COMMITTED, Verdict.DISCARDED}:
        return []
    if sidecar.kind is SidecarKind.CLEANUP:
        # Whatever a sidecar says: what lies elsewhere, or came after it, was never this cleanup's to delete.
        mine = [key for key in sidecar.keys or () if key.startswith(dataset_prefix(sidecar.dataset))]
        if verdict is Verdict.ORPHANED:
            alive = incarnation_prefix(head.dataset, head.incarnation)
            return [key for key in mine if not key.startswith(alive)]
        return [key for key in mine if needed is not None and key not in needed]
    if sidecar.kind is SidecarKind.DROP:
        prefix = incarnation_prefix(sidecar.dataset, sidecar.incarnation)
    else:
        prefix = data_prefix(sidecar.dataset, sidecar.incarnation, sidecar.operation_id)
    return [listed.key for listed in objects.list(prefix)]


def write_audit(objects: Store, sidecar: Sidecar, outcome: Outcome, *, clock: Clock, by: str) -> None:
    """Record how an operation ended, once: a row that is there already stays as it is."""
    row = AuditRow(sidecar.operation_id, sidecar.kind.value, outcome, clock.now_ms(), by)
    try:
        objects.write_if_absent(audit_key(sidecar.dataset, sidecar.operation_id), row.to_bytes())
    except Conflict:
        _log.debug("operation %s has its audit row already", sidecar.operation_id)


def retire(objects: Store, sidecar: Sidecar) -> None:
    """Remove the sidecar of an operation that is settled and audited."""
    objects.delete([sidecar_key(sidecar.dataset, sidecar.operation_id)])
