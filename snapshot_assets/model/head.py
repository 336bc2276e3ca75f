"""The head: the one mutable document of a dataset."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from snapshot_assets.ids import IncarnationId, OperationId, check_dataset_name
from snapshot_assets.model.document import Document, dump_document, parse_document
from snapshot_assets.model.schema import TableSchema

__all__ = [
    "MAX_HEAD_BYTES",
    "MAX_SNAPSHOTS",
    "MAX_SUMMARY_BYTES",
    "Head",
    "Pin",
    "SchemaVersion",
    "SnapshotEntry",
    "Status",
    "head_key",
]

MAX_HEAD_BYTES: Final = 32 * 1024 * 1024
MAX_SNAPSHOTS: Final = 1_000
MAX_SUMMARY_BYTES: Final = 2_048
_RECENT_OPERATIONS: Final = 16


def head_key(dataset: str) -> str:
    """Where the head of a dataset lies. All heads lie in one flat prefix, so that one list request sees them all."""
    return f"heads/{dataset}.json"


class Status(enum.Enum):
    """Whether a dataset takes writers."""

    ACTIVE = "active"
    SEALED = "sealed"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """The schemas of all tables of a dataset, under an id that snapshots refer to."""

    schema_id: int
    tables: Mapping[str, TableSchema]


@dataclass(frozen=True, slots=True)
class SnapshotEntry:
    """What the head says of one snapshot."""

    snapshot_id: int
    operation_id: OperationId
    idempotency_key: str | None
    parent_snapshot_id: int | None
    schema_id: int
    committed_at_ms: int
    manifest_digest: str
    content_digest: str
    data_bytes: int
    uploaded_bytes: int
    row_count: int
    reuses: tuple[int, ...]
    summary: Mapping[str, str]
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, document: Document) -> SnapshotEntry:
        """Read one entry of the head's list."""
        summary = document.mapping("summary")
        return cls(
            snapshot_id=document.count("snapshot_id"),
            operation_id=OperationId(document.ulid("operation_id")),
            idempotency_key=document.optional_text("idempotency_key"),
            parent_snapshot_id=document.optional_count("parent_snapshot_id"),
            schema_id=document.count("schema_id"),
            committed_at_ms=document.count("committed_at_ms"),
            manifest_digest=document.text("manifest_digest"),
            content_digest=document.text("content_digest"),
            data_bytes=document.count("data_bytes"),
            uploaded_bytes=document.count("uploaded_bytes"),
            row_count=document.count("row_count"),
            reuses=document.counts("reuses"),
            summary={key: str(value) for key, value in summary.items()},
            extra=document.rest,
        )

    def to_json(self) -> dict[str, Any]:
        """The entry as the head stores it."""
        return {
            **self.extra,
            "snapshot_id": self.snapshot_id,
            "operation_id": self.operation_id,
            "idempotency_key": self.idempotency_key,
            "parent_snapshot_id": self.parent_snapshot_id,
            "schema_id": self.schema_id,
            "committed_at_ms": self.committed_at_ms,
            "manifest_digest": self.manifest_digest,
            "content_digest": self.content_digest,
            "data_bytes": self.data_bytes,
            "uploaded_bytes": self.uploaded_bytes,
            "row_count": self.row_count,
            "reuses": list(self.reuses),
            "summary": dict(self.summary),
        }


@dataclass(frozen=True, slots=True)
class Pin:
    """A named protection of one snapshot from retention."""

    name: str
    snapshot_id: int
    owner: str
    reason: str
    created_at_ms: int
    expires_at_ms: int | None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, document: Document) -> Pin:
        """Read one pin of the head's list."""
        return cls(
            name=document.text("name"),
            snapshot_id=document.count("snapshot_id"),
            owner=document.text("owner"),
            reason=document.text("reason"),
            created_at_ms=document.count("created_at_ms"),
            expires_at_ms=document.optional_count("expires_at_ms"),
            extra=document.rest,
        )

    def to_json(self) -> dict[str, Any]:
        """The pin as the head stores it."""
        return {
            **self.extra,
            "name": self.name,
            "snapshot_id": self.snapshot_id,
            "owner": self.owner,
            "reason": self.reason,
            "created_at_ms": self.created_at_ms,
            "expires_at_ms": self.expires_at_ms,
        }


