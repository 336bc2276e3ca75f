"""`dagster dev` as its users have it, web server, daemon and code servers, and what the UI asks it over GraphQL."""

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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

__all__ = ["DEMO", "DagsterDev"]

DEMO = "snapshot-assets-demo"
"""The name of the demo's code location."""

_REPOSITORY = Path(__file__).parents[2]
_PATIENCE = 240.0

_LAUNCH_RUN = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
}"""
_REEXECUTE_RUN = """
mutation ($params: ReexecutionParams!) {
  launchRunReexecution(reexecutionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
}"""
_TERMINATE = """
mutation ($id: String!) {
  terminateRun(runId: $id, terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) { __typename }
}"""
_LAUNCH_BACKFILL = """
mutation ($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) { __typename ... on LaunchBackfillSuccess { backfillId } }
}"""
_REEXECUTE_BACKFILL = """
mutation ($params: ReexecutionParams!) {
  reexecutePartitionBackfill(reexecutionParams: $params) { __typename ... on LaunchBackfillSuccess { backfillId } }
}"""
_BACKFILL = """
query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill {
      status
      assetBackfillData {
        assetBackfillStatuses {
          ... on AssetPartitionsStatusCounts {
            numPartitionsTargeted numPartitionsInProgress numPartitionsMaterialized numPartitionsFailed
          }
        }
      }
    }
  }
}"""
_PARTITIONS = """
query ($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode { partitionStats { numPartitions numMaterialized numMaterializing numFailed } }
  }
}"""
_MATERIALIZATIONS = """
query ($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode { assetMaterializations(limit: 1000) { partition runId metadataEntries { __typename label
      ... on IntMetadataEntry { intValue } ... on FloatMetadataEntry { floatValue } ... on TextMetadataEntry { text }
    } } }
  }
}"""
_RUNS = """
{ runsOrError { ... on Runs { results { runId jobName status startTime endTime assetSelection { path }
  tags { key value } } } } }"""
_FAILED = """
{ runsOrError(filter: {statuses: [FAILURE]}) { ... on Runs { results { jobName runId
  eventConnection { events { ... on ErrorEvent { error { message causes { message } } } } } } } } }"""
_TRY_SENSOR = """
mutation ($selector: SensorSelector!, $cursor: String) {
  sensorDryRun(selectorData: $selector, cursor: $cursor) {
    __typename
    ... on PythonError { message }
    ... on DryRunInstigationTick {
      evaluationResult { cursor skipReason runRequests { runKey } error { message } }
    }
  }
}"""
_RESET_SENSOR = """
mutation ($selector: SensorSelector!) {
  setSensorCursor(sensorSelector: $selector, cursor: null) { __typename ... on Sensor { sensorState { status } } }
}"""
_SENSOR = """
query ($selector: SensorSelector!) {
  sensorOrError(sensorSelector: $selector) {
    ... on Sensor { sensorState { status ticks(limit: 50) { timestamp status skipReason error { message } } } }
  }
}"""


class DagsterDev:
    """`dagster dev` in a process group of its own.

    Args:
        home: its DAGSTER_HOME; made if it is missing.
        workspace: the workspace file; by default the project's own, with the demo.
        settings: what `dagster.yaml` says besides that telemetry is off.
        environment: variables for it and all that it starts.
    """

    def __init__(self, home: Path, *, workspace: Path | None = None, settings: str = "", **environment: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "log"
        (home / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\n{settings}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        """Where a browser finds the UI."""
        chosen = str(workspace or _REPOSITORY / "workspace.yaml")
        arguments = ["dev", "-w", chosen, "-h", "127.0.0.1", "-p", str(port)]
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

    def kill(self) -> None:
        """End the whole group at once: `dagster dev` without a terminal pays no heed to anything milder."""
        os.killpg(self._running.pid, signal.SIGKILL)
        self._running.wait(10)

    # --- waiting

    def until(self, what: str, check: Callable[[], object]) -> None:
        """Wait for something; fails, with the end of the log and the runs that failed, when it does not come."""
        deadline = time.monotonic() + _PATIENCE
        while not check():
            assert self._running.poll() is None, self.log.read_text()[-4000:]
            if time.monotonic() > deadline:
                pytest.fail(f"{what}: not within {_PATIENCE:g} s\n{self.log.read_text()[-4000:]}\n{self.failures()}")
            time.sleep(1.0)

    def failures(self) -> str:
        """The runs that failed, and why."""
        lines = []
        for run in self.ask(_FAILED)["runsOrError"]["results"]:
            errors = [event["error"] for event in run["eventConnection"]["events"] if event.get("error")]
            reasons = [text["message"] for error in errors for text in (error, *error["causes"])]
            lines.append(f"{run['jobName']} {run['runId']}: {' | '.join(reasons)}")
        return "\n".join(lines)

    def wait_until_ready(self) -> None:
        """Wait until the web server answers."""
        self.until("the web server answers", self._answers)

    def _answers(self) -> bool:
        try:
            return bool(self.ask("{ version }"))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    # --- what the UI sends

    def ask(self, query: str, **variables: Any) -> Any:
        """Run one GraphQL operation."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert "errors" not in found, found
        return found["data"]

    def materialize(
        self, *assets: str, location: str = DEMO, partition: str | None = None, tags: Mapping[str, str] | None = None
    ) -> str:
        """Launch one run of assets of a location, for a partition if they have some; its id."""
        given = {"dagster/partition": partition} if partition else {}
        params = {
            "selector": {
                **_selector(location),
                "jobName": "__ASSET_JOB",
                "assetSelection": [{"path": [name]} for name in assets],
            },
            "mode": "default",
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in {**given, **(tags or {})}.items()]},
        }
        return str(self._launched("launchRun", _LAUNCH_RUN, params)["run"]["runId"])

    def reexecute(self, run_id: str, strategy: str = "FROM_FAILURE") -> str:
        """Re-execute a run; the id of the new one."""
        params = {"parentRunId": run_id, "strategy": strategy}
        return str(self._launched("launchRunReexecution", _REEXECUTE_RUN, params)["run"]["runId"])

    def give_up(self, run_id: str) -> None:
        """Force the end of a run, as one must when its launcher died with it."""
        done = self.ask(_TERMINATE, id=run_id)["terminateRun"]
        assert done["__typename"] == "TerminateRunSuccess", done

    def backfill(self, asset: str, partitions: Sequence[str]) -> str:
        """Launch a backfill; its id."""
        params = {"assetSelection": [{"path": [asset]}], "partitionNames": list(partitions)}
        return str(self._launched("launchPartitionBackfill", _LAUNCH_BACKFILL, params)["backfillId"])

    def reexecute_backfill(self, backfill_id: str, strategy: str = "FROM_FAILURE") -> str:
        """Re-execute a backfill that has ended; the id of the new one."""
        params = {"parentRunId": backfill_id, "strategy": strategy}
        return str(self._launched("reexecutePartitionBackfill", _REEXECUTE_BACKFILL, params)["backfillId"])

    def try_sensor(self, name: str, location: str = DEMO, cursor: str | None = None) -> dict[str, Any]:
        """Let the code server evaluate a sensor, which launches nothing: `cursor`, `skipReason`, `runRequests`."""
        selector = {**_selector(location), "sensorName": name}
        found: dict[str, Any] = self.ask(_TRY_SENSOR, selector=selector, cursor=cursor)["sensorDryRun"]
        assert found["__typename"] == "DryRunInstigationTick", found
        result: dict[str, Any] = found["evaluationResult"]
        assert not result["error"], result
        return result

    def reset_sensor(self, name: str, location: str = DEMO) -> None:
        """Take a sensor's cursor away."""
        done = self.ask(_RESET_SENSOR, selector={**_selector(location), "sensorName": name})["setSensorCursor"]
        assert done["__typename"] == "Sensor", done

    def _launched(self, operation: str, query: str, params: Mapping[str, Any]) -> Any:
        found = self.ask(query, params=params)[operation]
        assert found["__typename"] in {"LaunchRunSuccess", "LaunchBackfillSuccess"}, found
        return found

    # --- what the UI shows

    def runs(self, job: str | None = None) -> list[dict[str, Any]]:
        """The runs, of one job or of all, newest first, with their `tags` and the `assets` they were asked for."""
        found = self.ask(_RUNS)["runsOrError"]["results"]
        return [
            {
                **run,
                "tags": {tag["key"]: tag["value"] for tag in run["tags"]},
                "assets": ["/".join(key["path"]) for key in run["assetSelection"] or ()],
            }
            for run in found
            if job in {None, run["jobName"]}
        ]

    def run(self, run_id: str) -> dict[str, Any]:
        """One run."""
        [found] = [run for run in self.runs() if run["runId"] == run_id]
        return found

    def backfill_status(self, backfill_id: str) -> tuple[str, dict[str, int]]:
        """How a backfill of one asset stands, and its partitions by their state, as the UI counts them."""
        found = self.ask(_BACKFILL, id=backfill_id)["partitionBackfillOrError"]
        [counts] = (found["assetBackfillData"] or {"assetBackfillStatuses": [{}]})["assetBackfillStatuses"]
        return found["status"], {name.removeprefix("numPartitions").lower(): count for name, count in counts.items()}

    def partitions(self, asset: str) -> dict[str, int]:
        """How many partitions of an asset are in which state, as its page shows it."""
        found = self.ask(_PARTITIONS, key={"path": [asset]})["assetNodeOrError"]["partitionStats"]
        return {name.removeprefix("num").lower(): count for name, count in found.items()}

    def materializations(self, asset: str) -> list[dict[str, Any]]:
        """The materializations of an asset, newest first: `run`, `partition`, and plain metadata by its label."""
        found = self.ask(_MATERIALIZATIONS, key={"path": [asset]})["assetNodeOrError"]["assetMaterializations"]
        return [
            {"run": event["runId"], "partition": event["partition"]}
            | {
                entry["label"]: value
                for entry in event["metadataEntries"]
                for name, value in entry.items()
                if name not in {"label", "__typename"}
            }
            for event in found
        ]

    def sensor(self, name: str, location: str = DEMO) -> dict[str, Any]:
        """A sensor's `status` and its last 50 `ticks`, newest first."""
        selector = {**_selector(location), "sensorName": name}
        found: dict[str, Any] = self.ask(_SENSOR, selector=selector)["sensorOrError"]["sensorState"]
        return found


def _selector(location: str) -> dict[str, str]:
    return {"repositoryName": "__repository__", "repositoryLocationName": location}
