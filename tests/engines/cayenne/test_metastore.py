"""The metastore: its tables, how it is opened and refused, and the names and keys in it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from snapshot_assets.engines.cayenne.metastore import (
    STAMP,
    TABLES,
    child_table_name,
    create_tables,
    data_folder,
    default_metastore,
    deletions_folder,
    file_path,
    legacy_child_table_name,
    open_metastore,
    snapshot_folder,
    stored_path,
    table_folder,
    table_key,
    transaction,
)
from snapshot_assets.errors import (
    CaptureError,
    ConfigurationError,
    LiveDatabaseBusy,
    LiveDatabaseMissing,
    ReadOnlyDataset,
    UnsupportedLiveDatabase,
)

EXPECTED = {
    "cayenne_table": "table_id table_name path path_is_relative schema_json primary_key_json on_conflict_json"
    " current_snapshot_id partition_column vortex_config_json current_sequence_number",
    "cayenne_delete_file": "delete_file_id table_id path path_is_relative format delete_count file_size_bytes"
    " source_data_file_path sequence_number reinsert_sequence",
    "cayenne_partition": "partition_id table_id partition_columns_json partition_values_json partition_key path"
    " path_is_relative record_count file_size_bytes",
    "cayenne_insert_record": "table_id pk_bytes sequence_number",
    "cayenne_snapshot_sequence": "table_id snapshot_id sequence_number",
    "cayenne_table_statistics": "table_id statistics_blob num_rows ndv_sketches num_rows_exact",
    "cayenne_snapshot_file_statistics": "table_id snapshot_id file_path file_size_bytes num_rows statistics_blob",
    "cayenne_snapshot_file": "table_id snapshot_id file_path row_count file_size_bytes min_sequence max_sequence"
    " digest",
    "cayenne_pk_index": "table_id snapshot_id index_blob",
    "cayenne_inlined_data": "inlined_id table_id partition_key data_ipc record_count sequence_number created_at",
    "cayenne_inlined_delete": "inlined_id table_id delete_ipc delete_count sequence_number created_at published",
    "cayenne_pending_write_back": "table_id pk_bytes sequence_number first_marked_at",
}
"""The format's tables and columns, in its order."""

BLOB_KEYED = {"cayenne_insert_record", "cayenne_pending_write_back"}


@pytest.fixture
def metastore(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(open_metastore(tmp_path / "metadata" / "cayenne.db", create=True)) as connection:
        yield connection


def add_table(connection: sqlite3.Connection, table_id: str = "t", name: str = "orders") -> None:
    connection.execute(
        "INSERT INTO cayenne_table (table_id, table_name, path) VALUES (?, ?, ?)", (table_id, name, f"/data/{table_id}")
    )


def test_a_metastore_has_the_tables_and_columns_of_the_format_in_their_order(metastore: sqlite3.Connection) -> None:
    found = {
        name: " ".join(row[1] for row in metastore.execute(f"PRAGMA table_info({name})"))
        for (name,) in metastore.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid")
    }
    assert found == EXPECTED
    assert list(found) == list(EXPECTED)


def test_path_columns_and_flags_stand_where_the_format_has_them() -> None:
    positions = {table.name: (table.path_column, table.flag_column) for table in TABLES}
    assert {name: at for name, at in positions.items() if at != (None, None)} == {
        "cayenne_table": (2, 3),
        "cayenne_delete_file": (2, 3),
        "cayenne_partition": (5, 6),
    }


def test_a_connection_is_durable_patient_and_checks_foreign_keys(metastore: sqlite3.Connection) -> None:
    settings = {
        pragma: metastore.execute(f"PRAGMA {pragma}").fetchone()[0]
        for pragma in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "user_version")
    }
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 1,
        "foreign_keys": 1,
        "busy_timeout": 30_000,
        "user_version": STAMP,
    }
    assert metastore.isolation_level is None


