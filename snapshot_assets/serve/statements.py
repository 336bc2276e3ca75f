"""Which statements a reader node runs: one SELECT, or the EXPLAIN of one, by DuckDB's own parser.

The statement's syntax tree is walked. What can read files, change a session, or tell about the machine is refused by
name, wherever in the tree it stands; of table functions, only the named harmless ones are allowed. Sessions are locked
underneath, which stops what could still slip through; but a lock alone would let a client attach a memory database,
detach a dataset for everybody, or make macros and views, so the parser is the first fence.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import duckdb

from snapshot_assets.engines.duckdb_statements import split_explain
from snapshot_assets.errors import QueryFailed, QueryRefused

__all__ = ["Statement", "StatementCheck"]

_MAX_LENGTH: Final = 1 << 20
_REMEMBERED_LENGTH: Final = 8192
_REMEMBERED: Final = 2048

_QUERY_NODES: Final = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}

_TABLE_FUNCTIONS: Final = {
    "duckdb_columns",
    "duckdb_constraints",
    "duckdb_functions",
    "duckdb_indexes",
    "duckdb_keywords",
    "duckdb_schemas",
    "duckdb_tables",
    "duckdb_types",
    "duckdb_views",
    "generate_series",
    "icu_calendar_names",
    "json_each",
    "json_tree",
    "pg_timezone_names",
    "range",
    "repeat",
    "repeat_row",
    "unnest",
}
_REFUSED_FUNCTIONS: Final = {
    # about the machine and its settings
    "current_setting",
    "getenv",
    "getvariable",
    "parse_duckdb_log_message",
    # state beyond the query
    "currval",
    "nextval",
    "setseed",
    "setval",
    "write_log",
    # they only hold a slot
    "pg_sleep",
    "sleep",
    "sleep_ms",
    # raw bytes taken for engine state, and statements inside of texts
    "combine",
    "finalize",
    "json_deserialize_sql",
    "json_execute_serialized_sql",
    "json_serialize_plan",
    "to_aggregate_state",
    "variant_bytes_to_variant",
}
_REFUSED_PREFIXES: Final = ("__internal_", "duckdb_", "pragma_", "read_")
_SYSTEM_TABLES: Final = _TABLE_FUNCTIONS  # the views of DuckDB's own that bear the names of such functions
_REFUSED_TABLES: Final = {"pg_settings", "pg_prepared_statements"}
_SHOWN: Final = {'"tables"', '"databases"', '"schemas"', "__show_tables_expanded"}
_PATH_LIKE: Final = re.compile(r"[/\\*?.:\[\]]")


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that may run.

    `sql` is what to run; for an EXPLAIN it was put together anew, so that nothing but a checked SELECT follows the
    word. `parameters` are the names of its parameters; `1`, `2` ... when they go by position.
    """

    sql: str
    is_explain: bool
    parameters: tuple[str, ...]

    @property
    def by_position(self) -> bool:
        """Whether the parameters go by position."""
        return all(name.isdigit() for name in self.parameters)


