"""The whole way on a real S3 server: publish, die, heal, refresh, roll back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from snapshot_assets import failpoints
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.publish.support import audits, check_store, grow

KILLED_WRITER = """
import json, os, signal, sys
from snapshot_assets import Dataset, Publisher, SnapshotStore
from snapshot_assets.failpoints import Failpoints

url, options, engine, path, failpoint = sys.argv[1:]
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
store = SnapshotStore.open(url, json.loads(options))
Publisher(store, failpoints=Failpoints({failpoint: kill})).publish(Dataset("orders", engine, path))
"""


@pytest.fixture
def store(s3_url: str, s3_options: Mapping[str, str]) -> SnapshotStore:
    return SnapshotStore.open(s3_url, s3_options)


def test_what_is_published_is_served_and_a_rollback_reaches_the_reader(
    store: SnapshotStore, dataset: Dataset, tmp_path: Path
) -> None:
    publisher = Publisher(store)
    publisher.publish(dataset)
    settings = ReaderSettings(refresh_interval=None)
    with SnapshotReader(store, tmp_path / "reader", settings) as reader:
        provider = reader.follow("orders")
        grow(dataset, 50)
        assert publisher.publish(dataset).outcome == "published"
        assert publisher.publish(dataset).outcome == "unchanged"
        assert reader.refresh("orders").outcome == "loaded"
        assert provider.query("select count(*) as n from t").to_pylist() == [{"n": 150}]
        Maintenance(store).rollback("orders", 0)
        result = reader.refresh("orders", at_least_generation=3)
        assert (result.outcome, result.snapshot_id, result.fetched_bytes) == ("loaded", 0, 0)
        assert provider.query("select count(*) as n from t").to_pylist() == [{"n": 100}]
        assert reader.refresh("orders").outcome == "not_modified"
    check_store(store, tmp_path / "scratch")


@pytest.mark.parametrize(
    "failpoint",
    [failpoints.PUBLISH_AFTER_SIDECAR, failpoints.PUBLISH_BEFORE_COMMIT, failpoints.PUBLISH_AFTER_COMMIT],
)
def test_a_writer_killed_on_s3_is_healed_by_the_next_one(
    store: SnapshotStore, s3_url: str, s3_options: Mapping[str, str], dataset: Dataset, tmp_path: Path, failpoint: str
) -> None:
    arguments = [s3_url, json.dumps(dict(s3_options)), dataset.engine, str(dataset.path), failpoint]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, *arguments], timeout=120, check=False, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    visible = failpoint == failpoints.PUBLISH_AFTER_COMMIT
    assert Publisher(store).publish(dataset).outcome == ("unchanged" if visible else "published")
    assert sorted(audits(store).values()) == (["committed"] if visible else ["committed", "rolled_back"])
    check_store(store, tmp_path / "scratch")
