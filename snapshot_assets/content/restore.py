"""From stored objects back to files: every byte checked, as much as possible taken from local copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

from snapshot_assets.content.assemble import PackSpan, assemble
from snapshot_assets.content.donors import Donor, Donors, read_stretch
from snapshot_assets.content.index import (
    KIND_CHUNK_TABLE,
    ChunkTable,
    SegmentRow,
    operation_bytes,
)
from snapshot_assets.content.segments import ScratchBuffers, chunk_lengths, in_order
from snapshot_assets.content.snapshot import Content
from snapshot_assets.content.tables import PackReader, TableFolder, fetch_tables, read_cost
from snapshot_assets.content.targets import TargetFiles, disk_full_is_typed
from snapshot_assets.durable import sync_folder, write_synced
from snapshot_assets.store.contract import Store

__all__ = ["INDEX_FILE", "Donor", "Restored", "restore_files"]

INDEX_FILE: Final = "index.arrow"
"""The root's name in an index folder."""

_THREADS: Final = 4
_SPAN_BYTES: Final = 16 * 1024 * 1024
_GROUP_PLAIN_BYTES: Final = 64 * 1024 * 1024
_GROUP_SEGMENTS: Final = 512


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore cost: stored bytes that were fetched, and plain bytes that came from donors."""

    fetched_bytes: int
    reused_bytes: int


def restore_files(
    objects: Store,
    content: Content,
    folder: Path,
    *,
    donors: Sequence[Donor] = (),
    index_folder: Path | None = None,
    over: bool = False,
    on_progress: Callable[[int], None] | None = None,
    on_segment: Callable[[], None] | None = None,
) -> Restored:
    """Write a snapshot's files beneath `folder`, where none of them may exist yet unless they are written `over`.

    When it returns, every file is complete, has the digests that the index names, has its mode, and is durable; after
    an error files are incomplete and are the caller's to remove. Donors only save bytes: what they hold is checked, and
    what is missing or rotten there is fetched. Memory is bounded by 300 MiB whatever the size of the files.

    Args:
        objects: the store that holds the snapshot.
        content: its manifest and index.
        folder: where its files go; nothing outside of it is written, `index_folder` aside.
        donors: local copies of other snapshots of the dataset, the likeliest first.
        index_folder: gets the root and the chunk tables, so that the copy can be a donor.
        over: files that are there, plain ones that nobody else has open or knows by another name, become those of the
            snapshot: what they hold is checked like a donor's, and only what differs is written.
        on_progress: called with the plain bytes of each segment that is in place.
        on_segment: called after each segment.

    Raises:
        SnapshotDamaged: objects are missing, or do not hold what the index promises.
        StoreUnavailable: the store does not answer.
        PathOutsideAnchor: a link stands in the way of a folder.
        DiskFull: there is no room.
    """
    restore = _Restore(objects, content, folder, Donors(donors), index_folder)
    restore.targets.create(over=over)
    fetched = reused = 0
    with (
        ThreadPoolExecutor(_THREADS, thread_name_prefix="restore") as pool,
        closing(in_order(pool, restore.fill, restore.groups(), ahead=2 * _THREADS)) as groups,
    ):
        for segments in groups:
            for segment in segments:
                fetched += segment.fetched_bytes
                reused += segment.reused_bytes
                if on_progress is not None:
                    on_progress(segment.plain_bytes)
                if on_segment is not None:
                    on_segment()
    fetched += restore.keep_index()
    restore.targets.finish()
    return Restored(fetched, reused)


class _Wanted(NamedTuple):
    """A segment to be restored: where it goes, and the bytes of its row's pack that are read for it at once."""

    row: SegmentRow
    position: int
    offset: int
    span: tuple[int, int]


class _Filled(NamedTuple):
    plain_bytes: int
    fetched_bytes: int
    reused_bytes: int


