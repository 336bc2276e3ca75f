"""Flight SQL: how a query reaches the node, and its rows the client.

A client asks for a flight info, which starts the query, and fetches its ticket, which streams the rows. Prepared
statements need no memory here: the handle that a client gets holds the statement, and after binding its parameters too.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.flight as fl

from snapshot_assets.errors import QueryFailed, QueryRefused, ReadOnlyDataset, SnapshotAssetsError
from snapshot_assets.serve.control import CONTROL_ACTIONS, Control
from snapshot_assets.serve.errors import to_flight
from snapshot_assets.serve.messages import (
    BoundStatement,
    CancelFlightInfoRequest,
    CancelFlightInfoResult,
    CancelQueryRequest,
    CancelQueryResult,
    ClosePreparedStatementRequest,
    CommandPreparedStatementQuery,
    CommandPreparedStatementUpdate,
    CommandStatementQuery,
    CommandStatementUpdate,
    CreatePreparedStatementRequest,
    CreatePreparedStatementResult,
    FlightSqlMessage,
    MalformedMessage,
    PreparedStatementBound,
    TicketStatementQuery,
    decode,
    encode,
    pack,
    unpack,
)
from snapshot_assets.serve.metadata import metadata, metadata_schema
from snapshot_assets.serve.queries import CallContext, Queries, Query
from snapshot_assets.serve.sessions import Parameters
from snapshot_assets.serve.statements import Statement, StatementCheck
from snapshot_assets.serve.tokens import ACCESS, Access, AccessRules, BearerMiddlewareFactory

__all__ = ["FlightSqlServer"]

_logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")

_EXPLAIN_SCHEMA = pa.schema([("explain_key", pa.string()), ("explain_value", pa.string())])
_MAX_PARAMETER_BYTES = 4 << 20
_CANCELLED, _NOT_CANCELLABLE = 1, 3

_ACTIONS = {
    "CreatePreparedStatement": "Prepare a statement.",
    "ClosePreparedStatement": "Forget a prepared statement.",
    "CancelFlightInfo": "Cancel a query.",
    "CancelQuery": "Cancel a query, the older way.",
}


def _typed(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Whatever goes wrong reaches the client as a typed error, and never as a traceback."""

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(*args, **kwargs)
        except SnapshotAssetsError as error:
            raise to_flight(error) from None
        except MalformedMessage as error:
            refused = QueryRefused(f"the request is malformed: {error}", hint="Use a Flight SQL client.")
            raise to_flight(refused) from None
        except (fl.FlightError, StopIteration):
            raise
        except Exception as error:  # the border: the details are for the node's log only
            _logger.exception("a request failed")
            raise fl.FlightInternalError(f"the node failed to answer: {type(error).__name__}") from None

    return call


