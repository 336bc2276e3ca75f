"""The demo location, and what others make of it, in `dagster dev`, daemon and all, with a reader node beside it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets.content.snapshot import read_content
from snapshot_assets.serve.client import NodeClient
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.dagster.dev import DagsterDev
from tests.dagster.locations.thousand import write_heads

pytestmark = pytest.mark.timeout(600)

DATASETS = ["flights", "weather", "planes", "airports", "airlines"]
"""One an engine."""
REGIONS = ["east", "north", "south", "west"]


@dataclass(frozen=True, slots=True)
class Session:
    """One `dagster dev` for all tests here, and what was launched when it was up."""

    dev: DagsterDev
    endpoint: str
    home: Path
    others: str
    year: str
    regions: str

    def store(self, *parts: str) -> SnapshotStore:
        return SnapshotStore.open(str(self.home.joinpath(*parts)), read_only=True)


@pytest.fixture(scope="module")
def session(nodes: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("dev")
    home = folder / "demo"
    (home / "regions").mkdir(parents=True)
    [endpoint] = nodes.start(str(home / "store"), DATASETS)
    write_heads(SnapshotStore.open(str(home / "thousand")))
    dev = DagsterDev(
        folder / "dagster",
        workspace=Path(__file__).parent / "locations" / "workspace.yaml",
        settings="concurrency: {pools: {granularity: run}}\n",
        PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        SNAPSHOT_ASSETS_HOME=str(home),
        SNAPSHOT_STORE="",
        SNAPSHOT_READERS=endpoint,
    )
    try:
        dev.wait_until_ready()
        regions = dev.backfill("orders", REGIONS)
        # What was there when a condition is looked at for the first time is no change.
        dev.until("automation looked once", lambda: dev.sensor("automation", "beside")["ticks"])
        year = dev.backfill("flights", _days())
        others = dev.materialize(*(name for name in DATASETS if name != "flights"))
        yield Session(dev, endpoint, home, others, year, regions)
    finally:
        dev.kill()


def _days() -> list[str]:
    from snapshot_assets.definitions import flights_snapshot

    assert flights_snapshot.partitions_def is not None
    return list(flights_snapshot.partitions_def.get_partition_keys())


def test_what_is_materialized_in_the_ui_is_served_by_the_node(session: Session) -> None:
    dev = session.dev

    def served() -> dict[str, int]:
        with NodeClient(session.endpoint, timeout=20.0) as client:
            status = client.status()["datasets"]
        return {name: found["current"]["generation"] for name, found in status.items() if found["current"]}

    dev.until("the node serves all", lambda: served() == dict.fromkeys(DATASETS, 1))
    reloads = {name: [("SUCCESS", "snapshot_sensor")] for name in DATASETS}
    dev.until("the reload runs end", lambda: _reloads(dev) == reloads)
    assert dev.run(session.others)["status"] == "SUCCESS"
    store = session.store("store")
    rows = {name: [entry.row_count for entry in store.head(name).snapshots] for name in DATASETS}
    assert rows == {
        "flights": [336_776], "weather": [26_115], "planes": [3_322], "airports": [1_458], "airlines": [16]
    }  # fmt: skip
    sensor = dev.sensor("snapshot_sensor")
    assert sensor["status"] == "RUNNING"
    assert not [tick for tick in sensor["ticks"] if tick["status"] == "FAILURE"]


def test_a_cursor_that_is_lost_launches_nothing_twice(session: Session) -> None:
    dev = session.dev
    before = {run["runId"] for run in dev.runs("reload_readers")}
    dev.reset_sensor("snapshot_sensor")
    last = dev.sensor("snapshot_sensor")["ticks"][0]["timestamp"]
    dev.until(
        "the sensor ticked twice",
        lambda: sum(tick["timestamp"] > last for tick in dev.sensor("snapshot_sensor")["ticks"]) >= 2,
    )
    assert {run["runId"] for run in dev.runs("reload_readers")} == before


def test_a_year_of_days_is_one_run_and_one_publish(session: Session) -> None:
    dev = session.dev
    dev.until("the backfill ends", lambda: dev.backfill_status(session.year)[0] not in {"REQUESTED", "COMPLETING"})
    status, counts = dev.backfill_status(session.year)
    assert status == "COMPLETED_SUCCESS"
    assert counts == {"targeted": 365, "inprogress": 0, "materialized": 365, "failed": 0}
    assert dev.partitions("flights") == {"partitions": 365, "materialized": 365, "materializing": 0, "failed": 0}
    [run] = [run for run in dev.runs() if run["tags"].get("dagster/backfill") == session.year]
    print(f"365 partitions: the run took {run['endTime'] - run['startTime']:.1f} s")
    shown = dev.materializations("flights")
    assert sorted(event["partition"] for event in shown) == _days()
    assert {event["snapshot/id"] for event in shown} == {0}
    assert {event["snapshot/partitions"] for event in shown} == {"2013-01-01 to 2013-12-31, 365 in all"}
    assert _partition_keys(session.store("store"), "flights") == [tuple(_days())]


def test_a_backfill_whose_runs_are_killed_is_re_executed_and_publishes_nothing_twice(session: Session) -> None:
    dev = session.dev
    store = session.store("regions", "store")

    def ended(backfill: str) -> bool:
        return dev.backfill_status(backfill)[0] not in {"REQUESTED", "COMPLETING", "FAILING"}

    dev.until("the backfill ends", lambda: ended(session.regions))
    # Four runs at a time, which waited for each other's lease: none failed but those that were killed.
    first = _runs_by_region(dev, session.regions)
    assert {region: run["status"] for region, run in first.items()} == {
        "east": "FAILURE", "north": "SUCCESS", "south": "SUCCESS", "west": "FAILURE"
    }  # fmt: skip
    assert dev.backfill_status(session.regions)[1] == {
        "targeted": 4, "inprogress": 0, "materialized": 2, "failed": 2
    }  # fmt: skip
    # East was killed when its snapshot was visible and before Dagster knew, west just before.
    assert sorted(_partition_keys(store, "orders")) == [("east",), ("north",), ("south",)]

    dev.ask('mutation { setConcurrencyLimit(concurrencyKey: "snapshot_orders", limit: 1) }')
    again = dev.reexecute_backfill(session.regions)
    # Dagster no longer says of this one that it belongs to the backfill, which has ended.
    north = dev.reexecute(first["north"]["runId"], "ALL_STEPS")
    dev.until("the backfill ends again", lambda: ended(again))
    dev.until("the run ends", lambda: dev.run(north)["endTime"])
    assert dev.backfill_status(again)[1] == {"targeted": 2, "inprogress": 0, "materialized": 2, "failed": 0}
    second = _runs_by_region(dev, again)
    assert {region: run["status"] for region, run in second.items()} == {"east": "SUCCESS", "west": "SUCCESS"}
    spans = sorted((run["startTime"], run["endTime"]) for run in [*second.values(), dev.run(north)])
    assert all(end <= start for (_, end), (start, _) in pairwise(spans)), "the pool lets in one"

    assert sorted(_partition_keys(store, "orders")) == [(region,) for region in REGIONS]
    outcomes = {(event["partition"], event["snapshot/outcome"]) for event in dev.materializations("orders")}
    assert outcomes == {
        ("east", "already_published"), ("west", "published"),
        ("north", "published"), ("north", "already_published"), ("south", "published"),
    }  # fmt: skip
    # West's row stands there twice, by the two runs of its body; it is the body that makes a run repeatable.
    assert store.head("orders").snapshots[-1].row_count == 5


def test_downstream_runs_once_for_each_change_of_content(session: Session) -> None:
    dev = session.dev

    def reports(name: str) -> list[str]:
        return [run["status"] for run in dev.runs() if run["assets"] == [name]]

    dev.until(
        "both reports ran", lambda: [reports("weather_report"), reports("flights_report")] == [["SUCCESS"], ["SUCCESS"]]
    )
    same = dev.materialize("weather")
    other = dev.materialize("flights", partition="2013-06-01")
    dev.until("both runs end", lambda: dev.run(same)["endTime"] and dev.run(other)["endTime"])
    assert [event["snapshot/outcome"] for event in dev.materializations("weather")] == ["unchanged", "published"]
    assert dev.materializations("flights")[0]["snapshot/outcome"] == "published"

    # Flights changed as well, by now or before: two looks after its report, what was to come from weather has come.
    dev.until("flights are reported again", lambda: reports("flights_report") == ["SUCCESS"] * 2)
    since = max(run["endTime"] for run in dev.runs() if run["assets"] == ["flights_report"])
    dev.until(
        "automation looked twice",
        lambda: sum(tick["timestamp"] > since for tick in dev.sensor("automation", "beside")["ticks"]) > 2,
    )
    assert reports("weather_report") == ["SUCCESS"]
    assert reports("flights_report") == ["SUCCESS"] * 2


def test_a_tick_over_a_thousand_datasets_ends_in_the_code_server(session: Session) -> None:
    """Within the 60 seconds that Dagster gives it; else the UI gets an error."""
    dev = session.dev
    began = time.monotonic()
    first = dev.try_sensor("thousand", "beside")
    print(f"1,000 datasets: the first tick took {time.monotonic() - began:.2f} s")
    assert len(first["runRequests"]) == 25
    again = dev.try_sensor("thousand", "beside")
    assert again["runRequests"] == first["runRequests"]
    second = dev.try_sensor("thousand", "beside", first["cursor"])
    assert not {request["runKey"] for request in second["runRequests"]} & {
        request["runKey"] for request in first["runRequests"]
    }


@pytest.mark.soak
def test_a_restart_launches_nothing_twice_and_forgets_nothing(tmp_path: Path) -> None:
    """Killed with a backfill under way, `dagster dev` goes on where it was when it is started again."""
    home = tmp_path / "demo"

    def start() -> DagsterDev:
        return DagsterDev(
            tmp_path / "dagster",
            SNAPSHOT_ASSETS_HOME=str(home),
            SNAPSHOT_STORE="",
            SNAPSHOT_READERS="",
        )

    dev = start()
    try:
        dev.wait_until_ready()
        dev.materialize("airlines")
        once = [("SUCCESS", "snapshot_sensor")]
        dev.until("airlines are reloaded", lambda: _reloads(dev) == {"airlines": once})
        killed = dev.backfill("flights", _days())
        dev.until("the year is under way", lambda: (home / "flights.duckdb").exists())
        dev.kill()
        dev = start()
        dev.wait_until_ready()
        [under_way] = [run["runId"] for run in dev.runs() if run["tags"].get("dagster/backfill") == killed]
        dev.give_up(under_way)
        dev.until("the backfill has failed", lambda: dev.backfill_status(killed)[0] == "COMPLETED_FAILED")
        again = dev.reexecute_backfill(killed)
        dev.until("the backfill ends", lambda: dev.backfill_status(again)[0] == "COMPLETED_SUCCESS")
        dev.until("flights are reloaded", lambda: _reloads(dev) == {"airlines": once, "flights": once})
        since = time.time()
        dev.until(
            "the sensor ticked thrice",
            lambda: sum(tick["timestamp"] > since for tick in dev.sensor("snapshot_sensor")["ticks"]) > 2,
        )
        assert _reloads(dev) == {"airlines": once, "flights": once}
        assert dev.partitions("flights")["materialized"] == 365
        store = SnapshotStore.open(str(home / "store"), read_only=True)
        assert len(store.head("flights").snapshots) == 1
    finally:
        dev.kill()


def _reloads(dev: DagsterDev) -> dict[str, list[tuple[str, str]]]:
    """The reload runs of each dataset: how they ended, and which sensor asked for them."""
    found: dict[str, list[tuple[str, str]]] = {}
    for run in dev.runs("reload_readers"):
        made = (run["status"], run["tags"]["dagster/sensor_name"])
        found.setdefault(run["tags"]["snapshot/dataset"], []).append(made)
    return found


def _runs_by_region(dev: DagsterDev, backfill: str) -> dict[str, dict[str, Any]]:
    runs = [run for run in dev.runs() if run["tags"].get("dagster/backfill") == backfill]
    found = {run["tags"]["dagster/asset_partition_range_start"]: run for run in runs}
    assert len(found) == len(runs)
    return found


def _partition_keys(store: SnapshotStore, name: str) -> list[tuple[str, ...]]:
    """The partition keys of each listed snapshot, by its manifest."""
    head = store.head(name)
    contents = [
        read_content(store.objects, name, head.incarnation, entry.operation_id, entry.manifest_digest)
        for entry in head.snapshots
    ]
    return [tuple(content.manifest.partition_keys) for content in contents]
