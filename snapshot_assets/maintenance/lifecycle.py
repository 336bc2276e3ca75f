"""Seal, unseal, drop and recreate: a dataset leaves in two phases, and its name never goes back in time.

A crash before the commit of a drop leaves the dataset sealed, to be finished or undone; one after it leaves it dropped,
with the rest of its data deleted by whoever comes next. The head stays as the fence of the name: revision, generation
and epoch go on counting, so that no writer and no reader of an older incarnation can take the new one for its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from snapshot_assets.clock import Clock
from snapshot_assets.errors import (
    ConfirmationRequired,
    DatasetDropped,
    DocumentDamaged,
    IncarnationChanged,
    MaintenanceError,
    SnapshotInUse,
    UnsupportedFormatVersion,
)
from snapshot_assets.failpoints import (
    DROP_AFTER_COMMIT,
    DROP_AFTER_END,
    DROP_AFTER_SEAL,
    DROP_AFTER_SETTLED,
    DROP_AFTER_SIDECAR,
    NO_FAILPOINTS,
    Failpoints,
)
from snapshot_assets.ids import IncarnationId, new_operation_id
from snapshot_assets.maintenance.readers import known_readers, served_snapshots
from snapshot_assets.model.head import Head, Status
from snapshot_assets.model.manifest import incarnation_prefix
from snapshot_assets.model.sidecar import Sidecar, SidecarKind, sidecar_key
from snapshot_assets.publish.heads import change_head
from snapshot_assets.publish.lease import this_holder
from snapshot_assets.publish.recovery import heal, pending_sidecars
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["DropResult", "drop", "recreated", "sealed", "unsealed"]


@dataclass(frozen=True, slots=True)
class DropResult:
    """What a drop did, or would do.

    Attributes:
        outcome: `planned` when it was not confirmed: nothing was changed.
        needed_by: who needs the dataset: its pins, and the live readers that serve it.
        snapshots: how many snapshots the head listed.
        deleted_objects: how many objects of the incarnation were deleted, or would be.
        deleted_bytes: their size.
    """

    dataset: str
    incarnation: str
    outcome: Literal["planned", "dropped"]
    needed_by: tuple[str, ...]
    snapshots: int = 0
    deleted_objects: int = 0
    deleted_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """The result as the command line prints it."""
        return {
            "dataset": self.dataset,
            "incarnation": self.incarnation,
            "outcome": self.outcome,
            "needed_by": list(self.needed_by),
            "snapshots": self.snapshots,
            "deleted_objects": self.deleted_objects,
            "deleted_bytes": self.deleted_bytes,
        }


def sealed(head: Head) -> Head:
    """The head as it takes no writers: those in flight are fenced by the epoch. Sealing twice changes nothing more.

    Raises:
        DatasetDropped: it was dropped.
    """
    _refuse_dropped(head)
    return replace(head, status=Status.SEALED, epoch=head.epoch + 1) if head.status is Status.ACTIVE else head


def unsealed(head: Head) -> Head:
    """The head as it takes writers again; a drop that had begun can not be committed any more.

    Raises:
        DatasetDropped: it was dropped.
        MaintenanceError: it is not sealed.
    """
    _refuse_dropped(head)
    if head.status is not Status.SEALED:
        raise MaintenanceError(f"{head.dataset!r} is not sealed", dataset=head.dataset)
    return replace(head, status=Status.ACTIVE, epoch=head.epoch + 1)


def recreated(head: Head, incarnation: IncarnationId, engine: str | None) -> Head:
    """The head of a new incarnation under the same name: empty, active, and counting on.

    Raises:
        MaintenanceError: the dataset was not dropped.
    """
    if head.status is not Status.DROPPED:
        raise MaintenanceError(
            f"{head.dataset!r} is {head.status.value}", hint="Drop it first, or publish to it as it is.",
            dataset=head.dataset,
        )  # fmt: skip
    return Head(
        head.dataset,
        incarnation,
        engine or head.engine,
        revision=head.revision,
        generation=head.generation + 1,
        epoch=head.epoch + 1,
        recent_operation_ids=head.recent_operation_ids,
        extra=head.extra,
    )


def drop(
    store: SnapshotStore,
    name: str,
    *,
    confirm: bool,
    force: bool,
    now_ms: int,
    clock: Clock,
    failpoints: Failpoints = NO_FAILPOINTS,
) -> DropResult:
    """Drop a dataset, or finish a drop that was begun.

    Seal; look who needs it; write down what is meant; commit; delete. Each step can be repeated.

    Args:
        store: where it is published.
        name: the dataset.
        confirm: do it, rather than tell what would be done.
        force: drop it also when pins or live readers need it.
        now_ms: the time by the store's own clock, for who is alive.
        clock: this process's clock.
        failpoints: for tests.

    Raises:
        DatasetDropped: it was dropped before, and nothing of it is left to delete.
        SnapshotInUse: it is needed, and that was not overruled; it stays sealed.
        ConfirmationRequired: `force` without `confirm`.
        SidecarUnreadable: an operation that is pending can not be understood.
        IncarnationChanged: another drop was faster, and the name lives again.
        MaintenanceError: it was unsealed meanwhile.
    """
    if force and not confirm:
        raise ConfirmationRequired("a forced drop has to be confirmed", dataset=name)
    head = store.head(name)
    snapshots = len(head.snapshots)
    if head.status is Status.DROPPED and not _objects_of(store, head) and not pending_sidecars(store.objects, name):
        raise DatasetDropped(f"{name!r} was dropped before; nothing of it is left", dataset=name)
    if not confirm:
        return _result(head, "planned", _needed_by(store, head, now_ms), len(head.snapshots), _objects_of(store, head))
    needed_by: tuple[str, ...] = ()
    if head.status is not Status.DROPPED:
        wanted = head.incarnation
        head = change_head(store, name, new_operation_id(), lambda now: sealed(_still(now, wanted)), clock=clock)
        failpoints.hit(DROP_AFTER_SEAL)
        # While the entries are still listed, what has been published can be told from what never was.
        _settle(store, name, clock)
        failpoints.hit(DROP_AFTER_SETTLED)
        needed_by = _needed_by(store, head, now_ms)
        if needed_by and not force:
            raise SnapshotInUse(
                f"{name!r} is needed: {'; '.join(needed_by)}. It is sealed now and takes no writers",
                hint="Remove what needs it and drop again, or force it; "
                f"`snapshot-assets unseal {name}` undoes the seal.",
                dataset=name,
            )
    _arm(store, head, clock)
    failpoints.hit(DROP_AFTER_SIDECAR)
    if head.status is not Status.DROPPED:
        seal = head
        head = change_head(store, name, new_operation_id(), lambda now: _dropped(now, seal), clock=clock)
        failpoints.hit(DROP_AFTER_COMMIT)
    sizes = _objects_of(store, head)
    _settle(store, name, clock)
    failpoints.hit(DROP_AFTER_END)
    return _result(head, "dropped", needed_by, snapshots, sizes)


def _result(
    head: Head,
    outcome: Literal["planned", "dropped"],
    needed_by: tuple[str, ...],
    snapshots: int,
    sizes: Mapping[str, int],
) -> DropResult:
    return DropResult(head.dataset, head.incarnation, outcome, needed_by, snapshots, len(sizes), sum(sizes.values()))


def _refuse_dropped(head: Head) -> None:
    if head.status is Status.DROPPED:
        raise DatasetDropped(f"{head.dataset!r} was dropped", dataset=head.dataset)


def _still(head: Head, incarnation: str) -> Head:
    """The head, if it is still of the incarnation that was to be dropped."""
    if head.incarnation != incarnation:
        raise IncarnationChanged(
            f"{head.dataset!r} was dropped by somebody else, and recreated since; the new one was left alone",
            hint="Look at what is there now before you drop it.",
            dataset=head.dataset,
        )
    return head


def _dropped(head: Head, seal: Head) -> Head:
    """The head as the fence of its name: it lists nothing, and readers see a higher generation.

    Only the very seal under which it was checked may be committed: another one may mean something else. When another
    dropper was faster, the head is what it should be.
    """
    if _still(head, seal.incarnation).status is Status.DROPPED:
        return head
    if head.status is not Status.SEALED or head.epoch != seal.epoch:
        raise MaintenanceError(
            f"{head.dataset!r} was unsealed while it was being dropped; nothing was deleted",
            hint="Drop it again if it should go.",
            dataset=head.dataset,
        )
    return replace(
        head,
        status=Status.DROPPED,
        generation=head.generation + 1,
        epoch=head.epoch + 1,
        current_snapshot_id=None,
        current_since_ms=None,
        schemas=(),
        snapshots=(),
        pins=(),
    )


def _needed_by(store: SnapshotStore, head: Head, now_ms: int) -> tuple[str, ...]:
    pins = [
        f"pin {pin.name!r} of {pin.owner}"
        for pin in head.pins
        if pin.expires_at_ms is None or pin.expires_at_ms > now_ms
    ]
    try:
        served = served_snapshots(known_readers(store.objects, now_ms), head.dataset, head.incarnation)
    except (DocumentDamaged, UnsupportedFormatVersion) as error:
        return (*pins, f"perhaps a reader that can not be understood: {error.message}")
    return (*pins, *sorted({f"reader {reader}" for reader in served.values()}))


def _arm(store: SnapshotStore, head: Head, clock: Clock) -> None:
    sidecar = Sidecar(
        operation_id=new_operation_id(),
        kind=SidecarKind.DROP,
        dataset=head.dataset,
        incarnation=head.incarnation,
        epoch=head.epoch,
        base_snapshot_id=None,
        idempotency_key=None,
        owner=this_holder().to_json(),
        started_at_ms=clock.now_ms(),
    )
    store.objects.write_if_absent(sidecar_key(head.dataset, sidecar.operation_id), sidecar.to_bytes())


def _settle(store: SnapshotStore, name: str, clock: Clock) -> None:
    """End what is pending, as far as the head allows; the drop itself, with the data, at last."""
    pending = pending_sidecars(store.objects, name)
    pending.sort(key=lambda sidecar: sidecar.kind is SidecarKind.DROP)
    # Read after they were listed: an operation of a newer incarnation must not be taken for one of a lost one.
    head = store.head(name)
    heal(store, head, pending, clock=clock, by=f"drop by {this_holder()}")


def _objects_of(store: SnapshotStore, head: Head) -> Mapping[str, int]:
    prefix = incarnation_prefix(head.dataset, head.incarnation)
    return {listed.key: listed.size for listed in store.objects.list(prefix)}
