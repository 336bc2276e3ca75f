"""What a reader tells of itself: values only, so that a page, a metric and a control action show the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from snapshot_assets.errors import SnapshotAssetsError
from snapshot_assets.reader.settings import Current, HandoffOutcome

__all__ = ["DatasetState", "DatasetStatus", "Draining", "Failure", "Holder", "Outcome", "Swap"]

DatasetState = Literal["loaded", "waiting", "dropped", "error"]
"""Of the last attempt: it ended well, found nothing published, found the dataset dropped, or failed."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease: the name of its thread, and for how many seconds."""

    thread: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Draining:
    """A generation that takes no new leases and still has old ones."""

    generation: int
    snapshot_id: int
    seconds: float
    holders: tuple[Holder, ...]

    @property
    def leases(self) -> int:
        """How many leases are out."""
        return len(self.holders)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error in words."""

    kind: str
    message: str
    hint: str
    at_ms: int

    @classmethod
    def of(cls, error: SnapshotAssetsError, at_ms: int) -> Failure:
        """What an error says, and when it was raised."""
        return cls(error.kind, error.message, error.hint, at_ms)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the last attempt ended.

    `found` is what the last one that succeeded found. `error` is why this one failed; or, when it did not, why an older
    snapshot than the head's was loaded.
    """

    found: Literal["loaded", "waiting", "dropped"]
    error: Failure | None = None
    failed: bool = False

    @property
    def state(self) -> DatasetState:
        """The state that a status shows."""
        return "error" if self.failed else self.found


@dataclass(frozen=True, slots=True)
class Swap:
    """One swap that happened: what to, when, how long the refresh took from the head to the swap, and its bytes."""

    generation: int
    snapshot_id: int
    at_ms: int
    seconds: float
    fetched_bytes: int
    reused_bytes: int


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """One dataset of a reader, at one moment.

    `current` is what is served, whatever the state: a failed attempt leaves it as it is. `age_seconds` counts from the
    commit of what is served, by this machine's clock. `head_generation` is the last one that was seen. `pin` is the
    snapshot that this reader is to hold, if it is; `current.pinned` tells whether it does.
    """

    dataset: str
    state: DatasetState
    current: Current | None
    age_seconds: float | None
    head_generation: int | None
    leases: int
    draining: tuple[Draining, ...]
    last_error: Failure | None
    swaps: tuple[Swap, ...]
    row_counts: Mapping[str, int]
    local_copies: tuple[str, ...]
    pin: int | None = None
    handoffs: tuple[HandoffOutcome, ...] = ()

    @property
    def lag(self) -> int | None:
        """How many generations the head is ahead of what is served."""
        if self.head_generation is None:
            return None
        return max(self.head_generation - (self.current.generation if self.current else 0), 0)

    def to_json(self) -> dict[str, Any]:
        """The status as JSON values."""
        content = asdict(self)
        for draining, shown in zip(self.draining, content["draining"], strict=True):
            shown["leases"] = draining.leases
        return content | {"lag": self.lag}
