"""The snapshot sensor over a thousand datasets: what a tick asks of the store, and what it does when that is slow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import dagster as dg
import pytest

from snapshot_assets.errors import StoreUnavailable
from snapshot_assets.model.head import head_key
from snapshot_assets.resources import SnapshotStoreResource
from snapshot_assets.sensors import build_reload_job, build_snapshot_sensor
from snapshot_assets.sensors import snapshot as sensor_module
from snapshot_assets.sensors.cursor import MAX_CURSOR_BYTES
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Fault, FaultStore
from tests.dagster.locations.thousand import NAMES, write_heads


class Thousand:
    """A thousand published datasets in a store that counts its calls, and ticks of one sensor over them."""

    def __init__(self, url: str) -> None:
        self.store = SnapshotStore.open(url, retry_for=1.0)
        write_heads(self.store)
        self.calls = FaultStore(self.store.objects)
        self.cursor: str | None = None

    def open(self, *_: object, **__: object) -> SnapshotStore:
        return SnapshotStore.over(self.calls, read_only=True, retry_for=0.0)

    def publish(self, *names: str) -> None:
        for name in names:
            head, token = self.store.read_head(name)
            raised = replace(head, revision=head.revision + 1, generation=head.generation + 1)
            self.store.objects.write_if_match(head_key(name), raised.to_bytes(), token)

    def tick(self, sensor: dg.SensorDefinition) -> list[str]:
        """One tick; the run keys that it asks for. The cursor passes on."""
        resource = SnapshotStoreResource(url="counted below")
        with dg.build_sensor_context(cursor=self.cursor, resources={"snapshot_store": resource}) as context:
            result = sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor, self.result = result.cursor, result
        return [str(request.run_key) for request in result.run_requests or ()]

    def counted(self) -> dict[str, int]:
        """The calls of the store since the last time that this was asked, by their operation."""
        made = [call.operation for call in self.calls.calls]
        self.calls.calls.clear()
        return {operation: made.count(operation) for operation in sorted(set(made))}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Thousand:
    return Thousand(str(tmp_path_factory.mktemp("thousand")))


@pytest.fixture
def thousand(written: Thousand, monkeypatch: pytest.MonkeyPatch) -> Iterator[Thousand]:
    monkeypatch.setattr(SnapshotStoreResource, "open_store", written.open)
    written.cursor = None
    written.calls.disarm()
    written.calls.calls.clear()
    yield written
    written.calls.disarm()


def _sensor(max_requests: int = 25) -> dg.SensorDefinition:
    return build_snapshot_sensor(NAMES, job=build_reload_job(), max_requests=max_requests)


def test_a_tick_is_one_list_request_and_a_read_of_each_head_that_changed(thousand: Thousand) -> None:
    sensor = _sensor(max_requests=1000)
    assert len(thousand.tick(sensor)) == 1000
    assert thousand.counted() == {"list": 1, "read": 1000}
    assert thousand.tick(sensor) == []
    assert thousand.counted() == {"list": 1}
    thousand.publish("dataset_0007", "dataset_0500", "dataset_0999")
    thousand.counted()
    assert [key.partition(":")[0] for key in thousand.tick(sensor)] == ["dataset_0007", "dataset_0500", "dataset_0999"]
    assert thousand.counted() == {"list": 1, "read": 3}
    assert len(str(thousand.cursor)) < MAX_CURSOR_BYTES / 8


def test_a_thousand_changes_at_once_are_asked_for_in_turn_each_once(thousand: Thousand) -> None:
    sensor = _sensor()
    ticks = [thousand.tick(sensor) for _ in range(41)]
    assert [len(keys) for keys in ticks] == [25] * 40 + [0]
    assert len({key for keys in ticks for key in keys}) == 1000
    assert thousand.counted() == {"list": 41, "read": 1000}


def test_a_cursor_that_is_lost_leads_to_the_same_run_keys(thousand: Thousand) -> None:
    """By which Dagster launches nothing twice."""
    sensor = _sensor(max_requests=1000)
    first = thousand.tick(sensor)
    thousand.cursor = None
    assert thousand.tick(sensor) == first


def test_a_tick_that_was_cut_off_is_made_up_for(thousand: Thousand) -> None:
    """Dagster keeps neither the requests nor the cursor of a tick that it ended."""
    sensor = _sensor()
    thousand.tick(sensor)
    kept = thousand.cursor
    lost = thousand.tick(sensor)
    thousand.cursor = kept
    assert thousand.tick(sensor) == lost


def test_a_tick_whose_time_is_up_keeps_what_it_has_and_the_next_goes_on_there(
    thousand: Thousand, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock by which every call of the store takes a tenth of a second.
    clock = SimpleNamespace(monotonic=lambda: len(thousand.calls.calls) / 10)
    monkeypatch.setattr(sensor_module, "time", clock)
    monkeypatch.setattr(sensor_module._Look, "_await", lambda _look, _name, answer: answer.result())
    sensor = _sensor(max_requests=1000)
    ticks = [thousand.tick(sensor) for _ in range(4)]
    assert [len(keys) for keys in ticks] == [400, 400, 200, 0]
    assert len({key for keys in ticks for key in keys}) == 1000


@pytest.fixture
def stuck(thousand: Thousand) -> Iterator[Callable[[str], None]]:
    """Makes the next reads of heads hang until the test is over."""
    over = threading.Event()

    def hang(_: float) -> None:
        over.wait(60)

    def stick(key: str) -> None:
        thousand.calls._sleep = hang
        thousand.calls.arm(Fault("hang", "read", key, times=1000))

    yield stick
    over.set()


def test_heads_that_hang_hold_up_neither_the_tick_nor_the_others(
    thousand: Thousand, stuck: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor = _sensor(max_requests=1000)
    thousand.tick(sensor)
    thousand.publish("dataset_0001", "dataset_0002", "dataset_0003")
    monkeypatch.setattr(sensor_module, "_TICK_SECONDS", 2.0)
    stuck("heads/dataset_0001.json")
    asked = thousand.tick(sensor)
    assert [key.partition(":")[0] for key in asked] == ["dataset_0002", "dataset_0003"]
    [error] = [event for event in thousand.result.asset_events if event.asset_key == dg.AssetKey("dataset_0001")]
    assert "could not be read in time" in str(error.description)

    thousand.calls.disarm()
    monkeypatch.undo()
    monkeypatch.setattr(SnapshotStoreResource, "open_store", thousand.open)
    assert [key.partition(":")[0] for key in thousand.tick(sensor)] == ["dataset_0001"]


def test_a_store_whose_every_head_hangs_fails_the_tick_in_time(
    thousand: Thousand, stuck: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor = _sensor(max_requests=1000)
    thousand.tick(sensor)
    kept = thousand.cursor
    thousand.publish("dataset_0001", "dataset_0002")
    monkeypatch.setattr(sensor_module, "_TICK_SECONDS", 1.0)
    stuck("heads/*")
    with pytest.raises(StoreUnavailable, match="could not be read in time"):
        thousand.tick(sensor)
    assert thousand.cursor == kept
