"""Draining: old generations are closed when their last lease has ended, and reported when that takes too long."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from snapshot_assets.clock import Clock
from snapshot_assets.reader.serving import Serving
from snapshot_assets.reader.settings import DrainPolicy

__all__ = ["Drains"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Drain:
    serving: Serving
    done: Callable[[], None]
    deadline: float | None


class Drains:
    """The generations that drain, and the thread that closes them.

    Pools are closed by this thread, so that neither a swap nor the query whose lease was the last one pays for it.
    Nothing is interrupted unless the policy says so.
    """

    def __init__(self, clock: Clock, timeout: float | None, policy: DrainPolicy) -> None:
        self._clock = clock
        self._timeout = timeout
        self._policy = policy
        self._lock = threading.Lock()
        self._drains: list[_Drain] = []
        self._changed = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, serving: Serving, done: Callable[[], None]) -> None:
        """Drain a generation: no new leases from now on; when the last one has ended its pool is closed.

        Args:
            serving: what to drain; nobody can find it any more.
            done: called after the pool was closed.
        """
        deadline = None if self._timeout is None else self._clock.monotonic() + self._timeout
        with self._lock:
            self._drains.append(_Drain(serving, done, deadline))
            if self._thread is None and not self._closed:
                self._start()
        serving.drain(self._wake)

    def serving(self) -> list[Serving]:
        """What drains now, the oldest first."""
        with self._lock:
            return [drain.serving for drain in self._drains]

    def close(self) -> None:
        """Stop the thread. What still has leases is closed by the thread that ends the last of them."""
        self._stop()
        atexit.unregister(self._stop)
        self._close_idle()

    def _start(self) -> None:
        try:
            self._thread = _new_thread(self._run)
        except RuntimeError as error:
            _log.warning("old generations are closed by whoever ends their last lease: %s", error)
            return
        # A thread that is inside DuckDB when the interpreter goes away takes the whole process down.
        atexit.register(self._stop)

    def _stop(self) -> None:
        with self._lock:
            self._closed = True
            thread = self._thread
        self._changed.set()
        if thread is not None:
            thread.join()

    def _wake(self) -> None:
        if self._closed or self._thread is None:
            self._close_idle()
        else:
            self._changed.set()

    def _run(self) -> None:
        while not self._closed:
            self._clock.wait(self._changed, self._next_deadline())
            self._changed.clear()
            self._close_idle()
            self._report_late()

    def _next_deadline(self) -> float:
        now = self._clock.monotonic()
        with self._lock:
            deadlines = [drain.deadline for drain in self._drains if drain.deadline is not None]
        return max(min(deadlines, default=now + 3600.0) - now, 0.0)

    def _close_idle(self) -> None:
        with self._lock:
            idle = [drain for drain in self._drains if drain.serving.is_drained]
            self._drains = [drain for drain in self._drains if drain not in idle]
        for drain in idle:
            with _only_logged(drain, "the pool of generation %d was not closed"):
                drain.serving.pool.close()
            with _only_logged(drain, "the local copy of generation %d was not put away"):
                drain.done()

    def _report_late(self) -> None:
        now = self._clock.monotonic()
        with self._lock:
            late = [drain for drain in self._drains if drain.deadline is not None and drain.deadline <= now]
            for drain in late:
                drain.deadline = None
        for drain in late:
            status = drain.serving.draining()
            _log.warning(
                "%s: generation %d still has %d leases %.1f s after the swap, held by: %s",
                drain.serving.copy.manifest.dataset,
                status.generation,
                status.leases,
                status.seconds,
                ", ".join(f"{holder.thread} ({holder.seconds:.1f} s)" for holder in status.holders),
            )
            if self._policy is DrainPolicy.CANCEL:
                with _only_logged(drain, "the leases of generation %d were not interrupted"):
                    drain.serving.interrupt()


@contextmanager
def _only_logged(drain: _Drain, what: str) -> Iterator[None]:
    """Log what goes wrong with one drain: it must not end the thread, or the lease, that all others need."""
    try:
        yield
    except Exception:  # noqa: BLE001 - each engine and file system has errors of its own
        _log.exception(f"%s: {what}", drain.serving.copy.manifest.dataset, drain.serving.current.generation)


def _new_thread(run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run, name="snapshot-assets-drain", daemon=True)
    thread.start()
    return thread
