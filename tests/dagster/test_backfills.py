"""Backfills: what is published by which run, and what never twice. With the daemon: test_dagster_dev.py."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from snapshot_assets.assets import LiveDatabase, snapshot_asset
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.resources import SnapshotStoreResource

DAYS = dg.DailyPartitionsDefinition("2013-01-01", end_date="2013-02-01")


class Orders:
    """A partitioned snapshot asset whose every run adds a row for each of its days, and runs of it."""

    def __init__(self, folder: Path) -> None:
        self.store = SnapshotStoreResource(url=str(folder / "store"), wait=60.0)
        self.fails_on: set[str] = set()
        self.ran: list[Sequence[str]] = []
        dataset = Dataset("orders", "duckdb", folder / "orders.duckdb")

        @snapshot_asset(dataset, partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.multi_run(1))
        def orders(context: dg.AssetExecutionContext, live: LiveDatabase) -> None:
            self.ran.append(tuple(context.partition_keys))
            if self.fails_on & set(context.partition_keys):
                raise ZeroDivisionError
            with live.connect() as con:
                con.execute("create table if not exists orders (day date)")
                con.executemany("insert into orders values (?)", [[day] for day in context.partition_keys])

        self._asset = orders

    def run(self, first: str, last: str | None = None, **tags: str) -> list[Mapping[str, Any]]:
        """One run of a backfill, over a range of days; the metadata of each materialization, or none if it failed."""
        ends = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last or first}
        result = dg.materialize(
            [self._asset],
            resources={"snapshot_store": self.store},
            tags={**ends, **{f"dagster/{name}": value for name, value in tags.items()}},
            raise_on_error=False,
        )
        return [
            {name: value.value for name, value in event.metadata.items()}
            for event in result.asset_materializations_for_node("orders")
        ]

    def published(self) -> list[tuple[str, ...]]:
        """The partition keys of every snapshot, oldest first, by its manifest."""
        opened = self.store.open_store(read_only=True)
        head = opened.head("orders")
        contents = [
            read_content(opened.objects, "orders", head.incarnation, entry.operation_id, entry.manifest_digest)
            for entry in head.snapshots
        ]
        return [tuple(content.manifest.partition_keys) for content in contents]


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    return Orders(tmp_path)


def _outcome(run: Sequence[Mapping[str, Any]]) -> str:
    [outcome] = {event["snapshot/outcome"] for event in run}
    return str(outcome)


def test_each_run_of_a_backfill_publishes_its_own_partitions(orders: Orders) -> None:
    assert _outcome(orders.run("2013-01-01", backfill="one")) == "published"
    assert _outcome(orders.run("2013-01-02", "2013-01-03", backfill="one")) == "published"
    assert orders.published() == [("2013-01-01",), ("2013-01-02", "2013-01-03")]


def test_a_backfill_that_is_re_executed_publishes_nothing_twice(orders: Orders) -> None:
    """Dagster gives the new backfill its own id, and names the first one as its root."""
    orders.run("2013-01-01", "2013-01-31", backfill="one")
    again = orders.run("2013-01-01", "2013-01-31", backfill="two", root_backfill_id="one", parent_backfill_id="one")
    third = orders.run("2013-01-01", "2013-01-31", backfill="three", root_backfill_id="one", parent_backfill_id="two")
    assert [_outcome(again), _outcome(third)] == ["already_published", "already_published"]
    assert len(orders.published()) == 1
    assert len(orders.ran) == 1


def test_what_failed_in_a_backfill_is_done_when_it_is_re_executed(orders: Orders) -> None:
    orders.fails_on = {"2013-01-02"}
    assert orders.run("2013-01-02", backfill="one") == []
    assert _outcome(orders.run("2013-01-03", backfill="one")) == "published"
    orders.fails_on = set()
    assert _outcome(orders.run("2013-01-02", backfill="two", root_backfill_id="one")) == "published"
    assert orders.published() == [("2013-01-03",), ("2013-01-02",)]


def test_two_backfills_of_the_same_partitions_both_publish(orders: Orders) -> None:
    orders.run("2013-01-01", "2013-01-05", backfill="one")
    orders.run("2013-01-01", "2013-01-05", backfill="two")
    orders.run("2013-01-01", "2013-01-05")
    assert len(orders.published()) == 3


def test_runs_of_a_backfill_at_the_same_time_take_turns_and_none_fails(orders: Orders) -> None:
    done: list[str] = []

    def run(day: str) -> None:
        done.append(_outcome(orders.run(day, backfill="one")))

    days = [f"2013-01-0{day}" for day in range(1, 6)]
    threads = [threading.Thread(target=run, args=(day,)) for day in days]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert done == ["published"] * 5
    assert sorted(orders.published()) == [(day,) for day in days]
    rows = [entry.row_count for entry in orders.store.open_store(read_only=True).head("orders").snapshots]
    assert rows == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        (("2013-01-04", "2013-01-04"), "2013-01-04"),
        (("2013-01-01", "2013-01-31"), "2013-01-01 to 2013-01-31, 31 in all"),
    ],
)
def test_the_partitions_are_shown_and_kept_in_the_manifest(orders: Orders, ends: tuple[str, str], text: str) -> None:
    shown = orders.run(*ends)
    assert {event["snapshot/partitions"] for event in shown} == {text}
    [keys] = orders.published()
    assert len(keys) == len(shown)
    assert (keys[0], keys[-1]) == ends
