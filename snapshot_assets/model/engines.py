"""Which engines there are: those of this package, and those that other packages offer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from snapshot_assets.errors import UnsupportedEngine

__all__ = ["ENTRY_POINTS", "EngineSource", "engine_names", "engine_source"]

ENTRY_POINTS: Final = "snapshot_assets.engines"
"""The group of entry points under which a package offers an engine: its name, and `module:class`."""


@dataclass(frozen=True, slots=True)
class EngineSource:
    """Where an engine's class is, and the extra of this package that brings what it needs."""

    module: str
    class_name: str
    extra: str | None = None


_BUILT_IN: Final[Mapping[str, EngineSource]] = {
    "cayenne": EngineSource("snapshot_assets.engines.cayenne.engine", "CayenneEngine", "cayenne"),
    "duckdb": EngineSource("snapshot_assets.engines.duckdb", "DuckDBEngine"),
    "lance": EngineSource("snapshot_assets.engines.lance", "LanceEngine", "lance"),
    "sqlite": EngineSource("snapshot_assets.engines.sqlite", "SQLiteEngine"),
    "turso": EngineSource("snapshot_assets.engines.turso", "TursoEngine", "turso"),
}


def engine_names() -> tuple[str, ...]:
    """The names of all engines, sorted."""
    return tuple(sorted({*_BUILT_IN, *_offered()}))


def engine_source(name: str) -> EngineSource:
    """Where the engine of a name is; nothing is imported. An engine of this package can not be replaced by another.

    Raises:
        UnsupportedEngine: no engine has this name.
    """
    found = _BUILT_IN.get(name) or _offered().get(name)
    if found is None:
        raise UnsupportedEngine(
            f"no engine is called {name!r}; there are {', '.join(engine_names())}",
            hint=f"Choose one of them, or install the package that offers it under the entry points {ENTRY_POINTS!r}.",
        )
    return found


@cache
def _offered() -> Mapping[str, EngineSource]:
    from importlib.metadata import entry_points

    return {entry.name: EngineSource(entry.module, entry.attr) for entry in entry_points(group=ENTRY_POINTS)}
