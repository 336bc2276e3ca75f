"""Polling: one thread and one list request look after all datasets of a reader."""

from __future__ import annotations

import atexit
import logging
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from snapshot_assets.clock import Clock
from snapshot_assets.errors import SnapshotAssetsError
from snapshot_assets.reader.followed import FollowedDataset
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["Polling"]

_log = logging.getLogger(__name__)

_JITTER: Final = 0.1
_LONGEST_PAUSE: Final = 300.0


class Polling:
    """Looks at the store every interval and refreshes the datasets whose heads changed.

    Refreshes of different datasets run side by side; a dataset whose refresh is still under way is not refreshed again.
    A dataset that fails, and the store when it does, is asked at growing intervals.
    """

    def __init__(
        self,
        store: SnapshotStore,
        interval: float,
        threads: int,
        clock: Clock,
        datasets: Callable[[], Sequence[FollowedDataset]],
    ) -> None:
        self._store = store
        self._interval = interval
        self._threads = threads
        self._clock = clock
        self._datasets = datasets
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._busy: set[str] = set()
        self._backoff = _Backoff(interval, clock)

    def look_now(self) -> None:
        """Look at the store at once, and from then on every interval; the first call starts the thread."""
        with self._lock:
            if self._closed:
                return
            if self._thread is None:
                self._workers = ThreadPoolExecutor(self._threads, thread_name_prefix="snapshot-assets-refresh")
                thread = threading.Thread(target=self._run, name="snapshot-assets-poll", daemon=True)
                thread.start()
                self._thread = thread
                # A thread that is inside a library when the interpreter goes away can take the whole process down.
                atexit.register(self.close)
        self._wake.set()

    def close(self) -> None:
        """Stop; refreshes that are under way end first."""
        atexit.unregister(self.close)
        with self._lock:
            self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        if self._workers is not None:
            self._workers.shutdown(wait=True, cancel_futures=True)

    def _run(self) -> None:
        while not self._closed:
            self._wake.clear()
            try:
                self._look()
            except Exception:  # noqa: BLE001 - what nobody foresaw is logged whole, and polling goes on
                _log.exception("the look at the store failed and is tried again")
                self._backoff.failed("")
            self._clock.wait(self._wake, max(self._interval, self._backoff.pause("")) * _jitter())

    def _look(self) -> None:
        followed = {dataset.name: dataset for dataset in self._datasets()}
        try:
            tokens = self._store.heads()
        except SnapshotAssetsError as error:
            _log.warning("the store can not be listed: %s", error)
            self._backoff.failed("")
            for dataset in followed.values():
                dataset.note_look(error=error)
            return
        self._backoff.succeeded("")
        for name, dataset in followed.items():
            token = tokens.get(name)
            if token is None or token == dataset.token:
                dataset.note_look(absent=token is None)
            elif self._backoff.pause(name) <= 0.0:
                self._submit(dataset)

    def _submit(self, dataset: FollowedDataset) -> None:
        with self._lock:
            if self._closed or self._workers is None or dataset.name in self._busy:
                return
            self._busy.add(dataset.name)
            try:
                self._workers.submit(self._refresh, dataset)
            except BaseException:
                self._busy.discard(dataset.name)
                raise

    def _refresh(self, dataset: FollowedDataset) -> None:
        try:
            dataset.refresh()
        except SnapshotAssetsError as error:
            if not self._closed:
                _log.warning("%s: the refresh failed and is tried again: %s", dataset.name, error)
                self._backoff.failed(dataset.name)
        except Exception:  # noqa: BLE001 - what nobody foresaw is logged whole, and polling goes on
            _log.exception("%s: the refresh failed and is tried again", dataset.name)
            self._backoff.failed(dataset.name)
        else:
            self._backoff.succeeded(dataset.name)
        finally:
            with self._lock:
                self._busy.discard(dataset.name)


class _Backoff:
    """For each name, how long to let it be: nothing after a success, growing with each failure in a row."""

    def __init__(self, interval: float, clock: Clock) -> None:
        self._interval = interval
        self._clock = clock
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def failed(self, name: str) -> None:
        """Count a failure."""
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        longest = max(self._interval, _LONGEST_PAUSE)
        # The first failure is tried again at the next look; half an interval less, so that jitter skips none.
        pause = min(self._interval * 2.0 ** min(failures - 1, 16), longest) - self._interval / 2
        self._until[name] = self._clock.monotonic() + pause * _jitter()

    def succeeded(self, name: str) -> None:
        """Forget the failures."""
        self._failures.pop(name, None)
        self._until.pop(name, None)

    def pause(self, name: str) -> float:
        """Seconds that are left to wait; zero or less when none are."""
        return self._until.get(name, 0.0) - self._clock.monotonic() if name in self._until else 0.0


def _jitter() -> float:
    return random.uniform(1.0 - _JITTER, 1.0 + _JITTER)  # noqa: S311 - spreads load, protects nothing
