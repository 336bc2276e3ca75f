"""Which readers do not keep up with a dataset, and what a sensor remembers of having said and done about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from snapshot_assets.sensors.asking import HOPELESS

if TYPE_CHECKING:
    from snapshot_assets.maintenance.readers import FoundReaders, Standing
    from snapshot_assets.model.head import Head

__all__ = ["Finding", "LagBounds", "LagMemory", "finding_of"]

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class LagBounds:
    """How far a reader may be behind: for so many seconds, and by so many generations."""

    max_seconds: float
    max_behind: int | None = None

    def broken_by(self, standing: Standing) -> str | None:
        """Why a live reader does not keep up, in one word for the kind of it and one for the cause."""
        if not standing.generations:
            return None
        if standing.announced.last_error:
            return f"stuck {standing.announced.last_error.partition(':')[0]}"
        too_far = self.max_behind is not None and standing.generations > self.max_behind
        return "behind" if too_far or standing.seconds > self.max_seconds else None


@dataclass(frozen=True, slots=True)
class Finding:
    """How the readers of one dataset do.

    Attributes:
        head: the dataset's head.
        alive: how many live readers follow it.
        lagging: those that do not keep up, each with the kind of its trouble.
        dead: those that have fallen silent.
    """

    head: Head
    alive: int
    lagging: tuple[tuple[Standing, str], ...]
    dead: tuple[Standing, ...]

    @property
    def mark(self) -> str:
        """Short, and another one whenever somebody else does not keep up, or for another reason; empty when all do."""
        if not self.lagging and not self.dead:
            return ""
        named = [f"{one.reader.announcement.reader_id} {kind}" for one, kind in self.lagging]
        named += [f"{one.reader.announcement.reader_id} dead" for one in self.dead]
        return hashlib.blake2b("\n".join(sorted(named)).encode(), digest_size=6).hexdigest()

    @property
    def is_worth_asking(self) -> bool:
        """Whether a reload could help: a reader that lags can be called, and does not refuse for good."""
        return any(
            one.reader.announcement.endpoint is not None and kind.removeprefix("stuck ") not in HOPELESS
            for one, kind in self.lagging
        )


def finding_of(head: Head, found: FoundReaders, bounds: LagBounds, now_ms: int) -> Finding:
    """Compare what the readers say of a dataset with its head."""
    from snapshot_assets.maintenance.readers import standing

    standings = [one for reader in found.known if (one := standing(reader, head, now_ms)) is not None]
    alive = [one for one in standings if one.reader.is_alive]
    return Finding(
        head,
        len(alive),
        tuple((one, kind) for one in alive if (kind := bounds.broken_by(one)) is not None),
        tuple(one for one in standings if not one.reader.is_alive),
    )


class LagMemory:
    """What was told and asked before, by dataset: the sensor's cursor.

    Datasets whose readers have kept up since the last generation take no room.

    Args:
        text: the cursor of the last tick; anything that is not one counts as none.
        now: seconds.
        pause: seconds between the first two attempts; it doubles.
        max_attempts: how often a reload of one generation is asked for.
    """

    def __init__(self, text: str | None, now: int, pause: int, max_attempts: int) -> None:
        self._now, self._pause, self._max_attempts = now, pause, max_attempts
        self._told: dict[str, str] = {}
        self._asked: dict[str, tuple[int, int, int]] = {}
        try:
            stored = json.loads(text or "{}")
            if stored.get("v") == _VERSION:
                self._told = {str(name): str(mark) for name, mark in stored["told"].items()}
                self._asked = {str(name): (int(g), int(n), int(at)) for name, (g, n, at) in stored["asked"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            self._told, self._asked = {}, {}

    def to_text(self) -> str:
        """The cursor to hand to Dagster."""
        return json.dumps({"v": _VERSION, "told": self._told, "asked": self._asked}, separators=(",", ":"))

    def is_news(self, finding: Finding) -> bool:
        """Remember what is told of a dataset; whether it is something else than the last time."""
        dataset, mark = finding.head.dataset, finding.mark
        if not finding.lagging and not self.attempts(finding):
            # Those of this generation stay: who falls behind again is asked by another run key than before.
            self._asked.pop(dataset, None)
        if self._told.get(dataset, "") == mark:
            return False
        if mark:
            self._told[dataset] = mark
        else:
            del self._told[dataset]
        return True

    def attempts(self, finding: Finding) -> int:
        """How often a reload of this generation was asked for."""
        generation, attempts, _ = self._asked.get(finding.head.dataset, (None, 0, 0))
        return attempts if generation == finding.head.generation else 0

    def may_ask(self, finding: Finding) -> bool:
        """Whether a reload should be asked for now."""
        attempts = self.attempts(finding)
        at = self._asked[finding.head.dataset][2] if attempts else 0
        return finding.is_worth_asking and attempts < self._max_attempts and self._now >= at

    def asked(self, finding: Finding) -> int:
        """Remember that a reload is asked for, and tell for the how many-th time."""
        attempt = self.attempts(finding) + 1
        pause = self._pause * 2**attempt
        self._asked[finding.head.dataset] = (finding.head.generation, attempt, self._now + pause)
        return attempt

    def has_given_up(self, finding: Finding) -> bool:
        """Whether nobody is asked again before the next generation."""
        return finding.is_worth_asking and self.attempts(finding) >= self._max_attempts

    def forget_others(self, names: Iterable[str]) -> None:
        """Forget the datasets that are not looked at any more."""
        kept = set(names)
        self._told = {name: mark for name, mark in self._told.items() if name in kept}
        self._asked = {name: asked for name, asked in self._asked.items() if name in kept}
