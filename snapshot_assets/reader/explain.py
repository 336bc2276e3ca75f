"""Cutting an EXPLAIN where DuckDB's own parser cuts it."""

from __future__ import annotations

import re
from typing import Final

import duckdb

__all__ = ["split_explain"]

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
