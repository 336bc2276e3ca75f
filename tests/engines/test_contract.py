"""The engine contract, for each engine that this package has."""

from __future__ import annotations

from snapshot_assets.testing.engine_contract import EngineContract


class TestDuckDB(EngineContract):
    engine_name = "duckdb"


class TestSQLite(EngineContract):
    engine_name = "sqlite"
