"""One publish, from the write gate to a plan: capture, verify, validate, hash; and the operations that carry it out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from snapshot_assets.content.base import Base
from snapshot_assets.content.segments import hash_files
from snapshot_assets.content.snapshot import Content, read_content
from snapshot_assets.engines.contract import Captured, Engine, Optimized
from snapshot_assets.errors import ConfigurationError, SnapshotDamaged, StoreError
from snapshot_assets.failpoints import (
    PUBLISH_AFTER_CAPTURE,
    PUBLISH_AFTER_PLAN,
)
from snapshot_assets.ids import new_incarnation_id, new_operation_id
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import Head, SnapshotEntry
from snapshot_assets.model.manifest import (
    TableContent,
    check_paths,
    snapshot_digest,
)
from snapshot_assets.publish.aborting import AbortSwitch
from snapshot_assets.publish.commit import (
    AlreadyPublished,
    BaseGone,
    check_recordable,
    check_schema,
    check_writable,
)
from snapshot_assets.publish.heads import create_head
from snapshot_assets.publish.operation import Operation, Plan, PublishSettings, Request, cache_folder
from snapshot_assets.publish.result import PublishResult, Stopwatch, result_of
from snapshot_assets.publish.staging import staging_folder
from snapshot_assets.publish.validators import CheckResult, run_validators
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["Writing"]

_log = logging.getLogger(__name__)
_ATTEMPTS = 5


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
        switch: AbortSwitch,
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
        self._switch = switch

    def close(self) -> None:
        """The publisher's lease and gate are given back: nothing can be written or published any more."""
        self._is_open = False

    def abort(self) -> None:
        """Stop, from another thread: no call of the store is begun any more, also none that would give the lease back.

        Calls that are under way are not waited for. Whoever waits for the lease, for the gate or for an upload gets
        `Aborted`. What was begun stays as a dead writer would leave it, and the lease runs out by itself: the next
        writer settles it. A commit that was sent before this is not taken back; when its answer had not come,
        `RecoveryRequired` says so. A second call changes nothing.
        """
        self._switch.abort()

    def connect(self) -> AbstractContextManager[Any]:
        """A read-write connection to the live database, of the engine's own type, under the write gate.

        Raises:
            LiveDatabaseBusy: another process has the database open.
            ConfigurationError: this writing has ended, or captured the database: its write gate is open again.
        """
        self._check_open()
        return self._engine.connect_live(self.dataset)

    def optimize(self) -> Optimized:
        """Let the engine rewrite the live database, under the write gate; see `Engine.optimize`. Nothing is published.

        Raises:
            CaptureError: it could not be rewritten, and is as it was.
            ConfigurationError: this writing has ended, or captured the database: its write gate is open again.
        """
        self._check_open()
        with self._watch.phase("optimize"):
            return self._engine.optimize(self.dataset, timeout=self._settings.capture_timeout)

    @property
    def seconds(self) -> Mapping[str, float]:
        """How long each phase has taken that was gone through so far."""
        return dict(self._watch.seconds)

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
        request = Request(allow_schema_change, dict(summary or {}), tuple(partition_keys))
        check_recordable(self.dataset, self._key, request.summary, partition_keys, checks)
        with staging_folder(self._root / "staging", new_operation_id()) as folder:
            captured = self._capture(folder)
            tables, results = self._check(folder, captured, allow_schema_change=allow_schema_change)
            self._switch.check()
            with self._watch.phase("plan"):
                files = hash_files(captured.files)
                schemas = {name: table.schema for name, table in tables.items()}
                digest = snapshot_digest([file.entry for file in files], schemas)
                made = (*checks, *(result.to_json() for result in results))
                plan = Plan(captured, tables, files, digest, made)
            return self._carry_out(plan, request, force=force)

    def _check_open(self) -> None:
        self._switch.check()
        if not self._is_open:
            raise ConfigurationError(
                f"the write gate of {self.dataset.name!r} is open again: a writing publishes once, within its block",
                hint="Begin another writing.",
                dataset=self.dataset.name,
            )

    @property
    def _root(self) -> Path:
        return (self._settings.staging_dir or self.dataset.real_path.parent / ".snapshot-assets") / self.dataset.name

    def _capture(self, folder: Path) -> Captured:
        try:
            with self._watch.phase("capture"):
                captured = self._engine.capture(self.dataset, folder, timeout=self._settings.capture_timeout)
        finally:
            self.close()
            self._gate.close()
        self._switch.check()
        check_paths(file.path for file in captured.files)
        self._settings.failpoints.hit(PUBLISH_AFTER_CAPTURE)
        return captured

    def _check(
        self, folder: Path, captured: Captured, *, allow_schema_change: bool
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
            check_schema(self._head, schemas, allow_schema_change=allow_schema_change)
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

    def _carry_out(self, plan: Plan, request: Request, *, force: bool) -> PublishResult:
        """Publish the plan, unless its content is current already; made anew when what it builds on is gone."""
        reuse = True
        for _ in range(_ATTEMPTS):
            head = self._head
            current = None if head is None else head.current
            same = current is not None and current.content_digest == plan.content_digest and not force
            if head is not None and current is not None and same:
                # A rollback needs no lease: what was current when this writing began may not be any more.
                now = self._store.head(head.dataset)
                if now.current == current:
                    return result_of("unchanged", now, current, row_counts=plan.row_counts, seconds=self._watch.seconds)
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
                return Operation(
                    self._store,
                    self._settings,
                    self.dataset,
                    self._engine,
                    self._root,
                    self._watch,
                    idempotency_key=self._key,
                    head=head,
                    base=base,
                ).run(plan, request)
            except BaseGone:
                _log.info("%s: the snapshot that this one was based on is gone; planning anew", self.dataset.name)
            except SnapshotDamaged as error:
                if base is None:
                    raise
                _log.warning("%s: its current snapshot can not be reused: %s", self.dataset.name, error)
                reuse = False
            except AlreadyPublished as found:
                return result_of(
                    "already_published",
                    found.head,
                    found.entry,
                    row_counts=plan.row_counts,
                    seconds=self._watch.seconds,
                )
            self._head = self._store.head(self.dataset.name)
            check_writable(self._head, self.dataset.engine)
        raise StoreError(f"the plan for {self.dataset.name!r} went stale {_ATTEMPTS} times", dataset=self.dataset.name)

    def _open_base(self, head: Head, current: SnapshotEntry) -> Base | None:
        try:
            return Base(self._objects, self._read(head, current), cache_folder(self._root))
        except SnapshotDamaged as error:
            _log.warning("%s: its current snapshot can not be reused: %s", head.dataset, error)
            return None
