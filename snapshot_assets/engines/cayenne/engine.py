"""Cayenne: captured as hard links to immutable files, and as the dataset's own rows of the metastore."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from snapshot_assets.engines.arrow_sql import ArrowSQL, staged_rows
from snapshot_assets.engines.cayenne.copies import (
    SLICE_NAME,
    check_content,
    check_files,
    install_metastore,
    installed_state,
    staged_state,
)
from snapshot_assets.engines.cayenne.data_files import SUFFIX, file_version
from snapshot_assets.engines.cayenne.gates import deletion_gate
from snapshot_assets.engines.cayenne.metastore import data_folder, default_metastore
from snapshot_assets.engines.cayenne.optimize import optimize_table
from snapshot_assets.engines.cayenne.pool import CayennePool
from snapshot_assets.engines.cayenne.scan import CayenneScan
from snapshot_assets.engines.cayenne.slice_document import slice_bytes
from snapshot_assets.engines.cayenne.slice_export import export_slice
from snapshot_assets.engines.cayenne.slice_rules import slice_files
from snapshot_assets.engines.cayenne.state import TableState, reading
from snapshot_assets.engines.cayenne.table import CayenneTable, live_table
from snapshot_assets.engines.contract import Captured, Optimized, StagedFile, VerifyLevel
from snapshot_assets.engines.copying import read_live_header
from snapshot_assets.engines.links import stage_file
from snapshot_assets.engines.sqlite_capture import MAGIC
from snapshot_assets.engines.tables import check_tables, chosen_tables, table_schema
from snapshot_assets.errors import (
    ConfigurationError,
    EngineTooOld,
    LiveDatabaseBusy,
    LiveDatabaseMissing,
    UnsupportedLiveDatabase,
)
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import Layout, Manifest, TableContent
from snapshot_assets.paths import real_path

__all__ = ["CayenneEngine"]

_FILE_VERSION: Final = 1
"""The newest version of the Vortex file format that this engine knows."""

_SLICE_MODE: Final = 0o644


class CayenneEngine:
    """The engine of Cayenne tables: a dataset is the table of its name in the root that is its path.

    Option `metastore`: the metastore's path, if it is not `<root>/metadata/cayenne.db`. All datasets of a root share
    one.
    """

    name: Final = "cayenne"
    supports_snapshot_reload: Final = True

    def version(self) -> str:
        return version("vortex-data")

    def check_dataset(self, dataset: Dataset) -> None:
        if unknown := sorted(set(dataset.options) - {"metastore"}):
            raise ConfigurationError(
                f"the cayenne engine has no option {', '.join(map(repr, unknown))}; it has 'metastore'",
                dataset=dataset.name,
            )
        root, metastore = dataset.real_path, _metastore(dataset)
        try:
            if root.exists() and not root.is_dir():
                raise UnsupportedLiveDatabase(f"{dataset.path} is not a folder", dataset=dataset.name)
        except OSError as error:
            raise UnsupportedLiveDatabase(
                f"{dataset.path} can not be looked at: {error.strerror}", dataset=dataset.name
            ) from error
        if metastore.is_relative_to(data_folder(root)) or metastore.is_relative_to(real_path(data_folder(root))):
            raise ConfigurationError(
                f"the metastore {metastore} lies in the data folder of {root}",
                hint="Keep the metastore in a folder of its own.",
                dataset=dataset.name,
            )
        with suppress(LiveDatabaseMissing):
            header = read_live_header(metastore, len(MAGIC))
            if header and header != MAGIC:
                raise UnsupportedLiveDatabase(f"{metastore} is not a Cayenne metastore", dataset=dataset.name)

    def live_path(self, dataset: Dataset) -> Path:
        return dataset.real_path / dataset.name

    def shares(self, dataset: Dataset) -> Mapping[Path, str]:
        return {dataset.real_path: f"the metastore {_metastore(dataset)}"}

    @contextmanager
    def connect_live(self, dataset: Dataset) -> Iterator[CayenneTable]:
        """The table; it need not be there yet. `define`, or the first `append` or `overwrite`, makes it."""
        self.check_dataset(dataset)
        live = live_table(dataset.real_path, dataset.name, _metastore(dataset), create=True)
        with CayenneTable(live, None, read_only=False) as table:
            yield table

    def capture(self, dataset: Dataset, staging: Path, *, timeout: float) -> Captured:
        self.check_dataset(dataset)
        deadline = time.monotonic() + timeout
        live = live_table(dataset.real_path, dataset.name, _metastore(dataset), create=False)
        with closing(live.connection):
            before = live.load()
            if before is None:
                raise LiveDatabaseMissing(f"there is no table {dataset.name!r} in {dataset.path}", dataset=dataset.name)
            with deletion_gate(before.folder, timeout=max(0.0, deadline - time.monotonic())), reading(live.connection):
                now = live.load()
                if now is None or now.folder != before.folder:
                    raise LiveDatabaseBusy(f"the table {dataset.name!r} was made anew meanwhile", dataset=dataset.name)
                document = slice_bytes(export_slice(live.connection, dataset.name, live.data, exported_at_ms=0))
                staged = [_stage(live.data, path, staging) for path in slice_files(document)]
        (staging / SLICE_NAME).write_bytes(document)
        staged.append(StagedFile(SLICE_NAME, staging / SLICE_NAME, len(document), _SLICE_MODE, Layout.whole()))
        versions = [file_version(file.source) for file in staged if file.path.endswith(SUFFIX)]
        return Captured(tuple(staged), self.version(), str(max(versions, default=_FILE_VERSION)))

    def optimize(self, dataset: Dataset, *, timeout: float) -> Optimized:
        self.check_dataset(dataset)
        live = live_table(dataset.real_path, dataset.name, _metastore(dataset), create=False)
        with closing(live.connection):
            return optimize_table(live, timeout=timeout)

    def describe(self, dataset: Dataset, folder: Path, files: Sequence[str]) -> Mapping[str, TableContent]:
        state = staged_state(folder, files)
        check_files(folder, files, state)
        return {name: _content(table) for name, table in chosen_tables({state.name: state}, dataset).items()}

    def verify(
        self, folder: Path, files: Sequence[str], tables: Mapping[str, TableContent], level: VerifyLevel
    ) -> None:
        if level == "none":
            return
        state = staged_state(folder, files)
        check_files(folder, files, state)
        check_tables(folder, tables, lambda _name: _content(state), {state.name: state})
        if level == "full":
            check_content(state)

    @contextmanager
    def staged_query(self, folder: Path, files: Sequence[str]) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
        state = staged_state(folder, files)
        with staged_rows(ArrowSQL(state.name, {state.name: CayenneScan(state)})) as query:
            yield query

    def check_readable(self, manifest: Manifest) -> None:
        """Refuse a newer file format, and files of a newer minor version of Vortex.

        Vortex reads what older versions wrote. A newer one may write encodings that an older one does not know, and
        its files do not tell.
        """
        needed, present = _release(manifest.engine_version), _release(self.version())
        if _release(manifest.storage_version) > (_FILE_VERSION,) or needed > present:
            raise EngineTooOld(
                f"snapshot data of {manifest.dataset!r} was written by Vortex {manifest.engine_version} in file format "
                f"{manifest.storage_version}; this process has Vortex {self.version()} and format {_FILE_VERSION}",
                hint="Upgrade the vortex-data package on the reader.",
                dataset=manifest.dataset,
            )

    def install(self, folder: Path, manifest: Manifest) -> None:
        """Make the copy's own metastore; copies never share one, because table ids are kept."""
        del manifest  # the slice says it all
        install_metastore(folder)

    def open_pool(self, folder: Path, manifest: Manifest, *, scratch: Path | None = None) -> CayennePool:
        return CayennePool(installed_state(folder, manifest.dataset), scratch)

    def sql_tables(self, folder: Path, manifest: Manifest) -> Mapping[str, CayenneScan]:
        return {manifest.dataset: CayenneScan(installed_state(folder, manifest.dataset))}


def _metastore(dataset: Dataset) -> Path:
    """Where the dataset's metastore is, absolute and without links."""
    path = dataset.options.get("metastore")
    if path is None:
        return real_path(default_metastore(dataset.real_path))
    if not isinstance(path, str | Path) or not str(path):
        raise ConfigurationError(f"the option 'metastore' is a path, not {path!r}", dataset=dataset.name)
    return real_path(path)


def _stage(data: Path, path: str, staging: Path) -> StagedFile:
    name = f"data/{path}"
    mode = stage_file(data / path, staging / name)
    return StagedFile(name, staging / name, (staging / name).stat().st_size, mode, Layout.whole())


def _content(state: TableState) -> TableContent:
    return TableContent(table_schema(state.schema), state.live_rows)


def _release(text: str) -> tuple[int, ...]:
    """The major and minor number of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
