"""P4 and P5: a whole snapshot brought to a new reader, and a small change brought to one that is up to date."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import boto3.s3.transfer
import obstore

from benchmarks.live import CHANGES, LIVE, LiveDatabase, live_size
from benchmarks.measure import Contender, Report, Sample, alternate, apart, measure
from benchmarks.peers import Litestream
from benchmarks.settings import Settings
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.object import ObjectStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.servers import S3Server, weed_server

__all__ = ["p4", "p5"]

_THREADS = 4
_PIECE = 8 * 1024 * 1024


def p4(settings: Settings) -> Iterator[Report]:
    """Bootstrap of a new reader, beside bare downloads of the same objects."""
    for engine in LIVE:
        with weed_server() as server:
            engine_named(engine).version()  # imported here, and not in what is measured
            url, live = server.new_url(), LIVE[engine](settings.scratch / engine)
            apart(partial(_built_and_published, live, settings, url, server))
            objects = settings.scratch / "objects"
            contenders: dict[str, Contender] = {
                "snapshot-assets": _bootstrap(live, url, server, settings.scratch / "reader"),
                "obstore, same objects": _obstore(url, server, objects),
                "boto3, same objects": _boto3(url, server, objects),
            }
            if engine == "sqlite":
                litestream = Litestream(shutil.copyfile(live.dataset.path, settings.scratch / "replicated"), server)
                litestream.replicate()
                contenders["litestream restore"] = partial(litestream.restore, settings.scratch / "restored")
            title = f"P4  bootstrap of {live_size(live) / 1024**2:,.0f} MiB ({engine}) from S3, synced to the disk"
            target = "ours / obstore's <= 1.18, ours / Litestream's <= 0.35; peak <= 300 MiB beyond the engine's own"
            samples = alternate(contenders, rounds=settings.rounds, isolated=True)
            yield Report(title, target, memory=True, samples=samples)


def _built_and_published(live: LiveDatabase, settings: Settings, url: str, server: S3Server) -> None:
    live.build(settings.database_bytes // live.row_bytes)
    with Publisher(SnapshotStore.open(url, server.options)) as publisher:
        publisher.publish(live.dataset)


def p5(settings: Settings) -> Iterator[Report]:
    """P5 and P14: a refresh after 1 % of the rows changed, beside a bootstrap of the same snapshot."""
    for engine in LIVE:
        with weed_server() as server:
            live = LIVE[engine](settings.scratch / engine)
            live.build(settings.database_bytes // live.row_bytes)
            samples = _refreshed(live, settings, server)
            title = f"P5, P14  1 % of {live_size(live) / 1024**2:,.0f} MiB changed ({engine}), brought to a reader"
            target = "contiguous: wall <= 0.2 x bootstrap, disk written <= 0.1 x file; bytes as published"
            yield Report(title, target, samples=samples, ratio="this / bootstrap", bases=dict.fromkeys(samples, _WHOLE))


_SETTINGS = ReaderSettings(refresh_interval=None)
_WHOLE = "bootstrap"


def _refreshed(live: LiveDatabase, settings: Settings, server: S3Server) -> dict[str, list[Sample]]:
    """Each kind of change has a store of its own, so that no kind pays for what another left behind."""
    name = live.dataset.name
    samples: dict[str, list[Sample]] = {kind: [] for kind in (*CHANGES, _WHOLE)}
    for kind in CHANGES:
        url, data_dir = server.new_url(), settings.scratch / f"{name}_{kind}"
        store = SnapshotStore.open(url, server.options)
        with Publisher(store) as publisher, SnapshotReader(store, data_dir, _SETTINGS) as reader:
            publisher.publish(live.dataset)
            reader.follow(name, refresh=False)

            def refresh(reader: SnapshotReader = reader) -> Mapping[str, float]:
                written = _written_bytes()
                result = reader.refresh(name)
                assert result.outcome == "loaded"
                share = (_written_bytes() - written) / live_size(live)
                return {"fetched, MiB": result.fetched_bytes / 1024**2, "disk written / file": share}

            for number in range(_SETTINGS.keep_local + settings.rounds):
                live.change(kind, number)
                published = publisher.publish(live.dataset).uploaded_bytes
                sample = measure(refresh)
                # The first ones find no retired copy to build in yet.
                if number >= _SETTINGS.keep_local:
                    samples[kind].append(replace(sample, notes={**sample.notes, "published, MiB": published / 1024**2}))
        samples[_WHOLE].append(measure(_bootstrap(live, url, server, settings.scratch / "new")))
        shutil.rmtree(data_dir)
    return samples


def _written_bytes() -> int:
    """What this process has caused to be written to the disk so far."""
    counted = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counted["write_bytes"])


def _bootstrap(live: LiveDatabase, url: str, server: S3Server, data_dir: Path) -> Contender:
    def bootstrap() -> None:
        shutil.rmtree(data_dir, ignore_errors=True)
        store = SnapshotStore.open(url, server.options, read_only=True)
        with SnapshotReader(store, data_dir, _SETTINGS) as reader:
            assert reader.follow(live.dataset.name, refresh=False).current is not None

    return bootstrap


def _obstore(url: str, server: S3Server, folder: Path) -> Contender:
    def work() -> None:
        store = ObjectStore(url, server.options)

        def download(key: str) -> None:
            with _synced(folder / Path(key).name) as file:
                for piece in obstore.get(store._bulk, key).stream(min_chunk_size=_PIECE):
                    file.write(piece)

        _all_of(folder, _packs(store), download)

    return work


def _boto3(url: str, server: S3Server, folder: Path) -> Contender:
    def work() -> None:
        client = server.client()
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        one = boto3.s3.transfer.TransferConfig(use_threads=False)

        def download(key: str) -> None:
            with _synced(folder / Path(key).name) as file:
                client.download_fileobj(bucket, f"{prefix}/{key}", file, Config=one)

        _all_of(folder, _packs(ObjectStore(url, server.options)), download)

    return work


def _packs(store: ObjectStore) -> list[str]:
    return [listed.key for listed in store.list("data/") if listed.key.endswith(".pack")]


@contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _all_of(folder: Path, keys: list[str], download: Callable[[str], None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(download, keys):
            pass
