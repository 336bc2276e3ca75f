"""How readers are asked: one call each with retries, many side by side, and how they are."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from snapshot_assets.errors import ConfigurationError, NodeUnavailable, SnapshotAssetsError
from snapshot_assets.sensors.rollout import Answer, HealthCheck, Outcome, ill

if TYPE_CHECKING:
    from snapshot_assets.resources.fleet import FleetReader, ReaderFleetResource
    from snapshot_assets.serve.client import NodeClient

__all__ = ["HOPELESS", "Asked", "Asker", "Wanted"]

_T = TypeVar("_T")

_STATUS_SECONDS: Final = 10.0
_WAIT_SECONDS: Final = 5.0
_PARALLEL: Final = 32
_LOOK_SECONDS: Final = 5.0
HOPELESS: Final = frozenset({"AccessDenied", "EngineTooOld", "SchemaIncompatible", "TokenRefused"})
"""What a reader answers when asking again could not help."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What readers should serve: at least this generation of a dataset, or the newest that they find."""

    dataset: str
    generation: int | None

    def __str__(self) -> str:
        generation = "its newest generation" if self.generation is None else f"generation {self.generation}"
        return f"{self.dataset!r}, {generation}"


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks the readers of a fleet.

    Args:
        fleet: how to reach them.
        max_retries: how often one is asked again.
        retry_delay: seconds before the first time; it doubles.
    """

    fleet: ReaderFleetResource
    max_retries: int = 0
    retry_delay: float = 1.0

    def ask(self, reader: FleetReader, wanted: Wanted) -> Answer:
        """Ask one reader, and wait until it serves what is wanted; again, unless that could not help."""
        answer = self._ask_once(reader, wanted)
        for attempt in range(self.max_retries):
            if not answer.failed or answer.hopeless:
                break
            time.sleep(self.retry_delay * 2**attempt)
            answer = self._ask_once(reader, wanted)
        return answer

    def ask_all(self, readers: Mapping[str, FleetReader], wanted: Wanted) -> dict[str, Answer]:
        """Ask readers side by side."""
        return self._of_all(readers, lambda reader: self.ask(reader, wanted))

    def statuses(self, readers: Mapping[str, FleetReader]) -> dict[str, Mapping[str, Any] | SnapshotAssetsError]:
        """What each reader says of itself, or why it says nothing."""
        return self._of_all(readers, self._status)

    def watch(
        self,
        readers: Mapping[str, FleetReader],
        wanted: Wanted,
        health: str | HealthCheck | None = None,
        soak: float = 0.0,
    ) -> dict[str, Answer]:
        """The readers that are not well, for as long as `soak` seconds; one that was not well once is not well."""
        sick: dict[str, Answer] = {}
        until = time.monotonic() + soak
        while True:
            left = {key: reader for key, reader in readers.items() if key not in sick}
            found = self._of_all(left, lambda reader: self._examine(reader, wanted, health))
            sick |= {key: answer for key, answer in found.items() if answer is not None}
            pause = min(_LOOK_SECONDS, until - time.monotonic())
            if pause <= 0 or len(sick) == len(readers):
                return sick
            time.sleep(pause)

    def _ask_once(self, reader: FleetReader, wanted: Wanted) -> Answer:
        started = time.monotonic()
        try:
            # A node that does not answer at all is told from one that needs long.
            with self.fleet.open_client(reader, timeout=self._status_seconds) as client:
                client.status()
            with self.fleet.open_client(reader) as client:
                said = client.refresh(wanted.dataset, wanted.generation, wait=_WAIT_SECONDS)
        except SnapshotAssetsError as error:
            return _failure(reader, error)
        answer = Answer(
            reader.endpoint,
            said["outcome"],
            said["snapshot_id"],
            said["generation"],
            said["fetched_bytes"],
            round(time.monotonic() - started, 3),
        )
        if said["reached"]:
            return answer
        served = "nothing yet" if said["generation"] is None else f"generation {said['generation']}"
        return replace(answer, outcome="behind", reason=f"it serves {served} of {wanted.dataset!r}, not {wanted}")

    def _status(self, reader: FleetReader) -> Mapping[str, Any] | SnapshotAssetsError:
        try:
            with self.fleet.open_client(reader, timeout=self._status_seconds) as client:
                return client.status()
        except SnapshotAssetsError as error:
            return error

    def _examine(self, reader: FleetReader, wanted: Wanted, health: str | HealthCheck | None) -> Answer | None:
        """Why a reader is not well; asked twice before it is said that nobody answers."""
        from snapshot_assets.serve.errors import timed_out

        try:
            with self.fleet.open_client(reader, timeout=self._status_seconds) as client:
                try:
                    status = client.status()
                except NodeUnavailable as error:
                    if timed_out(error):
                        raise
                    status = client.status()
                reason = ill(status, wanted.dataset, wanted.generation) or _checked(client, status, health)
        except SnapshotAssetsError as error:
            return _failure(reader, error)
        if reason is None:
            return None
        current = (status["datasets"].get(wanted.dataset) or {}).get("current") or {}
        return Answer(
            reader.endpoint, "unhealthy", current.get("snapshot_id"), current.get("generation"), reason=reason
        )

    @property
    def _status_seconds(self) -> float:
        return min(_STATUS_SECONDS, self.fleet.timeout)

    def _of_all(self, readers: Mapping[str, FleetReader], call: Callable[[FleetReader], _T]) -> dict[str, _T]:
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="reader") as pool:
            return dict(zip(readers, pool.map(call, readers.values()), strict=True))


def _checked(client: NodeClient, status: Mapping[str, Any], health: str | HealthCheck | None) -> str | None:
    """What the user's own check has to say."""
    if health is None:
        return None
    if isinstance(health, str):
        rows = client.query(health).num_rows
        return f"the health check found {rows} rows" if rows else None
    try:
        return health(client, status)
    except SnapshotAssetsError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the user's code raised: it has not found the reader well
        return f"the health check raised {type(error).__name__}: {error}"


