"""Engines by name."""

from __future__ import annotations

import builtins
import subprocess
import sys
from typing import Any

import pytest

from snapshot_assets.engines.contract import Engine
from snapshot_assets.engines.duckdb import DuckDBEngine
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.engines.sqlite import SQLiteEngine
from snapshot_assets.errors import MissingExtra, UnsupportedEngine
from snapshot_assets.model.dataset import ENGINE_NAMES

ENGINES: tuple[Engine, ...] = (DuckDBEngine(), SQLiteEngine())
"""So that mypy checks each engine against the contract."""


def test_the_engines_are_those_that_can_be_declared() -> None:
    assert {engine.name for engine in ENGINES} == set(ENGINE_NAMES)


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_every_declared_engine_is_found(name: str) -> None:
    assert engine_named(name).name == name


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UnsupportedEngine, match="oracle"):
        engine_named("oracle")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_duckdb(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "duckdb":
            raise ModuleNotFoundError("No module named 'duckdb'", name="duckdb")
        return real(name, *arguments, **named)

    for module in ("snapshot_assets.engines.duckdb", "snapshot_assets.engines.duckdb_pool"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(builtins, "__import__", without_duckdb)
    with pytest.raises(MissingExtra, match="duckdb") as caught:
        engine_named("duckdb")
    assert "pip install duckdb" in caught.value.hint


def test_an_engine_is_imported_only_when_it_is_asked_for() -> None:
    code = (
        "import sys\n"
        "from snapshot_assets.engines.registry import engine_named\n"
        "assert 'duckdb' not in sys.modules\n"
        "engine_named('sqlite')\n"
        "assert 'duckdb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
