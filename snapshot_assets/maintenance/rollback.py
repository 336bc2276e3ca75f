"""Rollback: an older snapshot becomes current under a higher generation, so that live readers follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from snapshot_assets.errors import Conflict, SnapshotMissing
from snapshot_assets.model.head import Head, SnapshotEntry
from snapshot_assets.publish.heads import refuse_inactive

__all__ = ["Undo", "listed_entry", "rolled_back"]


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


def rolled_back(now: Head, snapshot_id: int, *, seen: Head, generation: int | None, now_ms: int) -> Head:
    """The head as it calls another of its snapshots current.

    Args:
        now: the head.
        snapshot_id: what becomes current.
        seen: the head as it was when the snapshot was looked at.
        generation: the one that is to be replaced and no other; any, when it is none.
        now_ms: when.

    Raises:
        SnapshotMissing: it lists no such snapshot.
        Conflict: the dataset was recreated since it was looked at, or has another generation.
        DatasetSealed, DatasetDropped: it takes no changes.
    """
    refuse_inactive(now)
    listed_entry(now, snapshot_id)
    if now.incarnation != seen.incarnation or generation not in {None, now.generation}:
        raise Conflict(f"{now.dataset!r} has changed since; look at it before it is rolled back", dataset=now.dataset)
    return replace(now, generation=now.generation + 1, current_snapshot_id=snapshot_id, current_since_ms=now_ms)


def listed_entry(head: Head, snapshot_id: int) -> SnapshotEntry:
    """The head's entry of a snapshot.

    Raises:
        SnapshotMissing: it lists no such snapshot.
    """
    entry = head.entry(snapshot_id)
    if entry is None:
        listed = ", ".join(str(entry.snapshot_id) for entry in head.snapshots) or "none"
        raise SnapshotMissing(
            f"{head.dataset!r} lists no snapshot {snapshot_id}; it lists {listed}", dataset=head.dataset
        )
    return entry
