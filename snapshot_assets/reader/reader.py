"""The facade: a reader follows datasets of a store and serves the newest generation of each."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, overload

from snapshot_assets.clock import SYSTEM_CLOCK, Clock, in_seconds
from snapshot_assets.errors import ConfigurationError, NotLoaded, ReaderError, SnapshotAssetsError
from snapshot_assets.failpoints import NO_FAILPOINTS, Failpoints
from snapshot_assets.ids import check_dataset_name
from snapshot_assets.reader.announcing import Announcer, reader_id_of
from snapshot_assets.reader.catalog import Catalog
from snapshot_assets.reader.data_dir import DataDirLock, fresh_folder
from snapshot_assets.reader.drain import Drains
from snapshot_assets.reader.followed import FollowedDataset
from snapshot_assets.reader.handoff import FormatCheck, IndexHandoff, OnDrainTimeout, StreamHandoff
from snapshot_assets.reader.kept import Kept, KeptIndex, KeptStream
from snapshot_assets.reader.polling import Polling
from snapshot_assets.reader.provider import SnapshotProvider
from snapshot_assets.reader.registry import PoolRegistry
from snapshot_assets.reader.settings import OnBootstrapFailure, ReaderSettings, RefreshResult, snapshot_number
from snapshot_assets.reader.spare import Spares
from snapshot_assets.reader.status import DatasetStatus
from snapshot_assets.reader.swapping import ReaderParts
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["SnapshotReader"]

_log = logging.getLogger(__name__)

Handle = TypeVar("Handle")

_FIRST_RETRY: Final = 0.5
_LONGEST_RETRY: Final = 30.0


class SnapshotReader:
    """Follows datasets of a store in a data folder of its own. Safe to use from several threads; a context manager.

    What is whole in the data folder is served at once, also while the store is down. Whatever fails later, what was
    served goes on being served, and a lower generation never is.

    Args:
        store: where the snapshots are; opening it read-only is enough.
        data_dir: the folder for local copies; one process at a time.
        settings: how to behave.
        clock: where times come from.
        failpoints: what tests break.

    Raises:
        DataDirBusy: another process uses the data folder.
        ConfigurationError: the data folder can not be used.
    """

    def __init__(
        self,
        store: SnapshotStore,
        data_dir: str | Path,
        settings: ReaderSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        failpoints: Failpoints = NO_FAILPOINTS,
    ) -> None:
        self.store = store
        self.data_dir = Path(data_dir).absolute()
        if {"?", "\\"} & set(str(self.data_dir)):
            raise ConfigurationError(
                f"the data folder {self.data_dir} can not be used: DuckDB takes '?' and a backslash for something else",
                hint="Name a folder without them.",
            )
        self.settings = settings or ReaderSettings()
        self._clock = clock
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._known: dict[str, FollowedDataset] = {}
        self._followed: dict[str, FollowedDataset] = {}
        self._polled: set[str] = set()
        self._data_dir_lock = DataDirLock(self.data_dir)
        try:
            spill = fresh_folder(self.data_dir / ".spill")
        except BaseException as error:
            self._data_dir_lock.release()
            if not isinstance(error, OSError):
                raise
            raise ConfigurationError(
                f"the data folder {self.data_dir} can not be used: its .spill can not be made anew: {error}",
                hint="Remove what lies there, or name a folder that this user may make and write.",
            ) from error
        self._drains = Drains(clock, self.settings.drain_timeout, self.settings.drain_policy)
        self._spares = Spares()
        self._catalog = Catalog(self._datasets, self.settings.catalog_config, spill)
        self._parts = ReaderParts(
            store=store,
            settings=self.settings,
            clock=clock,
            failpoints=failpoints,
            registry=PoolRegistry(),
            drains=self._drains,
            spares=self._spares,
            spill=spill,
            check_open=self._check_open,
            on_change=self._changed,
        )
        self._announcer = (
            None
            if self.settings.announce_interval is None
            else Announcer(
                store.objects,
                reader_id_of(self.data_dir),
                self.status,
                interval=self.settings.announce_interval,
                cohort=self.settings.cohort,
                clock=clock,
            )
        )
        self._polling = (
            None
            if self.settings.refresh_interval is None
            else Polling(store, self.settings.refresh_interval, self.settings.threads, clock, self._polled_datasets)
        )

    def follow(self, name: str, *, refresh: bool = True) -> SnapshotProvider:
        """Serve a dataset from now on; for a dataset that is followed already, its provider.

        A local copy that is whole is served at once, without asking the store. Else the current snapshot is fetched; a
        dataset that has none yet is followed, and its provider has nothing loaded.

        Args:
            name: the dataset.
            refresh: look for newer generations every `refresh_interval`; else only when `refresh` is called.

        Raises:
            InvalidDatasetName: no dataset can have this name.
            SnapshotAssetsError: the first fetch failed and `on_bootstrap_failure` is `raise`; the dataset is not
                followed then.
            ReaderError: this reader is closed.
        """
        followed = self._know(name)
        with followed.starting:
            if name not in self._followed:
                followed.recover()
                if followed.provider.serving is None:
                    self._bootstrap(followed)
                elif followed.needs_pin:
                    self._take_pinned(followed)
                self._followed[name] = followed
                self._changed()
        if refresh and self._polling is not None:
            self._polled.add(name)
            self._polling.look_now()
        return followed.provider

    def refresh(self, name: str, at_least_generation: int | None = None) -> RefreshResult:
        """Look at the head now, and go to a newer generation if there is one. Serialized with other refreshes of it.

        Args:
            name: a dataset that is followed.
            at_least_generation: the generation that must be served when this returns; when it already is, the store is
                not asked.

        Raises:
            NotLoaded: the dataset is not followed, or the store does not have the generation that was asked for.
            SchemaIncompatible: the new schema is not acceptable; nothing was downloaded.
            EngineTooOld: this process can not read the new snapshot; nothing was downloaded.
            SnapshotDamaged: an object of it is missing or holds other bytes.
            SnapshotMissing: this reader is to hold a snapshot that the head does not list.
            HandoffFailed: what is kept beside the data did not agree to the new generation.
            DiskFull: it does not fit.
            StoreError: the store does not answer, or a document in it can not be understood.
            ReaderError: this reader is closed.
        """
        followed = self._followed_named(name)
        if at_least_generation is None:
            return followed.refresh()
        serving = followed.provider.serving
        if serving is not None and serving.current.generation >= at_least_generation and not serving.current.pinned:
            return RefreshResult("not_modified", name, serving.current.generation, serving.current.snapshot_id)
        result = followed.refresh()
        if followed.held_back:
            raise NotLoaded(
                f"generation {at_least_generation} of {name!r} was asked for, and this reader is pinned to snapshot "
                f"{result.snapshot_id}",
                hint="Unpin the reader to have it follow the head.",
                dataset=name,
            )
        if result.generation is None or result.generation < at_least_generation:
            raise NotLoaded(
                f"generation {at_least_generation} of {name!r} was asked for; the store has "
                f"{followed.status().head_generation}, and {result.generation} is served",
                hint="Ask again when it is published.",
                dataset=name,
            )
        return result

    def pin(self, name: str, snapshot_id: int | None) -> RefreshResult:
        """Serve a snapshot whatever the head calls current, until another one, or none, is pinned; then the head's.

        The snapshot is served under the generation that the head has when it is loaded, and never under a lower one
        than was served before; `current.pinned` tells that it was the pin's choice. Publishes and rollbacks are seen
        in the status only. The pin ends with this reader; one that is to outlive it stands in the settings.

        Args:
            name: a dataset that is followed.
            snapshot_id: the snapshot, one that the head lists or that is served; none: follow the head again.

        Raises:
            ConfigurationError: no snapshot can have this id.
            SnapshotMissing: the head does not list it.
            SnapshotAssetsError: what `refresh` raises. Whatever it is, the pin is as it was, and what was served is.
        """
        if snapshot_id is not None:
            snapshot_number("pin", snapshot_id)
        return self._followed_named(name).pin(snapshot_id)

    @overload
    def register(
        self,
        dataset: str,
        name: str,
        handoff: StreamHandoff[Handle, Any],
        *,
        drain_timeout: float | timedelta = ...,
        on_drain_timeout: OnDrainTimeout | Literal["abort", "cut_over"] = ...,
    ) -> KeptStream[Handle]: ...

    @overload
    def register(self, dataset: str, name: str, handoff: IndexHandoff[Handle]) -> KeptIndex[Handle]: ...

    @overload
    def register(self, dataset: str, name: str, handoff: FormatCheck) -> Kept: ...

    def register(
        self,
        dataset: str,
        name: str,
        handoff: FormatCheck,
        *,
        drain_timeout: float | timedelta = 30.0,
        on_drain_timeout: OnDrainTimeout | Literal["abort", "cut_over"] = OnDrainTimeout.ABORT,
    ) -> Kept:
        """Keep something beside a dataset's data, and hand it over at every swap from now on; see the hand-off kinds.

        May be called before the dataset is followed: it is opened with the first generation then. Else it waits for a
        swap that is under way, and is opened beside what is served. The methods of the hand-off are called by the
        thread that refreshes; they may query, and must not refresh, pin, follow or close.

        Args:
            dataset: the dataset.
            name: what it is called in results, in the status and in the log.
            handoff: an `IndexHandoff`, a `StreamHandoff` or a `FormatCheck`.
            drain_timeout: seconds, or a `timedelta`, that the uses of a stream have to end before it is stopped.
            on_drain_timeout: whether the reload is given up then, or goes on.

        Raises:
            ConfigurationError: the name is taken for this dataset, or the hand-off is of no kind or of two.
            HandoffFailed: it does not open or start beside what is served; it is not registered.
            InvalidDatasetName: no dataset can have this name.
            ReaderError: this reader is closed.
        """
        seconds = in_seconds("drain_timeout", drain_timeout)
        try:
            policy = OnDrainTimeout(on_drain_timeout)
        except ValueError:
            raise ConfigurationError(f"on_drain_timeout is {on_drain_timeout!r}; it takes abort or cut_over") from None
        return self._know(dataset).dispatcher.register(name, handoff, seconds, policy)

    def announce_endpoint(self, endpoint: str | None) -> None:
        """Tell the store where this reader answers control actions, if it announces itself at all."""
        if self._announcer is not None:
            self._announcer.reached_at(endpoint)

    @property
    def catalog(self) -> Catalog:
        """All loaded datasets in one SQL session."""
        return self._catalog

    def status(self) -> dict[str, DatasetStatus]:
        """Each followed dataset as it is at this moment; waits for nothing."""
        return {followed.name: followed.status() for followed in self._datasets()}

    def close(self) -> None:
        """Stop polling, give no more leases, close the pools, and let another process have the data folder.

        A fetch under way is abandoned. Leases that are out go on; each pool is closed when its last one ends. What
        interrupts one of these steps does not keep the others from being done. The second call does nothing.
        """
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        with ExitStack() as steps:
            # The last one first.
            steps.callback(self._data_dir_lock.release)
            steps.callback(self._spares.remove)
            steps.callback(self._drains.close)
            steps.callback(self._catalog.close)
            for followed in list(self._known.values()):
                steps.callback(followed.close)
            if self._polling is not None:
                steps.callback(self._polling.close)
            if self._announcer is not None:
                steps.callback(self._announcer.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _know(self, name: str) -> FollowedDataset:
        check_dataset_name(name)
        with self._lock:
            self._check_open()
            followed = self._known.get(name)
            if followed is None:
                followed = self._known[name] = FollowedDataset(name, self.data_dir / name, self._parts)
            return followed

    def _followed_named(self, name: str) -> FollowedDataset:
        self._check_open()
        followed = self._followed.get(name)
        if followed is None:
            raise NotLoaded(f"{name!r} is not followed by this reader", hint="Follow it first.", dataset=name)
        return followed

    def _take_pinned(self, followed: FollowedDataset) -> None:
        """Go to the pinned snapshot, though something else is served already; that goes on if it can not be had."""
        try:
            followed.refresh()
        except SnapshotAssetsError as error:
            _log.warning("%s: the pinned snapshot is not served yet: %s", followed.name, error)

    def _bootstrap(self, followed: FollowedDataset) -> None:
        policy = self.settings.on_bootstrap_failure
        pause = _FIRST_RETRY
        while True:
            try:
                followed.refresh(fall_back=policy is OnBootstrapFailure.FALLBACK)
                return
            except SnapshotAssetsError as error:
                if policy is OnBootstrapFailure.WARN:
                    _log.warning("%s: nothing is loaded yet: %s", followed.name, error)
                    return
                if policy is not OnBootstrapFailure.RETRY or self._closed.is_set():
                    raise
                _log.warning("%s: nothing is loaded yet, it is tried again in %.1f s: %s", followed.name, pause, error)
            self._clock.wait(self._closed, pause)
            pause = min(pause * 2.0, _LONGEST_RETRY)

    def _changed(self) -> None:
        """What is served of a dataset is another generation, or nothing any more."""
        self._catalog.renew()
        if self._announcer is not None:
            self._announcer.changed()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ReaderError("this reader is closed", hint="Open a new SnapshotReader.")

    def _datasets(self) -> list[FollowedDataset]:
        return list(self._followed.values())

    def _polled_datasets(self) -> list[FollowedDataset]:
        return [followed for followed in self._datasets() if followed.name in self._polled]
