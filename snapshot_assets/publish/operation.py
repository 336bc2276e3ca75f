"""One operation of a publish: arm, effects, confirm, commit, retire."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from snapshot_assets.clock import Clock
from snapshot_assets.content.account import PACKS_PROPERTY
from snapshot_assets.content.base import Base
from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.segments import HashedFile
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.content.upload import Stored, store_content
from snapshot_assets.engines.contract import Captured, Engine, VerifyLevel
from snapshot_assets.errors import Aborted, StoreError
from snapshot_assets.failpoints import (
    PUBLISH_AFTER_AUDIT,
    PUBLISH_AFTER_COMMIT,
    PUBLISH_AFTER_CONFIRM,
    PUBLISH_AFTER_EFFECTS,
    PUBLISH_AFTER_RETIRE,
    PUBLISH_AFTER_SIDECAR,
    PUBLISH_BEFORE_COMMIT,
    PUBLISH_DURING_EFFECTS,
    Failpoints,
)
from snapshot_assets.ids import OperationId, new_operation_id
from snapshot_assets.model.audit import Outcome
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.document import checked
from snapshot_assets.model.head import Head
from snapshot_assets.model.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    TableContent,
    data_prefix,
    digest_of,
    index_key,
    manifest_key,
)
from snapshot_assets.model.sidecar import Sidecar, SidecarKind, sidecar_key
from snapshot_assets.publish.commit import Proposal, check_unfenced, commit_to
from snapshot_assets.publish.heads import change_head
from snapshot_assets.publish.lease import this_holder
from snapshot_assets.publish.recovery import retire, write_audit
from snapshot_assets.publish.result import PublishResult, Stopwatch, result_of
from snapshot_assets.publish.staging import staging_folder
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["Operation", "Plan", "PublishSettings", "Request", "UploadCheck", "cache_folder"]

_log = logging.getLogger(__name__)

UploadCheck = Literal["sizes", "digest", "restore"]
"""How an upload is confirmed: by the store's list, by reading everything back, or by opening what was read back too."""


@dataclass(frozen=True, slots=True)
class PublishSettings:
    """What a publisher was told, as its writings need it."""

    staging_dir: Path | None
    capture_timeout: float
    verify: VerifyLevel
    verify_upload: UploadCheck
    max_snapshots: int
    clock: Clock
    failpoints: Failpoints


