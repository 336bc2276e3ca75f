"""Keys and ranges: the rules that all backends share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from snapshot_assets.errors import ConfigurationError, DocumentDamaged

__all__ = ["MAX_GAP_BYTES", "check_key", "check_prefix", "check_ranges", "check_size", "coalesce"]

MAX_GAP_BYTES: Final = 1024 * 1024
"""Ranges of one object that lie no further apart are read with one request."""

_MAX_KEY_BYTES: Final = 700
_MAX_PART_BYTES: Final = 255


def check_key(key: str) -> str:
    """Return the key if every backend can store it; nothing is touched otherwise.

    Raises:
        ConfigurationError: it is empty, absolute or too long, or has a part that is empty, hidden or leads upwards.
    """
    parts = key.split("/")
    if (
        any(not part or part[0] == "." or len(part.encode(errors="replace")) > _MAX_PART_BYTES for part in parts)
        or any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 or character in "\\\x7f" for character in key)
        or len(key.encode()) > _MAX_KEY_BYTES
    ):
        raise ConfigurationError(
            f"{key!r} is not a key that a store can hold",
            hint="Keys are relative, with non-empty parts that do not begin with a dot, and at most 700 bytes.",
        )
    return key


def check_prefix(prefix: str) -> str:
    """Return the prefix if it is empty or a folder with its slash.

    Raises:
        ConfigurationError: it is not.
    """
    if prefix:
        if not prefix.endswith("/"):
            raise ConfigurationError(f"the prefix {prefix!r} does not end in a slash")
        check_key(prefix[:-1])
    return prefix


def check_size(key: str, size: int, limit: int) -> None:
    """Refuse an object that is larger than its reader allows.

    Raises:
        DocumentDamaged: it is.
    """
    if size > limit:
        raise DocumentDamaged(f"{key} has {size:,} bytes; the limit is {limit:,}")


def check_ranges(key: str, ranges: Sequence[tuple[int, int]], size: int) -> None:
    """Refuse (offset, length) ranges that an object of the size does not have.

    Raises:
        DocumentDamaged: one of them reaches beyond the end.
    """
    for offset, length in ranges:
        if offset + length > size:
            raise DocumentDamaged(f"{key} ends at byte {size:,}; {length:,} bytes at {offset:,} were asked for")


def coalesce(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, list[int]]]:
    """Join (offset, length) ranges whose gaps are small: the joint offset and end, and the positions joined in it."""
    start = end = 0
    members: list[int] = []
    for position in sorted(range(len(ranges)), key=lambda index: ranges[index]):
        offset, length = ranges[position]
        if members and offset > end + MAX_GAP_BYTES:
            yield start, end, members
            members = []
        if not members:
            start = end = offset
        members.append(position)
        end = max(end, offset + length)
    if members:
        yield start, end, members