def test_a_metastore_that_is_opened_again_keeps_its_rows(metastore: sqlite3.Connection, tmp_path: Path) -> None:
    add_table(metastore)
    for create in (False, True):
        with closing(open_metastore(tmp_path / "metadata" / "cayenne.db", create=create)) as again:
            assert again.execute("SELECT table_name FROM cayenne_table").fetchall() == [("orders",)]


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - BLOB_KEYED - {"cayenne_table"}))
def test_rows_go_with_their_table_and_need_one(metastore: sqlite3.Connection, name: str) -> None:
    types = next(table for table in TABLES if table.name == name).types
    needed = {column: "x" for column, declared in types.items() if "NOT NULL" in declared and "DEFAULT" not in declared}
    statement = f"INSERT INTO {name} ({', '.join(needed)}) VALUES ({', '.join('?' * len(needed))})"
    values = [*(needed | {"table_id": "t"}).values()]
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        metastore.execute(statement, values)
    add_table(metastore)
    metastore.execute(statement, values)
    metastore.execute("DELETE FROM cayenne_table")
    assert metastore.execute(f"SELECT * FROM {name}").fetchall() == []


@pytest.mark.parametrize("name", sorted(BLOB_KEYED))
def test_blob_keyed_rows_have_no_row_id_and_no_cascade(metastore: sqlite3.Connection, name: str) -> None:
    add_table(metastore)
    metastore.execute(f"INSERT INTO {name} (table_id, pk_bytes) VALUES (?, ?)", (table_key("t"), b"\1"))
    with pytest.raises(sqlite3.OperationalError, match="rowid"):
        metastore.execute(f"SELECT rowid FROM {name}")
    with pytest.raises(sqlite3.IntegrityError, match="cannot store TEXT"):
        metastore.execute(f"INSERT INTO {name} (table_id, pk_bytes) VALUES ('t', x'02')")
    metastore.execute("DELETE FROM cayenne_table")
    assert metastore.execute(f"SELECT table_id, pk_bytes FROM {name}").fetchall() == [(b"t", b"\1")]


def test_a_name_a_delete_file_and_a_partition_key_are_unique(metastore: sqlite3.Connection) -> None:
    add_table(metastore)
    with pytest.raises(sqlite3.IntegrityError, match=r"cayenne_table\.table_name"):
        add_table(metastore, "u")
    delete_file = "INSERT INTO cayenne_delete_file (delete_file_id, table_id, path) VALUES (?, 't', 'p')"
    partition = "INSERT INTO cayenne_partition (partition_id, table_id, partition_key, path) VALUES (?, 't', 'k', ?)"
    metastore.execute(delete_file, (1,))
    metastore.execute(partition, (1, "p"))
    with pytest.raises(sqlite3.IntegrityError, match=r"cayenne_delete_file\.path"):
        metastore.execute(delete_file, (2,))
    with pytest.raises(sqlite3.IntegrityError, match=r"cayenne_partition\.partition_key"):
        metastore.execute(partition, (2, "q"))


def test_ids_keep_the_type_that_they_were_written_with(metastore: sqlite3.Connection) -> None:
    add_table(metastore)
    for one in (7, "7", b"7"):
        metastore.execute("INSERT INTO cayenne_inlined_data (inlined_id, table_id) VALUES (?, 't')", (one,))
    assert metastore.execute("SELECT inlined_id FROM cayenne_inlined_data").fetchall() == [(7,), ("7",), (b"7",)]


@pytest.mark.parametrize("create", [False, True])
def test_a_newer_metastore_is_refused(metastore: sqlite3.Connection, tmp_path: Path, *, create: bool) -> None:
    metastore.execute(f"PRAGMA user_version = {STAMP + 1}")
    with pytest.raises(UnsupportedLiveDatabase, match=f"version {STAMP + 1}; this snapshot-assets opens up to {STAMP}"):
        open_metastore(tmp_path / "metadata" / "cayenne.db", create=create)


