"""The reload job against real reader nodes, each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.resources import ReaderFleetResource, SnapshotStoreResource
from snapshot_assets.sensors import ReloadTarget, build_reload_job, build_snapshot_sensor, reload_run_config
from snapshot_assets.serve.client import NodeClient
from snapshot_assets.store.snapshot_store import SnapshotStore


class Shop:
    """A store with a dataset `orders` that grows by a row with every publish."""

    def __init__(self, folder: Path) -> None:
        self.url = str(folder / "store")
        self.store = SnapshotStore.open(self.url)
        self.dataset = Dataset("orders", "duckdb", folder / "orders.duckdb")

    def publish(self) -> int:
        with Publisher(self.store) as publisher, publisher.writing(self.dataset) as writing:
            with writing.connect() as con:
                con.execute("create table if not exists orders (id integer)")
                con.execute("insert into orders values (1)")
            return writing.publish().generation

    @property
    def generation(self) -> int:
        return self.store.head("orders").generation


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    made = Shop(tmp_path_factory.mktemp("shop"))
    made.publish()
    return made


@dataclass(frozen=True)
class Readers:
    """Nodes: two that serve `orders`, one that serves something else, and one that is dead."""

    orders: list[str]
    planes: str
    dead: str


@pytest.fixture(scope="module")
def readers(shop: Shop, nodes: Any) -> Readers:
    first, second, planes, dead = nodes.start(shop.url, ["orders"], ["orders"], ["planes"], ["orders"])
    nodes.kill(dead)
    return Readers([first, second], planes, dead)


def _reload(
    endpoints: Sequence[str],
    generation: int | None,
    instance: dg.DagsterInstance,
    *,
    job: dg.JobDefinition | None = None,
    **resources: Any,
) -> dg.ExecuteInProcessResult:
    fleet = ReaderFleetResource(endpoints=list(endpoints))
    job = job or build_reload_job(max_retries=1, retry_delay=0.1)
    defs = dg.Definitions(jobs=[job], resources={"reader_fleet": fleet, **resources})
    config = reload_run_config(ReloadTarget(dataset="orders", generation=generation))
    return defs.resolve_job_def("reload_readers").execute_in_process(
        run_config=config, instance=instance, raise_on_error=False
    )


def _observations(result: dg.ExecuteInProcessResult) -> list[dg.AssetObservation]:
    events = result.filter_events(lambda event: event.event_type_value == "ASSET_OBSERVATION")
    return [event.asset_observation_data.asset_observation for event in events]


def _generation(endpoint: str) -> int:
    with NodeClient(endpoint, timeout=10.0) as client:
        generation = client.status()["datasets"]["orders"]["current"]["generation"]
    assert isinstance(generation, int)
    return generation


def test_every_reader_serves_the_new_snapshot_and_is_observed(
    shop: Shop, readers: Readers, instance: dg.DagsterInstance
) -> None:
    generation = shop.publish()
    assert all(_generation(endpoint) < generation for endpoint in readers.orders)
    result = _reload(readers.orders, generation, instance)
    assert result.success
    assert [_generation(endpoint) for endpoint in readers.orders] == [generation, generation]
    observed = _observations(result)
    assert sorted(str(event.metadata["reader/endpoint"].value) for event in observed) == sorted(readers.orders)
    for event in observed:
        assert event.asset_key == dg.AssetKey("orders")
        assert event.metadata["reader/generation"].value == str(generation)
        assert event.metadata["reader/snapshot_id"].value == str(shop.store.head("orders").current_snapshot_id)
        assert event.metadata["reader/outcome"].value == "loaded"
        assert event.metadata["reader/reload_seconds"].value > 0  # type: ignore[operator]


def test_the_report_names_every_reader_and_asking_twice_is_harmless(
    shop: Shop, readers: Readers, instance: dg.DagsterInstance
) -> None:
    generation = shop.generation
    _reload(readers.orders, generation, instance)
    result = _reload(readers.orders, generation, instance)
    [output] = [
        event.step_output_data.metadata
        for event in result.filter_events(lambda event: event.event_type_value == "STEP_OUTPUT")
        if event.step_key == "report_reload"
    ]
    assert output["readers"].value == 2
    for endpoint in readers.orders:
        assert f"| {endpoint} | not_modified |" in str(output["summary"].value)


def test_a_rollback_reaches_the_readers_and_moves_nothing_that_is_warm(
    shop: Shop, readers: Readers, instance: dg.DagsterInstance
) -> None:
    assert _reload(readers.orders, shop.publish(), instance).success
    served = shop.store.head("orders").current_snapshot_id
    assert served is not None
    Maintenance(shop.store).rollback("orders", 0)
    result = _reload(readers.orders, shop.generation, instance)
    assert [event.metadata["reader/snapshot_id"].value for event in _observations(result)] == ["0", "0"]
    assert {_generation(endpoint) for endpoint in readers.orders} == {shop.generation}
    Maintenance(shop.store).rollback("orders", served)
    back = _observations(_reload(readers.orders, shop.generation, instance))
    assert [event.metadata["reader/snapshot_id"].value for event in back] == [str(served)] * 2
    assert [event.metadata["reader/fetched_bytes"].value for event in back] == [0, 0]


def test_without_a_generation_the_newest_is_asked_for(
    shop: Shop, readers: Readers, instance: dg.DagsterInstance
) -> None:
    generation = shop.publish()
    assert _reload(readers.orders, None, instance).success
    assert {_generation(endpoint) for endpoint in readers.orders} == {generation}


def test_a_dead_reader_fails_its_own_step_and_no_other(
    shop: Shop, readers: Readers, instance: dg.DagsterInstance
) -> None:
    dead, alive = readers.dead, readers.orders[0]
    generation = shop.publish()
    result = _reload([dead, alive], generation, instance)
    assert not result.success
    assert _generation(alive) == generation
    [failure] = result.get_step_failure_events()
    assert failure.step_key == f"reload_reader[{dead.removeprefix('grpc://').replace('.', '_').replace(':', '_')}]"
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert dead in str(data.description)
    assert data.metadata["error"].value == "NodeUnavailable"
    told = {str(one.metadata["reader/endpoint"].value): one for one in _observations(result)}
    assert set(told) == {dead, alive}
    assert told[dead].metadata["reader/outcome"].value == "unreachable"
    assert dead in str(told[dead].description)


_JOB = """
import os
import dagster as dg
from snapshot_assets.resources import ReaderFleetResource
from snapshot_assets.sensors import build_reload_job

