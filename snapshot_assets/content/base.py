"""The base: the snapshot whose stored segments and chunks a publish may reuse."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from snapshot_assets.content.account import Pack, PackAccount
from snapshot_assets.content.index import (
    KIND_CHUNK_TABLE,
    KIND_SEGMENT,
    ChunkTable,
    Location,
    SegmentRow,
    operation_bytes,
)
from snapshot_assets.content.segments import chunk_lengths
from snapshot_assets.content.snapshot import Content
from snapshot_assets.content.tables import PackReader, TableFolder, fetch_tables
from snapshot_assets.model.manifest import Layout
from snapshot_assets.store.contract import Store

__all__ = ["Base", "BaseSegment", "ReuseKey"]


class ReuseKey(NamedTuple):
    """What makes two segments interchangeable: the bytes, and the way they are cut in chunks."""

    digest: bytes
    kind: int
    header_bytes: int
    chunk_bytes: int

    @classmethod
    def of(cls, digest: bytes, layout: Layout, *, first: bool) -> ReuseKey:
        """The key of a segment; `first` says that it begins its file."""
        if layout.kind == "whole":
            return cls(digest, KIND_SEGMENT, 0, 0)
        return cls(digest, KIND_CHUNK_TABLE, (layout.header_bytes or 0) if first else 0, layout.chunk_bytes or 0)


class BaseSegment(NamedTuple):
    """A segment of the base, and what is needed to know its chunks' lengths."""

    row: SegmentRow
    layout: Layout
    first: bool

    @property
    def lengths(self) -> list[int]:
        """The plain bytes of each of its chunks."""
        return chunk_lengths(self.row.plain_bytes, self.layout, first=self.first)


class Base:
    """A snapshot to reuse from.

    Args:
        objects: the store that holds it.
        content: its manifest and index.
        cache: a folder for its chunk tables, best the one that the last publish was given; else a temporary one.
    """

    def __init__(self, objects: Store, content: Content, cache: Path | None = None) -> None:
        manifest = content.manifest
        self.content = content
        self._packs = PackReader(objects, manifest.dataset, manifest.incarnation)
        if cache is None:
            cache = Path(tempfile.mkdtemp(prefix="snapshot-assets-tables-"))
            weakref.finalize(self, shutil.rmtree, cache, ignore_errors=True)
        self._folder = TableFolder(cache)
        self._operations = operation_bytes(manifest.operations)
        self._by_key: dict[ReuseKey, BaseSegment] = {}
        self._by_position: dict[tuple[str, int], BaseSegment] = {}
        self._by_location: dict[Location, BaseSegment] = {}
        for row, position, _ in content.index.placed():
            entry = manifest.files[row.file]
            segment = BaseSegment(row, entry.layout, position == 0)
            self._by_key.setdefault(ReuseKey.of(row.digest, entry.layout, first=position == 0), segment)
            self._by_position[entry.path, position] = segment
            self._by_location.setdefault(row.location, segment)

    @property
    def segments(self) -> Iterable[BaseSegment]:
        """One segment for each distinct place in the root."""
        return self._by_location.values()

    def same(self, key: ReuseKey) -> BaseSegment | None:
        """A segment that holds the same."""
        return self._by_key.get(key)

    def at(self, path: str, position: int) -> BaseSegment | None:
        """The segment at a position of a file that is cut in chunks."""
        segment = self._by_position.get((path, position))
        return segment if segment is not None and segment.row.kind == KIND_CHUNK_TABLE else None

    def fetch_tables(self, segments: Iterable[BaseSegment]) -> None:
        """Have the chunk tables of these segments at hand; missing ones are read from the store in few requests.

        Raises:
            SnapshotDamaged: the base's packs are missing or damaged.
        """
        places = (segment.row.location for segment in segments if segment.row.kind == KIND_CHUNK_TABLE)
        fetch_tables(self._packs, self._folder, places)

    def table(self, segment: BaseSegment) -> ChunkTable:
        """The chunk table of a segment.

        Raises:
            SnapshotDamaged: it is missing or damaged in the store.
        """
        place = segment.row.location
        table = self._folder.load(place, segment.lengths)
        if table is None:
            [stored] = self._packs.read(place.operation, place.pack, [(place.offset, place.stored)])
            table = ChunkTable.parse(self._packs.decode(stored, place), segment.lengths)
            self._folder.write(place, stored)
        if not {frame.operation for frame in table.frames} <= self._operations.keys():
            raise self._packs.damaged(
                f"the chunk table at {place.offset} of {self._packs.key(place.operation, place.pack)} "
                "names an operation that its manifest does not"
            )
        return table

    def uses(self, segment: BaseSegment) -> Mapping[Pack, int]:
        """The plain bytes that a segment needs of each pack."""
        place = segment.row.location
        uses: dict[Pack, int] = {(place.operation, place.pack): place.raw}
        if segment.row.kind == KIND_CHUNK_TABLE:
            for (operation, number), size in self.table(segment).plain_bytes_by_pack(segment.lengths).items():
                pack = (self._operations[operation], number)
                uses[pack] = uses.get(pack, 0) + size
        return uses

    def account(self) -> PackAccount:
        """The account of its packs: its manifest's own, or one made from all chunk tables when that makes no sense."""
        account = PackAccount.parse(self.content.manifest.properties)
        if account is not None and self._is_plausible(account):
            return account
        account = PackAccount()
        self.fetch_tables(self.segments)
        for segment in self.segments:
            account.needed(self.uses(segment))
        account.assume_full()
        return account

    def _is_plausible(self, account: PackAccount) -> bool:
        rooted = {(place.operation, place.pack) for place in self._by_location}
        manifest = self.content.manifest
        return rooted <= set(account.packs) and account.operations | {manifest.operation_id} == set(manifest.operations)
