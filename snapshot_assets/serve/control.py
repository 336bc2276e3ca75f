"""What an operator or a reload job asks of a node: JSON in, JSON out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from snapshot_assets.errors import ConfigurationError
from snapshot_assets.reader.settings import ReaderSettings, RefreshResult
from snapshot_assets.reader.status import DatasetStatus
from snapshot_assets.serve.sessions import Sessions

__all__ = ["CONTROL_ACTIONS", "Control", "ServedReader"]

CONTROL_ACTIONS: Mapping[str, str] = {
    "status": "What the node serves of each dataset. No body.",
    "refresh": 'Look for a newer generation now: {"dataset": name, "at_least_generation": n, "wait": seconds}.',
    "pin": 'Serve this snapshot whatever the head calls current: {"dataset": name, "snapshot_id": n}.',
    "unpin": 'Follow the head again: {"dataset": name}.',
    "drain": 'Be not ready, and wait until no query runs: {"wait": seconds}; be ready again: {"resume": true}.',
}
"""The control actions, with what they do."""

_RETRY_SECONDS = 0.25
_LONGEST_WAIT = 86_400


class ServedReader(Protocol):
    """What the node needs of a reader."""

    @property
    def settings(self) -> ReaderSettings:
        """How it was told to behave."""

    @property
    def catalog(self) -> Sessions:
        """All followed datasets in one SQL session."""

    def follow(self, name: str, *, refresh: bool = True) -> object:
        """Serve a dataset from now on."""

    def refresh(self, name: str, at_least_generation: int | None = None) -> RefreshResult:
        """Look for a newer generation now."""

    def pin(self, name: str, snapshot_id: int | None) -> RefreshResult:
        """Serve a snapshot whatever the head calls current; none: follow the head again."""

    def status(self) -> Mapping[str, DatasetStatus]:
        """What is served of each followed dataset."""

    def announce_endpoint(self, endpoint: str | None) -> None:
        """Tell the store where control actions are answered."""


class Control:
    """The control actions of a node. Safe to call from several threads.

    Args:
        reader: what follows the datasets.
        datasets: what the node serves.
        running: how many queries run now.
    """

    def __init__(self, reader: ServedReader, datasets: Sequence[str], running: Callable[[], int]) -> None:
        self._reader = reader
        self._datasets = tuple(datasets)
        self._running = running
        self.is_draining = False

    def missing(self) -> dict[str, str]:
        """The datasets that are not loaded, and why."""
        status = self._reader.status()
        missing: dict[str, str] = {}
        for name in self._datasets:
            found = status.get(name)
            if found is None:
                missing[name] = "not followed yet"
            elif found.current is None:
                error = found.last_error
                missing[name] = found.state if error is None else f"{found.state}: {error.kind}: {error.message}"
        return missing

    def act(self, action: str, body: bytes) -> dict[str, Any]:
        """Answer one control action.

        Raises:
            ConfigurationError: the body is not what the action takes, or the dataset is not served here.
            SnapshotAssetsError: what the refresh or the pin failed with; the node goes on serving what it has.
        """
        if action == "status":
            return self.status()
        fields = _fields(action, body)
        wait = fields.get("wait") or 0.0
        match action:
            case "pin" | "unpin":
                return self.pin(fields["dataset"], fields.get("snapshot_id"))
            case "drain":
                return self.resume() if fields.get("resume") else self.drain(wait)
            case _:
                return self.refresh(fields["dataset"], fields.get("at_least_generation"), wait)

    def status(self) -> dict[str, Any]:
        """What is served of each dataset, and what is missing."""
        status = self._reader.status()
        missing = self.missing()
        return {
            "cohort": self._reader.settings.cohort,
            "ready": not missing and not self.is_draining,
            "draining": self.is_draining,
            "missing": missing,
            "datasets": {name: status[name].to_json() for name in self._datasets if name in status},
        }

    def refresh(self, dataset: str, at_least_generation: int | None, wait: float) -> dict[str, Any]:
        """Refresh a dataset; again, for up to `wait` seconds, while it is below a wanted generation.

        `reached` tells whether what is served now is at least that generation.
        """
        self._check_served(dataset)
        deadline = time.monotonic() + wait
        while True:
            if dataset not in self._reader.status():
                self._reader.follow(dataset)
            result = self._reader.refresh(dataset, at_least_generation)
            reached = result.generation is not None and result.generation >= (at_least_generation or 0)
            left = deadline - time.monotonic()
            if reached or left <= 0:
                return asdict(result) | {"reached": reached}
            time.sleep(min(left, _RETRY_SECONDS))

    def pin(self, dataset: str, snapshot_id: int | None) -> dict[str, Any]:
        """Hold a snapshot of a dataset; none: follow the head again. It ends with the process."""
        self._check_served(dataset)
        return asdict(self._reader.pin(dataset, snapshot_id))

    def drain(self, wait: float) -> dict[str, Any]:
        """Be not ready from now on, so that clients are sent elsewhere, and wait until no query runs.

        Queries that come all the same are answered: `drained` tells whether none ran at a moment before the end.
        """
        self.is_draining = True
        deadline = time.monotonic() + wait
        while (running := self._running()) and (left := deadline - time.monotonic()) > 0:
            if not self.is_draining:
                break
            time.sleep(min(left, _RETRY_SECONDS))
        return {"draining": self.is_draining, "drained": self.is_draining and not running, "running": running}

    def resume(self) -> dict[str, Any]:
        """Be ready again."""
        self.is_draining = False
        return {"draining": False, "drained": False, "running": self._running()}

    def _check_served(self, dataset: str) -> None:
        if dataset not in self._datasets:
            raise ConfigurationError(
                f"this node serves {', '.join(self._datasets)}, and not {dataset!r}", dataset=dataset
            )


def _fields(action: str, body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"the action's body is no JSON: {error}", hint="Correct the action's body.") from error
    if not isinstance(fields, dict):
        raise ConfigurationError("the action's body is no JSON object", hint="Correct the action's body.")
    takes = _TAKES[action]
    if fields.keys() - takes.keys() or not all(fits(fields.get(name)) for name, fits in takes.items()):
        raise ConfigurationError(f"{action} takes {CONTROL_ACTIONS[action]}", hint="Correct the action's body.")
    return fields


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_count_or_none(value: object) -> bool:
    return value is None or _is_count(value)


def _is_name(value: object) -> bool:
    return isinstance(value, str)


def _is_wait(value: object) -> bool:
    return value is None or (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LONGEST_WAIT
    )


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


_TAKES: Mapping[str, Mapping[str, Callable[[object], bool]]] = {
    "refresh": {"dataset": _is_name, "at_least_generation": _is_count_or_none, "wait": _is_wait},
    "pin": {"dataset": _is_name, "snapshot_id": _is_count},
    "unpin": {"dataset": _is_name},
    "drain": {"wait": _is_wait, "resume": _is_flag},
}
"""What stands in the body of each action; what is left out is none."""
