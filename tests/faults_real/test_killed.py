"""SIGKILL at any moment and at any failpoint, of writers, readers, cleaners and nodes: nothing lost, nothing left."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from multiprocessing.context import ForkServerProcess

import adbc_driver_flightsql.dbapi as flightsql
import pytest

from snapshot_assets import failpoints
from tests.faults_real.actors import Part, clean, read, serve, sweep, write
from tests.faults_real.crew import Crew
from tests.faults_real.history import check_all, settle
from tests.faults_real.place import Place, digest_of_rows

LONGEST_LIFE = 5.0
"""Seconds after which whoever has not done enough to be killed for it is killed nevertheless."""

MOST_LINES = {"writer": 16, "reader": 8, "cleaner": 16, "sweeper": 12, "node": 4}
"""Whoever has not died at its failpoint dies a moment after so many lines in its journal, at most."""

REFUSALS = {"cleaner": {"Conflict"}, "sweeper": {"Conflict"}}


def points(prefix: str) -> list[str]:
    return [value for name, value in vars(failpoints).items() if name.startswith(prefix)]


ACTORS = {
    "writer": (write, points("PUBLISH_")),
    "reader": (read, points("REFRESH_")),
    "cleaner": (clean, points("CLEANUP_")),
    "sweeper": (sweep, points("CLEANUP_")),
    "node": (serve, points("REFRESH_")),
}


class Client:
    """Asks a node over Flight SQL until it dies, and writes down each answer as what the node served."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._journal = place.journal("client")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._since = time.monotonic()
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            flights = [
                event["flight"]
                for event in self._place.events("node")
                if event["kind"] == "node" and event["at"] > self._since
            ]
            if flights:
                with contextlib.suppress(flightsql.Error, RuntimeError):  # the node was killed
                    self._ask(flights[-1])
                return

    def _ask(self, flight: str) -> None:
        with flightsql.connect(flight, autocommit=True) as connection, connection.cursor() as cursor:
            while not self._stop.is_set():
                try:
                    cursor.execute("select id, version, note from orders.main.t order by id")
                    rows = cursor.fetchall()
                except flightsql.Error as error:
                    if "NotLoaded" in str(error) or "orders" in str(error):
                        time.sleep(0.05)
                        continue  # it has no snapshot yet
                    raise
                self._journal.write("answered", rows=digest_of_rows(rows))
                time.sleep(0.02)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


# The driver's cursors stumble when what they close has died.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kills", [28, pytest.param(500, marks=pytest.mark.soak)])
def test_whoever_is_killed_whenever_the_next_one_settles_it(place: Place, crew: Crew, kills: int) -> None:
    chance = random.Random(kills)
    place.live()
    settle(place)  # so that there is something to read
    killed = turn = 0
    while killed < kills:
        # One of each, at the same time; the sweeper and the node take turns.
        names = ["writer", "reader", "cleaner", ("sweeper", "node")[turn % 2]]
        client = Client(place) if "node" in names else None
        doomed: dict[ForkServerProcess, int] = {}
        for name in names:
            actor, where = ACTORS[name]
            failpoint = chance.choice([None, *where])
            part = Part(
                name, failpoint=failpoint, nth=chance.choice([1, 1, 2, 3]), announces=chance.random() < 0.5, pause=0.02
            )
            lines = len(place.events(name)) + chance.randint(1, MOST_LINES[name])
            doomed[crew.start(actor, place, part)] = lines
        deadline = time.monotonic() + LONGEST_LIFE
        while doomed:
            for process, lines in list(doomed.items()):
                if (
                    len(place.events(process.name)) >= lines
                    or not crew.is_alive(process)
                    or time.monotonic() > deadline
                ):
                    time.sleep(chance.uniform(0.0, 0.03))
                    crew.kill(process)
                    killed += 1
                    del doomed[process]
            time.sleep(0.01)
        if client is not None:
            client.stop()
        turn += 1
        if turn % 4 == 0:
            settle(place)
    kinds = check_all(place, refusals=REFUSALS)
    print(f"\n{place.url.partition(':')[0]}: {killed} kills, {dict(kinds)}")
    answered = {event["rows"] for event in place.events() if event["kind"] == "answered"}
    assert answered <= {event["rows"] for event in place.events() if event["kind"] == "head"}
    assert all(kinds[kind] for kind in ("published", "served", "cleaned", "swept", "signal")), kinds
