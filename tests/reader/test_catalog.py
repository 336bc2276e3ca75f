"""Several datasets in one SQL session."""

from __future__ import annotations

import threading
import time
from typing import Any

import duckdb
import pytest

from snapshot_assets.errors import ConfigurationError, ReaderError, ReadOnlyDataset
from snapshot_assets.reader import catalog
from snapshot_assets.reader.reader import SnapshotReader
from tests.reader.world import World, wait_until

JOIN = """select count(*) n, min(o.v) o, min(p.v) p
          from orders.main.orders o join planes.main.planes p using (i)"""


def both(world: World, **settings: Any) -> SnapshotReader:
    world.orders(1)
    world.planes(1)
    reader = world.reader(**settings)
    reader.follow("orders")
    reader.follow("planes")
    return reader


def mixed(world: World, rows: str) -> SnapshotReader:
    world.publish(
        world.sqlite(
            "kinds",
            f"create table t(i integer, x real, n numeric, s text, d date, b blob); insert into t values {rows}",
        )
    )
    reader = world.reader()
    reader.follow("kinds")
    return reader


def test_one_statement_joins_duckdb_and_sqlite(world: World) -> None:
    reader = both(world)
    assert reader.catalog.query(JOIN).to_pylist() == [{"n": 500, "o": 1, "p": 1}]
    (row,) = reader.catalog.query(
        "select count(*) n from planes.main.planes a join planes.main.planes b on a.i = b.i + 1"
    ).to_pylist()
    assert row == {"n": 499}
    parameters = reader.catalog.query("select name from planes.main.planes where i = ?", [7]).to_pylist()
    assert parameters == [{"name": "plane 7"}]


def test_a_session_keeps_its_generations_and_the_next_one_has_the_new(world: World) -> None:
    reader = both(world)
    with reader.catalog.connect() as session:
        world.orders(2)
        world.planes(2)
        reader.refresh("orders")
        reader.refresh("planes")
        assert session.sql(JOIN).fetchall() == [(500, 1, 1)]
        assert reader.catalog.query(JOIN).to_pylist() == [{"n": 500, "o": 2, "p": 2}]
        assert session.sql(JOIN).fetchall() == [(500, 1, 1)]
    assert {name: current.generation for name, current in reader.catalog.generations.items()} == {
        "orders": 2,
        "planes": 2,
    }


def test_a_dataset_that_is_followed_later_appears(world: World) -> None:
    world.orders(1)
    world.planes(1)
    reader = world.reader()
    assert reader.catalog.query("select 1 one").to_pylist() == [{"one": 1}]
    reader.follow("orders")
    assert reader.catalog.query("select count(*) n from orders.main.orders").to_pylist() == [{"n": 1_000}]
    reader.follow("planes")
    assert reader.catalog.query(JOIN).to_pylist() == [{"n": 500, "o": 1, "p": 1}]


@pytest.mark.parametrize(
    "sql",
    [
        "insert into orders.main.orders values (1, 1)",
        "create table planes.main.mine as select 1",
        "drop view planes.main.planes",
        "detach orders",
        "attach ':memory:' as other",
        "set threads = 1",
        "copy (select 1) to '/tmp/never.csv'",
        "select 1; select 2",
        "",
        "select 1; detach orders",
        "pragma database_list",
        "explain insert into orders.main.orders values (1, 1)",
        "explain analyze create or replace view planes.main.planes as select 666 v",
        "explain analyze /* /* */ select 1 -- */ create table planes.main.mine as select 1",
        "explain (analyze, format json) create table planes.main.mine as select 1",
        "explain analyze drop view planes.main.planes",
        "/* ü */ explain analyze with a as (select 1) insert into orders.main.orders select 1, 1 from a",
    ],
)
def test_a_query_only_reads(world: World, sql: str) -> None:
    reader = both(world)
    with pytest.raises(ReadOnlyDataset):
        reader.catalog.query(sql)
    assert reader.catalog.query(JOIN).to_pylist() == [{"n": 500, "o": 1, "p": 1}]


