"""Uploads in parts to S3, by boto3: the one operation for which obstore takes no condition."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from snapshot_assets.errors import AccessDenied, Conflict, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from snapshot_assets.store.connect import Place

__all__ = ["PART_BYTES", "PartUploads"]

PART_BYTES: Final = 16 * 1024 * 1024
_PARALLEL: Final = 4
_CONNECTIONS: Final = 4 * _PARALLEL
_MAX_PARTS: Final = 10_000

_log = logging.getLogger(__name__)


class PartUploads:
    """Uploads to one place; all share a client, which is made for the first of them: making one takes long.

    Args:
        place: the bucket and the prefix.
        timeout: seconds for a request.
    """

    def __init__(self, place: Place, timeout: float) -> None:
        self._place = place
        self._timeout = timeout

    def upload(self, key: str, source: bytes | bytearray | memoryview | Path) -> None:
        """Create an object from parallel parts, if absent; a failure removes the parts. Memory: four parts.

        Raises:
            Conflict: the key exists; what is there was left as it is.
            AccessDenied: the credentials do not permit it.
            StoreUnavailable: the store did not answer; the object may or may not have been created.
        """
        place = self._place
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        part_bytes = max(PART_BYTES, -(-size // _MAX_PARTS))
        target = {"Bucket": place.bucket, "Key": f"{place.prefix}/{key}" if place.prefix else key}
        with _errors(place, key):
            client = self._client
            upload = {**target, "UploadId": client.create_multipart_upload(**target)["UploadId"]}

            def send(number: int) -> dict[str, Any]:
                body = _part(source, number * part_bytes, part_bytes)
                return {
                    "PartNumber": number + 1,
                    "ETag": client.upload_part(**upload, PartNumber=number + 1, Body=body)["ETag"],
                }

            try:
                threads = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="upload")
                try:
                    parts = list(threads.map(send, range(max(1, -(-size // part_bytes)))))
                finally:
                    # No part may arrive after the removal below.
                    threads.shutdown(wait=True, cancel_futures=True)
                client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
            except BaseException:
                _remove_parts(client, upload)
                raise

    @cached_property
    def _client(self) -> Any:
        from botocore.config import Config

        place = self._place
        config = Config(
            connect_timeout=min(5.0, self._timeout),
            read_timeout=self._timeout,
            retries={"total_max_attempts": 1},
            max_pool_connections=_CONNECTIONS,
            # The signature covers the bytes, so every server checks them, also one that knows no newer checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"payload_signing_enabled": True, "addressing_style": "path" if place.endpoint else "auto"},
        )
        return place.boto3_session().client("s3", endpoint_url=place.endpoint, region_name=place.region, config=config)


def _remove_parts(client: Any, upload: dict[str, str]) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.abort_multipart_upload(**upload)
    except (BotoCoreError, ClientError) as error:
        if not isinstance(error, ClientError) or error.response["Error"].get("Code") != "NoSuchUpload":
            _log.warning("the parts of %s may be left in %s: %s", upload["Key"], upload["Bucket"], error)


def _part(source: bytes | bytearray | memoryview | Path, offset: int, length: int) -> bytes:
    if isinstance(source, Path):
        with source.open("rb") as file:
            file.seek(offset)
            return file.read(length)
    return bytes(memoryview(source)[offset : offset + length])


@contextlib.contextmanager
def _errors(place: Place, key: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as error:
        raise AccessDenied(f"no AWS credentials were found for {place.url}") from error
    except ClientError as error:
        status = int(error.response["ResponseMetadata"].get("HTTPStatusCode", 500))
        code = error.response["Error"].get("Code", "")
        message = f"{place.url} failed on the upload of {key}: {error}"
        if status in {409, 412}:
            raise Conflict(f"{key} exists already") from error
        if status in {401, 403}:
            raise AccessDenied(message) from error
        if code == "NoSuchBucket":
            hint = "Create the bucket first, or correct the URL."
            raise StoreError(f"the bucket of {place.url} does not exist", hint=hint) from error
        # An upload that is gone may have been completed by a request whose answer was lost.
        if status < 500 and code != "NoSuchUpload" and status not in {408, 429}:
            raise StoreError(message, hint="Check the URL, the endpoint and the region.") from error
        raise StoreUnavailable(message) from error
    except BotoCoreError as error:
        raise StoreUnavailable(f"{place.url} failed on the upload of {key}: {error}") from error