def make_job():
    fleet = ReaderFleetResource(endpoints=os.environ["ENDPOINTS"].split(","))
    job = build_reload_job(max_retries=0)
    return dg.Definitions(jobs=[job], resources={"reader_fleet": fleet}).resolve_job_def("reload_readers")
"""


def test_executing_again_from_the_failure_asks_only_who_failed(
    shop: Shop, readers: Readers, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reload_definitions.py").write_text(_JOB)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ENDPOINTS", f"{readers.dead},{readers.orders[0]}")
    import reload_definitions  # type: ignore[import-not-found]

    job = dg.reconstructable(reload_definitions.make_job)
    first = dg.execute_job(job, instance, run_config={"dataset": "orders", "generation": shop.generation})
    assert not first.success
    again = dg.ReexecutionOptions.from_failure(first.run_id, instance)
    second = dg.execute_job(job, instance, reexecution_options=again)
    asked = [event.step_key for event in second.all_events if event.event_type_value == "STEP_START"]
    assert [key for key in asked if key and key.startswith("reload_reader")] == [
        first.get_step_failure_events()[0].step_key
    ]


def test_a_generation_that_is_not_reached_is_a_failure(
    shop: Shop, readers: Readers, instance: dg.DagsterInstance
) -> None:
    asked = shop.generation + 7
    result = _reload(readers.orders[:1], asked, instance, job=build_reload_job(max_retries=0))
    [failure] = result.get_step_failure_events()
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert f"generation {asked} of 'orders' was asked for" in str(data.description)


def test_a_reader_of_other_datasets_is_left_out(shop: Shop, readers: Readers, instance: dg.DagsterInstance) -> None:
    result = _reload([readers.planes], shop.generation, instance)
    assert result.success
    assert not _observations(result)


def test_a_fleet_without_readers_is_no_failure(instance: dg.DagsterInstance) -> None:
    assert _reload([], 1, instance).success


def test_an_io_manager_of_the_user_is_left_alone(shop: Shop, readers: Readers, instance: dg.DagsterInstance) -> None:
    assert _reload(readers.orders[:1], shop.generation, instance, io_manager=TablesOnly()).success


class TablesOnly(dg.ConfigurableIOManager):
    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        raise TypeError(f"{obj!r} is no table")

    def load_input(self, context: dg.InputContext) -> object:
        raise TypeError(context)


def test_what_the_sensor_asks_for_is_what_the_job_takes(
    heads: Any, tick: Any, shop: Shop, readers: Readers, instance: dg.DagsterInstance
) -> None:
    endpoint = readers.orders[0]
    generation = shop.publish()
    job = build_reload_job()
    [request] = tick(build_snapshot_sensor(["orders"], job=job), None, SnapshotStoreResource(url=shop.url)).run_requests
    defs = dg.Definitions(jobs=[job], resources={"reader_fleet": ReaderFleetResource(endpoints=[endpoint])})
    result = defs.resolve_job_def("reload_readers").execute_in_process(
        run_config=request.run_config, instance=instance, tags=request.tags
    )
    assert result.success
    assert _generation(endpoint) == generation
