"""SQL as all engines read it."""

from __future__ import annotations

__all__ = ["quoted"]


def quoted(identifier: str) -> str:
    """An identifier as it stands in a statement, whatever characters it is made of."""
    return '"' + identifier.replace('"', '""') + '"'