@pytest.mark.parametrize(
    "sql",
    [
        "explain select 1",
        "explain analyze select * from planes.main.planes",
        "EXPLAIN(format json)\nwith a as (select 1) select * from a",
        "-- first\nexplain /* ü */ (ANALYZE, format json) -- last\n select count(*) from orders.main.orders",
        "explain analyze (select 1)",
        "explain from orders.main.orders",
    ],
)
def test_a_select_is_explained(world: World, sql: str) -> None:
    assert both(world).catalog.query(sql).num_rows == 1


@pytest.mark.parametrize(
    "sql",
    [
        "create or replace view planes.main.planes as select 666 v",
        "explain analyze create or replace view planes.main.planes as select 666 v",
        "drop view planes.main.planes",
        "create table planes.main.mine as select 1",
        "create macro min(x) as 666",
        "create macro memory.main.min(x) as 666",
        "create schema planes",
        "create view memory.main.planes as select 666 v",
    ],
)
def test_no_session_changes_what_others_read(world: World, sql: str) -> None:
    reader = both(world)
    with reader.catalog.connect() as session:
        with pytest.raises(duckdb.InvalidInputException, match="read-only"):
            session.execute(sql)
        assert reader.catalog.query(JOIN).to_pylist() == [{"n": 500, "o": 1, "p": 1}]
    assert reader.catalog.query(JOIN).to_pylist() == [{"n": 500, "o": 1, "p": 1}]


def test_a_session_reads_no_files_no_variables_and_keeps_its_configuration(world: World) -> None:
    reader = both(world)
    secret = reader.catalog.query("select 1 x")  # a table that a replacement scan could find by its name
    assert secret.num_rows == 1
    with reader.catalog.connect() as session:
        for sql in ("select * from read_csv('/etc/passwd')", "select * from secret", "set memory_limit = '1GB'"):
            with pytest.raises(duckdb.Error):
                session.execute(sql)
        with pytest.raises(duckdb.Error, match="read-only"):
            session.execute("insert into orders.main.orders values (1, 1)")


def test_what_a_session_breaks_for_all_is_made_anew(world: World) -> None:
    reader = both(world)
    with reader.catalog.connect() as session:
        session.execute("create temp table mine as select 1")
        session.execute("use planes")
    with reader.catalog.connect() as session:
        with pytest.raises(duckdb.CatalogException):
            session.execute("select * from mine")
        session.execute("detach orders")
    assert reader.catalog.query(JOIN).to_pylist() == [{"n": 500, "o": 1, "p": 1}]
    with reader.catalog.connect() as session:
        for sql in ("orders set alias to other", "planes set alias to orders", "other set alias to planes"):
            session.execute(f"alter database {sql}")
    assert reader.catalog.query(JOIN).to_pylist() == [{"n": 500, "o": 1, "p": 1}]


def test_what_sessions_need_on_disk_is_gone_with_them(world: World) -> None:
    reader = both(world)
    spill = reader.data_dir / ".spill"
    with reader.catalog.connect() as session:
        first = reader.catalog._sessions
        assert first is not None
        world.planes(2)
        reader.refresh("planes")
        assert first._folder.exists()
        assert session.sql(JOIN).fetchall() == [(500, 1, 1)]
    assert not first._folder.exists()
    last = reader.catalog._sessions
    assert last is not None
    assert last._folder.exists()
    reader.close()
    assert not [path for path in spill.rglob("*") if path.suffix == ".duckdb"]


def test_sessions_that_can_not_be_made_hold_no_local_copy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise duckdb.OutOfMemoryException("none left")

    reader = both(world)
    uses = [dict(reader._followed[name].folder._uses) for name in ("orders", "planes")]
    for where in (catalog._Sessions, catalog._Member):
        method = "_databases" if where is catalog._Sessions else "__init__"
        with monkeypatch.context() as patch:
            patch.setattr(where, method, broken)
            with pytest.raises((ReaderError, duckdb.OutOfMemoryException), match="none left"):
                reader.catalog.query("select 1")
        assert [dict(reader._followed[name].folder._uses) for name in ("orders", "planes")] == uses
        assert not list((reader.data_dir / ".spill").glob("*/memory.duckdb"))
    assert reader.catalog.query(JOIN).to_pylist() == [{"n": 500, "o": 1, "p": 1}]


