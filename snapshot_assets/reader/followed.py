"""One followed dataset: what is served of it, and how it gets to a newer generation."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from snapshot_assets.errors import (
    DiskFull,
    DocumentDamaged,
    HandoffFailed,
    NotFound,
    ReaderError,
    SnapshotAssetsError,
    SnapshotDamaged,
)
from snapshot_assets.failpoints import REFRESH_AFTER_STATE, REFRESH_AFTER_SWAP
from snapshot_assets.model.head import Head, Status
from snapshot_assets.model.schema import TableSchema
from snapshot_assets.reader.choosing import (
    Decision,
    Load,
    Note,
    Pin,
    Refuse,
    Served,
    Situation,
    Stay,
    Unload,
    choose,
)
from snapshot_assets.reader.data_dir import disk_errors
from snapshot_assets.reader.dataset_folder import DatasetFolder
from snapshot_assets.reader.fetch import Obtained, obtain_copy
from snapshot_assets.reader.local_copy import LocalCopy, LocalState, copy_name
from snapshot_assets.reader.opening import check_schema
from snapshot_assets.reader.provider import SnapshotProvider
from snapshot_assets.reader.settings import Current, OnDamage, RefreshResult
from snapshot_assets.reader.status import DatasetStatus, Failure, Outcome, Swap
from snapshot_assets.reader.swapping import ReaderParts, Swapper

__all__ = ["FollowedDataset"]

_log = logging.getLogger(__name__)

_MOST_RESTARTS: Final = 8
"""How often one refresh starts over because the head moved on under it."""

_REMEMBERED_SWAPS: Final = 50


class FollowedDataset:
    """One dataset of a reader. Refreshes are serialized; status and provider can be used meanwhile."""

    def __init__(self, name: str, path: Path, parts: ReaderParts) -> None:
        self.name = name
        self.provider = SnapshotProvider(name)
        self.folder = DatasetFolder(path, keep=parts.settings.keep_local, spares=parts.spares)
        self.token: str | None = None
        self.starting = threading.Lock()
        self._swapper = Swapper(self.provider, self.folder, parts)
        self.dispatcher = self._swapper.dispatcher
        self._parts = parts
        self._lock = threading.Lock()
        self._recovered = False
        self._outcome = Outcome("waiting")
        self._head_generation: int | None = None
        self._head_current: tuple[str, int | None] | None = None
        pin = parts.settings.pins.get(name)
        self._pin = None if pin is None else Pin(pin)
        self._swaps: deque[Swap] = deque(maxlen=_REMEMBERED_SWAPS)
        self._warned_of: tuple[int | None, ...] = ()

    # Start, from the disk alone.

    def recover(self) -> None:
        """Serve what was served last, if it is whole; the store is not asked. Once it succeeded, calls do nothing.

        Raises:
            EngineTooOld: this process's engine can not read it.
            HandoffFailed: what is kept beside it does not open.
            ReaderError: the reader is closed.
            UnsupportedFormatVersion: a newer version of this package wrote the folder; nothing of it was changed.
            ReaderError: the operating system or the engine refuses something now; nothing that is whole was removed.
        """
        with self._lock, disk_errors("what was served can not be recovered", self.name, self.folder.path):
            self._parts.check_open()
            if self._recovered:
                return
            try:
                state = self.folder.state()
            except DocumentDamaged as error:
                _log.warning("%s: what was served before is not known", error)
                state = None
            self.folder.recover()
            if state is not None:
                self._swapper.floor = state.generation
                if self._pin is not None and state.pinned and self._pin.snapshot_id == state.snapshot_id:
                    self._pin = Pin(state.snapshot_id, state.incarnation)
                self._serve_again(state)
            self._recovered = True
            self.dispatcher.resume()

    def _serve_again(self, state: LocalState) -> None:
        name = copy_name(state.incarnation, state.snapshot_id)
        copy = self.folder.find(name, digests=self._parts.settings.verify_on_start)
        if copy is None:
            return
        try:
            self._swapper.swap(copy, state.generation, pinned=state.pinned)
        except SnapshotDamaged as error:
            _log.warning("%s: the local copy is removed and fetched again", error)
        else:
            self._outcome = Outcome("loaded")
            self.folder.retire()

    # Refresh.

    def refresh(self, *, fall_back: bool = False) -> RefreshResult:
        """Look at the head and go to what it calls current; one attempt. Raises what `SnapshotReader.refresh` raises.

        Args:
            fall_back: load an older snapshot when the current one is damaged, whatever the settings say.
        """
        with self._lock:
            return self._refresh(fall_back=fall_back)

    def pin(self, snapshot_id: int | None) -> RefreshResult:
        """Hold a snapshot, or none; what `SnapshotReader.pin` does. If it fails, what was held before is."""
        with self._lock:
            before, self._pin = self._pin, None if snapshot_id is None else Pin(snapshot_id)
            self.token = None
            try:
                return self._refresh(fall_back=False)
            except BaseException:
                if not self._situation.is_as_pinned:
                    self._pin = before
                raise

    def _refresh(self, *, fall_back: bool) -> RefreshResult:
        self._parts.check_open()
        started = self._parts.clock.monotonic()
        fall_back = fall_back or self._parts.settings.on_damage is OnDamage.FALLBACK
        try:
            with disk_errors("the refresh failed", self.name, self.folder.path):
                result, outcome = self._attempt(started, fall_back=fall_back)
                # What an earlier refresh could not write down, though there was nothing to do in this one.
                self._write_state()
        except BaseException as error:
            self.token = None
            self.dispatcher.resume()
            if isinstance(error, DiskFull):
                self.folder.make_room()
            if isinstance(error, SnapshotAssetsError):
                error.dataset = error.dataset or self.name
                self._outcome = replace(self._outcome, error=self._failure(error), failed=True)
            if isinstance(error, HandoffFailed):
                error.outcomes = self.dispatcher.outcomes()
            raise
        self._outcome = outcome
        if self.dispatcher.resume() or result.outcome == "loaded":
            result = replace(result, handoffs=self.dispatcher.outcomes())
        if self.dispatcher.waits:
            self.token = None
        return replace(result, seconds=self._parts.clock.monotonic() - started)

    def note_look(self, *, absent: bool = False, error: SnapshotAssetsError | None = None) -> None:
        """Note what a look at all heads told: this one is unchanged, absent, or could not be looked at.

        Waits for nobody: a refresh that is under way knows better.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if absent:
                self.token = None
            found = "waiting" if absent else self._outcome.found
            self._outcome = Outcome(found, self._failure(error) if error else None, failed=error is not None)
        finally:
            self._lock.release()

    def _failure(self, error: SnapshotAssetsError) -> Failure:
        return Failure.of(error, self._parts.clock.now_ms())

    def _attempt(self, started: float, *, fall_back: bool) -> tuple[RefreshResult, Outcome]:
        store = self._parts.store
        try:
            found = (
                store.read_head(self.name) if self.token is None else store.read_head_if_changed(self.name, self.token)
            )
        except NotFound:
            self.token = None
            return self._result("waiting"), Outcome("waiting")
        if found is None:
            return self._result("not_modified"), Outcome(self._outcome.found)
        self.token = None
        for _ in range(_MOST_RESTARTS):
            head, token = found
            self._head_generation = head.generation
            self._head_current = head.incarnation, head.current_snapshot_id
            decision = choose(head, self._situation)
            try:
                result = self._carry_out(decision, head, started)
            except SnapshotDamaged as damage:
                found = store.read_head(self.name)
                if found[0].generation != head.generation:
                    continue
                if not fall_back or (isinstance(decision, Load) and decision.pinned):
                    raise
                return self._fall_back(head, damage, started), Outcome("loaded", self._failure(damage))
            if self._situation.has_all_of(head):
                self.token = token
            return result, Outcome(self._found_in(head))
        raise ReaderError(
            f"the head of {self.name!r} moved on during each of {_MOST_RESTARTS} attempts to load it",
            hint="Publish less often than a refresh takes, or keep more snapshots.",
        )

    def _carry_out(self, decision: Decision, head: Head, started: float) -> RefreshResult:
        serving = self.provider.serving
        match decision:
            case Refuse(error):
                raise error
            case Load():
                return self._load(head, decision, started)
            case Note(current):
                self._swapper.note(current)
                if current.pinned:
                    self._pin_to(current)
                return self._result("noted")
            case Unload():
                self._swapper.unload()
                return self._result("waiting")
            case Stay(outcome, held, went_back):
                if serving is not None and held:
                    self._pin_to(serving.current)
                if serving is not None and went_back:
                    self._warn_of_return(head, serving.current)
                return self._result(outcome)

    @property
    def _situation(self) -> Situation:
        serving = self.provider.serving
        return Situation(
            served=None if serving is None else Served(serving.current, serving.copy.entry.manifest_digest),
            floor=self._swapper.floor,
            pin=self._pin,
            on_dropped=self._parts.settings.on_dropped,
            folder=self.folder.path,
        )

    def _pin_to(self, current: Current) -> None:
        """Know the pin's incarnation: what it holds is served."""
        self._pin = Pin(current.snapshot_id, current.incarnation)

    def _warn_of_return(self, head: Head, current: Current) -> None:
        seen = (head.generation, head.current_snapshot_id, current.generation, current.snapshot_id)
        if self._warned_of != seen:
            self._warned_of = seen
            _log.warning(
                "%s: the store went back: its head has generation %d, snapshot %s; generation %d, snapshot %d goes on "
                "being served",
                self.name,
                *seen,
            )

    def _fall_back(self, head: Head, damage: SnapshotDamaged, started: float) -> RefreshResult:
        """Load the next older listed snapshot that is whole, or raise the damage."""
        for choice in self._situation.fallbacks(head):
            try:
                result = self._load(head, choice, started)
            except SnapshotDamaged as error:
                _log.warning("%s: snapshot %d is damaged too: %s", self.name, choice.entry.snapshot_id, error)
                continue
            _log.warning("%s: %s; snapshot %d is served instead", self.name, damage, choice.entry.snapshot_id)
            return result
        raise damage

    # Load and swap.

    def _load(self, head: Head, wanted: Load, started: float) -> RefreshResult:
        self._check_schema(head.tables(wanted.entry.schema_id))
        parts = self._parts
        obtained = obtain_copy(parts.store.objects, self.folder, head, wanted.entry, parts.failpoints, parts.check_open)
        current = self._swapper.swap(obtained.copy, wanted.generation, pinned=wanted.pinned)
        if wanted.pinned:
            self._pin_to(current)
        parts.on_change()
        seconds = parts.clock.monotonic() - started
        bytes_moved = obtained.fetched_bytes, obtained.reused_bytes
        self._swaps.append(Swap(wanted.generation, current.snapshot_id, current.loaded_at_ms, seconds, *bytes_moved))
        try:
            parts.failpoints.hit(REFRESH_AFTER_SWAP)
            self._write_state()
            parts.failpoints.hit(REFRESH_AFTER_STATE)
        finally:
            # The swap has happened, whatever a full disk says; and what is deleted now makes room for the state.
            self.folder.served(obtained.copy)
            self.folder.retire()
        return self._result("loaded", obtained)

    def _check_schema(self, offered: Mapping[str, TableSchema]) -> None:
        settings = self._parts.settings
        serving = self.provider.serving
        accepted = settings.contract.get(self.name)
        if accepted is None and serving is not None:
            accepted = serving.copy.manifest.schemas
        if accepted is not None:
            check_schema(self.name, accepted, offered, settings.schema_policy)

    def _write_state(self) -> None:
        """Name what is served, for the next start."""
        serving = self.provider.serving
        if serving is not None:
            current = serving.current
            with disk_errors("what is served is not written down", self.name, self.folder.path):
                self.folder.write_state(
                    LocalState(current.incarnation, current.generation, current.snapshot_id, current.pinned)
                )

    def put_back(self, copy: LocalCopy) -> None:
        """End a use of a local copy; copies that are neither warm nor in use any more are deleted."""
        self._swapper.put_back(copy)

    # What is told.

    def _found_in(self, head: Head) -> Literal["loaded", "waiting", "dropped"]:
        if head.status is Status.DROPPED:
            return "dropped"
        return "loaded" if self.provider.serving else "waiting"

    @property
    def needs_pin(self) -> bool:
        """Whether a pin waits for a refresh to load what it holds."""
        return self._pin is not None and not self._situation.is_as_pinned

    @property
    def held_back(self) -> bool:
        """Whether a pin keeps what the head called current, when it was last looked at, from being served."""
        serving = self.provider.serving
        if serving is None or not serving.current.pinned:
            return False
        return (serving.current.incarnation, serving.current.snapshot_id) != self._head_current

    def _result(
        self, outcome: Literal["loaded", "not_modified", "waiting", "noted"], obtained: Obtained | None = None
    ) -> RefreshResult:
        serving = self.provider.serving
        return RefreshResult(
            outcome,
            self.name,
            serving.current.generation if serving else None,
            serving.current.snapshot_id if serving else None,
            obtained.fetched_bytes if obtained else 0,
            obtained.reused_bytes if obtained else 0,
        )

    def status(self) -> DatasetStatus:
        """What is served, what drains, and what went wrong last, without waiting for a refresh that is under way."""
        serving = self.provider.serving
        now_ms = self._parts.clock.now_ms()
        return DatasetStatus(
            dataset=self.name,
            state=self._outcome.state,
            current=serving.current if serving else None,
            # A clock that was set back does not make what is served come from the future.
            age_seconds=max(now_ms - serving.copy.entry.committed_at_ms, 0) / 1000 if serving else None,
            head_generation=self._head_generation,
            leases=serving.leases if serving else 0,
            draining=tuple(
                old.draining() for old in self._parts.drains.serving() if old.copy.manifest.dataset == self.name
            ),
            last_error=self._outcome.error,
            swaps=tuple(self._swaps),
            row_counts={name: table.row_count for name, table in serving.copy.manifest.tables.items()}
            if serving
            else {},
            local_copies=self.folder.names(),
            pin=None if self._pin is None else self._pin.snapshot_id,
            handoffs=self.dispatcher.outcomes(),
        )

    def close(self) -> None:
        """Give no more leases; the pool is closed when the last one has ended. Waits for a refresh under way."""
        with self._lock:
            self._swapper.close()
