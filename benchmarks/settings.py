"""What every benchmark is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes and places of a run.

    Attributes:
        scratch: a folder that is removed afterwards.
        database_bytes: the size of the live databases.
        rounds: how often each contender runs.
    """

    scratch: Path
    database_bytes: int
    rounds: int
