"""The manifest: the immutable description of one snapshot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from blake3 import blake3

from snapshot_assets.errors import PathOutsideAnchor
from snapshot_assets.ids import IncarnationId, OperationId, ulid_to_bytes
from snapshot_assets.model.document import Document, dump_document, parse_document
from snapshot_assets.model.schema import TableSchema

__all__ = [
    "MAX_FILES",
    "MAX_MANIFEST_BYTES",
    "FileEntry",
    "Layout",
    "LayoutKind",
    "Manifest",
    "TableContent",
    "check_paths",
    "data_prefix",
    "dataset_prefix",
    "digest_of",
    "incarnation_prefix",
    "index_key",
    "manifest_key",
    "pack_key",
    "snapshot_digest",
]

MAX_MANIFEST_BYTES: Final = 64 * 1024 * 1024
MAX_FILES: Final = 1_000_000
MAX_OPERATIONS: Final = 65_535
MIN_CHUNK_BYTES: Final = 512
MAX_CHUNK_BYTES: Final = 1024 * 1024
MAX_PATH_BYTES: Final = 1_024
_DIGEST: Final = re.compile(r"blake3:[0-9a-f]{64}")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")

LayoutKind = Literal["blocks", "whole"]


def dataset_prefix(dataset: str) -> str:
    """The folder, with its slash, that holds all data of a dataset."""
    return f"data/{dataset}/"


def incarnation_prefix(dataset: str, incarnation: str) -> str:
    """The folder, with its slash, that holds all data of one incarnation."""
    return f"{dataset_prefix(dataset)}{incarnation}/"


def data_prefix(dataset: str, incarnation: str, operation_id: str) -> str:
    """The folder, with its slash, that holds everything one operation writes."""
    return f"{incarnation_prefix(dataset, incarnation)}{operation_id}/"


def manifest_key(dataset: str, incarnation: str, operation_id: str) -> str:
    """Where the manifest of an operation lies."""
    return data_prefix(dataset, incarnation, operation_id) + "manifest.json"


def index_key(dataset: str, incarnation: str, operation_id: str) -> str:
    """Where the root of an operation's index lies."""
    return data_prefix(dataset, incarnation, operation_id) + "index.arrow"


def pack_key(dataset: str, incarnation: str, operation_id: str, pack: int) -> str:
    """Where a pack of an operation lies."""
    return data_prefix(dataset, incarnation, operation_id) + f"{pack:04d}.pack"


def digest_of(data: bytes) -> str:
    """The digest of a whole document or object, as documents name it."""
    return f"blake3:{blake3(data).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file is cut: in fixed chunks after a header (`blocks`), or only in segments (`whole`).

    `header_bytes` and `chunk_bytes` are null for `whole`.
    """

    kind: LayoutKind
    header_bytes: int | None = None
    chunk_bytes: int | None = None

    @classmethod
    def blocks(cls, header_bytes: int, chunk_bytes: int) -> Layout:
        """A file of equal chunks behind a header."""
        return cls("blocks", header_bytes, chunk_bytes)

    @classmethod
    def whole(cls) -> Layout:
        """An immutable file that is reused as a whole or in segments."""
        return cls("whole")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a snapshot."""

    path: str
    size: int
    mode: int
    layout: Layout
    content_digest: str

    @classmethod
    def parse(cls, document: Document) -> FileEntry:
        """Read one file of the manifest's list."""
        kind = document.text("layout")
        if kind not in get_args(LayoutKind):
            raise document.damaged(f"layout {kind!r} is unknown")
        layout = Layout.whole()
        if kind == "blocks":
            layout = Layout.blocks(
                document.count("header_bytes", MAX_CHUNK_BYTES), document.count("chunk_bytes", MAX_CHUNK_BYTES)
            )
            if layout.chunk_bytes is None or layout.chunk_bytes < MIN_CHUNK_BYTES:
                raise document.damaged(f"chunk_bytes is below {MIN_CHUNK_BYTES}")
        return cls(
            path=document.text("path"),
            size=document.count("size"),
            mode=document.count("mode", 0o7777),
            layout=layout,
            content_digest=_digest(document, "content_digest"),
        )

    def to_json(self) -> dict[str, Any]:
        """The file as the manifest stores it."""
        content: dict[str, Any] = {
            "path": self.path,
            "size": self.size,
            "mode": self.mode,
            "layout": self.layout.kind,
            "content_digest": self.content_digest,
        }
        if self.layout.kind == "blocks":
            content |= {"header_bytes": self.layout.header_bytes, "chunk_bytes": self.layout.chunk_bytes}
        return content


