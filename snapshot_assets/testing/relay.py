"""An HTTP relay in front of a server: it writes down every request, and spoils what passes when told to."""

from __future__ import annotations

import http.client
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit

__all__ = ["Relay", "Request", "Verdict"]

Verdict = Literal["relay", "lose", "refuse", "hang", "delay", "cut", "reset", "break"]
"""What becomes of a request.

`relay`: it is passed on, and its answer back. `lose`: it is passed on, and the connection is closed instead of the
answer. `refuse`: it is answered with status 503 and not passed on. `hang`: it is neither passed on nor answered.
`delay`: it is passed on after `Relay.delay` seconds. `cut`: it is passed on, and the connection is closed after half of
the answer. `reset`: as `cut`, by a reset. `break`: half of its body is passed on, then both connections are reset.
"""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as it came in. Header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]


class Relay:
    """A relay on a free loopback port, for the time of its context. Signatures stay valid: the host is not changed.

    Args:
        endpoint: the `http://` address of the server; without one, every request that is relayed is answered with an
            empty success.
        judge: says what becomes of a request; it is asked for one request at a time.

    Attributes:
        delay: the seconds of a `delay`.
        requests: every request so far.
    """

    def __init__(self, endpoint: str | None = None, judge: Callable[[Request], Verdict] = lambda _: "relay") -> None:
        self.judge = judge
        self.delay = 0.5
        self.requests: list[Request] = []
        self._target = None if endpoint is None else urlsplit(endpoint).netloc
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="relay", daemon=True)

    @property
    def endpoint(self) -> str:
        """Where to send requests instead."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def methods(self) -> list[str]:
        """The methods of the requests so far."""
        with self._lock:
            return [request.method for request in self.requests]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                relay._answer(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the names that http.server calls

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002, ARG002
                return

        return Handler

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(handler.command, handler.path, headers)
        with self._lock:
            self.requests.append(request)
            verdict = self.judge(request)
        if verdict in {"hang", "delay"}:
            self._closing.wait(60 if verdict == "hang" else self.delay)
        if verdict == "hang":
            handler.close_connection = True
            return
        if verdict == "break" and self._target is not None:
            self._ask_half(request, body)
            _reset(handler.connection)
            handler.close_connection = True
            return
        status, reason, answer = 503 if verdict == "refuse" else 200, "", b""
        answer_headers: list[tuple[str, str]] = []
        if verdict != "refuse" and self._target is not None:
            status, reason, answer_headers, answer = self._ask(request, body)
        if verdict == "lose":
            handler.close_connection = True
            return
        head = _head(request, status, reason, answer_headers, len(answer))
        if verdict in {"cut", "reset"}:
            handler.close_connection = True
            handler.wfile.write(head + answer[: len(answer) // 2] if answer else head[: len(head) // 2])
            if verdict == "reset":
                _reset(handler.connection)
            return
        handler.wfile.write(head + answer)

    def _ask(self, request: Request, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes]:
        connection = self._begun(request)
        try:
            connection.endheaders(body or None)
            response = connection.getresponse()
            return response.status, response.reason, response.getheaders(), response.read()
        finally:
            connection.close()

    def _ask_half(self, request: Request, body: bytes) -> None:
        connection = self._begun(request)
        try:
            connection.endheaders(body[: len(body) // 2] or None)
            if connection.sock is not None:
                _reset(connection.sock)
        finally:
            connection.close()

    def _begun(self, request: Request) -> http.client.HTTPConnection:
        """A request to the server, up to its headers."""
        assert self._target is not None
        connection = http.client.HTTPConnection(self._target, timeout=60)
        connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name != "connection":
                connection.putheader(name, value)
        return connection


def _head(request: Request, status: int, reason: str, headers: list[tuple[str, str]], size: int) -> bytes:
    """The status line and the headers of an answer, as they go to the client."""
    length = next((value for name, value in headers if name.lower() == "content-length"), str(size))
    lines = [f"HTTP/1.1 {status} {reason or http.client.responses[status]}"]
    lines += [
        f"{name}: {value}"
        for name, value in headers
        if name.lower() not in {"transfer-encoding", "connection", "content-length"}
    ]
    if status not in {204, 304}:
        lines.append(f"Content-Length: {length if request.method == 'HEAD' else size}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _reset(connection: socket.socket) -> None:
    """Close a connection by a reset, whatever else still refers to it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())
