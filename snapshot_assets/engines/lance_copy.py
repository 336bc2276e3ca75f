"""A copy of one version of a Lance dataset, staged or local: where it lies, what it holds, and whether it is whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import lance
import pyarrow as pa

from snapshot_assets.engines.lance_live import LANCE_ERRORS
from snapshot_assets.engines.tables import table_schema
from snapshot_assets.errors import CorruptCapture, ReadOnlyDataset, UnsupportedLiveDatabase
from snapshot_assets.model.manifest import TableContent

__all__ = [
    "SYSTEM_INDEX",
    "blob_columns",
    "content_of",
    "open_version",
    "read_all",
    "reading",
    "refuse_outside_blobs",
    "version_in",
]

_MANIFEST: Final = re.compile(r"(?P<folder>[^/]+)/_versions/(?P<number>\d+)\.manifest")
_NEWEST_FIRST: Final = 2**64 - 1
"""A manifest is named by its version, or, in datasets of today, by this minus its version: names count down."""

_BLOBS_AT_ONCE: Final = 1_024
_BLOB_BYTES: Final = 1024 * 1024
_OUTSIDE: Final = 3
"""The kind of a blob that is only referred to."""

_INDEX_CACHE_BYTES: Final = 256 * 1024 * 1024
SYSTEM_INDEX: Final = "__lance_"
"""What the names of indexes begin with that are Lance's own."""


def version_in(files: Sequence[str]) -> tuple[str, int]:
    """The dataset's folder in a copy and the version that the copy is of, as the one manifest among its files says.

    Raises:
        CorruptCapture: there is no manifest among them, or more than one.
    """
    found = [match for file in files if (match := _MANIFEST.fullmatch(file))]
    if len(found) != 1:
        raise CorruptCapture(f"a copy of this engine has one manifest, this one has {len(found)}")
    number = int(found[0]["number"])
    return found[0]["folder"], number if number < 2**63 else _NEWEST_FIRST - number


def open_version(folder: Path, files: Sequence[str], *, index_cache_bytes: int | None = None) -> lance.LanceDataset:
    """Open the version that the copy in `folder` is of, whatever else may lie there. Every commit to it is refused.

    Raises:
        CorruptCapture: there is no manifest among the files, or more than one.
    """
    name, version = version_in(files)
    return lance.dataset(
        str(folder / name), version=version, commit_lock=_refuse_commit, index_cache_size_bytes=index_cache_bytes
    )


def _refuse_commit(version: int) -> AbstractContextManager[None]:
    """What the library asks for a lock before any commit, whoever asks for that and in whichever way."""
    raise ReadOnlyDataset(f"a snapshot is read-only, version {version} can not be committed to it")


@contextmanager
def reading(folder: Path, files: Sequence[str]) -> Iterator[lance.LanceDataset]:
    """A copy, open; whatever Lance finds wrong with it is a `CorruptCapture`.

    Raises:
        CorruptCapture: a file is missing, or Lance does not read the copy.
    """
    for file in files:
        if not (folder / file).is_file():
            raise CorruptCapture(f"the copy in {folder} lacks the file {file}")
    try:
        yield open_version(folder, files, index_cache_bytes=_INDEX_CACHE_BYTES)
    except LANCE_ERRORS as error:
        raise CorruptCapture(f"Lance does not read the copy in {folder}: {error}") from error
    except BaseException as error:
        # A panic of the library, which Python code is not meant to catch with other errors; its class has no module.
        if type(error).__name__ != "PanicException":
            raise
        raise CorruptCapture(f"Lance does not read the copy in {folder}: {error}") from error


def content_of(source: lance.LanceDataset) -> TableContent:
    """Columns and row count. The columns are those that a scan gives: of a blob, where it lies and how long it is."""
    return TableContent(table_schema(source.scanner().projected_schema), source.count_rows())


def read_all(source: lance.LanceDataset) -> None:
    """Read every value of every column, blobs too, and load every index; the library raises what it finds wrong.

    It keeps no checksums: changed bytes that can still be decoded are not noticed.
    """
    for _batch in source.scanner().to_batches():
        pass
    for path in blob_columns(source):
        for first in range(0, source.count_rows(), _BLOBS_AT_ONCE):
            rows = range(first, min(first + _BLOBS_AT_ONCE, source.count_rows()))
            for blob in source.take_blobs(".".join(path), indices=rows):
                while blob is not None and blob.read(_BLOB_BYTES):
                    pass
    for index in source.describe_indices():
        if not index.name.startswith(SYSTEM_INDEX):
            source.prewarm_index(index.name)


def refuse_outside_blobs(source: lance.LanceDataset) -> None:
    """Refuse blobs that are only referred to, since nobody knows what a reader would find there, or when.

    Raises:
        UnsupportedLiveDatabase: the dataset has some.
    """
    for path, told in blob_columns(source).items():
        column = ".".join(path)
        if "kind" in told and source.count_rows(f"`{'`.`'.join(path)}`.kind = {_OUTSIDE}"):
            raise UnsupportedLiveDatabase(
                f"blobs in column {column} lie outside of the dataset",
                hint='Write them with external_blob_mode="ingest", so that the dataset holds them.',
            )


def blob_columns(source: lance.LanceDataset) -> dict[tuple[str, ...], set[str]]:
    """The columns of blobs, by the names that lead to them, and what a scan tells in place of each blob.

    They are the columns that a scan gives in another form than they have.
    """
    return dict(_blob_fields(source.schema, source.scanner().projected_schema, ()))


def _blob_fields(
    stored: Iterable[pa.Field], scanned: Iterable[pa.Field], above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    for have, give in zip(stored, scanned, strict=True):
        if have.type != give.type:
            path, told = (*above, give.name), {field.name for field in give.type.fields}
            if pa.types.is_struct(have.type) and told == {field.name for field in have.type.fields}:
                yield from _blob_fields(have.type.fields, give.type.fields, path)
            else:
                yield path, told
