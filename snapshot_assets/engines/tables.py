"""What engines with one file and SQL tables have in common: which tables are described, and how a copy is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from snapshot_assets.errors import ConfigurationError, CorruptCapture
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import TableContent

__all__ = ["check_tables", "chosen_tables", "the_only_file"]

_Key = TypeVar("_Key")


def the_only_file(files: Sequence[str]) -> str:
    """The one file of a copy.

    Raises:
        CorruptCapture: there are none, or more.
    """
    if len(files) != 1:
        raise CorruptCapture(f"a copy of this engine is one file, this one has {len(files)}")
    return files[0]


def chosen_tables(found: Mapping[str, _Key], dataset: Dataset) -> dict[str, _Key]:
    """The tables that the dataset describes: those that it names, or all that were found.

    Raises:
        ConfigurationError: it names one that was not found.
    """
    if dataset.tables is None:
        return dict(found)
    for name in dataset.tables:
        if name not in found:
            raise ConfigurationError(
                f"dataset {dataset.name!r} has no table {name!r}; there are: {', '.join(sorted(found)) or 'none'}",
                dataset=dataset.name,
            )
    return {name: found[name] for name in dataset.tables}


def check_tables(
    path: Path,
    expected: Mapping[str, TableContent],
    content: Callable[[str], TableContent],
    found: Mapping[str, object],
) -> None:
    """Compare each expected table's columns and row count with what the copy holds.

    Raises:
        CorruptCapture: a table is missing, or differs.
    """
    for name, wanted in expected.items():
        if name not in found:
            raise CorruptCapture(f"the copy {path} lacks the table {name!r}")
        actual = content(name)
        if actual.row_count != wanted.row_count:
            raise CorruptCapture(
                f"the copy {path} has {actual.row_count} rows in table {name!r}, not {wanted.row_count}"
            )
        if actual.schema.fields != wanted.schema.fields:
            raise CorruptCapture(f"the copy {path} has other columns in table {name!r} than were captured")
