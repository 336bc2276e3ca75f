"""Control actions, health, and how typed errors travel."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.flight as fl
import pytest

from snapshot_assets import errors
from snapshot_assets.errors import (
    ConfigurationError,
    NodeUnavailable,
    SchemaIncompatible,
    SnapshotAssetsError,
    SnapshotDamaged,
    SnapshotMissing,
    StoreUnavailable,
    TokenRefused,
)
from snapshot_assets.serve.client import NodeClient
from snapshot_assets.serve.errors import from_flight, to_flight
from snapshot_assets.serve.node import NodeSettings, ReaderNode
from tests.serve.standin import LONG, StandInReader, fetch, start_query, until

Start = Callable[..., ReaderNode]


def ready(node: ReaderNode) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{node.http_url}/readyz", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def all_errors() -> list[type[SnapshotAssetsError]]:
    named = [getattr(errors, name) for name in errors.__all__]
    return [kind for kind in named if isinstance(kind, type)]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_typed_error_arrives_as_itself(kind: type[SnapshotAssetsError]) -> None:
    error = kind("what ü happened", hint="what to do", dataset="orders", operation_id="01ABC")
    flight = to_flight(error)
    assert str(flight).startswith(f"{kind.__name__}: what ü happened (what to do)")
    back = from_flight(flight)
    assert type(back) is kind
    assert back.to_json() == error.to_json()


@pytest.mark.parametrize(
    "details", [b"", b"x", b"[]", b"{}", b'{"kind": "SystemExit", "message": "x"}', b'{"kind": "Any"}']
)
def test_an_error_of_something_else_is_still_a_typed_error(details: bytes) -> None:
    assert type(from_flight(fl.FlightUnavailableError("gone", details))) is NodeUnavailable
    assert from_flight(fl.FlightInternalError("boom", details)).kind == "ReaderError"


def test_the_status_tells_what_is_served(node: ReaderNode) -> None:
    with NodeClient(node.flight_url) as client:
        status = client.status()
    assert status["ready"] is True
    assert status["missing"] == {}
    assert status["datasets"]["orders"]["current"]["generation"] == 1
    assert set(status["datasets"]) == {"orders", "planes"}


def test_a_refresh_answers_with_its_result(node: ReaderNode) -> None:
    with NodeClient(node.flight_url) as client:
        result = client.refresh("orders")
    assert result == {
        "outcome": "loaded",
        "dataset": "orders",
        "generation": 1,
        "snapshot_id": 0,
        "fetched_bytes": 0,
        "reused_bytes": 0,
        "seconds": 0.0,
        "handoffs": [],
        "reached": True,
    }


def test_a_refresh_waits_for_the_generation_that_was_asked_for(node: ReaderNode, reader: StandInReader) -> None:
    tries: list[str] = []

    def third_time(name: str) -> None:
        tries.append(name)
        if len(tries) == 3:
            reader.generations[name] = 7

    reader.on_refresh = third_time
    with NodeClient(node.flight_url) as client:
        result = client.refresh("orders", at_least_generation=7, wait=10)
        assert (result["generation"], result["reached"]) == (7, True)
        assert len(tries) == 3
        result = client.refresh("orders", at_least_generation=8, wait=0.3)
        assert (result["generation"], result["reached"]) == (7, False)


@pytest.mark.parametrize("kind", [StoreUnavailable, SchemaIncompatible, SnapshotDamaged])
def test_a_refresh_that_fails_raises_the_same_typed_error(
    node: ReaderNode, reader: StandInReader, kind: type[SnapshotAssetsError]
) -> None:
    def fail(name: str) -> None:
        raise kind("it failed", hint="do this", dataset=name)

    reader.on_refresh = fail
    with NodeClient(node.flight_url) as client, pytest.raises(kind) as failed:
        client.refresh("orders")
    assert (failed.value.message, failed.value.hint, failed.value.dataset) == ("it failed", "do this", "orders")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"dataset": 1},
        {"dataset": "other"},
        {"dataset": "../etc"},
        {"dataset": "orders", "wait": -1},
        {"dataset": "orders", "wait": "long"},
        {"dataset": "orders", "wait": 1e9},
        {"dataset": "orders", "at_least_generation": -1},
        {"dataset": "orders", "at_least_generation": "1"},
        {"dataset": "orders", "confirm": True},
        [],
        "orders",
    ],
)
def test_a_refresh_that_makes_no_sense_is_refused(node: ReaderNode, body: object) -> None:
    with fl.connect(node.flight_url) as client, pytest.raises(fl.FlightServerError) as refused:
        list(client.do_action(fl.Action("refresh", json.dumps(body).encode())))
    assert type(from_flight(refused.value)) is ConfigurationError


def test_a_dataset_is_pinned_and_unpinned(node: ReaderNode, reader: StandInReader) -> None:
    with NodeClient(node.flight_url) as client:
        result = client.pin("orders", 1)
        assert (result["outcome"], result["dataset"], result["snapshot_id"]) == ("loaded", "orders", 1)
        assert reader.pins == {"orders": 1}
        with pytest.raises(SnapshotMissing, match="no snapshot 7"):
            client.pin("orders", 7)
        client.unpin("orders")
        assert reader.pins == {"orders": None}
        with pytest.raises(ConfigurationError, match="not 'other'"):
            client.pin("other", 1)


def test_a_drained_node_is_not_ready_answers_all_the_same_and_can_be_ready_again(node: ReaderNode) -> None:
    with NodeClient(node.flight_url) as client, fl.connect(node.flight_url) as queries:
        assert client.drain() == {"draining": True, "drained": True, "running": 0}
        assert ready(node)[0] == 503
        status = client.status()
        assert (status["ready"], status["draining"]) == (False, True)
        table = fetch(queries, start_query(queries, "SELECT count(*) c FROM planes.main.planes")).read_all()
        assert table.to_pylist() == [{"c": 10}]
        assert client.drain(resume=True) == {"draining": False, "drained": False, "running": 0}
        assert ready(node)[0] == 200
        assert client.status()["ready"] is True


def test_draining_waits_for_the_queries_that_run(node: ReaderNode) -> None:
    drained: list[dict[str, Any]] = []
    with NodeClient(node.flight_url) as client, fl.connect(node.flight_url) as queries:
        stream = fetch(queries, start_query(queries, LONG))
        stream.read_chunk()
        assert client.drain(wait=0.1) == {"draining": True, "drained": False, "running": 1}
        waiting = threading.Thread(target=lambda: drained.append(client.drain(wait=30)))
        waiting.start()
        stream.cancel()
        waiting.join(30)
    assert drained == [{"draining": True, "drained": True, "running": 0}]


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("pin", {"dataset": "orders"}),
        ("pin", {"dataset": "orders", "snapshot_id": -1}),
        ("pin", {"dataset": "orders", "snapshot_id": True}),
        ("pin", {"dataset": "orders", "snapshot_id": 1, "force": True}),
        ("pin", {"snapshot_id": 1}),
        ("unpin", {}),
        ("unpin", {"dataset": "orders", "snapshot_id": 1}),
        ("drain", {"wait": -1}),
        ("drain", {"resume": "yes"}),
        ("drain", {"dataset": "orders"}),
    ],
)
def test_an_action_that_makes_no_sense_is_refused(
    node: ReaderNode, reader: StandInReader, action: str, body: object
) -> None:
    with fl.connect(node.flight_url) as client, pytest.raises(fl.FlightServerError, match=f"{action} takes") as refused:
        list(client.do_action(fl.Action(action, json.dumps(body).encode())))
    assert type(from_flight(refused.value)) is ConfigurationError
    assert not reader.pins
    assert ready(node)[0] == 200


def test_only_a_control_token_pins_and_drains(start: Start, reader: StandInReader, tmp_path: Path) -> None:
    (tmp_path / "query").write_text("q" * 32)
    (tmp_path / "control").write_text("c" * 32)
    node = start(token_file=tmp_path / "query", control_token_file=tmp_path / "control")
    with NodeClient(node.flight_url, "q" * 32) as client:
        with pytest.raises(TokenRefused):
            client.pin("orders", 1)
        with pytest.raises(TokenRefused):
            client.unpin("orders")
        with pytest.raises(TokenRefused):
            client.drain()
    assert not reader.pins
    with NodeClient(node.flight_url, "c" * 32) as client:
        assert client.pin("orders", 1)["snapshot_id"] == 1
        assert client.drain()["draining"] is True


def test_a_node_that_is_not_there_is_unavailable(node: ReaderNode) -> None:
    url = node.flight_url
    node.stop()
    with NodeClient(url, timeout=5) as client, pytest.raises(NodeUnavailable):
        client.status()


def test_an_endpoint_that_is_no_flight_url_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="endpoint"):
        NodeClient("http//nowhere")


def test_the_control_client_is_light() -> None:
    code = (
        "import sys, snapshot_assets.serve.client; "
        "print([name for name in ('uvicorn', 'starlette', 'dagster', 'duckdb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_node_is_ready_when_every_dataset_is_loaded(start: Start, reader: StandInReader) -> None:
    reader.refuse_follow = StoreUnavailable("the store is away")
    node = start()
    status, answer = ready(node)
    assert status == 503
    assert answer == {
        "ready": False,
        "stopping": False,
        "missing": {"orders": "not followed yet", "planes": "not followed yet"},
    }
    with urllib.request.urlopen(f"{node.http_url}/healthz", timeout=5) as health:
        assert health.status == 200
    reader.refuse_follow = None
    until(lambda: ready(node)[0] == 200, 10)
    assert ready(node)[1] == {"ready": True, "stopping": False, "missing": {}}


def test_a_node_that_is_asked_to_stop_is_not_ready_any_more(node: ReaderNode) -> None:
    assert ready(node)[0] == 200
    node.request_stop()
    status, answer = ready(node)
    assert status == 503
    assert answer["stopping"] is True


def test_a_port_that_is_taken_is_a_typed_error(node: ReaderNode, reader: StandInReader) -> None:
    taken = int(node.flight_url.rpartition(":")[2])
    for settings in (
        NodeSettings(port=taken, http_port=0),
        NodeSettings(port=0, http_port=int(node.http_url.rpartition(":")[2])),
    ):
        with pytest.raises(ConfigurationError, match="listen"):
            ReaderNode(reader, ["orders"], settings).start()


@pytest.mark.parametrize(
    "settings",
    [{"max_concurrency": 0}, {"max_rows": 0}, {"port": -1}, {"query_timeout": -1.0}, {"tls_cert": "x"}],
)
def test_settings_out_of_range_are_refused(settings: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        NodeSettings(**settings)


def test_a_node_without_datasets_or_with_a_bad_name_is_refused(reader: StandInReader) -> None:
    for datasets in ([], ["../x"], ["orders", "Orders;"]):
        with pytest.raises(ConfigurationError):
            ReaderNode(reader, datasets)


def test_nothing_is_served_from_sessions_that_are_not_locked(reader: StandInReader) -> None:
    class Open:
        @contextmanager
        def connect(self, *, checked: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
            with duckdb.connect(":memory:") as connection:
                yield connection

    reader.catalog = Open()  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="nothing is served"):
        ReaderNode(reader, ["orders"], NodeSettings(port=0, http_port=0)).start()
