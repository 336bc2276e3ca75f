"""The second pass over staged files: what the base does not hold is cut, compressed, and uploaded in packs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from snapshot_assets.content.account import PACKS_PROPERTY, Pack, PackAccount
from snapshot_assets.content.base import Base, BaseSegment, ReuseKey
from snapshot_assets.content.frames import encode_frame
from snapshot_assets.content.index import (
    KIND_CHUNK_TABLE,
    KIND_SEGMENT,
    ChunkTable,
    Frame,
    Location,
    RootIndex,
    SegmentRow,
)
from snapshot_assets.content.packs import PackUploads
from snapshot_assets.content.prepare import NewSegment, PreparedSegment, Preparer
from snapshot_assets.content.rewriting import NOTHING_GIVEN_UP, GivenUp, choose_packs
from snapshot_assets.content.segments import HashedFile, in_order, segment_lengths
from snapshot_assets.content.tables import TableFolder
from snapshot_assets.errors import ConfigurationError, IncarnationChanged
from snapshot_assets.ids import OperationId, ulid_to_bytes
from snapshot_assets.model.manifest import pack_key
from snapshot_assets.store.contract import MAX_DOCUMENT_BYTES, Store

__all__ = ["Stored", "store_content"]

_THREADS: Final = 2
_BATCH_BYTES: Final = 8 * 1024 * 1024
_BATCH_SEGMENTS: Final = 256


@dataclass(frozen=True, slots=True)
class Stored:
    """What a publish stored, and what its manifest has to say of it.

    `index` is the root, not uploaded yet; `operations` and `properties` belong into the manifest; `pack_sizes` are the
    bytes of each pack that was uploaded, by its key.
    """

    index: bytes
    operations: tuple[OperationId, ...]
    pack_sizes: Mapping[str, int]
    properties: Mapping[str, Any]


def store_content(
    objects: Store,
    files: Sequence[HashedFile],
    *,
    dataset: str,
    incarnation: str,
    operation_id: str,
    base: Base | None = None,
    on_pack: Callable[[], None] | None = None,
    cache: Path | None = None,
) -> Stored:
    """Upload the packs of a new snapshot: what the base does not hold, and what is taken out of old packs.

    The same files on the same base give the same packs, whatever the threads do. Memory is bounded by 300 MiB whatever
    the size of the files. Index and manifest are left to the caller; a failure leaves packs behind, which belong to the
    operation and to nobody else.

    Args:
        objects: the store.
        files: the staged files, hashed.
        dataset: whose snapshot it is.
        incarnation: in which life of the dataset.
        operation_id: under whose name the packs lie.
        base: the snapshot whose stored bytes may be reused.
        on_pack: called after each upload of a pack.
        cache: the folder that the next publish's `Base` reads chunk tables from; this dataset's alone.

    Raises:
        CorruptCapture: a staged file changed after it was hashed.
        IncarnationChanged: the base is of another life of the dataset.
        SnapshotDamaged: chunk tables of the base are missing or damaged; without the base it would work.
        ConfigurationError: the snapshot is beyond what the format can hold.
        StoreError: an upload failed.
    """
    operation = OperationId(operation_id)
    account = PackAccount()
    plan = _Plan(files, base, NOTHING_GIVEN_UP)
    released: list[BaseSegment] = []
    if base is not None:
        described = base.content.manifest
        if (described.dataset, described.incarnation) != (dataset, incarnation):
            raise IncarnationChanged(
                f"the base belongs to {described.dataset} {described.incarnation}, not to {dataset} {incarnation}",
                dataset=dataset,
            )
        account = base.account()
        given_up = choose_packs(base, account, plan.reused, sum(file.staged.size for file in files))
        if given_up.packs:
            plan = _Plan(files, base, given_up)
        released = [segment for segment in base.segments if segment.row.location not in plan.reused]
        base.fetch_tables([*released, *(new.base for new in plan.new if new.base is not None)])
    writer = _Writer(operation, account, None if cache is None else TableFolder(cache))
    preparer = Preparer(base, {(ulid_to_bytes(other), pack) for other, pack in plan.given_up.packs})
    with (
        PackUploads(objects, partial(pack_key, dataset, incarnation, operation), on_pack) as packs,
        ThreadPoolExecutor(_THREADS, thread_name_prefix="prepare") as pool,
        closing(in_order(pool, preparer.prepare, _batches(plan.new), ahead=_THREADS)) as batches,
    ):
        for batch in batches:
            for prepared in batch.segments:
                writer.write(prepared, packs)
            preparer.written(batch)
        packs.finish()
    if base is not None:
        for segment in released:
            account.released(base.uses(segment))
    rows = plan.rows(writer.rows)
    if cache is not None:
        # The base's stay too: until the caller has committed, it is what the next publish is based on.
        kept = [] if base is None else [segment.row.location for segment in base.segments]
        TableFolder(cache).keep_only([*kept, *(row.location for row in rows)])
    operations = (operation, *sorted(account.operations - {operation}))
    index = RootIndex(operations, rows).to_bytes()
    if len(index) > MAX_DOCUMENT_BYTES:
        raise ConfigurationError(
            f"the index would have {len(index)} bytes; the limit is {MAX_DOCUMENT_BYTES}", hint="Split the dataset."
        )
    return Stored(index, operations, packs.sizes, {PACKS_PROPERTY: account.to_json()})


class _Plan:
    """Which segments are stored, and which rows are taken from the base or from an equal new segment."""

    def __init__(self, files: Sequence[HashedFile], base: Base | None, given_up: GivenUp) -> None:
        self.given_up = given_up
        self.new: list[NewSegment] = []
        self.reused: set[Location] = set()
        self._rows: list[tuple[int, SegmentRow | int]] = []
        by_key: dict[ReuseKey, SegmentRow | int] = {}
        for number, file in enumerate(files):
            staged = file.staged
            offset = 0
            lengths = segment_lengths(staged.size, staged.layout)
            for position, (length, digest) in enumerate(zip(lengths, file.digests, strict=True)):
                key = ReuseKey.of(digest, staged.layout, first=position == 0)
                same = None if base is None else base.same(key)
                if key not in by_key and same is not None and same.row.location not in given_up.places:
                    by_key[key] = same.row
                    self.reused.add(same.row.location)
                elif key not in by_key:
                    by_key[key] = len(self.new)
                    # Equal, yet given up: all but what lies in the packs given up is referred to as before.
                    before = same or (None if base is None else base.at(staged.path, position))
                    self.new.append(NewSegment(number, staged, offset, length, digest, before))
                self._rows.append((number, by_key[key]))
                offset += length

    def rows(self, stored: Sequence[SegmentRow]) -> tuple[SegmentRow, ...]:
        """The root's rows, once the new segments are stored."""
        return tuple((stored[row] if isinstance(row, int) else row)._replace(file=number) for number, row in self._rows)


