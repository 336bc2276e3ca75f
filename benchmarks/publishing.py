"""P1 and P3: publishing a whole database, and publishing when nothing changed."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import duckdb
from blake3 import blake3

from benchmarks.live import BUILDERS
from benchmarks.measure import Contender, Report, alternate, apart
from benchmarks.settings import Settings
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.object import ObjectStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import FaultStore
from snapshot_assets.testing.servers import S3Server, weed_server

__all__ = ["p1", "p3"]


def p1(settings: Settings) -> Iterator[Report]:
    """Full publish to S3, beside checkpoint + copy + upload."""
    with weed_server() as server:
        for engine in BUILDERS:
            live, copy = _build(engine, settings, "full"), settings.scratch / f"copy.{engine}"
            contenders = {
                "snapshot-assets": _publish_anew(engine, live, server),
                "checkpoint, copy, s5cmd cp": _copied(engine, live, copy, partial(_s5cmd, copy, server)),
                "checkpoint, copy, boto3 upload": _copied(engine, live, copy, partial(_boto3, copy, server)),
            }
            title = f"P1  full publish of {live.stat().st_size / 1024**2:,.0f} MiB ({engine}) to S3"
            target = "wall <= 1.15 x s5cmd's; CPU <= boto3's; peak <= 300 MiB beyond the engine's own"
            samples = alternate(contenders, rounds=settings.rounds, isolated=True)
            yield Report(title, target, memory=True, samples=samples)


def p3(settings: Settings) -> Iterator[Report]:
    """Publish when nothing changed, beside capturing and hashing the file once."""
    with weed_server() as server:
        for engine in BUILDERS:
            live, copy = _build(engine, settings, "same"), settings.scratch / f"hashed.{engine}"
            contenders = {
                "snapshot-assets": _publish_again(engine, live, server),
                "engine.capture, hash": _captured(engine, live, settings.scratch / "captured"),
                "checkpoint, copy, hash": _copied(engine, live, copy, partial(_hash, copy)),
            }
            title = f"P3  nothing changed, {live.stat().st_size / 1024**2:,.0f} MiB ({engine})"
            samples = alternate(contenders, rounds=settings.rounds)
            yield Report(title, "0 objects; wall <= 1.1 x capture and hashing; <= 6 requests", samples=samples)


def _build(engine: str, settings: Settings, name: str) -> Path:
    """A live database, built apart: this process starts no threads of an engine."""
    engine_named(engine)  # imported here, and not in what is measured
    live = settings.scratch / f"{name}.{engine}"

    def build() -> None:
        BUILDERS[engine](live, settings.database_bytes)

    apart(build)
    return live


def _publish_again(engine: str, live: Path, server: S3Server) -> Contender:
    counted = FaultStore(ObjectStore(server.new_url(), server.options))
    publisher = Publisher(SnapshotStore.over(counted))
    dataset = Dataset("same", engine, live)
    assert publisher.publish(dataset).outcome == "published"

    def publish() -> Mapping[str, str]:
        before = counted.count()
        result = publisher.publish(dataset)
        assert result.outcome == "unchanged"
        return {"requests": str(counted.count() - before), "objects sent": str(result.uploaded_objects)}

    return publish


def _publish_anew(engine: str, live: Path, server: S3Server) -> Contender:
    def publish() -> Mapping[str, str]:
        with Publisher(SnapshotStore.open(server.new_url(), server.options)) as publisher:
            result = publisher.publish(Dataset("full", engine, live))
        assert result.outcome == "published"
        return {"sent, MiB": f"{result.uploaded_bytes / 1024**2:.1f}"}

    return publish


def _captured(engine: str, live: Path, staging: Path) -> Contender:
    """What can not be left out: the engine's own capture, and one look at every byte of it."""
    dataset = Dataset("same", engine, live)

    def work() -> None:
        staging.mkdir()
        captured = engine_named(engine).capture(dataset, staging, timeout=60)
        for file in captured.files:
            _hash(file.source)
        shutil.rmtree(staging)

    return work


def _copied(engine: str, live: Path, copy: Path, then: Callable[[], None]) -> Contender:
    """What one would write oneself: checkpoint, copy the file, and do something with the copy."""

    def work() -> Mapping[str, str]:
        if engine == "duckdb":
            with duckdb.connect(str(live)) as con:
                con.execute("checkpoint")
        else:
            with closing(sqlite3.connect(live)) as connection:
                connection.execute("pragma wal_checkpoint(truncate)")
        shutil.copyfile(live, copy)
        then()
        return {}

    return work


def _s5cmd(copy: Path, server: S3Server) -> None:
    environment = {
        "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
        "AWS_REGION": "us-east-1",
    }
    program = str(Path(sys.executable).with_name("s5cmd"))
    command = [program, "--endpoint-url", server.endpoint, "cp", str(copy), f"{server.new_url()}/copy"]
    subprocess.run(command, check=True, capture_output=True, timeout=600, env=environment)


def _boto3(copy: Path, server: S3Server) -> None:
    bucket, _, prefix = server.new_url().removeprefix("s3://").partition("/")
    server.client().upload_file(str(copy), bucket, f"{prefix}/copy")


def _hash(copy: Path) -> None:
    digest = blake3()
    with copy.open("rb") as file:
        while piece := file.read(16 * 1024 * 1024):
            digest.update(piece)
