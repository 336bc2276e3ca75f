"""Recovery: settling operations whose writer died, from what it left behind."""

from __future__ import annotations

import enum
import logging
from collections.abc import Sequence
from dataclasses import replace

from snapshot_assets.clock import Clock
from snapshot_assets.errors import Conflict, DocumentDamaged, NotFound, SidecarUnreadable, UnsupportedFormatVersion
from snapshot_assets.ids import OperationId, new_operation_id
from snapshot_assets.model.audit import AuditRow, Outcome, audit_key
from snapshot_assets.model.head import Head
from snapshot_assets.model.manifest import data_prefix
from snapshot_assets.model.sidecar import MAX_SIDECAR_BYTES, Sidecar, SidecarKind, sidecar_key, sidecar_prefix
from snapshot_assets.publish.heads import change_head, refuse_inactive
from snapshot_assets.store.contract import Store
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["Verdict", "claim_epoch", "classify", "heal", "pending_sidecars", "retire", "write_audit"]

_log = logging.getLogger(__name__)


class Verdict(enum.Enum):
    """What became of an operation, as the head tells."""

    COMMITTED = Outcome.COMMITTED
    UNDONE = Outcome.ROLLED_BACK
    ORPHANED = Outcome.ORPHAN_DISCARDED
    IN_PROGRESS = None


def classify(sidecar: Sidecar, head: Head) -> Verdict:
    """Tell what became of the operation of a sidecar.

    An operation of an older epoch that the head does not list can never be listed any more: its writer's
    compare-and-swap asks for the epoch that it started under.
    """
    if sidecar.incarnation != head.incarnation:
        return Verdict.ORPHANED
    match sidecar.kind:
        case SidecarKind.PUBLISH:
            if head.entry_of_operation(sidecar.operation_id) or sidecar.operation_id in head.recent_operation_ids:
                return Verdict.COMMITTED
            return Verdict.UNDONE if sidecar.epoch < head.epoch else Verdict.IN_PROGRESS


def pending_sidecars(objects: Store, dataset: str) -> list[Sidecar]:
    """The operations of a dataset that are not settled, oldest first. One that vanishes meanwhile is settled.

    Raises:
        SidecarUnreadable: one can not be read or understood; it was kept.
        StoreUnavailable: the listing failed, which never means that nothing is pending.
    """
    sidecars = []
    for listed in sorted(objects.list(sidecar_prefix(dataset)), key=lambda listed: listed.key):
        try:
            data = objects.read(listed.key, limit=MAX_SIDECAR_BYTES).data
            sidecar = Sidecar.parse(data, listed.key)
        except NotFound:
            continue
        except (DocumentDamaged, UnsupportedFormatVersion) as error:
            raise SidecarUnreadable(f"{error}; it was kept", dataset=dataset) from error
        if listed.key != sidecar_key(dataset, sidecar.operation_id) or sidecar.dataset != dataset:
            raise SidecarUnreadable(f"{listed.key} does not belong where it lies; it was kept", dataset=dataset)
        sidecars.append(sidecar)
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
    objects: Store, head: Head, sidecars: Sequence[Sidecar], *, clock: Clock, by: str
) -> dict[OperationId, Verdict]:
    """Settle the operations of the sidecars, as far as the head allows. Idempotent; may be cut short anywhere.

    The head must have been read after the sidecars were listed, under an epoch that the caller claimed after that.

    Returns:
        What was found of each operation.
    """
    verdicts = {}
    for sidecar in sidecars:
        verdict = classify(sidecar, head)
        verdicts[sidecar.operation_id] = verdict
        if verdict.value is None:
            continue
        _log.warning("%s: operation %s of a dead writer: %s", head.dataset, sidecar.operation_id, verdict.value.value)
        write_audit(objects, sidecar, verdict.value, clock=clock, by=by)
        if verdict is not Verdict.COMMITTED:
            prefix = data_prefix(sidecar.dataset, sidecar.incarnation, sidecar.operation_id)
            objects.delete([listed.key for listed in objects.list(prefix)])
        retire(objects, sidecar)
    return verdicts


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
