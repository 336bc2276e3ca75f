"""How a reload job, or any other program, asks a node what it serves and tells it to refresh."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.flight as fl

from snapshot_assets.errors import ConfigurationError, NodeUnavailable
from snapshot_assets.serve.errors import from_flight
from snapshot_assets.serve.messages import CommandStatementQuery, pack

__all__ = ["NodeClient"]


class NodeClient:
    """A control client of one reader node. A context manager; safe to use from several threads.

    Args:
        endpoint: the node's Flight URL, `grpc://host:port` or `grpc+tls://host:port`.
        token: a control token; a query token is enough for `status`.
        tls_ca: the certificates to trust, as a PEM file; the system's, when it is left out.
        tls_hostname: the name that the node's certificate must be for; the endpoint's host, when it is left out.
        timeout: seconds that an answer may take, beyond what is waited for.

    Raises:
        ConfigurationError: the endpoint is no Flight URL, or the certificates can not be read.
    """

    def __init__(
        self,
        endpoint: str,
        token: str | None = None,
        *,
        tls_ca: Path | None = None,
        tls_hostname: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        self.endpoint = endpoint
        self._timeout = timeout
        self._headers = [] if token is None else [(b"authorization", b"Bearer " + token.encode())]
        options: dict[str, Any] = {}
        try:
            if tls_ca is not None:
                options["tls_root_certs"] = tls_ca.read_bytes()
            if tls_hostname is not None:
                options["override_hostname"] = tls_hostname
            self._client = fl.connect(endpoint, **options)
        except (pa.ArrowException, fl.FlightError, OSError, ValueError) as error:
            raise ConfigurationError(
                f"{endpoint!r} can not be used as a reader node's endpoint: {error}",
                hint="Write it as grpc://host:port or grpc+tls://host:port.",
            ) from error

    def status(self) -> dict[str, Any]:
        """What the node serves: `ready`, `cohort`, `missing`, and the status of each dataset under `datasets`.

        Raises:
            NodeUnavailable: the node does not answer.
            TokenRefused: the token does not admit to it.
        """
        return self._act("status", b"", self._timeout)

    def refresh(
        self, dataset: str, at_least_generation: int | None = None, wait: float | None = None
    ) -> dict[str, Any]:
        """Have the node look for a newer generation of a dataset now.

        Args:
            dataset: the dataset.
            at_least_generation: the generation that the caller knows of.
            wait: seconds to look again while the node is below that generation.

        Returns:
            the fields of a `RefreshResult`, and `reached`: whether what is served is at least that generation.

        Raises:
            NodeUnavailable: the node does not answer.
            TokenRefused: the token does not admit to it.
            SnapshotAssetsError: what the refresh failed with on the node, which goes on serving what it had.
        """
        body = {"dataset": dataset, "at_least_generation": at_least_generation, "wait": wait}
        return self._act("refresh", json.dumps(body).encode(), self._timeout + (wait or 0.0))

    def pin(self, dataset: str, snapshot_id: int) -> dict[str, Any]:
        """Have the node serve a snapshot of a dataset whatever the head calls current, until `unpin` or its end.

        Returns:
            the fields of a `RefreshResult`.

        Raises:
            NodeUnavailable: the node does not answer.
            TokenRefused: the token does not admit to it.
            SnapshotMissing: the head does not list the snapshot.
            SnapshotAssetsError: what else it failed with on the node, whose pin is as it was.
        """
        body = {"dataset": dataset, "snapshot_id": snapshot_id}
        return self._act("pin", json.dumps(body).encode(), self._timeout)

    def unpin(self, dataset: str) -> dict[str, Any]:
        """Have the node follow the head of a dataset again; returns and raises what `pin` does."""
        return self._act("unpin", json.dumps({"dataset": dataset}).encode(), self._timeout)

    def drain(self, wait: float | None = None, *, resume: bool = False) -> dict[str, Any]:
        """Have the node be not ready, so that clients are sent elsewhere; queries are answered all the same.

        Args:
            wait: seconds to wait until no query runs.
            resume: have it be ready again instead.

        Returns:
            `draining`, `drained` (no query runs) and `running`, the number of queries that do.

        Raises:
            NodeUnavailable: the node does not answer.
            TokenRefused: the token does not admit to it.
        """
        body = {"wait": wait, "resume": resume}
        return self._act("drain", json.dumps(body).encode(), self._timeout + (wait or 0.0))

    def query(self, sql: str) -> pa.Table:
        """Run one SELECT on the node, as any Flight SQL client does; the token must admit to queries.

        Raises:
            NodeUnavailable: the node does not answer.
            TokenRefused: the token does not admit to it.
            QueryRefused: it is no single SELECT.
            QueryFailed: it failed on the node.
        """
        options = self._options(self._timeout)
        try:
            command = fl.FlightDescriptor.for_command(pack(CommandStatementQuery(sql)))
            [endpoint] = self._client.get_flight_info(command, options).endpoints
            return self._client.do_get(endpoint.ticket, options).read_all()
        except fl.FlightError as error:
            raise from_flight(error) from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise NodeUnavailable(f"what answers at {self.endpoint} is no reader node: {error}") from error

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _act(self, action: str, body: bytes, timeout: float) -> dict[str, Any]:
        try:
            results = list(self._client.do_action(fl.Action(action, body), self._options(timeout)))
            answer = json.loads(results[0].body.to_pybytes())
        except fl.FlightTimedOutError as error:
            raise NodeUnavailable(
                f"{self.endpoint} did not answer {action!r} within {timeout:g} s",
                hint="See whether the node hangs or is overloaded; if it only needs longer, raise the timeout.",
            ) from error
        except fl.FlightError as error:
            raise from_flight(error) from error
        except (pa.ArrowException, OSError, ValueError, IndexError) as error:
            raise NodeUnavailable(f"what answers at {self.endpoint} is no reader node: {error}") from error
        if not isinstance(answer, dict):
            raise NodeUnavailable(f"what answers at {self.endpoint} is no reader node: {answer!r}")
        return answer

    def _options(self, timeout: float) -> fl.FlightCallOptions:
        return fl.FlightCallOptions(timeout=timeout, headers=self._headers)
