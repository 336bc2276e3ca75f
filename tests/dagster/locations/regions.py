"""Orders by region, a run a partition. The first runs of two regions are killed on the way to their snapshots."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from snapshot_assets.assets import LiveDatabase, snapshot_asset
from snapshot_assets.failpoints import PUBLISH_AFTER_COMMIT, PUBLISH_BEFORE_COMMIT
from snapshot_assets.model.dataset import Dataset
from tests.dagster.locations.fatal import FatalStore, at_work_on

HOME = Path(os.environ["SNAPSHOT_ASSETS_HOME"]) / "regions"


@snapshot_asset(
    Dataset("orders", "duckdb", HOME / "orders.duckdb"),
    partitions_def=dg.StaticPartitionsDefinition(["east", "north", "south", "west"]),
    backfill_policy=dg.BackfillPolicy.multi_run(1),
    store_key="region_store",
)
def orders(context: dg.AssetExecutionContext, live: LiveDatabase) -> None:
    """Every run adds a row for its region, so that one that ran twice can be seen."""
    at_work_on(context.partition_key)
    with live.connect() as con:
        con.execute("create table if not exists orders (region varchar)")
        con.execute("insert into orders values (?)", [context.partition_key])


defs = dg.Definitions(
    assets=[orders],
    resources={
        "region_store": FatalStore(
            url=str(HOME / "store"),
            deaths={"east": PUBLISH_AFTER_COMMIT, "west": PUBLISH_BEFORE_COMMIT},
            graves=str(HOME),
        )
    },
)
