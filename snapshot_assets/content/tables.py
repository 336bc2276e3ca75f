"""Chunk tables: kept in a local folder, fetched from packs a batch at a time when they are not there."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Final

from blake3 import blake3

from snapshot_assets.content.frames import FrameError, decode_frame
from snapshot_assets.content.index import ChunkTable, Location
from snapshot_assets.errors import DocumentDamaged, NotFound, SnapshotDamaged
from snapshot_assets.ids import new_ulid
from snapshot_assets.model.manifest import pack_key
from snapshot_assets.store.contract import Store

__all__ = ["PackReader", "TableFolder", "batches", "fetch_tables", "read_cost"]

_DIGEST_BYTES: Final = 32
_SUFFIX: Final = ".table"
_BATCH_BYTES: Final = 8 * 1024 * 1024
_BATCH_FRAMES: Final = 256
_FETCHERS: Final = 4
_GAP_BYTES: Final = 1024 * 1024
_STALE_SECONDS: Final = 3600.0

_log = logging.getLogger(__name__)


class PackReader:
    """Reads the packs of one incarnation; what is missing or too short is damage to the snapshot.

    Args:
        objects: the store.
        dataset: whose packs.
        incarnation: in which life of the dataset.
    """

    def __init__(self, objects: Store, dataset: str, incarnation: str) -> None:
        self._objects = objects
        self._dataset = dataset
        self._incarnation = incarnation

    def key(self, operation: str, pack: int) -> str:
        """Where a pack lies."""
        return pack_key(self._dataset, self._incarnation, operation, pack)

    def read(self, operation: str, pack: int, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """The bytes of each (offset, length) of a pack, as `Store.read_ranges` gives them.

        Raises:
            SnapshotDamaged: the pack is missing, or ends before a range does.
        """
        key = self.key(operation, pack)
        try:
            return self._objects.read_ranges(key, ranges)
        except NotFound as error:
            raise self.damaged(f"{key} is missing") from error
        except DocumentDamaged as error:
            raise self.damaged(error.message) from error

    def damaged(self, what: str) -> SnapshotDamaged:
        """The error for a pack; the caller raises it."""
        return SnapshotDamaged(what, dataset=self._dataset)

    def decode(self, stored: bytes | memoryview, frame: Location) -> bytes | memoryview:
        """The plain bytes of a frame that a root row speaks of.

        Raises:
            SnapshotDamaged: it does not decode to what the row promises.
        """
        try:
            return decode_frame(stored, frame.raw, frame.codec)
        except FrameError as error:
            key = self.key(frame.operation, frame.pack)
            raise self.damaged(f"the frame at {frame.offset} of {key} is damaged: {error}") from error


class TableFolder:
    """A local folder of chunk tables as they are stored, each behind a digest of its own.

    A table never changes and has the name of its place, so several folders may share a file by a link. One that is torn
    or rotten, or can not be read, counts as absent. The folder only saves reads of the store: what goes wrong with it
    is logged and never raised, and after a write that failed no more are tried.

    Args:
        path: made when the first table is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._refused = False

    def read(self, place: Location) -> bytes | None:
        """The stored bytes of a table, or nothing."""
        try:
            content = self._file(place).read_bytes()
        except OSError:
            return None
        stored = content[_DIGEST_BYTES:]
        return stored if blake3(stored).digest() == content[:_DIGEST_BYTES] else None

    def load(self, place: Location, lengths: Sequence[int]) -> ChunkTable | None:
        """A table, parsed, or nothing."""
        stored = self.read(place)
        if stored is None:
            return None
        try:
            return ChunkTable.parse(decode_frame(stored, place.raw, place.codec), lengths)
        except (FrameError, SnapshotDamaged):
            return None

    def write(self, place: Location, stored: bytes | memoryview) -> None:
        """Keep a table, if the disk lets it."""
        if self._refused:
            return
        temporary = self._path / f".{new_ulid()}"
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(blake3(stored).digest())
                    file.write(stored)
                temporary.replace(self._file(place))
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            self._refused = True
            _log.warning(
                "chunk tables can not be kept in %s, so the store is asked for them again: %s", self._path, error
            )

    def adopt(self, place: Location, other: TableFolder) -> bool:
        """Take a table over from another folder, by a link where the file system allows it; tell whether it had it."""
        stored = other.read(place)
        if stored is None:
            return False
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            os.link(other._file(place), self._file(place))
        except OSError:
            # What stands there already may be torn.
            self.write(place, stored)
        return True

    def keep_only(self, places: Iterable[Location]) -> None:
        """Remove every other table, and what an interrupted write left; what another process is writing stays."""
        kept = {self._file(place).name for place in places}
        oldest = time.time() - _STALE_SECONDS
        with contextlib.suppress(OSError):
            for file in list(self._path.iterdir()):
                with contextlib.suppress(OSError):
                    is_left = file.name.startswith(".") and file.stat().st_mtime < oldest
                    if is_left or (file.suffix == _SUFFIX and file.name not in kept):
                        file.unlink()

    def _file(self, place: Location) -> Path:
        return self._path / f"{place.operation}-{place.pack:04d}-{place.offset}{_SUFFIX}"


def fetch_tables(packs: PackReader, folder: TableFolder, places: Iterable[Location]) -> int:
    """Fetch the tables that the folder lacks into it; the number of bytes that were read for it.

    Raises:
        SnapshotDamaged: a pack is missing or too short.
    """
    missing = sorted({place for place in places if folder.read(place) is None})

    def fetch(batch: list[Location]) -> int:
        first = batch[0]
        ranges = [(place.offset, place.stored) for place in batch]
        for place, stored in zip(batch, packs.read(first.operation, first.pack, ranges), strict=True):
            packs.decode(stored, place)
            folder.write(place, stored)
        return sum(place.stored for place in batch)

    with ThreadPoolExecutor(_FETCHERS, thread_name_prefix="tables") as pool:
        return sum(pool.map(fetch, batches(missing)))


def batches(places: Sequence[Location]) -> Iterator[list[Location]]:
    """Sorted places, as many of one pack at a time as a read of bounded memory takes."""
    for _, group in groupby(places, key=lambda place: place[:2]):
        batch: list[Location] = []
        total = end = 0
        for place in group:
            cost = read_cost(end, place.offset, place.offset + place.stored)
            if batch and (total + cost > _BATCH_BYTES or len(batch) == _BATCH_FRAMES):
                yield batch
                batch, total = [], 0
            batch.append(place)
            total += cost
            end = place.offset + place.stored
        yield batch


def read_cost(previous_end: int, start: int, end: int) -> int:
    """The bytes that a range adds to a read whose last range ended at `previous_end`: small gaps are read through."""
    gap = start - previous_end
    return end - start + (gap if 0 < gap <= _GAP_BYTES else 0)
