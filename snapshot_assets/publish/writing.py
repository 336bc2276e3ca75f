"""One publish, from the write gate to the end: capture, plan, arm, effects, confirm, commit, retire."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from snapshot_assets.clock import Clock
from snapshot_assets.content.account import PACKS_PROPERTY
from snapshot_assets.content.base import Base
from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.segments import HashedFile, hash_files
from snapshot_assets.content.snapshot import Content, read_content
from snapshot_assets.content.upload import Stored, store_content
from snapshot_assets.engines.contract import Captured, Engine, VerifyLevel
from snapshot_assets.errors import ConfigurationError, SnapshotDamaged, StoreError
from snapshot_assets.failpoints import (
    PUBLISH_AFTER_AUDIT,
    PUBLISH_AFTER_CAPTURE,
    PUBLISH_AFTER_COMMIT,
    PUBLISH_AFTER_CONFIRM,
    PUBLISH_AFTER_EFFECTS,
    PUBLISH_AFTER_PLAN,
    PUBLISH_AFTER_RETIRE,
    PUBLISH_AFTER_SIDECAR,
    PUBLISH_BEFORE_COMMIT,
    PUBLISH_DURING_EFFECTS,
    Failpoints,
)
from snapshot_assets.ids import OperationId, new_incarnation_id, new_operation_id
from snapshot_assets.model.audit import Outcome
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.document import checked
from snapshot_assets.model.head import Head, SnapshotEntry
from snapshot_assets.model.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    TableContent,
    check_paths,
    data_prefix,
    digest_of,
    index_key,
    manifest_key,
    snapshot_digest,
)
from snapshot_assets.model.sidecar import Sidecar, SidecarKind, sidecar_key
from snapshot_assets.publish.commit import (
    AlreadyPublished,
    BaseGone,
    Proposal,
    check_recordable,
    check_schema,
    check_writable,
    commit_to,
)
from snapshot_assets.publish.heads import change_head, create_head
from snapshot_assets.publish.lease import this_holder
from snapshot_assets.publish.recovery import retire, write_audit
from snapshot_assets.publish.result import PublishResult, Stopwatch, result_of
from snapshot_assets.publish.staging import staging_folder
from snapshot_assets.publish.validators import CheckResult, run_validators
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["PublishSettings", "UploadCheck", "Writing"]

_log = logging.getLogger(__name__)
_ATTEMPTS = 5

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
class _Request:
    """What one call of `publish` asked for."""

    force: bool
    allow_schema_change: bool
    summary: Mapping[str, str]
    partition_keys: tuple[str, ...]
    checks: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What will be stored: hashed files, the tables in them, and the digest of all of it together."""

    captured: Captured
    tables: Mapping[str, TableContent]
    files: tuple[HashedFile, ...]
    content_digest: str


