"""Rollouts: what they decide, and what they do to real reader nodes, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from snapshot_assets.errors import ConfigurationError
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.resources import ReaderFleetResource, SnapshotStoreResource
from snapshot_assets.resources.fleet import FleetReader, NotCalled
from snapshot_assets.sensors import ReloadTarget, Rollout, build_reload_job, reload_run_config
from snapshot_assets.sensors.rollout import Answer, assigned, ill, served_before, summary
from snapshot_assets.serve.client import NodeClient
from snapshot_assets.store.snapshot_store import SnapshotStore

# --- what is decided


@pytest.mark.parametrize(
    ("waves", "count", "sizes"),
    [
        ((1.0,), 7, [7]),
        ((0.25, 1.0), 8, [2, 6]),
        ((0.25, 1.0), 5, [2, 3]),
        ((0.1, 0.2, 1.0), 3, [1, 0, 2]),
        ((0.25, 1), 8, [2, 6]),
        ((5, 20), 100, [5, 95]),
        ((5, 20), 3, [3, 0]),
        ((1,), 4, [4]),
        ((0.5, 1.0), 0, [0, 0]),
    ],
)
def test_waves_are_shares_or_sizes_and_the_last_one_takes_the_rest(
    waves: tuple[float, ...], count: int, sizes: list[int]
) -> None:
    assert Rollout(waves=waves).wave_sizes(count) == sizes


@pytest.mark.parametrize(
    "wrong",
    [
        {"canary": 0},
        {"canary": ""},
        {"waves": ()},
        {"waves": (0.5, 0.25, 1.0)},
        {"waves": (0.25, 0.5)},
        {"waves": (-1,)},
        {"soak": -1},
        {"max_failures": -1},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Rollout(**wrong)


def _readers(*cohorts: str | None) -> list[tuple[str, FleetReader, str | None]]:
    return [(f"r{number}", FleetReader(f"grpc://r{number}:1"), cohort) for number, cohort in enumerate(cohorts)]


def _stages(
    readers: list[tuple[str, FleetReader, str | None]], answering: set[str], rollout: Rollout
) -> dict[str, str]:
    return {one.key: one.stage for one in assigned(readers, answering, rollout)}


def test_the_canary_is_a_cohort_or_the_first_that_answer() -> None:
    readers = _readers(None, "blue", "canary", "canary")
    everybody = {"r0", "r1", "r2", "r3"}
    assert _stages(readers, everybody, Rollout(canary="canary")) == {
        "r2": "canary", "r3": "canary", "r0": "wave_1", "r1": "wave_1"
    }  # fmt: skip
    stages = _stages(readers, everybody - {"r0"}, Rollout(canary=1, waves=(1, 1)))
    assert stages == {"r1": "canary", "r2": "wave_1", "r3": "wave_2", "r0": "wave_2"}
    assert _stages(readers, set(), Rollout(canary=2))["r0"] == "canary"


def test_readers_without_a_canary_are_asked_nothing() -> None:
    with pytest.raises(ConfigurationError, match="known cohorts: 'blue'"):
        assigned(_readers(None, "blue"), {"r0"}, Rollout(canary="canary"))
    assert assigned([], set(), Rollout(canary="canary")) == []


def test_the_policy_tells_canary_and_waves_apart() -> None:
    assert not Rollout().tolerates("canary", 1)
    assert Rollout().tolerates("wave_1", 100)
    assert Rollout(max_failures=1).tolerates("wave_2", 1)
    assert not Rollout(max_failures=1).tolerates("wave_2", 2)
    assert Rollout(canary_max_failures=1).tolerates("canary", 1)


def _status(generation: int | None, *, ready: bool = True, pinned: bool = False, error: str = "") -> dict[str, Any]:
    current = {"generation": generation, "snapshot_id": 10 * (generation or 0), "incarnation": "i", "pinned": pinned}
    found = {
        "current": None if generation is None else current,
        "last_error": {"kind": "DiskFull", "message": error} if error else None,
    }
    missing = {} if generation is not None else {"orders": "waiting"}
    return {"ready": ready, "missing": missing, "datasets": {"orders": found}}


def test_a_reader_is_well_when_it_serves_the_generation_is_ready_and_has_no_error() -> None:
    assert ill(_status(7), "orders", 7) is None
    assert ill(_status(8), "orders", 7) is None
    assert "serves generation 6, not 7: DiskFull: full" in str(ill(_status(6, error="full"), "orders", 7))
    assert "its last attempt failed: DiskFull" in str(ill(_status(7, error="full"), "orders", 7))
    assert "it is drained" in str(ill(_status(7, ready=False), "orders", 7))
    assert ill(_status(7, ready=False) | {"missing": {"planes": "waiting"}}, "orders", 7) is None
    assert "serves nothing of 'orders': waiting" in str(ill(_status(None), "orders", 7))
    assert "not followed" in str(ill(_status(7), "planes", 7))


def test_what_was_served_before_is_the_highest_generation_below_the_new_one() -> None:
    statuses = [_status(4), _status(6), _status(7), _status(None), _status(6, pinned=True)]
    assert served_before(statuses, "orders", 7, "i") == 60
    assert served_before(statuses, "orders", 7, "another") is None
    assert served_before([_status(7)], "orders", 7, None) is None


def test_the_summary_tells_of_everybody_and_leaves_out_columns_that_are_empty() -> None:
    planned = assigned(_readers(None, None), {"r0", "r1"}, Rollout())
    answers = {"r0": Answer("grpc://r0:1", "loaded", 3, 7, 2048, 1.23)}
    table = summary(planned, answers, [NotCalled("reader-9", None, "follows by itself")])
    assert table.splitlines() == [
        "| reader | stage | outcome | snapshot | generation | fetched | seconds | reason |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |",
        "| grpc://r0:1 | canary | loaded | 3 | 7 | 2.0 KiB | 1.2 |  |",
        "| grpc://r1:1 | wave_1 | not asked |  |  |  |  |  |",
        "| reader-9 |  | not called |  |  |  |  | follows by itself |",
    ]
    assert summary([], {}) == "No reader was asked."


# --- what is done


class Shop:
    """A store with a dataset `orders` that grows by a row with every publish, and by a column when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.url = str(folder / "store")
        self.store = SnapshotStore.open(self.url)
        self.dataset = Dataset("orders", "duckdb", folder / "orders.duckdb")

    def publish(self, *statements: str) -> int:
        with Publisher(self.store) as publisher, publisher.writing(self.dataset) as writing:
            with writing.connect() as con:
                con.execute("create table if not exists orders (id integer)")
                for statement in statements or ("insert into orders (id) values (1)",):
                    con.execute(statement)
            return writing.publish(allow_schema_change=True).generation


