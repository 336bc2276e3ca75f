"""What a publish answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from snapshot_assets.clock import Clock
from snapshot_assets.model.head import Head, SnapshotEntry

__all__ = ["PublishOutcome", "PublishResult", "Stopwatch", "result_of"]

PublishOutcome = Literal["published", "unchanged", "already_published"]


@dataclass(frozen=True, slots=True)
class PublishResult:
    """How a publish ended, what it cost, and the snapshot that holds the content now.

    `uploaded_bytes` and `uploaded_objects` count packs, index and manifest, and `stored_bytes` the plain bytes in those
    packs; all are 0 unless this call published. `seconds` names the phases that were gone through.
    """

    outcome: PublishOutcome
    dataset: str
    incarnation: str
    snapshot_id: int
    generation: int
    operation_id: str
    content_digest: str
    data_bytes: int
    uploaded_bytes: int
    uploaded_objects: int
    stored_bytes: int
    row_counts: Mapping[str, int]
    seconds: Mapping[str, float]

    @property
    def reused_share(self) -> float:
        """The share of the snapshot's bytes that lay in the store already: 0 at a first publish, 1 when unchanged."""
        return max(0.0, 1.0 - self.stored_bytes / self.data_bytes) if self.data_bytes else 1.0

    def to_json(self) -> dict[str, Any]:
        """The result as the command line prints it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {
            "row_counts": dict(self.row_counts),
            "seconds": {phase: round(spent, 6) for phase, spent in self.seconds.items()},
        }


def result_of(
    outcome: PublishOutcome,
    head: Head,
    entry: SnapshotEntry,
    *,
    row_counts: Mapping[str, int],
    seconds: Mapping[str, float],
    uploaded_objects: int = 0,
    stored_bytes: int = 0,
) -> PublishResult:
    """The result for a snapshot that the head lists."""
    return PublishResult(
        outcome=outcome,
        dataset=head.dataset,
        incarnation=head.incarnation,
        snapshot_id=entry.snapshot_id,
        generation=head.generation,
        operation_id=entry.operation_id,
        content_digest=entry.content_digest,
        data_bytes=entry.data_bytes,
        uploaded_bytes=entry.uploaded_bytes if outcome == "published" else 0,
        uploaded_objects=uploaded_objects,
        stored_bytes=stored_bytes,
        row_counts=dict(row_counts),
        seconds=dict(seconds),
    )


@dataclass(slots=True)
class Stopwatch:
    """Seconds by phase, on the monotonic clock; a phase that is gone through twice adds up."""

    clock: Clock
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time within under the name."""
        start = self.clock.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.clock.monotonic() - start