class Writing:
    """The exclusive right to change a live database and to publish it once. Made by `Publisher.writing`.

    Attributes:
        dataset: what is written.
        already: the earlier result, when the idempotency key was found listed.
    """

    def __init__(
        self,
        store: SnapshotStore,
        settings: PublishSettings,
        dataset: Dataset,
        engine: Engine,
        head: Head | None,
        idempotency_key: str | None,
        gate: ExitStack,
        watch: Stopwatch,
        already: PublishResult | None,
    ) -> None:
        self.dataset = dataset
        self.already = already
        self._store = store
        self._objects = store.objects
        self._settings = settings
        self._engine = engine
        self._head = head
        self._key = idempotency_key
        self._gate = gate
        self._watch = watch
        self._is_open = already is None

    def close(self) -> None:
        """The publisher's lease and gate are given back: nothing can be written or published any more."""
        self._is_open = False

    def connect(self) -> AbstractContextManager[Any]:
        """A read-write connection to the live database, of the engine's own type, under the write gate.

        Raises:
            LiveDatabaseBusy: another process has the database open.
            ConfigurationError: this writing has ended, or captured the database: its write gate is open again.
        """
        self._check_open()
        return self._engine.connect_live(self.dataset)

    def publish(
        self,
        *,
        force: bool = False,
        allow_schema_change: bool = False,
        summary: Mapping[str, str] | None = None,
        partition_keys: Sequence[str] = (),
        checks: Sequence[Mapping[str, Any]] = (),
    ) -> PublishResult:
        """Capture the live database, open the write gate, and publish; see `Publisher.publish`."""
        if self.already is not None:
            return self.already
        self._check_open()
        request = _Request(force, allow_schema_change, dict(summary or {}), tuple(partition_keys), tuple(checks))
        check_recordable(self.dataset, self._key, request.summary, request.partition_keys, request.checks)
        with staging_folder(self._root / "staging", new_operation_id()) as folder:
            captured = self._capture(folder)
            tables, results = self._check(folder, captured, request)
            with self._watch.phase("plan"):
                files = hash_files(captured.files)
                schemas = {name: table.schema for name, table in tables.items()}
                plan = _Plan(captured, tables, files, snapshot_digest([file.entry for file in files], schemas))
            checks_made = (*request.checks, *(result.to_json() for result in results))
            return self._publish_plan(plan, request, checks_made)

    def _check_open(self) -> None:
        if not self._is_open:
            raise ConfigurationError(
                f"the write gate of {self.dataset.name!r} is open again: a writing publishes once, within its block",
                hint="Begin another writing.",
                dataset=self.dataset.name,
            )

    @property
    def _root(self) -> Path:
        return (self._settings.staging_dir or self.dataset.real_path.parent / ".snapshot-assets") / self.dataset.name

    @property
    def _cache(self) -> Path:
        return self._root / "cache"

    def _capture(self, folder: Path) -> Captured:
        try:
            with self._watch.phase("capture"):
                captured = self._engine.capture(self.dataset, folder, timeout=self._settings.capture_timeout)
        finally:
            self.close()
            self._gate.close()
        check_paths(file.path for file in captured.files)
        self._settings.failpoints.hit(PUBLISH_AFTER_CAPTURE)
        return captured

    def _check(
        self, folder: Path, captured: Captured, request: _Request
    ) -> tuple[Mapping[str, TableContent], Sequence[CheckResult]]:
        """Everything that can fail locally, before anything is stored."""
        paths = [file.path for file in captured.files]
        with self._watch.phase("verify"):
            # Describing opens the copy and reads every table's schema and count, which is all that `quick` asks for.
            tables = self._engine.describe(self.dataset, folder, paths)
            if self._settings.verify == "full":
                self._engine.verify(folder, paths, tables, "full")
        schemas = {name: table.schema for name, table in tables.items()}
        if self._head is not None:
            check_schema(self._head, schemas, allow_schema_change=request.allow_schema_change)
        if not self.dataset.validators:
            return tables, ()
        with self._watch.phase("validate"), self._engine.staged_query(folder, paths) as query:
            return tables, run_validators(self.dataset, tables, self._previous_counts, query)

    def _previous_counts(self) -> Mapping[str, int] | None:
        """The row counts of the current snapshot, for the validators that ask for them."""
        if self._head is None or self._head.current is None:
            return None
        manifest = self._read(self._head, self._head.current).manifest
        return {name: table.row_count for name, table in manifest.tables.items()}

    def _read(self, head: Head, entry: SnapshotEntry) -> Content:
        return read_content(self._objects, head.dataset, head.incarnation, entry.operation_id, entry.manifest_digest)

    def _publish_plan(self, plan: _Plan, request: _Request, checks: tuple[Mapping[str, Any], ...]) -> PublishResult:
        reuse = True
        for _ in range(_ATTEMPTS):
            head = self._head
            current = None if head is None else head.current
            counts = {name: table.row_count for name, table in plan.tables.items()}
            same = current is not None and current.content_digest == plan.content_digest and not request.force
            if head is not None and current is not None and same:
                # A rollback needs no lease: what was current when this writing began may not be any more.
                now = self._store.head(head.dataset)
                if now.current == current:
                    return result_of("unchanged", now, current, row_counts=counts, seconds=self._watch.seconds)
                check_writable(now, self.dataset.engine)
                self._head = now
                continue
            if head is None:
                first = Head(self.dataset.name, new_incarnation_id(), self.dataset.engine)
                head = create_head(self._store, first, new_operation_id())
                check_writable(head, self.dataset.engine)
                self._head = head
                continue
            base = self._open_base(head, current) if reuse and current is not None else None
            self._settings.failpoints.hit(PUBLISH_AFTER_PLAN)
            try:
                return self._operate(plan, request, checks, head, current if base is not None else None, base)
            except BaseGone:
                _log.info("%s: the snapshot that this one was based on is gone; planning anew", self.dataset.name)
            except SnapshotDamaged as error:
                if base is None:
                    raise
                _log.warning("%s: its current snapshot can not be reused: %s", self.dataset.name, error)
                reuse = False
            except AlreadyPublished as found:
                return result_of(
                    "already_published", found.head, found.entry, row_counts=counts, seconds=self._watch.seconds
                )
            self._head = self._store.head(self.dataset.name)
            check_writable(self._head, self.dataset.engine)
        raise StoreError(f"the plan for {self.dataset.name!r} went stale {_ATTEMPTS} times", dataset=self.dataset.name)

    def _open_base(self, head: Head, current: SnapshotEntry) -> Base | None:
        try:
            return Base(self._objects, self._read(head, current), self._cache)
        except SnapshotDamaged as error:
            _log.warning("%s: its current snapshot can not be reused: %s", head.dataset, error)
            return None

    def _operate(
        self,
        plan: _Plan,
        request: _Request,
        checks: tuple[Mapping[str, Any], ...],
        head: Head,
        reused: SnapshotEntry | None,
        base: Base | None,
    ) -> PublishResult:
        """One operation: everything it writes lies under its own id, behind its own sidecar."""
        sidecar = self._arm(new_operation_id(), head)
        operation, hit = sidecar.operation_id, self._settings.failpoints.hit
        with self._watch.phase("upload"):
            stored = store_content(
                self._objects,
                plan.files,
                dataset=head.dataset,
                incarnation=head.incarnation,
                operation_id=operation,
                base=base,
                on_pack=lambda: hit(PUBLISH_DURING_EFFECTS),
                cache=self._cache,
            )
            manifest = self._manifest(plan, request, checks, head, operation, stored)
            manifest_bytes = checked(
                manifest.to_bytes(),
                partial(Manifest.parse, where="the manifest"),
                MAX_MANIFEST_BYTES,
                f"the manifest of {head.dataset!r}",
            )
            self._objects.write_if_absent(index_key(head.dataset, head.incarnation, operation), stored.index)
            self._objects.write_if_absent(manifest_key(head.dataset, head.incarnation, operation), manifest_bytes)
        hit(PUBLISH_AFTER_EFFECTS)
        sizes = dict(stored.pack_sizes)
        sizes[index_key(head.dataset, head.incarnation, operation)] = len(stored.index)
        sizes[manifest_key(head.dataset, head.incarnation, operation)] = len(manifest_bytes)
        with self._watch.phase("confirm"):
            self._confirm(manifest, digest_of(manifest_bytes), sizes)
        hit(PUBLISH_AFTER_CONFIRM)
        proposal = Proposal(
            manifest=manifest,
            manifest_digest=digest_of(manifest_bytes),
            uploaded_bytes=sum(sizes.values()),
            epoch=head.epoch,
            base=reused if len(stored.operations) > 1 else None,
            idempotency_key=self._key,
            summary=request.summary,
            allow_schema_change=request.allow_schema_change,
            max_snapshots=self._settings.max_snapshots,
            now_ms=self._settings.clock.now_ms(),
        )
        hit(PUBLISH_BEFORE_COMMIT)
        with self._watch.phase("commit"):
            committed = change_head(
                self._store, head.dataset, operation, lambda now: commit_to(now, proposal), clock=self._settings.clock
            )
        hit(PUBLISH_AFTER_COMMIT)
        with self._watch.phase("retire"):
            self._retire(sidecar)
        entry = committed.snapshots[-1]
        counts = {name: table.row_count for name, table in manifest.tables.items()}
        return result_of(
            "published",
            committed,
            entry,
            row_counts=counts,
            seconds=self._watch.seconds,
            uploaded_objects=len(sizes),
            stored_bytes=_plain_bytes(stored, operation),
        )

    def _arm(self, operation: OperationId, head: Head) -> Sidecar:
        holder = this_holder()
        sidecar = Sidecar(
            operation_id=operation,
            kind=SidecarKind.PUBLISH,
            dataset=head.dataset,
            incarnation=head.incarnation,
            epoch=head.epoch,
            base_snapshot_id=head.current_snapshot_id,
            idempotency_key=self._key,
            owner=holder.to_json(),
            started_at_ms=self._settings.clock.now_ms(),
        )
        with self._watch.phase("arm"):
            self._objects.write_if_absent(sidecar_key(head.dataset, operation), sidecar.to_bytes())
        self._settings.failpoints.hit(PUBLISH_AFTER_SIDECAR)
        return sidecar

    def _manifest(
        self,
        plan: _Plan,
        request: _Request,
        checks: tuple[Mapping[str, Any], ...],
        head: Head,
        operation: OperationId,
        stored: Stored,
    ) -> Manifest:
        return Manifest(
            operation_id=operation,
            dataset=head.dataset,
            incarnation=head.incarnation,
            engine=self.dataset.engine,
            engine_version=plan.captured.engine_version,
            storage_version=plan.captured.storage_version,
            created_at_ms=self._settings.clock.now_ms(),
            tables=plan.tables,
            files=tuple(file.entry for file in plan.files),
            operations=stored.operations,
            index_digest=digest_of(stored.index),
            content_digest=plan.content_digest,
            partition_keys=request.partition_keys,
            checks=checks,
            properties={**self.dataset.properties, **stored.properties},
        )

    def _confirm(self, manifest: Manifest, manifest_digest: str, sizes: Mapping[str, int]) -> None:
        """Look at what arrived in the store, before it is announced.

        Raises:
            StoreError: something is missing or has another size.
            SnapshotDamaged: something has another digest.
        """
        prefix = data_prefix(manifest.dataset, manifest.incarnation, manifest.operation_id)
        arrived = {listed.key: listed.size for listed in self._objects.list(prefix)}
        for key, size in sizes.items():
            if arrived.get(key) != size:
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
        by = f"process {sidecar.owner['pid']} on {sidecar.owner['host']}"
        try:
            write_audit(self._objects, sidecar, Outcome.COMMITTED, clock=self._settings.clock, by=by)
            self._settings.failpoints.hit(PUBLISH_AFTER_AUDIT)
            retire(self._objects, sidecar)
        except StoreError as error:
            _log.warning(
                "operation %s is published; its sidecar is left to the next writer: %s", sidecar.operation_id, error
            )
        self._settings.failpoints.hit(PUBLISH_AFTER_RETIRE)


def _plain_bytes(stored: Stored, operation: OperationId) -> int:
    """The plain bytes of what the operation itself put into packs."""
    rows = stored.properties[PACKS_PROPERTY]
    return sum(row["plain_bytes"] for row in rows if row["operation"] == operation)
