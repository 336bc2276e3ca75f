"""The write gate: one writer or capture at a time on a live database, across threads and processes."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snapshot_assets.durable import is_full
from snapshot_assets.errors import CaptureError, LiveDatabaseBusy
from snapshot_assets.paths import real_path

__all__ = ["gate_path", "write_gate"]

_POLL_SECONDS = 0.02


def gate_path(live: Path) -> Path:
    """The lock file of a live database; the same one for every name that leads to the database.

    Raises:
        ConfigurationError: the path leads nowhere.
    """
    return Path(f"{real_path(live)}.snapshot-assets.lock")


@contextmanager
def write_gate(
    live: Path,
    *,
    timeout: float | None = None,
    dataset: str | None = None,
    on_wait: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Hold the write gate of a live database.

    Excludes every other holder, in this process and in others, until the end of the block; when a holder dies, the
    kernel opens the gate. A thread that holds it and asks again waits for itself. The lock file stays where it is.

    Args:
        live: the live database; it need not exist yet. The folder of the lock file is made if it is missing.
        timeout: seconds to wait for another holder; without end, when it is left out.
        dataset: named to whoever waits in vain.
        on_wait: called again and again while it waits; what it raises ends the waiting.

    Raises:
        LiveDatabaseBusy: somebody else held it for `timeout` seconds.
        CaptureError: the lock file can not be made, locked or written.
        ConfigurationError: the path leads nowhere.
    """
    lock = gate_path(live)
    with _errors_of(lock, dataset):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with _errors_of(lock, dataset):
            _lock(descriptor, lock, live, timeout, dataset, on_wait)
        try:
            with _errors_of(lock, dataset):
                _sign(descriptor, {"pid": os.getpid(), "dataset": dataset})
            yield
        finally:
            # A name that stays there misleads at most whoever waits for the next holder.
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            # A child that was forked meanwhile shares the lock: unlocking, unlike closing, takes it from both.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


@contextmanager
def _errors_of(lock: Path, dataset: str | None) -> Iterator[None]:
    """Say of an operating system's error that the gate is what failed."""
    try:
        yield
    except OSError as error:
        hint = "Free disk space." if is_full(error) else "Make the folder of the live database writable."
        raise CaptureError(
            f"the write gate {lock} can not be used: {error.strerror or error}", hint=hint, dataset=dataset
        ) from error


def _lock(
    descriptor: int,
    lock: Path,
    live: Path,
    timeout: float | None,
    dataset: str | None,
    on_wait: Callable[[], None] | None,
) -> None:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if deadline is not None and time.monotonic() >= deadline:
                raise LiveDatabaseBusy(
                    f"{live} is being written or captured by {_holder(descriptor)}; waited {timeout:g} s at {lock}",
                    hint="Wait until the other writer is done, or raise the timeout.",
                    dataset=dataset,
                ) from None
            if on_wait is not None:
                on_wait()
            time.sleep(_POLL_SECONDS)
        else:
            return


def _sign(descriptor: int, holder: dict[str, int | str | None]) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(descriptor: int) -> str:
    """Who holds the gate, as far as the lock file tells: its holder may be about to write there."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        named = f" for dataset {content['dataset']!r}" if content["dataset"] else ""
        return f"process {content['pid']}{named}"
    except (ValueError, KeyError, TypeError):
        return "another writer"
