"""One thing that is kept beside the data: how each kind of it takes the steps of a hand-off."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from snapshot_assets.clock import Clock
from snapshot_assets.errors import NotLoaded
from snapshot_assets.reader.handoff import FormatCheck, Generation, IndexHandoff, OnDrainTimeout, StreamHandoff
from snapshot_assets.reader.serving import Lease, Serving
from snapshot_assets.reader.settings import HandoffOutcome, HandoffStep

if TYPE_CHECKING:
    from snapshot_assets.reader.dispatching import ReloadDispatcher

__all__ = ["Kept", "KeptIndex", "KeptStream", "StepFailed"]

_log = logging.getLogger(__name__)

Handle = TypeVar("Handle")
_Answer = TypeVar("_Answer")


class StepFailed(Exception):
    """A step of a hand-off raised; its outcome tells which, and why."""

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept


class Kept:
    """One hand-off of a dataset, as it is registered; by itself it is only checked."""

    kind: Literal["format", "index", "stream"] = "format"

    def __init__(self, dispatcher: ReloadDispatcher, name: str, handoff: FormatCheck) -> None:
        self.name = name
        self._dispatcher = dispatcher
        self._check = handoff
        self._failed: tuple[HandoffStep, str] | None = None

    @property
    def dataset(self) -> str:
        """The dataset that it belongs to."""
        return self._dispatcher.dataset

    def remove(self) -> None:
        """Take part in no later swap. Handles are closed as their generations end; a stream is stopped at once.

        Raises:
            HandoffFailed: a stream can not be stopped; it stays registered.
        """
        self._dispatcher.remove(self)

    def outcome(self) -> HandoffOutcome:
        """How the last hand-off ended."""
        step, error = self._failed or (None, None)
        return HandoffOutcome(self.name, self.kind, self._state(), step, error)

    # For the dispatcher, which calls one of them at a time.

    def check_compat(self, old: Serving, new: Serving) -> None:
        """Ask whether the new generation suits it."""
        self._step("check_compat", lambda: self._check.check_compat(Generation(old), Generation(new)))

    def prepare(self, old: Serving | None, new: Serving) -> None:
        """Do what must succeed before the swap."""

    def undo(self, new: Serving) -> None:
        """Take back what `prepare` did for a generation that will not be served."""

    def resume(self, serving: Serving) -> bool:  # noqa: ARG002
        """Do what follows on a swap, beside what is served now; tell whether there was anything to do."""
        return False

    def release(self, serving: Serving) -> None:
        """Let go of what belongs to a generation that nobody uses any more."""

    def stop(self, *, at_once: bool = False) -> None:
        """Run no more; `at_once`: whatever says that it can not."""

    def _state(self) -> Literal["waiting", "current", "stopped"]:
        return "waiting" if self._dispatcher.serving() is None else "current"

    def _step(self, step: HandoffStep, call: Callable[[], _Answer]) -> _Answer:
        """Call the user's code. Whatever it raises is its answer, and is kept for the outcome."""
        self._failed = None
        try:
            return call()
        except Exception as error:
            self._failed = step, f"{type(error).__name__}: {error}"
            raise StepFailed(self) from error

    def _close(self, close: Callable[[Any], None], handle: object) -> None:
        try:
            close(handle)
        except Exception:  # noqa: BLE001 - the user's own code; what is closed is not needed any more
            _log.exception("%s: a handle of %s was not closed", self.dataset, self.name)


class KeptIndex(Kept, Generic[Handle]):
    """An index-like hand-off, with one handle a generation."""

    kind = "index"

    def __init__(self, dispatcher: ReloadDispatcher, name: str, handoff: IndexHandoff[Handle]) -> None:
        super().__init__(dispatcher, name, handoff)
        self._handoff = handoff
        self._handles: dict[Serving, Handle] = {}

    def beside(self, lease: Lease) -> Handle:
        """The handle that belongs to the generation of a lease; it can be used until the lease ends.

        Raises:
            NotLoaded: there is none: the lease was not taken, belongs to another dataset, or is older than this.
        """
        serving = getattr(lease, "serving", None)
        try:
            return self._handles[serving]  # type: ignore[index]
        except KeyError:
            raise NotLoaded(
                f"no handle of {self.name!r} belongs to this lease",
                hint="Ask inside the lease's block, with a lease of the same dataset.",
                dataset=self.dataset,
            ) from None

    def prepare(self, old: Serving | None, new: Serving) -> None:
        """Open the new handle from the old one's bytes."""
        state: bytes | None = None
        if old is not None and old in self._handles:
            handle = self._handles[old]
            state = self._step("persist", lambda: self._handoff.persist(handle))
        # Nobody finds it before a lease of the new generation can be taken.
        self._handles[new] = self._step("open", lambda: self._handoff.open(state, Generation(new)))

    def undo(self, new: Serving) -> None:
        """Close the new handle, if it was opened."""
        self.release(new)

    def release(self, serving: Serving) -> None:
        """Close the handle of a generation."""
        try:
            handle = self._handles.pop(serving)
        except KeyError:
            return
        self._close(self._handoff.close, handle)


