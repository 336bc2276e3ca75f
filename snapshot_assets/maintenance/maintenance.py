"""An operator's commands on one store: rollback, pins, verification, optimizing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Final

from snapshot_assets.clock import SYSTEM_CLOCK, Clock, in_seconds
from snapshot_assets.errors import (
    ConfigurationError,
    ConfirmationRequired,
    MaintenanceError,
    SnapshotAssetsError,
    SnapshotDamaged,
    SnapshotMissing,
    StoreError,
)
from snapshot_assets.failpoints import NO_FAILPOINTS, Failpoints
from snapshot_assets.ids import OperationId, new_incarnation_id, new_operation_id, new_ulid
from snapshot_assets.maintenance.cleanup import Cleaner, CleanupRow
from snapshot_assets.maintenance.lifecycle import DropResult, drop, recreated, sealed, unsealed
from snapshot_assets.maintenance.optimize import OptimizeResult, optimize_and_publish
from snapshot_assets.maintenance.pins import pinned, unpinned
from snapshot_assets.maintenance.readers import KnownReader, known_readers
from snapshot_assets.maintenance.repair import RepairRow, repair_dataset, repairable_datasets
from snapshot_assets.maintenance.retention import RetentionPolicy
from snapshot_assets.maintenance.rollback import Undo, listed_entry, rolled_back
from snapshot_assets.maintenance.verify import VerifyDepth, VerifyReport, verify_snapshot
from snapshot_assets.model.audit import AuditRow, Outcome, audit_key
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.engines import engine_source
from snapshot_assets.model.head import MAX_SNAPSHOTS, Head, Pin
from snapshot_assets.publish.heads import change_head
from snapshot_assets.publish.lease import LeaseBook, this_holder
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["Maintenance"]

_log = logging.getLogger(__name__)

_LEASE_SECONDS: Final = 60.0

DEFAULT_GRACE: Final = timedelta(hours=1)
"""How long objects stay after their snapshot has left the head."""


class Maintenance:
    """An operator's commands on one store. Each changes a head by one compare-and-swap, with an audit row of its own.

    Args:
        store: what to operate on.
        clock: where time comes from.
        failpoints: for tests.
    """

    def __init__(
        self, store: SnapshotStore, *, clock: Clock = SYSTEM_CLOCK, failpoints: Failpoints = NO_FAILPOINTS
    ) -> None:
        self._store = store
        self._clock = clock
        self._failpoints = failpoints
        self._leases = LeaseBook(store.objects, _LEASE_SECONDS, clock)

    def rollback(self, name: str, to_snapshot_id: int, *, expected_generation: int | None = None) -> Undo:
        """Make a listed snapshot current. The generation rises, so every live reader follows.

        The objects of the snapshot are looked at first; the next publish takes a new id and builds on what is current.

        Args:
            name: the dataset.
            to_snapshot_id: what becomes current.
            expected_generation: the generation that is to be replaced, and no later one; any, when it is left out.

        Raises:
            SnapshotMissing: the head lists no such snapshot.
            SnapshotDamaged: an object of it is missing.
            Conflict: the head has another generation than the expected one, or the dataset was recreated meanwhile.
            DatasetSealed, DatasetDropped: the dataset takes no changes.
        """
        return self._make_current(name, to_snapshot_id, expected_generation)

    def _make_current(self, name: str, snapshot_id: int, expected_generation: int | None) -> Undo:
        head = self._store.head(name)
        self._verified(head, snapshot_id, "sizes")
        before: int | None = None

        def move(now: Head) -> Head:
            nonlocal before
            before = now.current_snapshot_id
            return rolled_back(now, snapshot_id, seen=head, generation=expected_generation, now_ms=self._clock.now_ms())

        changed = self._change(name, "rollback", move)

        def back() -> Undo:
            if before is None:
                raise MaintenanceError(f"no snapshot of {name!r} was current before the rollback", dataset=name)
            return self._make_current(name, before, changed.generation)

        return Undo(name, snapshot_id, before, changed.generation, back)

    def pin(
        self,
        name: str,
        pin: str,
        snapshot_id: int,
        *,
        owner: str,
        reason: str = "",
        expires: timedelta | float | None = None,
    ) -> Pin:
        """Protect a snapshot from retention under the name `pin`; a pin of that name is replaced.

        Args:
            name: the dataset.
            pin: the pin's name.
            snapshot_id: what to protect.
            owner: who asks for it.
            reason: why.
            expires: for how long, as a duration or in seconds; without end when it is left out.

        Raises:
            SnapshotMissing: the head lists no such snapshot.
            DatasetSealed, DatasetDropped: the dataset takes no changes.
        """
        now_ms = self._clock.now_ms()
        until = None if expires is None else now_ms + round(in_seconds("expires", expires) * 1000)
        made = Pin(pin, snapshot_id, owner, reason, now_ms, until)
        self._change(name, "pin", lambda head: pinned(head, made))
        return made

    def unpin(self, name: str, pin: str) -> None:
        """Remove a pin.

        Raises:
            MaintenanceError: there is no pin of that name.
            DatasetSealed, DatasetDropped: the dataset takes no changes.
        """
        self._change(name, "unpin", lambda head: unpinned(head, pin))

    def verify(self, name: str, snapshot_id: int | None = None, level: VerifyDepth = "digest") -> VerifyReport:
        """Check a snapshot, by default the current one, in the store.

        Args:
            name: the dataset.
            snapshot_id: which of its snapshots.
            level: `sizes` looks whether every object is there; `digest` reads and checks all of it; `restore` opens
                what was read with the engine, too.

        Raises:
            SnapshotMissing: the head lists no such snapshot, or none is current.
            SnapshotDamaged: an object is missing or has another digest.
            CorruptCapture: the engine refuses what was restored.
        """
        head = self._store.head(name)
        wanted = head.current_snapshot_id if snapshot_id is None else snapshot_id
        if wanted is None:
            raise SnapshotMissing(f"{name!r} has no current snapshot", hint="Publish it first.", dataset=name)
        return self._verified(head, wanted, level)

    def _verified(self, head: Head, snapshot_id: int, level: VerifyDepth) -> VerifyReport:
        try:
            return verify_snapshot(self._store, head, listed_entry(head, snapshot_id), level)
        except SnapshotDamaged:
            now = self._store.head(head.dataset)
            if now.incarnation == head.incarnation and now.entry(snapshot_id) is not None:
                raise
            raise SnapshotMissing(
                f"snapshot {snapshot_id} of {head.dataset!r} was removed while it was looked at", dataset=head.dataset
            ) from None

    def optimize(self, dataset: Dataset, *, publisher: Publisher | None = None) -> OptimizeResult:
        """Rewrite a live database so that it is small and fast to read, and publish it as the next snapshot.

        It runs as a publish does: under the writer lease, after what dead writers left was settled, and under the write
        gate. The engine keeps every table's schema and rows, and the validators look at the result as at every other.
        The snapshot's summary tells under `optimize` what was done. When the engine finds nothing to do, nothing is
        published, also not what changed in the live database since its last publish; when it rewrites, the whole live
        database is published with all its changes.

        A crash leaves a whole live database, rewritten or not. When it was rewritten and the publish failed, the next
        publish stores it. A second call right after the first is skipped.

        Args:
            dataset: what to optimize.
            publisher: publishes to this store with its own settings, such as how many snapshots are kept; by default
                one with the default settings.

        Raises:
            WriterBusy, DatasetSealed, DatasetDropped, EngineMismatch: this writer may not write now.
            SidecarUnreadable: an operation that is pending can not be understood; nothing was touched.
            CaptureError: the live database is missing or busy, could not be rewritten, or a check refused the copy.
            PublishError, StoreError: as for every publish; the live database was rewritten.
        """
        return optimize_and_publish(publisher or Publisher(self._store, clock=self._clock), dataset)

    def cleanup(
        self,
        names: Sequence[str] | None = None,
        *,
        keep: int | None = None,
        older_than: timedelta | float | None = None,
        grace: timedelta | float = DEFAULT_GRACE,
        concurrency: int = 8,
        confirm: bool = False,
    ) -> list[CleanupRow]:
        """Remove snapshots that need not be kept, and delete what no snapshot needs.

        Never removed are the current snapshot, pinned ones, those that a live reader announces, and those that an
        operation in progress builds on. Objects stay for the grace after their snapshot has left the head; the next
        cleanup, or the next writer, then deletes them. One dataset's failure is in its row and stops no other.

        Args:
            names: the datasets; all of the store, when it is left out.
            keep: the newest snapshots that stay, at least three.
            older_than: only what was published longer ago than this goes. With `keep`: only what both allow.
            grace: how long objects stay for readers that are still downloading them.
            concurrency: how many datasets are cleaned side by side.
            confirm: do it; without it, the rows tell what would be done.

        Raises:
            RetentionPolicyMissing: neither `keep` nor `older_than` was given.
            ConfigurationError: a setting makes no sense.
        """
        policy = RetentionPolicy(keep=keep, older_than=older_than)
        grace_ms = round(in_seconds("grace", grace) * 1000)
        if concurrency < 1:
            raise ConfigurationError(f"concurrency is {concurrency}; at least one dataset is cleaned at a time")
        datasets = sorted(self._store.heads() if names is None else set(names))
        cleaner = self._cleaner(policy, grace_ms, confirm=confirm)
        with ThreadPoolExecutor(concurrency, thread_name_prefix="cleanup") as threads:
            return list(threads.map(cleaner.clean, datasets))

    def repair(
        self,
        name: str | None = None,
        *,
        confirm: bool = False,
        force: bool = False,
        wait: timedelta | float = 0.0,
    ) -> list[RepairRow]:
        """Settle what dead processes left, of one dataset or of all: what their next writers would do, done now.

        Args:
            name: the dataset; all of the store, when it is left out.
            confirm: do it; without it, the rows tell what would be done.
            force: set aside what can not be understood, so that writing can go on; it is kept beneath `quarantine/`.
            wait: how long to wait for another writer. A silent one of another host is replaced when this process has
                seen its lease unchanged for the duration that it wrote into it, a minute as a rule.

        Raises:
            ConfirmationRequired: `force` without `confirm`.
            StoreUnavailable: the store does not answer.
        """
        if force and not confirm:
            raise ConfirmationRequired("a forced repair has to be confirmed")
        cleaner = self._cleaner(
            RetentionPolicy(keep=MAX_SNAPSHOTS), round(DEFAULT_GRACE.total_seconds() * 1000), confirm=confirm
        )
        names = repairable_datasets(self._store) if name is None else [name]
        rows = (
            repair_dataset(
                self._store,
                one,
                cleaner,
                self._leases,
                confirm=confirm,
                force=force,
                wait=in_seconds("wait", wait),
                clock=self._clock,
            )
            for one in names
        )
        return [row for of_dataset in rows for row in of_dataset]

    def seal(self, name: str) -> Head:
        """Refuse new writers, and fence those at work. Readers go on. Reversible, see `unseal`.

        Raises:
            DatasetDropped: it was dropped.
        """
        return self._change(name, "seal", sealed)

    def unseal(self, name: str) -> Head:
        """Let writers in again; a drop that was begun is undone.

        Raises:
            DatasetDropped: it was dropped.
            MaintenanceError: it is not sealed.
        """
        return self._change(name, "unseal", unsealed)

    def drop(self, name: str, *, confirm: bool = False, force: bool = False) -> DropResult:
        """Drop a dataset: seal it, look who needs it, commit, and delete its data. A drop cut short is finished so.

        Its head stays as the fence of its name: publishing does not bring it back, `recreate` does.

        Args:
            name: the dataset.
            confirm: do it; without it, the result tells who needs the dataset.
            force: also when pins or live readers need it.

        Raises:
            DatasetDropped: it was dropped before, and nothing of it is left.
            SnapshotInUse: it is needed; it stays sealed.
            ConfirmationRequired: `force` without `confirm`.
        """
        return drop(
            self._store,
            name,
            confirm=confirm,
            force=force,
            now_ms=self._store_now_ms(),
            clock=self._clock,
            failpoints=self._failpoints,
        )

    def recreate(self, name: str, *, engine: str | None = None) -> Head:
        """Let a dropped name live again as a new incarnation, empty; readers see it as a higher generation.

        Args:
            name: the dataset.
            engine: the engine of the new incarnation; that of the old one, when it is left out.

        Raises:
            MaintenanceError: it was not dropped.
            UnsupportedEngine: there is no such engine.
        """
        if engine is not None:
            engine_source(engine)
        fresh = new_incarnation_id()
        return self._change(name, "recreate", lambda head: recreated(head, fresh, engine))

    def readers(self) -> list[KnownReader]:
        """The readers that announce themselves, alive or not, sorted by id.

        Raises:
            DocumentDamaged, UnsupportedFormatVersion: an announcement can not be understood.
        """
        return known_readers(self._store.objects, self._store_now_ms())

    def _cleaner(self, policy: RetentionPolicy, grace_ms: int, *, confirm: bool) -> Cleaner:
        now_ms = self._store_now_ms()
        readers: list[KnownReader] | SnapshotAssetsError
        try:
            readers = known_readers(self._store.objects, now_ms)
        except SnapshotAssetsError as error:
            readers = error
        return Cleaner(
            self._store,
            policy,
            readers,
            now_ms=now_ms,
            grace_ms=grace_ms,
            confirm=confirm,
            clock=self._clock,
            failpoints=self._failpoints,
        )

    def _store_now_ms(self) -> int:
        """The time by the store's own clock, as it stamps what is written; this machine's, when it may not be asked."""
        if self._store.read_only:
            return self._clock.now_ms()
        prefix = f"probe/{new_ulid()}/"
        self._store.objects.write_if_absent(f"{prefix}now", b"")
        try:
            return max(listed.last_modified_ms for listed in self._store.objects.list(prefix))
        finally:
            self._store.objects.delete([f"{prefix}now"])

    def _change(self, name: str, kind: str, decide: Callable[[Head], Head]) -> Head:
        operation = new_operation_id()
        head = change_head(self._store, name, operation, decide, clock=self._clock)
        self._audit(name, operation, kind)
        return head

    def _audit(self, name: str, operation: OperationId, kind: str) -> None:
        row = AuditRow(operation, kind, Outcome.COMMITTED, self._clock.now_ms(), str(this_holder()))
        try:
            self._store.objects.write_if_absent(audit_key(name, operation), row.to_bytes())
        except StoreError as error:
            _log.warning("%s of %s is done; its audit row could not be written: %s", kind, name, error)
