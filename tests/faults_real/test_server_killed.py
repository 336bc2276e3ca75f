"""The object store itself is killed and started again, under publishes, refreshes and cleanups.

SeaweedFS answers a write before it is on the disk: it sends no fsync. What is promised here is that it outlives the
death of the server's process, as what the kernel has does; what a server promises when its machine loses power is its
own affair.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snapshot_assets.model.head import head_key
from snapshot_assets.testing.servers import RestartableServer, restartable_weed_server
from tests.faults_real.actors import Part, clean, read, write
from tests.faults_real.crew import Crew, wait_for
from tests.faults_real.history import check_all, settle
from tests.faults_real.place import NAME, Place

ERRORS = {"StoreUnavailable", "RecoveryRequired", "WriterBusy", "Superseded"}


@pytest.fixture(scope="module")
def mortal() -> Iterator[RestartableServer]:
    with restartable_weed_server() as running:
        yield running


def count(place: Place, actor: str, kind: str, since: float) -> int:
    return sum(event["kind"] == kind and event["at"] > since for event in place.events(actor))


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=pytest.mark.soak)])
def test_a_killed_server_loses_nothing_that_was_acknowledged_and_readers_go_on(
    mortal: RestartableServer, crew: Crew, tmp_path: Path, kills: int
) -> None:
    place = Place(tmp_path, mortal.server.new_url(), mortal.server.options)
    settle(place)
    processes = [
        crew.start(write, place, Part("writer0", live="live0", retry_for=0.5, wait=1.0)),
        crew.start(write, place, Part("writer1", live="live1", retry_for=60.0, wait=60.0)),
        crew.start(clean, place, Part("cleaner", retry_for=0.5, pause=0.1)),
        crew.start(read, place, Part("reader", retry_for=0.2, pause=0.02)),
    ]
    chance = random.Random(kills)
    for turn in range(kills):
        up = time.monotonic()
        wait_for(lambda since=up: count(place, "writer*", "published", since) > 0, "nobody publishes")  # type: ignore[misc]
        wait_for(lambda since=up: count(place, "reader", "served", since) > 0, "nobody reads")  # type: ignore[misc]
        # One writer finds the server dead in its very commit.
        part = Part(f"writer{turn + 2}", live="live2", retry_for=60.0, wait=60.0, turns=1)
        committing = crew.start_stopping(write, place, replace(part, call=f"write_if_match {head_key(NAME)}"))
        time.sleep(chance.uniform(0.0, 0.3))
        mortal.kill()
        down = time.monotonic()
        crew.send(committing, signal.SIGCONT)
        wait_for(lambda since=down: count(place, "reader", "refused", since) > 0, "the reader has not noticed")  # type: ignore[misc]
        noticed = time.monotonic()
        wait_for(lambda since=noticed: count(place, "reader", "served", since) > 1, "the reader stopped serving")  # type: ignore[misc]
        mortal.restart()
        crew.ended(committing)
    place.end()
    for process in processes:
        crew.ended(process)
    kinds = check_all(
        place, refusals={"writer": ERRORS, "cleaner": ERRORS | {"Conflict"}, "reader": {"StoreUnavailable"}}
    )
    print(f"\n{kills} kills of the server: {dict(kinds)}")
    assert kinds["refused StoreUnavailable"] > kills