def test_a_session_whose_databases_can_not_be_listed_ends_its_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = both(world)
    with reader.catalog.connect():
        broken = reader.catalog._sessions
        assert broken is not None
        monkeypatch.setattr(broken, "_databases", lambda: broken._root.execute("select no_such_column"))
    assert broken.leases == 0
    assert reader.catalog._sessions is not broken
    assert reader.catalog.query(JOIN).to_pylist() == [{"n": 500, "o": 1, "p": 1}]


def test_values_that_fit_their_declared_types_are_exact(world: World) -> None:
    reader = mixed(
        world,
        """(9007199254740993, 0.1, 12.5, 'zoë', '2024-02-29', x'00ff'),
           (null, null, null, null, null, null),
           (-9223372036854775808, 3, 7, '12', 2451545.123456789, 'text in a blob'),
           (0, 1e308, 9007199254740992, '', 20240229, 5)""",
    )
    rows = reader.catalog.query("select * from kinds.main.t").to_pylist()
    assert rows == [
        {"i": 9007199254740993, "x": 0.1, "n": 12.5, "s": "zoë", "d": "2024-02-29", "b": b"\x00\xff"},
        {"i": None, "x": None, "n": None, "s": None, "d": None, "b": None},
        {"i": -(2**63), "x": 3.0, "n": 7.0, "s": "12", "d": "2451545.1234567892", "b": b"text in a blob"},
        {"i": 0, "x": 1e308, "n": 2.0**53, "s": "", "d": "20240229", "b": b"5"},
    ]
    assert float(rows[2]["d"]) == 2451545.123456789


def test_nulls_before_the_first_value_do_not_change_a_columns_type(world: World) -> None:
    reader = mixed(world, "(null, null, null, null, null, null)")
    world.publish(
        world.sqlite(
            "kinds",
            """begin; with recursive n(k) as (select 0 union all select k + 1 from n where k < 70000)
               insert into t(i) select null from n; insert into t values (5, 2.5, 2.5, 'x', 'y', x'01'); commit""",
        )
    )
    reader.refresh("kinds")
    result = reader.catalog.query("select * from kinds.main.t where i is not null")
    assert result.to_pylist() == [{"i": 5, "x": 2.5, "n": 2.5, "s": "x", "d": "y", "b": b"\x01"}]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("i", "'seven'"),
        ("i", "2.5"),
        ("i", "x'01'"),
        ("x", "'much'"),
        ("n", "9007199254740993"),
        ("n", "'dear'"),
        ("s", "cast(x'ff' as text)"),
        ("s", "x'ff'"),
    ],
)
@pytest.mark.parametrize("place", ["first", "far"])
def test_a_value_that_does_not_fit_is_an_error_and_never_another_value(
    world: World, column: str, value: str, place: str
) -> None:
    rows = (
        "" if place == "first" else "with recursive n(k) as (select 0 union all select k + 1 from n where k < 70000) "
    )
    world.publish(
        world.sqlite(
            "kinds",
            f"""create table t(i integer, x real, n numeric, s text);
                {rows and f"insert into t {rows} select 1, 1.5, 1.5, 'a' from n;"}
                insert into t({column}) values ({value})""",
        )
    )
    reader = world.reader()
    reader.follow("kinds")
    with pytest.raises(ReaderError, match="declared types"):
        reader.catalog.query(f"select {column} from kinds.main.t")
    with pytest.raises(ReaderError, match="declared types"):
        reader.catalog.query(f"select count(*) n from kinds.main.t where {column} is null or {column} is not null")


def test_names_that_need_quoting(world: World) -> None:
    world.publish(
        world.sqlite(
            "odd",
            """create table "a ""b'.c"("select" integer, "x ""y'" text); insert into "a ""b'.c" values (1, 'z')""",
        )
    )
    reader = world.reader()
    reader.follow("odd")
    rows = reader.catalog.query("""select "x ""y'" t from odd.main."a ""b'.c" where "select" = 1""").to_pylist()
    assert rows == [{"t": "z"}]


