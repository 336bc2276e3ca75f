"""One generation as it is served: its pool, and the leases that are counted on it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Any

from snapshot_assets.engines.contract import Pool
from snapshot_assets.reader.local_copy import LocalCopy
from snapshot_assets.reader.settings import Current
from snapshot_assets.reader.status import Draining, Holder

__all__ = ["Lease", "Serving"]

_log = logging.getLogger(__name__)


class Serving:
    """A local copy with its open pool, and who uses it.

    Leases are counted here; once `drain` was called no new one is given, and the pool may be closed when the count is
    zero. The lock is held for a few instructions at a time, never while the engine is called.
    """

    def __init__(self, copy: LocalCopy, pool: Pool, current: Current) -> None:
        self.copy = copy
        self.pool = pool
        self.current = current
        self.draining_since: float | None = None
        self._lock = threading.Lock()
        self._leases: dict[int, Lease] = {}
        self._on_idle: Callable[[], None] | None = None

    def enter(self, lease: Lease) -> bool:
        """Count a lease; refused once this generation drains."""
        with self._lock:
            if self.draining_since is not None:
                return False
            self._leases[id(lease)] = lease
            return True

    def take_connection(self, lease: Lease) -> Any:
        """The connection of a lease that is about to be released: it can not be interrupted any more."""
        with self._lock:
            connection, lease.connection = lease.connection, None
            return connection

    def leave(self, lease: Lease) -> None:
        """End a lease."""
        with self._lock:
            del self._leases[id(lease)]
            on_idle = None if self._leases else self._on_idle
        if on_idle is not None:
            on_idle()

    def drain(self, on_idle: Callable[[], None]) -> None:
        """Give no more leases; `on_idle` is called, from any thread, when the last one has ended."""
        with self._lock:
            self.draining_since = monotonic()
            self._on_idle = on_idle
            idle = not self._leases
        if idle:
            on_idle()

    @property
    def is_drained(self) -> bool:
        """Whether it gives no more leases and none is out: nobody can use it any more."""
        with self._lock:
            return self.draining_since is not None and not self._leases

    @property
    def leases(self) -> int:
        """How many leases are out."""
        return len(self._leases)

    def interrupt(self) -> None:
        """Interrupt what the leases are running; they see the engine's own error."""
        with self._lock:
            for lease in self._leases.values():
                if lease.connection is not None:
                    try:
                        lease.connection.interrupt()
                    except Exception as error:  # noqa: BLE001 - each engine has errors of its own
                        # A holder that closed its connection runs nothing; the others are interrupted all the same.
                        _log.info("%s: a lease is not interrupted: %s", self.copy.manifest.dataset, error)

    def holders(self) -> tuple[Holder, ...]:
        """Who holds leases, the oldest first."""
        now = monotonic()
        with self._lock:
            leases = list(self._leases.values())
        return tuple(
            Holder(lease.thread.name, now - lease.since) for lease in sorted(leases, key=lambda one: one.since)
        )

    def draining(self) -> Draining:
        """What the status tells of this generation while it drains."""
        since = self.draining_since
        seconds = 0.0 if since is None else monotonic() - since
        return Draining(self.current.generation, self.current.snapshot_id, seconds, self.holders())


class Lease:
    """A counted right to use one generation, as a context manager that gives the engine's own connection.

    The connection sees that one generation from beginning to end, whatever is swapped meanwhile. A lease is used once,
    by one thread at a time. Inside, `current` tells which generation it sees.
    """

    __slots__ = ("_find", "connection", "current", "serving", "since", "thread")

    serving: Serving
    current: Current

    def __init__(self, find: Callable[[], Serving]) -> None:
        self._find = find
        self.connection: Any = None

    def count(self) -> Serving:
        """Count the lease on the newest generation, without a connection; `Serving.leave` ends it.

        Raises:
            NotLoaded: nothing is served.
            ReaderError: the reader is closed.
        """
        self.thread = threading.current_thread()
        self.since = monotonic()
        serving = self._find()
        while not serving.enter(self):
            # A swap came between: whoever made this generation drain has pointed the provider elsewhere before.
            serving = self._find()
        self.serving = serving
        self.current = serving.current
        return serving

    def __enter__(self) -> Any:
        """Take the lease; raises what `count` raises."""
        serving = self.count()
        try:
            self.connection = connection = serving.pool.acquire()
        except BaseException:
            serving.leave(self)
            raise
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        serving = self.serving
        try:
            serving.pool.release(serving.take_connection(self))
        finally:
            serving.leave(self)