@dataclass(frozen=True, slots=True)
class Request:
    """What one call of `publish` asked the head and the manifest to say."""

    allow_schema_change: bool
    summary: Mapping[str, str]
    partition_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be stored: hashed files, the tables in them, the digest of all of it, and the checks that it passed."""

    captured: Captured
    tables: Mapping[str, TableContent]
    files: tuple[HashedFile, ...]
    content_digest: str
    checks: tuple[Mapping[str, Any], ...]

    @property
    def row_counts(self) -> dict[str, int]:
        """The rows of each table."""
        return {name: table.row_count for name, table in self.tables.items()}


def cache_folder(root: Path) -> Path:
    """Where the chunk tables of the last publish are kept, so that the next one need not fetch them."""
    return root / "cache"


class Operation:
    """One attempt to publish a plan: everything it writes lies under its own id, behind its own sidecar.

    Args:
        store: where to publish.
        settings: what the publisher was told.
        dataset: what is published.
        engine: for looking at what arrived.
        root: the dataset's folder for staging and cache.
        watch: counts the phases.
        idempotency_key: the caller's name for it.
        head: the head that the plan was made on.
        base: what may be reused; it is the head's current snapshot.
    """

    def __init__(
        self,
        store: SnapshotStore,
        settings: PublishSettings,
        dataset: Dataset,
        engine: Engine,
        root: Path,
        watch: Stopwatch,
        *,
        idempotency_key: str | None,
        head: Head,
        base: Base | None,
    ) -> None:
        self._store = store
        self._objects = store.objects
        self._settings = settings
        self._dataset = dataset
        self._engine = engine
        self._root = root
        self._watch = watch
        self._key = idempotency_key
        self._head = head
        self._base = base
        self._id = new_operation_id()

    def run(self, plan: Plan, request: Request) -> PublishResult:
        """Arm, upload, confirm, commit, retire; see `Publisher.publish` for what it raises.

        Raises:
            BaseGone: the base is no longer listed; nothing became visible.
            AlreadyPublished: another writer was faster with the same idempotency key; nothing became visible.
        """
        hit, head = self._settings.failpoints.hit, self._head
        sidecar = self._arm()
        with self._watch.phase("upload"):
            stored = store_content(
                self._objects,
                plan.files,
                dataset=head.dataset,
                incarnation=head.incarnation,
                operation_id=self._id,
                base=self._base,
                on_pack=lambda: hit(PUBLISH_DURING_EFFECTS),
                cache=cache_folder(self._root),
            )
            manifest = self._manifest(plan, request, stored)
            manifest_bytes = checked(
                manifest.to_bytes(),
                partial(Manifest.parse, where="the manifest"),
                MAX_MANIFEST_BYTES,
                f"the manifest of {head.dataset!r}",
            )
            documents = {
                index_key(head.dataset, head.incarnation, self._id): stored.index,
                manifest_key(head.dataset, head.incarnation, self._id): manifest_bytes,
            }
            for key, data in documents.items():
                self._objects.write_if_absent(key, data)
        hit(PUBLISH_AFTER_EFFECTS)
        sizes = {**stored.pack_sizes, **{key: len(data) for key, data in documents.items()}}
        with self._watch.phase("confirm"):
            self._confirm(manifest, digest_of(manifest_bytes), sizes)
        hit(PUBLISH_AFTER_CONFIRM)
        proposal = Proposal(
            manifest=manifest,
            manifest_digest=digest_of(manifest_bytes),
            uploaded_bytes=sum(sizes.values()),
            epoch=head.epoch,
            base=head.current if len(stored.operations) > 1 else None,
            idempotency_key=self._key,
            summary=request.summary,
            allow_schema_change=request.allow_schema_change,
            max_snapshots=self._settings.max_snapshots,
            now_ms=self._settings.clock.now_ms(),
        )
        hit(PUBLISH_BEFORE_COMMIT)
        with self._watch.phase("commit"):
            committed = change_head(
                self._store, head.dataset, self._id, lambda now: commit_to(now, proposal), clock=self._settings.clock
            )
        hit(PUBLISH_AFTER_COMMIT)
        with self._watch.phase("retire"):
            self._retire(sidecar)
        return result_of(
            "published",
            committed,
            committed.snapshots[-1],
            row_counts=plan.row_counts,
            seconds=self._watch.seconds,
            uploaded_objects=len(sizes),
            stored_bytes=_plain_bytes(stored, self._id),
        )

    def _arm(self) -> Sidecar:
        sidecar = Sidecar(
            operation_id=self._id,
            kind=SidecarKind.PUBLISH,
            dataset=self._head.dataset,
            incarnation=self._head.incarnation,
            epoch=self._head.epoch,
            base_snapshot_id=self._head.current_snapshot_id,
            idempotency_key=self._key,
            owner=this_holder().to_json(),
            started_at_ms=self._settings.clock.now_ms(),
        )
        with self._watch.phase("arm"):
            self._objects.write_if_absent(sidecar_key(sidecar.dataset, self._id), sidecar.to_bytes())
        self._settings.failpoints.hit(PUBLISH_AFTER_SIDECAR)
        return sidecar

    def _manifest(self, plan: Plan, request: Request, stored: Stored) -> Manifest:
        return Manifest(
            operation_id=self._id,
            dataset=self._head.dataset,
            incarnation=self._head.incarnation,
            engine=self._dataset.engine,
            engine_version=plan.captured.engine_version,
            storage_version=plan.captured.storage_version,
            created_at_ms=self._settings.clock.now_ms(),
            tables=plan.tables,
            files=tuple(file.entry for file in plan.files),
            operations=stored.operations,
            index_digest=digest_of(stored.index),
            content_digest=plan.content_digest,
            partition_keys=request.partition_keys,
            checks=plan.checks,
            properties={**self._dataset.properties, **stored.properties},
        )

    def _confirm(self, manifest: Manifest, manifest_digest: str, sizes: Mapping[str, int]) -> None:
        """Look at what arrived in the store, before it is announced.

        Raises:
            PublishError: this operation was fenced, and undone, by another writer.
            StoreError: something is missing or has another size.
            SnapshotDamaged: something has another digest.
        """
        prefix = data_prefix(manifest.dataset, manifest.incarnation, manifest.operation_id)
        arrived = {listed.key: listed.size for listed in self._objects.list(prefix)}
        for key, size in sizes.items():
            if arrived.get(key) != size:
                # Whoever has fenced this operation has undone it: that is what there is to say.
                check_unfenced(self._store.head(manifest.dataset), manifest, self._head.epoch)
                raise StoreError(
                    f"{key} was uploaded with {size} bytes; the store lists {arrived.get(key, 'nothing')}",
                    hint="Publish again; if it happens again, check the store.",
                    dataset=manifest.dataset,
                    operation_id=manifest.operation_id,
                )
        if self._settings.verify_upload == "sizes":
            return
        content = read_content(
            self._objects, manifest.dataset, manifest.incarnation, manifest.operation_id, manifest_digest
        )
        with staging_folder(self._root / "staging", new_operation_id()) as scratch:
            restore_files(self._objects, content, scratch)
            if self._settings.verify_upload == "restore":
                self._engine.verify(scratch, [file.path for file in manifest.files], manifest.tables, "full")

    def _retire(self, sidecar: Sidecar) -> None:
        """Finish the book-keeping of a publish that is durable. What fails here, the next writer does."""
        by = str(this_holder())
        try:
            write_audit(self._objects, sidecar, Outcome.COMMITTED, clock=self._settings.clock, by=by)
            self._settings.failpoints.hit(PUBLISH_AFTER_AUDIT)
            retire(self._objects, sidecar)
        except (StoreError, Aborted) as error:
            _log.warning(
                "operation %s is published; its sidecar is left to the next writer: %s", sidecar.operation_id, error
            )
        self._settings.failpoints.hit(PUBLISH_AFTER_RETIRE)


def _plain_bytes(stored: Stored, operation: OperationId) -> int:
    """The plain bytes of what the operation itself put into packs."""
    rows = stored.properties[PACKS_PROPERTY]
    return sum(row["plain_bytes"] for row in rows if row["operation"] == operation)
