"""A store in an object store: Amazon S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotModifiedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from snapshot_assets.errors import AccessDenied, Conflict, DocumentDamaged, NotFound, StoreError, StoreUnavailable
from snapshot_assets.store.connect import Place
from snapshot_assets.store.contract import MAX_DOCUMENT_BYTES, Listed, Versioned
from snapshot_assets.store.keys import check_key, check_prefix, check_ranges, check_size, coalesce
from snapshot_assets.store.parts import PartUploads

if TYPE_CHECKING:
    from obstore import GetResult, UpdateVersion
    from obstore.store import AzureStore, GCSStore, S3Store

__all__ = ["ObjectStore"]

_LIST_PAGE: Final = 1000
_STATUS: Final = re.compile(r"status code: (\d{3})")
_REFUSED: Final = ("AccessDenied", "ExpiredToken", "InvalidToken", "AuthorizationFailure")
_MISSING_BUCKET: Final = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")


class ObjectStore:
    """Objects of one bucket or container, beneath a prefix.

    The token of an object is its entity tag. Amazon S3 and Google Cloud Storage derive it from the content, so there
    two writes of equal bytes share a token: whoever compares tokens puts something unique into every version, as every
    document of the format does.

    An object up to `single_put_bytes` is created by one conditional request, which leaves nothing behind when it fails.
    Beyond that, on S3, it goes up in parallel parts that become an object, if absent, by one conditional request; a
    failure removes the parts, and only a process that is killed can leave some (a lifecycle rule removes those).

    Args:
        url: `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
        options: as `OPTIONS` of the scheme lists them. What is left out comes from boto3's chain (S3) or from the
            provider's own environment variables (GCS, Azure).
        credentials: a boto3 session.
        document_timeout: seconds for a request that carries a document.
        transfer_timeout: seconds for a request that carries bulk data.
        single_put_bytes: the largest object that is created by a single request on S3.

    Raises:
        ConfigurationError: the URL or an option is not understood.
    """

    def __init__(
        self,
        url: str,
        options: Mapping[str, str] | None = None,
        *,
        credentials: object | None = None,
        document_timeout: float = 30.0,
        transfer_timeout: float = 300.0,
        single_put_bytes: int = 96 * 1024 * 1024,
    ) -> None:
        self._place = Place.parse(url, options, credentials)
        self._document_timeout = document_timeout
        self._transfer_timeout = transfer_timeout
        self._single_put_bytes = single_put_bytes

    @property
    def url(self) -> str:
        return self._place.url

    @property
    def service(self) -> str:
        """What tells the store apart from another of the same URL."""
        return self._place.service

    def read(self, key: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned:
        with self._errors(key):
            return _versioned(key, obstore.get(self._documents, check_key(key)), limit)

    def read_if_changed(self, key: str, token: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned | None:
        with self._errors(key):
            try:
                found = obstore.get(self._documents, check_key(key), options={"if_none_match": token})
            except NotModifiedError:
                return None
            return _versioned(key, found, limit)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        check_key(key)
        # Ranges are joined here and not by obstore, which aborts by a panic when the object ends within a joint range.
        joint = list(coalesce([(offset, length) for offset, length in ranges if length]))
        answers = [memoryview(b"")] * len(ranges)
        try:
            with self._errors(key):
                if not joint:
                    obstore.head(self._documents, key)
                    return answers
                found = obstore.get_ranges(
                    self._bulk,
                    key,
                    starts=[start for start, _, _ in joint],
                    ends=[end for _, end, _ in joint],
                    coalesce=0,
                )
        except StoreError as error:
            if isinstance(error, NotFound | AccessDenied | StoreUnavailable):
                raise
            # A range that begins beyond the end is refused with a status that says only that much.
            check_ranges(key, ranges, self._size(key))
            raise
        positions = [position for position, (_, length) in enumerate(ranges) if length]
        for (start, end, members), data in zip(joint, found, strict=True):
            if len(data) != end - start:
                raise DocumentDamaged(f"{key} gave {len(data):,} bytes at {start:,}; {end - start:,} were asked for")
            view = memoryview(data)
            for position in (positions[member] for member in members):
                offset, length = ranges[position]
                answers[position] = view[offset - start : offset - start + length]
        return answers

    def write_if_absent(self, key: str, data: bytes) -> str:
        with self._errors(key, writing=True):
            return _token(
                obstore.put(self._documents, check_key(key), data, mode="create", use_multipart=False)["e_tag"]
            )

    def write_if_match(self, key: str, data: bytes, token: str) -> str:
        check_key(key)
        with self._errors(key, writing=True):
            expected: UpdateVersion = {"e_tag": token}
            if self._place.scheme == "gs":
                # Its conditions are on generations, which listings do not give; so the one behind the tag is looked up.
                try:
                    found = obstore.head(self._documents, key)
                except FileNotFoundError:
                    raise Conflict(f"{key} is gone") from None
                if found["e_tag"] != token:
                    raise Conflict(f"{key} is another version by now")
                expected = {"e_tag": token, "version": found["version"]}
            return _token(obstore.put(self._documents, key, data, mode=expected, use_multipart=False)["e_tag"])

    def upload(self, key: str, source: bytes | bytearray | memoryview | Path) -> None:
        check_key(key)
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        if size > self._single_put_bytes and self._place.scheme == "s3":
            self.upload_in_parts(key, source)
            return
        data = source.read_bytes() if isinstance(source, Path) else source
        with self._errors(key, writing=True):
            obstore.put(self._bulk, key, data, mode="create", use_multipart=False)

    def upload_in_parts(self, key: str, source: bytes | bytearray | memoryview | Path) -> None:
        """Create an object in parallel parts, whatever its size, if absent. Only on S3; elsewhere as `upload`."""
        check_key(key)
        if self._place.scheme == "s3":
            self._parts.upload(key, source)
        else:
            self.upload(key, source)

    def list(self, prefix: str) -> Iterator[Listed]:
        check_prefix(prefix)
        with self._errors(prefix):
            for page in obstore.list(self._documents, prefix or None, chunk_size=_LIST_PAGE):
                for found in page:
                    modified_ms = int(found["last_modified"].timestamp() * 1000)
                    yield Listed(found["path"], found["size"], _token(found["e_tag"]), modified_ms)

    def delete(self, keys: Iterable[str]) -> None:
        doomed = [check_key(key) for key in keys]
        if not doomed:
            return
        with self._errors(doomed[0]):
            try:
                obstore.delete(self._documents, doomed)
            except FileNotFoundError:
                for key in doomed:
                    with contextlib.suppress(FileNotFoundError):
                        obstore.delete(self._documents, key)

    @cached_property
    def _documents(self) -> S3Store | GCSStore | AzureStore:
        return self._place.client(self._document_timeout)

    @cached_property
    def _bulk(self) -> S3Store | GCSStore | AzureStore:
        return self._place.client(self._transfer_timeout)

    @cached_property
    def _parts(self) -> PartUploads:
        return PartUploads(self._place, self._transfer_timeout)

    def _size(self, key: str) -> int:
        with self._errors(key):
            return obstore.head(self._documents, key)["size"]

    @contextlib.contextmanager
    def _errors(self, key: str, *, writing: bool = False) -> Iterator[None]:
        """Give obstore's errors the types that say what to do about them."""
        try:
            yield
        except (AlreadyExistsError, PreconditionError) as error:
            raise Conflict(f"{key} exists already, or is another version by now") from error
        except FileNotFoundError as error:
            if writing or any(mark in str(error) for mark in _MISSING_BUCKET):
                hint = "Create the bucket first, or correct the URL."
                raise StoreError(f"the bucket of {self.url} does not exist", hint=hint) from error
            raise NotFound(f"{key} is not in {self.url}") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise AccessDenied(f"{self.url} refused access to {key or 'its list'}: {_reason(error)}") from error
        except (BaseError, ValueError) as error:
            raise self._other(error, key) from error

    def _other(self, error: Exception, key: str) -> StoreError:
        text = str(error)
        message = f"{self.url} failed on {key or 'its list'}: {_reason(error)}"
        if any(mark in text for mark in _REFUSED):
            return AccessDenied(message)
        match = _STATUS.search(text)
        status = int(match[1]) if match else 0
        if status in {401, 403}:
            return AccessDenied(message)
        if (300 <= status < 500 and status not in {408, 429}) or "redirect" in text:
            return StoreError(message, hint="Check the URL, the endpoint and the region; asking again would not help.")
        return StoreUnavailable(message)


def _token(tag: str | None) -> str:
    if not tag:
        raise StoreError(
            "the object store gives its objects no entity tags", hint="Use one with ETags and conditional writes."
        )
    return tag


def _versioned(key: str, found: GetResult, limit: int) -> Versioned:
    check_size(key, found.meta["size"], limit)
    return Versioned(bytes(found.bytes()), _token(found.meta["e_tag"]))


def _reason(error: Exception) -> str:
    """The first line of obstore's message; what follows is its inner state."""
    line = str(error).partition("\n")[0].strip()
    code = re.search(r"<Code>(\w+)</Code>", str(error))
    return f"{line} [{code[1]}]" if code and code[1] not in line else line
