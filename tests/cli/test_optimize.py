"""`optimize`, and the engine's options that it shares with `publish`."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pyarrow as pa
import pytest

from snapshot_assets.engines.cayenne.table import CayenneTable
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.cli.conftest import Cli


@pytest.fixture
def wasteful(tmp_path: Path) -> Path:
    """A file that is mostly free."""
    path = tmp_path / "stock.sqlite"
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("create table ballast (a blob)")
        connection.execute("insert into ballast values (zeroblob(1000000))")
        connection.execute("create table stock (item integer primary key)")
        connection.executemany("insert into stock values (?)", [(number,) for number in range(100)])
        connection.execute("drop table ballast")
    connection.close()
    return path


def test_optimize_tells_what_it_did(cli: Cli, wasteful: Path) -> None:
    cli.publish("stock", wasteful)
    told = cli.json("optimize", "stock", "--engine", "sqlite", "--path", wasteful)
    assert set(told) == {"dataset", "outcome", "skipped", "detail", "figures", "publish", "seconds"}
    assert (told["dataset"], told["outcome"], told["skipped"]) == ("stock", "optimized", None)
    assert told["figures"]["bytes_after"] < told["figures"]["bytes_before"] / 10
    published = told["publish"]
    assert (published["outcome"], published["snapshot_id"], published["row_counts"]) == ("published", 1, {"stock": 100})
    assert cli.json("show", "stock")["snapshots"][1]["summary"] == {"optimize": told["detail"]}

    again = cli.json("optimize", "stock", "--engine", "sqlite", "--path", wasteful)
    assert (again["outcome"], again["skipped"], again["publish"]) == ("skipped", "nothing_to_do", None)
    assert cli.json("show", "stock")["current_snapshot_id"] == 1


def test_optimize_in_words(cli: Cli, wasteful: Path) -> None:
    said = cli.run("optimize", "stock", "--engine", "sqlite", "--path", wasteful)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("Optimized stock: ")
    assert "Published stock: snapshot 0, generation 1." in said.out
    said = cli.run("optimize", "stock", "--engine", "sqlite", "--path", wasteful)
    assert said.code == 0
    assert said.out.startswith("Left as it is: stock: ")
    assert "snapshot" not in said.out


def test_a_failing_check_stops_the_publish_of_what_was_optimized(cli: Cli, wasteful: Path) -> None:
    cli.publish("stock", wasteful)
    check = ("--check", "select * from stock where item = 7")
    refused = cli.json("optimize", "stock", "--engine", "sqlite", "--path", wasteful, *check, code=1)
    assert refused["error"]["kind"] == "ValidationFailed"
    assert cli.json("show", "stock")["current_snapshot_id"] == 0


@pytest.mark.parametrize(
    ("engine", "file", "kind"),
    [
        ("sqlite", "nowhere.sqlite", "LiveDatabaseMissing"),
        ("duckdb", "stock.sqlite", "UnsupportedLiveDatabase"),
        ("oracle", "stock.sqlite", "UnsupportedEngine"),
    ],
)
def test_what_can_not_be_optimized_is_a_typed_error(
    cli: Cli, wasteful: Path, engine: str, file: str, kind: str
) -> None:
    ran = cli.run("optimize", "stock", "--engine", engine, "--path", wasteful.with_name(file))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"{kind}: ")


@pytest.mark.parametrize("verb", ["publish", "optimize"])
def test_engine_options_reach_the_engine(cli: Cli, tmp_path: Path, verb: str) -> None:
    metastore = tmp_path / "elsewhere" / "cayenne.db"
    metastore.parent.mkdir()
    with CayenneTable.create(
        tmp_path / "tables", "orders", pa.schema([("id", pa.int64())]), metastore=metastore
    ) as table:
        for number in range(3):
            table.append(pa.table({"id": [number]}))
    said = (verb, "orders", "--engine", "cayenne", "--path", tmp_path / "tables")
    assert cli.json(*said, code=1)["error"]["kind"] == "LiveDatabaseMissing"
    told = cli.json(*said, "--option", f"metastore={metastore}")
    assert (told["publish"] if verb == "optimize" else told)["row_counts"] == {"orders": 3}
    assert SnapshotStore.open(str(cli.store)).head("orders").current_snapshot_id == 0


@pytest.mark.parametrize("verb", ["publish", "optimize"])
def test_engine_options_that_are_wrong_are_refused(cli: Cli, wasteful: Path, verb: str) -> None:
    said = (verb, "stock", "--engine", "sqlite", "--path", wasteful)
    refused = cli.json(*said, "--option", "colour=blue", code=1)
    assert refused["error"]["kind"] == "ConfigurationError"
    assert "colour" in refused["error"]["message"]
    ran = cli.run(*said, "--option", "colour")
    assert ran.code == 2
    assert "KEY=VALUE" in ran.err
    assert cli.json("ls") == {"datasets": []}
