"""The Flight SQL messages that the node reads and writes, as plain values.

Each class is one protobuf message: its fields stand in the order of their numbers, from 1. The descriptors are built
from the classes when this module is imported, in a pool of their own, so that no generated code has to agree with the
installed protobuf library, and nothing clashes with another copy of the same messages in the process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

__all__ = [
    "BoundStatement",
    "CancelFlightInfoRequest",
    "CancelFlightInfoResult",
    "CancelQueryRequest",
    "CancelQueryResult",
    "ClosePreparedStatementRequest",
    "CommandGetCatalogs",
    "CommandGetDbSchemas",
    "CommandGetSqlInfo",
    "CommandGetTableTypes",
    "CommandGetTables",
    "CommandPreparedStatementQuery",
    "CommandPreparedStatementUpdate",
    "CommandStatementQuery",
    "CommandStatementUpdate",
    "CreatePreparedStatementRequest",
    "CreatePreparedStatementResult",
    "FlightSqlMessage",
    "MalformedMessage",
    "PreparedStatementBound",
    "TicketStatementQuery",
    "decode",
    "encode",
    "pack",
    "unpack",
]

_SQL = "arrow.flight.protocol.sql"
_URL = "type.googleapis.com/"


class MalformedMessage(ValueError):
    """Bytes that are no message of the kind that was expected."""


@dataclass(frozen=True, slots=True)
class FlightSqlMessage:
    """One protobuf message as a value."""

    full_name: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class CommandGetSqlInfo(FlightSqlMessage):
    """What can the server do? All facts, when none is named."""

    full_name = f"{_SQL}.CommandGetSqlInfo"
    info: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CommandGetCatalogs(FlightSqlMessage):
    """Which catalogs are there?"""

    full_name = f"{_SQL}.CommandGetCatalogs"


@dataclass(frozen=True, slots=True)
class CommandGetDbSchemas(FlightSqlMessage):
    """Which schemas are there?"""

    full_name = f"{_SQL}.CommandGetDbSchemas"
    catalog: str | None = None
    db_schema_filter_pattern: str | None = None


@dataclass(frozen=True, slots=True)
class CommandGetTables(FlightSqlMessage):
    """Which tables are there, and with which columns?"""

    full_name = f"{_SQL}.CommandGetTables"
    catalog: str | None = None
    db_schema_filter_pattern: str | None = None
    table_name_filter_pattern: str | None = None
    table_types: tuple[str, ...] = ()
    include_schema: bool = False


@dataclass(frozen=True, slots=True)
class CommandGetTableTypes(FlightSqlMessage):
    """Which kinds of tables are there?"""

    full_name = f"{_SQL}.CommandGetTableTypes"


@dataclass(frozen=True, slots=True)
class CommandStatementQuery(FlightSqlMessage):
    """Run this statement."""

    full_name = f"{_SQL}.CommandStatementQuery"
    query: str = ""
    transaction_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class CommandStatementUpdate(FlightSqlMessage):
    """Run this statement, which changes data."""

    full_name = f"{_SQL}.CommandStatementUpdate"
    query: str = ""
    transaction_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class CommandPreparedStatementQuery(FlightSqlMessage):
    """Run a prepared statement; with DoPut: bind its parameters."""

    full_name = f"{_SQL}.CommandPreparedStatementQuery"
    prepared_statement_handle: bytes = b""


@dataclass(frozen=True, slots=True)
class CommandPreparedStatementUpdate(FlightSqlMessage):
    """Run a prepared statement, which changes data."""

    full_name = f"{_SQL}.CommandPreparedStatementUpdate"
    prepared_statement_handle: bytes = b""


@dataclass(frozen=True, slots=True)
class TicketStatementQuery(FlightSqlMessage):
    """The ticket of a query that runs."""

    full_name = f"{_SQL}.TicketStatementQuery"
    statement_handle: bytes = b""


@dataclass(frozen=True, slots=True)
class CreatePreparedStatementRequest(FlightSqlMessage):
    """Prepare this statement."""

    full_name = f"{_SQL}.ActionCreatePreparedStatementRequest"
    query: str = ""
    transaction_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class CreatePreparedStatementResult(FlightSqlMessage):
    """A prepared statement: its handle, and the schemas of its result and its parameters."""

    full_name = f"{_SQL}.ActionCreatePreparedStatementResult"
    prepared_statement_handle: bytes = b""
    dataset_schema: bytes = b""
    parameter_schema: bytes = b""


@dataclass(frozen=True, slots=True)
class ClosePreparedStatementRequest(FlightSqlMessage):
    """Forget a prepared statement."""

    full_name = f"{_SQL}.ActionClosePreparedStatementRequest"
    prepared_statement_handle: bytes = b""


@dataclass(frozen=True, slots=True)
class PreparedStatementBound(FlightSqlMessage):
    """The handle of the prepared statement with its parameters, to be used from now on."""

    full_name = f"{_SQL}.DoPutPreparedStatementResult"
    prepared_statement_handle: bytes | None = None


@dataclass(frozen=True, slots=True)
class CancelQueryRequest(FlightSqlMessage):
    """Cancel a query, the older way; `info` is a serialized FlightInfo."""

    full_name = f"{_SQL}.ActionCancelQueryRequest"
    info: bytes = b""


@dataclass(frozen=True, slots=True)
class CancelQueryResult(FlightSqlMessage):
    """1: cancelled, 2: being cancelled, 3: can not be cancelled."""

    full_name = f"{_SQL}.ActionCancelQueryResult"
    result: int = 0


@dataclass(frozen=True, slots=True)
class CancelFlightInfoRequest(FlightSqlMessage):
    """Cancel a query; `info` is a serialized FlightInfo."""

    full_name = "arrow.flight.protocol.CancelFlightInfoRequest"
    info: bytes = b""


@dataclass(frozen=True, slots=True)
class CancelFlightInfoResult(FlightSqlMessage):
    """1: cancelled, 2: being cancelled, 3: can not be cancelled."""

    full_name = "arrow.flight.protocol.CancelFlightInfoResult"
    status: int = 0


@dataclass(frozen=True, slots=True)
class BoundStatement(FlightSqlMessage):
    """This node's own: what a prepared statement's handle holds; `parameters` is an Arrow IPC stream."""

    full_name = "snapshot_assets.serve.BoundStatement"
    query: str = ""
    parameters: bytes | None = None


_Field = descriptor_pb2.FieldDescriptorProto
# protobuf's enumerations and its narrower integers look like int64 on the wire
_TYPES = {
    "str": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int": _Field.TYPE_INT64,
}
_M = TypeVar("_M", bound=FlightSqlMessage)


def _descriptor(message: type[FlightSqlMessage]) -> descriptor_pb2.FileDescriptorProto:
    package, _, name = message.full_name.rpartition(".")
    file = descriptor_pb2.FileDescriptorProto(name=f"{message.full_name}.proto", package=package, syntax="proto3")
    described = file.message_type.add(name=name)
    for number, field in enumerate(dataclasses.fields(message), 1):
        annotation = str(field.type)
        repeated = annotation.startswith("tuple[")
        optional = annotation.endswith(" | None")
        made = described.field.add(
            name=field.name,
            number=number,
            label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL,
            type=_TYPES[annotation.removeprefix("tuple[").removesuffix(", ...]").removesuffix(" | None")],
        )
        if optional:
            made.proto3_optional = True
            made.oneof_index = len(described.oneof_decl)
            described.oneof_decl.add(name=f"_{field.name}")
    return file


def _classes(messages: Iterable[type[FlightSqlMessage]]) -> dict[type[FlightSqlMessage], type[Message]]:
    pool = descriptor_pool.DescriptorPool()
    made: dict[type[FlightSqlMessage], type[Message]] = {}
    for message in messages:
        pool.Add(_descriptor(message))
        made[message] = message_factory.GetMessageClass(pool.FindMessageTypeByName(message.full_name))
    return made


# by their names here: `__subclasses__` would also give what the dataclass decorator replaced to add the slots
_CLASSES = _classes(
    kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, FlightSqlMessage) and kind is not FlightSqlMessage
)
_BY_URL = {f"{_URL}{message.full_name}": message for message in _CLASSES}


def encode(message: FlightSqlMessage) -> bytes:
    """The message as protobuf."""
    values: dict[str, Any] = {
        field.name: value
        for field in dataclasses.fields(message)
        if (value := getattr(message, field.name)) is not None
    }
    return _CLASSES[type(message)](**values).SerializeToString()


def decode(kind: type[_M], data: bytes) -> _M:
    """A message of a known kind.

    Raises:
        MalformedMessage: the bytes are no such message.
    """
    try:
        parsed = _CLASSES[kind].FromString(data)
    except DecodeError as error:
        raise MalformedMessage(f"not a {kind.full_name}: {error}") from error
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        annotation = str(field.type)
        if annotation.endswith(" | None") and not parsed.HasField(field.name):
            continue
        value = getattr(parsed, field.name)
        values[field.name] = tuple(value) if annotation.startswith("tuple[") else value
    return kind(**values)


def pack(message: FlightSqlMessage) -> bytes:
    """The message with its type, as protobuf's Any."""
    return AnyMessage(type_url=f"{_URL}{message.full_name}", value=encode(message)).SerializeToString()


def unpack(data: bytes) -> FlightSqlMessage:
    """A message that says its own type.

    Raises:
        MalformedMessage: the bytes are no Any, or hold a message that this node does not know.
    """
    try:
        packed = AnyMessage.FromString(data)
    except DecodeError as error:
        raise MalformedMessage(f"not a Flight SQL message: {error}") from error
    kind = _BY_URL.get(packed.type_url)
    if kind is None:
        raise MalformedMessage(f"a message of type {packed.type_url[:200]!r} is not known here")
    return decode(kind, packed.value)
