"""The readers that announce themselves in the store."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from snapshot_assets.errors import DocumentDamaged, NotFound, StoreError, UnsupportedFormatVersion
from snapshot_assets.model.announcement import MAX_ANNOUNCEMENT_BYTES, READERS_PREFIX, Announced, Announcement
from snapshot_assets.model.head import Head
from snapshot_assets.store.contract import Listed, Store

__all__ = ["FoundReaders", "KnownReader", "ReaderBook", "Standing", "known_readers", "served_snapshots", "standing"]

_PARALLEL: Final = 16


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


@dataclass(frozen=True, slots=True)
class FoundReaders:
    """Every reader that ever announced itself and was not forgotten, sorted by id; and what could not be understood."""

    known: tuple[KnownReader, ...]
    unreadable: tuple[StoreError, ...]


class ReaderBook:
    """Reads the announcements of a store: a list request a look, and a read of each that changed since the last one."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[str, Announcement]] = {}

    def look(self, objects: Store, now_ms: int) -> FoundReaders:
        """The readers of the store as they are now.

        Args:
            objects: the store, the same one each time.
            now_ms: the time by the store's own clock, as far as it is known.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        listed = sorted(objects.list(READERS_PREFIX), key=lambda one: one.key)
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="announcement") as pool:
            found = list(pool.map(lambda one: self._announcement(objects, one), listed))
        self._read = {
            one.key: (one.token, said)
            for one, said in zip(listed, found, strict=True)
            if isinstance(said, Announcement)
        }
        return FoundReaders(
            tuple(
                KnownReader(said, one.last_modified_ms, said.is_alive(one.last_modified_ms, now_ms))
                for one, said in zip(listed, found, strict=True)
                if isinstance(said, Announcement)
            ),
            tuple(said for said in found if isinstance(said, StoreError)),
        )

    def _announcement(self, objects: Store, listed: Listed) -> Announcement | StoreError | None:
        """One announcement; nothing when it is gone, and why when it can not be understood."""
        before = self._read.get(listed.key)
        if before is not None and before[0] == listed.token:
            return before[1]
        try:
            return Announcement.parse(objects.read(listed.key, limit=MAX_ANNOUNCEMENT_BYTES).data, listed.key)
        except NotFound:
            return None
        except DocumentDamaged as error:
            hint = f"Delete {listed.key}: a reader that lives announces itself again."
            return DocumentDamaged(error.message, hint=hint)
        except UnsupportedFormatVersion as error:
            return error


def known_readers(objects: Store, now_ms: int) -> list[KnownReader]:
    """Every reader that ever announced itself and was not forgotten, sorted by id.

    Args:
        objects: the store.
        now_ms: the time by the store's own clock, as far as it is known.

    Raises:
        DocumentDamaged, UnsupportedFormatVersion: an announcement can not be understood; who it is for is not known.
        StoreUnavailable: the store does not answer.
    """
    found = ReaderBook().look(objects, now_ms)
    for error in found.unreadable:
        raise error
    return list(found.known)


@dataclass(frozen=True, slots=True)
class Standing:
    """What one reader serves of one dataset, compared with the head.

    Attributes:
        reader: the reader.
        announced: what it says of the dataset.
        generations: how many generations the head is ahead; 0 for a reader that a pin of its own holds back.
        seconds: for how long the head has been ahead, as far as it still tells.
    """

    reader: KnownReader
    announced: Announced
    generations: int
    seconds: float

    @property
    def name(self) -> str:
        """How people know the reader: by where it answers, else by its id."""
        return self.reader.announcement.endpoint or self.reader.announcement.reader_id


def standing(reader: KnownReader, head: Head, now_ms: int) -> Standing | None:
    """Where a reader stands with a dataset; nothing when it does not follow it."""
    announced = reader.announcement.datasets.get(head.dataset)
    if announced is None:
        return None
    behind = 0
    if head.current_snapshot_id is not None and not announced.pinned:
        behind = max(head.generation - (announced.generation or 0), 0)
    return Standing(reader, announced, behind, _seconds_behind(announced, head, behind, now_ms) if behind else 0.0)


def _seconds_behind(announced: Announced, head: Head, generations: int, now_ms: int) -> float:
    """Since the first publish that the reader missed, or else since what is current became so."""
    since = [now_ms if head.current_since_ms is None else head.current_since_ms]
    if announced.incarnation == head.incarnation and announced.snapshot_id is not None:
        # Each generation that it missed was a publish or a rollback. It may have gone back itself before: of what is
        # newer than what it serves, it missed no more than these.
        newest = head.snapshots[::-1]
        went_back = bool(newest) and newest[0].committed_at_ms != head.current_since_ms
        missed = newest[: generations - went_back]
        since += [entry.committed_at_ms for entry in missed if entry.snapshot_id > announced.snapshot_id]
    return max(now_ms - min(since), 0) / 1000


def served_snapshots(readers: list[KnownReader], dataset: str, incarnation: str) -> Mapping[int, str]:
    """The snapshots of one incarnation that live readers serve, with a reader each."""
    return {
        one.snapshot_id: reader.announcement.reader_id
        for reader in readers
        if reader.is_alive and (one := reader.announcement.datasets.get(dataset)) is not None
        if one.snapshot_id is not None and one.incarnation == incarnation
    }