@dataclass(frozen=True)
class Readers:
    """Nodes: a canary by its cohort, and two without one."""

    canary: str
    others: list[str]

    @property
    def all(self) -> list[str]:
        return [*self.others, self.canary]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    made = Shop(tmp_path_factory.mktemp("shop"))
    made.publish()
    return made


@pytest.fixture(scope="module")
def readers(shop: Shop, nodes: Any) -> Readers:
    canary, *others = nodes.start_with(shop.url, (["orders"], {"cohort": "canary"}), (["orders"], {}), (["orders"], {}))
    return Readers(canary, others)


@dataclass
class Ran:
    """One run of a rollout, and what it said."""

    result: dg.ExecuteInProcessResult

    @property
    def steps(self) -> list[str]:
        return [str(event.step_key) for event in self.result.filter_events(lambda event: event.is_step_start)]

    @property
    def failure(self) -> tuple[str, str, Mapping[str, Any]]:
        """The step that failed, what it said, and its metadata."""
        [event] = self.result.get_step_failure_events()
        data = event.step_failure_data.user_failure_data
        assert data is not None
        return str(event.step_key), str(data.description), {key: one.value for key, one in data.metadata.items()}

    @property
    def observed(self) -> list[dg.AssetObservation]:
        events = self.result.filter_events(lambda event: event.event_type_value == "ASSET_OBSERVATION")
        return [event.asset_observation_data.asset_observation for event in events]

    def outcomes(self, endpoint: str) -> list[str]:
        """What was observed of a reader, in order."""
        return [
            str(one.metadata["reader/outcome"].value)
            for one in self.observed
            if "reader/endpoint" in one.metadata and one.metadata["reader/endpoint"].value == endpoint
        ]

    def output(self, step: str) -> Mapping[str, Any]:
        """The metadata of a step's first output."""
        outputs = self.result.filter_events(lambda event: event.is_successful_output and event.step_key == step)
        return {key: one.value for key, one in outputs[0].step_output_data.metadata.items()}


