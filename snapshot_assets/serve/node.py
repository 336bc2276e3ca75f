"""A reader node: one process that follows datasets and answers SQL about them."""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import IO, Self
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.flight as fl

from snapshot_assets import __version__
from snapshot_assets.errors import ConfigurationError, SnapshotAssetsError
from snapshot_assets.ids import check_dataset_name
from snapshot_assets.serve.control import Control, ServedReader
from snapshot_assets.serve.flight import FlightSqlServer
from snapshot_assets.serve.http import HttpServer, health_app
from snapshot_assets.serve.node_settings import NodeSettings, host_in_url
from snapshot_assets.serve.queries import Queries
from snapshot_assets.serve.sessions import check_locked
from snapshot_assets.serve.tokens import AccessRules

__all__ = ["NodeSettings", "ReaderNode", "run_node"]

_logger = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 30.0
_FLIGHT_STOP_SECONDS = 5.0
_END_SECONDS = 15.0


class ReaderNode:
    """Flight SQL, control actions and health around a reader. A context manager.

    The reader is not closed with the node: whoever made it closes it after.

    Args:
        reader: what follows the datasets. Its catalogue's sessions are to be made with `settings.catalog_config`.
        datasets: what is served.
        settings: how.

    Raises:
        ConfigurationError: nothing would be served, or the node would be open to other machines without a token.
    """

    def __init__(self, reader: ServedReader, datasets: Sequence[str], settings: NodeSettings | None = None) -> None:
        self.settings = settings or NodeSettings()
        if not datasets:
            raise ConfigurationError("the node has no datasets to serve", hint="Name at least one with --dataset.")
        self.datasets = tuple(dict.fromkeys(check_dataset_name(name) for name in datasets))
        self._reader = reader
        self._rules = AccessRules(
            token_file=self.settings.token_file,
            control_token_file=self.settings.control_token_file,
            loopback=self.settings.is_loopback,
        )
        self._control = Control(reader, self.datasets, lambda: 0 if self._queries is None else self._queries.running)
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._stop_lock = threading.Lock()
        self._first_attempts = threading.Semaphore(0)
        self._queries: Queries | None = None
        self._flight: FlightSqlServer | None = None
        self._http: HttpServer | None = None

    def start(self) -> Self:
        """Listen, then follow every dataset; returns when each was tried once.

        A dataset that can not be loaded is tried again in the background, and `/readyz` names it until it is.

        Raises:
            ConfigurationError: a port is taken, the TLS files can not be used, or the catalogue's sessions are open.
        """
        settings = self.settings
        try:
            check_locked(self._reader.catalog)
            self._queries = Queries(self._reader.catalog, settings.limits)
            self._flight = self._listen(self._queries)
            app = health_app(self._control.missing, lambda: self._stopping.is_set() or self._control.is_draining)
            self._http = HttpServer(app, settings.host, settings.http_port, settings.tls)
        except BaseException:
            self.stop()
            raise
        for name in self.datasets:
            # daemons: a first fetch that takes long must not keep a stopped process alive
            threading.Thread(target=self._follow, args=(name,), name=f"follow {name}", daemon=True).start()
        for _ in self.datasets:
            while not self._stopping.is_set() and not self._first_attempts.acquire(timeout=0.2):
                pass
        if not self._stopping.is_set():
            self._reader.announce_endpoint(self.announced_url)
        return self

    @property
    def flight_url(self) -> str:
        """Where Flight SQL clients connect to."""
        if self._flight is None:
            raise ConfigurationError("the node was not started", hint="Call start().")
        scheme = "grpc" if self.settings.tls is None else "grpc+tls"
        return f"{scheme}://{host_in_url(self.settings.host)}:{self._flight.port}"

    @property
    def announced_url(self) -> str:
        """Where others are told that the node answers."""
        url = urlsplit(self.flight_url)
        host, port = self.settings.announced(url.port or 0)
        return f"{url.scheme}://{host_in_url(host)}:{port}"

    @property
    def http_url(self) -> str:
        """Where `/healthz` and `/readyz` are."""
        if self._http is None:
            raise ConfigurationError("the node was not started", hint="Call start().")
        scheme = "http" if self.settings.tls is None else "https"
        return f"{scheme}://{host_in_url(self.settings.host)}:{self._http.port}"

    @property
    def missing(self) -> dict[str, str]:
        """The datasets that are not loaded, and why."""
        return self._control.missing()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the node has stopped; tells whether it has."""
        return self._stopped.wait(timeout)

    def request_stop(self) -> None:
        """Not ready from now on; whoever waits for the request stops the node. May be called by a signal handler."""
        self._stopping.set()

    def wait_for_request(self) -> None:
        """Wait until somebody wants the node to stop."""
        self._stopping.wait()

    def stop(self) -> None:
        """Not ready any more; finish what runs within `stop_timeout`, stop the rest, and end. Safe to call twice."""
        self._stopping.set()
        self._reader.announce_endpoint(None)
        with self._stop_lock:
            if self._queries is not None:
                self._queries.stop(self.settings.stop_timeout)
            if self._flight is not None:
                self._shut_down(self._flight)
                self._flight = None
            if self._http is not None:
                self._http.stop()
                self._http = None
            self._stopped.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _listen(self, queries: Queries) -> FlightSqlServer:
        settings = self.settings
        scheme = "grpc+tcp" if settings.tls is None else "grpc+tls"
        try:
            return FlightSqlServer(
                f"{scheme}://{host_in_url(settings.host)}:{settings.port}",
                queries=queries,
                control=self._control,
                rules=self._rules,
                datasets=self.datasets,
                version=__version__,
                tls=settings.tls,
            )
        except (pa.ArrowException, fl.FlightError, OSError) as error:
            raise ConfigurationError(
                f"Flight SQL can not listen on {settings.host} port {settings.port}: {error}"
            ) from error

    def _follow(self, name: str) -> None:
        pause = _FIRST_RETRY_SECONDS
        tried = False
        try:
            while not self._stopping.is_set():
                try:
                    self._reader.follow(name)
                    return
                except SnapshotAssetsError as error:
                    _logger.warning("dataset %s could not be loaded: %s: %s", name, error.kind, error)
                except Exception:
                    _logger.exception("dataset %s could not be loaded", name)
                if not tried:
                    tried = True
                    self._first_attempts.release()
                self._stopping.wait(pause)
                pause = min(2 * pause, _LONGEST_RETRY_SECONDS)
        finally:
            if not tried:
                self._first_attempts.release()

    @staticmethod
    def _shut_down(flight: FlightSqlServer) -> None:
        # it waits for its calls, and a client that reads nothing could hold one for ever
        ending = threading.Thread(target=flight.shutdown, name="snapshot-assets-flight-stop", daemon=True)
        ending.start()
        ending.join(_FLIGHT_STOP_SECONDS)
        if ending.is_alive():
            _logger.warning("a client that reads nothing holds a call open; it is cut off")


def _end_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _stop_when_asked(node: ReaderNode, asked: SimpleQueue[int]) -> None:
    """Pass a signal on to the node, and see to it that the process ends whatever a client's open call holds up."""
    asked.get()
    node.request_stop()
    time.sleep(node.settings.stop_timeout + _END_SECONDS)
    _logger.warning("the node did not end in time; it is cut off")
    _end_at_once()


