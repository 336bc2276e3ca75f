"""The snapshot sensor: what a tick asks for, remembers, and says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest

from snapshot_assets.errors import ConfigurationError, InconsistentSnapshotSettings, StoreUnavailable
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.resources import SnapshotStoreResource
from snapshot_assets.sensors import build_reload_job, build_snapshot_sensor
from snapshot_assets.sensors import snapshot as sensor_module

Tick = Callable[..., dg.SensorResult]


def _sensor(*names: str, **args: Any) -> dg.SensorDefinition:
    return build_snapshot_sensor(names, job=build_reload_job(), **args)


def _asked(result: dg.SensorResult) -> list[str]:
    return [str(request.tags["snapshot/dataset"]) for request in result.run_requests or ()]


def test_the_first_tick_asks_for_each_dataset_that_has_a_snapshot(heads: Any, tick: Tick) -> None:
    heads.publish("orders")
    heads.publish("planes")
    heads.create("empty")
    result = tick(_sensor("orders", "planes", "empty", "unknown"))
    assert sorted(_asked(result)) == ["orders", "planes"]
    assert sorted(event.asset_key.to_user_string() for event in result.asset_events) == ["orders", "planes"]


def test_a_request_names_dataset_incarnation_and_generation(heads: Any, tick: Tick) -> None:
    heads.publish("orders")
    head = heads.store.head("orders")
    [request] = tick(_sensor("orders")).run_requests or ()
    assert request.run_key == f"orders:{head.incarnation}:1"
    assert request.run_config == {
        "dataset": "orders",
        "incarnation": head.incarnation,
        "generation": 1,
        "snapshot_id": 0,
        "asset_key": ["orders"],
    }
    assert request.tags["snapshot/generation"] == "1"


def test_nothing_new_is_a_skip_that_says_so(heads: Any, tick: Tick) -> None:
    heads.publish("orders")
    sensor = _sensor("orders")
    first = tick(sensor)
    second = tick(sensor, first.cursor)
    assert not second.run_requests
    assert not second.asset_events
    assert second.cursor == first.cursor
    assert second.skip_reason is not None
    assert "Nothing new: 1 of 1 datasets published" in str(second.skip_reason.skip_message)


def test_a_tick_with_nothing_new_reads_no_head(heads: Any, tick: Tick, monkeypatch: pytest.MonkeyPatch) -> None:
    heads.publish("orders")
    sensor = _sensor("orders")
    cursor = tick(sensor).cursor
    monkeypatch.setattr(sensor_module, "_read", lambda *_: pytest.fail("a head was read"))
    assert not tick(sensor, cursor).run_requests


def test_a_publish_asks_for_that_dataset_only(heads: Any, tick: Tick) -> None:
    for name in ("orders", "planes", "weather"):
        heads.publish(name)
    sensor = _sensor("orders", "planes", "weather")
    cursor = tick(sensor).cursor
    heads.publish("planes")
    assert _asked(tick(sensor, cursor)) == ["planes"]


def test_pins_and_claims_ask_for_nothing(heads: Any, tick: Tick) -> None:
    heads.publish("orders")
    sensor = _sensor("orders")
    cursor = tick(sensor).cursor
    Maintenance(heads.store).pin("orders", "audit", 0, owner="me", reason="kept")
    result = tick(sensor, cursor)
    assert not result.run_requests
    assert "not what readers should serve" in str(result.skip_reason)
    assert result.cursor != cursor
    heads.claim("orders")
    assert not tick(sensor, result.cursor).run_requests


def test_a_rollback_asks_for_a_reload(heads: Any, tick: Tick) -> None:
    heads.publish("orders")
    heads.publish("orders")
    sensor = _sensor("orders")
    cursor = tick(sensor).cursor
    head = heads.store.head("orders")
    # what `Maintenance.rollback` does to the head; itself, it would look for the snapshot's objects first
    heads.write(replace(head, current_snapshot_id=0, generation=head.generation + 1, revision=head.revision + 1))
    [request] = tick(sensor, cursor).run_requests or ()
    assert request.tags["snapshot/id"] == "0"
    assert request.tags["snapshot/generation"] == "3"


def test_the_first_publish_after_an_empty_head_asks_for_a_reload(heads: Any, tick: Tick) -> None:
    heads.create("orders")
    sensor = _sensor("orders")
    first = tick(sensor)
    assert "1 head without a snapshot" in str(first.skip_reason)
    heads.publish("orders")
    assert _asked(tick(sensor, first.cursor)) == ["orders"]


def test_the_cap_leaves_the_rest_to_the_next_ticks_and_forgets_none(heads: Any, tick: Tick) -> None:
    names = [f"d{number:02d}" for number in range(10)]
    for name in names:
        heads.publish(name)
    sensor = _sensor(*names, max_requests=4)
    asked: list[list[str]] = []
    cursor: str | None = None
    for _ in range(4):
        result = tick(sensor, cursor)
        cursor = result.cursor
        asked.append(_asked(result))
    assert asked == [names[:4], names[4:8], names[8:], []]


def test_a_dataset_that_changes_all_the_time_does_not_starve_the_others(heads: Any, tick: Tick) -> None:
    for name in ("a", "b", "c"):
        heads.publish(name)
    sensor = _sensor("a", "b", "c", max_requests=1)
    cursor: str | None = None
    asked: list[str] = []
    for _ in range(3):
        heads.publish("a")
        result = tick(sensor, cursor)
        cursor = result.cursor
        asked += _asked(result)
    assert sorted(asked) == ["a", "b", "c"]


def test_a_damaged_head_is_named_once_as_an_event_and_holds_up_no_other(heads: Any, tick: Tick) -> None:
    heads.publish("orders")
    heads.publish("planes")
    heads.damage("orders")
    sensor = _sensor("orders", "planes")
    first = tick(sensor)
    assert _asked(first) == ["planes"]
    [event] = [event for event in first.asset_events if event.asset_key == dg.AssetKey("orders")]
    assert "DocumentDamaged" in str(event.metadata["head/error"].value)
    second = tick(sensor, first.cursor)
    assert not second.run_requests
    assert not second.asset_events
    assert "orders" in str(second.skip_reason)


def test_a_repaired_head_is_asked_for(heads: Any, tick: Tick) -> None:
    heads.publish("orders")
    good = heads.store.head("orders")
    heads.damage("orders")
    sensor = _sensor("orders")
    cursor = tick(sensor).cursor
    heads.store.objects.write_if_match("heads/orders.json", good.to_bytes(), heads.store.heads()["orders"])
    assert _asked(tick(sensor, cursor)) == ["orders"]


def test_a_store_that_is_down_fails_the_tick(tick: Tick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensor_module, "_RETRY_SECONDS", 0.2)
    options = {
        "endpoint": "http://127.0.0.1:9",
        "region": "none",
        "access_key_id": "k",
        "secret_access_key": "s",
        "allow_http": "true",
    }
    down = SnapshotStoreResource(url="s3://bucket/prefix", options=options)
    with pytest.raises(StoreUnavailable):
        tick(_sensor("orders"), "kept as it was", down)


def test_a_cursor_that_is_none_of_ours_starts_anew(heads: Any, tick: Tick) -> None:
    heads.publish("orders")
    for text in ("", "gibberish", "[]", "5", '{"v":1}', '{"v":99,"heads":{}}', '{"v":1,"heads":{"0":7}}'):
        assert _asked(tick(_sensor("orders"), text)) == ["orders"]


def test_adding_a_dataset_does_not_ask_again_for_all_the_others(heads: Any, tick: Tick) -> None:
    names = [f"d{number:03d}" for number in range(60)]
    for name in names:
        heads.publish(name)
    cursor = tick(_sensor(*names, max_requests=100)).cursor
    heads.publish("new")
    asked = _asked(tick(_sensor(*names, "new", max_requests=100), cursor))
    assert "new" in asked
    assert len(asked) <= 5


def test_an_asset_brings_its_own_key(heads: Any, tick: Tick) -> None:
    from snapshot_assets.assets import build_snapshot_asset

    heads.publish("orders")
    asset = build_snapshot_asset(Dataset("orders", "duckdb", "x.duckdb"), key_prefix=["shop"])
    result = tick(build_snapshot_sensor([asset], job=build_reload_job()))
    assert [event.asset_key for event in result.asset_events] == [dg.AssetKey(["shop", "orders"])]
    [request] = result.run_requests or ()
    assert request.run_config["asset_key"] == ["shop", "orders"]


def test_what_can_not_work_is_refused_when_it_is_declared() -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        _sensor("orders", "orders")
    with pytest.raises(ConfigurationError, match="max_requests"):
        _sensor("orders", max_requests=0)

    @dg.asset
    def other() -> None: ...

    with pytest.raises(ConfigurationError, match="snapshot_asset"):
        build_snapshot_sensor([other], job=build_reload_job())


def test_two_datasets_of_one_live_file_are_refused_when_they_are_declared() -> None:
    datasets = [Dataset("orders", "duckdb", "live.duckdb"), Dataset("planes", "duckdb", "./live.duckdb")]
    with pytest.raises(InconsistentSnapshotSettings, match="one dataset owns a live database"):
        build_snapshot_sensor(datasets, job=build_reload_job())
