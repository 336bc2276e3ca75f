"""The facade: a place where snapshots are kept, opened by URL."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Final

from snapshot_assets.clock import SYSTEM_CLOCK, Clock
from snapshot_assets.errors import AccessDenied, Conflict, InvalidDatasetName, NotFound
from snapshot_assets.ids import check_dataset_name, new_ulid, ulid_to_bytes
from snapshot_assets.model.document import dump_document, parse_document
from snapshot_assets.model.head import MAX_HEAD_BYTES, Head, head_key
from snapshot_assets.store.contract import Store, Versioned
from snapshot_assets.store.open import open_objects
from snapshot_assets.store.probe import OfService, probe_store
from snapshot_assets.store.settled import SettledStore, retry_unavailable

__all__ = ["SnapshotStore"]

_STORE_KEY: Final = "store.json"
_MAX_STORE_BYTES: Final = 64 * 1024
_HEADS: Final = "heads/"

_probed: set[tuple[str, str]] = set()
_probing = threading.Lock()


class SnapshotStore:
    """Snapshots of any number of datasets, under one URL. Safe to use from several threads.

    Opened for writing, a store is probed once per process, URL and endpoint, and gets its `store.json` if it has none.
    Opened read-only it costs nothing: no request is sent before something is read.

    Attributes:
        url: the root, without credentials.
        objects: the keys and bytes underneath, settled.
        read_only: whether it was opened for reading only.
    """

    def __init__(self, objects: Store, *, read_only: bool) -> None:
        self.url = objects.url
        self.objects = objects
        self.read_only = read_only
        self._store_id: str | None = None

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        options: Mapping[str, str] | None = None,
        *,
        read_only: bool = False,
        credentials: object | None = None,
        clock: Clock = SYSTEM_CLOCK,
        retry_for: float = 30.0,
    ) -> SnapshotStore:
        """Open the store at a URL.

        Args:
            url: `s3://bucket/prefix`, `gs://`, `az://`, `file:///folder`, a plain path, or `memory://name`.
            options: the object store's own settings, such as `endpoint` and `region`.
            read_only: write nothing, not even the probe.
            credentials: a boto3 session to take the credentials from, for `s3://`.
            clock: where times come from.
            retry_for: seconds for which a store that is unavailable is asked again.

        Raises:
            ConfigurationError: the URL or an option is not understood.
            UnsafeStore: the store ignores the conditions of conditional writes.
            UnsupportedFormatVersion: a newer version of this package made the store; nothing was touched.
            StoreUnavailable: the store does not answer.
        """
        objects = open_objects(url, options, credentials=credentials)
        store = cls(SettledStore(objects, clock, retry_for), read_only=read_only)
        if not read_only:
            store._prepare(clock, lambda: retry_unavailable(lambda: _probe_once(objects), clock, retry_for))
        return store

    @classmethod
    def over(
        cls, objects: Store, *, read_only: bool = False, clock: Clock = SYSTEM_CLOCK, retry_for: float = 30.0
    ) -> SnapshotStore:
        """Open the store over objects that are at hand; they are not probed. Raises what `open` raises."""
        store = cls(SettledStore(objects, clock, retry_for), read_only=read_only)
        if not read_only:
            store._prepare(clock, probe=None)
        return store

    @property
    def store_id(self) -> str:
        """The id that the store got when it was made; read once.

        Raises:
            NotFound: nobody has opened the store for writing yet.
            UnsupportedFormatVersion: a newer version of this package made it.
        """
        if self._store_id is None:
            self._store_id = _parse_store_id(self.objects.read(_STORE_KEY, limit=_MAX_STORE_BYTES))
        return self._store_id

    def heads(self) -> dict[str, str]:
        """The token of every dataset's head, by dataset, from one listing. Names that are no dataset's are left out."""
        found = {}
        for listed in self.objects.list(_HEADS):
            name = listed.key.removeprefix(_HEADS).removesuffix(".json")
            try:
                if listed.key == head_key(check_dataset_name(name)):
                    found[name] = listed.token
            except InvalidDatasetName:
                continue
        return found

    def head(self, name: str) -> Head:
        """The head of a dataset.

        Raises:
            NotFound: there is no such dataset.
            UnsupportedFormatVersion: a newer version of this package wrote it.
            DocumentDamaged: it breaks a rule of the format.
        """
        return self.read_head(name)[0]

    def read_head(self, name: str) -> tuple[Head, str]:
        """The head of a dataset and its token. Raises what `head` raises."""
        key = head_key(check_dataset_name(name))
        try:
            found = self.objects.read(key, limit=MAX_HEAD_BYTES)
        except NotFound as error:
            raise _no_dataset(name, self.url) from error
        return Head.parse(found.data, name), found.token

    def read_head_if_changed(self, name: str, token: str) -> tuple[Head, str] | None:
        """The head of a dataset and its token, or nothing if the token is still the same: one request either way.

        Raises what `head` raises.
        """
        key = head_key(check_dataset_name(name))
        try:
            found = self.objects.read_if_changed(key, token, limit=MAX_HEAD_BYTES)
        except NotFound as error:
            raise _no_dataset(name, self.url) from error
        return None if found is None else (Head.parse(found.data, name), found.token)

    def _prepare(self, clock: Clock, probe: Callable[[], bool] | None) -> None:
        """Refuse a newer store before anything is written, then probe it, then make `store.json` if there is none."""
        with contextlib.suppress(NotFound):
            self._store_id = self.store_id
        # Where writing is not permitted every write will say so itself; reading goes on.
        if (probe is None or probe()) and self._store_id is None:
            with contextlib.suppress(AccessDenied):
                self._store_id = self._create(clock)

    def _create(self, clock: Clock) -> str:
        store_id = new_ulid()
        try:
            self.objects.write_if_absent(
                _STORE_KEY, dump_document({"store_id": store_id, "created_at_ms": clock.now_ms()})
            )
        except Conflict:
            return _parse_store_id(self.objects.read(_STORE_KEY, limit=_MAX_STORE_BYTES))
        return store_id


def _probe_once(objects: Store) -> bool:
    """Probe the store unless this process has done so; tell whether it may be written."""
    place = (objects.url, objects.service if isinstance(objects, OfService) else "")
    with _probing:
        if place in _probed:
            return True
        permitted = probe_store(objects)
        if permitted:
            _probed.add(place)
        return permitted


def _parse_store_id(found: Versioned) -> str:
    document = parse_document(found.data, _STORE_KEY)
    store_id = document.text("store_id")
    ulid_to_bytes(store_id)
    return store_id


def _no_dataset(name: str, url: str) -> NotFound:
    return NotFound(
        f"{url} has no dataset {name!r}",
        hint="List the store's datasets and check the name; or publish the dataset first.",
        dataset=name,
    )