@pytest.fixture
def roll(shop: Shop, instance: dg.DagsterInstance) -> Callable[..., Ran]:
    def run(endpoints: list[str], generation: int, policy: Rollout, **fleet: Any) -> Ran:
        job = build_reload_job(rollout=policy, max_retries=0)
        resources = {
            "reader_fleet": ReaderFleetResource(endpoints=endpoints, **fleet),
            "snapshot_store": SnapshotStoreResource(url=shop.url),
        }
        config = reload_run_config(ReloadTarget(dataset="orders", generation=generation))
        defs = dg.Definitions(jobs=[job], resources=resources)
        return Ran(
            defs.resolve_job_def(job.name).execute_in_process(
                run_config=config, instance=instance, raise_on_error=False
            )
        )

    return run


def _generation(endpoint: str) -> int:
    with NodeClient(endpoint, timeout=20.0) as client:
        generation = client.status()["datasets"]["orders"]["current"]["generation"]
    assert isinstance(generation, int)
    return generation


def _step(stage: str, endpoint: str) -> str:
    return f"reload_{stage}[{endpoint.removeprefix('grpc://').replace('.', '_').replace(':', '_')}]"


def test_the_canary_goes_first_and_the_waves_follow(shop: Shop, readers: Readers, roll: Callable[..., Ran]) -> None:
    generation = shop.publish()
    ran = roll(readers.all, generation, Rollout(canary="canary", waves=(0.5, 1.0), health="select 1 where false"))
    assert ran.result.success
    first, second = readers.others
    assert ran.steps == [
        "plan_reload", _step("canary", readers.canary), "check_canary", _step("wave_1", first), "check_wave_1",
        _step("wave_2", second), "check_wave_2", "report_reload",
    ]  # fmt: skip
    assert {_generation(endpoint) for endpoint in readers.all} == {generation}
    for event in ran.observed:
        is_canary = event.metadata["reader/endpoint"].value == readers.canary
        assert event.metadata["reader/stage"].value in (["canary"] if is_canary else ["wave_1", "wave_2"])
        assert ("reader/cohort" in event.metadata) == is_canary
        assert event.metadata["reader/outcome"].value == "loaded"
        assert event.metadata["reader/fetched_bytes"].value > 0  # type: ignore[operator]
    report = ran.output("report_reload")
    assert report["readers"] == 3
    assert f"| {readers.canary} | canary | canary | loaded |" in report["summary"]
    assert f"| {second} |  | wave_2 | loaded |" in report["summary"]
    assert f"| {first} |  | wave_1 |" in ran.output("plan_reload")["summary"]


