"""An engine that somebody else wrote: a dataset is one Feather file, which every write replaces."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pyarrow.feather

from snapshot_assets.engines.arrow_sql import ArrowSQL
from snapshot_assets.engines.contract import Captured, Engine, Optimized, StagedFile, VerifyLevel
from snapshot_assets.engines.tables import check_tables, chosen_tables, the_only_file
from snapshot_assets.errors import (
    ConfigurationError,
    CorruptCapture,
    LiveDatabaseMissing,
    ReadOnlyDataset,
    UnsupportedLiveDatabase,
    ValidationFailed,
)
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import Layout, Manifest, TableContent
from snapshot_assets.model.schema import TableSchema

_MAGIC: Final = b"ARROW1"
_BLOCK_BYTES: Final = 4_096


class FeatherFile:
    """A live database: read it whole, or put another table in its place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = False

    def read(self) -> pa.Table:
        self._check_open()
        return pa.feather.read_table(self._path, memory_map=False)

    def write(self, table: pa.Table) -> None:
        self._check_open()
        fresh = self._path.with_name(self._path.name + ".new")
        pa.feather.write_feather(table, fresh, compression="uncompressed")
        fresh.replace(self._path)

    def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this file is closed")


class FeatherEngine:
    name: Final = "feather"
    supports_snapshot_reload: Final = True

    def version(self) -> str:
        return str(pa.__version__)

    def check_dataset(self, dataset: Dataset) -> None:
        if dataset.options:
            raise ConfigurationError(f"feather has no options, {sorted(dataset.options)} was given")
        if dataset.real_path.exists():
            _check_magic(dataset)

    def live_path(self, dataset: Dataset) -> Path:
        return dataset.real_path

    def shares(self, dataset: Dataset) -> Mapping[Path, str]:
        return {}

    @contextmanager
    def connect_live(self, dataset: Dataset) -> Iterator[FeatherFile]:
        self.check_dataset(dataset)
        dataset.real_path.parent.mkdir(parents=True, exist_ok=True)
        with closing(FeatherFile(dataset.real_path)) as file:
            yield file

    def capture(self, dataset: Dataset, staging: Path, *, timeout: float) -> Captured:
        if not dataset.real_path.exists():
            raise LiveDatabaseMissing(f"{dataset.path} is not there")
        _check_magic(dataset)
        copy = staging / f"{dataset.name}.feather"
        # A file is never written to, only replaced: the one that is opened is whole.
        shutil.copyfile(dataset.real_path, copy)
        found = copy.stat()
        staged = StagedFile(copy.name, copy, found.st_size, found.st_mode & 0o777, Layout.blocks(0, _BLOCK_BYTES))
        return Captured((staged,), self.version(), "2")

    def optimize(self, dataset: Dataset, *, timeout: float) -> Optimized:
        if not dataset.real_path.exists():
            raise LiveDatabaseMissing(f"{dataset.path} is not there")
        return Optimized("unsupported", "a Feather file is as small as it gets")

    def describe(self, dataset: Dataset, folder: Path, files: Sequence[str]) -> Mapping[str, TableContent]:
        return {name: _content(_read(folder, files)) for name in chosen_tables({dataset.name: None}, dataset)}

    def verify(
        self, folder: Path, files: Sequence[str], tables: Mapping[str, TableContent], level: VerifyLevel
    ) -> None:
        if level == "none":
            return
        table = _read(folder, files)
        check_tables(folder, tables, lambda _: _content(table), {_table_name(files): None})
        if level == "full":
            try:
                table.validate(full=True)
            except pa.ArrowException as error:
                raise CorruptCapture(f"the copy in {folder} is damaged: {error}") from error

    @contextmanager
    def staged_query(self, folder: Path, files: Sequence[str]) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
        with closing(ArrowSQL(_table_name(files), _scans(folder, files))) as sql:

            def query(statement: str) -> list[tuple[Any, ...]]:
                try:
                    return sql.rows(statement)
                except (duckdb.Error, ReadOnlyDataset) as error:
                    raise ValidationFailed(str(error)) from error

            yield query

    def check_readable(self, manifest: Manifest) -> None:
        pass

    def install(self, folder: Path, manifest: Manifest) -> None:
        pass

    def open_pool(self, folder: Path, manifest: Manifest, *, scratch: Path | None = None) -> FeatherPool:
        return FeatherPool(manifest.dataset, self.sql_tables(folder, manifest), scratch)

    def sql_tables(self, folder: Path, manifest: Manifest) -> Mapping[str, pa.dataset.Dataset]:
        return _scans(folder, [file.path for file in manifest.files])


ENGINE: Engine = FeatherEngine()
"""So that mypy checks the class against the contract."""


class FeatherPool:
    """Leases are Arrow datasets, which have nothing to write with."""

    def __init__(self, dataset: str, tables: Mapping[str, pa.dataset.Dataset], scratch: Path | None) -> None:
        self._table = tables[dataset]
        self._sql = ArrowSQL(dataset, tables, scratch)

    def acquire(self) -> pa.dataset.Dataset:
        return self._table

    def release(self, connection: pa.dataset.Dataset) -> None:
        pass

    def query(
        self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None, *, connection: Any = None
    ) -> pa.Table:
        return self._sql.query(sql, parameters)

    def close(self) -> None:
        self._sql.close()


def _check_magic(dataset: Dataset) -> None:
    if not dataset.real_path.is_file() or dataset.real_path.read_bytes()[: len(_MAGIC)] != _MAGIC:
        raise UnsupportedLiveDatabase(f"{dataset.path} is no Feather file", dataset=dataset.name)


def _table_name(files: Sequence[str]) -> str:
    return the_only_file(files).removesuffix(".feather")


def _read(folder: Path, files: Sequence[str]) -> pa.Table:
    path = folder / the_only_file(files)
    try:
        return pa.feather.read_table(path, memory_map=False)
    except (OSError, pa.ArrowException) as error:
        raise CorruptCapture(f"the copy {path} can not be read: {error}") from error


def _content(table: pa.Table) -> TableContent:
    return TableContent(TableSchema.from_arrow(table.schema), table.num_rows)


def _scans(folder: Path, files: Sequence[str]) -> Mapping[str, pa.dataset.Dataset]:
    # In memory, for Arrow's own scan of such a file can crash the process when a query ends before the file does.
    return {_table_name(files): pa.dataset.dataset(_read(folder, files))}
