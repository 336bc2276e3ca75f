"""The readers that a reload job speaks to, as a Dagster resource."""

# Dagster reads the annotations of a resource's fields as objects, so they are not postponed here.
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    from snapshot_assets.serve.client import NodeClient

__all__ = ["ReaderFleetResource"]


class ReaderFleetResource(dg.ConfigurableResource[Any]):
    """The reader nodes that follow a store.

    Example:
        .. code-block:: python

            ReaderFleetResource(endpoints=["grpc://127.0.0.1:8815"], token=dg.EnvVar("CONTROL_TOKEN"))
    """

    endpoints: list[str] = Field(description="Where each reader node answers, such as grpc://127.0.0.1:8815.")
    token: str | None = Field(default=None, description="The bearer token of the nodes' control actions.")
    tls_ca: str | None = Field(
        default=None, description="The certificates to trust, as a PEM file; the system's when left out."
    )
    timeout: float = Field(
        default=600.0, description="Seconds in which a node must have fetched and loaded what it was asked for."
    )

    def open_client(self, endpoint: str, *, timeout: float | None = None) -> "NodeClient":
        """A client of one node; a context manager. Connects with its first call.

        Raises:
            ConfigurationError: the endpoint is no Flight URL, or the certificates can not be read.
        """
        from snapshot_assets.serve.client import NodeClient

        return NodeClient(
            endpoint,
            self.token,
            tls_ca=None if self.tls_ca is None else Path(self.tls_ca),
            timeout=self.timeout if timeout is None else timeout,
        )
