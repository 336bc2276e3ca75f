"""`readers` and `status`: who serves what, who does not keep up; and what `serve` tells others of itself."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from snapshot_assets.ids import IncarnationId, OperationId, new_ulid
from snapshot_assets.maintenance.readers import KnownReader, standing
from snapshot_assets.model.announcement import Announced, Announcement, announcement_key
from snapshot_assets.model.head import Head, SnapshotEntry
from snapshot_assets.serve.client import NodeClient
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.cli.conftest import Cli

Build = Callable[[int], Path]


@pytest.fixture
def store(cli: Cli, orders: Build, stock: Path) -> SnapshotStore:
    """Two snapshots of `orders`, one of `stock`."""
    for version in (1, 2):
        cli.publish("orders", orders(version))
    cli.publish("stock", stock)
    return SnapshotStore.open(str(cli.store))


def announce(
    store: SnapshotStore, reader_id: str, *, cohort: str | None = None, interval_ms: int = 300_000, **serves: int
) -> None:
    datasets = {
        name: Announced(
            "loaded" if generation else "error",
            store.head(name).incarnation if generation else None,
            generation or None,
            generation - 1 if generation else None,
            None if generation else "DiskFull: 3 bytes are missing",
        )
        for name, generation in serves.items()
    }
    said = Announcement(reader_id, f"grpc://{reader_id}:8815", cohort, interval_ms, 0, datasets)
    store.objects.write_if_absent(announcement_key(reader_id), said.to_bytes())


def test_readers_tells_who_serves_what_and_how_far_behind_it_is(cli: Cli, store: SnapshotStore) -> None:
    announce(store, "one", cohort="canary", orders=2, stock=1)
    announce(store, "two", orders=1, stock=0)
    announce(store, "three", interval_ms=1, orders=1)
    time.sleep(0.05)
    found = {one["reader_id"]: one for one in cli.json("readers")["readers"]}
    assert {name: one["alive"] for name, one in found.items()} == {"one": True, "two": True, "three": False}
    assert found["one"]["datasets"]["orders"]["lag"] == 0
    assert found["two"]["datasets"]["orders"]["lag"] == 1
    assert found["two"]["datasets"]["orders"]["lag_seconds"] > 0
    assert found["two"]["datasets"]["stock"]["lag"] == 1
    lines = [line.split() for line in cli.run("readers").out.splitlines()]
    assert ["one", "canary", "0", "s", "ago", "orders", "1", "2", "0", "loaded", "grpc://one:8815"] in lines
    [row] = [line for line in lines if line[:1] == ["three"]]
    assert row[1:3] == ["SILENT", "for"]
    assert any("DiskFull:" in line and "stock" in line for line in lines)
    assert lines[-1] == ["2", "alive,", "1", "silent;", "1", "behind"]


def test_an_announcement_that_can_not_be_read_hides_no_reader(cli: Cli, store: SnapshotStore) -> None:
    announce(store, "one", orders=2)
    store.objects.write_if_absent(announcement_key("broken"), b"{")
    ran = cli.run("readers")
    assert (ran.code, "one" in ran.out) == (1, True)
    assert "Delete readers/broken.json" in ran.err
    assert "readers/broken.json" in cli.run("status").out


def test_a_reader_did_not_miss_what_was_published_before_a_rollback() -> None:
    """Snapshots 0 to 2 are of seconds 1 to 3; a rollback to 0 follows, and at second 100 what makes generation 5."""
    incarnation = IncarnationId(new_ulid())
    digest = "blake3:" + "0" * 64
    entries = [
        SnapshotEntry(number, OperationId(new_ulid()), None, None, 0, at * 1000, digest, digest, 1, 1, 1, (), {})
        for number, at in enumerate([1, 2, 3, 100])
    ]
    head = Head("orders", incarnation, "duckdb", generation=5, current_snapshot_id=3, current_since_ms=100_000)
    published = replace(head, snapshots=tuple(entries))
    rolled_forward = replace(head, snapshots=tuple(entries[:3]), current_snapshot_id=2)

    def seconds(head: Head, generation: int, snapshot_id: int) -> float:
        serves = {"orders": Announced("loaded", incarnation, generation, snapshot_id)}
        found = standing(KnownReader(Announcement("one", None, None, 1, 0, serves), 0, True), head, 110_000)
        assert found is not None
        assert found.generations == 5 - generation
        return found.seconds

    assert seconds(published, 4, 0) == 10
    assert seconds(rolled_forward, 4, 0) == 10
    assert seconds(published, 2, 1) == 107


def test_status_tells_how_many_read_and_who_is_behind(cli: Cli, store: SnapshotStore) -> None:
    assert "none has announced itself" in cli.run("status").out
    announce(store, "one", orders=2, stock=0)
    announce(store, "two", orders=1)
    told = cli.json("status")["readers"]
    assert (told["alive"], told["silent"]) == (2, 0)
    assert [(one["reader_id"], one["dataset"], one["lag"]) for one in told["behind"]] == [
        ("one", "stock", 1), ("two", "orders", 1)
    ]  # fmt: skip
    text = cli.run("status").out
    assert "2 alive, 0 silent; 2 behind" in text
    assert "behind: grpc://one:8815 serves nothing of stock, behind by 1, for" in text
    assert "DiskFull: 3 bytes are missing" in text


@pytest.mark.parametrize(
    "wrong",
    [
        ("--pin", "orders"),
        ("--pin", "orders=x"),
        ("--pin", "stock=1"),
        ("--announce-interval", "often"),
        ("--keep-local", "0"),
    ],
)
def test_serve_refuses_what_it_does_not_understand(cli: Cli, tmp_path: Path, wrong: tuple[str, str]) -> None:
    assert cli.run("serve", "--dataset", "orders", "--data-dir", tmp_path / "data", *wrong).code == 2


def test_serve_names_the_policies_that_there_are(cli: Cli, tmp_path: Path) -> None:
    command = ("serve", "--dataset", "orders", "--data-dir", tmp_path / "data")
    assert "'strict', 'widening', 'any'" in cli.run(*command, "--schema-policy", "loose").err
    assert "'raise', 'fallback'" in cli.run(*command, "--on-damage", "ignore").err
    assert "advertise is 'http://x'" in cli.run(*command, "--advertise", "http://x").err


@contextmanager
def serving(cli: Cli, folder: Path, *options: str) -> Iterator[str]:
    """A node, as an operator starts it; the endpoint that it answers at."""
    command = [sys.executable, "-m", "snapshot_assets", "serve", "--store", str(cli.store), "--dataset", "orders"]
    command += ["--data-dir", str(folder), "--port", "0", "--http-port", "0", "--refresh-interval", "off", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as node:
        try:
            assert node.stdout is not None
            yield str(json.loads(node.stdout.readline())["flight"])
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait(60)


def announced(cli: Cli) -> dict[str, object]:
    deadline = time.monotonic() + 30
    while not (found := [one for one in cli.json("readers")["readers"] if one["endpoint"]]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    [one] = found
    assert isinstance(one, dict)
    return one


def test_serve_with_a_cohort_a_pin_and_an_address_for_others(cli: Cli, store: SnapshotStore, tmp_path: Path) -> None:
    options = ("--cohort", "canary", "--pin", "orders=0", "--advertise", "reader-1.internal:443")
    with serving(cli, tmp_path / "data", *options, "--announce-interval", "10s") as endpoint:
        one = announced(cli)
        assert (one["endpoint"], one["cohort"]) == ("grpc://reader-1.internal:443", "canary")
        assert one["datasets"]["orders"]["snapshot_id"] == 0  # type: ignore[index]
        assert one["datasets"]["orders"]["pinned"] is True  # type: ignore[index]
        assert "pinned" in cli.run("readers").out
        assert cli.json("status")["readers"]["behind"] == []
        with NodeClient(endpoint, timeout=20.0) as client:
            assert client.status()["cohort"] == "canary"


def test_serve_on_all_addresses_announces_a_name_and_with_off_nothing(
    cli: Cli, store: SnapshotStore, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("secret\n")
    everywhere = ("--host", "0.0.0.0", "--token-file", str(tmp_path / "tokens"))
    with serving(cli, tmp_path / "silent", *everywhere, "--announce-interval", "off"):
        with serving(cli, tmp_path / "data", *everywhere):
            one = announced(cli)
        host = str(one["endpoint"]).removeprefix("grpc://").rpartition(":")[0]
        assert host not in {"", "0.0.0.0", "127.0.0.1", "localhost"}
        assert cli.json("readers")["readers"] == []
