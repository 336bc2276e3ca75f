"""Who may do what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi as flightsql
import adbc_driver_manager.dbapi as adbc
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from snapshot_assets.errors import ConfigurationError, TokenRefused
from snapshot_assets.serve.client import NodeClient
from snapshot_assets.serve.node import NodeSettings, ReaderNode
from snapshot_assets.serve.tokens import AccessRules, TokenFile
from tests.serve.standin import StandInReader, fetch, start_query

Start = Callable[..., ReaderNode]


@pytest.fixture
def query_tokens(tmp_path: Path) -> Path:
    path = tmp_path / "query-tokens"
    path.write_text("# for people\n\nquery-one\n  query-two  \n")
    return path


@pytest.fixture
def control_tokens(tmp_path: Path) -> Path:
    path = tmp_path / "control-tokens"
    path.write_text("control-one\n")
    return path


def bearer(token: str) -> fl.FlightCallOptions:
    return fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {token}".encode())])


def test_the_driver_connects_with_a_token_and_not_without(start: Start, query_tokens: Path) -> None:
    node = start(token_file=query_tokens)
    header = {adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value: "Bearer query-two"}
    with flightsql.connect(node.flight_url, header, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 42")
        assert cursor.fetchall() == [(42,)]
    for wrong in ({}, {adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value: "Bearer query"}):
        with (
            pytest.raises(adbc.Error, match="TokenRefused"),
            flightsql.connect(node.flight_url, wrong, autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SELECT 42")


def test_a_token_may_be_the_password(start: Start, query_tokens: Path) -> None:
    node = start(token_file=query_tokens)
    with (
        flightsql.connect(
            node.flight_url, {"username": "anybody", "password": "query-one"}, autocommit=True
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT 42")
        assert cursor.fetchall() == [(42,)]
    with pytest.raises(adbc.Error, match="TokenRefused"):
        flightsql.connect(node.flight_url, {"username": "query-one", "password": "wrong"}, autocommit=True)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer query-one x", "query-one", "Basic !!", "Bearer # for people", "Digest x"],
)
def test_no_call_is_answered_without_a_known_token(start: Start, query_tokens: Path, header: str) -> None:
    node = start(token_file=query_tokens)
    options = fl.FlightCallOptions(headers=[(b"authorization", header.encode())])
    with fl.connect(node.flight_url) as client:
        for call in (
            lambda: start_query(client, "SELECT 1", options),
            lambda: client.do_get(fl.Ticket(b"x"), options),
            lambda: list(client.do_action(fl.Action("status", b""), options)),
            lambda: list(client.list_actions(options)),
            lambda: client.do_put(fl.FlightDescriptor.for_command(b"x"), pa.schema([("x", pa.int64())]), options)[
                1
            ].read(),
        ):
            with pytest.raises(fl.FlightUnauthenticatedError, match="TokenRefused"):
                call()


def test_tokens_are_read_again_when_their_file_changes(start: Start, query_tokens: Path) -> None:
    node = start(token_file=query_tokens)
    with fl.connect(node.flight_url) as client:
        start_query(client, "SELECT 1", bearer("query-one"))
        replacement = query_tokens.with_suffix(".new")
        replacement.write_text("query-three\n")
        replacement.replace(query_tokens)
        start_query(client, "SELECT 1", bearer("query-three"))
        with pytest.raises(fl.FlightUnauthenticatedError):
            start_query(client, "SELECT 1", bearer("query-one"))


def test_nobody_is_admitted_while_the_token_file_is_gone(start: Start, query_tokens: Path) -> None:
    node = start(token_file=query_tokens)
    content = query_tokens.read_text()
    query_tokens.unlink()
    with fl.connect(node.flight_url) as client:
        with pytest.raises(fl.FlightUnauthenticatedError):
            start_query(client, "SELECT 1", bearer("query-one"))
        with pytest.raises(fl.FlightUnauthenticatedError):
            start_query(client, "SELECT 1")
        query_tokens.write_text(content)
        start_query(client, "SELECT 1", bearer("query-one"))


def test_a_query_token_does_not_control_where_control_has_tokens(
    start: Start, query_tokens: Path, control_tokens: Path
) -> None:
    node = start(token_file=query_tokens, control_token_file=control_tokens)
    with NodeClient(node.flight_url, "query-one") as client:
        assert client.status()["ready"] is True
        with pytest.raises(TokenRefused, match="may not control"):
            client.refresh("orders")
    with NodeClient(node.flight_url, "control-one") as client:
        assert client.status()["ready"] is True
        assert client.refresh("orders")["reached"] is True
    with fl.connect(node.flight_url) as flight, pytest.raises(fl.FlightUnauthenticatedError, match="queries"):
        start_query(flight, "SELECT 1", bearer("control-one"))


def test_without_control_tokens_a_loopback_node_is_controlled_by_whoever_may_query_it(
    start: Start, query_tokens: Path
) -> None:
    with NodeClient(start(token_file=query_tokens).flight_url, "query-one") as client:
        assert client.refresh("orders")["reached"] is True
    with NodeClient(start().flight_url) as client:
        assert client.refresh("orders")["reached"] is True


def test_without_control_tokens_nobody_controls_a_node_that_others_can_reach(query_tokens: Path) -> None:
    rules = AccessRules(token_file=query_tokens, control_token_file=None, loopback=False)
    access = rules.access(b"query-one")
    assert access.query
    assert not access.control


def test_open_queries_do_not_open_control(start: Start, control_tokens: Path) -> None:
    node = start(control_token_file=control_tokens)
    with fl.connect(node.flight_url) as client:
        assert fetch(client, start_query(client, "SELECT 1")).read_all().num_rows == 1
    with NodeClient(node.flight_url) as client, pytest.raises(TokenRefused):
        client.refresh("orders")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "127.0.0.1.example.org"])
def test_a_node_that_others_can_reach_does_not_start_without_tokens(reader: StandInReader, host: str) -> None:
    with pytest.raises(ConfigurationError, match="token file"):
        ReaderNode(reader, ["orders"], NodeSettings(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_loopback_node_needs_no_tokens(reader: StandInReader, host: str) -> None:
    ReaderNode(reader, ["orders"], NodeSettings(host=host))


@pytest.mark.parametrize("content", ["", "\n# only a comment\n", None])
def test_a_token_file_without_a_token_is_refused_at_the_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match="token"):
        TokenFile(path)


def test_tokens_are_compared_whole(query_tokens: Path) -> None:
    tokens = TokenFile(query_tokens)
    assert tokens.admits(b"query-one")
    for wrong in (b"", b"query-on", b"query-one ", b"QUERY-ONE", b"query-one\nquery-two", b"\xff"):
        assert not tokens.admits(wrong)
