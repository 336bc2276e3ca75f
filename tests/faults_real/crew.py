"""Processes that play a part, started from one that has everything imported, and gone when the test ends."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.faults_real.actors import Part
from tests.faults_real.place import Place

__all__ = ["Crew", "wait_for"]

_SECONDS = 120.0
_PR_SET_PDEATHSIG = 1

_context = multiprocessing.get_context("forkserver")
# Only what is installed: the process that forks finds nothing else.
_context.set_forkserver_preload(
    [
        "adbc_driver_sqlite.dbapi",
        "duckdb",
        "obstore.store",
        "pyarrow.dataset",
        "snapshot_assets.engines.sqlite",
        "snapshot_assets.engines.duckdb",
        "snapshot_assets.maintenance.maintenance",
        "snapshot_assets.publish.publisher",
        "snapshot_assets.reader.reader",
        "snapshot_assets.serve.node",
    ]
)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = _SECONDS) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def _play(actor: Callable[[Place, Part], None], place: Place, part: Part) -> None:
    """Play a part, and die with the process that forked this one: nobody is left when a test run is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    actor(place, part)


class Crew:
    """The processes of one test."""

    def __init__(self) -> None:
        self._all: list[ForkServerProcess] = []
        self._lock = threading.Lock()

    def start(self, actor: Callable[[Place, Part], None], place: Place, part: Part) -> ForkServerProcess:
        process = _context.Process(target=_play, args=(actor, place, part), name=part.actor, daemon=True)
        with self._lock:
            process.start()
            self._all.append(process)
        return process

    def is_alive(self, process: ForkServerProcess) -> bool:
        """Whether it runs, or stands still. Asked by one thread at a time: the end of a process is told only once."""
        with self._lock:
            return process.is_alive()

    def wait_until_ready(self, process: ForkServerProcess, place: Place) -> None:
        """Wait until it has begun to play, or has ended."""
        wait_for(
            lambda: not self.is_alive(process) or any(one["pid"] == process.pid for one in place.events(process.name)),
            f"{process.name} did not begin",
        )

    def start_stopping(self, actor: Callable[[Place, Part], None], place: Place, part: Part) -> ForkServerProcess:
        """Start one that stops itself where its part says, and wait until it has."""
        process = self.start(actor, place, replace(part, signal=signal.SIGSTOP))
        wait_for(lambda: self.is_stopped(process) or not self.is_alive(process), f"{part} did not stop")
        assert self.is_alive(process), f"{part} ended with {process.exitcode} before it stopped"
        return process

    @staticmethod
    def is_stopped(process: ForkServerProcess) -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
        return False

    @staticmethod
    def send(process: ForkServerProcess, number: int) -> None:
        assert process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    def kill(self, process: ForkServerProcess) -> None:
        """Send SIGKILL, and see that this was its end."""
        self.send(process, signal.SIGKILL)
        self.ended(process, -signal.SIGKILL)

    def ended(self, process: ForkServerProcess, code: int = 0) -> None:
        """Wait for an end, and see that it was this one."""
        wait_for(lambda: not self.is_alive(process), f"{process.name} does not end")
        assert process.exitcode == code, f"{process.name} ended with {process.exitcode}"

    def close(self) -> None:
        for process in self._all:
            if self.is_alive(process):
                self.send(process, signal.SIGKILL)
        for process in self._all:
            process.join(_SECONDS)
