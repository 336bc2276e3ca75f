"""Reading JSON documents of the store: every key is checked for presence, type and range before it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from snapshot_assets.errors import DocumentDamaged, UnsupportedFormatVersion
from snapshot_assets.ids import ulid_to_bytes

__all__ = ["FORMAT_VERSION", "MAX_COUNT", "Document", "dump_document", "parse_document"]

FORMAT_VERSION: Final = 1
"""The version of the store format that this package writes, and the newest that it reads."""

MAX_COUNT: Final = 2**63 - 1
"""No number of the format is larger: sizes, counters and times all fit a signed 64-bit integer."""


class Document:
    """One JSON object and the name under which errors speak of it.

    Every reader takes a key, removes it from `rest`, and raises `DocumentDamaged` when the key is missing, of another
    type, or out of range. What is left in `rest` at the end are the keys that this version does not know.
    """

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.where = where
        self.rest: dict[str, Any] = dict(content)

    def damaged(self, what: str) -> DocumentDamaged:
        """The error for this document; the caller raises it."""
        return DocumentDamaged(f"{self.where}: {what}")

    def take(self, key: str) -> Any:
        """The raw value of a key that must be there."""
        try:
            return self.rest.pop(key)
        except KeyError:
            raise self.damaged(f"{key!r} is missing") from None

    def text(self, key: str) -> str:
        """A string."""
        value = self.take(key)
        if not isinstance(value, str):
            raise self.damaged(f"{key!r} is not a string")
        return value

    def optional_text(self, key: str) -> str | None:
        """A string, or null."""
        value = self.take(key)
        if value is not None and not isinstance(value, str):
            raise self.damaged(f"{key!r} is neither a string nor null")
        return value

    def ulid(self, key: str) -> str:
        """A ULID in its canonical form; it names folders and keys, so nothing else may stand there."""
        value = self.text(key)
        try:
            ulid_to_bytes(value)
        except DocumentDamaged as error:
            raise self.damaged(f"{key!r}: {error.message}") from None
        return value

    def count(self, key: str, at_most: int = MAX_COUNT) -> int:
        """A whole number from 0 to `at_most`."""
        value = self.take(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= at_most:
            raise self.damaged(f"{key!r} is not a whole number from 0 to {at_most}")
        return value

    def optional_count(self, key: str, at_most: int = MAX_COUNT) -> int | None:
        """A whole number from 0 to `at_most`, or null."""
        if self.rest.get(key, 0) is None:
            del self.rest[key]
            return None
        return self.count(key, at_most)

    def flag(self, key: str) -> bool:
        """A boolean."""
        value = self.take(key)
        if not isinstance(value, bool):
            raise self.damaged(f"{key!r} is neither true nor false")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """A JSON object, as it is."""
        value = self.take(key)
        if not isinstance(value, dict):
            raise self.damaged(f"{key!r} is not an object")
        return value

    def items(self, key: str) -> list[Any]:
        """A JSON array, as it is."""
        value = self.take(key)
        if not isinstance(value, list):
            raise self.damaged(f"{key!r} is not a list")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """An array of strings."""
        values = self.items(key)
        if not all(isinstance(value, str) for value in values):
            raise self.damaged(f"{key!r} holds something that is not a string")
        return tuple(values)

    def counts(self, key: str) -> tuple[int, ...]:
        """An array of whole numbers."""
        values = self.items(key)
        if not all(
            isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT for value in values
        ):
            raise self.damaged(f"{key!r} holds something that is not a whole number")
        return tuple(values)

    def documents(self, key: str) -> list[Document]:
        """An array of objects, each as a document of its own."""
        return [self._inner(value, f"{key}[{position}]") for position, value in enumerate(self.items(key))]

    def named_documents(self, key: str) -> dict[str, Document]:
        """An object of objects, each as a document of its own."""
        return {name: self._inner(value, f"{key}.{name}") for name, value in self.mapping(key).items()}

    def document(self, key: str) -> Document:
        """An object as a document of its own."""
        return self._inner(self.take(key), key)

    def _inner(self, value: object, place: str) -> Document:
        if not isinstance(value, dict):
            raise self.damaged(f"{place!r} is not an object")
        return Document(value, f"{self.where}: {place}")


def parse_document(data: bytes, where: str) -> Document:
    """Parse the bytes of one document; its format version is checked before anything else is looked at.

    Raises:
        UnsupportedFormatVersion: a newer version of this package wrote it.
        DocumentDamaged: it is not a JSON object with a format version.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DocumentDamaged(f"{where} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DocumentDamaged(f"{where} is not a JSON object")
    document = Document(content, where)
    version = document.count("format_version")
    if version > FORMAT_VERSION:
        raise UnsupportedFormatVersion(
            f"{where} has format version {version}; this snapshot-assets reads up to {FORMAT_VERSION}"
        )
    if version < 1:
        raise document.damaged("format version 0 was never written")
    return document


def dump_document(content: Mapping[str, Any]) -> bytes:
    """The bytes of a document: UTF-8 JSON with sorted keys and this package's format version."""
    versioned = {**content, "format_version": FORMAT_VERSION}
    return json.dumps(versioned, sort_keys=True, ensure_ascii=False, indent=1).encode()
