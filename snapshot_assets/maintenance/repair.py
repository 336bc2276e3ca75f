"""Repair: what writers do to a dataset at their next publish, done by an operator for the whole store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from snapshot_assets.clock import SYSTEM_CLOCK, Clock
from snapshot_assets.errors import (
    ConfirmationRequired,
    Conflict,
    DatasetSealed,
    NotFound,
    SidecarUnreadable,
    SnapshotAssetsError,
)
from snapshot_assets.maintenance.cleanup import Cleaner
from snapshot_assets.model.head import Head, Status
from snapshot_assets.model.sidecar import MAX_SIDECAR_BYTES, SidecarKind
from snapshot_assets.publish.heads import find_head
from snapshot_assets.publish.lease import LeaseBook, this_holder
from snapshot_assets.publish.recovery import Verdict, claim_epoch, classify, heal, read_sidecars
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["RepairRow", "all_pending", "pending_rows", "repair_dataset", "repairable_datasets"]

_ACTIONS: Final = {
    Verdict.COMMITTED: "finish its book-keeping: the snapshot is published",
    Verdict.UNDONE: "delete its objects: it can not be published any more",
    Verdict.FINISHING: "delete what it was to delete",
    Verdict.DISCARDED: "forget it: it never took effect",
    Verdict.ORPHANED: "delete its objects: its incarnation is gone",
    Verdict.WAITING: "nothing yet: its objects are deleted after their grace",
    Verdict.IN_PROGRESS: "fence it, then undo or finish it; a live writer is left alone",
}
_SEALED: Final = "nothing: the dataset is sealed, and its operator decides"
_HEADLESS: Final = "nothing: without the head, nobody can tell what it was"
_LEFT: Final = {_SEALED, _HEADLESS, _ACTIONS[Verdict.WAITING]}


@dataclass(frozen=True, slots=True)
class RepairRow:
    """One thing that was found, what is to be done about it, and whether that was done.

    Attributes:
        subject: an operation's id, or the key of what can not be understood.
        kind: the kind of the operation; `unreadable` or `orphans` for what is none.
        settled_by: who else settles it, or what to type.
        needs_force: whether only a forced repair does it.
        error: why it could not be done.
    """

    dataset: str
    subject: str
    kind: str
    found: str
    action: str
    settled_by: str
    needs_force: bool = False
    done: bool = False
    error: SnapshotAssetsError | None = None

    @property
    def is_repairable(self) -> bool:
        """Whether a repair that is confirmed, and forced if need be, does something about it."""
        return self.error is None and self.action not in _LEFT

    def to_json(self) -> dict[str, Any]:
        """The row as the command line prints it."""
        return {
            "dataset": self.dataset,
            "subject": self.subject,
            "kind": self.kind,
            "found": self.found,
            "action": self.action,
            "settled_by": self.settled_by,
            "needs_force": self.needs_force,
            "done": self.done,
            "error": None if self.error is None else self.error.to_json(),
        }


def repairable_datasets(store: SnapshotStore) -> list[str]:
    """Every dataset that has a head, or operations in progress."""
    return sorted(_pending_datasets(store) | store.heads().keys())


def _pending_datasets(store: SnapshotStore) -> set[str]:
    return {listed.key.split("/")[1] for listed in store.objects.list("recovery/")}


def repair_dataset(
    store: SnapshotStore,
    name: str,
    cleaner: Cleaner,
    leases: LeaseBook,
    *,
    confirm: bool,
    force: bool,
    wait: float,
    clock: Clock,
) -> list[RepairRow]:
    """Look at one dataset, and settle what is pending when that is confirmed.

    Args:
        store: where it is published.
        name: the dataset.
        cleaner: for objects that nothing explains; its policy removes no snapshot.
        leases: for the writer lease; it remembers since when it has seen a silent writer's.
        confirm: do it, rather than tell what would be done.
        force: set aside, too, what can not be understood.
        wait: seconds to wait for another writer, alive or silent.
        clock: this process's clock.
    """
    try:
        rows = list(pending_rows(store, name, clock))
        if not rows:
            store.head(name)
        if confirm and any(row.is_repairable for row in rows):
            rows = _settle(store, name, rows, leases, force=force, wait=wait, clock=clock)
        return [*rows, *_orphans(cleaner, name)]
    except SnapshotAssetsError as error:
        error.dataset = error.dataset or name
        return [_unknown(name, error)]


def all_pending(store: SnapshotStore, clock: Clock = SYSTEM_CLOCK) -> list[RepairRow]:
    """What is pending of every dataset of the store; for one of which it can not be told, a row that says why.

    Raises:
        StoreError: the store can not be listed.
    """
    rows: list[RepairRow] = []
    for name in sorted(_pending_datasets(store)):
        try:
            rows += pending_rows(store, name, clock)
        except SnapshotAssetsError as error:
            rows.append(_unknown(name, error))
    return rows


def pending_rows(store: SnapshotStore, name: str, clock: Clock) -> Iterator[RepairRow]:
    """The operations of a dataset that are not settled, and what settles them. Nothing is changed.

    Raises:
        StoreError: they can not be listed or read, which never means that nothing is pending.
    """
    sidecars, unreadable = read_sidecars(store.objects, name)
    head = find_head(store, name)
    for key, error in unreadable.items():
        action = "set it aside beneath quarantine/"
        way_out = (
            "an upgrade of snapshot-assets, where a newer version wrote it; else, when it was looked at, "
            f"`snapshot-assets repair {name} --force --confirm`"
        )
        yield RepairRow(name, key, "unreadable", error.message, action, way_out, needs_force=True)
    for sidecar in sidecars:
        operation, kind = sidecar.operation_id, sidecar.kind
        if head is None:
            found, way_out = f"heads/{name}.json is missing", f"restore heads/{name}.json from a backup"
            lost = SidecarUnreadable(
                f"{name!r} has operations in progress and no head", hint=f"First {way_out}.", dataset=name
            )
            yield RepairRow(name, operation, kind.value, found, _HEADLESS, way_out, error=lost)
            continue
        verdict = classify(sidecar, head, clock.now_ms())
        is_sealed = verdict is Verdict.IN_PROGRESS and head.status is Status.SEALED
        action = _SEALED if is_sealed else _ACTIONS[verdict]
        yield RepairRow(name, operation, kind.value, verdict.value, action, _settled_by(head, kind, verdict))


def _unknown(name: str, error: SnapshotAssetsError) -> RepairRow:
    return RepairRow(name, name, "dataset", "it can not be looked at", "nothing", error.hint, error=error)


def _settled_by(head: Head, kind: SidecarKind, verdict: Verdict) -> str:
    name = head.dataset
    repair = f"`snapshot-assets repair {name} --confirm`"
    if verdict is Verdict.IN_PROGRESS and head.status is Status.SEALED:
        return f"`snapshot-assets drop {name} --confirm`, or `snapshot-assets unseal {name}` and the next publish"
    if verdict is Verdict.IN_PROGRESS:
        return f"itself, while its process lives; else the next publish, or {repair}"
    if head.status is not Status.ACTIVE:
        return repair
    if kind is SidecarKind.CLEANUP and verdict in {Verdict.WAITING, Verdict.FINISHING}:
        return "the next cleanup or publish after its grace"
    return f"the next publish, or {repair}"


def _settle(
    store: SnapshotStore,
    name: str,
    rows: list[RepairRow],
    leases: LeaseBook,
    *,
    force: bool,
    wait: float,
    clock: Clock,
) -> list[RepairRow]:
    """Do what the rows say; where that fails, they say why."""
    refused: SnapshotAssetsError | None = None
    ended: set[str] = set()
    try:
        ended = _ended_now(store, name, leases, force=force, wait=wait, clock=clock)
    except SnapshotAssetsError as error:
        refused = error
    told = []
    for row in rows:
        done = row.subject in ended
        why = refused
        if why is None and row.needs_force and not force:
            why = ConfirmationRequired(f"{row.subject} can not be understood; only --force sets it aside", dataset=name)
        told.append(replace(row, done=done, error=why if row.is_repairable and not done else row.error))
    return told


def _ended_now(
    store: SnapshotStore, name: str, leases: LeaseBook, *, force: bool, wait: float, clock: Clock
) -> set[str]:
    """Settle what is pending, under the writer lease: a live writer keeps its dataset to itself. What has ended so."""
    with leases.acquire(name, wait=wait):
        sidecars, unreadable = read_sidecars(store.objects, name)
        head = find_head(store, name)
        if head is None or (unreadable and not force):
            return set()
        if head.status is Status.ACTIVE:  # else it takes no writers, and there is nobody to fence
            # Also before anything is set aside: what is explained no longer may be collected, and must stay unlisted.
            head = claim_epoch(store, name, clock=clock)
        for key in unreadable:
            _set_aside(store, key)
        by = f"repair by {this_holder()}"
        verdicts = heal(store, head, sidecars, clock=clock, by=by)
        return {*unreadable, *(operation for operation, verdict in verdicts.items() if verdict.outcome is not None)}


def _set_aside(store: SnapshotStore, key: str) -> None:
    """Move what can not be understood out of the writers' way, and keep it."""
    try:
        data = store.objects.read(key, limit=MAX_SIDECAR_BYTES).data
    except NotFound:
        return
    try:
        store.objects.write_if_absent(f"quarantine/{key.removeprefix('recovery/')}", data)
    except Conflict as error:
        raise SidecarUnreadable(
            f"{key} can not be set aside: quarantine/ has one of its name", hint="Look at both, and remove one."
        ) from error
    store.objects.delete([key])


def _orphans(cleaner: Cleaner, name: str) -> Iterator[RepairRow]:
    """Objects that no listed snapshot and no operation explains."""
    row = cleaner.clean(name)
    if isinstance(row.error, DatasetSealed | NotFound | SidecarUnreadable):
        return  # it has no objects of its own to look at, or a row that says why nothing can be told of them
    if row.error is not None:
        yield RepairRow(name, "data", "orphans", "they can not be told", "nothing", "see the error", error=row.error)
    elif row.objects:
        yield RepairRow(
            name,
            "data",
            "orphans",
            f"{row.objects} objects, {row.data_bytes} bytes, that no snapshot needs",
            "delete them after the grace",
            "the next cleanup",
            done=row.outcome == "cleaned",
        )
