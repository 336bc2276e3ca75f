"""The readers that announce themselves in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from snapshot_assets.errors import DocumentDamaged, NotFound
from snapshot_assets.model.announcement import MAX_ANNOUNCEMENT_BYTES, READERS_PREFIX, Announcement
from snapshot_assets.store.contract import Store

__all__ = ["KnownReader", "known_readers", "served_snapshots"]


@dataclass(frozen=True, slots=True)
class KnownReader:
    """One announced reader, when the store last heard of it, and whether it counts as alive."""

    announcement: Announcement
    last_heard_ms: int
    is_alive: bool

    def to_json(self) -> dict[str, Any]:
        """The reader as the command line prints it."""
        said = self.announcement
        return {
            "reader_id": said.reader_id,
            "endpoint": said.endpoint,
            "cohort": said.cohort,
            "last_heard_ms": self.last_heard_ms,
            "alive": self.is_alive,
            "datasets": {name: one.to_json() for name, one in sorted(said.datasets.items())},
        }


def known_readers(objects: Store, now_ms: int) -> list[KnownReader]:
    """Every reader that ever announced itself and was not forgotten, sorted by id.

    Args:
        objects: the store.
        now_ms: the time by the store's own clock, as far as it is known.

    Raises:
        DocumentDamaged, UnsupportedFormatVersion: an announcement can not be understood; who it is for is not known.
        StoreUnavailable: the store does not answer.
    """
    readers = []
    for listed in sorted(objects.list(READERS_PREFIX), key=lambda listed: listed.key):
        try:
            data = objects.read(listed.key, limit=MAX_ANNOUNCEMENT_BYTES).data
        except NotFound:
            continue
        try:
            announcement = Announcement.parse(data, listed.key)
        except DocumentDamaged as error:
            hint = f"Delete {listed.key}: a reader that lives announces itself again."
            raise DocumentDamaged(error.message, hint=hint) from error
        readers.append(
            KnownReader(announcement, listed.last_modified_ms, announcement.is_alive(listed.last_modified_ms, now_ms))
        )
    return readers


def served_snapshots(readers: list[KnownReader], dataset: str, incarnation: str) -> Mapping[int, str]:
    """The snapshots of one incarnation that live readers serve, with a reader each."""
    return {
        one.snapshot_id: reader.announcement.reader_id
        for reader in readers
        if reader.is_alive and (one := reader.announcement.datasets.get(dataset)) is not None
        if one.snapshot_id is not None and one.incarnation == incarnation
    }
