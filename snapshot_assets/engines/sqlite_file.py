"""What every engine has in common whose snapshot is one SQLite file: how it is looked at, checked and served."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from snapshot_assets.engines.contract import Captured, StagedFile, VerifyLevel
from snapshot_assets.engines.sql import quoted
from snapshot_assets.engines.sqlite_capture import normalise
from snapshot_assets.engines.sqlite_connection import open_immutable
from snapshot_assets.engines.sqlite_pool import SQLitePool
from snapshot_assets.engines.sqlite_types import declared_type
from snapshot_assets.engines.tables import check_tables, chosen_tables, the_only_file
from snapshot_assets.errors import ConfigurationError, CorruptCapture, ValidationFailed
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import Layout, Manifest, TableContent
from snapshot_assets.model.schema import TableSchema

if TYPE_CHECKING:
    from snapshot_assets.engines.sqlite_scan import SQLiteTable

__all__ = ["SQLiteFile", "check_declaration", "staged_file", "user_tables"]

_STORAGE_VERSION: Final = "4"
_MINIMUM: Final = (3, 37, 0)
_ENGINES_OWN: Final = ("sqlite_", "__turso_internal_")
"""How the names of tables begin that an engine keeps for itself."""


class SQLiteFile:
    """The half of an engine that has to do with staged and local copies.

    Tables are what `pragma table_list` calls a table, without the engines' own. Virtual tables travel with the file and
    can be queried, but whether they can be read depends on the modules of a process, so they are not described.
    """

    supports_snapshot_reload: Final = True

    def live_path(self, dataset: Dataset) -> Path:
        return dataset.real_path

    def shares(self, dataset: Dataset) -> Mapping[Path, str]:  # noqa: ARG002 - the contract asks for it
        """Nothing: one file is one dataset's."""
        return {}

    def describe(self, dataset: Dataset, folder: Path, files: Sequence[str]) -> Mapping[str, TableContent]:
        path = folder / the_only_file(files)
        with _reading(path) as connection:
            names = chosen_tables(user_tables(connection), dataset)
            return {name: _table_content(connection, name, without_rowid=names[name]) for name in names}

    def verify(
        self, folder: Path, files: Sequence[str], tables: Mapping[str, TableContent], level: VerifyLevel
    ) -> None:
        if level == "none":
            return
        path = folder / the_only_file(files)
        with _reading(path) as connection:
            found = user_tables(connection)
            check_tables(path, tables, lambda name: _table_content(connection, name, without_rowid=found[name]), found)
            if level == "full":
                faults = [row[0] for row in connection.execute("pragma integrity_check(10)")]
                if faults != ["ok"]:
                    raise CorruptCapture(f"the copy {path} fails SQLite's integrity check: {'; '.join(faults)}")

    @contextmanager
    def staged_query(self, folder: Path, files: Sequence[str]) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
        path = folder / the_only_file(files)
        with closing(_open(path)) as connection:

            def query(sql: str) -> list[tuple[Any, ...]]:
                try:
                    return connection.execute(sql).fetchall()
                except sqlite3.Error as error:
                    raise ValidationFailed(f"a statement can not be run on the staged copy: {error}") from error

            yield query

    def check_readable(self, manifest: Manifest) -> None:
        """Nothing to refuse: every SQLite 3 reads every SQLite 3 file."""

    def install(self, folder: Path, manifest: Manifest) -> None:
        """Nothing: a SQLite file is served as it is."""

    def open_pool(self, folder: Path, manifest: Manifest, *, scratch: Path | None = None) -> SQLitePool:
        del scratch  # SQLite has temporary files of its own, elsewhere
        return SQLitePool(folder / the_only_file([file.path for file in manifest.files]), manifest.dataset)

    def sql_tables(self, folder: Path, manifest: Manifest) -> Mapping[str, SQLiteTable]:
        from snapshot_assets.engines.sqlite_scan import SQLiteTable  # its driver is needed for nothing else

        file = folder / the_only_file([file.path for file in manifest.files])
        return {name: SQLiteTable(file, name, table.schema.to_arrow()) for name, table in manifest.tables.items()}


def check_declaration(dataset: Dataset) -> None:
    """Refuse options, which no engine of SQLite files has, and a Python whose SQLite is too old.

    Raises:
        ConfigurationError: there are some, or it is.
    """
    if dataset.options:
        raise ConfigurationError(
            f"the {dataset.engine} engine has no options, {', '.join(sorted(dataset.options))} was given",
            dataset=dataset.name,
        )
    if sqlite3.sqlite_version_info < _MINIMUM:
        raise ConfigurationError(
            f"this Python has SQLite {sqlite3.sqlite_version}; at least {'.'.join(map(str, _MINIMUM))} is needed",
            hint="Use a Python that was built with a newer SQLite.",
            dataset=dataset.name,
        )


def staged_file(staging: Path, path: str, mode: int, version: str) -> Captured:
    """The staged copy `path`, given its normal form."""
    page_size = normalise(staging / path)
    size = (staging / path).stat().st_size
    staged = StagedFile(path, staging / path, size, mode, Layout.blocks(0, page_size))
    return Captured((staged,), version, _STORAGE_VERSION)


def _open(path: Path) -> sqlite3.Connection:
    try:
        return open_immutable(path)
    except sqlite3.Error as error:
        raise CorruptCapture(f"SQLite does not open the copy {path}: {error}") from error


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A copy, open read-only; whatever SQLite finds wrong with it is a `CorruptCapture`."""
    try:
        with closing(_open(path)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise CorruptCapture(f"SQLite does not read the copy {path}: {error}") from error


def user_tables(connection: sqlite3.Connection) -> dict[str, bool]:
    """The names of the user's tables, and whether each is one without rowid."""
    rows = connection.execute("select name, wr from pragma_table_list where schema = 'main' and type = 'table'")
    return {name: bool(wr) for name, wr in sorted(rows) if not name.startswith(_ENGINES_OWN)}


def _table_content(connection: sqlite3.Connection, name: str, *, without_rowid: bool) -> TableContent:
    columns = connection.execute(
        'select name, type, "notnull", pk from pragma_table_xinfo(?) where hidden <> 1 order by cid', (name,)
    ).fetchall()
    keys = sum(1 for column in columns if column[3])
    fields = []
    for column, declared, required, key in columns:
        is_rowid = key and keys == 1 and declared.upper() == "INTEGER"
        nullable = not (required or is_rowid or (key and without_rowid))
        fields.append(pa.field(column, declared_type(declared), nullable=nullable))
    count = connection.execute(f"select count(*) from {quoted(name)}").fetchone()[0]
    return TableContent(TableSchema.from_arrow(pa.schema(fields)), count)
