"""Queries that run: what each holds, for how long, and how many there may be.

A query holds one of the node's slots and a lease on one set of generations from its start until its last row has been
handed over. It gives both back on every way out: at the end, on an error, when its client goes away or cancels, when
nobody fetches it, and when its time is up. A result that is small enough is read at once, and then holds neither.
"""

from __future__ import annotations

import functools
import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import duckdb
import pyarrow as pa

from snapshot_assets.clock import SYSTEM_CLOCK, Clock
from snapshot_assets.errors import NodeUnavailable, QueryFailed, QueryStopped, SnapshotAssetsError
from snapshot_assets.serve.sessions import Parameters, Sessions, describe, open_reader, query_error

__all__ = ["CallContext", "Limits", "Queries", "Query"]

_logger = logging.getLogger(__name__)

_BATCH_ROWS = 65_536
_BATCH_BYTES = 8 << 20  # clients refuse messages above 16 MiB unless told otherwise
_SMALL_BYTES = 256 << 10
_WATCH_SECONDS = 0.05


class CallContext(Protocol):
    """A call of a client that is being answered."""

    def is_cancelled(self) -> bool:
        """Whether the client gave up on it, or is gone."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What queries may take.

    Args:
        max_concurrency: how many queries may run, or wait to be fetched, at once.
        queue_timeout: seconds that a query waits for one of the others to end.
        query_timeout: seconds from the start of a query to its last row at the client; none: no limit.
        fetch_timeout: seconds until a result that nobody fetches, or goes on fetching, is thrown away.
        max_rows: rows of one result; more is an error, never a shorter answer. None: no limit.
        max_unfetched: how many results may wait to be fetched.
    """

    max_concurrency: int = 16
    queue_timeout: float = 5.0
    query_timeout: float | None = 300.0
    fetch_timeout: float = 60.0
    max_rows: int | None = None
    max_unfetched: int = 256


