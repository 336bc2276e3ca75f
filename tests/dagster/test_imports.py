"""What the Dagster side costs to import: a code location is loaded many times a day."""

from __future__ import annotations

import json
import subprocess
import sys

_HEAVY = ("adbc_driver_manager", "boto3", "botocore", "dagster_aws", "duckdb", "lance", "obstore", "pandas", "vortex")
_CODE = f"""
import dagster, json, sys
import snapshot_assets.assets, snapshot_assets.resources, snapshot_assets.sensors
from snapshot_assets.model.dataset import Dataset

@snapshot_assets.assets.snapshot_asset(Dataset("a", "sqlite", "a.sqlite", validators=["select 1"]))
def body(live):
    ...

snapshot_assets.sensors.build_snapshot_sensor([body], job=snapshot_assets.sensors.build_reload_job())
snapshot_assets.resources.SnapshotStoreResource(url="s3://bucket")
print(json.dumps([name for name in {_HEAVY!r} if name in sys.modules]))
"""


def test_declaring_assets_and_sensors_loads_no_store_and_no_engine_but_their_own() -> None:
    shown = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, check=True, timeout=60, text=True)
    assert json.loads(shown.stdout.splitlines()[-1]) == []
