"""DuckDB: captured by a checkpoint and a copy of the one file, read through cursors of one read-only instance."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import duckdb

from snapshot_assets.engines.contract import Captured, Optimized, StagedFile, VerifyLevel
from snapshot_assets.engines.copying import copy_live_file
from snapshot_assets.engines.duckdb_live import (
    HEADER_BYTES,
    PAUSE_SECONDS,
    check_magic,
    checkpoint,
    connect,
    connect_by,
    logs,
    storage,
    table_paths,
)
from snapshot_assets.engines.duckdb_optimize import optimize_file
from snapshot_assets.engines.duckdb_pool import READER_CONFIG, DuckDBPool
from snapshot_assets.engines.sql import quoted
from snapshot_assets.engines.tables import check_tables, chosen_tables, table_schema, the_only_file
from snapshot_assets.errors import (
    ConfigurationError,
    CorruptCapture,
    EngineTooOld,
    LiveDatabaseBusy,
    LiveDatabaseMissing,
    UnsupportedLiveDatabase,
    ValidationFailed,
)
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import Layout, Manifest, TableContent

__all__ = ["DuckDBEngine"]

_REQUIRED: Final = """
    select table_oid, column_name from duckdb_columns()
    where database_name = current_database() and not internal and not is_nullable
"""


class DuckDBEngine:
    """The engine of DuckDB files. It has no options."""

    name: Final = "duckdb"
    supports_snapshot_reload: Final = True

    def version(self) -> str:
        return duckdb.__version__

    def check_dataset(self, dataset: Dataset) -> None:
        if dataset.options:
            raise ConfigurationError(
                f"the duckdb engine has no options, {', '.join(sorted(dataset.options))} was given",
                dataset=dataset.name,
            )
        with suppress(LiveDatabaseMissing):
            check_magic(dataset)

    def live_path(self, dataset: Dataset) -> Path:
        return dataset.real_path

    def shares(self, dataset: Dataset) -> Mapping[Path, str]:  # noqa: ARG002 - the contract asks for it
        """Nothing: one file is one dataset's."""
        return {}

    @contextmanager
    def connect_live(self, dataset: Dataset) -> Iterator[duckdb.DuckDBPyConnection]:
        live = dataset.real_path
        live.parent.mkdir(parents=True, exist_ok=True)
        if live.exists():
            check_magic(dataset)
        with closing(connect(live, dataset.name)) as connection:
            yield connection

    def capture(self, dataset: Dataset, staging: Path, *, timeout: float) -> Captured:
        live = dataset.real_path
        path = f"{dataset.name}.duckdb"
        deadline = time.monotonic() + timeout
        check_magic(dataset)
        with closing(connect_by(deadline, live, dataset.name)) as connection:
            storage_version, block_bytes = storage(connection)
            while True:
                stood_in_the_way = checkpoint(connection, live, dataset.name)
                if not stood_in_the_way:
                    copy = copy_live_file(
                        live, staging / path, header_bytes=HEADER_BYTES, absent=logs(live), timeout=timeout
                    )
                    stood_in_the_way = ", ".join(copy.moved)
                if not stood_in_the_way:
                    break
                if time.monotonic() >= deadline:
                    raise LiveDatabaseBusy(
                        f"another connection kept writing to {live} for {timeout:g} s ({stood_in_the_way})",
                        dataset=dataset.name,
                    )
                time.sleep(PAUSE_SECONDS)
        layout = Layout.blocks(HEADER_BYTES, block_bytes)
        staged = StagedFile(path, staging / path, copy.size, copy.mode, layout)
        return Captured((staged,), self.version(), storage_version)

    def optimize(self, dataset: Dataset, *, timeout: float) -> Optimized:
        check_magic(dataset)
        return optimize_file(dataset.real_path, dataset.name, timeout=timeout)

    def describe(self, dataset: Dataset, folder: Path, files: Sequence[str]) -> Mapping[str, TableContent]:
        with _reading(folder / the_only_file(files)) as copy:
            return {name: copy.content(name) for name in chosen_tables(copy.tables, dataset)}

    def verify(
        self, folder: Path, files: Sequence[str], tables: Mapping[str, TableContent], level: VerifyLevel
    ) -> None:
        if level == "none":
            return
        path = folder / the_only_file(files)
        with _reading(path) as copy:
            check_tables(path, tables, copy.content, copy.tables)
            if level == "full":
                for name in copy.tables:
                    copy.read_all(name)

    @contextmanager
    def staged_query(self, folder: Path, files: Sequence[str]) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
        with closing(_open(folder / the_only_file(files))) as connection:

            def query(sql: str) -> list[tuple[Any, ...]]:
                try:
                    # A text without a statement gives no result, whatever the type hints say.
                    result: duckdb.DuckDBPyConnection | None = connection.execute(sql)
                    if result is None:
                        raise ValidationFailed(f"{sql!r} is no statement")
                    return result.fetchall()
                except duckdb.Error as error:
                    raise ValidationFailed(f"a statement can not be run on the staged copy: {error}") from error

            yield query

    def check_readable(self, manifest: Manifest) -> None:
        needed = _numbers(manifest.storage_version) or _numbers(manifest.engine_version)[:1]
        if needed > _numbers(duckdb.__version__)[: len(needed)]:
            raise EngineTooOld(
                f"snapshot data of {manifest.dataset!r} needs DuckDB {manifest.storage_version.rstrip('+')} "
                f"(written by {manifest.engine_version}); this process has {duckdb.__version__}",
                hint="Upgrade the duckdb package on the reader.",
                dataset=manifest.dataset,
            )

    def install(self, folder: Path, manifest: Manifest) -> None:
        """Nothing: a DuckDB file is served as it is."""

    def open_pool(self, folder: Path, manifest: Manifest, *, scratch: Path | None = None) -> DuckDBPool:
        return DuckDBPool(folder / the_only_file([file.path for file in manifest.files]), manifest.dataset, scratch)

    def sql_tables(self, folder: Path, manifest: Manifest) -> Path:
        return folder / the_only_file([file.path for file in manifest.files])


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers a version starts with: (1, 2, 0) of ``v1.2.0+``."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def _open(path: Path) -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(str(path), read_only=True, config=READER_CONFIG)
    except duckdb.Error as error:
        raise CorruptCapture(f"DuckDB does not open the copy {path}: {error}") from error


