"""Slices go out of a metastore and into another one, whole, beside the datasets of others."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets.engines.cayenne import export_slice, import_slice
from snapshot_assets.engines.cayenne.metastore import child_table_name, open_metastore, table_key, transaction
from snapshot_assets.engines.cayenne.slice_document import slice_bytes
from snapshot_assets.engines.cayenne.slice_rules import slice_files
from snapshot_assets.errors import (
    ConfigurationError,
    DocumentDamaged,
    EngineMismatch,
    LiveDatabaseMissing,
    PathOutsideAnchor,
    ReadOnlyDataset,
    SnapshotAssetsError,
    UnsupportedFormatVersion,
    UnsupportedLiveDatabase,
)
from tests.engines.cayenne.slices import BY_NAME, Document, Dump, cell, changed, document, dump, renamed

NAMES = {1: "orders", 2: "trips"}


@pytest.fixture
def metastore(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(open_metastore(tmp_path / "cayenne.db", create=True)) as connection:
        yield connection


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def rows_of(content: Dump, ids: set[str]) -> Dump:
    """The rows of some tables."""
    owners = ids | {table_key(one) for one in ids}
    return {
        name: [row for row in rows if row[BY_NAME[name].columns.index("table_id")] in owners]
        for name, rows in content.items()
    }


def ids_of(content: Document) -> set[str]:
    return {row[0]["v"] for row in content["tables"]["cayenne_table"]}


@pytest.mark.parametrize("version", [1, 2])
def test_a_slice_of_the_format_is_imported_and_exported_as_it_was(
    metastore: sqlite3.Connection, data: Path, version: int
) -> None:
    content = document(version)
    import_slice(metastore, json.dumps(content).encode(), data, name=NAMES[version])
    exported = export_slice(metastore, NAMES[version], data, exported_at_ms=content["exported_at_ms"])
    assert exported == content
    assert slice_bytes(exported) == json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


@pytest.mark.parametrize("version", [1, 2])
def test_a_dataset_keeps_its_rows_and_gets_new_paths_elsewhere(
    metastore: sqlite3.Connection, tmp_path: Path, version: int
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    import_slice(metastore, document(version), first)
    with closing(open_metastore(tmp_path / "other.db", create=True)) as other:
        import_slice(other, export_slice(metastore, NAMES[version], first), second)
        after = dump(other)
    assert after == {
        name: [
            tuple(value.replace(str(first), str(second)) if isinstance(value, str) else value for value in row)
            for row in rows
        ]
        for name, rows in dump(metastore).items()
    }
    assert all(Path(row[2]).is_relative_to(second) and row[3] == 0 for row in after["cayenne_table"])


def test_a_dataset_whose_paths_are_stored_relative_is_exported_alike(metastore: sqlite3.Connection, data: Path) -> None:
    import_slice(metastore, document(2), data)
    absolute = export_slice(metastore, "trips", data, exported_at_ms=0)
    for table in ("cayenne_table", "cayenne_partition"):
        metastore.execute(f"UPDATE {table} SET path = substr(path, ?), path_is_relative = 1", (len(str(data)) + 2,))
    assert export_slice(metastore, "trips", data, exported_at_ms=0) == absolute
    import_slice(metastore, absolute, data)
    assert export_slice(metastore, "trips", data, exported_at_ms=0) == absolute


def test_the_anchor_is_found_through_links_and_a_link_out_of_it_is_refused(
    metastore: sqlite3.Connection, data: Path, tmp_path: Path
) -> None:
    data.mkdir()
    (tmp_path / "link").symlink_to(data)
    import_slice(metastore, document(1), tmp_path / "link")
    for anchor in (data, tmp_path / "link"):
        assert export_slice(metastore, "orders", anchor, exported_at_ms=1793000000999) == document(1)
    (tmp_path / "elsewhere").mkdir()
    (data / document(1)["tables"]["cayenne_table"][0][2]["v"]).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PathOutsideAnchor, match="outside"):
        export_slice(metastore, "orders", data)


@pytest.mark.parametrize("path", ["/elsewhere/t", "{data}", "{data}-too/t", "{data}/../t", "../t"])
def test_what_lies_outside_the_anchor_is_not_exported(metastore: sqlite3.Connection, data: Path, path: str) -> None:
    import_slice(metastore, document(1), data)
    flag = not path.startswith(("/", "{"))
    metastore.execute("UPDATE cayenne_table SET path = ?, path_is_relative = ?", (path.format(data=data), flag))
    with pytest.raises(PathOutsideAnchor) as refusal:
        export_slice(metastore, "orders", data)
    assert path == "{data}" or refusal.value.dataset == "orders"


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("cayenne_snapshot_file", "file_path"),
        ("cayenne_snapshot_file_statistics", "file_path"),
        ("cayenne_delete_file", "source_data_file_path"),
    ],
)
@pytest.mark.parametrize("path", ["/etc/passwd", "../other/file.vortex"])
def test_an_unsafe_file_is_not_exported(
    metastore: sqlite3.Connection, data: Path, table: str, column: str, path: str
) -> None:
    import_slice(metastore, document(1), data)
    metastore.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = 1", (path,))
    with pytest.raises(PathOutsideAnchor):
        export_slice(metastore, "orders", data)


def test_an_export_says_when_it_was_made_and_is_equal_in_all_else(metastore: sqlite3.Connection, data: Path) -> None:
    import_slice(metastore, document(1), data)
    one, two = export_slice(metastore, "orders", data), export_slice(metastore, "orders", data, exported_at_ms=0)
    assert one["exported_at_ms"] > 1_600_000_000_000
    assert two["exported_at_ms"] == 0
    assert {**one, "exported_at_ms": 0} == two


def test_rows_that_were_written_in_another_order_give_the_same_bytes(metastore: sqlite3.Connection, data: Path) -> None:
    import_slice(metastore, document(1), data)
    before = slice_bytes(export_slice(metastore, "orders", data, exported_at_ms=0))
    rows = metastore.execute("SELECT * FROM cayenne_inlined_delete ORDER BY rowid DESC").fetchall()
    metastore.execute("DELETE FROM cayenne_inlined_delete")
    metastore.executemany("INSERT INTO cayenne_inlined_delete VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    assert slice_bytes(export_slice(metastore, "orders", data, exported_at_ms=0)) == before
    metastore.execute("UPDATE cayenne_inlined_delete SET published = 1")
    assert slice_bytes(export_slice(metastore, "orders", data, exported_at_ms=0)) != before


def test_an_export_sees_one_moment(metastore: sqlite3.Connection, data: Path, tmp_path: Path) -> None:
    import_slice(metastore, document(1), data)
    with closing(open_metastore(tmp_path / "cayenne.db")) as other:

        def traced(statement: str) -> None:
            if statement.startswith("SELECT * FROM cayenne_delete_file"):
                metastore.execute("DELETE FROM cayenne_table")

        other.set_trace_callback(traced)
        assert export_slice(other, "orders", data, exported_at_ms=1793000000999) == document(1)
    assert dump(metastore)["cayenne_snapshot_file"] == []


def test_an_export_in_a_transaction_leaves_it_to_the_caller(
    metastore: sqlite3.Connection, data: Path, tmp_path: Path
) -> None:
    import_slice(metastore, document(1), data)
    with closing(open_metastore(tmp_path / "cayenne.db")) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM cayenne_table").fetchall()
        metastore.execute("DELETE FROM cayenne_table")
        assert export_slice(other, "orders", data, exported_at_ms=1793000000999) == document(1)
        assert other.in_transaction, "the transaction is the caller's"
        other.rollback()
        with pytest.raises(LiveDatabaseMissing):
            export_slice(other, "orders", data)
        assert not other.in_transaction


def test_a_connection_that_makes_other_rows_is_understood(metastore: sqlite3.Connection, data: Path) -> None:
    metastore.row_factory = lambda cursor, row: dict(zip([one[0] for one in cursor.description], row, strict=True))
    import_slice(metastore, document(2), data)
    import_slice(metastore, document(2), data)
    assert export_slice(metastore, "trips", data, exported_at_ms=1793000001999) == document(2)


def test_what_is_not_there_can_not_be_exported(metastore: sqlite3.Connection, data: Path, tmp_path: Path) -> None:
    with pytest.raises(LiveDatabaseMissing, match="no dataset 'orders'"):
        export_slice(metastore, "orders", data)
    for call in (export_slice, lambda path, name, data: import_slice(path, document(1), data)):
        with pytest.raises(LiveDatabaseMissing, match="no metastore at"):
            call(tmp_path / "none.db", "orders", data)
    assert not (tmp_path / "none.db").exists()


def test_a_metastore_of_another_layout_is_not_touched(metastore: sqlite3.Connection, data: Path) -> None:
    metastore.execute("ALTER TABLE cayenne_table ADD COLUMN more ANY")
    for call in (export_slice, lambda metastore, name, data: import_slice(metastore, document(1), data)):
        with pytest.raises(UnsupportedLiveDatabase, match="more"):
            call(metastore, "orders", data)
    assert metastore.execute("SELECT count(*) FROM cayenne_table").fetchone() == (0,)


def test_a_partition_without_a_table_is_not_exported(metastore: sqlite3.Connection, data: Path) -> None:
    import_slice(metastore, document(2), data)
    metastore.execute("DELETE FROM cayenne_table WHERE table_id = 'trips-child-1'")
    with pytest.raises(UnsupportedLiveDatabase, match="has no table of its own"):
        export_slice(metastore, "trips", data)


def test_a_number_with_a_fraction_is_not_lost_on_the_way(metastore: sqlite3.Connection, data: Path) -> None:
    import_slice(metastore, document(1), data)
    metastore.execute("UPDATE cayenne_inlined_data SET created_at = 0.5")
    with pytest.raises(UnsupportedLiveDatabase, match=r"cayenne_inlined_data\.created_at holds 0\.5"):
        export_slice(metastore, "orders", data)


def test_rows_of_a_cold_tier_are_not_left_behind(metastore: sqlite3.Connection, data: Path) -> None:
    import_slice(metastore, document(1), data)
    metastore.execute("CREATE TABLE cayenne_cold_tier_file (table_id, file_url)")
    metastore.execute("INSERT INTO cayenne_cold_tier_file VALUES ('another', 's3://bucket/file')")
    export_slice(metastore, "orders", data)
    metastore.execute("INSERT INTO cayenne_cold_tier_file SELECT table_id, 's3://bucket/file' FROM cayenne_table")
    with pytest.raises(PathOutsideAnchor, match="cold tier"):
        export_slice(metastore, "orders", data)


def test_an_import_replaces_all_that_there_was_of_the_dataset(metastore: sqlite3.Connection, data: Path) -> None:
    import_slice(metastore, document(1), data)
    smaller = document(1)
    for table in set(smaller["tables"]) - {"cayenne_table"}:
        smaller["tables"][table] = smaller["tables"][table][:1] if table == "cayenne_insert_record" else []
    import_slice(metastore, smaller, data)
    assert export_slice(metastore, "orders", data, exported_at_ms=1793000000999) == smaller


def test_an_import_over_a_partitioned_dataset_replaces_its_children(metastore: sqlite3.Connection, data: Path) -> None:
    import_slice(metastore, document(2), data)
    plain = document(1)
    text = json.dumps(plain).replace('"orders"', '"trips"')
    import_slice(metastore, text.encode(), data)
    assert metastore.execute("SELECT table_name FROM cayenne_table").fetchall() == [("trips",)]
    import_slice(metastore, document(2), data)
    assert export_slice(metastore, "trips", data, exported_at_ms=1793000001999) == document(2)
    assert len(dump(metastore)["cayenne_insert_record"]) == 1


def test_an_import_clears_the_reader_s_own_write_back_markers(metastore: sqlite3.Connection, data: Path) -> None:
    import_slice(metastore, document(2), data)
    marker = "INSERT INTO cayenne_pending_write_back VALUES (?, x'ff', 9, 9)"
    for table_id in ids_of(document(2)):
        metastore.execute(marker, (table_key(table_id),))
    metastore.execute(marker, (table_key("another"),))
    without = document(2)
    without["tables"]["cayenne_pending_write_back"] = []
    import_slice(metastore, without, data)
    assert dump(metastore)["cayenne_pending_write_back"] == [(b"another", b"\xff", 9, 9)]


def test_an_import_clears_what_a_dropped_dataset_left_under_its_keys(metastore: sqlite3.Connection, data: Path) -> None:
    import_slice(metastore, document(2), data)
    metastore.execute("DELETE FROM cayenne_table")
    metastore.execute("UPDATE cayenne_pending_write_back SET pk_bytes = x'ff'")
    import_slice(metastore, document(2), data)
    assert export_slice(metastore, "trips", data, exported_at_ms=1793000001999) == document(2)


@pytest.mark.parametrize("version", [1, 2])
def test_the_rows_of_other_datasets_stay_as_they_are(metastore: sqlite3.Connection, data: Path, version: int) -> None:
    others = [document(3 - version), renamed(document(version), NAMES[version], "other")]
    for content in others:
        import_slice(metastore, content, data)
    for table in ("cayenne_insert_record", "cayenne_pending_write_back"):
        metastore.execute(f"INSERT INTO {table} (table_id, pk_bytes) VALUES (x'00', x'00')")
    before = dump(metastore)
    import_slice(metastore, document(version), data)
    import_slice(metastore, document(version), data)
    after = dump(metastore)
    ids = ids_of(document(version))
    assert rows_of(after, ids) != rows_of(before, ids)
    assert {
        name: [row for row in rows if row not in rows_of(after, ids)[name]] for name, rows in after.items()
    } == before


def test_a_table_that_merely_has_the_name_of_a_child_is_left_alone(metastore: sqlite3.Connection, data: Path) -> None:
    import_slice(metastore, document(2), data)
    key = metastore.execute("SELECT partition_key FROM cayenne_partition ORDER BY partition_id LIMIT 1").fetchone()[0]
    row = ("bystander", child_table_name("trips", key) + "_", str(data / "bystander"))
    legacy = ("namesake", "trips_2026-01_Zürich/Ost", str(data / "namesake"))
    metastore.executemany("INSERT INTO cayenne_table (table_id, table_name, path) VALUES (?, ?, ?)", [row, legacy])
    assert export_slice(metastore, "trips", data, exported_at_ms=1793000001999) == document(2)
    import_slice(metastore, document(2), data)
    assert {"bystander", "namesake"} <= {row[0] for row in dump(metastore)["cayenne_table"]}


def test_a_slice_that_needs_what_another_dataset_has_is_refused(metastore: sqlite3.Connection, data: Path) -> None:
    orders = document(1)
    table = orders["tables"]["cayenne_table"][0]
    import_slice(metastore, orders, data)
    trips = document(2)
    before = dump(metastore)
    same_id = json.dumps(trips).replace("7E6F2B60-6E5B-4D0C-8F1E-0A1B2C3D4E5F", table[0]["v"].upper())
    key = trips["tables"]["cayenne_pending_write_back"][2][0]["v"]
    same_id = same_id.replace(key, orders["tables"]["cayenne_insert_record"][0][0]["v"])
    for content, message in (
        (same_id.encode(), "with the id"),
        (changed(trips, "cayenne_table", 0, "path", table[2]["v"]), "overlaps a folder"),
        (changed(trips, "cayenne_table", 0, "path", table[2]["v"] + "/beneath"), "overlaps a folder"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            import_slice(metastore, content, data)
    with pytest.raises(ConfigurationError, match="overlaps a folder"):
        import_slice(metastore, trips, data / table[2]["v"])
    assert dump(metastore) == before


def test_a_name_of_a_child_that_another_table_has_is_refused(metastore: sqlite3.Connection, data: Path) -> None:
    name = document(2)["tables"]["cayenne_table"][1][1]["v"]
    metastore.execute("INSERT INTO cayenne_table (table_id, table_name, path) VALUES ('x', ?, '/x')", (name,))
    before = dump(metastore)
    with pytest.raises(ConfigurationError, match="not this dataset's"):
        import_slice(metastore, document(2), data)
    assert dump(metastore) == before


def test_an_id_of_a_row_that_another_dataset_has_is_refused(metastore: sqlite3.Connection, data: Path) -> None:
    import_slice(metastore, document(1), data)
    other = renamed(document(1), "orders", "other")
    other["tables"]["cayenne_inlined_data"][0][0] = document(1)["tables"]["cayenne_inlined_data"][0][0]
    before = dump(metastore)
    with pytest.raises(ConfigurationError, match="a row of cayenne_inlined_data has a key that another row has"):
        import_slice(metastore, other, data)
    assert dump(metastore) == before


REFUSED: dict[str, tuple[Callable[[Document], object], type[SnapshotAssetsError]]] = {
    "a newer version": (lambda content: content.update(format_version=3), UnsupportedFormatVersion),
    "another engine": (lambda content: content.update(engine="duckdb"), EngineMismatch),
    "no table": (lambda content: content["tables"].update(cayenne_table=[]), DocumentDamaged),
    "a path that climbs": (
        lambda content: content["tables"]["cayenne_delete_file"][0].__setitem__(2, cell("../x")),
        PathOutsideAnchor,
    ),
    "a row that is too short": (lambda content: content["tables"]["cayenne_delete_file"][0].pop(), DocumentDamaged),
    "a text where a number stands": (
        lambda content: content["tables"]["cayenne_inlined_delete"][0].__setitem__(3, cell("many")),
        DocumentDamaged,
    ),
    "a null where none may stand": (
        lambda content: content["tables"]["cayenne_insert_record"][1].__setitem__(1, cell(None)),
        DocumentDamaged,
    ),
    "a row twice": (
        lambda content: content["tables"]["cayenne_inlined_delete"].append(
            content["tables"]["cayenne_inlined_delete"][0]
        ),
        ConfigurationError,
    ),
}


@pytest.mark.parametrize(("damage", "error"), REFUSED.values(), ids=REFUSED)
def test_after_a_refusal_the_metastore_is_as_it_was(
    metastore: sqlite3.Connection, data: Path, damage: Callable[[Document], object], error: type[SnapshotAssetsError]
) -> None:
    import_slice(metastore, changed(document(1), "cayenne_table", 0, "current_sequence_number", 1), data)
    before = dump(metastore)
    content = document(1)
    damage(content)
    with pytest.raises(error):
        import_slice(metastore, content, data)
    assert not metastore.in_transaction
    assert dump(metastore) == before


def test_the_slice_of_another_dataset_is_refused(metastore: sqlite3.Connection, data: Path) -> None:
    with pytest.raises(ConfigurationError, match="of the dataset 'trips', not of 'orders'"):
        import_slice(metastore, document(2), data, name="orders")
    assert dump(metastore)["cayenne_table"] == []


def test_an_import_needs_a_transaction_of_its_own(metastore: sqlite3.Connection, data: Path) -> None:
    with transaction(metastore), pytest.raises(ConfigurationError, match="middle of another transaction"):
        import_slice(metastore, document(1), data)


def test_a_connection_that_enforces_no_foreign_keys_is_cleared_all_the_same(
    metastore: sqlite3.Connection, data: Path
) -> None:
    import_slice(metastore, document(2), data)
    metastore.execute("PRAGMA foreign_keys = OFF")
    import_slice(metastore, json.dumps(document(1)).replace('"orders"', '"trips"').encode(), data)
    metastore.execute("UPDATE cayenne_table SET table_name = 'orders'")
    exported = export_slice(metastore, "orders", data, exported_at_ms=1793000000999)
    assert exported == document(1)
    assert sum(map(len, dump(metastore).values())) == sum(map(len, exported["tables"].values()))


def test_a_reader_s_copy_is_exported_and_never_written(
    metastore: sqlite3.Connection, data: Path, tmp_path: Path
) -> None:
    import_slice(metastore, document(1), data)
    metastore.close()
    with closing(open_metastore(tmp_path / "cayenne.db", read_only=True)) as copy_of_it:
        content = export_slice(copy_of_it, "orders", data, exported_at_ms=0)
        assert len(slice_files(content)) == 3
        with pytest.raises(ReadOnlyDataset):
            import_slice(copy_of_it, document(1), data)


_IMPORT = """
import sys, time
from pathlib import Path
from snapshot_assets.engines.cayenne import import_slice
from snapshot_assets.engines.cayenne.metastore import open_metastore
metastore, document, data, last = map(Path, sys.argv[1:])
connection = open_metastore(metastore)
def traced(statement):
    if statement.startswith(last.name):
        print("reached", flush=True)
        time.sleep(60)
