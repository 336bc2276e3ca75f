"""Snapshot assets on an executor whose steps are tasks of other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from snapshot_assets.content.snapshot import read_content
from snapshot_assets.store.snapshot_store import SnapshotStore

REPOSITORY = Path(__file__).parents[2]
DAYS = [f"2026-01-0{day}" for day in range(1, 8)]


@pytest.mark.timeout(600)
def test_several_datasets_and_partitions_in_one_job_on_dask_survive_a_worker(tmp_path: Path) -> None:
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    ends = {"dagster/asset_partition_range_start": DAYS[0], "dagster/asset_partition_range_end": DAYS[-1]}
    # In a process of its own: what the guide says of DEBUGPY_RUNNING must be said before Dagster is imported.
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("dagster")), "job", "execute"),
            *("-m", "tests.dagster.locations.shops", "-j", "shops", "--tags", json.dumps(ends)),
        ],
        env={
            **os.environ,
            "DAGSTER_HOME": str(home),
            "SNAPSHOT_ASSETS_HOME": str(tmp_path),
            "PYTHONPATH": str(REPOSITORY),
            "DEBUGPY_RUNNING": "1",
        },
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]

    with dg.DagsterInstance.from_config(str(home)) as instance:
        [run] = instance.get_runs()
        sales, stock = _materializations(instance, "sales"), _materializations(instance, "stock")
        [report] = _materializations(instance, "report")
        starts = [
            (str(event.dagster_event.step_key), event.dagster_event.pid)
            for event in instance.all_logs(run.run_id, dg.DagsterEventType.STEP_START)
            if event.dagster_event is not None
        ]
    assert sorted(step for step, _ in starts) == ["report", "sales", "stock", "stock"]
    assert len({pid for _, pid in starts}) >= 2
    # What was killed had published: the worker that took over found that, and did not run the body again.
    assert {event.metadata["snapshot/outcome"].value for event in sales} == {"published"}
    assert {event.metadata["snapshot/outcome"].value for event in stock} == {"already_published"}
    assert (report.metadata["sales"].value, report.metadata["stock"].value) == (14, 21)

    store = SnapshotStore.open(str(tmp_path / "store"), read_only=True)
    for name, events in {"sales": sales, "stock": stock}.items():
        assert sorted(str(event.partition) for event in events) == DAYS
        head = store.head(name)
        [entry] = head.snapshots
        content = read_content(store.objects, name, head.incarnation, entry.operation_id, entry.manifest_digest)
        assert list(content.manifest.partition_keys) == DAYS


def _materializations(instance: dg.DagsterInstance, name: str) -> list[Any]:
    found = instance.fetch_materializations(dg.AssetKey(name), limit=100)
    return [record.asset_materialization for record in found.records]
