"""What engines with one file and SQL tables have in common: which tables are described, and how a copy is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import pyarrow as pa

from snapshot_assets.errors import ConfigurationError, CorruptCapture
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import TableContent
from snapshot_assets.model.schema import TableSchema

__all__ = ["check_tables", "chosen_tables", "plain_field", "table_schema", "the_only_file"]

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


def table_schema(columns: pa.Schema) -> TableSchema:
    """The columns in their stored form, which is the same in every process.

    Extension types of Python packages stand as what they are stored in: which ones a process knows depends on its
    imports.
    """
    return TableSchema.from_arrow(pa.schema([plain_field(field) for field in columns], metadata=columns.metadata))


def plain_field(field: pa.Field) -> pa.Field:
    """A column as every process knows it, without extension types of Python packages."""
    metadata = {key: value for key, value in (field.metadata or {}).items() if not key.startswith(b"ARROW:extension:")}
    return pa.field(field.name, _plain_type(field.type), field.nullable, metadata or None)


def _plain_type(data_type: pa.DataType) -> pa.DataType:
    if isinstance(data_type, pa.ExtensionType):
        return _plain_type(data_type.storage_type)
    if pa.types.is_struct(data_type):
        return pa.struct([plain_field(field) for field in data_type.fields])
    if pa.types.is_map(data_type):
        return pa.map_(plain_field(data_type.key_field), plain_field(data_type.item_field))
    if pa.types.is_fixed_size_list(data_type):
        return pa.list_(plain_field(data_type.value_field), data_type.list_size)
    for is_kind, make in _LISTS:
        if is_kind(data_type):
            return make(plain_field(data_type.value_field))
    return data_type


_LISTS: Final[tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Field], pa.DataType]], ...]] = (
    (pa.types.is_list, pa.list_),
    (pa.types.is_large_list, pa.large_list),
)
