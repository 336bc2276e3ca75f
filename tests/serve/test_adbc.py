"""The ADBC Flight SQL driver, as its users use it."""

from __future__ import annotations

import datetime
import decimal
import threading
from collections.abc import Callable, Iterator

import adbc_driver_flightsql.dbapi as flightsql
import adbc_driver_manager.dbapi as adbc
import pyarrow as pa
import pytest

from snapshot_assets.serve.node import ReaderNode
from tests.serve.standin import ENDLESS, LONG, StandInReader, until


@pytest.fixture
def connection(node: ReaderNode) -> Iterator[adbc.Connection]:
    with flightsql.connect(node.flight_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def cursor(connection: adbc.Connection) -> Iterator[adbc.Cursor]:
    with connection.cursor() as cursor:
        yield cursor


def test_a_query_is_executed_and_fetched(cursor: adbc.Cursor) -> None:
    cursor.execute("SELECT i, name FROM orders.main.orders WHERE i < 3 ORDER BY i DESC")
    assert [column[0] for column in cursor.description or ()] == ["i", "name"]
    assert cursor.fetchall() == [(2, "name 2"), (1, "name 1"), (0, "name 0")]
    cursor.execute("SELECT o.i, p.model FROM orders.main.orders o JOIN planes.main.planes p ON o.i = p.id")
    assert cursor.fetch_arrow_table().num_rows == 10


def test_a_result_of_many_batches_arrives_whole(cursor: adbc.Cursor) -> None:
    cursor.execute("SELECT range i, 'x' || range AS t FROM range(1_000_000)")
    table = cursor.fetch_arrow_table()
    assert table.column("i").to_pylist() == list(range(1_000_000))
    assert table.column("t")[999_999].as_py() == "x999999"


def test_wide_rows_are_sent_in_messages_that_the_driver_takes(cursor: adbc.Cursor) -> None:
    # the driver refuses messages above 16 MiB; the second row alone has 6 MiB
    cursor.execute("SELECT range i, repeat('x', if(range = 1, 6_000_000, 2_000)) t FROM range(60_000)")
    table = cursor.fetch_arrow_table()
    assert table.nbytes > 120_000_000
    assert table.column("i").to_pylist() == list(range(60_000))


def test_an_empty_result_has_its_columns(cursor: adbc.Cursor) -> None:
    cursor.execute("SELECT i, name FROM orders.main.orders WHERE false")
    assert cursor.fetch_arrow_table().schema == pa.table({"i": [1], "name": ["x"]}).schema


def test_explain_and_describe_answer(cursor: adbc.Cursor) -> None:
    for sql in ("EXPLAIN SELECT i FROM orders.main.orders", "EXPLAIN ANALYZE SELECT 1"):
        cursor.execute(sql)
        assert cursor.fetch_arrow_table().column_names == ["explain_key", "explain_value"]
    cursor.execute("DESCRIBE orders.main.orders")
    assert [row[0] for row in cursor.fetchall()] == ["i", "j", "name"]


def test_values_of_every_type_arrive_as_they_are(cursor: adbc.Cursor) -> None:
    cursor.execute(
        "SELECT true, NULL, 1::utinyint, 1.5::double, 12.34::decimal(10, 2), 'ü', encode('ü'), DATE '2024-02-29', "
        "TIMESTAMP '2024-02-29 01:02:03.456789', TIME '01:02:03', [1, NULL], {'a': 1}, map {'k': 2}, '1'::json"
    )
    assert cursor.fetchone() == (
        True,
        None,
        1,
        1.5,
        decimal.Decimal("12.34"),
        "ü",
        "ü".encode(),
        datetime.date(2024, 2, 29),
        datetime.datetime(2024, 2, 29, 1, 2, 3, 456789),  # noqa: DTZ001
        datetime.time(1, 2, 3),
        [1, None],
        {"a": 1},
        [("k", 2)],
        "1",
    )


@pytest.mark.parametrize("rows", [3, 300_000])
def test_enumerations_arrive_also_inside_of_lists(cursor: adbc.Cursor, rows: int) -> None:
    kind = "enum('even', 'odd')"
    cursor.execute(
        f"SELECT if(range % 2 = 0, 'even', 'odd')::{kind} e, [if(range % 3 = 0, 'odd', NULL)::{kind}] l "
        f"FROM range({rows})"
    )
    table = cursor.fetch_arrow_table()
    assert table.column("e").to_pylist()[:3] == ["even", "odd", "even"]
    assert table.column("l").to_pylist()[:2] == [["odd"], [None]]
    assert table.num_rows == rows


def test_parameters_are_bound_by_position(cursor: adbc.Cursor) -> None:
    cursor.execute("SELECT i FROM orders.main.orders WHERE i = ? OR name = ? ORDER BY i", (5, "name 7"))
    assert cursor.fetchall() == [(5,), (7,)]
    day = datetime.date(2024, 2, 29)
    cursor.execute("SELECT ?, ?, ?, ?", (None, b"x", 1.5, day))
    assert cursor.fetchall() == [(None, b"x", 1.5, day)]


def test_parameters_are_values_and_never_sql(cursor: adbc.Cursor) -> None:
    cursor.execute("SELECT count(*) FROM orders.main.orders WHERE name = ?", ("' OR 1 = 1; DROP TABLE x --",))
    assert cursor.fetchall() == [(0,)]


def test_parameters_are_bound_by_name(cursor: adbc.Cursor) -> None:
    values = pa.record_batch({"low": [997], "high": [998]})
    cursor.execute("SELECT i FROM orders.main.orders WHERE i BETWEEN $low AND $high ORDER BY i", values)
    assert cursor.fetchall() == [(997,), (998,)]


def test_several_sets_of_parameters_give_one_result(cursor: adbc.Cursor) -> None:
    cursor.execute("SELECT name FROM orders.main.orders WHERE i = ?", pa.record_batch({"i": [3, 2000, 1]}))
    assert cursor.fetchall() == [("name 3",), ("name 1",)]


@pytest.mark.parametrize(
    ("sql", "parameters"), [("SELECT ?", None), ("SELECT ?, ?", (1,)), ("SELECT 1", (1,)), ("SELECT ?::int", ("x",))]
)
def test_wrong_parameters_are_an_error_in_words(
    connection: adbc.Connection, sql: str, parameters: tuple[object, ...] | None
) -> None:
    with connection.cursor() as cursor, pytest.raises(adbc.Error, match="QueryFailed: "):
        cursor.execute(sql, parameters)
        cursor.fetchall()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == [(1,)]


def test_the_columns_of_a_query_are_known_without_running_it(cursor: adbc.Cursor) -> None:
    expected = pa.table({"i": [1], "name": ["x"]}).schema
    assert cursor.adbc_execute_schema("SELECT i, name FROM orders.main.orders WHERE i = ?") == expected
    assert cursor.adbc_execute_schema(f"SELECT i, name FROM ({LONG})") == expected


def test_catalogs_schemas_tables_and_columns_are_listed(connection: adbc.Connection) -> None:
    objects = connection.adbc_get_objects(depth="all").read_all().to_pylist()
    found = {
        (catalog["catalog_name"], schema["db_schema_name"], table["table_name"]): (
            table["table_type"],
            [column["column_name"] for column in table["table_columns"]],
        )
        for catalog in objects
        for schema in catalog["catalog_db_schemas"]
        for table in schema["db_schema_tables"]
    }
    assert found == {
        ("orders", "main", "orders"): ("TABLE", ["i", "j", "name"]),
        ("planes", "main", "planes"): ("TABLE", ["id", "model"]),
        ("planes", "main", "first"): ("VIEW", ["id", "model"]),
    }


def test_listings_take_filters(connection: adbc.Connection) -> None:
    def tables(**filters: object) -> set[str]:
        objects = connection.adbc_get_objects(depth="tables", **filters).read_all().to_pylist()  # type: ignore[arg-type]
        return {
            table["table_name"]
            for catalog in objects
            for schema in catalog["catalog_db_schemas"] or ()
            for table in schema["db_schema_tables"] or ()
        }

    assert tables(catalog_filter="planes") == {"planes", "first"}
    assert tables(table_name_filter="%r%s%") == {"orders", "first"}
    assert tables(table_types_filter=["VIEW"]) == {"first"}
    assert tables(db_schema_filter="nowhere") == set()
    assert connection.adbc_get_table_types() == ["TABLE", "VIEW"]
    schema = connection.adbc_get_table_schema("planes", catalog_filter="planes", db_schema_filter="main")
    assert schema == pa.table({"id": [1], "model": ["x"]}).schema


def test_the_server_names_itself(connection: adbc.Connection) -> None:
    assert connection.adbc_get_info()["vendor_name"] == "snapshot-assets"


def test_an_error_says_its_kind_and_what_to_do(cursor: adbc.Cursor) -> None:
    with pytest.raises(adbc.Error, match=r"QueryRefused: DROP statements are not run here \(Send one SELECT"):
        cursor.execute("DROP TABLE orders.main.orders")
    with pytest.raises(adbc.Error, match="QueryFailed: Catalog Error: Table with name nothing does not exist"):
        cursor.execute("SELECT * FROM nothing")
    with pytest.raises(adbc.Error, match="QueryFailed: .*boom"):
        cursor.execute("SELECT if(range = 900000, error('boom'), range) FROM range(1_000_000)")
        cursor.fetch_arrow_table()


def test_no_error_shows_the_servers_code(cursor: adbc.Cursor) -> None:
    for sql in ("DROP TABLE x", "SELECT * FROM nothing", "SELECT error('boom')", "SELECT '1'::int / 'x'::int"):
        with pytest.raises(adbc.Error) as failed:
            cursor.execute(sql)
        assert "Traceback" not in str(failed.value)
        assert ".py" not in str(failed.value)


def test_updates_are_refused_as_read_only(cursor: adbc.Cursor) -> None:
    with pytest.raises(adbc.Error, match="QueryRefused: INSERT statements are not run here"):
        cursor.executemany("INSERT INTO orders.main.orders VALUES (?, 1, 'x')", [(1,), (2,)])
    with pytest.raises(adbc.Error, match="ReadOnlyDataset"):
        cursor.executemany("SELECT ?", [(1,), (2,)])


def test_a_query_is_cancelled_while_it_computes(cursor: adbc.Cursor, reader: StandInReader) -> None:
    threading.Timer(0.3, cursor.adbc_cancel).start()
    with pytest.raises(adbc.Error, match=r"(?i)cancel"):
        cursor.execute(ENDLESS)
    until(lambda: reader.catalog.leases == 0)


def test_a_query_is_cancelled_while_it_streams(cursor: adbc.Cursor, reader: StandInReader) -> None:
    cursor.execute(LONG)
    rows = cursor.fetch_record_batch()
    assert rows.read_next_batch().num_rows > 0
    assert reader.catalog.leases == 1
    cursor.adbc_cancel()
    until(lambda: reader.catalog.leases == 0)


def test_closing_gives_everything_back(node: ReaderNode, reader: StandInReader) -> None:
    with flightsql.connect(node.flight_url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(LONG)
        with cursor.fetch_record_batch() as rows:
            rows.read_next_batch()
            assert reader.catalog.leases == 1
        until(lambda: reader.catalog.leases == 0)


def test_a_driver_that_keeps_an_abandoned_result_open_does_not_keep_the_lease(
    start: Callable[..., ReaderNode], reader: StandInReader
) -> None:
    node = start(fetch_timeout=0.3)
    with flightsql.connect(node.flight_url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(LONG)
        assert reader.catalog.leases == 1
    until(lambda: reader.catalog.leases == 0)


def test_a_client_without_autocommit_is_only_warned(node: ReaderNode) -> None:
    with pytest.warns(Warning, match="autocommit"):
        connection = flightsql.connect(node.flight_url)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == [(1,)]
