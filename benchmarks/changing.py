"""P2: publishing after 1 % of the rows changed, in each of three ways."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from blake3 import blake3
from zstandard import ZstdCompressor

from benchmarks.live import CHANGES, LIVE, LiveDatabase, change_sqlite, live_size
from benchmarks.measure import Report, Sample, measure
from benchmarks.peers import Litestream, bytes_below
from benchmarks.settings import Settings
from snapshot_assets.content.index import KIND_CHUNK_TABLE
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.engines.contract import StagedFile
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.servers import S3Server, weed_server

__all__ = ["p2"]

_MIB: Final = 1024 * 1024
_FRAME_BYTES: Final = 1024 * 1024
_FULL: Final = "full publish"


def p2(settings: Settings) -> Iterator[Report]:
    """Publish after a change of 1 %, beside the blocks, pages or files that the engine changed, compressed."""
    for engine in LIVE:
        with weed_server() as server:
            live = LIVE[engine](settings.scratch / engine)
            live.build(settings.database_bytes // live.row_bytes)
            title = f"P2  1 % of {live_size(live) / _MIB:,.0f} MiB changed ({engine}), published to S3"
            replicated = shutil.copyfile(live.dataset.path, settings.scratch / "events") if engine == "sqlite" else None
            samples = _published(live, settings, server)
            if replicated:
                samples |= _replicated(replicated, settings, server)
            target = (
                "data <= changed, compressed, and < Litestream's; index <= 10 % of it + 64 KiB; wall <= 0.25 x full"
            )
            bases = dict.fromkeys(samples, _FULL)
            yield Report(title, target, samples=samples, ratio="this / full", bases=bases)


def _published(live: LiveDatabase, settings: Settings, server: S3Server) -> dict[str, list[Sample]]:
    """Ours. Each kind of change begins with a first publish, so that no kind pays for what another left behind."""
    samples: dict[str, list[Sample]] = {name: [] for name in (*CHANGES, _FULL)}
    for kind in CHANGES:
        store = SnapshotStore.open(server.new_url(), server.options)
        captured = _Captured(live, settings.scratch / "captured")
        with Publisher(store) as publisher:

            def publish(publisher: Publisher = publisher) -> None:
                assert publisher.publish(live.dataset).outcome == "published"

            full = measure(publish)
            sent = _sent(store, live.dataset.name)["data sent, MiB"]
            samples[_FULL].append(replace(full, notes={"data sent, MiB": sent}))
            for number in range(settings.rounds):
                live.change(kind, number)
                sample = measure(publish)
                samples[kind].append(replace(sample, notes=captured.changed() | _sent(store, live.dataset.name)))
    return samples


def _sent(store: SnapshotStore, name: str) -> dict[str, float]:
    """What the newest publish sent, in data and in all that only tells where data lies."""
    head = store.head(name)
    [entry] = [one for one in head.snapshots if one.snapshot_id == head.current_snapshot_id]
    content = read_content(store.objects, name, head.incarnation, entry.operation_id, entry.manifest_digest)
    tables = {row.location for row in content.index.rows if row.kind == KIND_CHUNK_TABLE}
    index = sum(table.stored for table in tables if table.operation == entry.operation_id)
    index += len(content.index_bytes) + len(content.manifest_bytes)
    return {
        "data sent, MiB": (entry.uploaded_bytes - index) / _MIB,
        "index sent, KiB": index / 1024,
        "sent, %": entry.uploaded_bytes / entry.data_bytes * 100,
    }


def _replicated(live: Path, settings: Settings, server: S3Server) -> dict[str, list[Sample]]:
    """Litestream's: the same changes of the same rows."""
    samples: dict[str, list[Sample]] = {f"{kind}, Litestream": [] for kind in CHANGES}
    with closing(sqlite3.connect(live)) as con:
        con.execute("pragma wal_autocheckpoint = 0")
        litestream = Litestream(live, server)
        litestream.replicate()
        for kind in CHANGES:
            for number in range(settings.rounds):
                change_sqlite(con, "events_sqlite", kind, number)
                before = bytes_below(litestream.url, server)
                sample = measure(litestream.replicate)
                sent = bytes_below(litestream.url, server) - before
                notes = {"data sent, MiB": sent / _MIB}
                samples[f"{kind}, Litestream"].append(replace(sample, notes=notes))
    return samples


@dataclass(frozen=True, slots=True)
class _Piece:
    """A block, a page, or a file that never changes."""

    file: Path
    offset: int
    length: int


class _Captured:
    """What the engine changed since the last look, by its own capture: nothing of how snapshots are stored is in it.

    Args:
        live: what is looked at.
        staging: a folder that is made and removed for each look.
    """

    def __init__(self, live: LiveDatabase, staging: Path) -> None:
        self._live = live
        self._staging = staging
        self._known: set[bytes] = set()
        self.changed()

    def changed(self) -> dict[str, float]:
        """The pieces whose bytes were nowhere before, as they are and compressed as well as zstd's level 1 does."""
        self._staging.mkdir()
        try:
            captured = engine_named(self._live.dataset.engine).capture(self._live.dataset, self._staging, timeout=60)
            pieces = [piece for file in captured.files for piece in _pieces(file)]
            digests = [_digest(piece) for piece in pieces]
            fresh = [piece for piece, digest in zip(pieces, digests, strict=True) if digest not in self._known]
            self._known = set(digests)
            sizes = [_sizes(frame) for frame in _frames(fresh)]
        finally:
            shutil.rmtree(self._staging)
        plain, compressed = (sum(column) / _MIB for column in zip(*sizes, strict=True)) if sizes else (0.0, 0.0)
        return {"changed, MiB": plain, "compressed, MiB": compressed}


def _pieces(file: StagedFile) -> Iterator[_Piece]:
    header, chunk = file.layout.header_bytes, file.layout.chunk_bytes
    if chunk is None:
        yield _Piece(file.source, 0, file.size)
        return
    if header:
        yield _Piece(file.source, 0, header)
    for offset in range(header or 0, file.size, chunk):
        yield _Piece(file.source, offset, min(chunk, file.size - offset))


def _read(piece: _Piece) -> bytes:
    with piece.file.open("rb") as file:
        file.seek(piece.offset)
        return file.read(piece.length)


def _digest(piece: _Piece) -> bytes:
    return blake3(_read(piece)).digest()


def _frames(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces that are compressed together: up to 1 MiB, since pages alone compress badly."""
    frame: list[_Piece] = []
    for piece in pieces:
        if frame and sum(one.length for one in frame) + piece.length > _FRAME_BYTES:
            yield frame
            frame = []
        frame.append(piece)
    if frame:
        yield frame


def _sizes(frame: list[_Piece]) -> tuple[int, int]:
    """The bytes of a frame, plain and compressed if that helps."""
    plain = b"".join(map(_read, frame))
    return len(plain), min(len(plain), len(ZstdCompressor(level=1).compress(plain)))
