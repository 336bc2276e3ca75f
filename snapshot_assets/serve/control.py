"""What an operator or a reload job asks of a node: JSON in, JSON out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from snapshot_assets.errors import ConfigurationError
from snapshot_assets.reader.settings import RefreshResult
from snapshot_assets.reader.status import DatasetStatus
from snapshot_assets.serve.sessions import Sessions

__all__ = ["CONTROL_ACTIONS", "Control", "ServedReader"]

CONTROL_ACTIONS: Mapping[str, str] = {
    "status": "What the node serves of each dataset. No body.",
    "refresh": 'Look for a newer generation now: {"dataset": name, "at_least_generation": n, "wait": seconds}.',
}
"""The control actions, with what they do."""

_RETRY_SECONDS = 0.25


class ServedReader(Protocol):
    """What the node needs of a reader."""

    @property
    def catalog(self) -> Sessions:
        """All followed datasets in one SQL session."""

    def follow(self, name: str, *, refresh: bool = True) -> object:
        """Serve a dataset from now on."""

    def refresh(self, name: str, at_least_generation: int | None = None) -> RefreshResult:
        """Look for a newer generation now."""

    def status(self) -> Mapping[str, DatasetStatus]:
        """What is served of each followed dataset."""

    def announce_endpoint(self, endpoint: str | None) -> None:
        """Tell the store where control actions are answered."""


class Control:
    """The control actions of a node. Safe to call from several threads."""

    def __init__(self, reader: ServedReader, datasets: Sequence[str]) -> None:
        self._reader = reader
        self._datasets = tuple(datasets)

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
            QueryRefused: the body is not what the action takes.
            ConfigurationError: the dataset is not served here.
            SnapshotAssetsError: what the refresh failed with; the node goes on serving what it has.
        """
        if action == "status":
            return self.status()
        fields = _fields(body)
        dataset = fields.pop("dataset", None)
        at_least = fields.pop("at_least_generation", None)
        wait = fields.pop("wait", None) or 0.0
        if (
            fields
            or not isinstance(dataset, str)
            or not (at_least is None or _is_count(at_least))
            or isinstance(wait, bool)
            or not isinstance(wait, (int, float))
            or not 0 <= wait <= 86_400
        ):
            raise ConfigurationError(f"a refresh takes {CONTROL_ACTIONS['refresh']}", hint="Correct the action's body.")
        return self.refresh(dataset, at_least, wait)

    def status(self) -> dict[str, Any]:
        """What is served of each dataset, and what is missing."""
        status = self._reader.status()
        missing = self.missing()
        return {
            "ready": not missing,
            "missing": missing,
            "datasets": {name: status[name].to_json() for name in self._datasets if name in status},
        }

    def refresh(self, dataset: str, at_least_generation: int | None, wait: float) -> dict[str, Any]:
        """Refresh a dataset; again, for up to `wait` seconds, while it is below a wanted generation.

        `reached` tells whether what is served now is at least that generation.
        """
        if dataset not in self._datasets:
            raise ConfigurationError(
                f"this node serves {', '.join(self._datasets)}, and not {dataset!r}", dataset=dataset
            )
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


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"the action's body is no JSON: {error}", hint="Correct the action's body.") from error
    if not isinstance(fields, dict):
        raise ConfigurationError("the action's body is no JSON object", hint="Correct the action's body.")
    return fields


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
