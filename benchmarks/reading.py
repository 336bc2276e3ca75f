"""P8 and P9: taking a connection, and polling many datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from benchmarks.live import LIVE
from benchmarks.measure import Report, Sample, alternate
from benchmarks.settings import Settings
from snapshot_assets.ids import new_incarnation_id
from snapshot_assets.model.head import Head, head_key
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.provider import SnapshotProvider
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.open import open_objects
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import FaultStore
from snapshot_assets.testing.servers import S3Server, weed_server

__all__ = ["p8", "p9"]

_CALLS = 2_000
_CHANGED = 100
_ROWS = 20_000
_THREADS = 16


def p8(settings: Settings) -> Iterator[Report]:
    """A lease of a connection, beside the engine's own way to hand one out."""
    store = SnapshotStore.open(str(settings.scratch / "leases"))
    with SnapshotReader(store, settings.scratch / "reader", ReaderSettings(refresh_interval=None)) as reader:
        for engine, kind in LIVE.items():
            live = kind(settings.scratch / engine)
            live.build(_ROWS)
            with Publisher(store) as publisher:
                publisher.publish(live.dataset)
            provider = reader.follow(live.dataset.name, refresh=False)
            contenders = {"provider.connect()": _leases(provider), "the pool's own connection": _pool(provider)}
            samples = alternate(contenders, rounds=max(settings.rounds, 7))
            each = {name: [_per_call(sample) for sample in taken] for name, taken in samples.items()}
            title = f"P8  one connection taken and given back ({engine})"
            yield Report(title, "at most 5 us beyond the engine's own", unit="us", samples=each)


def _per_call(sample: Sample) -> Sample:
    return replace(sample, seconds=sample.seconds / _CALLS, cpu_seconds=sample.cpu_seconds / _CALLS)


def _leases(provider: SnapshotProvider) -> Callable[[], None]:
    def take() -> None:
        for _ in range(_CALLS):
            with provider.connect():
                pass

    return take


def _pool(provider: SnapshotProvider) -> Callable[[], None]:
    serving = provider.serving
    assert serving is not None
    pool = serving.pool

    def take() -> None:
        for _ in range(_CALLS):
            pool.release(pool.acquire())

    return take


def p9(settings: Settings) -> Iterator[Report]:
    """Looking for changes of 1,000 datasets on S3, beside asking for each of them."""
    with weed_server() as server:
        url = server.new_url()
        names = [f"dataset_{number:04d}" for number in range(1_000)]
        _make_heads(SnapshotStore.open(url, server.options), names)
        contenders = {
            "list and compare, none changed": _poll(url, server, names, changed=0),
            f"list and compare, {_CHANGED} changed": _poll(url, server, names, changed=_CHANGED),
            "a HEAD request each (boto3)": _ask_each(url, server, names),
        }
        samples = alternate(contenders, rounds=settings.rounds)
        target = f"1 list request and <= 0.2 s of CPU; with {_CHANGED} changed <= 1 s"
        yield Report("P9  a look at 1,000 datasets", target, samples=samples)


def _make_heads(store: SnapshotStore, names: list[str]) -> None:
    def make(name: str) -> None:
        store.objects.write_if_absent(head_key(name), Head(name, new_incarnation_id(), "duckdb").to_bytes())

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(make, names))


def _poll(url: str, server: S3Server, names: list[str], *, changed: int) -> Callable[[], Mapping[str, float]]:
    counted = FaultStore(open_objects(url, server.options))
    store = SnapshotStore.over(counted, read_only=True)
    known = store.heads()

    def poll() -> Mapping[str, float]:
        before = counted.count()
        found = store.heads()
        assert all(found[name] == known[name] for name in names)
        if changed:
            with ThreadPoolExecutor(_THREADS) as threads:
                assert all(threads.map(store.read_head, names[:changed]))
        return {"calls of the store": counted.count() - before}

    return poll


def _ask_each(url: str, server: S3Server, names: list[str]) -> Callable[[], Mapping[str, float]]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client = server.client()

    def ask() -> Mapping[str, float]:
        with ThreadPoolExecutor(_THREADS) as threads:
            keys = [f"{prefix}/{head_key(name)}" for name in names]
            list(threads.map(lambda key: client.head_object(Bucket=bucket, Key=key), keys))
        return {"calls of the store": len(names)}

    return ask
