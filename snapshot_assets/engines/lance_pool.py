"""The read-only datasets of one Lance local copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import lance
import pyarrow as pa

from snapshot_assets.engines.arrow_sql import ArrowSQL
from snapshot_assets.engines.lance_copy import open_version
from snapshot_assets.engines.lance_live import LANCE_ERRORS
from snapshot_assets.engines.lance_scan import LanceScan
from snapshot_assets.errors import CorruptCapture, ReaderError, ReadOnlyDataset, SnapshotDamaged
from snapshot_assets.model.manifest import Manifest

__all__ = ["LancePool", "open_copy"]

_WRITES: Final = (
    "add_bases add_columns alter_columns branches cleanup_old_versions commit_existing_index_segments create_branch "
    "create_index create_index_uncommitted create_scalar_index delete delete_config_keys drop_columns drop_index "
    "initialize_mem_wal insert mem_wal_writer merge merge_existing_index_segments merge_index_metadata merge_insert "
    "migrate_manifest_paths_v2 optimize replace_field_metadata replace_schema replace_schema_metadata restore tags "
    "truncate_table update update_config update_field_metadata update_metadata update_schema_metadata"
)
"""Tags and branches are among them: they need no commit, and a snapshot has none to look at."""

_DAMAGE: Final = ("corrupt", "decode", "too small", "not found")
"""In the message of the errors that Lance finds a dataset to be damaged with."""


class LancePool:
    """One version of a dataset, opened once; each lease has an object of its own, and all share its caches.

    Args:
        folder: where the local copy's files lie.
        manifest: what it holds.
        scratch: a folder for what SQL can not hold in memory; without it, nothing is spilled.

    Raises:
        SnapshotDamaged: a file is missing, cut short, or no part of a Lance dataset.
        ReaderError: Lance does not open it for a reason that is not in the files.
    """

    def __init__(self, folder: Path, manifest: Manifest, scratch: Path | None = None) -> None:
        self._dataset = _read_only(open_copy(folder, manifest))
        self._sql = ArrowSQL(manifest.dataset, {manifest.dataset: LanceScan(self._dataset)}, scratch)

    def acquire(self) -> lance.LanceDataset:
        return copy.copy(self._dataset)

    def release(self, connection: lance.LanceDataset) -> None:
        """Nothing: the object is garbage once nobody has it."""

    def query(
        self,
        sql: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        connection: lance.LanceDataset | None = None,  # noqa: ARG002 - all of them read the same version
    ) -> pa.Table:
        """Run one SELECT by DuckDB, and fetch all of its result as Arrow."""
        return self._sql.query(sql, parameters)

    def close(self) -> None:
        self._sql.close()


def open_copy(folder: Path, manifest: Manifest) -> lance.LanceDataset:
    """Open a local copy.

    Raises:
        SnapshotDamaged: a file is missing, cut short, or no part of a Lance dataset.
        ReaderError: Lance does not open it for a reason that is not in the files.
    """
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            raise SnapshotDamaged(f"{path} is missing from its local copy, or cut short", dataset=manifest.dataset)
    try:
        return open_version(folder, [file.path for file in manifest.files])
    except (CorruptCapture, *LANCE_ERRORS) as error:
        what = f"Lance does not open the local copy in {folder}: {error}"
        if isinstance(error, CorruptCapture) or any(words in str(error).lower() for words in _DAMAGE):
            raise SnapshotDamaged(what, dataset=manifest.dataset) from error
        raise ReaderError(
            what,
            hint="The copy itself may be whole: see what this process lacks, then try again.",
            dataset=manifest.dataset,
        ) from error


class _ReadOnly(lance.LanceDataset):
    """A dataset that says at once, and before it has written a file, that it can not be written to."""

    def __copy__(self) -> _ReadOnly:
        return _read_only(super().__copy__())  # type: ignore[no-untyped-call]


def _read_only(source: lance.LanceDataset) -> _ReadOnly:
    """The same object, of the class whose constructor could not be given what it was opened with."""
    source.__class__ = _ReadOnly
    assert isinstance(source, _ReadOnly)
    return source


def _refusal(name: str) -> property:
    def refuse(self: _ReadOnly) -> NoReturn:
        raise ReadOnlyDataset(f"a snapshot is read-only, so {Path(self.uri).stem!r} has no {name!r}")

    return property(refuse)


for _name in _WRITES.split():
    setattr(_ReadOnly, _name, _refusal(_name))
