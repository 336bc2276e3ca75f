"""Turso: written by pyturso, captured as a plain SQLite file, and read by SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from snapshot_assets.engines.contract import Captured, Optimized
from snapshot_assets.engines.registry import missing_extra
from snapshot_assets.engines.sqlite_file import SQLiteFile, check_declaration
from snapshot_assets.model.dataset import Dataset

__all__ = ["TursoEngine"]


class TursoEngine(SQLiteFile):
    """The engine of Turso databases. It has no options.

    Readers need nothing of Turso: only what touches a live database imports pyturso.
    """

    name: Final = "turso"

    def version(self) -> str:
        try:
            return version("pyturso")
        except PackageNotFoundError as error:
            raise missing_extra(self.name, "pyturso") from error

    def check_dataset(self, dataset: Dataset) -> None:
        check_declaration(dataset)
        with _pyturso():
            from snapshot_assets.engines import turso_live
        turso_live.check(dataset)

    def connect_live(self, dataset: Dataset) -> AbstractContextManager[Any]:
        """A `turso.Connection` with foreign keys on.

        A transaction that the block leaves open is committed, or undone if the block ends with an error.
        """
        with _pyturso():
            from snapshot_assets.engines import turso_live
        return turso_live.connect(dataset)

    def capture(self, dataset: Dataset, staging: Path, *, timeout: float) -> Captured:
        with _pyturso():
            from snapshot_assets.engines import turso_live
        return turso_live.capture(dataset, staging, self.version(), timeout=timeout)

    def optimize(self, dataset: Dataset, *, timeout: float) -> Optimized:
        with _pyturso():
            from snapshot_assets.engines import turso_live
        return turso_live.optimize(dataset, timeout=timeout)


@contextmanager
def _pyturso() -> Iterator[None]:
    """Around an import that needs pyturso."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_extra("turso", error.name) from error
