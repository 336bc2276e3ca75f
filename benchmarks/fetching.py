"""P4 and P5: a whole snapshot brought to a new reader, and a small change brought to one that is up to date."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import boto3.s3.transfer
import duckdb
import obstore

from benchmarks.live import BUILDERS
from benchmarks.measure import Contender, Report, Sample, alternate, apart, measure
from benchmarks.settings import Settings
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.model.dataset import Dataset
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
    with weed_server() as server:
        for engine in BUILDERS:
            engine_named(engine)
            url, live = server.new_url(), settings.scratch / f"fetched.{engine}"

            def publish(engine: str = engine, url: str = url, live: Path = live) -> None:
                BUILDERS[engine](live, settings.database_bytes)
                _publish(url, server, engine, live)

            apart(publish)
            contenders = {
                "snapshot-assets": _bootstrap(url, server, engine, settings.scratch / "reader"),
                "obstore, same objects": _obstore(url, server, settings.scratch / "objects"),
                "boto3, same objects": _boto3(url, server, settings.scratch / "objects"),
            }
            title = f"P4  bootstrap of {live.stat().st_size / 1024**2:,.0f} MiB ({engine}) from S3, synced to the disk"
            target = ">= 0.85 x obstore's rate (ours / this <= 1.18); peak <= 300 MiB beyond the engine's own"
            samples = alternate(contenders, rounds=settings.rounds, isolated=True)
            yield Report(title, target, memory=True, samples=samples)


def p5(settings: Settings) -> Iterator[Report]:
    """A refresh after 1 % of the rows changed, all in one place, beside a bootstrap of the same snapshot."""
    with weed_server() as server:
        for engine, change in _CHANGES.items():
            url = server.new_url()
            live = BUILDERS[engine](settings.scratch / f"changed.{engine}", settings.database_bytes)
            _publish(url, server, engine, live)
            store = SnapshotStore.open(url, server.options, read_only=True)
            samples: dict[str, list[Sample]] = {"refresh": [], "bootstrap": []}
            with SnapshotReader(store, settings.scratch / f"kept_{engine}", _SETTINGS) as reader:
                reader.follow(engine, refresh=False)

                def refresh(engine: str = engine, reader: SnapshotReader = reader) -> Mapping[str, str]:
                    result = reader.refresh(engine)
                    assert result.outcome == "loaded"
                    return {"fetched, MiB": f"{result.fetched_bytes / 1024**2:.2f}"}

                bootstrap = _bootstrap(url, server, engine, settings.scratch / "new")
                for number in range(settings.rounds + 1):
                    change(live, number)
                    stored = _publish(url, server, engine, live)
                    taken = {"refresh": measure(refresh), "bootstrap": measure(bootstrap)}
                    for name, sample in taken.items():
                        if number:
                            notes = {**sample.notes, "published, MiB": f"{stored / 1024**2:.2f}"}
                            samples[name].append(Sample(sample.seconds, sample.cpu_seconds, notes=notes))
            title = f"P5  1 % of {live.stat().st_size / 1024**2:,.0f} MiB changed ({engine})"
            yield Report(title, "wall <= 0.2 x bootstrap; bytes as published", samples=samples)


_SETTINGS = ReaderSettings(refresh_interval=None)


def _publish(url: str, server: S3Server, engine: str, live: Path) -> int:
    """Publish; the bytes that went to the store."""
    with Publisher(SnapshotStore.open(url, server.options)) as publisher:
        result = publisher.publish(Dataset(engine, engine, live))
    assert result.outcome == "published"
    return result.uploaded_bytes


def _update_duckdb(live: Path, number: int) -> None:
    with duckdb.connect(str(live)) as con:
        con.execute(
            "update events set amount = random() from (select max(id) + 1 as n from events) "
            f"where id >= n * {number + 1} // 20 and id < n * {number + 1} // 20 + n // 100"
        )
        con.execute("checkpoint")


def _update_sqlite(live: Path, number: int) -> None:
    with closing(sqlite3.connect(live)) as con, con:
        [rows] = con.execute("select max(id) from events").fetchone()
        first = rows * (number + 1) // 20
        con.execute("update events set key = random() where id between ? and ?", (first, first + rows // 100))


_CHANGES: Mapping[str, Callable[[Path, int], None]] = {"duckdb": _update_duckdb, "sqlite": _update_sqlite}


def _bootstrap(url: str, server: S3Server, engine: str, data_dir: Path) -> Contender:
    def bootstrap() -> None:
        shutil.rmtree(data_dir, ignore_errors=True)
        store = SnapshotStore.open(url, server.options, read_only=True)
        with SnapshotReader(store, data_dir, _SETTINGS) as reader:
            assert reader.follow(engine, refresh=False).current is not None

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
