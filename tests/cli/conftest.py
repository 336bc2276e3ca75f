"""A store in a folder, live databases, and the command line run in this process."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import CliRunner

from snapshot_assets.cli.app import app


@dataclass(frozen=True)
class Ran:
    """What one run of the command line said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        (line,) = self.out.splitlines()
        return json.loads(line)


class Cli:
    """The command line on a store of its own, with the environment that a test gives it."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def run(self, *args: str | Path, store: str | Path | None = None) -> Ran:
        environment = {"SNAPSHOT_STORE": str(store or self.store), "COLUMNS": "200"}
        result = CliRunner().invoke(app, [str(arg) for arg in args], env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    def json(self, *args: str | Path, code: int = 0) -> Any:
        ran = self.run(*args, "--json")
        assert ran.code == code, ran.err
        return ran.document

    def publish(self, name: str, path: Path, *args: str) -> Any:
        engine = "sqlite" if path.suffix == ".sqlite" else "duckdb"
        return self.json("publish", name, "--engine", engine, "--path", path, *args)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "store")


def build_orders(path: Path, version: int, rows: int = 1_000) -> Path:
    with duckdb.connect(str(path)) as con:
        con.execute(
            f"create or replace table orders as "
            f"select range as id, {version} as version, 'customer ' || range as customer from range({rows})"
        )
    return path


@pytest.fixture
def orders(tmp_path: Path) -> Callable[[int], Path]:
    """Build the orders database in a version; every row carries it."""
    return lambda version: build_orders(tmp_path / "orders.duckdb", version)


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    path = tmp_path / "stock.sqlite"
    con = sqlite3.connect(path)
    with con:
        con.execute("create table stock (item integer primary key, name text, quantity integer)")
        con.executemany("insert into stock values (?, ?, ?)", [(n, f"item {n}", n % 7) for n in range(100)])
    con.close()
    return path