def test_filters_give_what_they_give_without_pushing_them_down(world: World) -> None:
    reader = mixed(
        world,
        """(1, 1.5, 1, 'a', null, x'01'), (2, null, 2, 'B', '2024', null),
           (3, -0.0, 3, 'ä', 'x', x''), (4, 9e99, 4, '', '', x'')""",
    )
    for condition in (
        "i > 1 and x < 2",
        "x = 0",
        "s in ('a', 'ä')",
        "s like '%ä%'",
        "d is null",
        "b = '\\x01'::blob",
        "i between 2 and 3 or s = ''",
        "i % 2 = 0",
        "s >= 'a'",
    ):
        pushed = reader.catalog.query(f"select i from kinds.main.t where {condition} order by i")
        apart = reader.catalog.query(
            f"with t as materialized (select * from kinds.main.t) select i from t where {condition} order by i"
        )
        assert pushed.to_pylist() == apart.to_pylist(), condition


def test_only_the_columns_of_a_query_are_read(world: World) -> None:
    reader = mixed(world, "('no integer', 1.5, 2, 'a', null, null)")
    assert reader.catalog.query("select x from kinds.main.t where n = 2").to_pylist() == [{"x": 1.5}]
    assert reader.catalog.query("select count(s) n from kinds.main.t").to_pylist() == [{"n": 1}]


def test_a_wrong_catalogue_setting_is_a_configuration_error(world: World) -> None:
    reader = both(world, catalog_config={"no_such_setting": 1})
    with pytest.raises(ConfigurationError, match="no_such_setting"):
        reader.catalog.query("select 1")


def test_settings_reach_the_sessions(world: World) -> None:
    reader = both(world, catalog_config={"threads": 1})
    assert reader.catalog.query("select current_setting('threads')::int t").to_pylist() == [{"t": 1}]


def test_concurrent_first_queries_build_one_set_and_old_sets_are_closed(world: World) -> None:
    reader = both(world)
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(10):
                reader.catalog.query(JOIN)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for version in (2, 3, 4):
        world.planes(version)
        reader.refresh("planes")
    for thread in threads:
        thread.join()
    assert not failed
    assert wait_until(lambda: len(world.local_copies("planes")) == 2)
    sessions = reader.catalog._sessions
    assert sessions is not None
    assert sessions.leases == 0


def test_a_swap_during_the_making_of_sessions_is_not_missed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = both(world)
    reader.catalog.query(JOIN)
    made, go_on = threading.Event(), threading.Event()
    make = catalog._Sessions.__init__

    def slow(self: object, *arguments: object) -> None:
        make(self, *arguments)  # type: ignore[arg-type]
        made.set()
        go_on.wait(10.0)

    monkeypatch.setattr(catalog._Sessions, "__init__", slow)
    threads = []
    for name in ("orders", "planes"):
        getattr(world, name)(2)
        threads.append(threading.Thread(target=reader.refresh, args=(name,)))
        threads[-1].start()
        assert made.wait(10.0)
    assert wait_until(lambda: reader.status()["planes"].current.generation == 2)  # type: ignore[union-attr]
    time.sleep(0.1)
    go_on.set()
    for thread in threads:
        thread.join(10.0)
    assert reader.catalog.query(JOIN).to_pylist() == [{"n": 500, "o": 2, "p": 2}]


def test_a_noted_generation_shows_in_the_catalogue(world: World) -> None:
    reader = both(world)
    assert reader.catalog.generations["orders"].generation == 1
    world.change_head("orders", lambda head: {"generation": 5})
    assert reader.refresh("orders").outcome == "noted"
    assert reader.catalog.generations["orders"].generation == 5


def test_a_table_without_a_name_does_not_keep_the_others_from_being_read(world: World) -> None:
    world.publish(world.sqlite("odd", 'create table ""(i integer); create table t(i integer); insert into t values(1)'))
    world.orders(1)
    reader = world.reader()
    reader.follow("odd")
    reader.follow("orders")
    (row,) = reader.catalog.query("select (select i from odd.main.t) i, count(*) n from orders.main.orders").to_pylist()
    assert row == {"i": 1, "n": 1_000}
