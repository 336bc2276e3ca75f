"""What every store promises. `snapshot_assets.testing.StoreContract` is the same text as tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

__all__ = ["MAX_DOCUMENT_BYTES", "Listed", "Store", "Versioned"]

MAX_DOCUMENT_BYTES: Final = 64 * 1024 * 1024
"""No document of the format is larger; a larger object is refused before memory is taken for it."""


@dataclass(frozen=True, slots=True)
class Versioned:
    """The bytes of an object and the token of the version that they are."""

    data: bytes
    token: str


@dataclass(frozen=True, slots=True)
class Listed:
    """One object of a listing. `last_modified_ms` is the store's own time, not this machine's."""

    key: str
    size: int
    token: str
    last_modified_ms: int


class Store(Protocol):
    """Keys and bytes, with conditional writes that hold.

    Keys are relative to the store's root, POSIX, without a leading slash. Tokens are opaque; two tokens of one key are
    equal exactly when the bytes are of the same write, or, in an object store whose entity tags derive from the
    content, of writes of equal bytes: a document that is compared by token holds something unique to each version.
    `list` gives the same tokens as `read`. Every method may raise `StoreUnavailable`, after which a write may or may
    not have happened, and `AccessDenied`. Safe to call from several threads.
    """

    @property
    def url(self) -> str:
        """The root, as a URL, without credentials."""

    def read(self, key: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned:
        """The whole object.

        Raises:
            NotFound: there is none.
            DocumentDamaged: it is larger than `limit` bytes; nothing beyond its size was read.
        """

    def read_if_changed(self, key: str, token: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned | None:
        """The whole object, or nothing when its token is still `token`. One request either way.

        Raises:
            NotFound: there is none.
            DocumentDamaged: it is larger than `limit` bytes.
        """

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """The bytes of each (offset, length), in the order asked for; gaps of up to 1 MiB are read through.

        The views are of bytes that do not change, and may share memory, which is free when the last of them is gone:
        whoever keeps one for long copies it.

        Raises:
            NotFound: there is no such object.
            DocumentDamaged: the object ends before a range does. Never short data.
        """

    def write_if_absent(self, key: str, data: bytes) -> str:
        """Create the object; of N claimants exactly one wins, and its content is complete when the name appears.

        Returns:
            The token of what was written.

        Raises:
            Conflict: the key exists; what is there was left as it is.
        """

    def write_if_match(self, key: str, data: bytes, token: str) -> str:
        """Replace the object if its token is still `token`; never a silent overwrite.

        Returns:
            The token of what was written.

        Raises:
            Conflict: the object is another version, or gone.
        """

    def upload(self, key: str, source: bytes | bytearray | memoryview | Path) -> None:
        """Create a large object from memory or a file, if absent; a failure leaves neither it nor a part of it behind.

        What is too large for one request goes up in parallel parts.

        Raises:
            Conflict: the key exists; what is there was left as it is.
        """

    def list(self, prefix: str) -> Iterator[Listed]:
        """Every object whose key begins with `prefix`, in any order. `prefix` is empty or ends in a slash."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; a missing one is success."""
