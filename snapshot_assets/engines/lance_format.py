"""What a reader's library must know to open a version of a Lance dataset, as a manifest's `storage_version` says it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Final

import lance
import pyarrow as pa

from snapshot_assets.engines.lance_live import LANCE_ERRORS

__all__ = ["storage_version", "why_unreadable"]

# Fields of the `Manifest` message in Lance's table format.
_READER_FLAGS: Final = 9
_WRITER_FLAGS: Final = 10
_DATA_FORMAT: Final = 15

_VARINT, _BYTES = 0, 2
_FIXED: Final = {1: 8, 5: 4}
_TEXT: Final = re.compile(r"(?P<version>\d+\.\d+)(?: flags (?P<reader>\d+)/(?P<writer>\d+))?")


def storage_version(source: lance.LanceDataset) -> str:
    """The data storage version and, if there are any, the feature flags for readers and writers: ``2.2 flags 1/1``.

    Files may be newer than what the dataset writes by default; then theirs is the version.
    """
    flags = {_READER_FLAGS: 0, _WRITER_FLAGS: 0}
    for field, value in _numbers(source._ds.serialized_manifest()):  # noqa: SLF001 - pickling reads it there too
        if field in flags:
            flags[field] = value
    text = f" flags {flags[_READER_FLAGS]}/{flags[_WRITER_FLAGS]}" if any(flags.values()) else ""
    versions = {
        (file.file_major_version, file.file_minor_version)
        for fragment in source.get_fragments()
        for file in fragment.data_files()
    }
    major, minor = map(int, source.data_storage_version.split("."))
    return "{}.{}".format(*max({(major, minor), *versions} if major > 1 else {(major, minor)})) + text


@cache
def why_unreadable(version: str) -> str | None:
    """What the library says against opening a dataset of this storage version; nothing, when it opens it.

    It is asked with an empty dataset that has the same version and flags. A text of another form is not judged.
    """
    match = _TEXT.fullmatch(version)
    if match is None:
        return None
    empty = lance.write_dataset(pa.table({"column": pa.array([], pa.int64())}), "memory://snapshot-assets")
    data_format = _text_field(1, "lance") + _text_field(2, match["version"])
    manifest = (
        empty._ds.serialized_manifest()  # noqa: SLF001 - of a field that stands there twice, the last one holds
        + _number_field(_READER_FLAGS, int(match["reader"] or 0))
        + _number_field(_WRITER_FLAGS, int(match["writer"] or 0))
        + _bytes_field(_DATA_FORMAT, data_format)
    )
    try:
        lance.LanceDataset(empty.uri, serialized_manifest=manifest, session=empty.session())
    except LANCE_ERRORS as error:
        return str(error)
    return None


def _numbers(message: bytes) -> Iterator[tuple[int, int]]:
    """The numbers in a Protocol Buffers message, by field; what it nests is passed over."""
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        kind = key & 7
        if kind in _FIXED:
            position += _FIXED[kind]
            continue
        value, position = _read_varint(message, position)
        if kind == _VARINT:
            yield key >> 3, value
        else:
            position += value


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _varint(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def _number_field(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _bytes_field(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _text_field(field: int, value: str) -> bytes:
    return _bytes_field(field, value.encode())
