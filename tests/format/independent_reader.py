"""A second reader of the store format, written from the format's description alone.

It shares no code with the package, so whatever it restores is what the description says and not what one
implementation happens to do. It reads a store in a local folder, where every key is a plain file below the root, and
takes nothing on trust: every digest that the format names is computed and compared.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import zstandard
from blake3 import blake3

Row = dict[str, Any]

MIB = 1 << 20
VERSION = 1
KIND_OF_LAYOUT = {"blocks": 0, "whole": 1}
RAW, ZSTD = 0, 1
MAX_FRAME, MAX_CHUNK_TABLE, MAX_WHOLE_SEGMENT = MIB, 4 * MIB, 8 * MIB
ULID_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

INDEX_COLUMNS = (
    "file:uint32 plain_bytes:uint64 digest:fixed_size_binary[32] kind:uint8"
    " operation:uint16 pack:uint16 offset:uint64 stored:uint32 raw:uint32 codec:uint8"
)
CHUNK_COLUMNS = (
    "digest:fixed_size_binary[16] operation:fixed_size_binary[16] pack:uint16"
    " frame_offset:uint64 frame_stored:uint32 frame_raw:uint32 codec:uint8 offset_in_frame:uint32"
)


class FormatError(Exception):
    """The store does not hold what the format promises."""


def restore(root: Path, dataset: str, snapshot_id: int | None, target: Path) -> list[Path]:
    """Write the files of a listed snapshot (`None`: the current one) below `target`; their paths in manifest order.

    Raises:
        FormatError: something is not as the format has it; what was written so far is not to be used.
    """
    need(re.fullmatch("[a-z][a-z0-9_]{0,62}", dataset) is not None, f"{dataset!r} is no dataset name")
    document((root / "store.json").read_bytes(), "store.json")
    head = document((root / "heads" / f"{dataset}.json").read_bytes(), "head")
    need(head["dataset"] == dataset and head["status"] in ("active", "sealed"), f"{dataset} is not there to be read")
    wanted = head["current_snapshot_id"] if snapshot_id is None else snapshot_id
    listed: list[Row] = [entry for entry in head["snapshots"] if entry["snapshot_id"] == wanted]
    need(len(listed) == 1, f"snapshot {wanted} is listed {len(listed)} times")
    entry = listed[0]

    data = root / "data" / dataset / head["incarnation"]
    written = (data / entry["operation_id"] / "manifest.json").read_bytes()
    need(named(blake3(written)) == entry["manifest_digest"], "the manifest has another digest")
    manifest = document(written, "manifest")
    for key, value in (head | entry).items():
        if key in ("dataset", "incarnation", "engine", "operation_id", "content_digest"):
            need(manifest[key] == value, f"the manifest's {key} is not the head's")
    need(content_digest(manifest) == manifest["content_digest"], "the snapshot has another content digest")
    files, operations = manifest["files"], manifest["operations"]
    check_paths([file["path"] for file in files])

    index = (data / entry["operation_id"] / "index.arrow").read_bytes()
    need(named(blake3(index)) == manifest["index_digest"], "the index has another digest")
    segments = rows_of(pa.ipc.open_file, index, INDEX_COLUMNS)
    numbers = [row["file"] for row in segments]
    need(numbers == sorted(numbers) and max(numbers, default=-1) < len(files), "the segments are not in file order")

    restored = []
    for number, file in enumerate(files):
        path = target / file["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as out:
            for piece in plain_pieces(data, operations, file, [row for row in segments if row["file"] == number]):
                out.write(piece)
        path.chmod(file["mode"])
        restored.append(path)
    return restored


def plain_pieces(data: Path, operations: list[str], file: Row, segments: list[Row]) -> Iterator[bytes]:
    """The plain bytes of one file in order; raises on the first digest or length that differs."""
    name, blocks = file["path"], file["layout"] == "blocks"
    need(list(segment_sizes(file)) == [row["plain_bytes"] for row in segments], f"{name}: segments of other lengths")
    whole_file = blake3(file["size"].to_bytes(8, "little"))
    for position, row in enumerate(segments):
        need(row["kind"] == KIND_OF_LAYOUT[file["layout"]], f"{name}: the kind is not the layout's")
        need(row["operation"] < len(operations), f"{name}: a segment lies in an operation that is not listed")
        location = (row["offset"], row["stored"], row["raw"], row["codec"])
        limit = MAX_CHUNK_TABLE if blocks else MAX_WHOLE_SEGMENT
        stored = frame(data, operations[row["operation"]], row["pack"], location, limit)
        segment = blake3()
        for piece in chunks(data, operations, file, position, row["plain_bytes"], stored) if blocks else [stored]:
            segment.update(piece)
            yield piece
        need(segment.digest() == row["digest"], f"{name}: segment {position} has another digest")
        whole_file.update(row["digest"])
    need(named(whole_file) == file["content_digest"], f"{name}: it has another content digest")


def chunks(data: Path, operations: list[str], file: Row, segment: int, plain: int, table: bytes) -> Iterator[bytes]:
    """The chunks of one segment of `plain` bytes, each against its digest."""
    name, by_ulid = file["path"], {ulid_bytes(operation): operation for operation in operations}
    header = [file["header_bytes"]] if segment == 0 and file["header_bytes"] else []
    sizes = list(cut(plain, chain(header, repeat(file["chunk_bytes"]))))
    rows = rows_of(pa.ipc.open_stream, table, CHUNK_COLUMNS)
    need(len(rows) == len(sizes), f"{name}: segment {segment} has {len(rows)} chunks, not {len(sizes)}")
    place, opened = None, b""
    for row, size in zip(rows, sizes, strict=True):
        need(row["operation"] in by_ulid, f"{name}: a chunk lies in an operation that is not listed")
        location = (row["frame_offset"], row["frame_stored"], row["frame_raw"], row["codec"])
        if place != (row["operation"], row["pack"], location):
            place = (row["operation"], row["pack"], location)
            opened = frame(data, by_ulid[row["operation"]], row["pack"], location, MAX_FRAME)
        piece = opened[row["offset_in_frame"] : row["offset_in_frame"] + size]
        need(len(piece) == size, f"{name}: a chunk ends after its frame")
        need(blake3(piece).digest()[:16] == row["digest"], f"{name}: a chunk has another digest")
        yield piece


def frame(data: Path, operation: str, pack: int, location: tuple[int, int, int, int], limit: int) -> bytes:
    """The plain bytes of one frame, at most `limit`."""
    offset, stored, raw, codec = location
    need(codec in (RAW, ZSTD) and stored <= raw <= limit, f"a frame of {stored} to {raw} bytes, codec {codec}")
    path = data / operation / f"{pack:04d}.pack"
    need(path.is_file() and offset + stored <= path.stat().st_size, f"{path} does not hold its frame")
    with path.open("rb") as packed:
        packed.seek(offset)
        found = packed.read(stored)
    if codec == ZSTD:
        try:
            found = zstandard.ZstdDecompressor().stream_reader(found).read(raw + 1)
        except zstandard.ZstdError as broken:
            raise FormatError(f"{path}: a frame can not be decompressed") from broken
    need(len(found) == raw, f"{path}: a frame has another plain length")
    return found


def segment_sizes(file: Row) -> Iterator[int]:
    """`blocks`: 16 MiB of chunks each, the first with the header before them. `whole`: 8 MiB each."""
    if file["layout"] == "whole":
        return cut(file["size"], repeat(MAX_WHOLE_SEGMENT))
    full = 16 * MIB // file["chunk_bytes"] * file["chunk_bytes"]
    return cut(file["size"], chain([file["header_bytes"] + full], repeat(full)))


def cut(total: int, sizes: Iterable[int]) -> Iterator[int]:
    """`total` cut into `sizes`, the last piece as short as need be."""
    for size in sizes:
        if total <= 0:
            return
        yield min(size, total)
        total -= size


def content_digest(manifest: Row) -> str:
    """The digest of a snapshot's files and of its tables' columns."""
    digest = blake3()
    for file in sorted(manifest["files"], key=lambda file: str(file["path"])):
        digest.update(f"{file['path']}\0{file['size']}\0{file['content_digest'].removeprefix('blake3:')}\n".encode())
    for table in sorted(manifest["tables"]):
        message = base64.b64decode(manifest["tables"][table]["arrow"], validate=True)
        for column in pa.ipc.read_schema(pa.py_buffer(message)):
            digest.update(f"{table}\0{column.name}\0{column.type}\0{column.nullable:d}\n".encode())
    return named(digest)


def check_paths(paths: list[str]) -> None:
    """Refuse whatever could leave the target or collide in it."""
    for path in paths:
        need(not {"", ".", ".."} & set(path.split("/")), f"{path!r} is no plain relative path")
        need("\\" not in path and "\0" not in path, f"{path!r} holds a backslash or NUL")
    need(len({path.casefold() for path in paths}) == len(paths), "two files have one path")


def rows_of(opened: Callable[[pa.BufferReader], Any], data: bytes, columns: str) -> list[Row]:
    """All rows of an Arrow file or stream that has exactly these columns."""
    try:
        table = opened(pa.BufferReader(data)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, MemoryError) as broken:
        raise FormatError("an index or chunk table is not what Arrow wrote") from broken
    found = [f"{column.name}:{column.type}" for column in table.schema]
    need(found == columns.split(), f"an index or chunk table has the columns {found}")
    rows: list[Row] = table.to_pylist()
    return rows


def document(data: bytes, name: str) -> Row:
    """A JSON document of the version that this reader knows."""
    parsed: Row = json.loads(data)
    need(parsed["format_version"] == VERSION, f"{name}: format version {parsed['format_version']} is not known here")
    return parsed


def ulid_bytes(text: str) -> bytes:
    """The 128 bits of a ULID, most significant byte first."""
    number = 0
    for digit in text:
        number = number * 32 + ULID_DIGITS.index(digit)
    return number.to_bytes(16, "big")


def named(digest: blake3) -> str:
    """A digest as documents write it."""
    return f"blake3:{digest.hexdigest()}"


def need(held: bool, otherwise: str) -> None:
    """Raise unless a promise of the format held."""
    if not held:
        raise FormatError(otherwise)