class FlightSqlServer(fl.FlightServerBase):  # type: ignore[misc]
    """The Flight service of a node; it listens from construction on.

    Args:
        location: where to listen; port 0 takes a free one, see `port`.
        queries: runs what was checked.
        control: answers the control actions.
        rules: who may do what.
        datasets: shown as catalogs.
        version: of this package.
        tls: the certificate chain and the key, as PEM files.
    """

    def __init__(
        self,
        location: str,
        *,
        queries: Queries,
        control: Control,
        rules: AccessRules,
        datasets: Collection[str],
        version: str,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        certificates = [] if tls is None else [(tls[0].read_bytes(), tls[1].read_bytes())]
        super().__init__(
            location,
            # lets clients that only know user and password shake hands; the middleware decides
            auth_handler=_OpenHandshake(),
            tls_certificates=certificates,
            middleware={ACCESS: BearerMiddlewareFactory(rules)},
        )
        self._queries = queries
        self._control = control
        self._datasets = datasets
        self._version = version
        self._check = StatementCheck()

    @_typed
    def get_flight_info(self, context: fl.ServerCallContext, descriptor: fl.FlightDescriptor) -> fl.FlightInfo:
        """Start a query, or say where the answer about what there is can be had."""
        _access(context).check_query()
        command = _command(descriptor)
        schema = metadata_schema(command)
        if schema is not None:
            return _info(schema, descriptor, descriptor.command)
        statement, bindings = self._statement(command)
        handle, schema = self._queries.submit(statement.sql, bindings, context)
        return _info(schema, descriptor, pack(TicketStatementQuery(handle)))

    @_typed
    def get_schema(self, context: fl.ServerCallContext, descriptor: fl.FlightDescriptor) -> fl.SchemaResult:
        """The columns that a query would give."""
        _access(context).check_query()
        command = _command(descriptor)
        schema = metadata_schema(command)
        if schema is None:
            statement, bindings = self._statement(command, bound=False)
            schema = self._describe(statement, bindings[0], context)
        return fl.SchemaResult(schema)

    @_typed
    def do_get(self, context: fl.ServerCallContext, ticket: fl.Ticket) -> fl.FlightDataStream:
        """The rows of a query that was started, or the answer about what there is."""
        _access(context).check_query()
        command = unpack(ticket.ticket)
        if isinstance(command, TicketStatementQuery):
            query = self._queries.fetch(command.statement_handle)
            return fl.GeneratorStream(query.schema, _Rows(query, context))
        if metadata_schema(command) is None:
            raise QueryRefused(
                f"a {type(command).__name__} is no ticket", hint="Ask for a flight info first, and fetch its ticket."
            )
        return fl.RecordBatchStream(metadata(command, _Ask(self._queries, context), self._datasets, self._version))

    @_typed
    def do_put(
        self,
        context: fl.ServerCallContext,
        descriptor: fl.FlightDescriptor,
        reader: fl.MetadataRecordBatchReader,
        writer: fl.FlightMetadataWriter,
    ) -> None:
        """Bind the parameters of a prepared statement."""
        _access(context).check_query()
        command = _command(descriptor)
        if not isinstance(command, CommandPreparedStatementQuery):
            raise _read_only(command)
        bound = decode(BoundStatement, command.prepared_statement_handle)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, reader.schema) as out:
            for chunk in reader:
                out.write_batch(chunk.data)
                if sink.tell() > _MAX_PARAMETER_BYTES:
                    raise QueryRefused(
                        f"the parameters have more than {_MAX_PARAMETER_BYTES} bytes", hint="Bind fewer values at once."
                    )
        handle = encode(BoundStatement(bound.query, sink.getvalue().to_pybytes()))
        writer.write(pa.py_buffer(encode(PreparedStatementBound(handle))))

    @_typed
    def list_actions(self, context: fl.ServerCallContext) -> list[tuple[str, str]]:
        """The actions of this server."""
        _access(context)
        return list((_ACTIONS | dict(CONTROL_ACTIONS)).items())

    @_typed
    def do_action(self, context: fl.ServerCallContext, action: fl.Action) -> Iterator[fl.Result]:
        """Prepared statements, cancelling, and control."""
        body = action.body.to_pybytes()
        access = _access(context)
        if action.type in CONTROL_ACTIONS:
            if action.type == "status":
                access.check_status()
            else:
                access.check_control()
            answer = json.dumps(self._control.act(action.type, body)).encode()
            return iter([fl.Result(answer)])
        access.check_query()
        match action.type:
            case "CreatePreparedStatement":
                return iter([fl.Result(pack(self._prepare(_unpacked(CreatePreparedStatementRequest, body), context)))])
            case "ClosePreparedStatement":
                _unpacked(ClosePreparedStatementRequest, body)
                return iter(())
            case "CancelFlightInfo":
                # the one action whose body is not packed into an Any
                status = self._cancel(decode(CancelFlightInfoRequest, body).info)
                return iter([fl.Result(encode(CancelFlightInfoResult(status)))])
            case "CancelQuery":
                result = self._cancel(_unpacked(CancelQueryRequest, body).info)
                return iter([fl.Result(pack(CancelQueryResult(result)))])
            case _:
                raise NotImplementedAction(f"the action {action.type[:100]!r} is not offered here")

    def _prepare(self, request: CreatePreparedStatementRequest, context: CallContext) -> CreatePreparedStatementResult:
        statement = self._check.check(request.query)
        try:
            schema = self._describe(statement, _nothing_bound(statement), context).serialize().to_pybytes()
        except QueryFailed:
            if not statement.parameters:
                raise
            # only with the parameters' values can the columns be known
            schema = b""
        parameters = pa.schema([(name, pa.null()) for name in statement.parameters])
        return CreatePreparedStatementResult(
            encode(BoundStatement(request.query)), schema, parameters.serialize().to_pybytes()
        )

    def _statement(self, command: FlightSqlMessage, *, bound: bool = True) -> tuple[Statement, Sequence[Parameters]]:
        match command:
            case CommandStatementQuery(query):
                statement, values = self._check.check(query), None
            case CommandPreparedStatementQuery(handle):
                prepared = decode(BoundStatement, handle)
                statement, values = self._check.check(prepared.query), prepared.parameters
            case _:
                raise _read_only(command)
        if values is None and statement.parameters and not bound:
            return statement, [_nothing_bound(statement)]
        return statement, _bindings(statement, values)

    def _describe(self, statement: Statement, parameters: Parameters, context: CallContext) -> pa.Schema:
        if statement.is_explain:
            return _EXPLAIN_SCHEMA
        return self._queries.describe(statement.sql, parameters, context)

    def _cancel(self, info: bytes) -> int:
        try:
            endpoints = fl.FlightInfo.deserialize(info).endpoints
        except (pa.ArrowException, fl.FlightError, ValueError) as error:
            raise MalformedMessage(f"not a flight info: {error}") from error
        cancelled = False
        for endpoint in endpoints:
            ticket = unpack(endpoint.ticket.ticket)
            if isinstance(ticket, TicketStatementQuery):
                cancelled |= self._queries.cancel(ticket.statement_handle)
        return _CANCELLED if cancelled else _NOT_CANCELLABLE