OTHER_COLUMNS = {
    "an extra column": ("ALTER TABLE cayenne_pk_index ADD COLUMN more ANY", "table_id, snapshot_id, index_blob, more"),
    "a generated column": (
        "ALTER TABLE cayenne_pk_index ADD COLUMN more INT AS (1)",
        "table_id, snapshot_id, index_blob, more",
    ),
    "a missing column": ("ALTER TABLE cayenne_pk_index DROP COLUMN index_blob", "table_id, snapshot_id"),
    "another name": ("ALTER TABLE cayenne_pk_index RENAME index_blob TO blob", "table_id, snapshot_id, blob"),
    "another order": (
        "DROP TABLE cayenne_pk_index; CREATE TABLE cayenne_pk_index (table_id, index_blob, snapshot_id)",
        "table_id, index_blob, snapshot_id",
    ),
}


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize(("statements", "columns"), OTHER_COLUMNS.values(), ids=OTHER_COLUMNS)
def test_other_columns_are_refused_and_told(
    metastore: sqlite3.Connection, tmp_path: Path, statements: str, columns: str, *, create: bool
) -> None:
    metastore.executescript(statements)
    metastore.execute("DROP TABLE cayenne_pending_write_back")
    with pytest.raises(UnsupportedLiveDatabase, match=f"cayenne_pk_index has the columns {columns}, not"):
        open_metastore(tmp_path / "metadata" / "cayenne.db", create=create)
    tables = {name for (name,) in metastore.execute("SELECT name FROM sqlite_master")}
    assert "cayenne_pending_write_back" not in tables, "a refused metastore is left as it was"


def test_a_missing_table_is_refused_and_made_when_asked(metastore: sqlite3.Connection, tmp_path: Path) -> None:
    metastore.execute("DROP TABLE cayenne_snapshot_file")
    with pytest.raises(UnsupportedLiveDatabase, match="cayenne_snapshot_file is missing"):
        open_metastore(tmp_path / "metadata" / "cayenne.db")
    open_metastore(tmp_path / "metadata" / "cayenne.db", create=True).close()
    open_metastore(tmp_path / "metadata" / "cayenne.db").close()


def test_tables_that_are_not_known_are_left_alone(metastore: sqlite3.Connection, tmp_path: Path) -> None:
    metastore.execute("CREATE TABLE cayenne_index_run (table_id)")
    metastore.execute("INSERT INTO cayenne_index_run VALUES ('t')")
    with closing(open_metastore(tmp_path / "metadata" / "cayenne.db", create=True)) as again:
        assert again.execute("SELECT * FROM cayenne_index_run").fetchall() == [("t",)]


def test_an_empty_catalogue_gets_its_tables_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "cayenne.db"
    path.touch()
    with pytest.raises(LiveDatabaseMissing, match="no tables yet"):
        open_metastore(path)
    open_metastore(path, create=True).close()
    open_metastore(path).close()


def test_what_is_no_metastore_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no database, but long enough to have a header of one hundred bytes" * 3)
    for create in (False, True):
        with pytest.raises(UnsupportedLiveDatabase, match="not a whole SQLite database"):
            open_metastore(text, create=create)
    with pytest.raises(UnsupportedLiveDatabase, match="can not be opened"):
        open_metastore(text / "beneath" / "cayenne.db", create=True)
    for missing in (tmp_path / "none.db", tmp_path):
        with pytest.raises(LiveDatabaseMissing, match="no metastore at"):
            open_metastore(missing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]


def test_a_read_only_metastore_makes_no_side_files_and_takes_no_writes(tmp_path: Path) -> None:
    path = tmp_path / "a folder?" / "metastore.sqlite"
    with closing(open_metastore(path, create=True)) as connection:
        add_table(connection)
    path.chmod(0o444)
    path.parent.chmod(0o555)
    with closing(open_metastore(path, read_only=True)) as connection:
        assert connection.execute("SELECT table_id FROM cayenne_table").fetchall() == [("t",)]
        assert [one.name for one in path.parent.iterdir()] == ["metastore.sqlite"]
        with pytest.raises(ReadOnlyDataset), transaction(connection):
            add_table(connection, "u", "other")
    path.parent.chmod(0o755)
    with pytest.raises(ConfigurationError):
        open_metastore(path, create=True, read_only=True)


def test_tables_can_be_made_in_memory() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        create_tables(connection)
        assert [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")] == list(
            EXPECTED
        )


