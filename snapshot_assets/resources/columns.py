"""The columns of a table: those under which rows are written, those that are read, and those that are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from snapshot_assets.errors import ConfigurationError, NotLoaded, SchemaChangeRefused
from snapshot_assets.model.schema import SchemaChange, TableSchema, classify_schemas, difference
from snapshot_assets.resources.live_tables import LiveTable, TableName

if TYPE_CHECKING:
    import pyarrow as pa

    from snapshot_assets.publish.publisher import PublishResult
    from snapshot_assets.reader.provider import SnapshotProvider

__all__ = ["columns_to_read", "columns_to_write", "table_metadata"]


def columns_to_write(
    table: LiveTable, rows: pa.Table, name: TableName, *, is_part: bool, allow_schema_change: bool
) -> pa.Schema:
    """The columns under which rows are written: those that the table has, as long as all values fit, then new ones.

    Raises:
        ConfigurationError: the engine can not keep a column, or a partition lacks a column of the table.
        SchemaChangeRefused: the table would get columns that readers of the present ones may not survive.
    """
    import pyarrow as pa

    from snapshot_assets.resources.frames import fits

    before = table.columns()
    if before is None:
        return table.kept(rows.schema)
    gone = [column for column in before.names if column not in rows.column_names]
    if gone and is_part:
        raise ConfigurationError(
            f"the rows for {name.in_sql} lack columns that other partitions have: {', '.join(gone)}",
            hint="Return all columns of the table; what is missing can be null.",
            dataset=name.dataset,
        )
    is_new = allow_schema_change and not is_part
    added = [column for column in rows.column_names if column not in before.names]
    order = rows.column_names if is_new or gone else [*before.names, *added]

    def column(asked: str) -> pa.Field:
        if asked in before.names and (is_part or (not is_new and fits(rows.column(asked), before.field(asked).type))):
            return before.field(asked)
        return table.kept(pa.schema([rows.schema.field(asked)])).field(0)

    after = pa.schema([column(asked) for asked in order])
    old, new = ({name.listed: TableSchema.from_arrow(schema)} for schema in (before, after))
    if not is_new and classify_schemas(old, new, nullability=False) is SchemaChange.INCOMPATIBLE:
        raise SchemaChangeRefused(
            f"the columns of {name.in_sql} would change in a way that its readers would not survive; nothing was "
            f"written:\n{difference(old, new)}",
            hint='Return the columns as they were, or give the asset the metadata {"snapshot/allow_schema_change": '
            "True} when every reader is ready for it.",
            dataset=name.dataset,
        )
    return after


def columns_to_read(provider: SnapshotProvider, name: TableName, asked: object) -> list[str] | None:
    """The columns to read, all when the input does not say.

    Raises:
        NotLoaded: nothing is published yet, or the snapshot has no such table.
        ConfigurationError: the table lacks one of the columns.
    """
    tables = provider.tables
    if name.listed not in tables:
        raise NotLoaded(
            f"snapshot {provider.current.snapshot_id} of {name.dataset!r} has no table {name.listed!r}; "
            f"there are: {', '.join(sorted(tables))}",
            hint='Materialize the asset first, or name the table by the metadata "snapshot/table" of the input.',
            dataset=name.dataset,
        )
    if asked is None:
        return None
    columns = [asked] if isinstance(asked, str) else [str(column) for column in cast("Sequence[object]", asked)]
    unknown = [column for column in columns if column not in tables[name.listed].names]
    if unknown:
        raise ConfigurationError(
            f"{name.in_sql} has no column {', '.join(unknown)}; there are: {', '.join(tables[name.listed].names)}",
            hint='Correct the metadata "columns" of the input.',
            dataset=name.dataset,
        )
    return columns


def table_metadata(metadata: dict[str, Any], result: PublishResult, name: TableName) -> dict[str, Any]:
    """What a publish shows, with the rows and columns of the asset's own table in place of the whole dataset's."""
    metadata["dagster/table_name"] = name.in_sql
    if name.listed in result.row_counts:
        metadata["dagster/row_count"] = result.row_counts[name.listed]
    shown = metadata.get("dagster/column_schema")
    if shown is not None and len(result.row_counts) > 1:
        mine = [column for column in shown.columns if _owner(column.name, result.row_counts) == name.listed]
        metadata["dagster/column_schema"] = dg.TableSchema(
            columns=[
                dg.TableColumn(column.name.removeprefix(f"{name.listed}."), column.type, constraints=column.constraints)
                for column in mine
            ]
        )
    return metadata


def _owner(column: str, tables: Mapping[str, int]) -> str:
    """The table that a column belongs to which is shown as `table.column`; names of tables may have dots."""
    return max((table for table in tables if column.startswith(f"{table}.")), key=len)
