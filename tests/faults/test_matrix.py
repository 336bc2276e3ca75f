"""Every operation, every one of its store calls, every fault: nothing lost, nothing half, and the next one finishes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from snapshot_assets import failpoints
from snapshot_assets.store.contract import Store
from snapshot_assets.testing.faults import Died, FaultKind
from tests.faults.cells import Place, play, play_blink, play_death, record
from tests.faults.operations import ALL_ENGINES, OPERATIONS, Operation
from tests.faults.scene import Scene, copying_in_this_process

FAILPOINTS = {value for name, value in vars(failpoints).items() if name.isupper() and isinstance(value, str)}
SAMPLED: tuple[FaultKind, ...] = ("before", "after", "short", "corrupt", "hang", "die_after")
"""`late` and `die_before` at every call: only in the long run."""

BY_NAME = {operation.name: operation for operation in OPERATIONS}
ROWS = [(operation, engine) for operation in OPERATIONS for engine in operation.engines]


@pytest.fixture(scope="module")
def scenes() -> Iterator[dict[str, Scene]]:
    """A scene for each engine, shared by all cells; in memory, where the system offers it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield {engine: Scene(engine, Path(folder, engine)) for engine in ALL_ENGINES}


@pytest.fixture(scope="module", autouse=True)
def copied_in_this_process() -> Iterator[None]:
    with copying_in_this_process():
        yield


def every_cell(places: Sequence[Place]) -> list[tuple[Place, FaultKind]]:
    """Each call with each of its faults."""
    return [(place, kind) for place in places for kind in place.faults]


def sampled(places: Sequence[Place], kinds: Sequence[FaultKind] = SAMPLED) -> list[tuple[Place, FaultKind]]:
    """The first call of each kind with each of the faults."""
    return [(place, kind) for place, kind in every_cell(places) if place.nth == 1 and kind in kinds]


def play_each(cells: Sequence[tuple[object, ...]], play_one: Callable[..., None]) -> None:
    """Play all of the cells, and raise one error that names each that failed."""
    failed = []
    for cell in cells:
        try:
            play_one(*cell)
        except (Exception, Died) as error:
            failed.append(f"{cell}: {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)


def play_row(operation: Operation, scene: Scene, kinds: Sequence[FaultKind] = SAMPLED) -> None:
    """Play a covering sample: each kind of call with each fault, and death at each failpoint."""
    places, hits = record(operation, scene)
    play_each(sampled(places, kinds), lambda place, kind: play(operation, scene, place, kind))
    deaths = [(failpoint, 1) for failpoint in sorted(set(hits))]
    play_each(deaths, lambda failpoint, nth: play_death(operation, scene, failpoint, nth))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_a_fault_at_each_kind_of_call_loses_nothing(operation: Operation, scenes: dict[str, Scene]) -> None:
    play_row(operation, scenes["sqlite"])


@pytest.mark.parametrize("engine", [engine for engine in ALL_ENGINES if engine != "sqlite"])
@pytest.mark.parametrize("name", ["second publish", "refresh"])
def test_no_engine_makes_a_difference(name: str, engine: str, scenes: dict[str, Scene]) -> None:
    scene = scenes[engine]
    operation = BY_NAME[name]
    places, _ = record(operation, scene)
    play_each(sampled(places, ["after", "corrupt"]), lambda place, kind: play(operation, scene, place, kind))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_nobody_notices_a_store_that_fails_once_and_is_asked_again(
    operation: Operation, scenes: dict[str, Scene]
) -> None:
    scene = scenes["sqlite"]
    places, _ = record(operation, scene)
    cells = sampled(places, ["before", "after"])
    # One of the two at each kind of call; all are in the long run.
    play_each(cells[::2], lambda place, kind: play_blink(operation, scene, place, kind))


def test_a_lease_that_can_not_be_written_once_does_not_fail_a_publish(scenes: dict[str, Scene]) -> None:
    play_blink(BY_NAME["second publish"], scenes["sqlite"], Place("write_if_match", "leases/orders.json", 1), "before")


def test_every_failpoint_is_passed_by_some_operation(scenes: dict[str, Scene]) -> None:
    passed = {hit for operation in OPERATIONS for hit in record(operation, scenes["sqlite"])[1]}
    assert passed == FAILPOINTS


def test_the_matrix_has_a_thousand_cells_and_a_fault_of_every_kind_at_every_kind_of_call(
    scenes: dict[str, Scene],
) -> None:
    calls = {}
    for operation in OPERATIONS:
        calls[operation.name] = record(operation, scenes["sqlite"])[0]
    assert sum(len(every_cell(places)) for places in calls.values()) >= 1_000
    for places in calls.values():
        in_sample = {(place.operation, place.key) for place, _ in sampled(places)}
        assert in_sample == {(place.operation, place.key) for place in places}
    methods = {place.operation for places in calls.values() for place in places}
    assert methods == {name for name in vars(Store) if not name.startswith("_")} - {"url"}


@pytest.mark.soak
@pytest.mark.parametrize(("operation", "engine"), ROWS, ids=[f"{row[0].name}-{row[1]}" for row in ROWS])
def test_any_fault_at_any_call_loses_nothing(operation: Operation, engine: str, scenes: dict[str, Scene]) -> None:
    scene = scenes[engine]
    places, hits = record(operation, scene)
    play_each(every_cell(places), lambda place, kind: play(operation, scene, place, kind))
    deaths = [(failpoint, nth) for failpoint in sorted(set(hits)) for nth in range(1, hits.count(failpoint) + 1)]
    play_each(deaths, lambda failpoint, nth: play_death(operation, scene, failpoint, nth))
    blinks = [
        (place, kind)
        for place, kind in every_cell(places)
        if kind in {"before", "after"}
        if (kind, place.operation, place.key) != ("before", "write_if_match", "leases/orders.json")
    ]
    play_each(blinks, lambda place, kind: play_blink(operation, scene, place, kind))