@dataclass(frozen=True, slots=True)
class Head:
    """What a dataset is, which snapshots it has, and which of them readers should serve.

    Changed only by compare-and-swap of the whole document. `recent_operation_ids` names the last operations that
    changed it, so that a writer whose answer was lost can tell, by reading, whether its change landed.
    """

    dataset: str
    incarnation: IncarnationId
    engine: str
    revision: int = 0
    generation: int = 0
    epoch: int = 0
    status: Status = Status.ACTIVE
    next_snapshot_id: int = 0
    current_snapshot_id: int | None = None
    current_since_ms: int | None = None
    schemas: tuple[SchemaVersion, ...] = ()
    snapshots: tuple[SnapshotEntry, ...] = ()
    pins: tuple[Pin, ...] = ()
    properties: Mapping[str, Any] = field(default_factory=dict)
    recent_operation_ids: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, data: bytes, dataset: str) -> Head:
        """Read the head of the named dataset.

        Raises:
            UnsupportedFormatVersion: a newer version of this package wrote it.
            DocumentDamaged: it breaks a rule of the format, or belongs to another dataset.
        """
        document = parse_document(data, head_key(dataset))
        if document.text("dataset") != dataset:
            raise document.damaged(f"it is not the head of {dataset!r}")
        status = document.text("status")
        if status not in {known.value for known in Status}:
            raise document.damaged(f"status {status!r} is unknown")
        recent = document.texts("recent_operation_ids") if "recent_operation_ids" in document.rest else ()
        head = cls(
            dataset=check_dataset_name(dataset),
            incarnation=IncarnationId(document.ulid("incarnation")),
            engine=document.text("engine"),
            revision=document.count("revision"),
            generation=document.count("generation"),
            epoch=document.count("epoch"),
            status=Status(status),
            next_snapshot_id=document.count("next_snapshot_id"),
            current_snapshot_id=document.optional_count("current_snapshot_id"),
            current_since_ms=document.optional_count("current_since_ms"),
            schemas=tuple(_parse_schema_version(inner) for inner in document.documents("schemas")),
            snapshots=tuple(SnapshotEntry.parse(inner) for inner in document.documents("snapshots")),
            pins=tuple(Pin.parse(inner) for inner in document.documents("pins")),
            properties=document.mapping("properties"),
            recent_operation_ids=recent,
            extra=document.rest,
        )
        head._check(document)
        return head

    def _check(self, document: Document) -> None:
        ids = [entry.snapshot_id for entry in self.snapshots]
        if len(ids) > MAX_SNAPSHOTS:
            raise document.damaged(f"it lists {len(ids)} snapshots; the limit is {MAX_SNAPSHOTS}")
        if ids != sorted(set(ids)):
            raise document.damaged("its snapshot ids are not in rising order")
        if ids and ids[-1] >= self.next_snapshot_id:
            raise document.damaged("a snapshot id is not below next_snapshot_id")
        if self.current_snapshot_id is not None and self.current_snapshot_id not in ids:
            raise document.damaged(f"its current snapshot {self.current_snapshot_id} is not listed")
        if {entry.schema_id for entry in self.snapshots} - {version.schema_id for version in self.schemas}:
            raise document.damaged("a snapshot names a schema that is not listed")

    def to_bytes(self) -> bytes:
        """The document as it is stored."""
        return dump_document(
            {
                **self.extra,
                "dataset": self.dataset,
                "incarnation": self.incarnation,
                "engine": self.engine,
                "revision": self.revision,
                "generation": self.generation,
                "epoch": self.epoch,
                "status": self.status.value,
                "next_snapshot_id": self.next_snapshot_id,
                "current_snapshot_id": self.current_snapshot_id,
                "current_since_ms": self.current_since_ms,
                "schemas": [_schema_version_to_json(version) for version in self.schemas],
                "snapshots": [entry.to_json() for entry in self.snapshots],
                "pins": [pin.to_json() for pin in self.pins],
                "properties": dict(self.properties),
                "recent_operation_ids": list(self.recent_operation_ids),
            }
        )

    @property
    def current(self) -> SnapshotEntry | None:
        """The entry of the snapshot that readers should serve."""
        return None if self.current_snapshot_id is None else self.entry(self.current_snapshot_id)

    def entry(self, snapshot_id: int) -> SnapshotEntry | None:
        """The entry of a listed snapshot."""
        return next((entry for entry in self.snapshots if entry.snapshot_id == snapshot_id), None)

    def entry_of_operation(self, operation_id: str) -> SnapshotEntry | None:
        """The entry that an operation published."""
        return next((entry for entry in self.snapshots if entry.operation_id == operation_id), None)

    def tables(self, schema_id: int) -> Mapping[str, TableSchema]:
        """The table schemas of a schema version that the head lists."""
        return next(version.tables for version in self.schemas if version.schema_id == schema_id)

    def without(self, snapshot_ids: Iterable[int]) -> Head:
        """The head without some of its entries, and without the schemas and pins that only they had."""
        gone = set(snapshot_ids)
        kept = tuple(entry for entry in self.snapshots if entry.snapshot_id not in gone)
        named = {entry.schema_id for entry in kept}
        return replace(
            self,
            snapshots=kept,
            schemas=tuple(version for version in self.schemas if version.schema_id in named),
            pins=tuple(pin for pin in self.pins if pin.snapshot_id not in gone),
        )

    def remembering(self, operation_id: str) -> tuple[str, ...]:
        """The recent operations, this one added and the oldest forgotten."""
        return (*self.recent_operation_ids, operation_id)[-_RECENT_OPERATIONS:]


def _parse_schema_version(document: Document) -> SchemaVersion:
    tables = {name: TableSchema.parse(inner) for name, inner in document.named_documents("tables").items()}
    return SchemaVersion(document.count("schema_id"), tables)


def _schema_version_to_json(version: SchemaVersion) -> dict[str, Any]:
    return {
        "schema_id": version.schema_id,
        "tables": {name: table.to_json() for name, table in version.tables.items()},
    }
