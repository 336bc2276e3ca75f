"""What a rollout decides: who is asked when, whether a reader is well, what the report says. No calls, no waits."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from snapshot_assets.asset_metadata import markdown_table, size_text
from snapshot_assets.clock import in_seconds
from snapshot_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from snapshot_assets.resources.fleet import FleetReader, NotCalled
    from snapshot_assets.serve.client import NodeClient

__all__ = ["Answer", "HealthCheck", "Outcome", "Planned", "Rollout", "assigned", "ill", "served_before", "summary"]

HealthCheck = Callable[["NodeClient", Mapping[str, Any]], str | None]
"""A user's own check of one reader: gets a client of it and its status; answers why it is not well, or nothing."""

Outcome = Literal["loaded", "not_modified", "noted", "waiting", "behind", "refused", "slow", "unreachable", "unhealthy"]
"""How asking one reader ended. The last five are failures: it does not serve the generation, its answer was an error,
it did not answer in time, nobody answered at all, or it serves it and is not well."""

_CANARY: Final = "canary"


@dataclass(frozen=True, slots=True)
class Rollout:
    """The policy of a rollout: a canary, a look at its health, then the rest in waves.

    Attributes:
        canary: the readers that are asked first: a cohort's name, or the first so many that answer.
        waves: how the rest is divided, in order. Shares of it, which add up as they go, such as `(0.25, 1.0)`: a
            quarter, then everybody else. Or sizes, such as `(5, 20)`: 5 readers, then everybody else.
        soak: seconds for which the readers of a stage must be well before the next stage; they are looked at all along.
        health: what else a reader must pass after it serves the generation. SQL that must return no row, asked of the
            reader over Flight SQL; or a function that gets a `NodeClient` and the reader's status, and answers why the
            reader is not well, or nothing.
        canary_max_failures: how many readers of the canary may fail before the rollout stops.
        max_failures: how many readers of one wave may fail before the rollout stops; none: any, they are only named.
        rollback: when it stops, make the snapshot that the readers served before current again.

    Raises:
        ConfigurationError: a value makes no sense.
    """

    canary: str | int = 1
    waves: tuple[float | int, ...] = (1.0,)
    soak: float = 0.0
    health: str | HealthCheck | None = None
    canary_max_failures: int = 0
    max_failures: int | None = None
    rollback: bool = False

    def __post_init__(self) -> None:
        in_seconds("soak", self.soak)
        if not self.canary or (isinstance(self.canary, int) and self.canary < 1):
            raise ConfigurationError(f"canary is {self.canary!r}; it takes a cohort's name, or a number from 1")
        for name in ("canary_max_failures", "max_failures"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it takes a number from 0")
        if not self.waves or any(wave <= 0 for wave in self.waves):
            raise ConfigurationError(f"waves is {self.waves!r}; it takes one share or size at least, above zero")
        if self._by_share and (list(self.waves) != sorted(set(self.waves)) or self.waves[-1] != 1):
            raise ConfigurationError(
                f"waves is {self.waves!r}; shares rise, and the last one is 1.0",
                hint="For a quarter, then the rest: waves=(0.25, 1.0).",
            )

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, in order."""
        return (_CANARY, *(f"wave_{number}" for number in range(1, len(self.waves) + 1)))

    def tolerates(self, stage: str, failures: int) -> bool:
        """Whether the rollout goes on after so many failures in a stage."""
        most = self.canary_max_failures if stage == _CANARY else self.max_failures
        return most is None or failures <= most

    def wave_sizes(self, count: int) -> list[int]:
        """How many of so many readers each wave gets; the last one takes everybody who is left."""
        if self._by_share:
            ends = [math.ceil(round(share * count, 6)) for share in self.waves]
        else:
            ends = [min(int(sum(self.waves[: number + 1])), count) for number in range(len(self.waves))]
        ends[-1] = count
        return [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    @property
    def _by_share(self) -> bool:
        return any(isinstance(wave, float) for wave in self.waves)


@dataclass(frozen=True, slots=True)
class Planned:
    """One reader of a rollout.

    Attributes:
        key: the name of its steps.
        reader: where it answers.
        cohort: the group that it counts itself to, as far as it is known.
        stage: when it is asked.
    """

    key: str
    reader: FleetReader
    cohort: str | None
    stage: str


def assigned(
    readers: Sequence[tuple[str, FleetReader, str | None]], answering: Collection[str], rollout: Rollout
) -> list[Planned]:
    """Divide the readers into stages, in their order; those that do not answer now come last.

    Args:
        readers: the key, the reader, and its cohort as far as it is known.
        answering: the keys of those that answer.
        rollout: the policy.

    Raises:
        ConfigurationError: there are readers, and none of them is of the canary's cohort.
    """
    in_order = sorted(readers, key=lambda one: one[0] not in answering)
    if isinstance(rollout.canary, int):
        canary = in_order[: rollout.canary]
    else:
        canary = [one for one in in_order if one[2] == rollout.canary]
        if readers and not canary:
            found = ", ".join(sorted({repr(cohort) for *_, cohort in readers if cohort})) or "none"
            raise ConfigurationError(
                f"no reader is of the cohort {rollout.canary!r} of the canary; known cohorts: {found}",
                hint="Start a reader with --cohort, or name another canary. Nobody was asked.",
            )
    stages = dict.fromkeys((key for key, *_ in canary), _CANARY)
    rest = [key for key, *_ in in_order if key not in stages]
    begin = 0
    for stage, size in zip(rollout.stages[1:], rollout.wave_sizes(len(rest)), strict=True):
        stages |= dict.fromkeys(rest[begin : begin + size], stage)
        begin += size
    return [Planned(key, reader, cohort, stages[key]) for key, reader, cohort in in_order]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one reader in a rollout.

    `reason`, `error` (its kind) and `hint` tell of a failure. `hopeless`: asking again could not help.
    """

    endpoint: str
    outcome: Outcome
    snapshot_id: int | None = None
    generation: int | None = None
    fetched_bytes: int | None = None
    seconds: float | None = None
    reason: str = ""
    error: str = ""
    hint: str = ""
    hopeless: bool = False

    @property
    def failed(self) -> bool:
        """Whether it does not serve what it was asked for, or is not well."""
        return bool(self.reason)


def ill(status: Mapping[str, Any], dataset: str, generation: int | None) -> str | None:
    """Why a reader with this status is not well; nothing when it serves at least the generation and has no error."""
    found = status["datasets"].get(dataset)
    if found is None or found["current"] is None:
        return f"it serves nothing of {dataset!r}: {status['missing'].get(dataset, 'not followed')}"
    served = found["current"]["generation"]
    if generation is not None and served < generation:
        error = found["last_error"]
        why = f": {error['kind']}: {error['message']}" if error else ""
        return f"it serves generation {served}, not {generation}{why}"
    if found["last_error"]:
        return f"its last attempt failed: {found['last_error']['kind']}: {found['last_error']['message']}"
    # One that still waits for other datasets, or can not load them, is none the less well with this one.
    if not status["ready"] and not status["missing"]:
        return "it is not ready: it is drained"
    return None


def served_before(
    statuses: Iterable[Mapping[str, Any]], dataset: str, generation: int | None, incarnation: str | None
) -> int | None:
    """The snapshot that the readers serve before a rollout: that of the highest generation below the new one."""
    served = [
        (found["current"]["generation"], found["current"]["snapshot_id"])
        for status in statuses
        if (found := status["datasets"].get(dataset)) is not None and found["current"] is not None
        if not found["current"]["pinned"] and incarnation in {None, found["current"]["incarnation"]}
        if generation is None or found["current"]["generation"] < generation
    ]
    return max(served)[1] if served else None


def summary(planned: Sequence[Planned], answers: Mapping[str, Answer], not_called: Sequence[NotCalled] = ()) -> str:
    """Who serves what, as a Markdown table by stage; columns that would be empty are left out."""
    columns = ("reader", "cohort", "stage", "outcome", "snapshot", "generation", "fetched", "seconds", "reason")
    rows: list[tuple[object, ...]] = []
    for one in planned:
        said = answers.get(one.key)
        if said is None:
            rows.append((one.reader.endpoint, one.cohort or "", one.stage, "not asked", "", "", "", "", ""))
            continue
        served = ["" if value is None else value for value in (said.snapshot_id, said.generation)]
        fetched = "" if said.fetched_bytes is None else size_text(said.fetched_bytes)
        seconds = "" if said.seconds is None else f"{said.seconds:.1f}"
        ends = (said.outcome, *served, fetched, seconds, said.reason)
        rows.append((one.reader.endpoint, one.cohort or "", one.stage, *ends))
    rows += [(one.name, one.cohort or "", "", "not called", "", "", "", "", one.reason) for one in not_called]
    if not rows:
        return "No reader was asked."
    shown = [number for number in range(len(columns)) if any(row[number] != "" for row in rows)]
    return markdown_table(
        [columns[number] for number in shown],
        [[row[number] for number in shown] for row in rows],
        right={"snapshot", "generation", "fetched", "seconds"},
    )
