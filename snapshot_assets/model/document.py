"""Reading JSON documents of the store: every key is checked for presence, type and range before it is used."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from snapshot_assets.errors import (
    ConfigurationError,
    DocumentDamaged,
    SnapshotAssetsError,
    UnsupportedFormatVersion,
)
from snapshot_assets.ids import ulid_to_bytes

__all__ = ["FORMAT_VERSION", "MAX_COUNT", "Document", "checked", "dump_document", "parse_document"]

FORMAT_VERSION: Final = 1
"""The version of the store format that this package writes, and the newest that it reads."""

MAX_COUNT: Final = 2**63 - 1
"""No number of the format is larger: sizes, counters and times all fit a signed 64-bit integer."""

_NO_JSON: Final = (TypeError, ValueError, RecursionError)
_ESCAPED_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


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

    What JSON's grammar allows but no document can be written with is refused too: half a surrogate pair, and numbers
    that are not finite.

    Raises:
        UnsupportedFormatVersion: a newer version of this package wrote it.
        DocumentDamaged: it is not a JSON object with a format version.
    """
    try:
        text = data.decode()
        content = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
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
    """The bytes of a document: UTF-8 JSON with sorted keys and this package's format version.

    Raises:
        ConfigurationError: JSON has no form for a value: an object, a number that is not finite, half a surrogate pair.
    """
    versioned = {**content, "format_version": FORMAT_VERSION}
    try:
        return _encoded(versioned)
    except _NO_JSON as error:
        odd = ", ".join(repr(key) for key, value in versioned.items() if not _has_json({key: value}))
        raise ConfigurationError(f"{odd} can not be written as JSON: {error}") from error


def checked(data: bytes, parse: Callable[[bytes], object], limit: int, where: str) -> bytes:
    """Return the bytes of a document if they can be read again; call it before a document is sent to the store.

    Args:
        data: the document as it is about to be stored.
        parse: the reader of this kind of document.
        limit: how many bytes it reads at most.
        where: the key that the document gets; errors name it.

    Raises:
        ConfigurationError: the document is over the limit, or its reader refuses it.
    """
    if len(data) > limit:
        raise ConfigurationError(f"{where} would have {len(data):,} bytes; the limit is {limit:,}")
    try:
        parse(data)
    except SnapshotAssetsError as error:
        raise ConfigurationError(f"{where} could not be read again: {error.message}") from error
    return data


def _encoded(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False).encode()


def _has_json(content: object) -> bool:
    try:
        _encoded(content)
    except _NO_JSON:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is beyond what a number can be")
    return number