class _Restore:
    def __init__(
        self, objects: Store, content: Content, folder: Path, donors: Donors, index_folder: Path | None
    ) -> None:
        manifest = content.manifest
        self._content = content
        self._files = manifest.files
        self._donors = donors
        self._packs = PackReader(objects, manifest.dataset, manifest.incarnation)
        self._operations = operation_bytes(manifest.operations)
        self._buffers = ScratchBuffers()
        self._index_folder = index_folder
        self._tables = None if index_folder is None else TableFolder(index_folder)
        self.targets = TargetFiles(folder, manifest.files)

    def groups(self) -> Iterator[list[_Wanted]]:
        """The segments in groups, each of which is one read of one pack, or comes from donors."""
        placed = sorted(self._content.index.placed(), key=lambda item: item[0].location)
        for _, in_pack in groupby(placed, key=lambda item: item[0].location[:2]):
            group: list[_Wanted] = []
            stored = plain = 0
            previous_end = 0
            for row, position, offset in in_pack:
                place = row.location
                start, end = place.offset, place.offset + place.stored
                if row.kind == KIND_CHUNK_TABLE:
                    # A segment's new frames lie right before its chunk table: one read gets both.
                    start = max(start - row.plain_bytes, min(previous_end, start))
                cost = read_cost(group[-1].span[0] + group[-1].span[1] if group else start, start, end)
                previous_end = end
                if group and (
                    stored + cost > _SPAN_BYTES
                    or plain + row.plain_bytes > _GROUP_PLAIN_BYTES
                    or len(group) == _GROUP_SEGMENTS
                ):
                    yield group
                    group, stored, plain = [], 0, 0
                group.append(_Wanted(row, position, offset, (start, end - start)))
                stored += cost
                plain += row.plain_bytes
            yield group

    def fill(self, group: Sequence[_Wanted]) -> list[_Filled]:
        """Put segments of one pack in place; runs in threads."""
        filled = []
        missing = []
        for wanted in group:
            if self._is_in_place(wanted) or self._fill_from_donor(wanted):
                filled.append(_Filled(wanted.row.plain_bytes, 0, wanted.row.plain_bytes))
            else:
                missing.append(wanted)
        if missing:
            place = missing[0].row.location
            spans = [wanted.span for wanted in missing]
            for wanted, data in zip(missing, self._packs.read(place.operation, place.pack, spans), strict=True):
                filled.append(self._fill_from_span(wanted, data))
        return filled

    def _is_in_place(self, wanted: _Wanted) -> bool:
        row = wanted.row
        return self.targets.hash_earlier(row.file, wanted.offset, row.plain_bytes, self._buffers) == row.digest

    def _fill_from_donor(self, wanted: _Wanted) -> bool:
        row = wanted.row
        stretch = self._donors.segment(row.digest, row.plain_bytes)
        if stretch is None:
            return False
        plain = self._buffers.take(row.plain_bytes)
        if not read_stretch(stretch, plain) or blake3(plain).digest() != row.digest:
            return False
        self.targets.copy(row.file, wanted.offset, plain, stretch.file, stretch.offset)
        return True

    def _fill_from_span(self, wanted: _Wanted, data: memoryview) -> _Filled:
        row, place = wanted.row, wanted.row.location
        span = PackSpan(place.operation, place.pack, wanted.span[0], data)
        stored = data[len(data) - place.stored :]
        plain = self._packs.decode(stored, place)
        if row.kind != KIND_CHUNK_TABLE:
            if blake3(plain).digest() != row.digest:
                raise self._packs.damaged(
                    f"the segment at {place.offset} of {self._packs.key(place.operation, place.pack)} "
                    "does not have the digest that the index names"
                )
            self.targets.write(row.file, wanted.offset, plain)
            return _Filled(row.plain_bytes, len(data), 0)
        file = self._files[row.file]
        lengths = chunk_lengths(row.plain_bytes, file.layout, first=wanted.position == 0)
        target = self._buffers.take(row.plain_bytes)
        assembled = assemble(
            target,
            row.digest,
            ChunkTable.parse(plain, lengths),
            lengths,
            packs=self._packs,
            operations=self._operations,
            span=span,
            donated=self._donors.chunks(file.path, wanted.position),
        )
        self.targets.write(row.file, wanted.offset, target)
        if self._tables is not None:
            self._tables.write(place, stored)
        return _Filled(row.plain_bytes, len(data) + assembled.fetched_bytes, assembled.reused_bytes)

    def keep_index(self) -> int:
        """Complete the index folder; the bytes that were fetched for it."""
        if self._index_folder is None or self._tables is None:
            return 0
        self._index_folder.mkdir(parents=True, exist_ok=True)
        places = {row.location for row in self._content.index.rows if row.kind == KIND_CHUNK_TABLE}
        lacking = [place for place in places if self._tables.read(place) is None]
        fetched = fetch_tables(
            self._packs, self._tables, [place for place in lacking if not self._donors.give_table(place, self._tables)]
        )
        with disk_full_is_typed(self._index_folder):
            write_synced(self._index_folder / INDEX_FILE, self._content.index_bytes)
            sync_folder(self._index_folder)
        return fetched
