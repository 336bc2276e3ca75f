"""Donors: local copies whose bytes a restore may use instead of fetching them. What they hold is never trusted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from snapshot_assets.content.index import KIND_CHUNK_TABLE, Location, SegmentRow
from snapshot_assets.content.segments import chunk_lengths, read_into
from snapshot_assets.content.snapshot import Content
from snapshot_assets.content.tables import TableFolder

__all__ = ["Donor", "Donors", "Stretch", "read_stretch"]


@dataclass(frozen=True, slots=True)
class Donor:
    """A local copy: the folder of its files, what they should hold, and where its chunk tables are, if it kept them."""

    folder: Path
    content: Content
    index_folder: Path | None = None


class Stretch(NamedTuple):
    """Where bytes lie in a donor's file."""

    file: Path
    offset: int


class Donors:
    """Looks up what donors should hold, by the digests of whole segments and of chunks."""

    def __init__(self, donors: Sequence[Donor]) -> None:
        self._segments: dict[tuple[bytes, int], Stretch] = {}
        self._neighbours: dict[tuple[str, int], list[tuple[Donor, SegmentRow, Stretch]]] = {}
        self._tables = [TableFolder(donor.index_folder) for donor in donors if donor.index_folder is not None]
        for donor in donors:
            files = donor.content.manifest.files
            for row, position, offset in donor.content.index.placed():
                path = files[row.file].path
                stretch = Stretch(donor.folder / path, offset)
                self._segments.setdefault((row.digest, row.plain_bytes), stretch)
                if row.kind == KIND_CHUNK_TABLE and donor.index_folder is not None:
                    self._neighbours.setdefault((path, position), []).append((donor, row, stretch))

    def segment(self, digest: bytes, plain_bytes: int) -> Stretch | None:
        """Where a segment should lie."""
        return self._segments.get((digest, plain_bytes))

    def chunks(self, path: str, position: int) -> dict[tuple[bytes, int], Stretch]:
        """Where chunks should lie, by digest and length: those of the donors' segments at this position of a path."""
        found: dict[tuple[bytes, int], Stretch] = {}
        for donor, row, stretch in self._neighbours.get((path, position), ()):
            assert donor.index_folder is not None
            layout = donor.content.manifest.files[row.file].layout
            lengths = chunk_lengths(row.plain_bytes, layout, first=position == 0)
            table = TableFolder(donor.index_folder).load(row.location, lengths)
            if table is None:
                continue
            offset = stretch.offset
            for digest, length in zip(table.digests, lengths, strict=True):
                found.setdefault((digest, length), Stretch(stretch.file, offset))
                offset += length
        return found

    def give_table(self, place: Location, folder: TableFolder) -> bool:
        """Put a chunk table into another folder; tell whether a donor had it."""
        return any(folder.adopt(place, tables) for tables in self._tables)


def read_stretch(stretch: Stretch, target: memoryview) -> bool:
    """Fill `target` from a donor's file; false when it can not give that many bytes."""
    try:
        descriptor = os.open(stretch.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return read_into(descriptor, target, stretch.offset)
    except OSError:
        return False
    finally:
        os.close(descriptor)
