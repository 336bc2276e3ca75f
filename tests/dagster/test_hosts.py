"""Several hosts that share nothing but one S3 store: writers take turns, and readers follow all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.publish.support import audits, check_store

REPOSITORY = Path(__file__).parents[2]


class Host:
    """A process that shares no folder, no home and no Dagster instance with another one."""

    def __init__(self, name: str, folder: Path, url: str, options: Mapping[str, str]) -> None:
        self.name = name
        dagster_home = folder / "dagster"
        dagster_home.mkdir(parents=True)
        (dagster_home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        self._running = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.dagster.locations.host"),
                *(name, str(folder), url, json.dumps(dict(options)), "10"),
            ],
            cwd=folder,
            env={
                **os.environ,
                "HOME": str(folder),
                "TMPDIR": str(folder),
                "DAGSTER_HOME": str(dagster_home),
                "PYTHONPATH": str(REPOSITORY),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def order(self, order: str) -> None:
        """Give an order without waiting."""
        assert self._running.stdin is not None
        self._running.stdin.write(f"{order}\n")
        self._running.stdin.flush()

    def answer(self) -> Any:
        """Wait for the next answer."""
        assert self._running.stdout is not None
        line = self._running.stdout.readline()
        assert line, f"{self.name} ended with {self._running.wait(10)}"
        return json.loads(line)

    def ask(self, order: str) -> Any:
        """Give an order and wait for its answer."""
        self.order(order)
        return self.answer()

    def kill(self) -> None:
        self._running.kill()
        self._running.wait(10)
        for pipe in (self._running.stdin, self._running.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def start(tmp_path: Path, s3_url: str, s3_options: Mapping[str, str]) -> Iterator[Callable[[str], Host]]:
    started: list[Host] = []

    def start(name: str) -> Host:
        started.append(Host(name, tmp_path / name, s3_url, s3_options))
        return started[-1]

    yield start
    for host in started:
        host.kill()


@pytest.mark.timeout(300)
def test_writers_on_two_hosts_take_turns_and_readers_follow_both(
    start: Callable[[str], Host], s3_url: str, s3_options: Mapping[str, str], tmp_path: Path
) -> None:
    hosts = [start("north"), start("south")]
    assert [host.answer() for host in hosts] == ["ready", "ready"]
    for host in hosts:
        host.order("publish 3")
    published = {host.name: host.answer() for host in hosts}

    everything = [event for events in published.values() for event in events]
    assert {event["outcome"] for event in everything} == {"published"}
    assert sorted(event["id"] for event in everything) == list(range(6))
    assert sorted(event["generation"] for event in everything) == list(range(1, 7))
    # The lease lets one change its database and publish at a time, wherever the other is.
    spans = sorted(event["span"] for event in everything)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))

    # What is published last is what everybody reads, and it is all of one host's own content.
    for writer, generation, count in ((hosts[0], 7, 4), (hosts[1], 8, 4)):
        [event] = writer.ask("publish 1")
        assert event["generation"] == generation
        for reader in hosts:
            assert reader.ask(f"read {generation}") == [[writer.name, number] for number in range(count)]

    store = SnapshotStore.open(s3_url, s3_options)
    owners = {event["id"]: name for name, events in published.items() for event in events}
    rows = [entry.row_count for entry in store.head("orders").snapshots]
    for name in published:
        assert [count for number, count in enumerate(rows[:6]) if owners[number] == name] == [1, 2, 3]
    assert set(audits(store).values()) == {"committed"}
    check_store(store, tmp_path / "scratch")
