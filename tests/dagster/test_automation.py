"""`snapshot_changed`: what is downstream of snapshots runs once for each change of content, and for nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from snapshot_assets.assets import LiveDatabase, snapshot_asset, snapshot_changed
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.resources import SnapshotStoreResource

DAYS = dg.DailyPartitionsDefinition("2013-01-01", end_date="2013-01-04")


class Looks:
    """Dagster's looks at the conditions, one after another, and what happens between them.

    `prices` is a snapshot asset whose content is what `content` says; `report` is downstream of it.
    """

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.content = "first"
        self.instance = instance
        self._resources = {"snapshot_store": SnapshotStoreResource(url=str(folder / "store"))}
        dataset = Dataset("prices", "sqlite", folder / "prices.sqlite")

        def body(live: LiveDatabase) -> None:
            with live.connect() as con:
                if not con.execute("select 1 from sqlite_master").fetchall():
                    con.execute("create table prices (name text)")
                if con.execute("select name from prices").fetchall() != [(self.content,)]:
                    con.execute("delete from prices")
                    con.execute("insert into prices values (?)", [self.content])
                    con.commit()

        self._dataset, self._body = dataset, body
        self.define()

    def define(
        self,
        condition: dg.AutomationCondition[Any] | None = None,
        parent_condition: dg.AutomationCondition[Any] | None = None,
        partitions_def: dg.PartitionsDefinition[Any] | None = None,
        report_partitions_def: dg.PartitionsDefinition[Any] | None = None,
    ) -> None:
        """Define the assets, and look for the first time: what is there by then is no change."""
        prices = snapshot_asset(self._dataset, automation_condition=parent_condition, partitions_def=partitions_def)(
            self._body
        )

        @dg.asset(
            deps=[prices], automation_condition=condition or snapshot_changed(), partitions_def=report_partitions_def
        )
        def report() -> None: ...

        self.assets = [prices, report]
        self._defs = dg.Definitions(assets=self.assets, resources=self._resources)
        self._cursor: Any = None
        self.requested()

    def requested(self) -> list[str]:
        """Look, and tell what should be materialized now, partitions after a colon."""
        result = dg.evaluate_automation_conditions(self._defs, self.instance, cursor=self._cursor)
        self._cursor = result.cursor
        return sorted(
            asset.key.to_user_string() + (f":{partition}" if partition else "")
            for asset in self.assets
            for partition in (
                result.get_requested_partitions(asset.key)
                if asset.partitions_def
                else ([None] if result.get_num_requested(asset.key) else [])
            )
        )

    def materialize(self, *names: str, partitions: Sequence[str] = ()) -> None:
        """One run of these assets, as the UI launches it."""
        ends = {"start": partitions[0], "end": partitions[-1]} if partitions else {}
        done = self._defs.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=[dg.AssetKey(name) for name in names],
            instance=self.instance,
            tags={f"dagster/asset_partition_range_{end}": key for end, key in ends.items()},
        )
        assert done.success

    def publish(self, content: str) -> None:
        """One run that brings this content."""
        self.content = content
        self.materialize("prices")


@pytest.fixture
def looks(tmp_path: Path) -> Iterator[Looks]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Looks(tmp_path, instance)


def test_a_change_is_asked_for_once(looks: Looks) -> None:
    asked = []
    for content in ("first", "second"):
        looks.publish(content)
        asked.append(looks.requested())
        looks.materialize("report")
        asked += [looks.requested(), looks.requested()]
    assert asked == [["report"], [], []] * 2


def test_an_unchanged_publish_asks_for_nothing_which_eager_alone_would(looks: Looks) -> None:
    asked = {}
    for name, condition in {"eager": dg.AutomationCondition.eager(), "snapshot_changed": None}.items():
        looks.publish("first")
        looks.define(condition)
        looks.materialize("report")
        looks.requested()
        looks.publish("first")
        asked[name] = looks.requested()
    assert asked == {"eager": ["report"], "snapshot_changed": []}


def test_changes_between_two_looks_are_one(looks: Looks) -> None:
    looks.publish("first")
    looks.requested()
    looks.materialize("report")
    looks.requested()
    looks.publish("second")
    looks.publish("third")
    looks.publish("third")
    assert [looks.requested(), looks.requested()] == [["report"], []]


def test_a_change_that_comes_right_after_the_request_is_not_lost(looks: Looks) -> None:
    looks.publish("first")
    assert looks.requested() == ["report"]
    looks.publish("second")
    looks.materialize("report")
    assert looks.requested() == ["report"]
    looks.materialize("report")
    assert looks.requested() == []


def test_eager_loses_a_change_that_comes_right_after_the_request(looks: Looks) -> None:
    """Why `snapshot_changed` is more than `eager()` with one term replaced."""
    condition = dg.AutomationCondition
    looks.define(condition.eager().replace("newly_updated", condition.data_version_changed()))
    looks.publish("first")
    assert looks.requested() == ["report"]
    looks.publish("second")
    assert looks.requested() == []


def test_what_failed_is_not_asked_for_until_the_next_change(looks: Looks) -> None:
    looks.publish("first")
    assert looks.requested() == ["report"]
    assert looks.requested() == []
    looks.publish("second")
    assert looks.requested() == ["report"]


def test_what_ran_with_its_dependency_in_one_run_is_not_asked_for(looks: Looks) -> None:
    looks.materialize("prices", "report")
    assert looks.requested() == []
    looks.content = "second"
    looks.materialize("prices", "report")
    assert [looks.requested(), looks.requested()] == [[], []]


def test_it_does_not_run_along_with_a_dependency_that_may_not_change(looks: Looks) -> None:
    cron = dg.AutomationCondition.cron_tick_passed("* * * * *") | dg.AutomationCondition.code_version_changed()
    looks.define(parent_condition=dg.AutomationCondition.newly_updated() | cron)
    looks.publish("first")
    looks.materialize("report")
    looks.requested()
    looks.publish("first")
    # the dependency asks for itself again; `eager()` would ask for both
    assert looks.requested() == ["prices"]


def test_observations_ask_for_nothing(looks: Looks) -> None:
    looks.publish("first")
    looks.requested()
    looks.materialize("report")
    looks.requested()
    for tags in ({}, {"dagster/data_version": "another"}):
        looks.instance.report_runless_asset_event(
            dg.AssetObservation("prices", metadata={"head/generation": "7"}, tags=tags)
        )
        assert looks.requested() == []
    looks.publish("first")
    assert looks.requested() == []


def test_a_backfill_of_many_partitions_asks_once(looks: Looks) -> None:
    looks.define(partitions_def=DAYS)
    looks.materialize("prices", partitions=["2013-01-01", "2013-01-03"])
    assert [looks.requested(), looks.requested()] == [["report"], []]


def test_partitions_downstream_follow_the_latest_one(looks: Looks) -> None:
    looks.define(partitions_def=DAYS, report_partitions_def=DAYS)
    looks.materialize("prices", partitions=["2013-01-01"])
    assert looks.requested() == []
    looks.materialize("prices", partitions=["2013-01-03"])
    assert looks.requested() == ["report:2013-01-03"]
    looks.materialize("prices", partitions=["2013-01-03"])
    assert looks.requested() == []
