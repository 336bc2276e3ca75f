"""The readers that a reload job speaks to, as a Dagster resource."""

# Dagster reads the annotations of a resource's fields as objects, so they are not postponed here.
import fnmatch
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import SplitResult, urlsplit

import dagster as dg
from pydantic import Field

from snapshot_assets.errors import ConfigurationError
from snapshot_assets.resources.store import SnapshotStoreResource

if TYPE_CHECKING:
    from snapshot_assets.maintenance.readers import KnownReader
    from snapshot_assets.serve.client import NodeClient

__all__ = ["Fleet", "FleetReader", "NotCalled", "ReaderFleetResource"]

_TLS: Final = "grpc+tls"
_DEFAULT_PORT: Final = 8815
_DISCOVERED: Final = re.compile(
    r"(?P<scheme>grpc(\+tcp|\+tls)?)://(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+):\d{1,5}", re.ASCII
)
"""All that a discovered endpoint may be: nothing that two programs could read in two ways."""


@dataclass(frozen=True, slots=True)
class FleetReader:
    """A reader that may be called.

    Attributes:
        endpoint: where it answers.
        cohort: the group that it announced; nothing when that is not known from the store.
        tls_hostname: the name that its certificate must be for, when it is not the endpoint's host.
    """

    endpoint: str
    cohort: str | None = None
    tls_hostname: str | None = None


@dataclass(frozen=True, slots=True)
class NotCalled:
    """A reader that is known and not called, and why."""

    name: str
    cohort: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Fleet:
    """The readers of one dataset: those to call, and those that are only named."""

    readers: tuple[FleetReader, ...]
    not_called: tuple[NotCalled, ...]