_CREATE = """
import sys
from pathlib import Path
from snapshot_assets.engines.cayenne.metastore import open_metastore
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    open_metastore(Path(sys.argv[1]) / f"{number}.db", create=True).close()
print("done", flush=True)
"""


def test_processes_may_create_one_metastore_at_once(program: Callable[..., Any], tmp_path: Path) -> None:
    creators = [program(_CREATE, tmp_path) for _ in range(3)]
    assert [creator.hear() for creator in creators] == ["ready"] * 3
    for creator in creators:
        creator.say()
    assert [creator.hear() for creator in creators] == ["done"] * 3
    assert [creator.end() for creator in creators] == [0] * 3
    open_metastore(tmp_path / "19.db").close()


def test_opening_waits_for_a_writer_that_holds_the_file_in_another_journal_mode(tmp_path: Path) -> None:
    path = tmp_path / "cayenne.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as writer:
        create_tables(writer)
        writer.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, writer.rollback)
        release.start()
        with closing(open_metastore(path)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        release.join()


def test_a_transaction_is_all_or_nothing(metastore: sqlite3.Connection) -> None:
    with transaction(metastore):
        add_table(metastore)
    with pytest.raises(KeyError), transaction(metastore):
        add_table(metastore, "u", "other")
        raise KeyError
    with pytest.raises(CaptureError, match="UNIQUE"), transaction(metastore):
        add_table(metastore, "u", "other")
        add_table(metastore)
    assert not metastore.in_transaction
    assert metastore.execute("SELECT table_id FROM cayenne_table").fetchall() == [("t",)]


def test_a_transaction_waits_for_no_other_of_its_connection(metastore: sqlite3.Connection) -> None:
    with transaction(metastore):
        with pytest.raises(ConfigurationError, match="middle of another"), transaction(metastore):
            pass
        add_table(metastore)
    assert metastore.execute("SELECT count(*) FROM cayenne_table").fetchone() == (1,)


def test_a_metastore_that_stays_locked_is_busy(metastore: sqlite3.Connection, tmp_path: Path) -> None:
    with closing(open_metastore(tmp_path / "metadata" / "cayenne.db")) as other, transaction(metastore):
        other.execute("PRAGMA busy_timeout = 10")
        with pytest.raises(LiveDatabaseBusy), transaction(other):
            pass


def test_the_key_of_a_uuid_is_its_bytes_in_either_case_and_of_another_id_its_text() -> None:
    text = "0198f3a2-7c41-7d10-9a55-3f1c2b7e8d01"
    assert table_key(text) == table_key(text.upper()) == table_key(text.replace("-", "")) == UUID(text).bytes
    assert len(table_key(text)) == 16
    for other in ("orders", "größe", text[:-1], text + "0", f"{{{text}}}", text.replace("a", "g"), "7c41" * 8 + "\n"):
        assert table_key(other) == other.encode()


def test_a_child_name_is_one_plain_identifier_for_any_key() -> None:
    assert child_table_name("trips", "v1|ä") == "trips_p76317CC3A4"
    assert child_table_name("trips", "") == "trips_p"
    hostile = "'; DROP TABLE cayenne_table; --\0/../\n"
    assert child_table_name("trips", hostile).isidentifier()
    assert child_table_name("trips", "a_b") != child_table_name("trips", "a-b")


def test_a_legacy_child_name_joins_the_partition_values() -> None:
    assert legacy_child_table_name("trips", ["2026-01", "Bern"]) == "trips_2026-01_Bern"


def test_everything_of_a_root_has_its_place() -> None:
    root = Path("/warehouse")
    assert default_metastore(root) == root / "metadata" / "cayenne.db"
    table = table_folder(data_folder(root), "t1")
    assert table == root / "data" / "t1"
    assert snapshot_folder(table, "s1") / "a.vortex" == table / file_path("s1", "a.vortex")
    assert deletions_folder(table, "s1") == table / "s1" / "deletions"
    assert stored_path(data_folder(root), "t1", 1) == stored_path(data_folder(root), str(table), 0) == table