connection.set_trace_callback(traced)
import_slice(connection, document.read_bytes(), data)
"""


@pytest.mark.parametrize("last", ["DELETE FROM cayenne_table", "INSERT INTO cayenne_snapshot_file ", "COMMIT"])
def test_an_import_that_is_killed_leaves_the_metastore_as_it_was(
    metastore: sqlite3.Connection, data: Path, tmp_path: Path, program: Callable[..., Any], last: str
) -> None:
    import_slice(metastore, document(2), data)
    import_slice(metastore, changed(document(1), "cayenne_table", 0, "current_sequence_number", 1), data)
    before = dump(metastore)
    (tmp_path / "slice.json").write_bytes(slice_bytes(document(1)))
    child = program(_IMPORT, tmp_path / "cayenne.db", tmp_path / "slice.json", data, last)
    assert child.hear() == "reached"
    assert dump(metastore) == before, "nobody sees half an import"
    child.kill()
    with closing(open_metastore(tmp_path / "cayenne.db")) as again:
        assert again.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert dump(again) == before
        import_slice(again, document(1), data)
        assert export_slice(again, "orders", data, exported_at_ms=1793000000999) == document(1)


_WRITE = """
import sys
from pathlib import Path
from snapshot_assets.engines.cayenne.metastore import open_metastore, transaction
connection = open_metastore(Path(sys.argv[1]))
with transaction(connection):
    connection.execute("INSERT INTO cayenne_table (table_id, table_name, path) VALUES ('c', 'customers', '/c')")
