"""Many processes on one dataset: ids rise, what was acknowledged stays, losers know it, and the head is a register."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Mapping

import pytest

from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.head import Status
from tests.faults_real.actors import KEEP, Part, clean, drop_and_recreate, read, roll_back, sweep, write
from tests.faults_real.crew import Crew
from tests.faults_real.history import check_all, settle
from tests.faults_real.place import NAME, Place

WRITERS = 8
OPERATORS = 6
STALL_SECONDS = 1.6
"""Longer than the second that the lease of a writer lasts."""

LOSERS = {"WriterBusy", "Superseded"}
CLEANERS = {"Conflict"}


def run(
    crew: Crew,
    place: Place,
    parts: Mapping[Callable[[Place, Part], None], list[Part]],
    seconds: float,
    stalled: str,
) -> None:
    """Let everybody play for so long; now and then one of those whose name begins so stands still for a while."""
    processes = [crew.start(actor, place, part) for actor, all_parts in parts.items() for part in all_parts]
    for process in processes:
        crew.wait_until_ready(process, place)
    deadline = time.monotonic() + seconds
    chance = random.Random(seconds)
    candidates = [process for process in processes if process.name.startswith(stalled)]
    while time.monotonic() < deadline:
        process = chance.choice(candidates)
        crew.send(process, signal.SIGSTOP)
        time.sleep(STALL_SECONDS)
        crew.send(process, signal.SIGCONT)
        time.sleep(chance.uniform(0.0, 0.5))
    place.end()
    for process in processes:
        crew.ended(process)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.soak)])
def test_writers_of_one_dataset_lose_nothing_beside_cleaners_rollbacks_and_slow_readers(
    place: Place, crew: Crew, seconds: int
) -> None:
    settle(place, "first")
    writers = [
        Part(f"writer{n}", live=f"live{n}", wait=(0.0, 0.5, 5.0)[n % 3], pause=0.05, verify_upload=n == 7)
        for n in range(WRITERS)
    ]
    run(
        crew,
        place,
        {
            write: writers,
            clean: [Part("cleaner", pause=0.02)],
            sweep: [Part("sweeper", pause=0.1)],
            roll_back: [Part("operator", pause=0.2)],
            read: [Part("reader0", pause=0.05), Part("reader1", pause=0.05)],
        },
        seconds,
        stalled="writer",
    )
    kinds = check_all(
        place, refusals={"writer": LOSERS, "cleaner": CLEANERS, "sweeper": CLEANERS, "operator": {"SnapshotMissing"}}
    )
    print(f"\n{place.url}: {dict(kinds)}")
    assert kinds["published"] > 2
    assert kinds["refused WriterBusy"]
    assert kinds["rolled_back"]
    assert kinds["cleaned"]
    assert kinds["served"]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.soak)])
def test_drops_and_recreations_never_mix_incarnations_under_writers_and_readers(
    local_place: Place, crew: Crew, seconds: int
) -> None:
    place = local_place
    settle(place, "first")
    run(
        crew,
        place,
        {
            write: [Part(f"writer{n}", live=f"live{n}", wait=1.0) for n in range(3)],
            drop_and_recreate: [Part("dropper0", pause=0.4), Part("dropper1", pause=0.6)],
            clean: [Part("cleaner", pause=0.05)],
            read: [Part("reader0", pause=0.05), Part("reader1", pause=0.05, announces=True)],
        },
        seconds,
        stalled="dropper",
    )
    maintenance = Maintenance(place.store(place.journal("operator")))
    if place.store().head(NAME).status is Status.SEALED:
        maintenance.drop(NAME, confirm=True, force=True)
    if place.store().head(NAME).status is Status.DROPPED:
        maintenance.recreate(NAME)
    inactive = {"DatasetSealed", "DatasetDropped"}
    kinds = check_all(
        place,
        refusals={
            "writer": LOSERS | inactive | {"IncarnationChanged"},
            "cleaner": CLEANERS | inactive,
            "dropper": inactive | {"IncarnationChanged", "MaintenanceError"},
            "reader": {"NotLoaded"},
        },
    )
    print(f"\n{dict(kinds)}")
    assert kinds["dropped"] > 2
    assert kinds["recreated"] > 2
    assert kinds["published"] > 2
    assert kinds["served"]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.soak)])
def test_the_head_is_one_register_for_everybody_who_changes_it_at_once(place: Place, crew: Crew, seconds: int) -> None:
    for _ in range(3):
        settle(place)
    run(
        crew,
        place,
        {roll_back: [Part(f"operator{n}") for n in range(OPERATORS)], read: [Part("reader")]},
        seconds,
        stalled="operator",
    )
    kinds = check_all(place, refusals={})
    conflicts = sum(event["kind"] == "head" and event["what"] == "refused" for event in place.events())
    print(f"\n{place.url}: {dict(kinds)}, {conflicts} changes were made anew")
    assert kinds["rolled_back"] > OPERATORS
    assert conflicts


@pytest.mark.parametrize("call", [2, 4])
def test_a_reader_that_stands_still_in_a_download_goes_to_what_is_current_afterwards(
    place: Place, crew: Crew, call: int
) -> None:
    settle(place)
    reader = crew.start_stopping(read, place, Part("reader", call=call, turns=1, must_load=True))
    crew.ended(crew.start(write, place, Part("writer", turns=KEEP + 2)))
    crew.ended(crew.start(clean, place, Part("cleaner", turns=1)))
    crew.send(reader, signal.SIGCONT)
    crew.ended(reader)
    [served] = [event for event in place.events("reader") if event["kind"] == "served"]
    assert served["snapshot_id"] == KEEP + 2
    assert sum(len(event["removes"]) for event in place.events("cleaner") if event["kind"] == "cleaned") == 3
    check_all(place, refusals={})