class NotImplementedAction(fl.FlightServerError):  # type: ignore[misc]
    """An action that this server does not offer."""


class _OpenHandshake(fl.ServerAuthHandler):  # type: ignore[misc]
    def authenticate(self, outgoing: Any, incoming: Any) -> None:
        """Nothing to exchange: the headers have said it."""

    def is_valid(self, token: bytes) -> str:
        """The middleware has decided already."""
        del token
        return ""


class _Rows:
    """The rows of a query, batch by batch; gives back what the query holds when the stream ends, however it ends."""

    def __init__(self, query: Query, context: CallContext) -> None:
        self._query = query
        self._context = context
        self._has_dictionaries = any(_has_dictionary(field.type) for field in query.schema)

    def __iter__(self) -> Iterator[pa.RecordBatch | fl.FlightDataStream]:
        return self

    @_typed
    def __next__(self) -> pa.RecordBatch | fl.FlightDataStream:
        batch = self._query.next_batch(self._context)
        if batch is None:
            raise StopIteration
        if self._has_dictionaries:
            # a bare batch would be sent without the dictionaries that its columns point into
            return fl.RecordBatchStream(pa.Table.from_batches([batch]))
        return batch

    def __del__(self) -> None:
        with suppress(Exception):
            self._query.close()


class _Ask:
    """The node's own statements, under the limits of everybody."""

    def __init__(self, queries: Queries, context: CallContext) -> None:
        self._queries = queries
        self._context = context

    def rows(self, sql: str, parameters: list[Any]) -> pa.Table:
        query = self._queries.open(sql, [parameters], self._context)
        try:
            return pa.Table.from_batches(list(iter(lambda: query.next_batch(self._context), None)), schema=query.schema)
        finally:
            query.close()

    def columns(self, sql: str) -> pa.Schema:
        return self._queries.describe(sql, None, self._context)


_M = TypeVar("_M", bound=FlightSqlMessage)


def _has_dictionary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return True
    return any(_has_dictionary(kind.field(number).type) for number in range(kind.num_fields))


def _access(context: fl.ServerCallContext) -> Access:
    access: Access = context.get_middleware(ACCESS).access
    return access


def _command(descriptor: fl.FlightDescriptor) -> FlightSqlMessage:
    if descriptor.descriptor_type != fl.DescriptorType.CMD:
        raise MalformedMessage("the descriptor holds a path, and no Flight SQL command")
    return unpack(descriptor.command)


def _unpacked(kind: type[_M], body: bytes) -> _M:
    message = unpack(body)
    if not isinstance(message, kind):
        raise MalformedMessage(f"the action's body is a {type(message).__name__}")
    return message


def _info(schema: pa.Schema, descriptor: fl.FlightDescriptor, ticket: bytes) -> fl.FlightInfo:
    # no location: the endpoint is the server that was asked, under whatever name it was reached
    return fl.FlightInfo(schema, descriptor, [fl.FlightEndpoint(ticket, [])], -1, -1)


def _read_only(command: FlightSqlMessage) -> SnapshotAssetsError:
    if isinstance(command, (CommandStatementUpdate, CommandPreparedStatementUpdate)):
        return ReadOnlyDataset("the datasets of a reader node are read-only, and updates are not taken")
    return QueryRefused(f"a {type(command).__name__} can not be used here", hint="Use a Flight SQL client.")


def _nothing_bound(statement: Statement) -> Parameters:
    if statement.by_position:
        return [None] * len(statement.parameters)
    return dict.fromkeys(statement.parameters)


def _bindings(statement: Statement, values: bytes | None) -> list[Parameters]:
    """The sets of values that the statement runs with: one row, one run."""
    wanted = len(statement.parameters)
    if values is None:
        if wanted:
            raise QueryFailed(f"the statement has {wanted} parameters, and none were bound")
        return [None]
    try:
        table = pa.ipc.open_stream(values).read_all()
        rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise MalformedMessage(f"the parameters are no Arrow stream: {error}") from error
    if table.num_columns != wanted:
        raise QueryFailed(f"the statement has {wanted} parameters, and {table.num_columns} were bound")
    if not wanted:
        return [None]
    if not rows:
        raise QueryFailed("the bound parameters hold no row")
    if statement.by_position:
        return [list(row) for row in rows]
    names = table.column_names
    if set(names) != set(statement.parameters):
        raise QueryFailed(f"the statement has the parameters {', '.join(statement.parameters)}, not {', '.join(names)}")
    return [dict(zip(names, row, strict=True)) for row in rows]
