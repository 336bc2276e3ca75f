"""Whether the readers that announce themselves keep up with what is published."""

# ruff: noqa: D102  (it implements a contract whose docstrings say it once)

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from snapshot_assets.asset_metadata import duration_text, markdown_table
from snapshot_assets.assets.check_kinds import Finding, Look, SnapshotCheck
from snapshot_assets.clock import in_seconds
from snapshot_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from snapshot_assets.maintenance.readers import Standing
    from snapshot_assets.model.head import Head

__all__ = ["ReaderLagCheck"]

_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class _Told:
    """What is told of one reader of the dataset, and whether it fails the check."""

    at: Standing
    state: str
    fails: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderLagCheck(SnapshotCheck):
    """Every live reader that announces itself serves what it should, or will in a moment.

    A reader fails the check when it is behind the head by more generations, or for longer, than is allowed; and when it
    is behind and its last attempt ended with an error, such as a schema that it does not accept or a damaged snapshot.
    A pin of the reader's own is no lag. A reader announces each swap at once, and all else with its next sign of life:
    every five minutes unless told otherwise. One that was silent for five of its own intervals, by this machine's
    clock, is dead: it is named, and fails the check only where that is asked for, because the announcement of a reader
    that was killed stays.

    Args:
        max_age: how long a reader may be behind; a duration, or seconds. Longer than its refresh interval and what a
            refresh takes.
        max_behind: by how many generations a reader may be behind; none: any.
        min_readers: the least live readers of the dataset.
        fail_on_dead: whether a dead reader fails the check.
        name: the check's name in Dagster.
        severity: what a failed one is shown as.

    Raises:
        ConfigurationError: a bound makes no sense.
    """

    max_age: timedelta | float = 300.0
    max_behind: int | None = None
    min_readers: int = 0
    fail_on_dead: bool = False
    name: str = "reader_lag"

    def __post_init__(self) -> None:
        in_seconds("max_age", self.max_age)
        for name, value in (("max_behind", self.max_behind), ("min_readers", self.min_readers)):
            if value is not None and value < 0:
                raise ConfigurationError(f"{name} is {value}; it takes a number from 0")

    @property
    def description(self) -> str:
        bound = f"at most {duration_text(in_seconds('max_age', self.max_age))}"
        if self.max_behind is not None:
            bound += f" and {self.max_behind} generations"
        return f"Every live reader that announces itself is {bound} behind the head."

    def look_at(self, look: Look) -> Finding:
        from snapshot_assets.maintenance.maintenance import Maintenance
        from snapshot_assets.maintenance.readers import standing

        known = Maintenance(look.store).readers()
        # Anew, and after the readers: one that swapped meanwhile must not seem to be ahead.
        dataset = look.head.dataset
        head = look.store.head(dataset)
        told = [
            self._told(at, head, look.now_ms)
            for reader in known
            if (at := standing(reader, head, look.now_ms)) is not None
        ]
        failing = [one for one in told if one.fails]
        alive = [one for one in told if one.at.reader.is_alive]
        shown: dict[str, Any] = {
            "check/generation": str(head.generation),
            "check/readers_alive": len(alive),
            "check/readers_failing": len(failing),
            "check/generations_behind": max((one.at.generations for one in alive), default=0),
        }
        if told:
            shown["check/readers"] = dg.MetadataValue.md(_table(told))
        problems = []
        if failing:
            problems.append(f"{len(failing)} of {len(told)} readers do not keep up: {_named(failing)}")
        if len(alive) < self.min_readers:
            problems.append(f"{len(alive)} readers are alive, at least {self.min_readers} are asked for")
        if problems:
            return Finding(False, f"{'; '.join(problems)}.", shown)
        if not told:
            return Finding(True, "No reader of it has announced itself.", shown)
        dead = len(told) - len(alive)
        rest = f"; {dead} are dead" if dead else ""
        behind = shown["check/generations_behind"]
        verb = f"are at most {_counted(behind, 'generation')} behind" if behind else "keep up with"
        return Finding(True, f"All {len(alive)} live readers {verb} generation {head.generation}{rest}.", shown)

    def _told(self, at: Standing, head: Head, now_ms: int) -> _Told:
        said = at.announced
        if not at.reader.is_alive:
            silent = duration_text(max(0, now_ms - at.reader.last_heard_ms) / 1000)
            return _Told(at, f"dead: silent for {silent}", self.fail_on_dead)
        # Of several lines, such as two schemas side by side, the first says what it is.
        error = f": {said.last_error.splitlines()[0]}" if said.last_error else ""
        if at.generations:
            too_far = self.max_behind is not None and at.generations > self.max_behind
            fails = bool(error) or too_far or at.seconds > in_seconds("max_age", self.max_age)
            state = f"{_counted(at.generations, 'generation')} behind, for {duration_text(at.seconds)}{error}"
            return _Told(at, state, fails)
        if said.generation is not None and said.generation > head.generation:
            return _Told(at, f"ahead of the head, at {head.generation}: the store went back", True)
        state = "held by a pin of its own" if said.pinned else "up to date"
        return _Told(at, f"{state}{error and f'; its last attempt failed{error}'}", False)


def _table(told: Iterable[_Told]) -> str:
    rows = []
    for one in sorted(told, key=lambda one: not one.fails):
        reader, said = one.at.reader, one.at.announced
        rows.append(
            (
                reader.announcement.reader_id,
                reader.announcement.cohort or "",
                reader.announcement.endpoint or "",
                "nothing" if said.snapshot_id is None else f"snapshot {said.snapshot_id}, generation {said.generation}",
                one.state,
                datetime.fromtimestamp(reader.last_heard_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            )
        )
    return markdown_table(("reader", "cohort", "endpoint", "serves", "state", "last heard of"), rows)


def _named(failing: list[_Told]) -> str:
    named = [f"{one.at.name} ({one.state})" for one in failing[:_NAMED]]
    more = len(failing) - _NAMED
    return "; ".join(named) + (f"; and {more} more" if more > 0 else "")


def _counted(count: int, word: str) -> str:
    return f"1 {word}" if count == 1 else f"{count} {word}s"
