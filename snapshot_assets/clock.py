"""Time as a component, so that tests can hold it still."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Protocol

from snapshot_assets.errors import ConfigurationError

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock", "in_seconds"]


class Clock(Protocol):
    """Where a component takes its time from."""

    def now_ms(self) -> int:
        """Unix time in milliseconds; for documents that people read, never for safety."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; for durations and deadlines."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until the event is set or the seconds have passed; tell whether it is set."""


class SystemClock:
    """The clock of this machine."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(seconds)


SYSTEM_CLOCK = SystemClock()


def in_seconds(name: str, duration: float | timedelta) -> float:
    """A duration, given in seconds or as a `timedelta`, in seconds.

    Raises:
        ConfigurationError: it is neither, or below zero, or without end.
    """
    seconds: object = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
        raise ConfigurationError(f"{name} is {duration!r}; it takes seconds from zero, or a timedelta")
    return float(seconds)
