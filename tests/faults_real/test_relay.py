"""The relay spoils what passes in the ways that it names."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from snapshot_assets.testing.relay import Relay

BODY = bytes(range(256)) * 400


class Store(BaseHTTPRequestHandler):
    """Answers a GET with the body, and a PUT with what came."""

    protocol_version = "HTTP/1.1"
    came: list[tuple[int, int]] = []  # noqa: RUF012 - emptied by the fixture
    ended = threading.Event()

    def do_GET(self) -> None:
        self._answer(BODY)

    def do_PUT(self) -> None:
        announced = int(self.headers["content-length"])
        data = b""
        try:
            data = self.rfile.read(announced)
        except ConnectionError:
            self.close_connection = True
        finally:
            self.came.append((announced, len(data)))
            self.ended.set()
        if len(data) == announced:
            self._answer(data)

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@pytest.fixture
def relay() -> Iterator[Relay]:
    Store.came.clear()
    Store.ended.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    with Relay(f"http://127.0.0.1:{server.server_address[1]}") as relay:
        relay.delay = 0.05
        yield relay
    server.shutdown()
    server.server_close()


def ask(relay: Relay, method: str = "GET", body: bytes | None = None) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(relay.endpoint).netloc, timeout=30)
    try:
        connection.request(method, "/bucket/key", body)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_what_is_relayed_or_delayed_arrives_whole(relay: Relay) -> None:
    assert ask(relay) == BODY
    relay.judge = lambda _: "delay"
    assert ask(relay) == BODY
    assert ask(relay, "PUT", BODY) == BODY


def test_a_cut_answer_ends_after_its_half(relay: Relay) -> None:
    relay.judge = lambda _: "cut"
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(relay)
    assert (len(caught.value.partial), caught.value.expected) == (len(BODY) // 2, len(BODY) // 2)


def test_a_reset_answer_ends_in_a_reset(relay: Relay) -> None:
    relay.judge = lambda _: "reset"
    with socket.create_connection(urlsplit(relay.endpoint).netloc.split(":"), timeout=30) as connection:  # type: ignore[arg-type]
        connection.sendall(b"GET /bucket/key HTTP/1.1\r\nHost: here\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            while connection.recv(65_536):
                pass


def test_a_broken_request_reaches_the_server_by_half(relay: Relay) -> None:
    relay.judge = lambda _: "break"
    with pytest.raises(ConnectionError):
        ask(relay, "PUT", BODY)
    assert Store.ended.wait(30)
    [(announced, arrived)] = Store.came
    assert announced == len(BODY)
    assert arrived < announced


def test_a_lost_answer_was_given(relay: Relay) -> None:
    relay.judge = lambda _: "lose"
    with pytest.raises(ConnectionError):
        ask(relay, "PUT", BODY)
    assert Store.came == [(len(BODY), len(BODY))]