class ReaderFleetResource(dg.ConfigurableResource[Any]):
    """The reader nodes that follow a store: listed, behind one DNS name, or as they announce themselves in the store.

    The three can be combined. Endpoints that are configured, `dns` included, are called as they are written. One that
    was found in the store was written there by whoever may write to the store, so the token is sent to it only over
    TLS, to a node that the certificates of `tls_ca` vouch for, on a host that `allowed_hosts` names; else it is named
    in the plan and not called.

    Example:
        .. code-block:: python

            ReaderFleetResource(endpoints=["grpc://127.0.0.1:8815"], token=dg.EnvVar("CONTROL_TOKEN"))
            ReaderFleetResource(
                discover=True, store=store, token=dg.EnvVar("CONTROL_TOKEN"),
                tls_ca="/etc/readers/ca.pem", allowed_hosts=["*.readers.internal"],
            )
    """

    endpoints: list[str] = Field(
        default=[], description="Where each reader node answers, such as grpc://127.0.0.1:8815."
    )
    dns: str | None = Field(
        default=None,
        description=(
            "A host:port each of whose addresses is a reader node, such as readers.internal:8815; "
            "over TLS when tls_ca is given, or when it begins with grpc+tls://."
        ),
    )
    discover: bool = Field(default=False, description="Call the live readers that announce themselves in the store.")
    store: dg.ResourceDependency[SnapshotStoreResource] = Field(
        default=cast("Any", None), description="The store whose announcements are read, with discover."
    )
    allowed_hosts: list[str] = Field(
        default=[],
        description="Hosts that a discovered endpoint may have, such as *.readers.internal; with a token, needed.",
    )
    token: str | None = Field(default=None, description="The bearer token of the nodes' control actions.")
    tls_ca: str | None = Field(
        default=None, description="The certificates to trust, as a PEM file; the system's when left out."
    )
    timeout: float = Field(
        default=600.0, description="Seconds in which a node must have fetched and loaded what it was asked for."
    )

    def find(self, dataset: str) -> Fleet:
        """The readers as they are now: those to call, and those that are only named, with the reason.

        Args:
            dataset: what they are to serve. Readers that announce themselves and do not follow it are left out.

        Raises:
            ConfigurationError: `dns` can not be resolved, or `discover` has no store.
            StoreError: the announcements can not be listed.
        """
        readers = {endpoint: FleetReader(endpoint) for endpoint in self.endpoints}
        if self.dns is not None:
            readers |= {reader.endpoint: reader for reader in _resolved(self.dns, with_tls=self.tls_ca is not None)}
        not_called: list[NotCalled] = []
        if self.discover:
            # The living first: who answers now where another one did before is no reader that is dead.
            for known in sorted(self._announced(not_called), key=lambda known: not known.is_alive):
                said = known.announcement
                if dataset not in said.datasets:
                    continue
                endpoint, cohort = said.endpoint, said.cohort
                if endpoint in readers:
                    reader = readers[endpoint]
                    readers[endpoint] = FleetReader(endpoint, reader.cohort or cohort, reader.tls_hostname)
                    continue
                reason = _why_not(known) or (None if endpoint is None else self._refusal(endpoint))
                if endpoint is None or reason is not None:
                    name = endpoint or said.reader_id
                    not_called.append(NotCalled(name, cohort, reason or "follows by itself: it has no endpoint"))
                else:
                    readers[endpoint] = FleetReader(endpoint, cohort)
        return Fleet(tuple(readers.values()), tuple(not_called))

    def open_client(self, reader: FleetReader | str, *, timeout: float | None = None) -> "NodeClient":
        """A client of one node; a context manager. Connects with its first call.

        Raises:
            ConfigurationError: the endpoint is no Flight URL, or the certificates can not be read.
        """
        from snapshot_assets.serve.client import NodeClient

        if isinstance(reader, str):
            reader = FleetReader(reader)
        return NodeClient(
            reader.endpoint,
            self.token,
            tls_ca=None if self.tls_ca is None else Path(self.tls_ca),
            tls_hostname=reader.tls_hostname,
            timeout=self.timeout if timeout is None else timeout,
        )

    def _announced(self, not_called: list[NotCalled]) -> "Iterable[KnownReader]":
        from snapshot_assets.clock import SYSTEM_CLOCK
        from snapshot_assets.maintenance.readers import ReaderBook

        if self.store is None:
            raise ConfigurationError(
                "discover=True needs the store that the readers announce themselves in",
                hint="Give the ReaderFleetResource store=SnapshotStoreResource(...).",
            )
        store = self.store.open_store(read_only=True)
        found = ReaderBook().look(store.objects, SYSTEM_CLOCK.now_ms())
        not_called += [NotCalled("unknown", None, f"{error.message} {error.hint}") for error in found.unreadable]
        return found.known

    def _refusal(self, endpoint: str) -> str | None:
        """Why a discovered endpoint is not called; nothing when it may be."""
        written = _DISCOVERED.fullmatch(endpoint)
        if written is None:
            return f"{endpoint!r} is no endpoint such as grpc+tls://host:8815"
        host = written["host"].strip("[]").lower()
        if self.allowed_hosts and not any(fnmatch.fnmatchcase(host, pattern.lower()) for pattern in self.allowed_hosts):
            return f"discovered, and no pattern of allowed_hosts matches {host}"
        if self.token is None:
            return None
        if not self.allowed_hosts:
            return "discovered, and without allowed_hosts no discovered endpoint gets the token"
        if written["scheme"] != _TLS:
            return "discovered without TLS, and the token is only sent over TLS"
        if self.tls_ca is None:
            return "discovered, and without tls_ca no discovered endpoint gets the token"
        return None


def _why_not(known: "KnownReader") -> str | None:
    from snapshot_assets.cli.output import time_text

    return None if known.is_alive else f"counts as dead: silent since {time_text(known.last_heard_ms)}"


def _resolved(dns: str, *, with_tls: bool) -> list[FleetReader]:
    """A reader for each address of a name; over TLS, their certificates are for the name."""
    written: SplitResult = urlsplit(dns if "://" in dns else f"{_TLS if with_tls else 'grpc'}://{dns}")
    try:
        host, port = written.hostname, written.port or _DEFAULT_PORT
    except ValueError:
        host, port = None, _DEFAULT_PORT
    if not host:
        raise ConfigurationError(f"{dns!r} is no host:port", hint="Write dns as readers.internal:8815.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigurationError(
            f"the readers' name {host!r} can not be resolved: {error}",
            hint="See whether the name is right and this machine can resolve it.",
        ) from error
    addresses = sorted({str(address[0]) for *_, address in found})
    hostname = host if written.scheme == _TLS else None
    urls = [f"{written.scheme}://{f'[{one}]' if ':' in one else one}:{port}" for one in addresses]
    return [FleetReader(url, tls_hostname=hostname) for url in urls]