class KeptStream(Kept, Generic[Handle]):
    """A stream-like hand-off, with one handle at a time, or none while it is stopped."""

    kind = "stream"

    def __init__(
        self,
        dispatcher: ReloadDispatcher,
        name: str,
        handoff: StreamHandoff[Handle, Any],
        clock: Clock,
        drain_timeout: float,
        on_drain_timeout: OnDrainTimeout,
    ) -> None:
        super().__init__(dispatcher, name, handoff)
        self._handoff = handoff
        self._clock = clock
        self._drain_timeout = drain_timeout
        self._on_drain_timeout = on_drain_timeout
        self._running: tuple[Handle] | None = None
        self._position: Any = None
        self._uses = 0
        self._moving = False
        self._changed = threading.Condition()
        self._idle = threading.Event()
        self._idle.set()

    @contextmanager
    def use(self) -> Iterator[Handle]:
        """The handle that runs, as a counted use: it is not stopped meanwhile. Waits while it is handed over.

        Raises:
            NotLoaded: on entering, when it does not run.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._moving)
            if self._running is None:
                raise NotLoaded(f"the stream {self.name!r} does not run", dataset=self.dataset)
            (handle,) = self._running
            self._uses += 1
            self._idle.clear()
        try:
            yield handle
        finally:
            with self._changed:
                self._uses -= 1
                if not self._uses:
                    self._idle.set()

    def prepare(self, old: Serving | None, new: Serving) -> None:  # noqa: ARG002
        """Stop it; `resume` starts it again, on the new generation or on the one that goes on being served."""
        self._stop(wait_for_all=self._on_drain_timeout is OnDrainTimeout.ABORT)

    def resume(self, serving: Serving) -> bool:
        """Start it where it was stopped, unless it runs."""
        if self._running is not None:
            return False
        with self._changed:
            self._moving = True
        try:
            position = self._position
            self._running = (self._step("start", lambda: self._handoff.start(position, Generation(serving))),)
        except StepFailed:
            _log.warning("%s: the stream %s is stopped, and started later: %s", self.dataset, self.name, self._failed)
        finally:
            self._let_in()
        return True

    def stop(self, *, at_once: bool = False) -> None:
        """Stop it and keep its position; `at_once`: also if that is refused, and then the last position is kept."""
        try:
            self._stop(wait_for_all=not at_once)
        except StepFailed:
            if not at_once or self._running is None:
                raise
            _log.warning("%s: the stream %s was not stopped in order: %s", self.dataset, self.name, self._failed)
            (handle,), self._running = self._running, None
            self._close(self._handoff.close, handle)
        finally:
            self._let_in()

    def _stop(self, *, wait_for_all: bool) -> None:
        """Stop it and keep its position. Uses wait from now on, until it is started again or stays stopped."""
        if self._running is None:
            return
        with self._changed:
            self._moving = True
        try:
            if wait_for_all:
                self._step("drain", self._drain)
            else:
                self._clock.wait(self._idle, self._drain_timeout)
            (handle,) = self._running
            self._position = self._step("checkpoint", lambda: self._handoff.checkpoint(handle))
        except BaseException:
            self._let_in()
            raise
        self._running = None
        self._close(self._handoff.close, handle)

    def _drain(self) -> None:
        if not self._clock.wait(self._idle, self._drain_timeout):
            raise TimeoutError(f"{self._uses} uses did not end in {self._drain_timeout:g} s")

    def _let_in(self) -> None:
        with self._changed:
            self._moving = False
            self._changed.notify_all()

    def _state(self) -> Literal["waiting", "current", "stopped"]:
        state = super()._state()
        return "stopped" if state == "current" and self._running is None else state