@contextmanager
def _reading(path: Path) -> Iterator[_Copy]:
    """A copy, open read-only; whatever DuckDB finds wrong with it is a `CorruptCapture`."""
    with closing(_open(path)) as connection:
        try:
            yield _Copy(connection)
        except duckdb.Error as error:
            raise CorruptCapture(f"DuckDB does not read the copy {path}: {error}") from error


class _Copy:
    """The tables of an open copy, under the names that readers know: schema `main` goes without saying."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        # The Arrow type of a timestamp with time zone names the session's zone: one zone, one schema everywhere.
        connection.execute("set timezone = 'UTC'")
        self._oids = table_paths(connection)
        self.tables = {".".join(path[2:] if path[1:-1] == ("main",) else path[1:]): path for path in self._oids}
        if len(self.tables) < len(self._oids):
            raise UnsupportedLiveDatabase(
                "two tables would have one name for readers, because schema and table are joined by a dot",
                hint="Rename the table whose own name has a dot in it.",
            )
        self._required = set(connection.execute(_REQUIRED).fetchall())

    def content(self, name: str) -> TableContent:
        """Columns and row count of a table."""
        columns = self._connection.sql(f"select * from {self._quoted(name)} limit 0").to_arrow_table().schema
        for position, field in enumerate(columns):
            if (self._oids[self.tables[name]], field.name) in self._required:
                columns = columns.set(position, field.with_nullable(False))
        count = self._connection.execute(f"select count(*) from {self._quoted(name)}").fetchall()[0][0]
        return TableContent(table_schema(columns), count)

    def read_all(self, name: str) -> None:
        """Read every value of a table: DuckDB looks at a block's checksum when it reads the block."""
        self._connection.execute(f"select bit_xor(hash(columns(*))) from {self._quoted(name)}").fetchall()

    def _quoted(self, name: str) -> str:
        return ".".join(map(quoted, self.tables[name]))
