"""Lance: the files of one version of a dataset are linked, not copied; SQL over it is DuckDB's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

import lance

from snapshot_assets.engines.arrow_sql import ArrowSQL, staged_rows
from snapshot_assets.engines.contract import Captured, Optimized, VerifyLevel
from snapshot_assets.engines.lance_capture import capture_version
from snapshot_assets.engines.lance_copy import content_of, read_all, reading, refuse_outside_blobs, version_in
from snapshot_assets.engines.lance_format import storage_version, why_unreadable
from snapshot_assets.engines.lance_live import LanceTable, check_live, connect_table
from snapshot_assets.engines.lance_optimize import optimize_live
from snapshot_assets.engines.lance_pool import LancePool, open_copy
from snapshot_assets.engines.lance_scan import LanceScan
from snapshot_assets.engines.tables import check_tables, chosen_tables
from snapshot_assets.errors import (
    ConfigurationError,
    EngineTooOld,
    UnsupportedLiveDatabase,
)
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import Manifest, TableContent

__all__ = ["LanceEngine"]


class LanceEngine:
    """The engine of Lance datasets. It has no options; the one table has the dataset's name."""

    name: Final = "lance"
    supports_snapshot_reload: Final = True

    def version(self) -> str:
        return lance.__version__

    def check_dataset(self, dataset: Dataset) -> None:
        if dataset.options:
            raise ConfigurationError(
                f"the lance engine has no options, {', '.join(sorted(dataset.options))} was given",
                dataset=dataset.name,
            )
        check_live(dataset.real_path)

    def live_path(self, dataset: Dataset) -> Path:
        return dataset.real_path

    def shares(self, dataset: Dataset) -> Mapping[Path, str]:  # noqa: ARG002 - the contract asks for it
        """Nothing: one folder is one dataset's."""
        return {}

    def connect_live(self, dataset: Dataset) -> AbstractContextManager[LanceTable]:
        """A table; the folder is made when it is written for the first time."""
        return connect_table(dataset.real_path)

    def capture(self, dataset: Dataset, staging: Path, *, timeout: float) -> Captured:
        source, files = capture_version(dataset.real_path, staging, f"{dataset.name}.lance", timeout=timeout)
        return Captured(files, self.version(), storage_version(source))

    def optimize(self, dataset: Dataset, *, timeout: float) -> Optimized:
        return optimize_live(dataset.real_path, timeout=timeout)

    def describe(self, dataset: Dataset, folder: Path, files: Sequence[str]) -> Mapping[str, TableContent]:
        with reading(folder, files) as source:
            refuse_outside_blobs(source)
            if not LanceScan(source).schema.names:
                raise UnsupportedLiveDatabase(
                    f"SQL can read no column of {dataset.path}, so no reader could serve it",
                    hint="Add a column of a type that DuckDB knows.",
                    dataset=dataset.name,
                )
            return chosen_tables({dataset.name: content_of(source)}, dataset)

    def verify(
        self, folder: Path, files: Sequence[str], tables: Mapping[str, TableContent], level: VerifyLevel
    ) -> None:
        if level == "none":
            return
        with reading(folder, files) as source:
            source.validate()  # type: ignore[no-untyped-call]
            found = {_table_name(files): content_of(source)}
            check_tables(folder, tables, found.__getitem__, found)
            if level == "full":
                read_all(source)

    @contextmanager
    def staged_query(self, folder: Path, files: Sequence[str]) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
        with reading(folder, files) as source:
            name = _table_name(files)
            sql = ArrowSQL(name, {name: LanceScan(source)})
        with staged_rows(sql) as query:
            yield query

    def check_readable(self, manifest: Manifest) -> None:
        refusal = why_unreadable(manifest.storage_version)
        if refusal is not None:
            raise EngineTooOld(
                f"snapshot data of {manifest.dataset!r} has Lance storage version {manifest.storage_version} (written "
                f"by {manifest.engine_version}); this process has {lance.__version__}, which says: {refusal}",
                hint="Upgrade the pylance package on the reader.",
                dataset=manifest.dataset,
            )

    def install(self, folder: Path, manifest: Manifest) -> None:
        """Nothing: a version of a Lance dataset is served as it is."""

    def open_pool(self, folder: Path, manifest: Manifest, *, scratch: Path | None = None) -> LancePool:
        return LancePool(folder, manifest, scratch)

    def sql_tables(self, folder: Path, manifest: Manifest) -> Mapping[str, LanceScan]:
        return {manifest.dataset: LanceScan(open_copy(folder, manifest))}


def _table_name(files: Sequence[str]) -> str:
    folder, _version = version_in(files)
    return folder.removesuffix(".lance")
