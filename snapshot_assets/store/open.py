"""From a URL to the store behind it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

from snapshot_assets.errors import ConfigurationError
from snapshot_assets.store.contract import Store
from snapshot_assets.store.keys import check_key
from snapshot_assets.store.local import LocalStore
from snapshot_assets.store.memory import MemoryStore

__all__ = ["open_objects"]

_SCHEMES: Final = ("s3:", "gs:", "az:", "file:", "memory:")
_MEMORY_STORES: Final[dict[str, MemoryStore]] = {}
_MEMORY_LOCK: Final = threading.Lock()


def open_objects(
    url: str | os.PathLike[str], options: Mapping[str, str] | None = None, *, credentials: object | None = None
) -> Store:
    """The store that a URL names. Nothing is asked of it yet.

    Args:
        url: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, `file:///folder`, a plain path, or
            `memory://name`, which is one store for the whole process; `memory://` alone is a fresh one each time.
        options: the object store's own settings; see `snapshot_assets.store.object`.
        credentials: a boto3 session, for `s3://`.

    Raises:
        ConfigurationError: the URL or an option is not understood.
    """
    try:
        url = os.fspath(url)
        scheme, separator, rest = url.partition("://")
    except TypeError as error:
        raise ConfigurationError(f"a store's URL is a text or a path, not {type(url).__name__}") from error
    if not separator:
        if url.startswith(_SCHEMES):
            raise ConfigurationError(f"{url!r} is no URL and hardly a path", hint="Give a URL as text, with its //.")
        return _local(Path(url), url, options, credentials)
    if scheme == "file":
        return _local(_path_of(url), url, options, credentials)
    if scheme == "memory":
        _refuse_settings(url, options, credentials)
        if not rest:
            return MemoryStore()
        check_key(rest)
        with _MEMORY_LOCK:
            return _MEMORY_STORES.setdefault(rest, MemoryStore(rest))
    if scheme in {"s3", "gs", "az"}:
        from snapshot_assets.store.object import ObjectStore

        return ObjectStore(url, options, credentials=credentials)
    raise ConfigurationError(
        f"no store is known for the URL {url!r}", hint="Use s3://, gs://, az://, file:///, memory://, or a path."
    )


def _local(path: Path, url: str, options: Mapping[str, str] | None, credentials: object | None) -> LocalStore:
    _refuse_settings(url, options, credentials)
    if not url.strip():
        raise ConfigurationError("the store's URL is empty", hint="Use s3://, gs://, az://, file:///, or a path.")
    try:
        return LocalStore(path.expanduser())
    except RuntimeError as error:
        raise ConfigurationError(f"{url!r} begins in the home folder of a user that is not known here") from error


def _path_of(url: str) -> Path:
    """The path that a file URL names, byte for byte."""
    try:
        parts = urlsplit(url)
        if parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
            return Path(os.fsdecode(unquote_to_bytes(parts.path)))
    except ValueError:
        pass
    raise ConfigurationError(f"{url!r} is not an absolute file URL", hint="Write file:///folder, or a path.")


def _refuse_settings(url: str, options: Mapping[str, str] | None, credentials: object | None) -> None:
    if options or credentials is not None:
        what = f"the options {', '.join(sorted(options))}" if options else "credentials"
        raise ConfigurationError(f"{url!r} takes no options and no credentials, but {what} were given")
