"""Repair: what writers do to a dataset at their next publish, done by an operator for the whole store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from snapshot_assets.clock import Clock
from snapshot_assets.errors import Conflict, DatasetSealed, NotFound, SidecarUnreadable, SnapshotAssetsError
from snapshot_assets.maintenance.cleanup import Cleaner
from snapshot_assets.model.head import Status
from snapshot_assets.model.sidecar import MAX_SIDECAR_BYTES
from snapshot_assets.publish.heads import find_head
from snapshot_assets.publish.lease import LeaseBook, this_holder
from snapshot_assets.publish.recovery import Verdict, claim_epoch, classify, heal, read_sidecars
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["RepairRow", "repair_dataset", "repairable_datasets"]

_LEASE_SECONDS: Final = 60.0

_ACTIONS: Final = {
    Verdict.COMMITTED: "finish its book-keeping: the snapshot is published",
    Verdict.UNDONE: "delete its objects: it can not be published any more",
    Verdict.FINISHING: "delete what it was to delete",
    Verdict.DISCARDED: "forget it: it never took effect",
    Verdict.ORPHANED: "delete its objects: its incarnation is gone",
    Verdict.WAITING: "nothing yet: its objects are deleted after their grace",
    Verdict.IN_PROGRESS: "fence it, then undo or finish it; a live writer is left alone",
}
_SEALED: Final = "nothing: finish it with `drop`, or undo it with `unseal`"


@dataclass(frozen=True, slots=True)
class RepairRow:
    """One thing that was found, what is to be done about it, and whether that was done.

    Attributes:
        subject: an operation's id, or the key of what can not be understood.
        kind: the kind of the operation; `unreadable` or `orphans` for what is none.
        needs_force: whether only a forced repair does it.
        error: why it could not be done.
    """

    dataset: str
    subject: str
    kind: str
    found: str
    action: str
    needs_force: bool = False
    done: bool = False
    error: SnapshotAssetsError | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as the command line prints it."""
        return {
            "dataset": self.dataset,
            "subject": self.subject,
            "kind": self.kind,
            "found": self.found,
            "action": self.action,
            "needs_force": self.needs_force,
            "done": self.done,
            "error": None if self.error is None else self.error.to_json(),
        }


def repairable_datasets(store: SnapshotStore) -> list[str]:
    """Every dataset that has a head, or operations in progress."""
    pending = {listed.key.split("/")[1] for listed in store.objects.list("recovery/")}
    return sorted(pending | store.heads().keys())


def repair_dataset(
    store: SnapshotStore, name: str, cleaner: Cleaner, *, confirm: bool, force: bool, clock: Clock
) -> list[RepairRow]:
    """Look at one dataset, and settle what is pending when that is confirmed.

    Args:
        store: where it is published.
        name: the dataset.
        cleaner: for objects that nothing explains; its policy removes no snapshot.
        confirm: do it, rather than tell what would be done.
        force: set aside, too, what can not be understood.
        clock: this process's clock.
    """
    try:
        rows = list(_found(store, name, clock))
        if confirm and rows:
            rows = _settle(store, name, rows, force=force, clock=clock)
        return [*rows, *_orphans(cleaner, name)]
    except SnapshotAssetsError as error:
        error.dataset = error.dataset or name
        return [RepairRow(name, name, "dataset", "it can not be looked at", "nothing", error=error)]


def _found(store: SnapshotStore, name: str, clock: Clock) -> Iterator[RepairRow]:
    sidecars, unreadable = read_sidecars(store.objects, name)
    head = find_head(store, name)
    for key, error in unreadable.items():
        yield RepairRow(name, key, "unreadable", error.message, "set it aside beneath quarantine/", needs_force=True)
    for sidecar in sidecars:
        if head is None:
            yield RepairRow(
                name, sidecar.operation_id, sidecar.kind.value, f"heads/{name}.json is missing",
                "restore the head from a backup", needs_force=True,
            )  # fmt: skip
            continue
        verdict = classify(sidecar, head, clock.now_ms())
        is_sealed = verdict is Verdict.IN_PROGRESS and head.status is Status.SEALED
        action = _SEALED if is_sealed else _ACTIONS[verdict]
        yield RepairRow(name, sidecar.operation_id, sidecar.kind.value, verdict.value, action)


def _settle(store: SnapshotStore, name: str, rows: list[RepairRow], *, force: bool, clock: Clock) -> list[RepairRow]:
    """Do what the rows say, under the writer lease: a live writer keeps its dataset to itself."""
    with LeaseBook(store.objects, _LEASE_SECONDS, clock).acquire(name):
        sidecars, unreadable = read_sidecars(store.objects, name)
        if force:
            for key in unreadable:
                _set_aside(store, key)
        head = find_head(store, name)
        ended: set[str] = set(unreadable) if force else set()
        if head is not None and sidecars and (force or not unreadable):
            if head.status is Status.ACTIVE:  # else it takes no writers, and there is nobody to fence
                head = claim_epoch(store, name, clock=clock)
            holder = this_holder()
            verdicts = heal(
                store.objects, head, sidecars, clock=clock, by=f"repair by process {holder.pid} on {holder.host}"
            )
            ended |= {operation for operation, verdict in verdicts.items() if verdict.outcome is not None}
    return [replace(row, done=row.subject in ended) for row in rows]


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
    if isinstance(row.error, DatasetSealed | NotFound):
        return
    if row.error is not None:
        yield RepairRow(name, "data", "orphans", "they can not be told", "nothing", error=row.error)
    elif row.objects:
        yield RepairRow(
            name,
            "data",
            "orphans",
            f"{row.objects} objects, {row.data_bytes} bytes, that no snapshot needs",
            "delete them after the grace",
            done=row.outcome == "cleaned",
        )