def test_a_canary_that_is_not_well_stops_the_rollout_and_what_was_served_before_is_served_again(
    shop: Shop, readers: Readers, roll: Callable[..., Ran]
) -> None:
    before = shop.publish()
    assert roll(readers.all, before, Rollout(canary="canary")).result.success
    snapshot = shop.store.head("orders").current_snapshot_id
    generation = shop.publish()

    def health(client: NodeClient, status: Mapping[str, Any]) -> str | None:
        found = client.query("select count(*) as rows from orders.main.orders").to_pylist()
        return f"{found[0]['rows']} rows are too many" if status["ready"] else None

    ran = roll(readers.all, generation, Rollout(canary="canary", health=health, rollback=True))
    step, said, metadata = ran.failure
    assert step == "check_canary"
    assert f"{readers.canary} (unhealthy: " in said
    assert "rows are too many" in said
    assert f"Not asked, and serving what they did: {'; '.join(readers.others)}." in said
    assert f"Rolled back to snapshot {snapshot} (generation {generation + 1}); 1 of 1 readers that" in said
    assert metadata["not_asked"] == 2
    assert f"| {readers.others[0]} |  | wave_1 | not asked |" in metadata["summary"]
    assert {_generation(endpoint) for endpoint in readers.others} == {before}
    assert _generation(readers.canary) == generation + 1
    assert shop.store.head("orders").current_snapshot_id == snapshot
    assert ran.outcomes(readers.canary) == ["loaded", "unhealthy", "loaded"]
    # what the canary had served before was still there
    assert [
        one.metadata["reader/fetched_bytes"].value for one in ran.observed if "reader/fetched_bytes" in one.metadata
    ][-1] == 0
    assert ran.observed[-1].metadata["reload/outcome"].value == "stopped"


def test_a_head_that_has_moved_on_is_not_rolled_back(shop: Shop, readers: Readers, roll: Callable[..., Ran]) -> None:
    generation = shop.publish()
    later: list[int] = []

    def health(client: NodeClient, status: Mapping[str, Any]) -> str | None:
        later.append(shop.publish())
        return "meanwhile something else was published"

    ran = roll(readers.all, generation, Rollout(canary="canary", health=health, rollback=True))
    assert f"Nothing was rolled back: the head is not at generation {generation} any more." in ran.failure[1]
    assert [shop.store.head("orders").generation] == later


def test_what_was_rolled_back_to_is_not_rolled_back_again(
    shop: Shop, readers: Readers, roll: Callable[..., Ran]
) -> None:
    """Each rollback is a new generation, which is rolled out: a check that refuses everything must come to rest."""
    assert roll(readers.all, shop.publish(), Rollout(canary="canary")).result.success
    never = Rollout(canary="canary", health="select 1", rollback=True)
    assert "Rolled back to snapshot" in roll(readers.all, shop.publish(), never).failure[1]
    generation = shop.store.head("orders").generation
    assert "is what readers served before, too." in roll(readers.all, generation, never).failure[1]
    assert shop.store.head("orders").generation == generation


def test_a_reader_that_falls_ill_while_it_is_watched_stops_the_rollout(
    shop: Shop, readers: Readers, roll: Callable[..., Ran]
) -> None:
    looks: list[str] = []

    def health(client: NodeClient, status: Mapping[str, Any]) -> str | None:
        looks.append(client.endpoint)
        if len(looks) > 1:
            raise ValueError("its cache is cold")
        return None

    ran = roll(readers.all, shop.publish(), Rollout(canary="canary", health=health, soak=0.5))
    assert "the health check raised ValueError: its cache is cold" in ran.failure[1]
    assert looks == [readers.canary, readers.canary]


def test_sql_that_finds_a_row_stops_the_rollout(shop: Shop, readers: Readers, roll: Callable[..., Ran]) -> None:
    ran = roll(readers.all, shop.publish(), Rollout(canary="canary", health="select id from orders.main.orders"))
    assert "the health check found" in ran.failure[1]
    assert ran.failure[0] == "check_canary"


