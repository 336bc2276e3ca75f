"""Writers and readers killed at any moment, again and again, on a real S3 server: nothing is lost, nothing is left."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.publish.support import check_store

WRITER = """
import json, sqlite3, sys
from snapshot_assets import Dataset, Publisher, SnapshotStore

url, options, path = sys.argv[1:]
publisher = Publisher(SnapshotStore.open(url, json.loads(options)), wait=30)
dataset = Dataset("orders", "sqlite", path)
print("ready", flush=True)
while True:
    with publisher.writing(dataset) as writing:
        with writing.connect() as live:
            live.execute("begin")
            live.execute("update t set version = version + 1")
            [(version,)] = live.execute("select max(version) from t").fetchall()
            live.execute("commit")
        writing.publish()
    print(version, flush=True)
"""
READER = """
import json, sys
from snapshot_assets import ReaderSettings, SnapshotReader, SnapshotStore

url, options, data_dir = sys.argv[1:]
store = SnapshotStore.open(url, json.loads(options), read_only=True)
with SnapshotReader(store, data_dir, ReaderSettings(refresh_interval=None, on_bootstrap_failure="warn")) as reader:
    provider = reader.follow("orders")
    print("ready", flush=True)
    while True:
        reader.refresh("orders")
        [row] = provider.query("select min(version) as low, max(version) as high, count(*) as n from t").to_pylist()
        assert row["low"] == row["high"] and row["n"] == 2000, row
        print(row["high"], flush=True)
"""


def run_and_kill(script: str, arguments: list[str], seconds: float) -> list[int]:
    """Run a script, kill it that long after it is ready, and return the versions that it acknowledged."""
    child = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n", child.stderr and child.stderr.read()
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    out, err = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, err
    return [int(line) for line in out.splitlines() if line]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [4, pytest.param(200, marks=pytest.mark.soak)])
def test_whoever_is_killed_whenever_every_acknowledged_version_stays_and_readers_never_go_back(
    s3_url: str, s3_options: Mapping[str, str], tmp_path: Path, kills: int
) -> None:
    store = SnapshotStore.open(s3_url, s3_options)
    live, data_dir = tmp_path / "orders.sqlite", tmp_path / "reader"
    with closing(sqlite3.connect(live)) as connection, connection:
        connection.execute("create table t (id integer primary key, version integer, note text)")
        connection.executemany("insert into t values (?, 0, ?)", ((i, f"note {i}" * 20) for i in range(2_000)))
    dataset = Dataset("orders", "sqlite", live)
    Publisher(store).publish(dataset)
    options = json.dumps(dict(s3_options))
    chance = random.Random(kills)
    acknowledged, served = 0, 0
    for turn in range(kills):
        written = run_and_kill(WRITER, [s3_url, options, str(live)], chance.uniform(0.0, 1.5))
        acknowledged = max([acknowledged, *written])
        read = run_and_kill(READER, [s3_url, options, str(data_dir)], chance.uniform(0.0, 0.5))
        assert read == sorted(read)
        assert not read or read[0] >= served
        served = max([served, *read])
        assert len(store.head("orders").snapshots) >= 1, turn
    Publisher(store, wait=30).publish(dataset)
    with SnapshotReader(store, data_dir, ReaderSettings(refresh_interval=None)) as reader:
        provider = reader.follow("orders")
        reader.refresh("orders")
        [row] = provider.query("select min(version) as low, max(version) as high from t").to_pylist()
    assert row["low"] == row["high"] >= acknowledged
    check_store(store, tmp_path / "scratch")
