"""What a query holds is always given back, and no client takes the node down."""

from __future__ import annotations

import functools
import json
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable

import pyarrow as pa
import pyarrow.flight as fl
import pytest

from snapshot_assets.serve.messages import (
    BoundStatement,
    CancelFlightInfoRequest,
    CancelFlightInfoResult,
    CancelQueryRequest,
    CancelQueryResult,
    CommandPreparedStatementQuery,
    CommandStatementUpdate,
    TicketStatementQuery,
    decode,
    encode,
    pack,
    unpack,
)
from snapshot_assets.serve.node import ReaderNode
from tests.serve.standin import ENDLESS, LONG, StandInReader, fetch, start_query, until

Start = Callable[..., ReaderNode]

_CLIENT = """
import sys
import pyarrow.flight as fl
from snapshot_assets.serve.messages import CommandStatementQuery, pack
client = fl.connect(sys.argv[1])
info = client.get_flight_info(fl.FlightDescriptor.for_command(pack(CommandStatementQuery(sys.argv[2]))))
stream = client.do_get(info.endpoints[0].ticket)
stream.read_chunk()
print("streaming", flush=True)
sys.stdin.read()
"""


_ACTIONS = ("CreatePreparedStatement", "CancelFlightInfo", "CancelQuery", "refresh")


def _ask_info(client: fl.FlightClient, data: bytes) -> None:
    client.get_flight_info(fl.FlightDescriptor.for_command(data))


def _fetch(client: fl.FlightClient, data: bytes) -> None:
    client.do_get(fl.Ticket(data)).read_all()


def _act(client: fl.FlightClient, data: bytes, action: str) -> None:
    list(client.do_action(fl.Action(action, data)))


def kind_of(error: fl.FlightError) -> str:
    return str(json.loads(error.extra_info)["kind"])


def test_a_small_result_holds_nothing_while_it_waits(client: fl.FlightClient, reader: StandInReader) -> None:
    info = start_query(client, "SELECT i FROM orders.main.orders")
    assert reader.catalog.leases == 0
    assert fetch(client, info).read_all().num_rows == 1000


def test_a_long_result_holds_its_lease_from_the_start_to_its_end(
    client: fl.FlightClient, reader: StandInReader
) -> None:
    info = start_query(client, "SELECT range FROM range(2_000_000)")
    assert reader.catalog.leases == 1
    assert fetch(client, info).read_all().num_rows == 2_000_000
    until(lambda: reader.catalog.leases == 0)


def test_a_result_that_nobody_fetches_is_thrown_away(start: Start, reader: StandInReader) -> None:
    node = start(fetch_timeout=0.2)
    with fl.connect(node.flight_url) as client:
        small, long = start_query(client, "SELECT 1"), start_query(client, LONG)
        assert reader.catalog.leases == 1
        until(lambda: reader.catalog.leases == 0)
        for info in (small, long):
            with pytest.raises(fl.FlightServerError, match="QueryStopped: no result waits") as gone:
                fetch(client, info).read_all()
            assert kind_of(gone.value) == "QueryStopped"


def test_a_result_is_fetched_once(client: fl.FlightClient) -> None:
    info = start_query(client, "SELECT 1")
    assert fetch(client, info).read_all().num_rows == 1
    with pytest.raises(fl.FlightServerError, match="fetched before"):
        fetch(client, info).read_all()


def test_a_stream_that_its_client_leaves_is_ended(client: fl.FlightClient, reader: StandInReader) -> None:
    stream = fetch(client, start_query(client, LONG))
    stream.read_chunk()
    assert reader.catalog.leases == 1
    stream.cancel()
    until(lambda: reader.catalog.leases == 0)


def test_a_client_that_dies_mid_stream_leaves_nothing_behind(node: ReaderNode, reader: StandInReader) -> None:
    command = [sys.executable, "-c", _CLIENT, node.flight_url, LONG]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "streaming\n"
        assert reader.catalog.leases == 1
        child.kill()
    until(lambda: reader.catalog.leases == 0)


