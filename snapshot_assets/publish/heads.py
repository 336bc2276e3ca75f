"""Changing a head: one compare-and-swap, with lost answers settled by reading."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

from snapshot_assets.clock import Clock
from snapshot_assets.errors import (
    Conflict,
    DatasetDropped,
    DatasetSealed,
    NotFound,
    RecoveryRequired,
    SnapshotAssetsError,
    StoreUnavailable,
)
from snapshot_assets.model.document import checked
from snapshot_assets.model.head import MAX_HEAD_BYTES, Head, Status, head_key
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
        ConfigurationError: `decide` made a head that nobody could read again; nothing was sent.
        StoreError: the head could not be read, or the store refuses the write; nothing was changed.
        RecoveryRequired: a write was sent, and whether it landed could not be learned.
    """
    deadline = clock.monotonic() + patience
    pause = threading.Event()
    sent: Head | None = None
    unanswered: str | None = None
    while True:
        with _settling(dataset, operation_id, is_open=unanswered is not None):
            head, token = store.read_head(dataset)
        if sent is not None and _has_landed(head, operation_id):
            return sent
        if token != unanswered:
            # The version that the unanswered write named is gone, so that write can no longer land.
            unanswered = None
        with _settling(dataset, operation_id, is_open=unanswered is not None):
            if sent is not None and clock.monotonic() > deadline:
                raise Conflict(f"the head of {dataset!r} kept changing for {patience:g} s", dataset=dataset)
            decided = decide(head)
            sent = replace(decided, revision=head.revision + 1, recent_operation_ids=head.remembering(operation_id))
            data = _readable(sent)
            try:
                store.objects.write_if_match(head_key(dataset), data, token)
            except Conflict:
                clock.wait(pause, random.uniform(0, 0.05))  # noqa: S311
            except StoreUnavailable:
                unanswered = token
                clock.wait(pause, random.uniform(0.05, 0.2))  # noqa: S311
            else:
                return sent


def create_head(store: SnapshotStore, head: Head, operation_id: str) -> Head:
    """Write the first head of a dataset, if there is none.

    Returns:
        The head that is there now: this one, or the one that another writer made first.
    """
    first = replace(head, recent_operation_ids=head.remembering(operation_id))
    try:
        store.objects.write_if_absent(head_key(head.dataset), _readable(first))
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
        raise DatasetSealed(
            f"{head.dataset!r} is sealed",
            hint=f"`snapshot-assets unseal {head.dataset}` lets writers in again; "
            f"`snapshot-assets drop {head.dataset} --confirm` finishes a drop that was begun.",
            dataset=head.dataset,
        )
    if head.status is Status.DROPPED:
        raise DatasetDropped(
            f"{head.dataset!r} was dropped",
            hint=f"`snapshot-assets recreate {head.dataset}` lets the name live again, if it should.",
            dataset=head.dataset,
        )


def _has_landed(head: Head, operation_id: str) -> bool:
    return operation_id in head.recent_operation_ids or head.entry_of_operation(operation_id) is not None


def _readable(head: Head) -> bytes:
    """The bytes of a head that everybody can read again; nothing else is ever sent."""
    parse = partial(Head.parse, dataset=head.dataset)
    return checked(head.to_bytes(), parse, MAX_HEAD_BYTES, f"the head of {head.dataset!r}")


@contextmanager
def _settling(dataset: str, operation_id: str, *, is_open: bool) -> Iterator[None]:
    """While a write is unanswered and may still land, no error of ours may say that nothing happened."""
    try:
        yield
    except SnapshotAssetsError as error:
        if not is_open:
            raise
        raise RecoveryRequired(
            f"the store stopped answering while the head of {dataset!r} was being changed; "
            f"whether operation {operation_id} is visible is not known",
            hint=f"`snapshot-assets show {dataset}` tells what is visible by now. Do the same again: the next writer "
            "settles this operation first.",
            dataset=dataset,
            operation_id=operation_id,
        ) from error
