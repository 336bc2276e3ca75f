"""Several datasets in one SQL session: DuckDB over all that a reader serves, one generation of each at a time."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb

from snapshot_assets.engines.arrow_sql import create_views, register_scans
from snapshot_assets.engines.duckdb_pool import READER_CONFIG
from snapshot_assets.engines.duckdb_statements import reading_statement
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.engines.sql import quoted
from snapshot_assets.engines.sqlite_scan import SCAN_REFUSED
from snapshot_assets.errors import (
    ConfigurationError,
    NotLoaded,
    ReaderError,
    SnapshotAssetsError,
)
from snapshot_assets.ids import new_ulid
from snapshot_assets.reader.data_dir import remove_folder
from snapshot_assets.reader.local_copy import LocalCopy
from snapshot_assets.reader.serving import Lease
from snapshot_assets.reader.settings import Current

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset

    from snapshot_assets.reader.followed import FollowedDataset

__all__ = ["Catalog"]

_log = logging.getLogger(__name__)

_MOST_READY: Final = 8
"""How many sessions are kept ready; a session belongs to one lease and is not used twice."""

_DATABASES: Final = "select database_name, database_oid from duckdb_databases() where not internal order by all"


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

        Nothing in a dataset can be changed. All sessions share the list of databases, though: what an ATTACH, DETACH
        or ALTER DATABASE does to it is seen by all, and undone for new sessions when this lease ends.

        Args:
            checked: the caller makes sure that nothing but SELECTs is run; the list of databases is then not looked
                over when the lease ends, which takes longer than a small query.

        Raises:
            ConfigurationError: DuckDB refuses a setting of `catalog_config`.
            ReaderError: the reader is closed.
        """
        sessions = self._enter()
        try:
            with closing(sessions.take()) as session:
                yield session
        finally:
            try:
                whole = checked or sessions.is_whole()
            finally:
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
                return _to_arrow(session, reading_statement(session, sql), parameters)
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
                with ExitStack() as held:
                    members = [member for one in followed if (member := _member(one, held))]
                    # Instances that shared a folder would take each other's temporary files for their own.
                    self._put(_Sessions(members, self._spill / new_ulid(), self._config, held))

    def _put(self, sessions: _Sessions | None) -> None:
        with self._lock:
            old, self._sessions = self._sessions, sessions
            ended = old is not None and not old.leases
        if old is not None and ended:
            old.close()


@dataclass(frozen=True, slots=True)
class _Member:
    """A dataset in a set of sessions."""

    copy: LocalCopy
    current: Current


def _member(followed: FollowedDataset, held: ExitStack) -> _Member | None:
    """What a dataset serves now, with a use of its local copy counted until `held` is closed."""
    lease = Lease(followed.provider.find)
    try:
        serving = lease.count()
    except NotLoaded:
        return None
    try:
        # The lease keeps the copy while its use is counted.
        copy = serving.copy
        followed.folder.use(copy.name)
        held.callback(followed.put_back, copy)
    finally:
        serving.leave(lease)
    return _Member(copy, lease.current)


class _Sessions:
    """One DuckDB instance over one set of generations, and sessions of it that are ready to be used.

    A registered object belongs to one connection, and making a session takes longer than a small query; so they are
    made ready when a lease ends, by its thread, rather than when one begins.

    Sessions share whatever lies in the instance's databases. So all of these are files that are attached read-only,
    also the instance's own, which is empty, and those with the views that stand for the Arrow tables of datasets.

    Args:
        members: what the sessions show.
        folder: a folder that is made here and removed by `close`.
        config: DuckDB's settings.
        held: what `close` closes at last; nothing is taken from it when this raises.

    Raises:
        ConfigurationError: DuckDB refuses a setting.
        MissingExtra: the package of a dataset's engine is not installed.
        ReaderError: the sessions can not be made for another reason.
    """

    def __init__(self, members: Sequence[_Member], folder: Path, config: Mapping[str, Any], held: ExitStack) -> None:
        self.members = members
        self.leases = 0
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._scans: dict[str, Mapping[str, pyarrow.dataset.Dataset]] = {}
        self._ready: deque[duckdb.DuckDBPyConnection] = deque()
        with ExitStack() as opened:
            opened.callback(self._remove_folder)
            try:
                self._write_views()
                self._root = opened.enter_context(closing(self._connect(config)))
                self._attach_all()
                self._whole = self._databases()
            except (duckdb.Error, OSError) as error:
                raise ReaderError(f"the catalogue can not show what is loaded: {error}") from error
            opened.callback(self._close_ready)
            self._opened = opened.pop_all()
        self._held = held.pop_all()

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
        """Whether every session still sees the databases that were attached here."""
        try:
            return self._databases() == self._whole
        except duckdb.Error:
            # Whatever a session has done that they can not be listed any more, new ones are needed.
            return False

    def close(self) -> None:
        """Close everything and give the local copies back. No session is out."""
        with self._held, self._opened:
            pass

    def _write_views(self) -> None:
        """Write the databases that are attached beside the datasets' own files: their views stand for Arrow tables."""
        self._folder.mkdir(parents=True)
        with closing(duckdb.connect(str(self._own_database), config=READER_CONFIG)) as builder:
            for member in self.members:
                manifest = member.copy.manifest
                dataset = manifest.dataset
                tables = engine_named(manifest.engine).sql_tables(member.copy.files, manifest)
                if isinstance(tables, Path):
                    self._files[dataset] = tables
                    continue
                self._files[dataset] = self._folder / f"{dataset}.duckdb"
                self._scans[dataset] = tables
                builder.execute(f"attach '{_escaped(self._files[dataset])}' as {quoted(dataset)}")
                create_views(builder, dataset, tables)

    def _connect(self, config: Mapping[str, Any]) -> duckdb.DuckDBPyConnection:
        settings = {"temp_directory": str(self._folder / "spilled"), **config}
        try:
            return duckdb.connect(str(self._own_database), read_only=True, config=settings)
        except duckdb.Error as error:
            raise ConfigurationError(f"DuckDB refuses the catalogue's settings: {error}") from error

    def _attach_all(self) -> None:
        for dataset, file in self._files.items():
            self._root.execute(f"attach '{_escaped(file)}' as {quoted(dataset)} (read_only)")
        self._root.execute("set enable_external_access = false")
        self._root.execute("set lock_configuration = true")

    @property
    def _own_database(self) -> Path:
        # No dataset can have this name, which DuckDB gives to the database after its file.
        return self._folder / "memory.duckdb"

    def _session(self) -> duckdb.DuckDBPyConnection:
        session = self._root.cursor()
        for dataset, tables in self._scans.items():
            register_scans(session, dataset, tables)
        return session

    def _databases(self) -> list[tuple[Any, ...]]:
        with closing(self._root.cursor()) as cursor:
            return cursor.execute(_DATABASES).fetchall()

    def _close_ready(self) -> None:
        while self._ready:
            self._ready.popleft().close()

    def _remove_folder(self) -> None:
        try:
            remove_folder(self._folder)
        except OSError as error:
            # It is removed at the next start, and a query that has its answer must not fail for it.
            _log.warning("the catalogue's folder %s is not removed: %s", self._folder, error)


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
