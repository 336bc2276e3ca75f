"""The writer lease: one live writer a dataset, by liveness only. Safety rests on the epoch in the head."""

from __future__ import annotations

import logging
import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from snapshot_assets.clock import Clock
from snapshot_assets.errors import (
    Aborted,
    ConfigurationError,
    Conflict,
    DocumentDamaged,
    NotFound,
    StoreError,
    StoreUnavailable,
    WriterBusy,
)
from snapshot_assets.ids import new_ulid
from snapshot_assets.model.lease import Holder, WriterLease, lease_key
from snapshot_assets.publish.aborting import AbortSwitch
from snapshot_assets.store.contract import Store

__all__ = ["HeldLease", "LeaseBook", "this_holder"]

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.25
_WRITE_TRIES = 3


def _start_time(pid: int) -> str | None:
    """When a process of this host started, in the kernel's own words; none when the kernel does not tell."""
    try:
        # The process's own name stands in it, in whatever bytes; what follows the last parenthesis is ASCII.
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return stat.rpartition(b")")[2].split()[19].decode()


@cache
def _host() -> tuple[str, str]:
    """This host, told apart from containers that share its name or its kernel, and its boot."""
    try:
        namespace = Path("/proc/self/ns/pid").readlink().name
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname(), ""
    return f"{socket.gethostname()} {namespace}", boot


@cache
def _process_id(_pid: int) -> str:
    return new_ulid()


def this_holder() -> Holder:
    """This process, as leases and sidecars name it."""
    host, boot_id = _host()
    return Holder(host, boot_id, os.getpid(), _start_time(os.getpid()) or "" if boot_id else "")


def _is_gone(holder: Holder) -> bool:
    """Whether the holder was a process of this very host and boot that no longer runs. When in doubt: no."""
    host, boot_id = _host()
    if not boot_id or (holder.host, holder.boot_id) != (host, boot_id):
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        # It runs, and is another user's.
        return False
    started = _start_time(holder.pid)
    return started is not None and started != holder.start_time


@dataclass(frozen=True, slots=True)
class _Sighting:
    """A version of a lease, and when this process first saw it on its own clock."""

    token: str
    since: float


class LeaseBook:
    """Takes writer leases for one process, and remembers how long it has seen other holders' leases unchanged.

    Args:
        objects: where the leases lie.
        duration: seconds after which a holder that gave no sign of life may be replaced; 1 s to 24 h.
        clock: for durations.

    Raises:
        ConfigurationError: the duration is out of range.
    """

    def __init__(self, objects: Store, duration: float, clock: Clock) -> None:
        if not 1.0 <= duration <= 24 * 60 * 60:
            raise ConfigurationError(f"a lease duration of {duration:g} s is not between 1 s and 24 h")
        self._objects = objects
        self._duration_ms = round(duration * 1000)
        self._clock = clock
        self._sightings: dict[str, _Sighting] = {}

    def acquire(self, dataset: str, *, wait: float = 0.0, switch: AbortSwitch | None = None) -> HeldLease:
        """Take the lease and keep it renewed until it is released.

        A lease passes on when it was released, when its holder was a process of this host that is gone, or when it
        was seen unchanged for the duration that its holder wrote into it.

        Raises:
            WriterBusy: somebody else held it for all of `wait` seconds.
            Aborted: `switch` was thrown; no renewal or release comes after that, either.
        """
        switch = switch or AbortSwitch(dataset)
        objects = switch.guard(self._objects)
        deadline = self._clock.monotonic() + wait
        while True:
            found = _read(objects, dataset)
            mine = WriterLease(dataset, this_holder(), _process_id(os.getpid()), new_ulid(), self._duration_ms, 0)
            if found is None:
                token = _write(objects, mine, None)
            else:
                lease, seen = found
                mine = replace(mine, counter=lease.counter + 1, extra=lease.extra)
                token = _write(objects, mine, seen) if self._is_free(lease, seen) else None
            if token is not None:
                self._sightings.pop(dataset, None)
                return HeldLease(objects, mine, token, self._clock)
            if self._clock.monotonic() >= deadline:
                raise _busy(objects, dataset)
            self._clock.wait(switch.event, min(_POLL_SECONDS, max(0.0, deadline - self._clock.monotonic())))

    def _is_free(self, lease: WriterLease, token: str) -> bool:
        if lease.duration_ms == 0 or _is_gone(lease.holder):
            return True
        now = self._clock.monotonic()
        seen = self._sightings.get(lease.dataset)
        if seen is None or seen.token != token:
            self._sightings[lease.dataset] = _Sighting(token, now)
            return False
        return now - seen.since >= lease.duration_ms / 1000


