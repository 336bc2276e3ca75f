"""A store that fails where a test says so."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

from snapshot_assets.errors import SnapshotAssetsError, StoreUnavailable
from snapshot_assets.store.contract import MAX_DOCUMENT_BYTES, Listed, Store, Versioned

__all__ = ["Call", "Died", "Fault", "FaultKind", "FaultStore"]

T = TypeVar("T")

FaultKind = Literal[
    "before", "after", "late", "short", "corrupt", "hang", "die_before", "die_after", "exit_before", "exit_after"
]
"""What goes wrong.

`before`: an error, and the call has no effect. `after`: the call takes effect and its answer is lost in an error.
`late`: an error, and the call takes effect only when `FaultStore.land` is called. `short`, `corrupt`: what is read
lacks its last byte, or has its last byte changed. `hang`: nothing for `seconds`, then an error, without effect.
`die_before`, `die_after`: this call, without or with its effect, and every later one raise `Died`: the store sees what
it would see of a process that is gone. `exit_before`, `exit_after`: SIGKILL to this process, without or with the
effect.
"""


class Died(BaseException):
    """Raised in place of the end of the process; no error of the package, and none that anything may catch."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a store: its operation by the method's name, and its key (of a deletion: keys, joined by a space)."""

    operation: str
    key: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, and at which calls.

    Args:
        kind: what happens.
        operation: the method, as a pattern such as `write_*`.
        key: the key, as a pattern such as `heads/*`; of a deletion, one of its keys.
        nth: the first of the matching calls that it happens to, counted from 1 since the fault was armed.
        times: how many matching calls it happens to, from that one on.
        seconds: how long a `hang` lasts.
        error: what is raised by `before`, `after` and `hang`.
    """

    kind: FaultKind
    operation: str = "*"
    key: str = "*"
    nth: int = 1
    times: int = 1
    seconds: float = 0.0
    error: type[SnapshotAssetsError] = StoreUnavailable

    def matches(self, call: Call) -> bool:
        """Whether the fault looks at the call."""
        return fnmatchcase(call.operation, self.operation) and any(
            fnmatchcase(key, self.key) for key in call.key.split(" ")
        )


class FaultStore:
    """Another store, whose calls are recorded and go wrong where a fault says so. Safe to use from several threads.

    Args:
        inner: the store.
        faults: armed from the start.
        sleep: how a `hang` spends its seconds.

    Attributes:
        calls: every call so far, in order, also those that went wrong.
        fired: the faults that happened and the calls that they happened to, in order.
        is_dead: whether every call raises `Died` from now on.
    """

    def __init__(self, inner: Store, *faults: Fault, sleep: Callable[[float], None] = time.sleep) -> None:
        self._inner = inner
        self._sleep = sleep
        self._late: list[Callable[[], object]] = []
        self.is_dead = False
        self._seen: dict[int, int] = {}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.calls: list[Call] = []
        self.fired: list[tuple[Fault, Call]] = []
        self.arm(*faults)

    def arm(self, *faults: Fault) -> None:
        """Add faults; their calls are counted from now on."""
        with self._lock:
            self._faults.extend(faults)

    def disarm(self) -> None:
        """Remove all faults. What was recorded stays."""
        with self._lock:
            self._faults.clear()
            self._seen.clear()

    def land(self) -> None:
        """Let the calls that are late take effect now, as far as their conditions still hold."""
        late, self._late = self._late, []
        for effect in late:
            with contextlib.suppress(SnapshotAssetsError):
                effect()

    def count(self, operation: str = "*", key: str = "*") -> int:
        """How many of the calls so far match the patterns."""
        asked = Fault("before", operation, key)
        with self._lock:
            return sum(asked.matches(call) for call in self.calls)

    @property
    def unfired(self) -> list[Fault]:
        """The armed faults that have not happened: a test that meant them tested nothing."""
        with self._lock:
            happened = [fault for fault, _ in self.fired]
            return [fault for fault in self._faults if fault not in happened]

    @property
    def url(self) -> str:
        return self._inner.url

    def read(self, key: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned:
        fault = self._enter("read", key)
        found = self._perform(fault, lambda: self._inner.read(key, limit=limit))
        return Versioned(_spoilt(fault, found.data), found.token)

    def read_if_changed(self, key: str, token: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned | None:
        fault = self._enter("read_if_changed", key)
        found = self._perform(fault, lambda: self._inner.read_if_changed(key, token, limit=limit))
        return None if found is None else Versioned(_spoilt(fault, found.data), found.token)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        fault = self._enter("read_ranges", key)
        found = self._perform(fault, lambda: self._inner.read_ranges(key, ranges))
        return [*found[:-1], memoryview(_spoilt(fault, bytes(found[-1])))] if fault and found else found

    def write_if_absent(self, key: str, data: bytes) -> str:
        return self._perform(self._enter("write_if_absent", key), lambda: self._inner.write_if_absent(key, data))

    def write_if_match(self, key: str, data: bytes, token: str) -> str:
        return self._perform(self._enter("write_if_match", key), lambda: self._inner.write_if_match(key, data, token))

    def upload(self, key: str, source: bytes | bytearray | memoryview | Path) -> None:
        fault = self._enter("upload", key)
        if fault is not None and fault.kind == "late":
            # What is under way has left its place: whatever happens there, these bytes arrive.
            source = source.read_bytes() if isinstance(source, Path) else bytes(source)
        self._perform(fault, lambda: self._inner.upload(key, source))

    def list(self, prefix: str) -> Iterator[Listed]:
        return iter(self._perform(self._enter("list", prefix), lambda: list(self._inner.list(prefix))))

    def delete(self, keys: Iterable[str]) -> None:
        doomed = list(keys)
        self._perform(self._enter("delete", " ".join(doomed)), lambda: self._inner.delete(doomed))

    def _enter(self, operation: str, key: str) -> Fault | None:
        """Record a call and find the fault that it runs into, if any."""
        call = Call(operation, key)
        if self.is_dead:
            raise Died(f"a call of {self.url} by a process that is gone")
        with self._lock:
            self.calls.append(call)
            chosen = None
            for position, fault in enumerate(self._faults):
                if fault.matches(call):
                    seen = self._seen[position] = self._seen.get(position, 0) + 1
                    if chosen is None and fault.nth <= seen < fault.nth + fault.times:
                        chosen = fault
            if chosen is not None:
                self.fired.append((chosen, call))
        return chosen

    def _perform(self, fault: Fault | None, perform: Callable[[], T]) -> T:
        kind = None if fault is None else fault.kind
        if fault is not None and kind in {"before", "hang", "late"}:
            if kind == "late":
                self._late.append(perform)
            self._sleep(fault.seconds)
            raise fault.error(f"a fault came before this call of {self.url}")
        if kind == "exit_before":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "die_before":
            self._die()
        answer = perform()
        if kind == "die_after":
            self._die()
        if kind == "exit_after":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault is not None and kind == "after":
            raise fault.error(f"a fault took the answer of this call of {self.url}")
        return answer

    def _die(self) -> NoReturn:
        self.is_dead = True
        raise Died(f"this process is gone, at a call of {self.url}")


def _spoilt(fault: Fault | None, data: bytes) -> bytes:
    if fault is None or not data or fault.kind not in {"short", "corrupt"}:
        return data
    return data[:-1] if fault.kind == "short" else data[:-1] + bytes([data[-1] ^ 0xFF])
