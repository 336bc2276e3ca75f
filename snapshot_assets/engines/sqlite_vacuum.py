"""When a VACUUM of a live file of SQLite's format is worth it, and what it brought."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from snapshot_assets.engines.contract import Optimized

__all__ = ["vacuum"]

_WORTH_IT: Final = 0.1
"""The share of free pages above which a file is rewritten: every page that moves is uploaded again."""


def vacuum(number: Callable[[str], int], rewrite: Callable[[], object]) -> Optimized:
    """Rewrite a file of which more than a tenth is free; see `Engine.optimize`.

    Args:
        number: the answer to a pragma that is a number.
        rewrite: run VACUUM, and let the file shrink.
    """
    before = _figures(number, "before")
    if before["free_bytes_before"] <= before["bytes_before"] * _WORTH_IT:
        return Optimized("nothing_to_do", f"at most {_WORTH_IT:.0%} of the file is free space", before)
    rewrite()
    after = _figures(number, "after")
    detail = f"VACUUM made {before['bytes_before']} bytes {after['bytes_after']}"
    return Optimized(None, detail, {**before, **after})


def _figures(number: Callable[[str], int], when: str) -> dict[str, int]:
    page_bytes = number("page_size")
    return {
        f"bytes_{when}": number("page_count") * page_bytes,
        f"free_bytes_{when}": number("freelist_count") * page_bytes,
    }
