"""Find out whether a store keeps its word, before anything is entrusted to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

from snapshot_assets.errors import AccessDenied, Conflict, StoreError, UnsafeStore
from snapshot_assets.ids import new_ulid
from snapshot_assets.store.contract import Store

__all__ = ["OfService", "UploadsInParts", "probe_store"]

_FIRST: Final = b"the first version"
_SECOND: Final = b"the second version, which is longer"


@runtime_checkable
class UploadsInParts(Protocol):
    """A store with a second way to create an object, whose condition has to be probed apart."""

    def upload_in_parts(self, key: str, source: bytes) -> None:
        """Create an object in parts, whatever its size, if absent."""


@runtime_checkable
class OfService(Protocol):
    """A store whose URL does not say everything: another one, behind another endpoint, may have the same URL."""

    @property
    def service(self) -> str:
        """What tells the store apart from another of the same URL."""


def probe_store(store: Store) -> bool:
    """Try the conditional writes and reads that publishing rests on, under `probe/<ulid>/`, and remove what was made.

    The store is to be the bare one: answers that `SettledStore` decides would hide what this looks for.

    Returns:
        Whether writing is permitted at all. Where it is not, nothing was tried, and nothing can be lost.

    Raises:
        UnsafeStore: the store accepts a write whose condition does not hold, or does not know its own token again.
        AccessDenied: the credentials permit to write, but not to read, list or delete as well.
        StoreUnavailable: the store did not answer.
    """
    folder = f"probe/{new_ulid()}/"
    made = [f"{folder}document", f"{folder}upload", f"{folder}parts"]
    try:
        first = store.write_if_absent(made[0], _FIRST)
    except AccessDenied:
        return False
    try:
        _probe_documents(store, folder, made[0], first)
        _probe_upload(store, store.upload, made[1])
        if isinstance(store, UploadsInParts):
            _probe_upload(store, store.upload_in_parts, made[2])
    except BaseException:
        # What was found out matters more than what is left behind.
        with contextlib.suppress(StoreError):
            store.delete(made)
        raise
    store.delete(made)
    return True


def _probe_documents(store: Store, folder: str, key: str, first: str) -> None:
    _must_conflict(store, "creates an object that exists", lambda: store.write_if_absent(key, _SECOND))
    second = store.write_if_match(key, _SECOND, first)
    _must_conflict(store, "replaces a version that is gone", lambda: store.write_if_match(key, _FIRST, first))
    if first == second or store.read(key).data != _SECOND:
        raise _unsafe(store, "does not keep what was written last")
    if store.read_if_changed(key, second) is not None:
        raise _unsafe(store, "does not know the version again that it has just written")
    if {listed.key: listed.token for listed in store.list(folder)} != {key: second}:
        raise _unsafe(store, "lists another version than the one that it holds")


def _probe_upload(store: Store, upload: Callable[[str, bytes], None], key: str) -> None:
    upload(key, _FIRST)
    _must_conflict(store, "uploads over an object that exists", lambda: upload(key, _SECOND))


def _must_conflict(store: Store, fault: str, attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except Conflict:
        return
    raise _unsafe(store, f"{fault}, in spite of the condition given")


def _unsafe(store: Store, fault: str) -> UnsafeStore:
    return UnsafeStore(f"{store.url} can not be trusted with snapshots: it {fault}")
