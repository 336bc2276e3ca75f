"""Stores with heads to look at, sensors' ticks on them, and reader nodes in processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from snapshot_assets.ids import IncarnationId, OperationId, new_ulid
from snapshot_assets.model.head import Head, SchemaVersion, SnapshotEntry, head_key
from snapshot_assets.resources import SnapshotStoreResource
from snapshot_assets.store.snapshot_store import SnapshotStore

DIGEST = "blake3:" + "0" * 64


class HeadWriter:
    """Writes heads straight into a store, so that a thousand datasets cost no captures."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store = SnapshotStore.open(url, retry_for=1.0)
        self.resource = SnapshotStoreResource(url=url)

    def write(self, head: Head) -> None:
        """Create or replace the head."""
        key = head_key(head.dataset)
        if head.dataset in self.store.heads():
            self.store.objects.write_if_match(key, head.to_bytes(), self.store.read_head(head.dataset)[1])
        else:
            self.store.objects.write_if_absent(key, head.to_bytes())

    def create(self, name: str) -> None:
        """A head without a snapshot."""
        self.write(Head(name, IncarnationId(new_ulid()), "duckdb"))

    def publish(self, name: str) -> None:
        """One more snapshot."""
        if name not in self.store.heads():
            self.create(name)
        head = self.store.head(name)
        entry = SnapshotEntry(
            head.next_snapshot_id, OperationId(new_ulid()), None, None, 0, 0, DIGEST, DIGEST, 1, 1, 1, (), {}
        )
        self.write(
            replace(
                head,
                revision=head.revision + 1,
                generation=head.generation + 1,
                next_snapshot_id=head.next_snapshot_id + 1,
                current_snapshot_id=entry.snapshot_id,
                schemas=(SchemaVersion(0, {}),),
                snapshots=(*head.snapshots, entry),
            )
        )

    def claim(self, name: str) -> None:
        """What a writer does to fence another: the epoch rises, the generation does not."""
        head = self.store.head(name)
        self.write(replace(head, revision=head.revision + 1, epoch=head.epoch + 1))

    def damage(self, name: str) -> None:
        """Put something there that is no head."""
        token = self.store.heads()[name]
        self.store.objects.write_if_match(head_key(name), b"{not a head", token)


@pytest.fixture
def heads(tmp_path: Path) -> HeadWriter:
    return HeadWriter(str(tmp_path / "store"))


@pytest.fixture(scope="session")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


@pytest.fixture
def tick(heads: HeadWriter, instance: dg.DagsterInstance) -> Callable[..., dg.SensorResult]:
    """Run one tick of a sensor against the store of `heads`."""

    def run(
        sensor: dg.SensorDefinition, cursor: str | None = None, resource: SnapshotStoreResource | None = None
    ) -> dg.SensorResult:
        with dg.build_sensor_context(
            instance=instance, cursor=cursor, resources={"snapshot_store": resource or heads.resource}
        ) as context:
            result = sensor(context)
        assert isinstance(result, dg.SensorResult)
        return result

    return run


_NODE = """
import json, sys
from pathlib import Path
from snapshot_assets import ReaderSettings, SnapshotReader, SnapshotStore
from snapshot_assets.serve.node import NodeSettings, run_node
url, folder, options, *datasets = sys.argv[1:]
options = json.loads(options)
files = {name: Path(path) for name, path in options.pop("files").items()}
advertise = options.pop("advertise", None)
store = SnapshotStore.open(url, read_only=True, retry_for=1.0)
with SnapshotReader(store, Path(folder), ReaderSettings(refresh_interval=None, **options)) as reader:
    run_node(reader, datasets, NodeSettings(port=0, http_port=0, advertise=advertise, **files))
"""


class Nodes:
    """Reader nodes, each a process of its own that refreshes only when it is told to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[str]] = {}

    def start(self, url: str, *served: Sequence[str]) -> list[str]:
        """Start a node for each list of datasets, and return their endpoints once they have tried every dataset."""
        return self.start_with(url, *((datasets, {}) for datasets in served))

    def start_with(self, url: str, *served: tuple[Sequence[str], Mapping[str, Any]]) -> list[str]:
        """Start a node for each list of datasets, with options: those of `ReaderSettings`, `advertise`, and files."""
        started = []
        for datasets, options in served:
            files = {name: str(path) for name, path in options.items() if isinstance(path, Path)}
            told = json.dumps({"files": files} | {name: one for name, one in options.items() if name not in files})
            command = [sys.executable, "-c", _NODE, url, str(self._folder / f"node-{new_ulid()}"), told, *datasets]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        endpoints = []
        for node in started:
            assert node.stdout is not None
            endpoints.append(str(json.loads(node.stdout.readline())["flight"]))
            self._running[endpoints[-1]] = node
        return endpoints

    @contextmanager
    def stopped(self, *endpoints: str) -> Iterator[None]:
        """They hang, as processes that get no processor do, while the block runs."""
        for endpoint in endpoints:
            self._running[endpoint].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for endpoint in endpoints:
                self._running[endpoint].send_signal(signal.SIGCONT)

    def kill(self, endpoint: str) -> None:
        """End one without a word."""
        node = self._running.pop(endpoint)
        node.kill()
        node.wait(10)
        if node.stdout is not None:
            node.stdout.close()

    def kill_all(self) -> None:
        """End all that are left."""
        for endpoint in list(self._running):
            self.kill(endpoint)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    made = Nodes(tmp_path_factory.mktemp("nodes"))
    yield made
    made.kill_all()
