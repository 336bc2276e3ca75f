"""Datasets as a user declares them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from snapshot_assets.errors import (
    ConfigurationError,
    UnsupportedEngine,
    UnsupportedLiveDatabase,
)
from snapshot_assets.ids import check_dataset_name
from snapshot_assets.model.document import dump_document
from snapshot_assets.model.engines import engine_source
from snapshot_assets.paths import real_path

if TYPE_CHECKING:
    from snapshot_assets.model.manifest import TableContent

__all__ = ["Dataset", "StagedCopy", "Validator"]


class StagedCopy(Protocol):
    """What a validator may look at: the staged copy of the live database, before anything is announced."""

    @property
    def tables(self) -> Mapping[str, TableContent]:
        """The captured tables, with their schemas and row counts."""

    @property
    def previous(self) -> Mapping[str, int] | None:
        """The row count of each table in the current snapshot; none at the first publish."""

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a statement, run on the staged copy, read-only."""


_URL: Final = re.compile(r"[a-z][a-z0-9+.-]+:/")  # as a `Path`, a URL has one slash


Validator = Callable[[StagedCopy], str | None] | str
"""A check of the staged copy. A function returns what is wrong, or nothing; a SQL text must return no row."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named database that is published.

    Args:
        name: the dataset's name in the store, in Dagster and in SQL.
        engine: the engine of the live database.
        path: the live database.
        validators: run on every staged copy before it is announced.
        tables: the tables that readers are told of; all, when it is left out.
        options: the engine's own settings.
        properties: recorded in every manifest.

    Raises:
        InvalidDatasetName: the name does not fit.
        UnsupportedEngine: no such engine, or a database without a file.
        UnsupportedLiveDatabase: no file can have the path.
        ConfigurationError: JSON has no form for a property.
    """

    name: str
    engine: str
    path: Path
    validators: tuple[Validator, ...] = ()
    tables: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    properties: Mapping[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        name: str,
        engine: str,
        path: str | Path,
        validators: Sequence[Validator] = (),
        tables: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            engine_source(engine)
        except UnsupportedEngine as error:
            raise UnsupportedEngine(error.message, hint=error.hint, dataset=name) from error
        text = str(path)
        if "\0" in text or not _is_utf8(text):
            raise UnsupportedLiveDatabase(f"{text!r} is not the path of a file", dataset=name)
        if text in {"", "."} or ":memory:" in text or text.startswith("file:") or _URL.match(text):
            raise UnsupportedEngine(
                f"{text!r} is not a file or folder of this machine, so it can not be captured",
                hint="Name the path of a database on a local disk.",
                dataset=name,
            )
        try:
            dump_document(properties or {})
        except ConfigurationError as error:
            raise ConfigurationError(f"property {error.message}", dataset=name) from error
        values = {
            "name": check_dataset_name(name),
            "engine": engine,
            "path": Path(text),
            "validators": tuple(validators),
            "tables": None if tables is None else tuple(tables),
            "options": dict(options or {}),
            "properties": dict(properties or {}),
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @property
    def real_path(self) -> Path:
        """Where the live database lies: absolute, all links followed, whether or not anything is there.

        Raises:
            UnsupportedLiveDatabase: its links lead in a circle.
        """
        try:
            return real_path(self.path)
        except ConfigurationError as error:
            raise UnsupportedLiveDatabase(error.message, dataset=self.name) from error


def _is_utf8(text: str) -> bool:
    """Whether the engines' libraries, which take nothing else, can be given the text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
