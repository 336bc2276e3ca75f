"""Several datasets in one SQL session: DuckDB over all that a reader serves, one generation of each at a time."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb

from snapshot_assets.engines.duckdb_pool import READER_CONFIG
from snapshot_assets.errors import (
    ConfigurationError,
    NotLoaded,
    ReaderError,
    ReadOnlyDataset,
    SnapshotAssetsError,
    UnsupportedEngine,
)
from snapshot_assets.ids import new_ulid
from snapshot_assets.reader.local_copy import LocalCopy
from snapshot_assets.reader.serving import Lease
from snapshot_assets.reader.settings import Current
from snapshot_assets.reader.sqlite_scan import SCAN_REFUSED, SQLiteTable, quoted

if TYPE_CHECKING:
    import pyarrow as pa

    from snapshot_assets.reader.followed import FollowedDataset

__all__ = ["Catalog"]

_log = logging.getLogger(__name__)

_MOST_READY: Final = 8
"""How many sessions are kept ready; a session belongs to one lease and is not used twice."""

_READING: Final = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}

_CONTENTS: Final = """
    select database_name, '', '' from duckdb_databases()
    union all select database_name, schema_name, view_name from duckdb_views() where not internal and not temporary
    union all select database_name, schema_name, table_name from duckdb_tables() where not temporary
    order by all
