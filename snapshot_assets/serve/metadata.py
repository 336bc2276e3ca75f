"""Answers to Flight SQL's questions about what there is: catalogs, schemas, tables and their columns."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, Protocol

import pyarrow as pa

from snapshot_assets.engines.sql import quoted
from snapshot_assets.serve.messages import (
    CommandGetCatalogs,
    CommandGetDbSchemas,
    CommandGetSqlInfo,
    CommandGetTables,
    CommandGetTableTypes,
    FlightSqlMessage,
)
from snapshot_assets.serve.sqlinfo import SQL_INFO_SCHEMA, sql_info

__all__ = ["Ask", "metadata", "metadata_schema"]

_CATALOGS: Final = pa.schema([pa.field("catalog_name", pa.string(), nullable=False)])
_DB_SCHEMAS: Final = pa.schema(
    [pa.field("catalog_name", pa.string()), pa.field("db_schema_name", pa.string(), nullable=False)]
)
_TABLES: Final = pa.schema(
    [
        pa.field("catalog_name", pa.string()),
        pa.field("db_schema_name", pa.string()),
        pa.field("table_name", pa.string(), nullable=False),
        pa.field("table_type", pa.string(), nullable=False),
    ]
)
_TABLES_WITH_SCHEMA: Final = _TABLES.append(pa.field("table_schema", pa.binary(), nullable=False))
_TABLE_TYPES: Final = pa.schema([pa.field("table_type", pa.string(), nullable=False)])
_TYPE_NAMES: Final = ("TABLE", "VIEW")


class Ask(Protocol):
    """How a question about what there is reaches DuckDB."""

    def rows(self, sql: str, parameters: list[Any]) -> pa.Table:
        """The whole result of a statement of the node's own."""

    def columns(self, sql: str) -> pa.Schema:
        """The columns that a statement of the node's own would give."""


def metadata_schema(command: FlightSqlMessage) -> pa.Schema | None:
    """The schema of the answer to a command, as the specification has it; none when it asks for no metadata."""
    match command:
        case CommandGetSqlInfo():
            return SQL_INFO_SCHEMA
        case CommandGetCatalogs():
            return _CATALOGS
        case CommandGetDbSchemas():
            return _DB_SCHEMAS
        case CommandGetTables(include_schema=True):
            return _TABLES_WITH_SCHEMA
        case CommandGetTables():
            return _TABLES
        case CommandGetTableTypes():
            return _TABLE_TYPES
        case _:
            return None


def metadata(command: FlightSqlMessage, ask: Ask, datasets: Collection[str], version: str) -> pa.Table:
    """The answer to a metadata command. A catalog is a dataset; others are not shown."""
    match command:
        case CommandGetSqlInfo(info):
            return sql_info(info, version)
        case CommandGetCatalogs():
            return pa.table({"catalog_name": sorted(datasets)}, schema=_CATALOGS)
        case CommandGetDbSchemas(catalog, pattern):
            return ask.rows(
                "SELECT DISTINCT catalog_name, schema_name AS db_schema_name FROM information_schema.schemata "
                "WHERE list_contains(?, catalog_name) AND schema_name NOT IN ('information_schema', 'pg_catalog') "
                "AND schema_name LIKE ? ORDER BY ALL",
                [_among(datasets, catalog), _pattern(pattern)],
            ).cast(_DB_SCHEMAS)
        case CommandGetTables():
            return _tables(command, ask, datasets)
        case _:
            return pa.table({"table_type": list(_TYPE_NAMES)}, schema=_TABLE_TYPES)


def _tables(command: CommandGetTables, ask: Ask, datasets: Collection[str]) -> pa.Table:
    found = ask.rows(
        "SELECT table_catalog AS catalog_name, table_schema AS db_schema_name, table_name, "
        "CASE table_type WHEN 'VIEW' THEN 'VIEW' ELSE 'TABLE' END AS table_type "
        "FROM information_schema.tables "
        "WHERE list_contains(?, table_catalog) AND table_schema LIKE ? AND table_name LIKE ? ORDER BY ALL",
        [
            _among(datasets, command.catalog),
            _pattern(command.db_schema_filter_pattern),
            _pattern(command.table_name_filter_pattern),
        ],
    )
    rows = [
        row for row in found.to_pylist() if not command.table_types or row["table_type"] in set(command.table_types)
    ]
    if command.include_schema:
        for row in rows:
            path = ".".join(quoted(row[part]) for part in ("catalog_name", "db_schema_name", "table_name"))
            row["table_schema"] = ask.columns(f"SELECT * FROM {path}").serialize().to_pybytes()
        return pa.Table.from_pylist(rows, schema=_TABLES_WITH_SCHEMA)
    return pa.Table.from_pylist(rows, schema=_TABLES)


def _among(datasets: Collection[str], catalog: str | None) -> list[str]:
    return sorted(datasets) if catalog is None else [name for name in datasets if name == catalog]


def _pattern(pattern: str | None) -> str:
    return "%" if pattern is None else pattern
