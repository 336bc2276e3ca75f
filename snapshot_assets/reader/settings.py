"""What a reader is told, and what it answers with."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeVar

from snapshot_assets.clock import in_seconds
from snapshot_assets.errors import ConfigurationError, InconsistentSnapshotSettings
from snapshot_assets.ids import check_dataset_name
from snapshot_assets.model.schema import SchemaPolicy, TableSchema

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Current",
    "DrainPolicy",
    "HandoffOutcome",
    "HandoffStep",
    "OnBootstrapFailure",
    "OnDamage",
    "OnDropped",
    "ReaderSettings",
    "RefreshResult",
    "snapshot_number",
]

_Choice = TypeVar("_Choice", bound=enum.Enum)

HandoffStep = Literal["check_compat", "persist", "open", "drain", "checkpoint", "start"]


class OnDamage(enum.Enum):
    """What to do when the snapshot that readers should serve is damaged in the store."""

    RAISE = "raise"
    FALLBACK = "fallback"


class OnBootstrapFailure(enum.Enum):
    """What to do when nothing is loaded yet and the first attempt fails.

    Raise: `follow` raises. Warn: `follow` returns a provider that has nothing loaded yet, and polling goes on. Retry:
    `follow` tries again, with growing pauses, until it succeeds or the reader is closed. Fallback: if the current
    snapshot is damaged the next older listed one is loaded; any other failure is raised.
    """

    RAISE = "raise"
    WARN = "warn"
    RETRY = "retry"
    FALLBACK = "fallback"


class OnDropped(enum.Enum):
    """What to do with what is loaded when the dataset has been dropped."""

    KEEP = "keep"
    UNLOAD = "unload"


class DrainPolicy(enum.Enum):
    """What happens to leases that outlive the drain timeout: a warning, or what they run is interrupted, too."""

    WAIT = "wait"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """How a reader behaves.

    Args:
        refresh_interval: seconds, or a `timedelta`, between two looks at the store; none: only when told.
        keep_local: how many local copies of a dataset stay warm, the served one included; those in use stay anyway, and
            one more is spare, or being built.
        verify_on_start: check the digests of a local copy before it is served after a start, not only its sizes.
        schema_policy: what is accepted when the schema changes.
        contract: for a dataset, its tables and their schemas (Arrow), against which every snapshot is checked under
            the policy, in place of what was loaded before.
        on_damage: what to do when the current snapshot is damaged in the store.
        on_bootstrap_failure: what `follow` does when nothing is loaded and the first attempt fails.
        on_dropped: what to do with what is loaded when the dataset is dropped.
        pins: for a dataset, the snapshot that is served whatever the head calls current; see `SnapshotReader.pin`.
        drain_timeout: seconds, or a `timedelta`, after which leases of an old generation are reported; none: never.
        drain_policy: whether leases that outlive the drain timeout are only reported, or interrupted too.
        threads: how many datasets are refreshed side by side.
        catalog_config: DuckDB settings of the catalogue's sessions, such as `memory_limit` and `threads`.
        announce_interval: seconds, or a `timedelta`, between two signs of life in the store, `readers/<id>.json`, by
            which operators and retention know what this reader serves; each change is announced too. None: never.
        cohort: the group that a rollout counts this reader to.

    Raises:
        ConfigurationError: a value is out of range or unknown.
        InconsistentSnapshotSettings: leases are to be cancelled after a timeout that is not set.
    """

    refresh_interval: float | None = 60.0
    keep_local: int = 2
    verify_on_start: bool = False
    schema_policy: SchemaPolicy = SchemaPolicy.STRICT
    contract: Mapping[str, Mapping[str, TableSchema]] = field(default_factory=dict)
    on_damage: OnDamage = OnDamage.RAISE
    on_bootstrap_failure: OnBootstrapFailure = OnBootstrapFailure.RAISE
    on_dropped: OnDropped = OnDropped.KEEP
    pins: Mapping[str, int] = field(default_factory=dict)
    drain_timeout: float | None = None
    drain_policy: DrainPolicy = DrainPolicy.WAIT
    threads: int = 8
    catalog_config: Mapping[str, str | int | bool] = field(default_factory=dict)
    announce_interval: float | None = 300.0
    cohort: str | None = None

    def __init__(
        self,
        *,
        refresh_interval: float | timedelta | None = 60.0,
        keep_local: int = 2,
        verify_on_start: bool = False,
        schema_policy: SchemaPolicy | Literal["strict", "widening", "any"] = SchemaPolicy.STRICT,
        contract: Mapping[str, Mapping[str, pa.Schema | TableSchema]] | None = None,
        on_damage: OnDamage | Literal["raise", "fallback"] = OnDamage.RAISE,
        on_bootstrap_failure: OnBootstrapFailure
        | Literal["raise", "warn", "retry", "fallback"] = OnBootstrapFailure.RAISE,
        on_dropped: OnDropped | Literal["keep", "unload"] = OnDropped.KEEP,
        pins: Mapping[str, int] | None = None,
        drain_timeout: float | timedelta | None = None,
        drain_policy: DrainPolicy | Literal["wait", "cancel"] = DrainPolicy.WAIT,
        threads: int = 8,
        catalog_config: Mapping[str, str | int | bool] | None = None,
        announce_interval: float | timedelta | None = 300.0,
        cohort: str | None = None,
    ) -> None:
        values = {
            "refresh_interval": _seconds("refresh_interval", refresh_interval),
            "keep_local": _at_least_one("keep_local", keep_local),
            "verify_on_start": verify_on_start,
            "schema_policy": _choice("schema_policy", schema_policy, SchemaPolicy),
            "contract": _contract(contract or {}),
            "on_damage": _choice("on_damage", on_damage, OnDamage),
            "on_bootstrap_failure": _choice("on_bootstrap_failure", on_bootstrap_failure, OnBootstrapFailure),
            "on_dropped": _choice("on_dropped", on_dropped, OnDropped),
            "pins": {check_dataset_name(name): snapshot_number("pins", pin) for name, pin in (pins or {}).items()},
            "drain_timeout": _seconds("drain_timeout", drain_timeout),
            "drain_policy": _choice("drain_policy", drain_policy, DrainPolicy),
            "threads": _at_least_one("threads", threads),
            "catalog_config": dict(catalog_config or {}),
            "announce_interval": _seconds("announce_interval", announce_interval),
            "cohort": cohort,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)
        if self.drain_policy is DrainPolicy.CANCEL and self.drain_timeout is None:
            raise InconsistentSnapshotSettings(
                "drain_policy is 'cancel', and there is no drain_timeout after which to cancel",
                hint="Set drain_timeout, or leave drain_policy at 'wait'.",
            )


@dataclass(frozen=True, slots=True)
class Current:
    """What a reader serves of one dataset.

    `pinned` tells that a pin of this reader chose the snapshot, whatever the head called current under the generation.
    """

    generation: int
    snapshot_id: int
    incarnation: str
    loaded_at_ms: int
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class HandoffOutcome:
    """How the last hand-off of something that is kept beside the data ended.

    `state` is `current` when it stands beside what is served, `waiting` while nothing is served, and `stopped` for a
    stream that does not run: its position is kept, and every refresh tries to start it. `step` and `error` tell what
    failed, if anything did.
    """

    name: str
    kind: Literal["format", "index", "stream"]
    state: Literal["waiting", "current", "stopped"]
    step: HandoffStep | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RefreshResult:
    """How one refresh ended.

    `outcome` is `loaded` (a swap), `not_modified`, `waiting` (nothing is published yet), or `noted` (what is loaded
    got a higher generation, or is held by a pin from now on). `generation` and `snapshot_id` are what is served now;
    null while nothing is. `handoffs` is one entry for each hand-off that this refresh carried out.
    """

    outcome: Literal["loaded", "not_modified", "waiting", "noted"]
    dataset: str
    generation: int | None
    snapshot_id: int | None
    fetched_bytes: int = 0
    reused_bytes: int = 0
    seconds: float = 0.0
    handoffs: tuple[HandoffOutcome, ...] = ()


def _seconds(name: str, value: float | timedelta | None) -> float | None:
    if value is None:
        return None
    seconds = in_seconds(name, value)
    if not seconds:
        raise ConfigurationError(f"{name} is {value!r}; it takes seconds above zero, a timedelta, or none")
    return seconds


def snapshot_number(name: str, value: object) -> int:
    """A value that can be the id of a snapshot.

    Raises:
        ConfigurationError: it can not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(f"{name} has {value!r}; a snapshot id is a whole number from 0")
    return value


def _at_least_one(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} is {value!r}; it takes a whole number from 1")
    return value


def _choice(name: str, value: _Choice | str, choices: type[_Choice]) -> _Choice:
    try:
        return choices(value)
    except ValueError:
        known = ", ".join(repr(choice.value) for choice in choices)
        raise ConfigurationError(f"{name} is {value!r}; it takes one of {known}") from None


def _contract(
    contract: Mapping[str, Mapping[str, pa.Schema | TableSchema]],
) -> dict[str, dict[str, TableSchema]]:
    return {
        check_dataset_name(dataset): {
            table: schema if isinstance(schema, TableSchema) else TableSchema.from_arrow(schema)
            for table, schema in tables.items()
        }
        for dataset, tables in contract.items()
    }