class Query:
    """One query. Its methods are called by one thread at a time, except `stop`, which any thread may call."""

    def __init__(
        self,
        lease: AbstractContextManager[duckdb.DuckDBPyConnection],
        connection: duckdb.DuckDBPyConnection,
        limits: Limits,
        clock: Clock,
        on_close: Callable[[Query], None],
    ) -> None:
        self._limits = limits
        self._on_close = on_close
        self._guard = threading.RLock()
        self._lease = lease
        self._connection = connection
        self._reader: pa.RecordBatchReader | None = None
        self._waiting: deque[Parameters] = deque()
        self._ahead: deque[pa.RecordBatch] = deque()
        self._sql = ""
        self._rows = 0
        self._executing = False
        self._context: CallContext | None = None
        self._stopped: QueryStopped | None = None
        self.closed = False
        self.schema: pa.Schema = pa.schema([])
        self._clock = clock
        self._started = self._touched = clock.monotonic()

    def describe(self, sql: str, parameters: Parameters, context: CallContext) -> pa.Schema:
        """The columns that the statement would give; it is planned, and not run. Raises as `start` does."""
        with self._execution(context):
            return describe(self._connection, sql, parameters)

    def start(self, sql: str, bindings: Sequence[Parameters], context: CallContext) -> None:
        """Run the statement, once for each binding, and read ahead as much as is small.

        Raises:
            QueryFailed: DuckDB does not like it.
            QueryRefused: DuckDB finds that it reaches for something that is locked.
            QueryStopped: it was cancelled, or went over a limit.
        """
        self._sql = sql
        self._waiting.extend(bindings)
        small = 0
        while small <= _SMALL_BYTES:
            batch = self._read(context)
            if batch is None:
                return
            small += batch.nbytes
            self._ahead.append(batch)

    def next_batch(self, context: CallContext) -> pa.RecordBatch | None:
        """The next rows, as many as fit into one message, or none at the end; raises as `start` does."""
        if self._stopped is not None:
            raise self._stopped
        batch = self._ahead.popleft() if self._ahead else self._read(context)
        while batch is not None and batch.nbytes > _BATCH_BYTES and batch.num_rows > 1:
            half = batch.num_rows // 2
            self._ahead.appendleft(batch.slice(half))
            batch = batch.slice(0, half)
        return batch

    def stop(self, reason: QueryStopped) -> None:
        """End the query from outside: what it executes is interrupted, what it holds is given back."""
        with self._guard:
            if self._stopped is None:
                self._stopped = reason
            if self._executing:
                self._connection.interrupt()
            else:
                self.close()

    def close(self) -> None:
        """Give back the lease and the slot; the second call does nothing."""
        with self._guard:
            if self.closed:
                return
            self.closed = True
            try:
                if self._reader is not None:
                    self._reader.close()
                    self._reader = None
            finally:
                try:
                    self._lease.__exit__(None, None, None)
                finally:
                    self._on_close(self)

    def watch(self, now: float) -> None:
        """Stop the query if its time is up or its client is gone; called by the watching thread."""
        with self._guard:
            if self.closed:
                return
            if self._stopped is not None:
                # an interrupt is lost if it came before the engine had begun
                self.stop(self._stopped)
            timeout = self._limits.query_timeout
            if timeout is not None and now - self._started > timeout:
                self.stop(QueryStopped(f"the query took longer than the {timeout:g} seconds that this node allows"))
            elif not self._executing and now - self._touched > self._limits.fetch_timeout:
                self.stop(QueryStopped(f"nobody fetched from the result for {self._limits.fetch_timeout:g} seconds"))
            elif self._context is not None and self._context.is_cancelled():
                self.stop(QueryStopped("the client cancelled the query", hint=""))

    @contextmanager
    def _execution(self, context: CallContext) -> Iterator[None]:
        with self._guard:
            if self._stopped is not None:
                raise self._stopped
            self._executing, self._context = True, context
        try:
            yield
        except (duckdb.Error, pa.ArrowException, OSError, TypeError, ValueError) as error:
            raise self._cause(error) from error
        finally:
            with self._guard:
                self._executing, self._context = False, None
                self._touched = self._clock.monotonic()
        if self._stopped is not None:
            raise self._stopped

    def _cause(self, error: Exception) -> SnapshotAssetsError:
        """Why DuckDB failed: because the query was stopped, or by itself."""
        return query_error(error) if self._stopped is None else self._stopped

    def _read(self, context: CallContext) -> pa.RecordBatch | None:
        if self.closed and self._stopped is None:
            return None
        try:
            with self._execution(context):
                batch = self._next_rows()
            if batch is None:
                self.close()
                return None
            self._count(batch)
            return batch
        except BaseException:
            self.close()
            raise

    def _count(self, batch: pa.RecordBatch) -> None:
        self._rows += batch.num_rows
        if self._limits.max_rows is not None and self._rows > self._limits.max_rows:
            raise QueryStopped(
                f"the result has more than the {self._limits.max_rows} rows that this node allows",
                hint="Add a LIMIT, or aggregate.",
            )

    def _next_rows(self) -> pa.RecordBatch | None:
        while True:
            if self._reader is None:
                if not self._waiting:
                    return None
                self._reader = open_reader(self._connection, self._sql, self._waiting.popleft(), _BATCH_ROWS)
                self._match_schema(self._reader.schema)
            try:
                batch = self._reader.read_next_batch()
            except StopIteration:
                self._reader.close()
                self._reader = None
                continue
            if batch.num_rows:
                return batch

    def _match_schema(self, schema: pa.Schema) -> None:
        if not self.schema.names:
            self.schema = schema
        elif not schema.equals(self.schema):
            raise QueryFailed(
                f"one set of parameters gives other column types than the first: {schema} after {self.schema}",
                hint="Cast the parameters in the statement.",
            )


