"""Real other processes, and a copier that can be stopped halfway."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets.engines import copying


class Program:
    """A Python program in a process of its own, which says and hears lines."""

    def __init__(self, code: str, *arguments: object) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._child.pid

    def hear(self, seconds: float = 20.0) -> str:
        """The next line that it says."""
        assert self._child.stdout is not None
        timer = threading.Timer(seconds, self._child.kill)
        timer.start()
        line = self._child.stdout.readline().strip()
        timer.cancel()
        return line

    def say(self, line: str = "") -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def kill(self) -> None:
        """SIGKILL."""
        self._child.kill()
        self._child.wait(20)

    def end(self) -> int:
        """Wait until it has ended by itself."""
        self._child.communicate(timeout=20)
        return self._child.returncode


@pytest.fixture
def program() -> Iterator[Callable[..., Program]]:
    """Start programs; what still runs after the test is killed."""
    started: list[Program] = []

    def start(code: str, *arguments: object) -> Program:
        started.append(Program(code, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        for pipe in (one._child.stdin, one._child.stdout):
            if pipe and not pipe.closed:
                pipe.close()


_PAUSED_COPIER = """
import importlib.util, json, os, sys, time
spec = importlib.util.spec_from_file_location("copier", {copier!r})
copier = importlib.util.module_from_spec(spec)
spec.loader.exec_module(copier)
copy = copier._copy
def halfway(source, target, size):
    if os.path.exists({reached!r}):
        return copy(source, target, size)
    copier._write(source, target, size // 2)
    open({reached!r}, "w").close()
    deadline = time.monotonic() + 20
    while not os.path.exists({go!r}) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.pwrite(target, os.pread(source, size, size // 2), size // 2)
copier._copy = halfway
sys.stdout.write(json.dumps(copier.main(json.loads(sys.argv[1]))))
"""

During = Callable[[Callable[[], Any], Callable[[], None]], Any]


@pytest.fixture
def during_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> During:
    """`during_copy(capture, act)`: run `capture`, and `act` when its first copy is halfway; what `capture` returned."""
    reached, go, script = tmp_path / "reached", tmp_path / "go", tmp_path / "paused_copier.py"
    script.write_text(_PAUSED_COPIER.format(copier=str(copying._COPIER), reached=str(reached), go=str(go)))
    monkeypatch.setattr(copying, "_COPIER", script)

    def run(capture: Callable[[], Any], act: Callable[[], None]) -> Any:
        outcome: list[Any] = []

        def work() -> None:
            try:
                outcome.append(capture())
            except Exception as error:
                outcome.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        wait_until(reached.exists)
        act()
        go.touch()
        thread.join(30)
        (result,) = outcome
        if isinstance(result, Exception):
            raise result
        return result

    return run


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition that will hold soon."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)
