"""Which engines there are."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from snapshot_assets.errors import MissingExtra, UnsupportedEngine

if TYPE_CHECKING:
    from snapshot_assets.engines.contract import Engine

__all__ = ["engine_named"]

_ENGINES: Final = {
    "duckdb": ("snapshot_assets.engines.duckdb", "DuckDBEngine"),
    "sqlite": ("snapshot_assets.engines.sqlite", "SQLiteEngine"),
}


def engine_named(name: str) -> Engine:
    """The engine of this name; its package is imported only now.

    Raises:
        UnsupportedEngine: no engine has this name.
        MissingExtra: its package is not installed.
    """
    if name not in _ENGINES:
        raise UnsupportedEngine(f"no engine is called {name!r}; this version publishes {', '.join(sorted(_ENGINES))}")
    module, class_name = _ENGINES[name]
    try:
        engine: Engine = getattr(import_module(module), class_name)()
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the engine {name!r} needs the package {error.name!r}, which is not installed",
            hint=f"Run `pip install {error.name}`.",
        ) from error
    return engine
