"""`query`, `pull`, `verify`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from snapshot_assets.cli import pull as pulling
from snapshot_assets.cli.options import duration
from snapshot_assets.cli.values import json_value, text_value
from snapshot_assets.engines.cayenne import CayenneTable
from snapshot_assets.engines.gate import write_gate
from tests.cli.conftest import Cli

Build = Callable[[int], Path]


def test_query_prints_rows_in_every_format(cli: Cli, orders: Build) -> None:
    cli.publish("orders", orders(1))
    sql = "select id, customer, id * 1.5 as half, null as nothing from orders order by id limit 2"
    document = {
        "columns": ["id", "customer", "half", "nothing"],
        "rows": [[0, "customer 0", "0.0", None], [1, "customer 1", "1.5", None]],
    }
    assert cli.json("query", "orders", sql) == document
    assert cli.run("query", "orders", sql, "--format", "json").document == document
    rows = list(csv.reader(io.StringIO(cli.run("query", "orders", sql, "--format", "csv").out)))
    assert rows == [
        ["id", "customer", "half", "nothing"],
        ["0", "customer 0", "0.0", ""],
        ["1", "customer 1", "1.5", ""],
    ]
    table = cli.run("query", "orders", sql).out
    assert "customer 1" in table
    assert "(2 rows)" in table


def test_a_table_in_a_pipe_is_as_wide_as_its_rows(cli: Cli, orders: Build) -> None:
    cli.publish("orders", orders(1))
    out = cli.run("query", "orders", "select repeat('x', 3000) || '[red]' as wide").out
    assert "x" * 3_000 + "[red]" in out


def test_query_runs_on_sqlite_too(cli: Cli, stock: Path) -> None:
    cli.publish("stock", stock)
    assert cli.json("query", "stock", "select count(*), sum(quantity) from stock")["rows"] == [[100, 295]]


def test_query_all_joins_datasets(cli: Cli, orders: Build, stock: Path) -> None:
    cli.publish("orders", orders(1))
    cli.publish("stock", stock)
    sql = "select count(*) as n, sum(quantity) as q from orders.main.orders join stock.main.stock on id = item"
    assert cli.json("query", "--all", sql) == {"columns": ["n", "q"], "rows": [[100, 295]]}


@pytest.mark.parametrize(
    ("sql", "kind"),
    [("selec", "QueryRefused"), ("select * from nowhere", "QueryRefused"), ("delete from orders", "ReadOnlyDataset")],
)
def test_what_can_not_be_queried_is_a_typed_error(cli: Cli, orders: Build, sql: str, kind: str) -> None:
    cli.publish("orders", orders(1))
    assert cli.json("query", "orders", sql, code=1)["error"]["kind"] == kind


def test_query_needs_a_dataset_or_all(cli: Cli) -> None:
    assert cli.run("query", "orders").code == 2
    assert cli.run("query", "--all", "orders", "select 1").code == 2
    assert cli.json("query", "orders", "select 1", code=1)["error"]["kind"] == "NotLoaded"


def test_query_leaves_nothing_behind(cli: Cli, orders: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    cli.publish("orders", orders(1))
    assert cli.json("query", "orders", "select 1")["rows"] == [[1]]
    assert list(scratch.iterdir()) == []


def test_pull_makes_a_checked_copy(cli: Cli, orders: Build, tmp_path: Path) -> None:
    path = orders(1)
    cli.publish("orders", path)
    cli.publish("orders", orders(2))
    pulled = cli.json("pull", "orders", "--to", tmp_path / "out" / "orders", "--snapshot", "0")
    assert (pulled["snapshot_id"], pulled["files"]) == (0, ["orders.duckdb"])
    copy = Path(pulled["path"]) / "orders.duckdb"
    assert copy.stat().st_size == pulled["data_bytes"]
    with duckdb.connect(str(copy), read_only=True) as con:
        assert con.execute("select min(version), max(version) from orders").fetchall() == [(1, 1)]
    assert "every digest checked" in cli.run("pull", "orders", "--to", tmp_path / "newest").out


def test_pull_never_writes_into_what_is_there(cli: Cli, orders: Build, tmp_path: Path) -> None:
    cli.publish("orders", orders(1))
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for taken in ("full", "file", "link"):
        error = cli.json("pull", "orders", "--to", tmp_path / taken, code=1)["error"]
        assert error["kind"] == "ConfigurationError"
    assert [path.name for path in full.iterdir()] == ["precious"]
    (tmp_path / "empty").mkdir()
    assert cli.json("pull", "orders", "--to", tmp_path / "empty")["snapshot_id"] == 0


def test_a_damaged_snapshot_is_neither_pulled_nor_verified(cli: Cli, orders: Build, tmp_path: Path) -> None:
    cli.publish("orders", orders(1))
    for level in ("sizes", "digest", "restore"):
        assert cli.json("verify", "orders", "--level", level)["level"] == level
    assert "complete and undamaged" in cli.run("verify", "orders").out
    (pack,) = (cli.store / "data").rglob("*.pack")
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 0xFF
    pack.write_bytes(data)
    assert cli.json("verify", "orders", code=1)["error"]["kind"] == "SnapshotDamaged"
    assert cli.json("pull", "orders", "--to", tmp_path / "out", code=1)["error"]["kind"] == "SnapshotDamaged"
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".building-*"))
    pack.unlink()
    assert cli.json("verify", "orders", "--level", "sizes", code=1)["error"]["kind"] == "SnapshotDamaged"


def test_every_type_of_value_has_a_json_form(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "types.duckdb"
    with duckdb.connect(str(path)) as con:
        con.execute(
            """
            create table types as select
                true as flag, 1::hugeint as huge, 1.50::decimal(9, 2) as price, 'nan'::double as nothing,
                0.5::double as half, date '2024-02-29' as day, timestamp '2024-02-29 12:30:00' as at,
                timestamptz '2024-02-29 12:30:00+02' as zoned,
                time '12:30' as clock, interval 90 minute as span, 'ab'::blob as bytes, [1, null] as list,
                {'a': 1, 'b': [date '2024-01-01']} as struct, map {'k': 2} as map,
                '5f3b2ce1-7a3e-4a69-9d1f-3f7c5a0e5a11'::uuid as id
            """
        )
    cli.publish("types", path)
    document = cli.json("query", "types", "select * exclude (span, id) from types")
    assert dict(zip(document["columns"], document["rows"][0], strict=True)) == {
        "flag": True,
        "huge": 1,
        "price": "1.50",
        "nothing": None,
        "half": 0.5,
        "day": "2024-02-29",
        "at": "2024-02-29T12:30:00",
        "zoned": document["rows"][0][7],
        "clock": "12:30:00",
        "bytes": "YWI=",
        "list": [1, None],
        "struct": {"a": 1, "b": ["2024-01-01"]},
        "map": [["k", 2]],
    }
    assert document["rows"][0][7].startswith("2024-02-29T")
    assert cli.run("query", "types", "from types", "--format", "csv").code == 0


def test_values_as_text_and_json() -> None:
    from datetime import timedelta
    from decimal import Decimal

    assert json_value(Decimal(12345678901234567890)) == 12_345_678_901_234_567_890
    assert json_value(Decimal("1.10")) == "1.10"
    assert json_value(float("inf")) is None
    assert json_value(timedelta(minutes=1)) == 60.0
    assert text_value(None) == ""
    assert text_value(b"\xff") == "ff"


def test_lengths_of_time() -> None:
    assert [duration(text).total_seconds() for text in ("5", "90s", "1.5h", "7d", "2w")] == [
        5,
        90,
        5_400,
        604_800,
        1_209_600,
    ]


def test_a_cayenne_dataset_is_pulled_into_a_metastore_in_use(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "root"
    ids = pa.table({"id": [1, 2, 3]})
    with (
        CayenneTable.create(root, "stock", ids.schema) as stock,
        CayenneTable.create(root, "planes", ids.schema) as planes,
    ):
        stock.append(ids)
        planes.append(ids)
        cli.json("publish", "stock", "--engine", "cayenne", "--path", root)
        stock.append(ids)
        metastore = root / "metadata" / "cayenne.db"
        pulled = cli.json("pull", "stock", "--to", root, "--into-metastore", metastore)
        assert pulled["snapshot_id"] == 0
        assert (stock.count(), planes.count()) == (3, 3)
        stock.append(ids)
        assert stock.count() == 6
    assert not list(root.glob(".building-*"))


def test_a_table_that_is_being_written_is_not_pulled_over(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ids = tmp_path / "root", pa.table({"id": [1, 2, 3]})
    with CayenneTable.create(root, "stock", ids.schema) as stock:
        stock.append(ids)
        cli.json("publish", "stock", "--engine", "cayenne", "--path", root)
        stock.append(ids)
        monkeypatch.setattr(pulling, "_GATE_SECONDS", 0.1)
        with write_gate(root / "stock"):
            metastore = root / "metadata" / "cayenne.db"
            error = cli.json("pull", "stock", "--to", root, "--into-metastore", metastore, code=1)["error"]
        assert error["kind"] == "LiveDatabaseBusy"
        assert stock.count() == 6


def test_only_a_cayenne_dataset_is_pulled_into_a_metastore(cli: Cli, orders: Build, tmp_path: Path) -> None:
    cli.publish("orders", orders(3))
    error = cli.json("pull", "orders", "--to", tmp_path / "x", "--into-metastore", tmp_path / "m.db", code=1)["error"]
    assert (error["kind"], "has no metastore" in error["message"]) == ("ConfigurationError", True)
    assert not (tmp_path / "x").exists()