def test_a_client_that_dies_while_the_node_computes_leaves_nothing_behind(
    node: ReaderNode, reader: StandInReader
) -> None:
    command = [sys.executable, "-c", _CLIENT, node.flight_url, ENDLESS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        until(lambda: reader.catalog.leases == 1, 20)
        child.kill()
    until(lambda: reader.catalog.leases == 0)


def test_a_query_that_computes_too_long_is_stopped(start: Start, reader: StandInReader) -> None:
    node = start(query_timeout=0.3)
    with fl.connect(node.flight_url) as client:
        with pytest.raises(fl.FlightServerError, match="longer than the 0.3 seconds") as stopped:
            start_query(client, ENDLESS)
        assert kind_of(stopped.value) == "QueryStopped"
        assert reader.catalog.leases == 0
        assert fetch(client, start_query(client, "SELECT 1")).read_all().num_rows == 1


def test_a_client_that_stalls_is_stopped_and_told(start: Start, reader: StandInReader) -> None:
    node = start(query_timeout=0.5)
    with fl.connect(node.flight_url) as client:
        stream = fetch(client, start_query(client, LONG))
        stream.read_chunk()
        until(lambda: reader.catalog.leases == 0)
        with pytest.raises(fl.FlightServerError, match="longer than the 0.5 seconds"):
            stream.read_all()


def test_a_client_that_stops_fetching_is_stopped_and_told(start: Start, reader: StandInReader) -> None:
    node = start(fetch_timeout=0.3)
    with fl.connect(node.flight_url) as client:
        stream = fetch(client, start_query(client, LONG))
        stream.read_chunk()
        until(lambda: reader.catalog.leases == 0)
        with pytest.raises(fl.FlightServerError, match="nobody fetched from the result for 0.3 seconds"):
            stream.read_all()


def test_a_deadline_of_the_client_stops_the_query(client: fl.FlightClient, reader: StandInReader) -> None:
    with pytest.raises(fl.FlightTimedOutError):
        start_query(client, ENDLESS, fl.FlightCallOptions(timeout=0.3))
    until(lambda: reader.catalog.leases == 0)


@pytest.mark.parametrize("rows", [11, 1_000_000])
def test_more_rows_than_allowed_are_an_error_and_never_a_shorter_answer(start: Start, rows: int) -> None:
    node = start(max_rows=10 if rows == 11 else 900_000)
    with fl.connect(node.flight_url) as client:
        with pytest.raises(fl.FlightServerError, match="more than the .* rows that this node allows") as stopped:
            fetch(client, start_query(client, f"SELECT * FROM range({rows})")).read_all()
        assert "LIMIT" in json.loads(stopped.value.extra_info)["hint"]
        assert fetch(client, start_query(client, "SELECT * FROM range(10)")).read_all().num_rows == 10


def test_a_query_that_needs_too_much_memory_fails_alone(client: fl.FlightClient) -> None:
    with pytest.raises(fl.FlightError) as failed:
        fetch(
            client, start_query(client, "SELECT list(range || 'xxxxxxxxxxxxxxxxxxxxxxx') FROM range(100_000_000)")
        ).read_all()
    assert kind_of(failed.value) == "QueryStopped"
    assert fetch(client, start_query(client, "SELECT 1")).read_all().num_rows == 1


def test_an_overloaded_node_answers_unavailable_and_recovers(start: Start, reader: StandInReader) -> None:
    node = start(max_concurrency=2, queue_timeout=0.2)
    with fl.connect(node.flight_url) as client:
        streams = [fetch(client, start_query(client, LONG)) for _ in range(2)]
        with pytest.raises(fl.FlightUnavailableError, match="NodeUnavailable: .*[Rr]etry") as refused:
            start_query(client, "SELECT 1")
        assert kind_of(refused.value) == "NodeUnavailable"
        for stream in streams:
            stream.cancel()
        until(lambda: reader.catalog.leases == 0)
        assert fetch(client, start_query(client, "SELECT 1")).read_all().num_rows == 1


def test_a_query_waits_for_a_place_for_a_while(start: Start) -> None:
    node = start(max_concurrency=1, queue_timeout=10)
    with fl.connect(node.flight_url) as client:
        stream = fetch(client, start_query(client, LONG))
        threading.Timer(0.3, stream.cancel).start()
        assert fetch(client, start_query(client, "SELECT 1")).read_all().num_rows == 1


def test_queries_are_cancelled_by_their_flight_info(client: fl.FlightClient, reader: StandInReader) -> None:
    info = start_query(client, LONG)
    request = encode(CancelFlightInfoRequest(info.serialize()))
    (result,) = client.do_action(fl.Action("CancelFlightInfo", request))
    assert decode(CancelFlightInfoResult, result.body.to_pybytes()).status == 1
    assert reader.catalog.leases == 0
    info = start_query(client, LONG)
    stream = fetch(client, info)
    stream.read_chunk()
    (result,) = client.do_action(fl.Action("CancelQuery", pack(CancelQueryRequest(info.serialize()))))
    assert unpack(result.body.to_pybytes()) == CancelQueryResult(1)
    with pytest.raises(fl.FlightServerError, match="QueryStopped"):
        stream.read_all()
    (result,) = client.do_action(fl.Action("CancelQuery", pack(CancelQueryRequest(info.serialize()))))
    assert unpack(result.body.to_pybytes()) == CancelQueryResult(3)


def test_eight_clients_at_once_get_each_their_own_answer(node: ReaderNode, reader: StandInReader) -> None:
    wrong: list[str] = []

    def ask(seed: int) -> None:
        numbers = random.Random(seed)
        with fl.connect(node.flight_url) as client:
            for _ in range(60):
                number = numbers.randrange(1000)
                try:
                    answer = fetch(
                        client, start_query(client, f"SELECT i, name FROM orders.main.orders WHERE i = {number}")
                    ).read_all()
                    if answer.to_pylist() != [{"i": number, "name": f"name {number}"}]:
                        wrong.append(str(answer))
                except fl.FlightError as error:
                    wrong.append(str(error))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    until(lambda: reader.catalog.leases == 0)


def test_garbage_gets_a_clean_error_and_the_node_stays_up(node: ReaderNode, client: fl.FlightClient) -> None:
    noise = random.Random(0)
    valid = [
        pack(TicketStatementQuery(b"unknown")),
        pack(CommandPreparedStatementQuery(b"\xff\xff")),
        pack(CommandPreparedStatementQuery(encode(BoundStatement("SELECT ?", b"no arrow")))),
        pack(CommandPreparedStatementQuery(encode(BoundStatement("DROP TABLE x")))),
        pack(CommandStatementUpdate("INSERT INTO x VALUES (1)")),
    ]
    answers: list[tuple[str, bytes]] = []
    calls: list[Callable[[fl.FlightClient, bytes], None]] = [_ask_info, _fetch]
    calls += [functools.partial(_act, action=name) for name in _ACTIONS]
    garbage = [b"", b"\0", b"\xff" * 100, *valid, *(message[:-2] for message in valid)]
    garbage += [noise.randbytes(noise.randrange(200)) for _ in range(100)]
    for data in garbage:
        for call in calls:
            try:
                call(client, data)
            except fl.FlightError as error:
                answers.append((str(error), error.extra_info))
        with pytest.raises(pa.ArrowException, match="(QueryRefused|QueryFailed|ReadOnlyDataset): "):
            client.get_schema(fl.FlightDescriptor.for_command(data))
    assert len(answers) > 5 * len(garbage)
    for words, details in answers:
        assert "Traceback" not in words
        assert "kind" in json.loads(details), words
    with pytest.raises(fl.FlightError, match="path"):
        client.get_flight_info(fl.FlightDescriptor.for_path("orders"))
    with pytest.raises(fl.FlightError, match="not offered"):
        list(client.do_action(fl.Action("DropEverything", b"")))
    assert fetch(client, start_query(client, "SELECT 1")).read_all().num_rows == 1
    with urllib.request.urlopen(f"{node.http_url}/healthz", timeout=5) as answer:
        assert answer.status == 200


def test_parameters_have_a_greatest_size(client: fl.FlightClient) -> None:
    descriptor = fl.FlightDescriptor.for_command(
        pack(CommandPreparedStatementQuery(encode(BoundStatement("SELECT ?"))))
    )
    batch = pa.record_batch({"x": ["x" * (5 << 20)]})
    with pytest.raises(fl.FlightError, match="QueryRefused: the parameters have more than"):
        writer, metadata = client.do_put(descriptor, batch.schema)
        with writer:
            writer.write_batch(batch)
            writer.done_writing()
            metadata.read()


def test_stopping_lets_queries_end_and_takes_no_new_ones(start: Start, reader: StandInReader) -> None:
    node = start(stop_timeout=20)
    with fl.connect(node.flight_url) as client:
        stream = fetch(client, start_query(client, "SELECT range FROM range(3_000_000)"))
        rows = stream.read_chunk().data.num_rows
        stopper = threading.Thread(target=node.stop)
        stopper.start()
        time.sleep(0.3)
        with pytest.raises(fl.FlightUnavailableError, match="stopping"):
            start_query(client, "SELECT 1")
        rows += stream.read_all().num_rows
        assert rows == 3_000_000
        stopper.join(10)
        assert not stopper.is_alive()
    assert reader.catalog.leases == 0


def test_stopping_ends_what_takes_too_long(start: Start, reader: StandInReader) -> None:
    node = start(stop_timeout=0.2)
    with fl.connect(node.flight_url) as client:
        failures: list[str] = []

        def endless() -> None:
            try:
                start_query(client, ENDLESS)
            except fl.FlightError as error:
                failures.append(str(error))

        asking = threading.Thread(target=endless)
        asking.start()
        until(lambda: reader.catalog.leases == 1)
        started = time.monotonic()
        node.stop()
        assert time.monotonic() - started < 5
        asking.join(5)
        assert "the node is stopping" in failures[0]
    assert reader.catalog.leases == 0
