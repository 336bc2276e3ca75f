"""The publisher: from a live database to a visible snapshot, or to nothing at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

from snapshot_assets.clock import SYSTEM_CLOCK, Clock, in_seconds
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.engines.contract import VerifyLevel
from snapshot_assets.engines.gate import write_gate
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.errors import ConfigurationError, SidecarUnreadable, SnapshotAssetsError
from snapshot_assets.failpoints import NO_FAILPOINTS, PUBLISH_AFTER_LEASE, PUBLISH_AFTER_RECOVERY, Failpoints
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import MAX_SNAPSHOTS, Head, SnapshotEntry
from snapshot_assets.publish.aborting import AbortSwitch
from snapshot_assets.publish.commit import MIN_SNAPSHOTS, check_writable, entry_of_key
from snapshot_assets.publish.heads import find_head
from snapshot_assets.publish.lease import LeaseBook, this_holder
from snapshot_assets.publish.operation import PublishSettings, UploadCheck
from snapshot_assets.publish.recovery import Verdict, claim_epoch, classify, heal, pending_sidecars
from snapshot_assets.publish.result import PublishOutcome, PublishResult, Stopwatch, result_of
from snapshot_assets.publish.writing import Writing
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["PublishOutcome", "PublishResult", "Publisher", "Writing"]


class Publisher:
    """Publishes datasets to one store. Safe to call from several threads and from any number of hosts.

    Durations are seconds, or a `timedelta`.

    Args:
        store: where to publish.
        staging_dir: where staged copies are made and the index of the last publish is cached; by default a folder
            `.snapshot-assets` beside each live database, so that a copy can share its blocks.
        lease_duration: how long without a sign of life until another writer may take over; 1 s to 24 h.
        wait: how long to wait for another writer of the same dataset.
        capture_timeout: how long to wait for the write gate, and for the live database to come to rest.
        verify: how thoroughly every staged copy is checked before it is announced.
        verify_upload: `sizes` compares what the store lists; `digest` reads everything back; `restore` also opens it.
        max_snapshots: how many snapshots the head lists at most, 3 to 1,000; a commit drops the oldest unprotected.
        clock: where time comes from.
        failpoints: for tests.

    Raises:
        ConfigurationError: a setting is out of range.
    """

    def __init__(
        self,
        store: SnapshotStore,
        *,
        staging_dir: str | Path | None = None,
        lease_duration: float | timedelta = 60.0,
        wait: float | timedelta = 0.0,
        capture_timeout: float | timedelta = 60.0,
        verify: VerifyLevel = "quick",
        verify_upload: UploadCheck = "sizes",
        max_snapshots: int = 100,
        clock: Clock = SYSTEM_CLOCK,
        failpoints: Failpoints = NO_FAILPOINTS,
    ) -> None:
        if store.read_only:
            raise ConfigurationError("a store that was opened read-only can not be published to")
        if not MIN_SNAPSHOTS <= max_snapshots <= MAX_SNAPSHOTS:
            raise ConfigurationError(f"max_snapshots is {max_snapshots}, not from {MIN_SNAPSHOTS} to {MAX_SNAPSHOTS}")
        for name, value, known in (
            ("verify", verify, get_args(VerifyLevel)),
            ("verify_upload", verify_upload, get_args(UploadCheck)),
        ):
            if value not in known:
                raise ConfigurationError(f"{name} is {value!r}; it is one of {', '.join(known)}")
        self._store = store
        self._leases = LeaseBook(store.objects, in_seconds("lease_duration", lease_duration), clock)
        self._writings: dict[AbortSwitch, int] = {}
        self._changed = threading.Condition()
        self._is_aborted = False
        self._wait = in_seconds("wait", wait)
        self._settings = PublishSettings(
            None if staging_dir is None else Path(staging_dir),
            in_seconds("capture_timeout", capture_timeout),
            verify,
            verify_upload,
            max_snapshots,
            clock,
            failpoints,
        )

    def publish(
        self,
        dataset: Dataset,
        *,
        idempotency_key: str | None = None,
        force: bool = False,
        allow_schema_change: bool = False,
        summary: Mapping[str, str] | None = None,
        partition_keys: Sequence[str] = (),
        checks: Sequence[Mapping[str, Any]] = (),
    ) -> PublishResult:
        """Capture the live database and make it the current snapshot.

        Atomic: readers see the whole snapshot or nothing of it. Unchanged content is not published again unless
        `force`. With an idempotency key that a listed snapshot bears, that snapshot is the answer.

        Args:
            dataset: what to publish.
            idempotency_key: the caller's name for what it wants done once, such as a run and a step.
            force: publish even when the content is that of the current snapshot.
            allow_schema_change: publish a schema that readers of the current one may not survive.
            summary: up to 2 KiB of text by name, kept in the head.
            partition_keys: recorded in the manifest.
            checks: results of checks that were made elsewhere, recorded in the manifest.

        Raises:
            WriterBusy: another writer is at work.
            CaptureError: the live database could not be captured, or a check refused the copy.
            PublishError: the dataset takes no such snapshot, or another writer was faster.
            StoreError: the store failed before anything could become visible.
            RecoveryRequired: whether the snapshot became visible is not known; the next publish settles it.
            Aborted: this publisher was aborted; nothing became visible.
        """
        with self.writing(dataset, idempotency_key=idempotency_key) as writing:
            return writing.publish(
                force=force,
                allow_schema_change=allow_schema_change,
                summary=summary,
                partition_keys=partition_keys,
                checks=checks,
            )

    @contextmanager
    def writing(self, dataset: Dataset, *, idempotency_key: str | None = None) -> Iterator[Writing]:
        """Take the writer lease and the write gate, settle what dead writers left, and hand out the live database.

        For code that changes the live database and then publishes it. Nothing is visible until `Writing.publish`;
        leaving without it publishes nothing. When the idempotency key is listed already, `Writing.already` is the
        earlier result and the gate is not taken.

        Raises:
            WriterBusy, DatasetSealed, DatasetDropped, EngineMismatch: this writer may not write now.
            LiveDatabaseBusy: another writer of this package holds the write gate.
            SidecarUnreadable: an operation that is pending can not be understood.
            Aborted: the writing, or this publisher, was aborted.
        """
        engine = engine_named(dataset.engine)
        engine.check_dataset(dataset)
        watch = Stopwatch(self._settings.clock)
        with _naming(dataset.name), self._begun(dataset.name) as switch, ExitStack() as stack:
            store = switch.guarded(self._store)
            with watch.phase("lease"):
                stack.enter_context(self._leases.acquire(dataset.name, wait=self._wait, switch=switch))
            self._settings.failpoints.hit(PUBLISH_AFTER_LEASE)
            with watch.phase("recover"):
                head = self._recover(store, dataset.name)
            self._settings.failpoints.hit(PUBLISH_AFTER_RECOVERY)
            gate = stack.enter_context(ExitStack())
            already = None
            if head is not None:
                check_writable(head, dataset.engine)
                entry = entry_of_key(head, idempotency_key)
                already = None if entry is None else self._already(store, head, entry, watch)
            if already is None:
                with watch.phase("gate"):
                    live, timeout = engine.live_path(dataset), self._settings.capture_timeout
                    gate.enter_context(write_gate(live, timeout=timeout, dataset=dataset.name, on_wait=switch.check))
            writing = Writing(
                store, self._settings, dataset, engine, head, idempotency_key, gate, watch, already, switch
            )
            stack.callback(writing.close)
            yield writing

    def _recover(self, store: SnapshotStore, dataset: str) -> Head | None:
        """Settle what dead writers left; the lease is held. Nothing pending: two requests."""
        sidecars = pending_sidecars(store.objects, dataset)
        head = find_head(store, dataset)
        if not sidecars:
            return head
        if head is None:
            raise SidecarUnreadable(
                f"{dataset!r} has operations in progress and no head",
                hint=f"Restore heads/{dataset}.json from a backup.",
                dataset=dataset,
            )
        clock = self._settings.clock
        if all(classify(sidecar, head, clock.now_ms()) is Verdict.WAITING for sidecar in sidecars):
            return head
        head = claim_epoch(store, dataset, clock=clock)
        heal(store, head, sidecars, clock=clock, by=f"recovery by {this_holder()}")
        return head

    def _already(self, store: SnapshotStore, head: Head, entry: SnapshotEntry, watch: Stopwatch) -> PublishResult:
        content = read_content(store.objects, head.dataset, head.incarnation, entry.operation_id, entry.manifest_digest)
        counts = {name: table.row_count for name, table in content.manifest.tables.items()}
        return result_of("already_published", head, entry, row_counts=counts, seconds=watch.seconds)

    @contextmanager
    def _begun(self, dataset: str) -> Iterator[AbortSwitch]:
        """Count a writing in, for as long as it lasts."""
        switch = AbortSwitch(dataset)
        with self._changed:
            if self._is_aborted:
                switch.abort()
            self._writings[switch] = threading.get_ident()
        try:
            switch.check()
            yield switch
        finally:
            with self._changed:
                del self._writings[switch]
                self._changed.notify_all()

    def abort(self) -> None:
        """Abort every writing of this publisher, see `Writing.abort`, and refuse new ones. Can be called twice."""
        with self._changed:
            self._is_aborted = True
            for switch in self._writings:
                switch.abort()

    def close(self) -> None:
        """Wait until what other threads publish has ended. To end without finishing, there is `abort`."""
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: all(thread == me for thread in self._writings.values()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _naming(dataset: str) -> Iterator[None]:
    """Errors that pass through name the dataset."""
    try:
        yield
    except SnapshotAssetsError as error:
        error.dataset = error.dataset or dataset
        raise
