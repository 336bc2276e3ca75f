"""The node's HTTP side: is it alive, and is it ready?"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from snapshot_assets.errors import ConfigurationError

__all__ = ["HttpServer", "health_app"]

_logger = logging.getLogger(__name__)


def health_app(missing: Callable[[], Mapping[str, str]], stopping: Callable[[], bool]) -> Starlette:
    """`/healthz` answers 200 while the process lives; `/readyz` when every dataset is loaded, else 503 and why."""

    def healthz(_: Request) -> JSONResponse:
        return JSONResponse({"alive": True})

    def readyz(_: Request) -> JSONResponse:
        absent = dict(missing())
        ready = not absent and not stopping()
        answer = {"ready": ready, "stopping": stopping(), "missing": absent}
        return JSONResponse(answer, status_code=200 if ready else 503)

    return Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz)])


class HttpServer:
    """An HTTP server in a thread of its own; it listens from construction on.

    Raises:
        ConfigurationError: the port is taken, or the certificate can not be used.
    """

    def __init__(self, app: Starlette, host: str, port: int, tls: tuple[Path, Path] | None = None) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.listen(128)
            config = uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ssl_certfile=None if tls is None else str(tls[0]),
                ssl_keyfile=None if tls is None else str(tls[1]),
            )
            config.load()
        except OSError as error:
            self._socket.close()
            raise ConfigurationError(f"the HTTP side can not listen on {host} port {port}: {error}") from error
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="snapshot-assets-http", daemon=True
        )
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End the server; what it answers just now, it answers."""
        self._server.should_exit = True
        self._thread.join(timeout)
        if self._thread.is_alive():
            _logger.warning("the HTTP side did not end within %g seconds", timeout)
        self._socket.close()
