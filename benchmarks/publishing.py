"""P1 and P3: publishing a whole database, and publishing when nothing changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from blake3 import blake3

from benchmarks.live import LIVE, LiveDatabase, live_size
from benchmarks.measure import Contender, Report, alternate, apart
from benchmarks.peers import Litestream, boto3_upload, s5cmd_upload
from benchmarks.settings import Settings
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.object import ObjectStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import FaultStore
from snapshot_assets.testing.servers import S3Server, weed_server

__all__ = ["p1", "p3"]


def p1(settings: Settings) -> Iterator[Report]:
    """Full publish to S3, beside checkpoint + copy + upload, or the upload of the folder where files never change."""
    for engine in LIVE:
        with weed_server() as server:
            live = _build(engine, settings)
            contenders: dict[str, Contender] = {
                "snapshot-assets": _publish_anew(live, server),
                "plain copy, s5cmd cp": _copied(live, settings, lambda copy: s5cmd_upload(copy, server)),
                "plain copy, boto3 upload": _copied(live, settings, lambda copy: boto3_upload(copy, server)),
            }
            if engine == "sqlite":
                copy = shutil.copyfile(live.dataset.path, settings.scratch / "replicated")
                contenders["Litestream's first sync"] = Litestream(copy, server).replicate_anew
            title = f"P1  full publish of {live_size(live) / 1024**2:,.0f} MiB ({engine}) to S3"
            target = "wall <= 1.15 x s5cmd's, 0.35 x Litestream's; CPU <= boto3's; peak <= 300 MiB beyond the engine's"
            samples = alternate(contenders, rounds=settings.rounds, isolated=True)
            yield Report(title, target, memory=True, samples=samples)


def p3(settings: Settings) -> Iterator[Report]:
    """Publish when nothing changed, beside capturing and hashing the files once."""
    for engine in LIVE:
        with weed_server() as server:
            live = _build(engine, settings)
            contenders = {
                "snapshot-assets": _publish_again(live, server),
                "engine.capture, hash": _captured(live, settings.scratch / "captured"),
                "plain copy, hash": _copied(live, settings, _hash),
            }
            title = f"P3  nothing changed, {live_size(live) / 1024**2:,.0f} MiB ({engine})"
            samples = alternate(contenders, rounds=settings.rounds)
            yield Report(title, "0 objects; wall <= 1.1 x capture and hashing; <= 6 requests", samples=samples)


def _build(engine: str, settings: Settings) -> LiveDatabase:
    """A live database, built apart: this process starts no threads of an engine."""
    engine_named(engine).version()  # imported here, and not in what is measured
    live = LIVE[engine](settings.scratch / engine)
    apart(lambda: live.build(settings.database_bytes // live.row_bytes))
    return live


def _publish_anew(live: LiveDatabase, server: S3Server) -> Contender:
    """A first publish, to a store of its own."""

    def publish() -> Mapping[str, float]:
        with Publisher(SnapshotStore.open(server.new_url(), server.options)) as publisher:
            result = publisher.publish(live.dataset)
        assert result.outcome == "published"
        return {"sent, MiB": result.uploaded_bytes / 1024**2}

    return publish


def _publish_again(live: LiveDatabase, server: S3Server) -> Contender:
    counted = FaultStore(ObjectStore(server.new_url(), server.options))
    publisher = Publisher(SnapshotStore.over(counted))
    assert publisher.publish(live.dataset).outcome == "published"

    def publish() -> Mapping[str, float]:
        before = counted.count()
        result = publisher.publish(live.dataset)
        assert result.outcome == "unchanged"
        return {"requests": counted.count() - before, "objects sent": result.uploaded_objects}

    return publish


def _captured(live: LiveDatabase, staging: Path) -> Contender:
    """What can not be left out: the engine's own capture, and one look at every byte of it."""

    def work() -> None:
        staging.mkdir()
        captured = engine_named(live.dataset.engine).capture(live.dataset, staging, timeout=60)
        for file in captured.files:
            _hash(file.source)
        shutil.rmtree(staging)

    return work


def _copied(live: LiveDatabase, settings: Settings, then: Callable[[Path], None]) -> Contender:
    """What one would write oneself."""

    def work() -> None:
        then(live.plain(settings.scratch))

    return work


def _hash(copy: Path) -> None:
    for path in copy.rglob("*") if copy.is_dir() else [copy]:
        if not path.is_file():
            continue
        digest = blake3()
        with path.open("rb") as file:
            while piece := file.read(16 * 1024 * 1024):
                digest.update(piece)
