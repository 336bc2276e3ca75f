"""The commit: what a head becomes when a snapshot is published, or why it must not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from snapshot_assets.errors import (
    ConfigurationError,
    EngineMismatch,
    IncarnationChanged,
    RetentionBlocked,
    SchemaChangeRefused,
    Superseded,
)
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.document import dump_document
from snapshot_assets.model.head import MAX_SUMMARY_BYTES, Head, SchemaVersion, SnapshotEntry
from snapshot_assets.model.manifest import Manifest
from snapshot_assets.model.schema import SchemaChange, TableSchema, classify_schemas, difference
from snapshot_assets.publish.heads import refuse_inactive

__all__ = [
    "MAX_KEY_LENGTH",
    "MIN_SNAPSHOTS",
    "AlreadyPublished",
    "BaseGone",
    "Proposal",
    "check_recordable",
    "check_schema",
    "check_unfenced",
    "check_writable",
    "commit_to",
    "entry_of_key",
]

MIN_SNAPSHOTS = 3
"""Fewer entries than this are never kept: a snapshot that was published while the next one is, stays explained."""


MAX_KEY_LENGTH = 1_024
"""The most characters of an idempotency key."""


class BaseGone(Exception):
    """A snapshot that this one reuses is no longer listed: the plan must be made anew."""


class AlreadyPublished(Exception):
    """Another writer has published under the same idempotency key meanwhile."""

    def __init__(self, head: Head, entry: SnapshotEntry) -> None:
        super().__init__(entry.operation_id)
        self.head = head
        self.entry = entry


@dataclass(frozen=True, slots=True)
class Proposal:
    """A snapshot that lies in the store, complete and confirmed, and only waits to be listed."""

    manifest: Manifest
    manifest_digest: str
    uploaded_bytes: int
    epoch: int
    base: SnapshotEntry | None
    idempotency_key: str | None
    summary: Mapping[str, str]
    allow_schema_change: bool
    max_snapshots: int
    now_ms: int


def check_recordable(
    dataset: Dataset,
    idempotency_key: str | None,
    summary: Mapping[str, str],
    partition_keys: Sequence[str],
    checks: Sequence[Mapping[str, Any]],
) -> None:
    """Refuse, before anything is done, what the head or the manifest could not record.

    Raises:
        ConfigurationError: something is not text or not JSON, or is larger than it may be.
    """
    texts = {"idempotency_key": [idempotency_key or ""], "partition_keys": partition_keys}
    texts |= {"summary": [*summary, *summary.values()]}
    for name, values in texts.items():
        if not all(isinstance(value, str) for value in values):
            raise ConfigurationError(f"{name} of {dataset.name!r} must be text", dataset=dataset.name)
    if len(idempotency_key or "") > MAX_KEY_LENGTH:
        raise ConfigurationError(
            f"the idempotency key of {dataset.name!r} is longer than {MAX_KEY_LENGTH}", dataset=dataset.name
        )
    # Whatever is no JSON is refused here, too.
    dump_document({"keys": [idempotency_key, *partition_keys], "checks": list(checks), "own": dict(dataset.properties)})
    if len(dump_document({"summary": dict(summary)})) > MAX_SUMMARY_BYTES:
        raise ConfigurationError(
            f"the summary of {dataset.name!r} takes more than {MAX_SUMMARY_BYTES} bytes",
            hint="Keep long values in the asset's metadata or the dataset's properties.",
            dataset=dataset.name,
        )


def check_schema(head: Head, schemas: Mapping[str, TableSchema], *, allow_schema_change: bool) -> SchemaChange | None:
    """Tell how the schemas differ from those of the current snapshot; nothing when there is none.

    Raises:
        SchemaChangeRefused: readers of the current snapshot would break, and that was not allowed.
    """
    current = head.current
    if current is None:
        return None
    old = head.tables(current.schema_id)
    change = classify_schemas(old, schemas)
    if change is SchemaChange.INCOMPATIBLE and not allow_schema_change:
        raise SchemaChangeRefused(
            f"the schema of {head.dataset!r} changed in a way that its readers would not survive:\n"
            f"{difference(old, schemas)}",
            dataset=head.dataset,
        )
    return change


def check_writable(head: Head, engine: str) -> None:
    """Refuse a head that this writer may not add to.

    Raises:
        DatasetSealed, DatasetDropped: it takes no writers.
        EngineMismatch: another engine published it.
    """
    refuse_inactive(head)
    if head.engine != engine:
        raise EngineMismatch(f"{head.dataset!r} is published by {head.engine}, not by {engine}", dataset=head.dataset)


def check_unfenced(head: Head, manifest: Manifest, epoch: int) -> None:
    """Refuse a head that is not the one any more that this operation began on.

    Raises:
        DatasetSealed, DatasetDropped, EngineMismatch, IncarnationChanged, Superseded: the operation was fenced.
    """
    operation = manifest.operation_id
    check_writable(head, manifest.engine)
    if head.incarnation != manifest.incarnation:
        raise IncarnationChanged(
            f"{head.dataset!r} was dropped and recreated", dataset=head.dataset, operation_id=operation
        )
    if head.epoch != epoch:
        raise Superseded(f"another writer claimed {head.dataset!r}", dataset=head.dataset, operation_id=operation)


def commit_to(head: Head, proposal: Proposal) -> Head:
    """The head with the proposed snapshot listed and current. Every condition of the plan is checked again.

    Raises:
        DatasetSealed, DatasetDropped, EngineMismatch, IncarnationChanged, Superseded, SchemaChangeRefused,
        RetentionBlocked: the snapshot must not be listed.
        BaseGone: it reuses a snapshot that is no longer listed.
        AlreadyPublished: the idempotency key is listed already.
    """
    manifest = proposal.manifest
    operation = manifest.operation_id
    check_unfenced(head, manifest, proposal.epoch)
    listed = entry_of_key(head, proposal.idempotency_key)
    if listed is not None:
        raise AlreadyPublished(head, listed)
    base = proposal.base
    if base is not None and head.entry_of_operation(base.operation_id) is None:
        raise BaseGone
    change = check_schema(head, manifest.schemas, allow_schema_change=proposal.allow_schema_change)
    schemas, schema_id = head.schemas, max((version.schema_id for version in head.schemas), default=-1) + 1
    if change is SchemaChange.IDENTICAL and head.current is not None:
        schema_id = head.current.schema_id
    else:
        schemas = (*schemas, SchemaVersion(schema_id, manifest.schemas))
    entry = SnapshotEntry(
        snapshot_id=head.next_snapshot_id,
        operation_id=operation,
        idempotency_key=proposal.idempotency_key,
        parent_snapshot_id=head.current_snapshot_id,
        schema_id=schema_id,
        committed_at_ms=proposal.now_ms,
        manifest_digest=proposal.manifest_digest,
        content_digest=manifest.content_digest,
        data_bytes=manifest.data_bytes,
        uploaded_bytes=proposal.uploaded_bytes,
        row_count=manifest.row_count,
        reuses=() if base is None else (base.snapshot_id,),
        summary=dict(proposal.summary),
    )
    grown = replace(
        head,
        generation=head.generation + 1,
        next_snapshot_id=head.next_snapshot_id + 1,
        current_snapshot_id=entry.snapshot_id,
        current_since_ms=proposal.now_ms,
        schemas=schemas,
        snapshots=(*head.snapshots, entry),
    )
    return _within(grown, proposal.max_snapshots, proposal.now_ms)


def _within(head: Head, max_snapshots: int, now_ms: int) -> Head:
    """The head without its oldest unprotected entries, as far as needed; their objects are collected later."""
    surplus = len(head.snapshots) - max_snapshots
    if surplus <= 0:
        return head
    pinned = {pin.snapshot_id for pin in head.pins if pin.expires_at_ms is None or pin.expires_at_ms > now_ms}
    youngest = {entry.snapshot_id for entry in head.snapshots[-MIN_SNAPSHOTS:]}
    free = [entry for entry in head.snapshots if entry.snapshot_id not in pinned | youngest]
    if len(free) < surplus:
        raise RetentionBlocked(
            f"{head.dataset!r} lists {len(head.snapshots) - 1} snapshots and every one that could go is protected",
            dataset=head.dataset,
        )
    return head.without(entry.snapshot_id for entry in free[:surplus])


def entry_of_key(head: Head, idempotency_key: str | None) -> SnapshotEntry | None:
    """The listed snapshot that was published under the key."""
    if idempotency_key is None:
        return None
    return next((entry for entry in head.snapshots if entry.idempotency_key == idempotency_key), None)
