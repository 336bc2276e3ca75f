"""How what is kept beside the data passes from one generation to the next, and in which order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from snapshot_assets.clock import Clock
from snapshot_assets.errors import ConfigurationError, HandoffFailed
from snapshot_assets.reader.handoff import FormatCheck, IndexHandoff, OnDrainTimeout, StreamHandoff
from snapshot_assets.reader.kept import Kept, KeptIndex, KeptStream, StepFailed
from snapshot_assets.reader.serving import Serving
from snapshot_assets.reader.settings import HandoffOutcome

__all__ = ["ReloadDispatcher"]


class ReloadDispatcher:
    """The hand-offs of one dataset, in their order around a swap.

    Before the swap: every check, then indexes (persist, open), then streams (drain, checkpoint). Whatever fails there
    raises `HandoffFailed`, and the old generation goes on being served with all that is beside it. After the swap
    streams are started; what fails there is reported, and tried again by `resume`.

    Args:
        dataset: whose hand-offs they are.
        serving: what is served now.
        clock: where times come from.
    """

    def __init__(self, dataset: str, serving: Callable[[], Serving | None], clock: Clock) -> None:
        self.dataset = dataset
        self.serving = serving
        self._clock = clock
        self._lock = threading.RLock()
        self._kept: tuple[Kept, ...] = ()
        self._removed: tuple[Kept, ...] = ()
        self._closed = False

    def register(
        self,
        name: str,
        handoff: FormatCheck,
        drain_timeout: float,
        on_drain_timeout: OnDrainTimeout,
    ) -> Kept:
        """Take up a hand-off, beside what is served if anything is; waits for a swap that is under way.

        Raises:
            ConfigurationError: the name is taken, or the hand-off is of no kind or of two.
            HandoffFailed: it does not open or start beside what is served; it is not registered.
        """
        made: Kept
        is_index, is_stream = isinstance(handoff, IndexHandoff), isinstance(handoff, StreamHandoff)
        if not callable(getattr(handoff, "check_compat", None)) or (is_index and is_stream):
            raise ConfigurationError(
                f"the hand-off {name!r} is of no single kind: {handoff!r}",
                hint="Give it check_compat, and at most one of open/persist/close and start/checkpoint/close.",
                dataset=self.dataset,
            )
        if isinstance(handoff, IndexHandoff):
            made = KeptIndex(self, name, handoff)
        elif isinstance(handoff, StreamHandoff):
            made = KeptStream(self, name, handoff, self._clock, drain_timeout, on_drain_timeout)
        else:
            made = Kept(self, name, handoff)
        with self._lock:
            if any(kept.name == name for kept in self._kept):
                raise ConfigurationError(
                    f"{self.dataset!r} has a hand-off {name!r} already", hint="Remove that one first, or choose a name."
                )
            serving = None if self._closed else self.serving()
            if serving is not None:
                with self._reported("nothing is registered", (made,)):
                    made.prepare(None, serving)
                    made.resume(serving)
                    if made.outcome().error is not None:
                        raise StepFailed(made)
            self._kept += (made,)
        return made

    def remove(self, kept: Kept) -> None:
        """`Kept.remove`."""
        with self._lock, self._reported("it stays registered", (kept,)):
            kept.stop()
            if kept in self._kept:
                self._kept = tuple(other for other in self._kept if other is not kept)
                self._removed += (kept,)

    @contextmanager
    def around_swap(self, old: Serving | None, new: Serving) -> Iterator[None]:
        """Do all that must succeed before the body, which swaps; if that or the body raises, the old one stays.

        Raises:
            HandoffFailed: what the hand-offs of this dataset did not agree to.
        """
        with self._lock:
            kept = sorted(self._kept, key=lambda one: one.kind == "stream")
            try:
                with self._reported("what was served goes on being served", kept):
                    if old is not None:
                        for one in kept:
                            one.check_compat(old, new)
                    for one in kept:
                        one.prepare(old, new)
                yield
            except BaseException:
                for one in kept:
                    one.undo(new)
                raise

    def resume(self) -> bool:
        """Start the streams that are stopped, on what is served now; tell whether there were any."""
        with self._lock:
            serving = None if self._closed else self.serving()
            resumed = [] if serving is None else [kept.resume(serving) for kept in self._kept]
            return any(resumed)

    def outcomes(self) -> tuple[HandoffOutcome, ...]:
        """How the last hand-off of each ended."""
        return tuple(kept.outcome() for kept in self._kept)

    @property
    def waits(self) -> bool:
        """Whether a stream is stopped that a later refresh is to start."""
        return any(kept.outcome().state == "stopped" for kept in self._kept)

    @contextmanager
    def around_end(self, *, closed: bool = False) -> Iterator[None]:
        """The body stops serving; streams are stopped first, and whatever they say does not keep it from it."""
        with self._lock:
            self._closed = self._closed or closed
            for kept in self._kept:
                kept.stop(at_once=True)
            yield

    def released(self, serving: Serving) -> None:
        """Nobody uses a generation any more. Waits for no swap."""
        for kept in (*self._kept, *self._removed):
            kept.release(serving)

    @contextmanager
    def _reported(self, consequence: str, kept: tuple[Kept, ...] | list[Kept]) -> Iterator[None]:
        try:
            yield
        except StepFailed as failed:
            outcome = failed.kept.outcome()
            error = HandoffFailed(
                f"the hand-off {outcome.name!r} of {self.dataset!r} failed at {outcome.step}: {outcome.error}; "
                f"{consequence}",
                dataset=self.dataset,
            )
            error.outcomes = tuple(one.outcome() for one in kept)
            raise error from failed.__cause__
