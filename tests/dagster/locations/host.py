"""A host of its own: its folder, its DAGSTER_HOME, its live database and its reader; only the store is shared.

It takes orders as lines on its input and answers each with a line of JSON: `publish N` materializes the asset N times,
each time with one more row of its own; `read G` tells what its reader serves when that is generation G or later.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg

from snapshot_assets import Dataset, SnapshotReader
from snapshot_assets.assets import LiveDatabase, snapshot_asset
from snapshot_assets.resources import SnapshotStoreResource


def main() -> None:
    """Run until the input ends: `python -m tests.dagster.locations.host NAME FOLDER URL OPTIONS LEASE_SECONDS`."""
    name, folder, url, options, lease = sys.argv[1:]
    home = Path(folder)
    resource = SnapshotStoreResource(url=url, options=json.loads(options), wait=300.0, lease_duration=float(lease))
    spans: list[tuple[float, float]] = []

    @snapshot_asset(Dataset("orders", "duckdb", home / "orders.duckdb"))
    def orders(live: LiveDatabase) -> None:
        began = time.monotonic()
        with live.connect() as con:
            con.execute("create table if not exists orders (host varchar, number integer)")
            con.execute("insert into orders select ?, count(*) from orders", [name])
        spans.append((began, time.monotonic()))

    def publish(times: int) -> list[dict[str, Any]]:
        done = []
        for _ in range(times):
            result = dg.materialize([orders], resources={"snapshot_store": resource}, instance=instance)
            [event] = result.asset_materializations_for_node("orders")
            facts = {key: event.metadata[f"snapshot/{key}"].value for key in ("id", "generation", "outcome")}
            done.append({**facts, "span": spans[-1]})
        return done

    store = resource.open_store(read_only=True)
    with dg.DagsterInstance.get() as instance, SnapshotReader(store, home / "reader") as reader:
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            order, _, number = line.strip().partition(" ")
            if order == "publish":
                answer: Any = publish(int(number))
            else:
                provider = reader.follow("orders", refresh=False)
                reader.refresh("orders", at_least_generation=int(number))
                rows = provider.query("select host, number from orders order by number").to_pylist()
                answer = [[row["host"], row["number"]] for row in rows]
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