def run_node(
    reader: ServedReader, datasets: Sequence[str], settings: NodeSettings | None = None, *, out: IO[str] | None = None
) -> None:
    """Run a node in the main thread until SIGTERM or SIGINT, then stop it in order; the process ends with it.

    When every dataset was tried once, one line of JSON goes to `out` (standard output): `flight`, `http`, `pid`,
    `ready` and `missing`. After the signal the caller releases what it has and ends, with exit code 0; what takes
    longer than `stop_timeout` and a few seconds is cut off.

    Raises:
        ConfigurationError: as `ReaderNode`.
    """
    node = ReaderNode(reader, datasets, settings)

    # A handler may come between any two instructions, so it may take no lock that the main thread could hold.
    asked: SimpleQueue[int] = SimpleQueue()
    threading.Thread(target=_stop_when_asked, args=(node, asked), name="snapshot-assets-stop", daemon=True).start()

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        asked.put(number)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with node:
            missing = node.missing
            line = {
                "flight": node.flight_url,
                "http": node.http_url,
                "pid": os.getpid(),
                "ready": not missing,
                "missing": missing,
            }
            print(json.dumps(line), file=out or sys.stdout, flush=True)
            node.wait_for_request()
        # An open call would keep the interpreter from ending, after everything else has been released.
        atexit.register(_end_at_once)
    finally:
        for number, action in previous.items():
            signal.signal(number, action)
