"""The demo location in `dagster dev`, daemon and all, with a reader node beside it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets.serve.client import NodeClient
from snapshot_assets.store.snapshot_store import SnapshotStore

_REPOSITORY = Path(__file__).parents[2]
_PATIENCE = 180.0
_LOCATION = {"repositoryName": "__repository__", "repositoryLocationName": "snapshot-assets-demo"}

_LAUNCH_RUN = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
}"""
_LAUNCH_BACKFILL = """
mutation ($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) { __typename ... on LaunchBackfillSuccess { backfillId } }
}"""
_RUNS = """
{ runsOrError { ... on Runs { results { runId jobName status tags { key value } } } } }"""
_SENSOR = """
query ($selector: SensorSelector!) {
  sensorOrError(sensorSelector: $selector) {
    ... on Sensor { sensorState { status ticks(limit: 50) { status skipReason error { message } } } }
  }
}"""


class DagsterDev:
    """`dagster dev` in a process group of its own."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.log = home / "log"
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}/graphql"
        arguments = ["dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)]
        with self.log.open("wb") as log:
            self._running = subprocess.Popen(
                [str(Path(sys.executable).with_name("dagster")), *arguments],
                cwd=_REPOSITORY,
                env={**os.environ, "DAGSTER_HOME": str(home), **environment},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def ask(self, query: str, **variables: Any) -> Any:
        """Run one GraphQL operation, as the UI does."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert "errors" not in found, found
        return found["data"]

    def answers(self) -> bool:
        try:
            return bool(self.ask("{ version }"))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert self._running.poll() is None, self.log.read_text()
            return False

    def runs(self, job: str) -> list[dict[str, Any]]:
        found = self.ask(_RUNS)["runsOrError"]["results"]
        return [
            {**run, "tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found if run["jobName"] == job
        ]

    def kill(self) -> None:
        """End the whole group at once: `dagster dev` without a terminal pays no heed to anything milder."""
        os.killpg(self._running.pid, signal.SIGKILL)
        self._running.wait(10)


DATASETS = ["flights", "weather", "planes", "airports", "airlines"]
"""One an engine."""


@pytest.fixture
def endpoint(nodes: Any, tmp_path: Path) -> str:
    [found] = nodes.start(str(tmp_path / "demo" / "store"), DATASETS)
    return str(found)


@pytest.fixture
def dev(tmp_path: Path, endpoint: str) -> Iterator[DagsterDev]:
    home = tmp_path / "dagster"
    home.mkdir()
    environment = {"SNAPSHOT_ASSETS_HOME": str(tmp_path / "demo"), "SNAPSHOT_STORE": "", "SNAPSHOT_READERS": endpoint}
    made = DagsterDev(home, **environment)
    yield made
    made.kill()


def _until(what: str, check: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not check():
        assert time.monotonic() < deadline, f"{what}: not within {_PATIENCE:g} s\n{log.read_text()[-4000:]}"
        time.sleep(0.5)


@pytest.mark.timeout(600)
def test_what_is_materialized_in_the_ui_is_served_by_the_node(dev: DagsterDev, endpoint: str, tmp_path: Path) -> None:
    _until("the web server answers", dev.answers, dev.log)
    chosen = [{"path": [name]} for name in DATASETS if name != "flights"]
    others = {"selector": {**_LOCATION, "jobName": "__ASSET_JOB", "assetSelection": chosen}}
    launched = dev.ask(_LAUNCH_RUN, params={**others, "mode": "default"})
    assert launched["launchRun"]["__typename"] == "LaunchRunSuccess", launched
    days = ["2013-01-01", "2013-01-02", "2013-01-03"]
    backfill = {"assetSelection": [{"path": ["flights"]}], "partitionNames": days}
    launched = dev.ask(_LAUNCH_BACKFILL, params=backfill)
    assert launched["launchPartitionBackfill"]["__typename"] == "LaunchBackfillSuccess", launched

    def served() -> dict[str, int]:
        with NodeClient(endpoint, timeout=20.0) as client:
            status = client.status()["datasets"]
        return {name: found["current"]["generation"] for name, found in status.items() if found["current"]}

    _until("the node serves all", lambda: served() == dict.fromkeys(DATASETS, 1), dev.log)
    _until(
        "the reload runs end",
        lambda: [run["status"] for run in dev.runs("reload_readers")] == ["SUCCESS"] * len(DATASETS),
        dev.log,
    )
    materializing = dev.runs("__ASSET_JOB")
    assert [run["status"] for run in materializing] == ["SUCCESS", "SUCCESS"]
    assert {run["tags"]["snapshot/dataset"] for run in dev.runs("reload_readers")} == set(DATASETS)
    assert {run["tags"]["dagster/sensor_name"] for run in dev.runs("reload_readers")} == {"snapshot_sensor"}
    store = SnapshotStore.open(str(tmp_path / "demo" / "store"), read_only=True)
    rows = {name: [entry.row_count for entry in store.head(name).snapshots] for name in DATASETS}
    assert rows == {
        "flights": [2_699], "weather": [26_115], "planes": [3_322], "airports": [1_458], "airlines": [16]
    }  # fmt: skip
    sensor = dev.ask(_SENSOR, selector={**_LOCATION, "sensorName": "snapshot_sensor"})["sensorOrError"]["sensorState"]
    assert sensor["status"] == "RUNNING"
    assert not [tick for tick in sensor["ticks"] if tick["status"] == "FAILURE"]
