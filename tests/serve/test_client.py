"""What a node's client can ask beyond the control actions, and where a node says that it is reached."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from snapshot_assets.errors import ConfigurationError, NodeUnavailable, QueryRefused
from snapshot_assets.serve.client import NodeClient
from snapshot_assets.serve.errors import timed_out
from snapshot_assets.serve.node import NodeSettings, ReaderNode
from tests.serve.standin import StandInReader


def test_a_client_asks_sql_and_the_status_with_its_cohort(node: ReaderNode) -> None:
    with NodeClient(node.flight_url, timeout=20.0) as client:
        assert client.query("select count(*) as rows from orders.main.orders").to_pylist() == [{"rows": 1000}]
        assert client.status()["cohort"] == "canary"
        with pytest.raises(QueryRefused):
            client.query("delete from orders.main.orders")


def test_a_node_that_hangs_is_told_from_one_that_is_not_there() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        endpoint = f"grpc://127.0.0.1:{silent.getsockname()[1]}"
        with NodeClient(endpoint, timeout=5.0) as client, pytest.raises(NodeUnavailable) as nobody:
            client.status()
        silent.listen()  # it lets in, and never says a word
        with NodeClient(endpoint, timeout=0.3) as client, pytest.raises(NodeUnavailable) as hanging:
            client.status()
    assert not timed_out(nobody.value)
    assert timed_out(hanging.value)
    assert "did not answer 'status' within 0.3 s" in str(hanging.value)


@pytest.mark.parametrize(
    ("advertise", "announced"),
    [
        ("reader-1", "grpc://reader-1:{port}"),
        ("reader-1:443", "grpc://reader-1:443"),
        ("10.0.0.7", "grpc://10.0.0.7:{port}"),
        ("fd00::7", "grpc://[fd00::7]:{port}"),
        ("[fd00::7]:443", "grpc://[fd00::7]:443"),
        (None, "grpc://127.0.0.1:{port}"),
    ],
)
def test_a_node_announces_where_others_reach_it(
    start: Callable[..., ReaderNode], reader: StandInReader, advertise: str | None, announced: str
) -> None:
    node = start(advertise=advertise)
    assert reader.endpoint == announced.format(port=node.flight_url.rpartition(":")[2])


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_bound_to_all_addresses_it_announces_the_name_of_the_machine(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "reader-1.internal")
    assert NodeSettings(host=host).announced(8815) == ("reader-1.internal", 8815)
    monkeypatch.setattr(socket, "getfqdn", lambda: "localhost")
    monkeypatch.setattr(socket, "gethostname", lambda: "reader-1")
    assert NodeSettings(host=host).announced(8815) == ("reader-1", 8815)


@pytest.mark.parametrize("advertise", ["", "http://reader-1", "reader-1/x", "me@reader-1", "reader-1:many"])
def test_what_is_no_host_is_not_announced(advertise: str) -> None:
    with pytest.raises(ConfigurationError, match="advertise"):
        NodeSettings(advertise=advertise)
