"""Real documents, and what becomes of them in the hands of chance."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from snapshot_assets.content.frames import decode_frame
from snapshot_assets.content.index import KIND_CHUNK_TABLE, ChunkTable, RootIndex
from snapshot_assets.content.segments import chunk_lengths, segment_lengths
from snapshot_assets.engines.cayenne.slice_document import read_document
from snapshot_assets.ids import new_ulid
from snapshot_assets.model.announcement import Announcement
from snapshot_assets.model.audit import AuditRow
from snapshot_assets.model.head import Head
from snapshot_assets.model.lease import WriterLease
from snapshot_assets.model.manifest import Manifest
from snapshot_assets.model.sidecar import Sidecar
from snapshot_assets.reader.local_copy import LocalCopy, LocalState
from snapshot_assets.sensors.cursor import HeadCursor
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.store.snapshot_store import SnapshotStore

FIXTURE: Final = Path(__file__).parent / "fixtures" / "version_1"

HOSTILE: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**40, 0.5, -0.0, 1e308),
    *("", "a", "x" * 100_000, "../../outside", "/etc/outside", "..\\outside", "c:outside", "a/../../outside", "\0"),
    *("\ud800", "ﬁle", "01JD0000000000000000000000", "blake3:" + "0" * 64, "blake3:", "9" * 5_000, "[" * 1_000),
    *([], [[]], {}, {"": {}}, [None] * 1_000, ["../outside"], {"../outside": {}}),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A real document and its parser."""

    name: str
    data: bytes
    parse: Callable[[bytes], object]


def samples() -> Iterator[Sample]:
    """One of each kind that the format knows, out of the fixture."""
    store = FIXTURE / "store"
    parsers: dict[str, Callable[[bytes], object]] = {
        "heads/sqlite_orders.json": lambda data: Head.parse(data, "sqlite_orders"),
        "leases/sqlite_orders.json": lambda data: WriterLease.parse(data, "sqlite_orders"),
        "recovery/*/*.json": lambda data: Sidecar.parse(data, "the sidecar"),
        "audit/sqlite_orders/*.json": lambda data: AuditRow.parse(data, "the audit row"),
        "readers/*.json": lambda data: Announcement.parse(data, "the announcement"),
        "data/lance_orders/*/*/manifest.json": lambda data: Manifest.parse(data, "the manifest"),
        "store.json": _parse_store,
    }
    for pattern, parse in parsers.items():
        yield Sample(pattern.split("/")[0], min(store.glob(pattern)).read_bytes(), parse)
    yield Sample("state", (FIXTURE / "data/sqlite_orders/state.json").read_bytes(), _parse_state)
    yield Sample("slice", _slice(), read_document)
    cursor = HeadCursor(["orders", "planes"])
    yield Sample("cursor", cursor.to_text().encode(), _parse_cursor)
    manifest, index = _index_of("sqlite_orders")
    yield Sample("root", index, lambda data: RootIndex.parse(data, manifest))
    table, lengths = _chunk_table(manifest, index)
    yield Sample("chunks", table, lambda data: ChunkTable.parse(data, lengths))


def local_copy() -> tuple[str, bytes]:
    """The name of the fixture's local copy, and its `snapshot.json`."""
    [path] = FIXTURE.glob("data/sqlite_orders/*/snapshot.json")
    return path.parent.name, path.read_bytes()


def read_local_copy(folder: Path, name: str, data: bytes) -> LocalCopy:
    """Read a local copy whose description holds the data."""
    copy = folder / name
    copy.mkdir(exist_ok=True)
    (copy / "ready").touch()
    (copy / "snapshot.json").write_bytes(data)
    return LocalCopy.read(copy)


def changed_bytes(data: bytes, chance: random.Random) -> bytes:
    """The data with a few bytes flipped, lost, doubled, moved or made up."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.randrange(len(made) + 1)
        length = chance.choice((1, 1, 4, 8, 64, 1_000))
        match chance.randrange(6):
            case 0 if at < len(made):
                made[at] ^= 1 << chance.randrange(8)
            case 1:
                del made[at : at + length]
            case 2:
                made[at:at] = made[at : at + length]
            case 3:
                made[at:at] = chance.randbytes(length)
            case 4:
                made[at : at + length] = chance.choice((b"\xff", b"\0", b"\x7f")) * min(length, len(made) - at)
            case _:
                del made[at:]
    return bytes(made)


def changed_document(data: bytes, chance: random.Random) -> bytes:
    """The JSON with a few values replaced by hostile ones, removed, doubled, or under other names."""
    content = json.loads(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        places = list(_places(content))
        if not places:
            break
        owner, key = chance.choice(places)
        match chance.randrange(5):
            case 0:
                del owner[key]
            case 1 if isinstance(owner, list):
                owner.append(owner[key])
            case 2 if isinstance(owner, dict):
                owner[str(chance.choice(HOSTILE))[:200]] = owner[key]
            case _:
                owner[key] = copy.deepcopy(chance.choice(HOSTILE))
    text = json.dumps(content)
    if chance.random() < 0.1:
        text = text.replace("0", chance.choice(("NaN", "1e999", "00", "0" * 10_000)), 1)
    return text.encode(errors="surrogatepass")


def changed(sample: Sample, chance: random.Random) -> bytes:
    """The document of a sample, changed in its bytes or, where it is JSON, in its structure."""
    if sample.data[:1] == b"{" and chance.random() < 0.6:
        return changed_document(sample.data, chance)
    return changed_bytes(sample.data, chance)


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from _places(content[key])


def _parse_store(data: bytes) -> object:
    objects = MemoryStore(new_ulid())
    objects.write_if_absent("store.json", data)
    return SnapshotStore(objects, read_only=True).store_id


def _parse_cursor(data: bytes) -> object:
    return HeadCursor(["orders", "planes"], data.decode("latin-1")).to_text()


def _parse_state(data: bytes) -> object:
    return LocalState.parse(data, "state.json")


def _slice() -> bytes:
    return (Path(__file__).parents[1] / "engines/cayenne/fixtures/version_2.slice.json").read_bytes()


def _index_of(dataset: str) -> tuple[Manifest, bytes]:
    path = min((FIXTURE / "store/data" / dataset).glob("*/*/manifest.json"))
    return Manifest.parse(path.read_bytes(), "the manifest"), (path.parent / "index.arrow").read_bytes()


def _chunk_table(manifest: Manifest, index: bytes) -> tuple[bytes, list[int]]:
    row = RootIndex.parse(index, manifest).rows[0]
    assert row.kind == KIND_CHUNK_TABLE
    place = row.location
    pack = FIXTURE / "store/data" / manifest.dataset / manifest.incarnation / place.operation / f"{place.pack:04d}.pack"
    stored = pack.read_bytes()[place.offset : place.offset + place.stored]
    layout = manifest.files[0].layout
    assert next(iter(segment_lengths(manifest.files[0].size, layout))) == row.plain_bytes
    return bytes(decode_frame(stored, place.raw, place.codec)), list(chunk_lengths(row.plain_bytes, layout, first=True))