"""


class Catalog:
    """Every loaded dataset of a reader as ``<dataset>.main.<table>`` of one DuckDB session, read-only.

    A session shows one consistent set of generations from beginning to end. A swap of any dataset makes a new set, and
    what runs on the old one goes on there. Sessions can read nothing but the datasets: no files, no network, no Python
    variables; their configuration is locked. Safe to use from several threads.
    """

    def __init__(
        self,
        followed: Callable[[], Sequence[FollowedDataset]],
        config: Mapping[str, str | int | bool],
        spill: Path,
    ) -> None:
        self._followed = followed
        self._config = {**config, **READER_CONFIG}
        self._spill = spill
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._sessions: _Sessions | None = None
        self._wanted = False
        self._closed = False

    @contextmanager
    def connect(self, *, checked: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """A session of the caller's own, over the newest set of generations.

        Args:
            checked: the caller makes sure that nothing but SELECTs is run; the session is then not looked over for
                changes that other sessions would see when its lease ends, which takes longer than a small query.

        Raises:
            ConfigurationError: DuckDB refuses a setting of `catalog_config`.
            ReaderError: the reader is closed.
        """
        sessions = self._enter()
        try:
            with closing(sessions.take()) as session:
                yield session
        finally:
            whole = checked or sessions.is_whole()
            self._leave(sessions)
            if not whole:
                _log.warning("a catalogue session changed what all sessions see; they are made anew")
                self._replace(spoilt=sessions)

    def query(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> pa.Table:
        """Run one reading statement over the newest set of generations and fetch its whole result as Arrow.

        Raises:
            ReadOnlyDataset: it is not one statement, or not one that only reads.
            ReaderError: a value of a SQLite table does not fit its column's declared type, or the reader is closed.
        """
        sessions = self._enter()
        try:
            with closing(sessions.take()) as session:
                statements = session.extract_statements(sql)
                if len(statements) != 1 or statements[0].type not in _READING:
                    raise ReadOnlyDataset(
                        "a catalogue runs one statement at a time, and only a SELECT or the EXPLAIN of one"
                    )
                return _to_arrow(session, statements[0], parameters)
        finally:
            self._leave(sessions)

    @property
    def generations(self) -> dict[str, Current]:
        """What a session taken now shows of each dataset. Raises what `connect` raises."""
        sessions = self._enter()
        try:
            return {member.copy.manifest.dataset: member.current for member in sessions.members}
        finally:
            self._leave(sessions)

    def renew(self) -> None:
        """Make sessions for what is served now, if anybody ever asked for any; for the reader, after a swap."""
        if not self._wanted:
            return
        try:
            self._replace()
        except SnapshotAssetsError as error:
            # The swap has happened. Old sessions must not hide it: the next lease tries again, and is told.
            _log.warning("the catalogue has no sessions: %s", error)
            with self._building:
                self._put(None)

    def close(self) -> None:
        """Give no more sessions; those that are out end with their leases."""
        with self._building:
            self._closed = True
            self._put(None)

    def _enter(self) -> _Sessions:
        self._wanted = True
        while True:
            with self._lock:
                if self._closed:
                    raise ReaderError("this reader is closed", hint="Open a new SnapshotReader.")
                sessions = self._sessions
                if sessions is not None:
                    sessions.leases += 1
                    return sessions
            self._replace()

    def _leave(self, sessions: _Sessions) -> None:
        try:
            if sessions is self._sessions:
                sessions.refill()
        finally:
            with self._lock:
                sessions.leases -= 1
                ended = sessions is not self._sessions and not sessions.leases
            if ended:
                sessions.close()

    def _replace(self, *, spoilt: _Sessions | None = None) -> None:
        """Make new sessions, unless those that there are show what is served, and are not the spoilt ones."""
        with self._building:
            if self._closed:
                return
            followed = self._followed()
            sessions = self._sessions
            if sessions is None or sessions is spoilt or not sessions.shows(followed):
                members = [member for one in followed if (member := _member(one))]
                # Instances that shared a folder would take each other's temporary files for their own.
                self._put(_Sessions(members, {"temp_directory": str(self._spill / new_ulid()), **self._config}))

    def _put(self, sessions: _Sessions | None) -> None:
        with self._lock:
            old, self._sessions = self._sessions, sessions
            ended = old is not None and not old.leases
        if old is not None and ended:
            old.close()


@dataclass(frozen=True, slots=True)
class _Member:
    """A dataset in a set of sessions; a use of its local copy is counted until `give_back`."""

    copy: LocalCopy
    current: Current
    give_back: Callable[[], None]


def _member(followed: FollowedDataset) -> _Member | None:
    """What a dataset serves now; the lease keeps its copy while a use of it is counted."""
    lease = Lease(followed.provider.find)
    try:
        serving = lease.count()
    except NotLoaded:
        return None
    try:
        copy = serving.copy
        followed.folder.use(copy.name)
    finally:
        serving.leave(lease)
    return _Member(copy, lease.current, lambda: followed.put_back(copy))


class _Sessions:
    """One DuckDB instance over one set of generations, and sessions of it that are ready to be used.

    A registered object belongs to one connection, and making a session takes longer than a small query; so they are
    made ready when a lease ends, by its thread, rather than when one begins.
    """

    def __init__(self, members: Sequence[_Member], config: Mapping[str, Any]) -> None:
        self.members = members
        self.leases = 0
        self._scans: dict[str, SQLiteTable] = {}
        self._ready: deque[duckdb.DuckDBPyConnection] = deque()
        try:
            self._root = self._open(config)
            self._whole = self._contents()
        except BaseException:
            self._give_back()
            raise

    def take(self) -> duckdb.DuckDBPyConnection:
        """A session that nobody has used."""
        try:
            return self._ready.popleft()
        except IndexError:
            return self._session()

    def shows(self, followed: Sequence[FollowedDataset]) -> bool:
        """Whether this is what is served now."""
        served = {one.name: serving.current for one in followed if (serving := one.provider.serving) is not None}
        return served == {member.copy.manifest.dataset: member.current for member in self.members}

    def refill(self) -> None:
        """Make one session ready, unless enough are."""
        if len(self._ready) < _MOST_READY:
            self._ready.append(self._session())

    def is_whole(self) -> bool:
        """Whether every session still sees what was put here."""
        return self._contents() == self._whole

    def close(self) -> None:
        """Close everything and give the local copies back. No session is out."""
        while self._ready:
            self._ready.popleft().close()
        self._root.close()
        self._give_back()

    def _open(self, config: Mapping[str, Any]) -> duckdb.DuckDBPyConnection:
        try:
            root = duckdb.connect(":memory:", config=dict(config))
        except duckdb.Error as error:
            raise ConfigurationError(f"DuckDB refuses the catalogue's settings: {error}") from error
        try:
            for member in self.members:
                self._attach(root, member.copy)
            root.execute("set enable_external_access = false")
            root.execute("set lock_configuration = true")
        except duckdb.Error as error:
            root.close()
            raise ReaderError(f"the catalogue can not show what is loaded: {error}") from error
        return root

    def _attach(self, root: duckdb.DuckDBPyConnection, copy: LocalCopy) -> None:
        dataset = copy.manifest.dataset
        files = [copy.files / file.path for file in copy.manifest.files]
        match copy.manifest.engine:
            case "duckdb":
                root.execute(f"attach '{_escaped(files[0])}' as {quoted(dataset)} (read_only)")
            case "sqlite":
                root.execute(f"attach ':memory:' as {quoted(dataset)}")
                for table, content in copy.manifest.tables.items():
                    scan = f"{dataset}.{table}"
                    self._scans[scan] = SQLiteTable(files[0], table, content.schema.to_arrow())
                    root.register(scan, self._scans[scan])
                    root.execute(f"create view {quoted(dataset)}.main.{quoted(table)} as select * from {quoted(scan)}")
            case engine:
                raise UnsupportedEngine(f"a catalogue can not show datasets of the engine {engine!r}", dataset=dataset)

    def _session(self) -> duckdb.DuckDBPyConnection:
        session = self._root.cursor()
        for name, scan in self._scans.items():
            session.register(name, scan)
        return session

    def _contents(self) -> list[tuple[Any, ...]]:
        with closing(self._root.cursor()) as cursor:
            return cursor.execute(_CONTENTS).fetchall()

    def _give_back(self) -> None:
        for member in self.members:
            member.give_back()


def _to_arrow(
    session: duckdb.DuckDBPyConnection,
    statement: duckdb.Statement,
    parameters: Sequence[Any] | Mapping[str, Any] | None,
) -> pa.Table:
    try:
        table: pa.Table = session.sql(statement, params=parameters).to_arrow_table()
    except duckdb.Error as error:
        if SCAN_REFUSED in str(error):
            raise ReaderError(str(error), hint="Query the dataset by itself, with its own engine.") from error
        raise
    return table


def _escaped(path: Path) -> str:
    return str(path).replace("'", "''")
