"""What to load: decided from a head, what is served, the pin and the floor. Nothing here waits, reads or changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from snapshot_assets.errors import ReaderError, SnapshotAssetsError, SnapshotMissing
from snapshot_assets.model.head import Head, SnapshotEntry, Status
from snapshot_assets.reader.settings import Current, OnDropped

__all__ = ["Decision", "Load", "Note", "Pin", "Refuse", "Served", "Situation", "Stay", "Unload", "choose"]


@dataclass(frozen=True, slots=True)
class Pin:
    """The snapshot to hold; of the incarnation that it was first found in, once it was found."""

    snapshot_id: int
    incarnation: str | None = None

    def holds(self, incarnation: str, snapshot_id: int) -> bool:
        """Whether this is the snapshot."""
        return self.snapshot_id == snapshot_id and self.incarnation in (None, incarnation)


@dataclass(frozen=True, slots=True)
class Served:
    """What is served, and the digest of its manifest: a store that was set back may have others of its number."""

    current: Current
    manifest_digest: str


@dataclass(frozen=True, slots=True)
class Stay:
    """Nothing to do. `held`: because the pin holds what is served. `went_back`: the store is behind what is served."""

    outcome: Literal["not_modified", "waiting"]
    held: bool = False
    went_back: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """What is served stays, under another generation or another choice; `current` says which."""

    current: Current


@dataclass(frozen=True, slots=True)
class Load:
    """Load this snapshot of the head, as this generation; `pinned` when the pin chose it."""

    entry: SnapshotEntry
    generation: int
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Unload:
    """Serve nothing any more."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing that the head offers may be served; what is served goes on."""

    error: SnapshotAssetsError


Decision: TypeAlias = Stay | Note | Load | Unload | Refuse


@dataclass(frozen=True, slots=True)
class Situation:
    """What a reader decides from, beside the head.

    Args:
        served: what is served; none while nothing is.
        floor: the generation below which nothing is served: the highest one that was, also before a restart.
        pin: the snapshot to hold, if one is.
        on_dropped: what to do with what is served when the dataset is dropped.
        folder: where the dataset's local copies lie; refusals name it.
    """

    served: Served | None
    floor: int
    pin: Pin | None
    on_dropped: OnDropped
    folder: Path

    def serves(self, head: Head, snapshot_id: int | None) -> bool:
        """Whether a snapshot of the head is what is served."""
        if self.served is None or snapshot_id is None:
            return False
        entry = head.entry(snapshot_id)
        current = self.served.current
        return (
            (current.incarnation, current.snapshot_id) == (head.incarnation, snapshot_id)
            and entry is not None
            and entry.manifest_digest == self.served.manifest_digest
        )

    @property
    def is_as_pinned(self) -> bool:
        """Whether what is served is what the pin says; without one, whether no earlier one holds it."""
        current = None if self.served is None else self.served.current
        if self.pin is None:
            return current is None or not current.pinned
        return current is not None and current.pinned and self.pin.holds(current.incarnation, current.snapshot_id)

    def has_all_of(self, head: Head) -> bool:
        """Whether there is nothing left to do until the head changes, so that its token may be remembered."""
        if self.served is None:
            return head.status is Status.DROPPED or head.current is None
        if self.pin is not None:
            return head.status is Status.DROPPED or self.is_as_pinned
        return self.serves(head, head.current_snapshot_id)

    def fallbacks(self, head: Head) -> tuple[Load, ...]:
        """What may be loaded when the current snapshot is damaged: older listed ones, the newest first.

        As the generation before the head's: nobody is told that the head's generation is served, and the next attempt
        tries that one again. What is served already goes on being served, and nothing older instead.
        """
        generation = head.generation - 1
        if generation < self.floor or (self.served is not None and generation == self.floor):
            return ()
        choices: list[Load] = []
        for entry in reversed(head.snapshots):
            if head.current_snapshot_id is None or entry.snapshot_id >= head.current_snapshot_id:
                continue
            if self.serves(head, entry.snapshot_id):
                break
            choices.append(Load(entry, generation))
        return tuple(choices)


def choose(head: Head, now: Situation) -> Decision:
    """What to do about a head."""
    if now.pin is not None and head.status is not Status.DROPPED:
        return _choose_pinned(head, now, now.pin)
    served = now.served
    # What a pin chose was not the head's choice under that generation: without the pin, the head's is served.
    released = served is not None and served.current.pinned and served.current.generation == head.generation
    if served is not None and head.generation <= served.current.generation and not released:
        return Stay("not_modified", went_back=not now.serves(head, head.current_snapshot_id))
    if head.generation < now.floor:
        return Refuse(
            ReaderError(
                f"the store went back: the head of {head.dataset!r} has generation {head.generation}, and this reader "
                f"has served {now.floor}, of which it has no whole copy any more",
                hint=f"Restore the store or publish until it is ahead; or remove {now.folder} to accept less.",
            )
        )
    if head.status is Status.DROPPED or head.current is None:
        if now.on_dropped is OnDropped.UNLOAD:
            return Unload()
        return Stay("waiting" if served is None else "not_modified")
    if served is not None and now.serves(head, head.current_snapshot_id):
        return Note(replace(served.current, generation=head.generation, pinned=False))
    return Load(head.current, head.generation)


def _choose_pinned(head: Head, now: Situation, pin: Pin) -> Decision:
    """What the pin says: it is held through all that happens to the head, and is loaded if the head lists it.

    It is served under the head's generation at that moment, and never under a lower one than was served before.
    """
    if now.served is not None and pin.holds(now.served.current.incarnation, now.served.current.snapshot_id):
        current = now.served.current
        held = replace(current, pinned=True)
        if now.serves(head, head.current_snapshot_id):
            held = replace(held, generation=max(held.generation, head.generation))
        if pin.incarnation is not None or current.incarnation == head.incarnation:
            return Stay("not_modified", held=True) if held == current else Note(held)
    entry = head.entry(pin.snapshot_id)
    if entry is None or not pin.holds(head.incarnation, pin.snapshot_id):
        return Refuse(
            SnapshotMissing(
                f"this reader is to hold snapshot {pin.snapshot_id} of {head.dataset!r}, and the head does not list it",
                hint="Pin one that is listed, or none.",
            )
        )
    return Load(entry, max(head.generation, now.floor), pinned=True)
