"""Maintenance by job and schedule: it does what was asked for, shows it, and names what failed after all was tried."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from snapshot_assets.asset_metadata import materialization_metadata
from snapshot_assets.assets import build_snapshot_asset
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.errors import ConfigurationError, InconsistentSnapshotSettings, RetentionPolicyMissing
from snapshot_assets.ids import IncarnationId, new_operation_id, new_ulid
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import Head, head_key
from snapshot_assets.model.sidecar import Sidecar, SidecarKind, sidecar_key
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.resources import SnapshotStoreResource
from snapshot_assets.sensors import Cleanup, Optimize, RepairPreview, Verify, build_maintenance
from snapshot_assets.store.snapshot_store import SnapshotStore


@dataclass
class Ran:
    """A run of a maintenance job, and what it recorded."""

    result: dg.ExecuteInProcessResult

    @property
    def summary(self) -> str:
        """The Markdown summary, of a run that went well or failed."""
        if self.result.success:
            [output] = [event for event in self.result.all_node_events if event.is_successful_output]
            return str(output.step_output_data.metadata["maintenance/summary"].value)
        return str(self.failure.metadata["maintenance/summary"].value)

    @property
    def failure(self) -> Any:
        [event] = self.result.get_step_failure_events()
        assert event.step_failure_data.user_failure_data is not None
        return event.step_failure_data.user_failure_data

    def event(self, name: str) -> tuple[str, dict[str, Any]]:
        """The one event of an asset: its description, and its metadata as values."""
        events: Sequence[Any] = [
            *self.result.get_asset_observation_events(),
            *self.result.get_asset_materialization_events(),
        ]
        [event] = [event for event in events if event.asset_key == dg.AssetKey(name)]
        data: Any = event.event_specific_data
        recorded = data.materialization if event.is_step_materialization else data.asset_observation
        return recorded.description, {key: value.value for key, value in recorded.metadata.items()}

    @property
    def recorded(self) -> list[str]:
        """The assets that have an event."""
        events = [*self.result.get_asset_observation_events(), *self.result.get_asset_materialization_events()]
        return sorted(event.asset_key.to_user_string() for event in events if event.asset_key)


@dataclass
class Place:
    """A store, live databases, and jobs that maintain them."""

    folder: Path
    resource: SnapshotStoreResource
    instance: dg.DagsterInstance

    @property
    def store(self) -> SnapshotStore:
        return self.resource.open_store()

    def dataset(self, name: str, engine: str = "sqlite", **args: Any) -> Dataset:
        return Dataset(name, engine, self.folder / f"{name}.{engine}", **args)

    def publish(self, name: str, times: int = 1) -> Dataset:
        """Publish so many snapshots of a SQLite dataset, each with more rows than the one before."""
        dataset = self.dataset(name)
        for _ in range(times):
            with closing(sqlite3.connect(dataset.path)) as con, con:
                con.execute("create table if not exists t (id integer primary key, note text)")
                con.executemany("insert into t (note) values (?)", [(os.urandom(9).hex(),) for _ in range(50)])
            Publisher(self.store).publish(dataset)
        return dataset

    def run(self, defs: dg.Definitions, job: str, config: Mapping[str, Any] | None = None) -> Ran:
        merged = dg.Definitions.merge(defs, dg.Definitions(resources={"snapshot_store": self.resource}))
        op = f"{job.removeprefix('snapshots_')}_snapshots"
        return Ran(
            merged.resolve_job_def(job).execute_in_process(
                run_config={"ops": {op: {"config": dict(config)}}} if config else None,
                instance=self.instance,
                raise_on_error=False,
            )
        )


@pytest.fixture
def place(tmp_path: Path, instance: dg.DagsterInstance) -> Place:
    return Place(tmp_path, SnapshotStoreResource(url=str(tmp_path / "store"), retry_for=0.1, wait=5.0), instance)


def _ids(store: SnapshotStore, name: str) -> list[int]:
    return [entry.snapshot_id for entry in store.head(name).snapshots]


def _packs(place: Place, name: str) -> Iterator[Path]:
    return Path(place.resource.url, "data", name).rglob("*.pack")


class TestCleanup:
    def test_it_shows_the_plan_and_changes_nothing_until_it_is_confirmed(self, place: Place) -> None:
        orders = place.publish("orders", 5)
        Maintenance(place.store).pin("orders", "quarter", 0, owner="ann")
        ran = place.run(build_maintenance([orders], cleanup=Cleanup(keep=3)), "snapshots_cleanup")
        assert ran.result.success
        text, shown = ran.event("orders")
        assert text.startswith("A cleanup would remove snapshot 1 (")
        assert text.endswith("Nothing was changed.")
        assert shown["maintenance/planned_snapshots"] == 1
        assert shown["maintenance/planned_objects"] > 0
        assert shown["maintenance/planned_bytes"] > 0
        assert shown["maintenance/kept_against_the_policy"] == "0 (pinned as 'quarter' by ann)"
        assert "| orders | A cleanup would remove snapshot 1" in ran.summary
        assert _ids(place.store, "orders") == [0, 1, 2, 3, 4]

    def test_a_confirmed_one_removes_and_says_what_and_when(self, place: Place) -> None:
        orders = place.publish("orders", 5)
        ran = place.run(build_maintenance([orders], cleanup=Cleanup(keep=3, confirm=True)), "snapshots_cleanup")
        text, shown = ran.event("orders")
        assert text.startswith("Removed 2 snapshots (0 to 1). ")
        assert "the next cleanup or publish after that deletes them." in text
        assert shown == {
            "maintenance/removed_snapshots": 2,
            "maintenance/deleted_objects": 0,
            "maintenance/deleted_bytes": 0,
        }
        assert _ids(place.store, "orders") == [2, 3, 4]

    def test_a_run_may_confirm_by_its_configuration(self, place: Place) -> None:
        orders = place.publish("orders", 4)
        defs = build_maintenance([orders], cleanup=Cleanup(older_than=0, keep=3, grace=timedelta(0)))
        ran = place.run(defs, "snapshots_cleanup", {"confirm": True})
        text, shown = ran.event("orders")
        assert text.startswith("Removed snapshot 0. Deleted ")
        assert shown["maintenance/deleted_objects"] > 0
        assert shown["maintenance/deleted_bytes"] > 0
        again = place.run(defs, "snapshots_cleanup", {"confirm": True}).event("orders")
        assert again[0] == "Nothing to remove."
        assert again[1]["maintenance/removed_snapshots"] == 0

    def test_a_policy_is_required(self) -> None:
        with pytest.raises(RetentionPolicyMissing, match="what to keep"):
            Cleanup(confirm=True)
        with pytest.raises(ConfigurationError, match="keep is 1"):
            Cleanup(keep=1)
        with pytest.raises(ConfigurationError, match="concurrency"):
            Cleanup(keep=3, concurrency=0)
        with pytest.raises(ConfigurationError, match="grace"):
            Cleanup(keep=3, grace=-1)


class TestOptimize:
    @pytest.mark.parametrize("engine", ["duckdb", "lance"])
    def test_what_is_rewritten_is_a_materialization_with_the_metadata_of_every_publish(
        self, place: Place, engine: str
    ) -> None:
        dataset = place.dataset("orders", engine)
        _WASTE[engine](dataset)
        before = Publisher(place.store).publish(dataset)
        defs = build_maintenance([dataset], optimize=Optimize())
        ran = place.run(defs, "snapshots_optimize")
        assert ran.result.success
        [event] = ran.result.get_asset_materialization_events()
        materialization = event.step_materialization_data.materialization
        entry = place.store.head("orders").current
        assert entry is not None
        assert (materialization.tags or {})["dagster/data_version"] == entry.content_digest != before.content_digest
        text, shown = ran.event("orders")
        assert text.startswith("Rewritten: ")
        assert shown["snapshot/id"] == 1
        assert shown["snapshot/outcome"] == "published"
        assert shown["dagster/row_count"] == sum(before.row_counts.values())
        assert shown["maintenance/optimize_seconds"] > 0
        assert shown["snapshot/publish_seconds"] < 60
        assert any(isinstance(shown[key], int) for key in shown if key.startswith("maintenance/"))

        again = place.run(defs, "snapshots_optimize")
        assert again.result.success
        assert not again.result.get_asset_materialization_events()
        assert again.event("orders")[0].startswith("Not rewritten: ")
        assert place.store.head("orders").current_snapshot_id == 1

    def test_the_time_of_the_rewrite_is_not_counted_as_publishing(self, place: Place) -> None:
        result = Publisher(place.store).publish(place.publish("orders"))
        timed = replace(result, seconds={"lease": 1.0, "optimize": 50.0, "capture": 2.0, "upload": 3.0, "commit": 0.5})
        shown = materialization_metadata(place.store, timed)
        assert (shown["snapshot/capture_seconds"], shown["snapshot/publish_seconds"]) == (2.0, 3.5)

    def test_it_takes_datasets_only(self, place: Place) -> None:
        asset = build_snapshot_asset(place.dataset("orders"))
        for given in ("orders", asset):
            with pytest.raises(ConfigurationError, match="how orders is captured") as refused:
                build_maintenance([given], optimize=Optimize())
            assert "asset_keys" in refused.value.hint


def _waste_duckdb(dataset: Dataset) -> None:
    with engine_named("duckdb").connect_live(dataset) as live:
        live.execute("create table ballast as select hash(range) a, hash(range + 1) b from range(200_000)")
        live.execute("checkpoint")
        live.execute("create table orders as select range id from range(1000)")
        live.execute("create table last as select hash(range) a from range(20_000)")
        live.execute("checkpoint")
        live.execute("drop table ballast")


def _waste_lance(dataset: Dataset) -> None:
    with engine_named("lance").connect_live(dataset) as live:
        for start in range(4):
            live.write(pa.table({"id": [start, start + 10]}), "append" if start else "create")


_WASTE: Mapping[str, Callable[[Dataset], None]] = {"duckdb": _waste_duckdb, "lance": _waste_lance}


class TestVerify:
    def test_whole_snapshots_are_told_with_figures(self, place: Place) -> None:
        orders = place.publish("orders")
        ran = place.run(build_maintenance([orders], verify=Verify()), "snapshots_verify")
        assert ran.result.success
        text, shown = ran.event("orders")
        assert text.startswith("Snapshot 0 is whole: ")
        assert shown["maintenance/verified_bytes"] > 0
        assert shown["maintenance/read_bytes"] > 0
        assert set(shown) == {
            "maintenance/snapshot",
            "maintenance/verified_bytes",
            "maintenance/read_bytes",
            "maintenance/verify_seconds",
        }

    def test_a_damaged_one_fails_the_run_in_the_end_and_stops_no_other(self, place: Place) -> None:
        datasets = [place.publish(name) for name in ("a", "b", "c")]
        for pack in _packs(place, "b"):
            data = bytearray(pack.read_bytes())
            data[len(data) // 2] ^= 0xFF
            pack.write_bytes(data)
        defs = build_maintenance(datasets, verify=Verify(level="digest"))
        ran = place.run(defs, "snapshots_verify")
        assert not ran.result.success
        assert ran.recorded == ["a", "b", "c"]
        text, shown = ran.event("b")
        assert text.startswith("The verification failed: ")
        assert shown["maintenance/error"] == "SnapshotDamaged"
        assert "Roll back" in shown["maintenance/hint"]
        assert ran.failure.description.startswith("The verification failed for 1 of 3 datasets. b: the frame at 0 of ")
        assert "Roll back" in ran.failure.description
        assert ran.failure.metadata["maintenance/failed"].value == 1
        first, *_ = ran.summary.splitlines()[2:]
        assert first.startswith("| FAILED | b | ")

        again = place.run(defs, "snapshots_verify", {"datasets": ["a", "c"]})
        assert again.result.success
        assert again.recorded == ["a", "c"]

    def test_an_error_that_nobody_foresaw_is_of_its_dataset_too(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        datasets = [place.publish(name) for name in ("a", "b")]
        verify = Maintenance.verify

        def failing(self: Maintenance, name: str, *args: Any, **kwargs: Any) -> Any:
            if name == "a":
                raise OSError(28, "No space left on device")
            return verify(self, name, *args, **kwargs)

        monkeypatch.setattr(Maintenance, "verify", failing)
        ran = place.run(build_maintenance(datasets, verify=Verify()), "snapshots_verify")
        assert not ran.result.success
        assert ran.event("a")[1] == {"maintenance/error": "OSError"}
        assert ran.event("b")[0].startswith("Snapshot 0 is whole")
        assert "No space left on device" in ran.failure.description

    def test_a_store_that_goes_away_ends_it_and_names_who_was_not_looked_at(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        datasets = [place.publish(name) for name in ("a", "b", "c")]
        from snapshot_assets.errors import StoreUnavailable

        def gone(*args: Any, **kwargs: Any) -> Any:
            raise StoreUnavailable("no answer")

        calls = [SnapshotStore.heads]
        monkeypatch.setattr(SnapshotStore, "heads", lambda self: calls.pop()(self) if calls else gone())
        monkeypatch.setattr(Maintenance, "verify", gone)
        ran = place.run(build_maintenance(datasets, verify=Verify()), "snapshots_verify")
        assert ran.recorded == ["a"]
        assert ran.failure.description.startswith("The verification failed for 3 of 3 datasets.")
        assert "| FAILED | c | Not looked at: no answer |" in ran.summary

    def test_a_store_that_does_not_answer_at_all_fails_with_what_to_do(self, place: Place) -> None:
        options = {"endpoint": "http://127.0.0.1:9", "region": "r", "access_key_id": "k", "secret_access_key": "s"}
        place.resource = SnapshotStoreResource(url="s3://bucket/x", options=options, retry_for=0.1)
        ran = place.run(build_maintenance(["orders"], verify=Verify()), "snapshots_verify")
        assert not ran.result.success
        assert ran.failure.metadata["error"].value == "StoreUnavailable"
        assert "Check the network" in ran.failure.description


class TestRepairPreview:
    def test_it_shows_what_is_unsettled_and_changes_nothing(self, place: Place) -> None:
        datasets = [place.publish(name) for name in ("a", "b")]
        head = place.store.head("a")
        left = Sidecar(
            operation_id=new_operation_id(),
            kind=SidecarKind.PUBLISH,
            dataset="a",
            incarnation=head.incarnation,
            epoch=head.epoch,
            base_snapshot_id=None,
            idempotency_key=None,
            owner={},
            started_at_ms=0,
        )
        key = sidecar_key("a", left.operation_id)
        place.store.objects.write_if_absent(key, left.to_bytes())
        ran = place.run(build_maintenance(datasets, repair_preview=RepairPreview()), "snapshots_repair_preview")
        assert ran.result.success
        text, shown = ran.event("a")
        assert text.startswith("1 finding: publish ")
        assert shown["maintenance/unsettled"] == 1
        assert f"| publish | {left.operation_id} |" in shown["maintenance/findings"]
        assert ran.event("b") == ("Nothing to repair.", {"maintenance/unsettled": 0})
        assert place.store.objects.read(key).data == left.to_bytes()

    def test_what_can_not_be_told_fails_the_run(self, place: Place) -> None:
        orders = place.publish("orders")
        token = place.store.heads()["orders"]
        place.store.objects.write_if_match(head_key("orders"), b"{", token)
        ran = place.run(build_maintenance([orders], repair_preview=RepairPreview()), "snapshots_repair_preview")
        assert not ran.result.success
        text, shown = ran.event("orders")
        assert text.startswith("It can not be repaired: ")
        assert shown["maintenance/error"] == "DocumentDamaged"


class TestBuild:
    def test_very_many_datasets_are_gone_through_in_one_step(self, place: Place) -> None:
        names = [f"d_{number:03}" for number in range(105)]
        for name in names:
            head = Head(name, IncarnationId(new_ulid()), "duckdb")
            place.store.objects.write_if_absent(head_key(name), head.to_bytes())
        ran = place.run(build_maintenance(names, cleanup=Cleanup(keep=3)), "snapshots_cleanup")
        assert ran.result.success
        assert ran.recorded == names
        assert "And 5 more; each asset has its own." in ran.summary

    def test_what_was_not_published_yet_is_left_alone(self, place: Place) -> None:
        orders = place.publish("orders")
        defs = build_maintenance([orders, "stock"], verify=Verify(level="sizes"))
        ran = place.run(defs, "snapshots_verify")
        assert ran.result.success
        assert ran.recorded == ["orders"]
        assert "| stock | Not published yet. |" in ran.summary

    def test_events_belong_to_the_assets(self, place: Place) -> None:
        orders, stock = place.publish("orders"), place.publish("stock")
        asset = build_snapshot_asset(orders, key=["nyc", "orders"])
        defs = build_maintenance([asset, stock], verify=Verify(level="sizes"), asset_keys={"stock": ["nyc", "stock"]})
        assert place.run(defs, "snapshots_verify").recorded == ["nyc/orders", "nyc/stock"]

    def test_a_run_for_what_the_job_does_not_maintain_is_refused(self, place: Place) -> None:
        defs = build_maintenance([place.publish("orders")], verify=Verify())
        ran = place.run(defs, "snapshots_verify", {"datasets": ["stock"]})
        assert not ran.result.success
        assert "does not maintain stock, but orders" in ran.failure.description

    def test_schedules_are_made_where_a_cron_is_given_and_are_off_until_turned_on(self, place: Place) -> None:
        defs = build_maintenance(
            ["orders"],
            cleanup=Cleanup(keep=3, cron="0 4 * * *"),
            verify=Verify(cron=["0 5 * * 0", "0 5 * * 3"]),
            repair_preview=RepairPreview(),
            execution_timezone="Europe/Berlin",
            tags={"team": "data"},
        )
        assert {job.name for job in defs.jobs or ()} == {
            "snapshots_cleanup",
            "snapshots_verify",
            "snapshots_repair_preview",
        }
        schedules = {schedule.name: schedule for schedule in defs.schedules or ()}
        assert set(schedules) == {"snapshots_cleanup_schedule", "snapshots_verify_schedule"}
        for schedule in schedules.values():
            assert isinstance(schedule, dg.ScheduleDefinition)
            assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
            assert schedule.execution_timezone == "Europe/Berlin"
        on = build_maintenance(
            ["orders"], verify=Verify(cron="@daily"), default_status=dg.DefaultScheduleStatus.RUNNING, name="nightly"
        )
        [schedule] = on.schedules or ()
        assert isinstance(schedule, dg.ScheduleDefinition)
        assert schedule.name == "nightly_verify_schedule"
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING

    def test_a_tick_asks_for_one_run_that_does_as_declared(self, place: Place) -> None:
        orders = place.publish("orders", 4)
        defs = build_maintenance([orders], cleanup=Cleanup(keep=3, cron="0 4 * * *", confirm=True))
        [schedule] = defs.schedules or ()
        assert isinstance(schedule, dg.ScheduleDefinition)
        with dg.build_schedule_context(instance=place.instance) as context:
            [request] = schedule.evaluate_tick(context).run_requests or ()
        assert schedule.job.name == "snapshots_cleanup"
        assert not request.run_config
        assert place.run(defs, "snapshots_cleanup").result.success
        assert _ids(place.store, "orders") == [1, 2, 3]

    def test_it_merges_with_the_definitions_of_a_user(self, place: Place) -> None:
        orders = place.publish("orders")
        mine = dg.Definitions([build_snapshot_asset(orders)], resources={"snapshot_store": place.resource})
        merged = dg.Definitions.merge(
            mine,
            build_maintenance([orders], verify=Verify(cron="@daily")),
            build_maintenance([orders], verify=Verify(level="sizes", cron="@hourly"), name="hourly"),
        )
        dg.Definitions.validate_loadable(merged)
        assert {schedule.name for schedule in merged.schedules or ()} == {
            "snapshots_verify_schedule",
            "hourly_verify_schedule",
        }

    def test_what_makes_no_sense_is_refused_when_it_is_declared(self, place: Place) -> None:
        orders = place.dataset("orders")
        with pytest.raises(ConfigurationError, match="asked for nothing"):
            build_maintenance([orders])
        with pytest.raises(ConfigurationError, match="no dataset"):
            build_maintenance([], verify=Verify())
        with pytest.raises(ConfigurationError, match="twice"):
            build_maintenance([orders, "orders"], verify=Verify())
        with pytest.raises(ConfigurationError, match="stock"):
            build_maintenance([orders], verify=Verify(), asset_keys={"stock": "x"})
        with pytest.raises(InconsistentSnapshotSettings, match="both publish"):
            build_maintenance([orders, Dataset("other", "sqlite", orders.path)], verify=Verify())
        with pytest.raises(dg.DagsterInvalidDefinitionError, match="never"):
            build_maintenance([orders], verify=Verify(cron="never"))
