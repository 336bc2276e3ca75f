"""The end of a real process at a store call: SIGKILL before the call, or when it has just taken effect."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshot_assets.store.local import LocalStore
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.testing.faults import Died, Fault, FaultKind, FaultStore
from tests.faults.cells import WRITES, Place, check_after, head_in, record
from tests.faults.operations import OPERATIONS, Cell
from tests.faults.scene import Scene

BY_NAME = {operation.name: operation for operation in OPERATIONS}

SAMPLE: list[tuple[str, FaultKind, str, str]] = [
    ("second publish", "exit_after", "upload", "data/*.pack"),
    ("second publish", "exit_before", "write_if_match", "heads/*"),
    ("heal", "exit_after", "delete", "data/*"),
    ("rollback", "exit_after", "write_if_match", "heads/*"),
    ("cleanup without grace", "exit_after", "delete", "data/*"),
    ("drop", "exit_after", "write_if_match", "heads/*"),
    ("refresh", "exit_before", "read_ranges", "data/*"),
]
MEANT_FOR_OTHERS = {"optimize", "publish that rewrites packs"}
"""Their live databases are their own, and made in the process that would be killed."""


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Scene("sqlite", Path(folder))


def run_in_a_child(name: str, scene: Scene, cell: Path, fault: Fault) -> int:
    """Run an operation on the local store `cell/store` in a process of its own; how it ended."""
    arguments = [name, str(scene.folder), str(cell), str(scene.clock.monotonic())]
    arguments += [fault.kind, fault.operation, fault.key, str(fault.nth)]
    code = "import sys; from tests.faults.test_killed_at_calls import main; main(*sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *arguments], timeout=60, check=False, capture_output=True)
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr.decode()
    return done.returncode


def main(name: str, folder: str, cell: str, seconds: str, kind: FaultKind, method: str, key: str, nth: str) -> None:
    """What the child does."""
    scene = Scene("sqlite", Path(folder))
    scene.clock.advance(float(seconds))
    faults = FaultStore(LocalStore(Path(cell, "store")))
    made = Cell(scene, faults, Path(cell))
    BY_NAME[name].prepare(made)
    faults.arm(Fault(kind, method, key, nth=int(nth)))
    BY_NAME[name].run(made)


def kill_and_check(name: str, scene: Scene, fault: Fault) -> None:
    operation = BY_NAME[name]
    inner = scene.store(operation.before.__name__, operation.before)
    folder = scene.fresh_folder("killed")
    local = LocalStore(folder / "store")
    for listed in inner.list(""):
        local.write_if_absent(listed.key, inner.read(listed.key).data)
    assert run_in_a_child(name, scene, folder, fault) == -signal.SIGKILL, "the fault did not fire"
    left = MemoryStore()
    for listed in local.list(""):
        left.write_if_absent(listed.key, local.read(listed.key).data)
    cell = Cell(scene, FaultStore(left), folder)
    operation.prepare(cell)
    try:
        check_after(operation, cell, left, head_in(inner), Died())
    finally:
        if cell.reader is not None:
            cell.reader.close()


@pytest.mark.parametrize(("name", "kind", "method", "key"), SAMPLE, ids=[f"{row[0]}, {row[2]}" for row in SAMPLE])
def test_a_process_that_is_killed_at_a_call_leaves_nothing_half(
    name: str, kind: FaultKind, method: str, key: str, scene: Scene
) -> None:
    record(BY_NAME[name], scene)  # what the operation needs is made here, not in the child
    kill_and_check(name, scene, Fault(kind, method, key))


READERS = {"bootstrap", "refresh", "look again", "verify", "verify a restore"}


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in MEANT_FOR_OTHERS | READERS])
def test_a_process_that_is_killed_at_any_write_leaves_nothing_half(name: str, scene: Scene) -> None:
    places, _ = record(BY_NAME[name], scene)
    writes = writes_in(places)
    assert writes
    for place in writes:
        for kind in ("exit_before", "exit_after"):
            kill_and_check(name, scene, Fault(kind, place.operation, place.key, nth=place.nth))


def writes_in(places: list[Place]) -> list[Place]:
    return [place for place in places if place.faults == WRITES]
