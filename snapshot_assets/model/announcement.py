"""What a reader says of itself in the store: where it is reached, and what it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from snapshot_assets.model.document import Document, dump_document, parse_document

__all__ = ["MAX_ANNOUNCEMENT_BYTES", "READERS_PREFIX", "Announced", "Announcement", "announcement_key"]

MAX_ANNOUNCEMENT_BYTES: Final = 4 * 1024 * 1024
READERS_PREFIX: Final = "readers/"
_SILENT_INTERVALS: Final = 5


def announcement_key(reader_id: str) -> str:
    """Where the announcement of a reader lies."""
    return f"{READERS_PREFIX}{reader_id}.json"


@dataclass(frozen=True, slots=True)
class Announced:
    """What a reader serves of one dataset; no incarnation, generation and snapshot while nothing is loaded.

    `pinned` tells that a pin of the reader chose the snapshot, whatever the head calls current.
    """

    state: str
    incarnation: str | None = None
    generation: int | None = None
    snapshot_id: int | None = None
    last_error: str | None = None
    pinned: bool = False

    @classmethod
    def parse(cls, document: Document) -> Announced:
        """Read one dataset of an announcement."""
        return cls(
            document.text("state"),
            document.optional_text("incarnation"),
            document.optional_count("generation"),
            document.optional_count("snapshot_id"),
            document.optional_text("last_error"),
            "pinned" in document.rest and document.flag("pinned"),
        )

    def to_json(self) -> dict[str, Any]:
        """The dataset as the announcement stores it."""
        return {
            "state": self.state,
            "incarnation": self.incarnation,
            "generation": self.generation,
            "snapshot_id": self.snapshot_id,
            "last_error": self.last_error,
        } | ({"pinned": True} if self.pinned else {})


@dataclass(frozen=True, slots=True)
class Announcement:
    """One reader, all its datasets.

    Attributes:
        reader_id: the reader's own name, the same across restarts.
        endpoint: where it answers control actions; nothing when it does not.
        cohort: the group that a rollout counts it to.
        interval_ms: how often it announces itself; silent for five of these, it counts as dead.
        announced_at_ms: when, by its own clock; whether it is alive is told by the store's.
    """

    reader_id: str
    endpoint: str | None
    cohort: str | None
    interval_ms: int
    announced_at_ms: int
    datasets: Mapping[str, Announced]
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, data: bytes, where: str) -> Announcement:
        """Read an announcement.

        Raises:
            UnsupportedFormatVersion: a newer version of this package wrote it.
            DocumentDamaged: it breaks a rule of the format.
        """
        document = parse_document(data, where)
        return cls(
            reader_id=document.text("reader_id"),
            endpoint=document.optional_text("endpoint"),
            cohort=document.optional_text("cohort"),
            interval_ms=document.count("interval_ms"),
            announced_at_ms=document.count("announced_at_ms"),
            datasets={name: Announced.parse(one) for name, one in document.named_documents("datasets").items()},
            extra=document.rest,
        )

    def to_bytes(self) -> bytes:
        """The document as it is stored."""
        return dump_document(
            {
                **self.extra,
                "reader_id": self.reader_id,
                "endpoint": self.endpoint,
                "cohort": self.cohort,
                "interval_ms": self.interval_ms,
                "announced_at_ms": self.announced_at_ms,
                "datasets": {name: one.to_json() for name, one in self.datasets.items()},
            }
        )

    def is_alive(self, last_modified_ms: int, now_ms: int) -> bool:
        """Whether a reader whose announcement was last written then, by the store's clock, counts as alive now."""
        return now_ms - last_modified_ms <= _SILENT_INTERVALS * self.interval_ms
