"""SQL as all engines read it."""

from __future__ import annotations

__all__ = ["folded", "quoted"]


def quoted(identifier: str) -> str:
    """An identifier as it stands in a statement, whatever characters it is made of."""
    return '"' + identifier.replace('"', '""') + '"'


def folded(identifier: str) -> bytes:
    """An identifier as DuckDB tells it from others: the case of its ASCII letters does not matter."""
    return identifier.encode(errors="surrogatepass").lower()
