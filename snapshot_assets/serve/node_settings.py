"""How a reader node serves, and where others are told that it answers."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from snapshot_assets.errors import ConfigurationError
from snapshot_assets.serve.queries import Limits

__all__ = ["NodeSettings", "host_in_url"]


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """How a node serves.

    Args:
        host: the address to bind; any other than loopback needs a token file.
        port: of Flight SQL; 0 takes a free one.
        http_port: of `/healthz` and `/readyz`; 0 takes a free one.
        token_file: the tokens that admit to queries, one a line.
        control_token_file: the tokens that admit to control. Without it, whoever may query a loopback node may control
            it, and nobody may control another.
        max_rows: rows of one result; more is an error. None: no limit.
        query_timeout: seconds from the start of a query until the client has its last row. None: no limit.
        max_concurrency: how many queries run, or wait to be fetched, at once.
        queue_timeout: seconds that a query waits for a place before it is told to retry.
        fetch_timeout: seconds until a result that nobody fetches, or goes on fetching, is thrown away.
        memory_limit: of the DuckDB instance that queries run in, such as `4GB`; DuckDB's own when left out.
        threads: of that instance; all cores when left out.
        tls_cert: the certificate chain of both ports, as a PEM file.
        tls_key: its key.
        stop_timeout: seconds that running queries have when the node stops.
        advertise: the `host` or `host:port` that is announced in the store as where this node answers. By default the
            address that is bound; when that is all addresses, this machine's fully qualified name.

    Raises:
        ConfigurationError: a value is out of range, `advertise` is no host, or one of the TLS files is given without
            the other.
    """

    host: str = "127.0.0.1"
    port: int = 8815
    http_port: int = 8816
    token_file: Path | None = None
    control_token_file: Path | None = None
    max_rows: int | None = None
    query_timeout: float | None = 300.0
    max_concurrency: int = 16
    queue_timeout: float = 5.0
    fetch_timeout: float = 60.0
    memory_limit: str | None = None
    threads: int | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    stop_timeout: float = 30.0
    advertise: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_rows", 1), ("max_concurrency", 1), ("threads", 1), ("port", 0), ("http_port", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigurationError(f"{name} is {value}; {least} is the least")
        for name in ("query_timeout", "queue_timeout", "fetch_timeout", "stop_timeout"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigurationError(f"{name} is {value}; it takes seconds from 0")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigurationError("tls_cert and tls_key belong together, and one is missing")
        if self.advertise is not None:
            _host_and_port(self.advertise)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the node."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def announced(self, port: int) -> tuple[str, int]:
        """Where others reach a node that listens on this port: the host and the port that are announced."""
        if self.advertise is not None:
            host, advertised = _host_and_port(self.advertise)
            return host, advertised or port
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(self.host).is_unspecified:
                named = socket.getfqdn()
                return socket.gethostname() if named.startswith("localhost") else named, port
        return self.host, port

    @property
    def catalog_config(self) -> dict[str, str | int | bool]:
        """What the reader's `catalog_config` needs, so that the limits hold for the sessions that queries run in."""
        config: dict[str, str | int | bool] = {}
        if self.memory_limit is not None:
            config["memory_limit"] = self.memory_limit
        if self.threads is not None:
            config["threads"] = self.threads
        return config

    @property
    def limits(self) -> Limits:
        """What queries may take."""
        return Limits(
            max_concurrency=self.max_concurrency,
            queue_timeout=self.queue_timeout,
            query_timeout=self.query_timeout,
            fetch_timeout=self.fetch_timeout,
            max_rows=self.max_rows,
        )

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """The certificate chain and its key."""
        return None if self.tls_cert is None or self.tls_key is None else (self.tls_cert, self.tls_key)


def _host_and_port(text: str) -> tuple[str, int | None]:
    """A host, with or without a port; an IPv6 address alone, or in brackets.

    Raises:
        ConfigurationError: it is neither.
    """
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text)), None
    try:
        parts = urlsplit(f"//{text}")
        if parts.hostname and parts.netloc == text and parts.username is None:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ConfigurationError(
        f"advertise is {text!r}; it takes a host that others reach, with or without a port",
        hint="Write it as reader-1.internal or reader-1.internal:8815.",
    )


def host_in_url(host: str) -> str:
    """A host as a URL has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