class Queries:
    """All queries of a node. Safe to call from several threads."""

    def __init__(self, sessions: Sessions, limits: Limits, clock: Clock = SYSTEM_CLOCK) -> None:
        self._sessions = sessions
        self._limits = limits
        self._clock = clock
        self._changed = threading.Condition()
        self._slots = limits.max_concurrency
        self._queued = 0
        self._running: set[Query] = set()
        self._unfetched: dict[bytes, tuple[Query, float]] = {}
        self._fetching: dict[bytes, Query] = {}
        self._stopping = False
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="snapshot-assets-queries", daemon=True)
        self._watcher.start()

    @property
    def running(self) -> int:
        """How many queries hold a slot now."""
        with self._changed:
            return len(self._running)

    @property
    def unfetched(self) -> int:
        """How many results wait to be fetched."""
        with self._changed:
            return len(self._unfetched)

    def open(self, sql: str, bindings: Sequence[Parameters], context: CallContext) -> Query:
        """Start a query whose rows the caller takes; the caller closes it. The statement has been checked.

        Raises:
            NodeUnavailable: the node is stopping, or had no slot in time.
            NotLoaded: nothing is served yet.
            QueryFailed, QueryRefused, QueryStopped: as `Query.start`.
        """
        query = self._begin(context)
        query.start(sql, bindings, context)
        return query

    def describe(self, sql: str, parameters: Parameters, context: CallContext) -> pa.Schema:
        """The columns that the statement would give, without running it; raises as `open` does."""
        query = self._begin(context)
        try:
            return query.describe(sql, parameters, context)
        finally:
            query.close()

    def submit(self, sql: str, bindings: Sequence[Parameters], context: CallContext) -> tuple[bytes, pa.Schema]:
        """Start a query and keep it until it is fetched; raises as `open` does."""
        with self._changed:
            if len(self._unfetched) >= self._limits.max_unfetched:
                raise NodeUnavailable(f"{len(self._unfetched)} results wait to be fetched; no more are kept")
        query = self.open(sql, bindings, context)
        handle = secrets.token_bytes(16)
        with self._changed:
            self._unfetched[handle] = (query, self._clock.monotonic())
        return handle, query.schema

    def fetch(self, handle: bytes) -> Query:
        """The query of a handle; each is fetched once.

        Raises:
            QueryStopped: there is none: it was fetched before, timed out, or never was.
        """
        with self._changed:
            waiting = self._unfetched.pop(handle, None)
            if waiting is None:
                raise QueryStopped(
                    "no result waits under this ticket: it was fetched before, was not fetched in time, or never was",
                    hint="Run the query again.",
                )
            query = waiting[0]
            if not query.closed:
                self._fetching[handle] = query
            return query

    def cancel(self, handle: bytes) -> bool:
        """Stop the query of a handle; tells whether there was one."""
        with self._changed:
            waiting = self._unfetched.pop(handle, None)
            query = waiting[0] if waiting else self._fetching.pop(handle, None)
        if query is None:
            return False
        query.stop(QueryStopped("the client cancelled the query", hint=""))
        return True

    def stop(self, timeout: float) -> None:
        """Take no more queries, let those that run end within the timeout, then stop the rest."""
        deadline = self._clock.monotonic() + timeout
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            while self._running and (left := deadline - self._clock.monotonic()) > 0:
                self._changed.wait(left)
            rest = list(self._running)
        for query in rest:
            query.stop(QueryStopped("the node is stopping", hint="Run the query again, on another node."))
        with self._changed:
            # what executes takes a moment to notice
            self._changed.wait_for(lambda: not self._running, timeout=5.0)
        self._ended.set()

    def _begin(self, context: CallContext) -> Query:
        self._take_slot(context)
        try:
            lease = self._sessions.connect(checked=True)
            connection = lease.__enter__()
        except BaseException:
            self._release_slot()
            raise
        query = Query(lease, connection, self._limits, self._clock, self._give_back)
        with self._changed:
            self._running.add(query)
        return query

    def _take_slot(self, context: CallContext) -> None:
        deadline = self._clock.monotonic() + self._limits.queue_timeout
        with self._changed:
            if self._slots <= 0 and self._queued >= 4 * self._limits.max_concurrency:
                raise self._overload()
            self._queued += 1
            try:
                while not self._stopping and self._slots <= 0:
                    left = deadline - self._clock.monotonic()
                    if left <= 0:
                        raise self._overload()
                    if context.is_cancelled():
                        raise QueryStopped("the client cancelled the query", hint="")
                    self._changed.wait(min(left, 0.5))
                if self._stopping:
                    raise NodeUnavailable("the node is stopping", hint="Ask another node, or this one in a moment.")
                self._slots -= 1
            finally:
                self._queued -= 1

    def _overload(self) -> NodeUnavailable:
        return NodeUnavailable(
            f"the node runs {self._limits.max_concurrency} queries and takes no more for now", hint="Retry in a moment."
        )

    def _release_slot(self) -> None:
        with self._changed:
            self._slots += 1
            self._changed.notify_all()

    def _give_back(self, query: Query) -> None:
        with self._changed:
            self._running.discard(query)
            for handle, fetching in list(self._fetching.items()):
                if fetching is query:
                    del self._fetching[handle]
        self._release_slot()

    def _watch(self) -> None:
        while not self._clock.wait(self._ended, _WATCH_SECONDS):
            now = self._clock.monotonic()
            with self._changed:
                running = list(self._running)
                late = [
                    handle for handle, (_, since) in self._unfetched.items() if now - since > self._limits.fetch_timeout
                ]
                abandoned = [self._unfetched.pop(handle)[0] for handle in late]
            for query in abandoned:
                self._guarded(query.close)
            for query in running:
                self._guarded(functools.partial(query.watch, now))

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (duckdb.Error, SnapshotAssetsError, OSError, RuntimeError):
            # one query that can not be closed must not leave the others unwatched
            _logger.exception("a query could not be stopped")
