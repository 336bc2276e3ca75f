"""The store that assets publish to, as a Dagster resource."""

# Dagster reads the annotations of a resource's fields as objects, so they are not postponed here.

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    from snapshot_assets.publish.publisher import Publisher
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["SnapshotStoreResource", "store_kind"]

_KINDS: Final = {"s3": "s3", "gs": "gcs", "az": "azure", "memory": "memory"}


class SnapshotStoreResource(dg.ConfigurableResource[Any]):
    """A place where snapshots are kept: a bucket of an object store, or a folder.

    Credentials of an S3 store come from boto3's own chain, from `options`, or from a `dagster_aws.s3.S3Resource` in
    `s3`; dagster-aws is imported only by whoever makes one.

    Example:
        .. code-block:: python

            SnapshotStoreResource(url=dg.EnvVar("SNAPSHOT_STORE"))
            SnapshotStoreResource(url="s3://lake/snapshots", s3=S3Resource(profile_name="lake"))
    """

    url: str = Field(
        description="s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///folder or path."
    )
    options: dict[str, str] = Field(
        default={}, description="The object store's own settings: endpoint, region, access_key_id, allow_http ..."
    )
    s3: dg.ResourceDependency[Any] = Field(
        default=cast("Any", None),
        description="A dagster_aws S3Resource whose credentials, region and endpoint are used.",
    )
    staging_dir: str | None = Field(
        default=None, description="Where staged copies are made; by default a folder beside each live database."
    )
    capture_timeout: float = Field(
        default=60.0, description="Seconds to wait for the live database to come to rest before it is captured."
    )
    wait: float = Field(
        default=1800.0,
        description="Seconds to wait for another writer of the same dataset, such as another run of a backfill.",
    )
    lease_duration: float = Field(
        default=60.0, description="Seconds without a sign of life after which another writer may take over."
    )
    verify: Literal["quick", "full", "none"] = Field(
        default="quick", description="How thoroughly a staged copy is checked before it is announced."
    )
    verify_upload: Literal["sizes", "digest", "restore"] = Field(
        default="sizes", description="How an upload is confirmed before it is announced."
    )
    max_snapshots: int = Field(default=100, description="How many snapshots a dataset lists at most, 3 to 1,000.")
    retry_for: float = Field(default=30.0, description="Seconds for which a store that is unavailable is asked again.")

    def open_store(self, *, read_only: bool = False, retry_for: float | None = None) -> "SnapshotStore":
        """Open the store. Read-only, no request is sent before something is read.

        Raises:
            ConfigurationError: the URL or an option is not understood.
            UnsafeStore: the store ignores the conditions of conditional writes.
            StoreUnavailable: the store does not answer.
        """
        from snapshot_assets.store.snapshot_store import SnapshotStore

        return SnapshotStore.open(
            self.url,
            self._all_options() or None,
            read_only=read_only,
            credentials=self._session(),
            retry_for=self.retry_for if retry_for is None else retry_for,
        )

    def open_publisher(self) -> "Publisher":
        """Open the store for writing, with a publisher on it; a context manager. Raises what `open_store` raises."""
        from snapshot_assets.publish.publisher import Publisher

        return Publisher(
            self.open_store(),
            staging_dir=None if self.staging_dir is None else Path(self.staging_dir),
            lease_duration=self.lease_duration,
            wait=self.wait,
            capture_timeout=self.capture_timeout,
            verify=self.verify,
            verify_upload=self.verify_upload,
            max_snapshots=self.max_snapshots,
        )

    def _all_options(self) -> dict[str, str]:
        if self.s3 is None:
            return dict(self.options)
        endpoint, region = getattr(self.s3, "endpoint_url", None), getattr(self.s3, "region_name", None)
        ours = {"endpoint": endpoint, "region": region}
        if endpoint and endpoint.startswith("http://"):
            ours["allow_http"] = "true"
        return {name: value for name, value in ours.items() if value} | dict(self.options)

    def _session(self) -> object | None:
        """A boto3 session with the credentials that the S3 resource names."""
        if self.s3 is None:
            return None
        import boto3

        names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "region_name", "profile_name")
        session: object = boto3.Session(**{name: value for name in names if (value := getattr(self.s3, name, None))})
        return session


def store_kind(url: str) -> str:
    """The Dagster kind that a store's URL belongs to: `s3`, `gcs`, `azure`, `memory` or `file`."""
    return _KINDS.get(url.partition("://")[0], "file")
