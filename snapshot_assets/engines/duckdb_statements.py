"""What DuckDB's own parser says of a text: whether it only reads, and where an EXPLAIN is cut."""

from __future__ import annotations

import re
from typing import Final

import duckdb

from snapshot_assets.errors import ReadOnlyDataset

__all__ = ["reading_statement", "split_explain"]

_TOKEN: Final = re.compile(rb"\w+|.", re.DOTALL)


def split_explain(sql: str) -> tuple[str, str]:
    """The EXPLAIN with its options but without comments, and what it explains.

    By DuckDB's own tokens: its comments nest, and what they hide must not be taken for the statement.

    Args:
        sql: one statement that DuckDB's parser knows as an EXPLAIN.
    """
    text = sql.encode()
    starts = [start for start, kind in duckdb.tokenize(sql) if kind != duckdb.token_type.comment] + [len(text)]
    words = [match[0].lower() if (match := _TOKEN.match(text, start)) else b"" for start in starts]
    first = 2 if words[1] == b"analyze" else 1
    if words[first] == b"(" and words[first + 1] in {b"analyze", b"format"}:
        first = words.index(b")", first) + 1
    return b" ".join(words[:first]).decode(), text[starts[first] :].decode()


def reading_statement(session: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """The one statement of a text.

    Raises:
        ReadOnlyDataset: it is not one statement, or another one than a SELECT or the EXPLAIN of one.
    """
    statements = session.extract_statements(sql)
    if len(statements) == 1:
        kind = _kind(statements[0])
        if kind is duckdb.StatementType.EXPLAIN:
            explained = session.extract_statements(split_explain(statements[0].query)[1])
            kind = _kind(explained[0]) if len(explained) == 1 else None
        if kind is duckdb.StatementType.SELECT:
            return statements[0]
    raise ReadOnlyDataset("one statement is run at a time here, and only a SELECT or the EXPLAIN of one")


def _kind(statement: duckdb.Statement) -> duckdb.StatementType | None:
    try:
        return statement.type
    except ValueError:
        # The parser knows kinds of statements for which DuckDB's Python package has no name.
        return None