class StatementCheck:
    """Decides which statements may run. Safe to call from several threads; a text that passed is remembered."""

    def __init__(self) -> None:
        self._parser = duckdb.connect(
            ":memory:",
            config={
                "python_enable_replacements": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "enable_external_access": "false",
                "threads": "1",
                "lock_configuration": "true",
            },
        )
        self._remembered = functools.lru_cache(maxsize=_REMEMBERED)(self._check)

    def check(self, sql: str) -> Statement:
        """The statement, if it may run.

        Raises:
            QueryRefused: it is no single SELECT or EXPLAIN of one, or it asks for what is not served.
            QueryFailed: it can not be parsed.
        """
        if len(sql) > _MAX_LENGTH:
            raise QueryRefused(
                f"the statement has {len(sql)} characters; {_MAX_LENGTH} are the limit",
                hint="Send a shorter statement, with parameters in place of long lists.",
            )
        if "\0" in sql:
            # what stands behind it might be seen when the statement runs, and not when it is checked
            raise QueryRefused("the statement holds a NUL character", hint="Send it without.")
        if len(sql) > _REMEMBERED_LENGTH:
            return self._check(sql)
        return self._remembered(sql)

    def _check(self, sql: str) -> Statement:
        parser = self._parser.cursor()
        try:
            kind, parameters = self._one_statement(parser, sql)
            if kind == duckdb.StatementType.EXPLAIN:
                sql = self._explained(parser, sql)
                return Statement(sql, is_explain=True, parameters=parameters)
            self._check_select(parser, sql, kind)
            return Statement(sql, is_explain=False, parameters=parameters)
        except RecursionError as error:
            raise QueryRefused(
                "the statement is nested too deeply to be checked", hint="Send a flatter one."
            ) from error
        finally:
            parser.close()

    def _one_statement(
        self, parser: duckdb.DuckDBPyConnection, sql: str
    ) -> tuple[duckdb.StatementType, tuple[str, ...]]:
        try:
            statements = parser.extract_statements(sql)
        except duckdb.Error as error:
            raise QueryFailed(_words(error)) from error
        if len(statements) != 1:
            raise QueryRefused(f"the request holds {len(statements)} statements; one is allowed")
        try:
            kind = statements[0].type
        except ValueError:
            # the parser knows kinds of statements for which DuckDB's Python package has no name
            raise QueryRefused("statements of this kind are not run here") from None
        parameters = statements[0].named_parameters
        by_position = all(name.isdigit() for name in parameters)
        return kind, tuple(sorted(parameters, key=int if by_position else str))

    def _explained(self, parser: duckdb.DuckDBPyConnection, sql: str) -> str:
        words, select = split_explain(sql)
        kind, _ = self._one_statement(parser, select)
        self._check_select(parser, select, kind)
        explained = f"{words} {select}"
        if self._one_statement(parser, explained)[0] != duckdb.StatementType.EXPLAIN:
            raise QueryRefused("this form of EXPLAIN is not understood", hint="Send EXPLAIN, then one SELECT.")
        return explained

    def _check_select(self, parser: duckdb.DuckDBPyConnection, sql: str, kind: duckdb.StatementType) -> None:
        if kind == duckdb.StatementType.MULTI:
            raise QueryRefused(
                "the statement stands for several, such as a PIVOT that finds its columns itself",
                hint="Name the columns of the PIVOT with IN (...).",
            )
        if kind != duckdb.StatementType.SELECT:
            raise QueryRefused(f"{kind.name} statements are not run here")
        try:
            row = parser.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0]
        except duckdb.Error as error:
            raise QueryFailed(_words(error)) from error
        tree = json.loads(row[0])
        if tree["error"] or len(tree["statements"]) != 1:
            raise QueryRefused(f"the statement can not be checked: {tree.get('error_message', 'more than one')}")
        for node in _nodes(tree["statements"]):
            _check_node(node)


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _check_node(node: dict[str, Any]) -> None:
    kind = node.get("type")
    if isinstance(kind, str):
        if ("cte_map" in node or kind.endswith("_NODE")) and kind not in _QUERY_NODES:
            raise QueryRefused(f"{kind.removesuffix('_NODE').removesuffix('_QUERY')} statements are not run here")
        if kind == "TABLE_FUNCTION":
            _check_table_function(node["function"])
            return
        if kind == "BASE_TABLE":
            _check_table(node)
        elif kind == "SHOW_REF":
            _check_show(node)
    name = node.get("function_name")
    if isinstance(name, str):
        _check_function(name.lower())


def _check_table_function(function: dict[str, Any]) -> None:
    # marked, so that the walk, which comes by here again, does not take it for a scalar function
    name = str(function.pop("function_name", "")).lower()
    if name not in _TABLE_FUNCTIONS:
        raise QueryRefused(f"the table function {name!r} is not served", hint="Query the datasets' tables.")


def _check_function(name: str) -> None:
    if name in _REFUSED_FUNCTIONS or name.startswith(_REFUSED_PREFIXES):
        raise QueryRefused(f"the function {name!r} is not served", hint="Use functions of values only.")


def _check_table(table: dict[str, Any]) -> None:
    path = table["qualified_name"]["path"]
    name = str(path[-1]).lower()
    if len(path) == 1 and _PATH_LIKE.search(name):
        raise QueryRefused(
            f"{path[0]!r} looks like a file, and files are not served",
            hint="Query tables as dataset.main.table.",
        )
    if name in _REFUSED_TABLES or (name.startswith(("duckdb_", "pragma_")) and name not in _SYSTEM_TABLES):
        raise QueryRefused(f"the system table {name!r} is not served", hint="Query the datasets' tables.")


def _check_show(shown: dict[str, Any]) -> None:
    special = shown["show_type"] == "SHOW_SPECIAL" and shown["table_name"] in _SHOWN
    if not (special or shown["show_type"] == "SHOW_FROM" or shown["query"]):
        # `SHOW name` reads a setting of that name when there is no such table
        raise QueryRefused("this form of SHOW is not served", hint="Use DESCRIBE, or SHOW TABLES.")


def _words(error: duckdb.Error) -> str:
    return str(error).strip()