@dataclass(frozen=True, slots=True)
class TableContent:
    """What a snapshot holds of one table."""

    schema: TableSchema
    row_count: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One snapshot in full; never rewritten."""

    operation_id: OperationId
    dataset: str
    incarnation: IncarnationId
    engine: str
    engine_version: str
    storage_version: str
    created_at_ms: int
    tables: Mapping[str, TableContent]
    files: tuple[FileEntry, ...]
    operations: tuple[OperationId, ...]
    index_digest: str
    content_digest: str
    partition_keys: tuple[str, ...] = ()
    checks: tuple[Mapping[str, Any], ...] = ()
    properties: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes, where: str) -> Manifest:
        """Read a manifest; paths that could leave a folder are refused here, before anything is written.

        Raises:
            UnsupportedFormatVersion: a newer version of this package wrote it.
            DocumentDamaged: it breaks a rule of the format.
            PathOutsideAnchor: a file's path is absolute, climbs, or is not portable.
        """
        document = parse_document(data, where)
        files = document.documents("files")
        if len(files) > MAX_FILES:
            raise document.damaged(f"it names {len(files)} files; the limit is {MAX_FILES}")
        operations = document.texts("operations")
        if not 1 <= len(operations) <= MAX_OPERATIONS:
            raise document.damaged(f"it names {len(operations)} operations")
        for operation in operations:
            ulid_to_bytes(operation)
        tables = {
            name: TableContent(TableSchema.from_base64(inner.text("arrow"), inner.where), inner.count("row_count"))
            for name, inner in document.named_documents("tables").items()
        }
        manifest = cls(
            operation_id=OperationId(document.ulid("operation_id")),
            dataset=document.text("dataset"),
            incarnation=IncarnationId(document.ulid("incarnation")),
            engine=document.text("engine"),
            engine_version=document.text("engine_version"),
            storage_version=document.text("storage_version"),
            created_at_ms=document.count("created_at_ms"),
            tables=tables,
            files=tuple(FileEntry.parse(inner) for inner in files),
            operations=tuple(OperationId(operation) for operation in operations),
            index_digest=_digest(document, "index_digest"),
            content_digest=_digest(document, "content_digest"),
            partition_keys=document.texts("partition_keys"),
            checks=tuple(dict(inner.rest) for inner in document.documents("checks")),
            properties=document.mapping("properties"),
        )
        check_paths(file.path for file in manifest.files)
        if manifest.operation_id not in manifest.operations:
            raise document.damaged("its own operation is not among its operations")
        return manifest

    def to_bytes(self) -> bytes:
        """The document as it is stored."""
        return dump_document(
            {
                "operation_id": self.operation_id,
                "dataset": self.dataset,
                "incarnation": self.incarnation,
                "engine": self.engine,
                "engine_version": self.engine_version,
                "storage_version": self.storage_version,
                "created_at_ms": self.created_at_ms,
                "tables": {
                    name: {"row_count": table.row_count, "arrow": table.schema.arrow}
                    for name, table in self.tables.items()
                },
                "files": [file.to_json() for file in self.files],
                "operations": list(self.operations),
                "index_digest": self.index_digest,
                "content_digest": self.content_digest,
                "partition_keys": list(self.partition_keys),
                "checks": [dict(check) for check in self.checks],
                "properties": dict(self.properties),
            }
        )

    @property
    def data_bytes(self) -> int:
        """The plain size of all files together."""
        return sum(file.size for file in self.files)

    @property
    def row_count(self) -> int:
        """The rows of all tables together."""
        return sum(table.row_count for table in self.tables.values())

    @property
    def schemas(self) -> Mapping[str, TableSchema]:
        """The schema of each table."""
        return {name: table.schema for name, table in self.tables.items()}


def snapshot_digest(files: Iterable[FileEntry], schemas: Mapping[str, TableSchema]) -> str:
    """The content digest of a snapshot: of its files and of its tables' columns, and of nothing else.

    BLAKE3 over UTF-8 lines: for each file in the order of paths ``path NUL size NUL hex LF``, then for each table by
    name and each column in order ``table NUL column NUL type NUL nullable LF``.
    """
    digest = blake3()
    for file in sorted(files, key=lambda file: file.path):
        digest.update(f"{file.path}\0{file.size}\0{file.content_digest.removeprefix('blake3:')}\n".encode())
    for name in sorted(schemas):
        for column in schemas[name].fields:
            digest.update(f"{name}\0{column.name}\0{column.type}\0{int(column.nullable)}\n".encode())
    return f"blake3:{digest.hexdigest()}"


def check_paths(paths: Iterable[str]) -> None:
    """Refuse paths that could leave their folder or collide in it, on any file system.

    Raises:
        PathOutsideAnchor: a path is empty, absolute, too long, climbs with ``..``, holds a backslash, NUL or half a
            surrogate pair, or equals another one when case is folded.
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        parts = path.split("/")
        if (
            any(part in {"", ".", ".."} for part in parts)
            or "\\" in path
            or "\0" in path
            or (len(parts[0]) > 1 and parts[0][1] == ":")
            or _SURROGATE.search(path)
            or len(path.encode(errors="replace")) > MAX_PATH_BYTES
            or any(len(part.encode(errors="replace")) > 255 for part in parts)
        ):
            raise PathOutsideAnchor(f"{path!r} is not a safe relative path")
        folded = path.casefold()
        if folded in seen or folded in folders:
            raise PathOutsideAnchor(f"{path!r} collides with another path of the snapshot")
        above = {"/".join(parts[:depth]).casefold() for depth in range(1, len(parts))}
        if above & seen:
            raise PathOutsideAnchor(f"{path!r} lies beneath a path that is a file")
        seen.add(folded)
        folders |= above


def _digest(document: Document, key: str) -> str:
    value = document.text(key)
    if not _DIGEST.fullmatch(value):
        raise document.damaged(f"{key!r} is not a blake3 digest")
    return value