def _failure(reader: FleetReader, error: SnapshotAssetsError) -> Answer:
    from snapshot_assets.serve.errors import timed_out

    hopeless = isinstance(error, ConfigurationError) or error.kind in HOPELESS
    outcome: Outcome = "refused"
    if isinstance(error, NodeUnavailable):
        outcome = "slow" if timed_out(error) else "unreachable"
    return Answer(
        reader.endpoint,
        outcome,
        reason=error.message,
        error=error.kind,
        hint=error.hint,
        hopeless=hopeless,
    )


class Asked:
    """Readers that are being asked side by side, while their steps wait for the answers one after the other.

    The threads end with the process: a run that is terminated waits for no reader.
    """

    def __init__(self, asker: Asker, readers: Mapping[str, FleetReader], wanted: Wanted) -> None:
        self._answers: dict[str, Future[Answer]] = {key: Future() for key in readers}
        self._waiting: queue.SimpleQueue[tuple[Future[Answer], FleetReader]] = queue.SimpleQueue()
        for key, reader in readers.items():
            self._waiting.put((self._answers[key], reader))
        for _ in range(min(_PARALLEL, len(readers))):
            threading.Thread(target=self._work, args=(asker, wanted), name="reader", daemon=True).start()

    @property
    def is_done(self) -> bool:
        """Whether every answer was taken."""
        return not self._answers

    def take(self, key: str) -> Answer | None:
        """The answer of one reader, as soon as it is there; nothing for one that is not asked here, or was taken."""
        found = self._answers.pop(key, None)
        return None if found is None else found.result()

    def _work(self, asker: Asker, wanted: Wanted) -> None:
        while True:
            try:
                answer, reader = self._waiting.get_nowait()
            except queue.Empty:
                return
            try:
                answer.set_result(asker.ask(reader, wanted))
            except BaseException as error:  # noqa: BLE001 - raised where the answer is waited for
                answer.set_exception(error)
