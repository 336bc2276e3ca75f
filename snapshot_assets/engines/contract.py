"""What every engine promises. `snapshot_assets.testing.EngineContract` is the same text as tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import Layout, Manifest, TableContent

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset

__all__ = ["Captured", "Engine", "Optimized", "Pool", "SkipReason", "StagedFile", "VerifyLevel"]

VerifyLevel = Literal["quick", "full", "none"]
"""`quick` opens the copy and reads every table's schema and count; `full` reads all data; `none` does nothing."""

SkipReason = Literal["nothing_to_do", "blob_columns", "unsupported"]
"""Why a live database was not rewritten: it is compact already; the engine can not compact its blob columns; or there
is nothing that this engine could do for any database."""


@dataclass(frozen=True, slots=True)
class StagedFile:
    """One file of a staged copy.

    `source` is where its bytes lie now, `path` is its name in the snapshot: relative and POSIX. A source may be a hard
    link to an immutable file of the live database, so it is read and never written.
    """

    path: str
    source: Path
    size: int
    mode: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class Captured:
    """A complete and consistent staged copy of a live database. `Engine.describe` tells what is in it."""

    files: tuple[StagedFile, ...]
    engine_version: str
    storage_version: str


@dataclass(frozen=True, slots=True)
class Optimized:
    """What `Engine.optimize` did to a live database.

    Attributes:
        skipped: why nothing was done; none when the live database was rewritten.
        detail: the same in words, for people.
        figures: what was counted before and after, by name; all of them are whole numbers.
    """

    skipped: SkipReason | None
    detail: str
    figures: Mapping[str, int] = field(default_factory=dict)


class Pool(Protocol):
    """The open, read-only connections of one local copy. Counting leases is the provider's business, not the pool's."""

    def acquire(self) -> Any:
        """A connection of the engine's own type, in a clean session."""

    def release(self, connection: Any) -> None:
        """Take a connection back."""

    def query(
        self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None, *, connection: Any = None
    ) -> pa.Table:
        """Run one statement and fetch all of its result as Arrow, on a connection of this pool or on one of its own.

        Raises:
            ReadOnlyDataset: the statement writes.
        """

    def close(self) -> None:
        """Close everything. No lease is out."""


class Engine(Protocol):
    """How one kind of database is captured, checked and opened."""

    @property
    def name(self) -> str:
        """The engine's name in datasets, heads and manifests."""

    @property
    def supports_snapshot_reload(self) -> bool:
        """Whether a reader can go from one snapshot to the next without closing what is in use."""

    def version(self) -> str:
        """The version of the engine's library in this process."""

    def check_dataset(self, dataset: Dataset) -> None:
        """Refuse, when it is declared, what could never be captured.

        Raises:
            UnsupportedLiveDatabase: the file is of another kind.
            ConfigurationError: an option of the dataset is unknown or contradicts another.
        """

    def live_path(self, dataset: Dataset) -> Path:
        """What the dataset has for itself: the write gate locks it, and no other dataset may name it.

        It is absolute and without links; nothing need be there.

        Raises:
            UnsupportedLiveDatabase: the links of the dataset's path lead in a circle.
        """

    def shares(self, dataset: Dataset) -> Mapping[Path, str]:
        """What other datasets may use too, and the settings with which all of them must use it, in words."""

    def connect_live(self, dataset: Dataset) -> AbstractContextManager[Any]:
        """A read-write connection to the live database; made if there is none. The caller holds the write gate.

        Raises:
            LiveDatabaseBusy: another process has it.
        """

    def capture(self, dataset: Dataset, staging: Path, *, timeout: float) -> Captured:
        """Make a complete, consistent staged copy in the empty folder `staging`. The caller holds the write gate.

        Unchanged content gives the same bytes, whichever way it was copied. The gate can be opened as soon as this
        returns: nothing is counted, hashed or uploaded here.

        Raises:
            LiveDatabaseMissing: there is nothing to capture.
            LiveDatabaseBusy: another program kept it in use for `timeout` seconds.
            UnsupportedLiveDatabase: it is not a database of this engine, or of a form that can not be captured.
        """

    def optimize(self, dataset: Dataset, *, timeout: float) -> Optimized:
        """Rewrite the live database so that it is small and fast to read. The caller holds the write gate.

        Every table keeps its rows and its schema, and a crash leaves the live database as it was or as it will be. A
        second call right after the first finds nothing to do.

        Raises:
            LiveDatabaseMissing: there is nothing to optimize.
            LiveDatabaseBusy: another program kept it in use for `timeout` seconds.
            UnsupportedLiveDatabase: it is not a database of this engine.
            CaptureError: it could not be rewritten, and is as it was.
        """

    def describe(self, dataset: Dataset, folder: Path, files: Sequence[str]) -> Mapping[str, TableContent]:
        """The tables of a staged copy in `folder`, with their schemas and row counts; `dataset.tables` restricts them.

        It looks at the staged copy only, so the caller need not hold the write gate.

        Raises:
            ConfigurationError: the dataset names a table that the copy does not have.
            CorruptCapture: the copy can not be read.
        """

    def verify(
        self, folder: Path, files: Sequence[str], tables: Mapping[str, TableContent], level: VerifyLevel
    ) -> None:
        """Open a copy (staged or local) in `folder` and check it against what it should hold.

        Raises:
            CorruptCapture: it does not open, or holds something else.
        """

    def staged_query(
        self, folder: Path, files: Sequence[str]
    ) -> AbstractContextManager[Callable[[str], list[tuple[Any, ...]]]]:
        """A way to run read-only statements on a staged copy, for validators."""

    def check_readable(self, manifest: Manifest) -> None:
        """Refuse, before anything is downloaded, a snapshot that this process's library could not open.

        Raises:
            EngineTooOld: it could not.
        """

    def install(self, folder: Path, manifest: Manifest) -> None:
        """Do what the engine needs once on a reader, after the files stand under their final path."""

    def open_pool(self, folder: Path, manifest: Manifest, *, scratch: Path | None = None) -> Pool:
        """Open a local copy, read-only. `folder` holds the files under their manifest paths.

        `scratch` names a folder, not yet there, for what queries can not hold in memory; nobody else uses it. Nothing
        is ever written into the copy.
        """

    def sql_tables(self, folder: Path, manifest: Manifest) -> Path | Mapping[str, pa.dataset.Dataset]:
        """What SQL over several datasets sees of a local copy: a DuckDB file to attach, or each table as Arrow.

        An Arrow dataset here is what DuckDB scans: an object with `schema` and `scanner(columns=, filter=)`, any number
        of times and from several threads. Columns and filters are pushed down as far as the engine can. Nothing has to
        be closed.
        """
