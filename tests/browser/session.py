"""One `dagster dev` of the demo location with three reader nodes, and all that happened there before anybody looks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.dagster.conftest import Nodes
from tests.dagster.dev import DEMO, DagsterDev

PUBLISHES = 30
NAMELESS = 3
SERVED = ["airlines", "airports"]
DAYS = [f"2013-01-{day:02}" for day in range(1, 8)]
ROOT = Path(__file__).parents[2]

_STATE = """
query ($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor) { ... on Sensor { sensorState { id } } } }"""
_STOP = "mutation ($id: String!) { stopSensor(id: $id) { ... on StopSensorMutationResult { __typename } } }"
_START = "mutation ($sensor: SensorSelector!) { startSensor(sensorSelector: $sensor) { ... on Sensor { id } } }"


@dataclass(frozen=True, slots=True)
class Session:
    """What there is to look at.

    Attributes:
        dev: the web server and the daemon.
        endpoints: the reader nodes; the last one is dead.
        rollout: the run that rolled out the newest snapshot of the airlines.
        backfill: a week of flights.
    """

    dev: DagsterDev
    endpoints: list[str]
    rollout: str
    backfill: str


@contextmanager
def demo_in(folder: Path) -> Iterator[Session]:
    """Start it in a folder, and end all of it."""
    home, dagster_home = folder / "demo", folder / "dagster"
    with ExitStack() as stack:
        nodes = Nodes(folder / "nodes")
        stack.callback(nodes.kill_all)
        endpoints = nodes.start(str(home / "store"), SERVED, SERVED, SERVED)
        nodes.kill(endpoints[-1])
        settings = {
            "SNAPSHOT_ASSETS_HOME": str(home),
            "SNAPSHOT_STORE": "",
            "SNAPSHOT_READERS": ",".join(endpoints),
            "SNAPSHOT_CONTROL_TOKEN": "",
        }
        dev = DagsterDev(dagster_home, workspace=ROOT / "workspace.yaml", **settings)
        stack.callback(dev.kill)
        publishing = subprocess.Popen(
            [sys.executable, "-m", "tests.browser.publishing"],
            cwd=ROOT,
            env={**os.environ, **settings, "DAGSTER_HOME": str(dagster_home)},
        )
        stack.callback(publishing.wait, 10)
        stack.callback(publishing.kill)
        dev.wait_until_ready()
        dev.ask("mutation { setNuxSeen }")
        # One rollout of the thirtieth snapshot, not several of some before.
        sensor = {"repositoryLocationName": DEMO, "repositoryName": "__repository__", "sensorName": "snapshot_sensor"}
        dev.ask(_STOP, id=dev.ask(_STATE, sensor=sensor)["sensorOrError"]["sensorState"]["id"])
        backfill = dev.backfill("flights", DAYS)
        assert publishing.wait(240) == 0
        dev.ask(_START, sensor=sensor)
        dev.until("the newest snapshot is rolled out, but for the dead node", lambda: _rolled_out(dev))
        dev.until("the backfill ends", lambda: dev.backfill_status(backfill)[0] == "COMPLETED_SUCCESS")
        yield Session(dev, endpoints, _rolled_out(dev)[0], backfill)


def _rolled_out(dev: DagsterDev) -> list[str]:
    """The run that has rolled out the last of all publishes of the airlines."""
    return [
        run["runId"]
        for run in dev.runs("reload_readers")
        if run["tags"]["snapshot/dataset"] == "airlines"
        and run["tags"]["snapshot/generation"] == str(PUBLISHES)
        and run["endTime"]
    ]
