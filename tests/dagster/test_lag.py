"""The reader lag sensor: whom it names, when it asks again, when it stops, and what it costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from snapshot_assets.errors import ConfigurationError
from snapshot_assets.ids import IncarnationId, OperationId, new_ulid
from snapshot_assets.maintenance.readers import KnownReader, Standing, standing
from snapshot_assets.model.announcement import Announced, Announcement, announcement_key
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import Head, SchemaVersion, SnapshotEntry, head_key
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.resources import ReaderFleetResource, SnapshotStoreResource
from snapshot_assets.sensors import build_reader_lag_sensor, build_reload_job
from snapshot_assets.sensors.lagging import Finding, LagBounds, LagMemory
from snapshot_assets.store.snapshot_store import SnapshotStore

Tick = Callable[..., dg.SensorResult]
DIGEST = "blake3:" + "0" * 64


def announcement(reader_id: str, interval_ms: int = 300_000, **datasets: Announced) -> Announcement:
    return Announcement(reader_id, f"grpc://{reader_id}:8815", None, interval_ms, 0, datasets)


class Readers:
    """Writes announcements straight into the store of `heads`."""

    def __init__(self, heads: Any) -> None:
        self.heads = heads
        self.objects = heads.store.objects

    def announce(self, said: Announcement) -> None:
        key = announcement_key(said.reader_id)
        self.objects.delete([key])
        self.objects.write_if_absent(key, said.to_bytes())

    def serves(self, generation: int | None, error: str | None = None, *, pinned: bool = False) -> Announced:
        """What a reader of `orders` says that serves this generation, which is that of a snapshot one lower."""
        head = self.heads.store.head("orders")
        if generation is None:
            return Announced("waiting", last_error=error)
        return Announced("loaded", head.incarnation, generation, generation - 1, error, pinned=pinned)


@pytest.fixture
def readers(heads: Any) -> Readers:
    for _ in range(3):
        heads.publish("orders")
    return Readers(heads)


def sensor(*names: str, **args: Any) -> dg.SensorDefinition:
    return build_reader_lag_sensor(names or ["orders"], job=build_reload_job(), **args)


def said(result: dg.SensorResult) -> list[str]:
    return [str(event.description) for event in result.asset_events]


def test_a_reader_that_is_behind_is_named_once_and_asked_again(readers: Readers, tick: Tick) -> None:
    readers.announce(announcement("one", orders=readers.serves(3)))
    readers.announce(announcement("two", orders=readers.serves(1)))
    first = tick(sensor())
    [event] = first.asset_events
    assert event.asset_key == dg.AssetKey("orders")
    assert str(event.description).startswith(
        "1 of 2 live readers do not keep up with snapshot 2 (generation 3) of 'orders': "
        "grpc://two:8815 (serves generation 1, 2 behind, for "
    )
    assert event.metadata["lag/readers_behind"].value == 1
    assert "| grpc://two:8815 |" in str(event.metadata["lag/readers"].value)
    [request] = first.run_requests or ()
    incarnation = readers.heads.store.head("orders").incarnation
    assert request.run_key == f"orders:{incarnation}:3:again-1"
    assert request.run_config["generation"] == 3
    second = tick(sensor(), first.cursor)
    assert not second.asset_events
    assert not second.run_requests
    assert "do not keep up" in str(second.skip_reason and second.skip_reason.skip_message)


def test_health_is_told_when_it_returns(readers: Readers, tick: Tick) -> None:
    readers.announce(announcement("one", orders=readers.serves(1)))
    cursor = tick(sensor()).cursor
    readers.announce(announcement("one", orders=readers.serves(3)))
    healthy = tick(sensor(), cursor)
    assert said(healthy) == ["Every live reader keeps up with snapshot 2 (generation 3) of 'orders': 1 of them."]
    [event] = healthy.asset_events
    assert event.metadata["lag/readers_behind"].value == 0
    assert not tick(sensor(), healthy.cursor).asset_events
    assert "Every live reader keeps up. Datasets that any follows: 1; readers: 1." in str(
        healthy.skip_reason and healthy.skip_reason.skip_message
    )


def test_within_its_bounds_a_reader_keeps_up(readers: Readers, tick: Tick) -> None:
    readers.announce(announcement("one", orders=readers.serves(2)))
    far = 10 * time.time()
    assert not tick(sensor(max_age=far)).asset_events
    assert tick(sensor(max_age=far, max_behind=0)).asset_events


def test_a_reader_that_is_behind_with_an_error_is_stuck_at_once(readers: Readers, tick: Tick) -> None:
    readers.announce(announcement("one", orders=readers.serves(2, "DiskFull: 3 bytes are missing")))
    result = tick(sensor(max_age=10 * time.time()))
    assert "DiskFull: 3 bytes are missing" in said(result)[0]
    assert result.run_requests
    readers.announce(announcement("one", orders=readers.serves(2, "StoreUnavailable: nobody answers")))
    assert "StoreUnavailable" in said(tick(sensor(max_age=10 * time.time()), result.cursor))[0]


def test_who_refuses_for_good_is_named_and_not_asked(readers: Readers, tick: Tick) -> None:
    readers.announce(announcement("one", orders=readers.serves(2, "SchemaIncompatible: a column is missing")))
    result = tick(sensor())
    assert "SchemaIncompatible" in said(result)[0]
    assert not result.run_requests


def test_who_can_not_be_called_is_named_and_not_asked(readers: Readers, tick: Tick) -> None:
    readers.announce(replace(announcement("app", orders=readers.serves(1)), endpoint=None))
    result = tick(sensor())
    assert "| app |  | serves generation 1" in str(result.asset_events[0].metadata["lag/readers"].value)
    assert not result.run_requests


def test_a_pin_is_no_lag(readers: Readers, tick: Tick) -> None:
    readers.announce(announcement("one", orders=readers.serves(1, pinned=True)))
    assert not tick(sensor()).asset_events


def test_a_reader_that_fell_silent_is_named_and_not_asked(readers: Readers, tick: Tick) -> None:
    readers.announce(announcement("one", 1, orders=readers.serves(1)))
    time.sleep(0.05)
    result = tick(sensor())
    assert said(result) == [
        "Every live reader keeps up with snapshot 2 (generation 3) of 'orders': 0 of them. Fallen silent: grpc://one:8815."
    ]
    assert not result.run_requests


def test_one_announcement_that_can_not_be_read_hides_no_other(readers: Readers, tick: Tick) -> None:
    readers.objects.write_if_absent(announcement_key("broken"), b"{")
    readers.announce(announcement("one", orders=readers.serves(1)))
    assert "grpc://one:8815" in said(tick(sensor()))[0]


def test_without_a_job_nothing_is_asked_for(readers: Readers, tick: Tick) -> None:
    readers.announce(announcement("one", orders=readers.serves(1)))
    result = tick(build_reader_lag_sensor(["orders"]))
    assert len(result.asset_events) == 1
    assert not result.run_requests


def test_without_readers_the_skip_says_so(readers: Readers, tick: Tick) -> None:
    skipped = tick(sensor()).skip_reason
    assert skipped is not None
    assert skipped.skip_message == "No reader has announced itself."


def test_a_run_that_is_under_way_is_waited_for(readers: Readers, tick: Tick, instance: dg.DagsterInstance) -> None:
    readers.announce(announcement("one", orders=readers.serves(1)))
    tags = {"snapshot/dataset": "orders"}
    run = instance.create_run_for_job(build_reload_job(), run_config={"dataset": "orders"}, tags=tags)
    try:
        waiting = tick(sensor())
        assert not waiting.run_requests
    finally:
        instance.delete_run(run.run_id)
    assert tick(sensor(), waiting.cursor).run_requests


def test_bounds_that_make_no_sense_are_refused() -> None:
    for wrong in ({"max_attempts": -1}, {"max_requests": 0}, {"max_age": -1}):
        with pytest.raises(ConfigurationError):
            sensor(**wrong)
    with pytest.raises(ConfigurationError, match="twice"):
        sensor("orders", "orders")


def _finding(generation: int) -> Finding:
    head = Head("orders", IncarnationId(new_ulid()), "duckdb", generation=generation, current_snapshot_id=0)
    reader = KnownReader(announcement("one", orders=Announced("loaded", head.incarnation, 1, 0)), 0, True)
    found = standing(reader, head, 0)
    assert isinstance(found, Standing)
    return Finding(head, 1, ((found, "behind"),), ())


def test_a_dead_end_is_asked_with_pauses_that_double_and_not_for_ever() -> None:
    asked_at: list[int] = []
    text: str | None = None
    for now in range(0, 100_000, 60):
        memory = LagMemory(text, now, pause=60, max_attempts=4)
        if memory.may_ask(_finding(3)):
            asked_at.append(now)
            assert memory.asked(_finding(3)) == len(asked_at)
        text = memory.to_text()
    assert asked_at == [0, 120, 360, 840]
    memory = LagMemory(text, 100_000, pause=60, max_attempts=4)
    assert memory.has_given_up(_finding(3))
    assert not memory.has_given_up(_finding(4))
    assert memory.may_ask(_finding(4))
    assert memory.asked(_finding(4)) == 1


def test_who_falls_behind_again_is_asked_by_a_key_of_its_own(readers: Readers, tick: Tick) -> None:
    """Dagster launches nothing for a run key that it has seen."""
    keys: list[str | None] = []
    cursor: str | None = None
    for _ in range(2):
        readers.announce(announcement("one", orders=readers.serves(1)))
        behind = tick(sensor(minimum_interval_seconds=0), cursor)
        keys += [request.run_key for request in behind.run_requests or ()]
        readers.announce(announcement("one", orders=readers.serves(3)))
        cursor = tick(sensor(minimum_interval_seconds=0), behind.cursor).cursor
    assert [str(key).rpartition(":")[2] for key in keys] == ["again-1", "again-2"]
    readers.heads.publish("orders")
    readers.announce(announcement("one", orders=readers.serves(4)))
    assert json.loads(str(tick(sensor(), cursor).cursor)) == {"v": 1, "told": {}, "asked": {}}


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"v": 9}', '{"v": 1, "told": 3, "asked": {}}', '{"v": 1}'])
def test_a_cursor_that_is_none_counts_as_none(text: str) -> None:
    memory = LagMemory(text, 0, 60, 5)
    assert json.loads(memory.to_text()) == {"v": 1, "told": {}, "asked": {}}


def test_bounds_by_age_and_by_generations() -> None:
    behind = _finding(5).lagging[0][0]
    assert LagBounds(10, None).broken_by(replace(behind, seconds=10.0)) is None
    assert LagBounds(10, None).broken_by(replace(behind, seconds=10.5)) == "behind"
    assert LagBounds(10, 4).broken_by(replace(behind, seconds=0.0)) is None
    assert LagBounds(10, 3).broken_by(replace(behind, seconds=0.0)) == "behind"


def test_a_thousand_datasets_and_two_hundred_readers(tick: Tick, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://lag-{new_ulid()}"
    objects = SnapshotStore.open(url).objects
    names = [f"d{number}" for number in range(1_000)]
    incarnation = IncarnationId(new_ulid())
    entry = SnapshotEntry(0, OperationId(new_ulid()), None, None, 0, 0, DIGEST, DIGEST, 1, 1, 1, (), {})
    for name in names:
        head = Head(name, incarnation, "duckdb", generation=3, current_snapshot_id=0, next_snapshot_id=1)
        head = replace(head, schemas=(SchemaVersion(0, {}),), snapshots=(entry,), current_since_ms=1)
        objects.write_if_absent(head_key(name), head.to_bytes())
    for number in range(200):
        follows = dict.fromkeys(names[5 * number : 5 * number + 50], Announced("loaded", incarnation, 2, 0))
        follows |= dict.fromkeys(names[:5], Announced("loaded", incarnation, 3, 0))
        one = replace(announcement(f"reader-{number}"), datasets=follows)
        objects.write_if_absent(announcement_key(one.reader_id), one.to_bytes())
    made, resource = sensor(*names), SnapshotStoreResource(url=url)
    first = tick(made, None, resource)
    assert len(first.run_requests or ()) == 25
    assert len(first.asset_events) == 995
    assert len(str(first.cursor)) < 64 * 1024
    monkeypatch.setattr(SnapshotStore, "read_head", lambda *_: pytest.fail("a head was read again"))
    second = tick(made, first.cursor, resource)
    assert not second.asset_events
    assert len(second.run_requests or ()) == 25
    assert not {one.run_key for one in first.run_requests or ()} & {one.run_key for one in second.run_requests or ()}


@pytest.mark.timeout(300)
def test_what_it_asks_for_brings_a_real_reader_up_to_date(
    tick: Tick, nodes: Any, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    url = str(tmp_path / "shop")
    dataset = Dataset("orders", "duckdb", tmp_path / "orders.duckdb")

    def publish() -> None:
        with Publisher(SnapshotStore.open(url)) as publisher, publisher.writing(dataset) as writing:
            with writing.connect() as con:
                con.execute("create table if not exists orders (id integer)")
                con.execute("insert into orders values (1)")
            writing.publish()

    publish()
    [endpoint] = nodes.start(url, ["orders"])
    publish()
    job, resource = build_reload_job(), SnapshotStoreResource(url=url)
    made = build_reader_lag_sensor(["orders"], job=job, max_age=0.0)

    def until(condition: Callable[[dg.SensorResult], bool], cursor: str | None) -> dg.SensorResult:
        deadline = time.monotonic() + 60
        while not condition(result := tick(made, cursor, resource)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return result

    lagging = until(lambda result: bool(result.run_requests), None)
    assert endpoint in said(lagging)[0]
    [request] = lagging.run_requests or ()
    defs = dg.Definitions(jobs=[job], resources={"reader_fleet": ReaderFleetResource(endpoints=[endpoint])})
    assert defs.resolve_job_def(job.name).execute_in_process(request.run_config, instance=instance).success
    assert "Every live reader keeps up" in said(until(lambda result: bool(result.asset_events), lagging.cursor))[0]