def _read(objects: Store, dataset: str) -> tuple[WriterLease, str] | None:
    try:
        found = objects.read(lease_key(dataset))
    except NotFound:
        return None
    try:
        return WriterLease.parse(found.data, dataset), found.token
    except DocumentDamaged as error:
        raise DocumentDamaged(
            error.message,
            hint=f"Delete {lease_key(dataset)} when no writer of it is at work: a lease holds no data.",
            dataset=dataset,
        ) from error


def _write(objects: Store, lease: WriterLease, token: str | None) -> str | None:
    """Write the lease over the version that was seen; the new token, or nothing when somebody else was faster.

    Raises:
        StoreUnavailable: the store did not take it, however often it was asked.
    """
    key, data = lease_key(lease.dataset), lease.to_bytes()
    tries = _WRITE_TRIES
    while True:
        try:
            if token is None:
                return objects.write_if_absent(key, data)
            return objects.write_if_match(key, data, token)
        except Conflict:
            return None
        except StoreUnavailable:
            tries -= 1
            found = _read(objects, lease.dataset)
            there = None if found is None else found[1]
            if found is not None and found[0].lease_id == lease.lease_id:
                return there
            if there != token:
                return None
            # It did not arrive, or not yet: sent once more, the same bytes can take effect only once.
            if not tries:
                raise


def _busy(objects: Store, dataset: str) -> WriterBusy:
    found = _read(objects, dataset)
    if found is None:
        return WriterBusy(f"another writer of {dataset!r} was faster", dataset=dataset)
    return WriterBusy(
        f"{dataset!r} is being written by {found[0].holder}",
        hint=f"Wait for it; if it has died, its lease passes on after {found[0].duration_ms / 1000:g} s unchanged. "
        "Ask to wait for longer than that (`--wait`).",
        dataset=dataset,
    )


class HeldLease:
    """A lease in our hands; a thread renews it. Leaving the context releases it."""

    def __init__(self, objects: Store, lease: WriterLease, token: str, clock: Clock) -> None:
        self._objects = objects
        self._lease = lease
        self._token = token
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._renew, name=f"lease of {lease.dataset}", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._clock.wait(self._stop, self._lease.duration_ms / 3000):
            with self._lock, suppress(Aborted):
                if self._stop.is_set() or not self._replace(replace(self._lease, counter=self._lease.counter + 1)):
                    return

    def _replace(self, lease: WriterLease) -> bool:
        """Write the next version; tell whether the lease is still ours. A failing store is tried again later."""
        key = lease_key(lease.dataset)
        try:
            try:
                self._token = self._objects.write_if_match(key, lease.to_bytes(), self._token)
                self._lease = lease
            except (Conflict, StoreUnavailable):
                found = self._objects.read(key)
                there = WriterLease.parse(found.data, lease.dataset)
                self._lost = there.lease_id != lease.lease_id
                self._token, self._lease = found.token, there
        except StoreError as error:
            _log.warning("the writer lease of %s could not be renewed: %s", lease.dataset, error)
        return not self._lost

    def release(self) -> None:
        """Give the lease back. A failure is logged; then, and after an abort, the lease runs out by itself."""
        self._stop.set()
        with self._lock:
            if not self._lost:
                with suppress(Aborted):
                    self._replace(replace(self._lease, counter=self._lease.counter + 1, duration_ms=0))
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