class _Writer:
    """Puts prepared segments into packs, in order, and keeps the account."""

    def __init__(self, operation: OperationId, account: PackAccount, cache: TableFolder | None) -> None:
        self._operation = operation
        self._operation_bytes = ulid_to_bytes(operation)
        self._account = account
        self._cache = cache
        self._operations = {ulid_to_bytes(other): other for other in (operation, *account.operations)}
        self.rows: list[SegmentRow] = []

    def write(self, prepared: PreparedSegment, packs: PackUploads) -> None:
        """Put the segment's frames and its chunk table into packs, and add its row."""
        frames = []
        for new in prepared.frames:
            pack, offset = packs.append(new.stored)
            self._account.stored((self._operation, pack), new.raw)
            frames.append(Frame(self._operation_bytes, pack, offset, len(new.stored), new.raw, new.codec))
        segment = prepared.segment
        if not prepared.places:
            [frame] = frames
            location = Location(self._operation, *frame[1:])
            self._account.needed({(self._operation, frame.pack): frame.raw})
            self.rows.append(SegmentRow(segment.file, segment.length, segment.digest, KIND_SEGMENT, location))
            return
        # New frames first, under their numbers; then those of the base, each once.
        distinct: dict[Frame | int, int] = {number: number for number in range(len(frames))}
        numbers = [distinct.setdefault(frame, len(distinct)) for frame, _ in prepared.places]
        frames += [frame for frame in distinct if not isinstance(frame, int)]
        table = ChunkTable(prepared.digests, frames, numbers, [offset for _, offset in prepared.places])
        location = self._write_table(table, packs)
        uses: dict[Pack, int] = {
            (self._operations[operation], pack): size
            for (operation, pack), size in table.plain_bytes_by_pack(segment.lengths).items()
        }
        self._account.needed(uses)
        self.rows.append(SegmentRow(segment.file, segment.length, segment.digest, KIND_CHUNK_TABLE, location))

    def _write_table(self, table: ChunkTable, packs: PackUploads) -> Location:
        plain = table.to_bytes()
        stored, codec = encode_frame(plain)
        pack, offset = packs.append(stored)
        location = Location(self._operation, pack, offset, len(stored), len(plain), codec)
        self._account.stored((self._operation, pack), len(plain))
        self._account.needed({(self._operation, pack): len(plain)})
        if self._cache is not None:
            self._cache.write(location, stored)
        return location


def _batches(segments: Iterable[NewSegment]) -> Iterator[list[NewSegment]]:
    """A few segments at a time, so that a small one costs little."""
    batch: list[NewSegment] = []
    total = 0
    for segment in segments:
        if batch and (total + segment.length > _BATCH_BYTES or len(batch) == _BATCH_SEGMENTS):
            yield batch
            batch, total = [], 0
        batch.append(segment)
        total += segment.length
    if batch:
        yield batch
