"""The messages are those of the Flight SQL specification, bit for bit."""

from __future__ import annotations

import pytest

from snapshot_assets.serve import messages
from snapshot_assets.serve.messages import (
    CancelFlightInfoResult,
    CommandGetSqlInfo,
    CommandGetTables,
    CommandStatementQuery,
    CreatePreparedStatementResult,
    FlightSqlMessage,
    MalformedMessage,
    PreparedStatementBound,
    decode,
    encode,
    pack,
    unpack,
)

# written by hand from the specification's FlightSql.proto: field number and wire type, length, bytes
BY_HAND = [
    (CommandStatementQuery("select 1"), b"\x0a\x08select 1"),
    (CommandStatementQuery("x", transaction_id=b""), b"\x0a\x01x\x12\x00"),
    (CommandGetSqlInfo((0, 300)), b"\x0a\x03\x00\xac\x02"),
    (
        CommandGetTables("c", "s%", "t_", ("TABLE", "VIEW"), include_schema=True),
        b"\x0a\x01c\x12\x02s%\x1a\x02t_\x22\x05TABLE\x22\x04VIEW\x28\x01",
    ),
    (CreatePreparedStatementResult(b"h", b"d", b"p"), b"\x0a\x01h\x12\x01d\x1a\x01p"),
    (PreparedStatementBound(b"h"), b"\x0a\x01h"),
    (CancelFlightInfoResult(3), b"\x08\x03"),
]


@pytest.mark.parametrize(("message", "data"), BY_HAND)
def test_messages_have_the_wire_form_of_the_specification(message: FlightSqlMessage, data: bytes) -> None:
    assert encode(message) == data
    assert decode(type(message), data) == message


def test_a_packed_message_names_its_type_as_the_specification_does() -> None:
    url = b"type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery"
    packed = pack(CommandStatementQuery("q"))
    assert packed == b"\x0a" + bytes([len(url)]) + url + b"\x12\x03\x0a\x01q"
    assert unpack(packed) == CommandStatementQuery("q")


def test_an_empty_optional_field_is_not_an_absent_one() -> None:
    assert decode(CommandGetTables, b"\x0a\x00").catalog == ""
    assert decode(CommandGetTables, b"").catalog is None


def test_fields_of_newer_specifications_are_passed_over() -> None:
    assert decode(CommandStatementQuery, b"\x0a\x01q\x9a\x06\x03new") == CommandStatementQuery("q")


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 40, b"\x0a\x05ab", pack(CommandStatementQuery("q"))[:-1]])
def test_bytes_that_are_no_message_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack(data)


def test_a_text_field_that_is_no_text_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        decode(CommandStatementQuery, b"\x0a\x02\xff\xfe")


def test_every_message_survives_a_round_trip() -> None:
    kinds = [kind for name in messages.__all__ if isinstance(kind := getattr(messages, name), type)]
    kinds = [kind for kind in kinds if issubclass(kind, FlightSqlMessage) and kind is not FlightSqlMessage]
    assert len(kinds) == 19
    for kind in kinds:
        assert unpack(pack(kind())) == kind()