print("ready", flush=True)
number = 0
while not Path(sys.argv[2]).exists():
    with transaction(connection):
        for half in "ab":
            connection.execute("INSERT INTO cayenne_snapshot_sequence VALUES ('c', ?, ?)", (f"{number}{half}", number))
    number += 1
print(number, flush=True)
"""


def test_imports_and_writes_of_another_process_do_not_lose_each_other_s_rows(
    metastore: sqlite3.Connection, data: Path, tmp_path: Path, program: Callable[..., Any]
) -> None:
    writer = program(_WRITE, tmp_path / "cayenne.db", tmp_path / "stop")
    assert writer.hear() == "ready"
    for number in range(40):
        content = changed(document(1), "cayenne_table", 0, "current_sequence_number", number)
        import_slice(tmp_path / "cayenne.db", content, data)
        exported = export_slice(tmp_path / "cayenne.db", "orders", data, exported_at_ms=1793000000999)
        assert exported == content
    (tmp_path / "stop").touch()
    written = int(writer.hear())
    assert writer.end() == 0
    rows = metastore.execute("SELECT snapshot_id, sequence_number FROM cayenne_snapshot_sequence WHERE table_id = 'c'")
    assert sorted(rows) == sorted((f"{number}{half}", number) for number in range(written) for half in "ab")