def test_a_canary_that_refuses_is_named_with_its_reason(shop: Shop, readers: Readers, roll: Callable[..., Ran]) -> None:
    good = shop.publish()
    assert roll(readers.all, good, Rollout()).result.success
    refused = shop.publish("alter table orders add column price double")
    ran = roll(readers.all, refused, Rollout(canary="canary", rollback=True))
    step, said, metadata = ran.failure
    assert (step, metadata["failed"]) == ("check_canary", 1)
    assert f"{readers.canary} (refused: " in said
    assert "Rolled back to snapshot" in said
    assert "; 0 of 0 readers that" in said
    [event] = [one for one in ran.observed if "reader/error" in one.metadata]
    assert event.metadata["reader/error"].value == "SchemaIncompatible"
    assert event.asset_key == dg.AssetKey("orders")
    assert {_generation(endpoint) for endpoint in readers.all} == {good}
    shop.publish("alter table orders drop column price")


_JOB = """
import os
import dagster as dg
from snapshot_assets.resources import ReaderFleetResource
from snapshot_assets.sensors import Rollout, build_reload_job

def make_job():
    fleet = ReaderFleetResource(endpoints=os.environ["ENDPOINTS"].split(","), timeout=4.0)
    job = build_reload_job(rollout=Rollout(), max_retries=0)
    return dg.Definitions(jobs=[job], resources={"reader_fleet": fleet}).resolve_job_def("reload_readers")
"""


def test_dead_and_slow_readers_stop_nobody_else_and_executing_again_asks_only_them(
    shop: Shop,
    readers: Readers,
    nodes: Any,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [dead] = nodes.start(shop.url, ["orders"])
    nodes.kill(dead)
    slow, well = readers.others
    (tmp_path / "rollout_definitions.py").write_text(_JOB)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ENDPOINTS", ",".join([dead, slow, readers.canary, well]))
    import rollout_definitions  # type: ignore[import-not-found]

    generation = shop.publish()
    job = dg.reconstructable(rollout_definitions.make_job)
    with nodes.stopped(slow):
        first = dg.execute_job(job, instance, run_config={"dataset": "orders", "generation": generation})
    assert {_generation(readers.canary), _generation(well)} == {generation}
    [failure] = [event for event in first.all_events if event.event_type_value == "STEP_FAILURE"]
    assert failure.step_key == "report_reload"
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert f"2 of 4 readers do not serve 'orders', generation {generation}: " in str(data.description)
    assert f"{dead} (unreachable: " in str(data.description)
    assert f"{slow} (slow: " in str(data.description)
    assert f"| {slow} |  | wave_1 | slow |" in str(data.metadata["summary"].value)

    again = dg.ReexecutionOptions.from_failure(first.run_id, instance)
    second = dg.execute_job(job, instance, reexecution_options=again)
    asked = [
        event.asset_observation_data.asset_observation.metadata
        for event in second.all_events
        if event.event_type_value == "ASSET_OBSERVATION"
    ]
    assert {str(one["reader/endpoint"].value): str(one["reader/outcome"].value) for one in asked} == {
        dead: "unreachable", slow: "loaded"
    }  # fmt: skip
    assert _generation(slow) == generation


def test_too_many_failures_in_a_wave_stop_the_rollout(shop: Shop, readers: Readers, roll: Callable[..., Ran]) -> None:
    first, second = readers.others

    def health(client: NodeClient, status: Mapping[str, Any]) -> str | None:
        return "it stutters" if client.endpoint == first else None

    generation = shop.publish()
    ran = roll(readers.all, generation, Rollout(canary="canary", waves=(0.5, 1.0), max_failures=0, health=health))
    step, said, metadata = ran.failure
    assert step == "check_wave_1"
    assert said.endswith(f"{first} (unhealthy: it stutters). Not asked, and serving what they did: {second}.")
    assert f"| {second} |  | wave_2 | not asked |" in metadata["summary"]
    assert _generation(second) < generation
    assert "report_reload" not in ran.steps
