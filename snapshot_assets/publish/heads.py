"""Changing a head: one compare-and-swap, with lost answers settled by reading."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from snapshot_assets.clock import Clock
from snapshot_assets.errors import Conflict, DatasetDropped, DatasetSealed, NotFound, RecoveryRequired, StoreUnavailable
from snapshot_assets.model.head import Head, Status, head_key
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["PATIENCE", "change_head", "create_head", "find_head", "refuse_inactive"]

PATIENCE: Final = 60.0
"""Seconds for which a change of a head is tried against other writers and a failing store."""


def change_head(
    store: SnapshotStore,
    dataset: str,
    operation_id: str,
    decide: Callable[[Head], Head],
    *,
    clock: Clock,
    patience: float = PATIENCE,
) -> Head:
    """Replace the head by what `decide` makes of it, atomically.

    `decide` gets the head as it is now and is asked anew whenever another writer was faster; what it raises goes
    through, and then nothing of this operation is or becomes visible. Revision and recent operations are kept here.

    Returns:
        The head that was written.

    Raises:
        NotFound: there is no head.
        Conflict: other writers kept changing the head for `patience` seconds.
        StoreUnavailable: the head could not be read; nothing was sent.
        RecoveryRequired: a write was sent, and whether it landed could not be learned.
    """
    deadline = clock.monotonic() + patience
    sent: Head | None = None
    pause = threading.Event()
    for attempt in range(1_000_000):
        try:
            head, token = store.read_head(dataset)
        except StoreUnavailable as error:
            if sent is None:
                raise
            raise _unknown(dataset, operation_id) from error
        if sent is not None and operation_id in head.recent_operation_ids:
            return sent
        if attempt and clock.monotonic() > deadline:
            break
        decided = decide(head)
        # Whatever was sent before can no longer land: the version that it named is gone, or it is these same bytes.
        sent = replace(decided, revision=head.revision + 1, recent_operation_ids=head.remembering(operation_id))
        try:
            store.objects.write_if_match(head_key(dataset), sent.to_bytes(), token)
        except Conflict:
            clock.wait(pause, random.uniform(0, min(1.0, 0.01 * 2**attempt)))  # noqa: S311
        except StoreUnavailable:
            clock.wait(pause, random.uniform(0.05, 0.2))  # noqa: S311
        else:
            return sent
    raise Conflict(
        f"the head of {dataset!r} kept changing for {patience:g} s", dataset=dataset, operation_id=operation_id
    )


def create_head(store: SnapshotStore, head: Head, operation_id: str) -> Head:
    """Write the first head of a dataset, if there is none.

    Returns:
        The head that is there now: this one, or the one that another writer made first.
    """
    first = replace(head, recent_operation_ids=head.remembering(operation_id))
    try:
        store.objects.write_if_absent(head_key(head.dataset), first.to_bytes())
    except Conflict:
        return store.head(head.dataset)
    return first


def find_head(store: SnapshotStore, dataset: str) -> Head | None:
    """The head of a dataset, or nothing when it was never created."""
    try:
        return store.head(dataset)
    except NotFound:
        return None


def refuse_inactive(head: Head) -> None:
    """Refuse a head that takes no writers.

    Raises:
        DatasetSealed: it is sealed.
        DatasetDropped: it was dropped.
    """
    if head.status is Status.SEALED:
        raise DatasetSealed(f"{head.dataset!r} is sealed", dataset=head.dataset)
    if head.status is Status.DROPPED:
        raise DatasetDropped(f"{head.dataset!r} was dropped", dataset=head.dataset)


def _unknown(dataset: str, operation_id: str) -> RecoveryRequired:
    return RecoveryRequired(
        f"the store stopped answering while the head of {dataset!r} was being changed; "
        f"whether operation {operation_id} is visible is not known",
        dataset=dataset,
        operation_id=operation_id,
    )
