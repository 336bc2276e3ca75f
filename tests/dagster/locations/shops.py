"""Two datasets with a partition a day, and what reads them, in one job for executors with several processes.

The two meet: neither goes on before the other is at work, so both must be at work at the same time. The process that
publishes the stock is killed when its snapshot is visible and before anybody was told.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import dagster as dg
from dagster_dask import dask_executor

from snapshot_assets.assets import LiveDatabase, snapshot_asset
from snapshot_assets.failpoints import PUBLISH_AFTER_COMMIT
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.resources import SnapshotReaderResource, SnapshotStoreResource
from tests.dagster.locations.fatal import FatalStore, at_work_on

HOME = Path(os.environ["SNAPSHOT_ASSETS_HOME"])
DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-08")


def _meet(name: str, other: str) -> None:
    at_work_on(name)
    (HOME / f"{name} is here").touch()
    deadline = time.monotonic() + 120
    while not (HOME / f"{other} is here").exists():
        assert time.monotonic() < deadline, f"{other} never came"
        time.sleep(0.05)


@snapshot_asset(Dataset("sales", "duckdb", HOME / "sales.duckdb"), partitions_def=DAYS)
def sales(context: dg.AssetExecutionContext, live: LiveDatabase) -> dict[str, int]:
    """Two sales a day."""
    _meet("sales", "stock")
    with live.connect() as con:
        con.execute("create table if not exists sales (day date)")
        con.executemany("insert into sales values (?)", [[day] for day in context.partition_keys for _ in range(2)])
    return {"process": os.getpid()}


@snapshot_asset(Dataset("stock", "sqlite", HOME / "stock.sqlite"), partitions_def=DAYS)
def stock(context: dg.AssetExecutionContext, live: LiveDatabase) -> dict[str, int]:
    """Three boxes a day."""
    _meet("stock", "sales")
    with live.connect() as con:
        con.execute("create table if not exists stock (day text)")
        con.executemany("insert into stock values (?)", [(day,) for day in context.partition_keys for _ in range(3)])
        con.commit()
    return {"process": os.getpid()}


@dg.asset(deps=[sales, stock])
def report(snapshots: SnapshotReaderResource) -> dg.MaterializeResult[None]:
    """What both hold, read from the newest snapshots by whichever process it falls to."""
    with snapshots.open_reader() as reader:
        counts = {
            name: reader.follow(name, refresh=False).query(f"select count(*) as n from {name}").to_pylist()[0]["n"]
            for name in ("sales", "stock")
        }
    return dg.MaterializeResult(metadata=counts)


defs = dg.Definitions(
    assets=[sales, stock, report],
    jobs=[dg.define_asset_job("shops")],
    resources={
        "snapshot_store": FatalStore(url=str(HOME / "store"), deaths={"stock": PUBLISH_AFTER_COMMIT}, graves=str(HOME)),
        "snapshots": SnapshotReaderResource(store=SnapshotStoreResource(url=str(HOME / "store"))),
    },
    executor=dask_executor.configured(
        {"cluster": {"local": {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}}}
    ),
)
