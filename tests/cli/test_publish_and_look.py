"""`publish`, `ls`, `show`, `status`, `pins`, `pin`, `unpin`, `rollback`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshot_assets.store.local import LocalStore
from tests.cli.conftest import Cli

Build = Callable[[int], Path]


def test_publish_tells_what_it_did(cli: Cli, orders: Build) -> None:
    first = cli.publish("orders", orders(1))
    assert first["outcome"] == "published"
    assert (first["snapshot_id"], first["generation"], first["row_counts"]) == (0, 1, {"orders": 1_000})
    assert first["uploaded_objects"] >= 3
    assert first["reused_share"] == 0.0
    again = cli.publish("orders", cli.store.parent / "orders.duckdb")
    assert (again["outcome"], again["snapshot_id"], again["uploaded_bytes"]) == ("unchanged", 0, 0)
    second = cli.publish("orders", orders(2))
    assert (second["outcome"], second["snapshot_id"], second["generation"]) == ("published", 1, 2)

    said = cli.run("publish", "orders", "--engine", "duckdb", "--path", orders(3))
    assert said.code == 0
    assert "Published orders: snapshot 2, generation 3." in said.out
    assert "orders 1,000" in said.out
    assert said.err == ""


def test_a_key_publishes_once(cli: Cli, orders: Build) -> None:
    first = cli.publish("orders", orders(1), "--idempotency-key", "run 7")
    again = cli.publish("orders", orders(2), "--idempotency-key", "run 7")
    assert again["outcome"] == "already_published"
    assert again["operation_id"] == first["operation_id"]


def test_force_publishes_unchanged_content(cli: Cli, orders: Build) -> None:
    path = orders(1)
    cli.publish("orders", path)
    assert cli.publish("orders", path, "--force")["outcome"] == "published"


def test_a_failing_check_stops_the_publish(cli: Cli, orders: Build) -> None:
    path = orders(1)
    passes, fails = ("--check", "from orders where id < 0"), ("--check", "from orders where id = 5")
    assert cli.publish("orders", path, *passes)["outcome"] == "published"
    ran = cli.run("publish", "orders", "--engine", "duckdb", "--path", orders(2), *passes, *fails)
    assert ran.code == 1
    assert ran.err.startswith("ValidationFailed: ")
    assert cli.json("show", "orders")["current_snapshot_id"] == 0


def test_a_schema_change_needs_to_be_asked_for(cli: Cli, orders: Build, tmp_path: Path) -> None:
    import duckdb

    path = orders(1)
    cli.publish("orders", path)
    with duckdb.connect(str(path)) as con:
        con.execute("alter table orders drop column customer")
    refused = cli.json("publish", "orders", "--engine", "duckdb", "--path", path, code=1)
    assert refused["error"]["kind"] == "SchemaChangeRefused"
    assert cli.publish("orders", path, "--allow-schema-change")["outcome"] == "published"


@pytest.mark.parametrize(
    ("name", "engine", "file", "kind"),
    [
        ("orders", "duckdb", "nowhere.duckdb", "LiveDatabaseMissing"),
        ("orders", "sqlite", "orders.duckdb", "UnsupportedLiveDatabase"),
        ("orders", "oracle", "orders.duckdb", "UnsupportedEngine"),
        ("Orders", "duckdb", "orders.duckdb", "InvalidDatasetName"),
        ("../../x", "duckdb", "orders.duckdb", "InvalidDatasetName"),
        ("orders", "duckdb", ":memory:", "UnsupportedEngine"),
    ],
)
def test_what_can_not_be_published_is_a_typed_error(
    cli: Cli, orders: Build, tmp_path: Path, name: str, engine: str, file: str, kind: str
) -> None:
    orders(1)
    path = file if file == ":memory:" else tmp_path / file
    ran = cli.run("publish", name, "--engine", engine, "--path", path, "--json")
    assert ran.code == 1
    error = ran.document["error"]
    assert error["kind"] == kind
    assert error["hint"]
    assert set(error) == {"kind", "message", "hint", "dataset", "operation_id"}
    assert ran.err.startswith(f"{kind}: {error['message']}")
    assert f"hint: {error['hint']}" in ran.err
    assert cli.json("ls") == {"datasets": []}


def test_ls_names_every_dataset(cli: Cli, orders: Build, stock: Path) -> None:
    assert cli.json("ls") == {"datasets": []}
    assert "no datasets" in cli.run("ls").out
    cli.publish("orders", orders(1))
    cli.publish("stock", stock)
    rows = cli.json("ls")["datasets"]
    assert [(row["dataset"], row["engine"], row["row_count"]) for row in rows] == [
        ("orders", "duckdb", 1_000),
        ("stock", "sqlite", 100),
    ]
    assert all(row["status"] == "active" and row["current_snapshot_id"] == 0 for row in rows)
    text = cli.run("ls").out
    assert "orders" in text
    assert "sqlite" in text


def test_a_damaged_head_is_a_row_of_its_own(cli: Cli, orders: Build, stock: Path) -> None:
    cli.publish("orders", orders(1))
    cli.publish("stock", stock)
    (cli.store / "heads" / "orders.json").write_text('{"format_version": 1}')
    rows = cli.json("ls")["datasets"]
    assert rows[0]["dataset"] == "orders"
    assert rows[0]["error"]["kind"] == "DocumentDamaged"
    assert rows[1]["row_count"] == 100
    assert "DocumentDamaged" in cli.run("ls").out
    status = cli.json("status")
    assert [(row["dataset"], row["kind"]) for row in status["damaged"]] == [("orders", "DocumentDamaged")]


def test_show_prints_the_head_and_snapshots(cli: Cli, orders: Build) -> None:
    first = cli.publish("orders", orders(1))
    cli.publish("orders", orders(2))
    head = cli.json("show", "orders")
    assert head == json.loads((cli.store / "heads" / "orders.json").read_text())
    shown = cli.json("show", "orders", "--snapshot", "0")
    assert shown["entry"]["operation_id"] == first["operation_id"]
    assert shown["manifest"]["tables"]["orders"]["row_count"] == 1_000
    assert shown["manifest"]["content_digest"] == first["content_digest"]
    text = cli.run("show", "orders").out
    assert "current" in text
    assert "version int32" in text
    assert "orders.duckdb" in cli.run("show", "orders", "--snapshot", "1").out


def test_showing_what_is_not_there_is_a_typed_error(cli: Cli, orders: Build) -> None:
    assert cli.json("show", "orders", code=1)["error"]["kind"] == "NotFound"
    cli.publish("orders", orders(1))
    error = cli.json("show", "orders", "--snapshot", "9", code=1)["error"]
    assert (error["kind"], error["dataset"]) == ("SnapshotMissing", "orders")


def test_status_shows_the_store_at_a_glance(cli: Cli, orders: Build, stock: Path) -> None:
    assert cli.json("status")["store_id"] is None
    assert "not made yet" in cli.run("status").out
    cli.publish("orders", orders(1))
    cli.publish("orders", orders(2))
    cli.publish("stock", stock)
    dead = LocalStore(cli.store)
    dead.write_if_absent("recovery/stock/01JD0000000000000000000000.json", b"{}")
    dead.write_if_absent("recovery/odd", b"")
    status = cli.json("status")
    assert (status["datasets"], status["snapshots"], status["row_count"]) == (2, 3, 1_100)
    assert status["store_id"] == json.loads((cli.store / "store.json").read_text())["store_id"]
    assert status["writers"] == []
    [unfinished] = status["unfinished"]
    assert (unfinished["dataset"], unfinished["kind"]) == ("stock", "unreadable")
    assert unfinished["operation_id"] == "01JD0000000000000000000000"
    text = cli.run("status").out
    assert "2 with 3 snapshots" in text
    assert "unfinished: stock unreadable 01JD0000000000000000000000" in text


def test_rollback_moves_what_is_current_under_a_higher_generation(cli: Cli, orders: Build) -> None:
    cli.publish("orders", orders(1))
    cli.publish("orders", orders(2))
    undo = cli.json("rollback", "orders", "--to", "0")
    assert undo == {"dataset": "orders", "snapshot_id": 0, "replaced_snapshot_id": 1, "generation": 3}
    assert cli.json("query", "orders", "select max(version) from orders")["rows"] == [[1]]
    assert "to undo: snapshot-assets rollback orders --to 0" in cli.run("rollback", "orders", "--to", "1").out
    assert cli.json("rollback", "orders", "--to", "7", code=1)["error"]["kind"] == "SnapshotMissing"


def test_pins_come_and_go(cli: Cli, orders: Build) -> None:
    cli.publish("orders", orders(1))
    cli.publish("orders", orders(2))
    made = cli.json(
        "pin", "orders", "quarter", "--snapshot", "0", "--owner", "ann", "--reason", "audit", "--expires", "30d"
    )
    assert (made["dataset"], made["name"], made["snapshot_id"], made["owner"]) == ("orders", "quarter", 0, "ann")
    assert made["expires_at_ms"] - made["created_at_ms"] == 30 * 86_400_000
    (pin,) = cli.json("pins", "orders")["pins"]
    assert pin | {"dataset": "orders"} == made
    assert "audit" in cli.run("pins", "orders").out
    assert cli.json("pin", "orders", "newest")["snapshot_id"] == 1
    assert cli.json("unpin", "orders", "quarter") == {"dataset": "orders", "name": "quarter", "removed": True}
    assert [pin["name"] for pin in cli.json("pins", "orders")["pins"]] == ["newest"]
    assert cli.json("unpin", "orders", "quarter", code=1)["error"]["kind"] == "MaintenanceError"
    assert cli.json("pin", "orders", "late", "--snapshot", "5", code=1)["error"]["kind"] == "SnapshotMissing"
    assert cli.run("pin", "orders", "odd", "--expires", "soon").code == 2
