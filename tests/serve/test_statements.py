"""Which statements a node runs."""

from __future__ import annotations

import contextlib

import pytest

from snapshot_assets.errors import QueryFailed, QueryRefused
from snapshot_assets.serve.statements import StatementCheck

CHECK = StatementCheck()

ALLOWED = """
select 1
select 1;
-- a comment
from orders.main.orders
select sum(i) over (partition by j order by i) from orders.main.orders where i in (select id from planes.main.planes)
with a as (select 1 x), b as materialized (select 2 x) select * from a union all select * from b order by 1 limit 1
with recursive n as (select 1 i union all select i + 1 from n where i < 5) select * from n
values (1), (2)
table orders
select * from range(3) r, generate_series(1, 2) s, unnest([1, 2]) u
select unnest([1, 2]), list_transform([1], lambda x: x + 1), [x * 2 for x in [1, 2]]
pivot orders on j in (1, 2) using sum(i)
unpivot orders on i, j
describe orders.main.orders
summarize orders.main.orders
show tables
show databases
show tables from orders
select * from information_schema.tables
select * from duckdb_tables()
select * from orders.main.orders tablesample 10%
select * from json_each('[1]')
select $name, $other
explain select 1
EXPLAIN ANALYZE select 1
explain (format json) select 1
explain analyze (format json) with a as (select 1) from a
/* a comment */ explain (select 1)
"""

REFUSED = """
insert into orders values (1)
update orders set i = 1
delete from orders
merge into orders using planes on i = id when matched then delete
truncate orders
create table t as select 1
create temp table t as select 1
create or replace view v as select 1
create macro m() as 1
create schema s
create sequence q
create type t as enum ('a')
create secret (type s3)
drop table orders.main.orders
alter table orders rename to x
comment on table orders is 'x'
attach '/tmp/x.duckdb'
attach ':memory:' as m
detach orders
use orders
copy orders to '/tmp/x'
copy orders from '/tmp/x'
export database '/tmp/x'
import database '/tmp/x'
copy from database orders to planes
set threads = 1
reset threads
set variable x = 1
pragma database_list
pragma threads = 1
call pragma_version()
call enable_logging()
install httpfs
load httpfs
update extensions
prepare p as select 1
execute p
deallocate p
begin
commit
checkpoint
vacuum
analyze
select 1; select 2
select 1; drop table orders.main.orders
explain insert into orders values (1)
explain analyze insert into orders values (1)
explain analyze delete from orders
explain execute p
explain pragma version
explain copy orders to '/tmp/x'
explain (format json) create table t as select 1
explain select 1; drop table orders.main.orders
with d as (delete from orders returning *) select * from d
with d as (insert into orders values (1) returning *) select * from d
with d as (update orders set i = 1 returning *) select * from d
with d as (copy orders to '/tmp/x') select 1
explain analyze with d as (delete from orders returning *) select * from d
select * from (with d as (delete from orders returning *) select * from d)
from '/etc/passwd'
from 'x.parquet'
from 's3://bucket/x.parquet'
select * from 'data/*.csv'
describe 'x.csv'
summarize 'x.csv'
select * from (describe 'x.csv')
from read_csv('x')
from READ_CSV('x')
from "read_csv"('x')
from main.read_csv('x')
from system.main.read_csv_auto('x')
from read_parquet('x')
from parquet_scan('x')
from parquet_metadata('x')
from read_text('/etc/passwd')
from read_blob('/etc/passwd')
from read_json('x')
from read_duckdb('x')
from sniff_csv('x')
from glob('/etc/*')
select * from orders, lateral (select * from read_text(orders.name))
select (select content from read_text('/etc/passwd'))
select * from orders where i in (select 1 from glob('*'))
select * from orders order by (select 1 from glob('*'))
select * from orders limit (select 1 from glob('*'))
select case when exists (from glob('*')) then 1 end
explain select * from read_csv('x')
from query('select 1')
from query_table('orders')
from json_execute_serialized_sql('{}')
from arrow_scan(1, 2, 3)
from python_arrow_scan(1, 2, 3)
from seq_scan('orders')
from histogram('x.csv', i)
from duckdb_secrets()
from which_secret('x', 's3')
from duckdb_settings()
from duckdb_settings
from duckdb_databases()
from duckdb_databases
from "duckdb_databases"
from duckdb_logs
from duckdb_logs()
from duckdb_extensions()
from duckdb_temporary_files()
from duckdb_external_file_cache()
from pragma_database_list
from pragma_database_size()
from pragma_table_info('orders')
from pragma_storage_info('orders')
from pg_settings
from pg_catalog.pg_settings
from checkpoint('orders')
from force_checkpoint('orders')
from enable_logging()
from enable_profiling()
from test_all_types()
from an_unknown_function()
from orders.main.a_macro()
select getenv('HOME')
select 'HOME'.getenv()
select list_transform(['HOME'], x -> getenv(x))
select max(i) filter (where getenv('HOME') = 'x') from orders
select i from orders order by getenv('HOME')
select current_setting('secret_directory')
select system.main.current_setting('secret_directory')
select getvariable('x')
select write_log('x')
select nextval('s')
select setseed(0.5)
select sleep_ms(100000)
select pg_sleep(100)
select json_serialize_plan('from read_csv(''x'')')
select json_deserialize_sql('{}')
select finalize('x'::blob)
select __internal_compress_string_ubigint('x')
show secret_directory
show variables
pivot orders on j
"""


def lines(text: str) -> list[str]:
    return [line for line in text.strip().splitlines() if not line.startswith("--")]


@pytest.mark.parametrize("sql", lines(ALLOWED))
def test_selects_and_their_explains_may_run(sql: str) -> None:
    assert CHECK.check(sql).is_explain is ("explain" in sql.lower())


@pytest.mark.parametrize("sql", lines(REFUSED))
def test_everything_else_is_refused_with_a_hint(sql: str) -> None:
    with pytest.raises(QueryRefused) as refused:
        CHECK.check(sql)
    assert refused.value.hint


@pytest.mark.parametrize("sql", ["", "  ", ";", "-- nothing"])
def test_no_statement_is_refused(sql: str) -> None:
    with pytest.raises(QueryRefused, match="0 statements"):
        CHECK.check(sql)


@pytest.mark.parametrize("sql", ["selec 1", "select 1 into t", "select (", "explain explain select 1"])
def test_what_is_no_sql_fails_with_the_parsers_words(sql: str) -> None:
    with pytest.raises(QueryFailed, match="Error"):
        CHECK.check(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "select " + "(" * 5_000 + "1" + ")" * 5_000,
        "select " + "1+" * 20_000 + "1",
        "select " + "[" * 900 + "]" * 900,
        "select " + "case when true then " * 900 + "1" + " end" * 900,
        "with a as (" * 300 + "select 1" + ") select 1" * 300,
    ],
)
def test_a_monstrous_statement_does_no_harm(sql: str) -> None:
    with contextlib.suppress(QueryRefused, QueryFailed):
        CHECK.check(sql)
    assert CHECK.check("select 1").sql == "select 1"


@pytest.mark.parametrize("sql", ["select 1 \0", "select 1 \0; drop table orders", "select '\0'"])
def test_nothing_hides_behind_a_nul_character(sql: str) -> None:
    with pytest.raises(QueryRefused, match="NUL"):
        CHECK.check(sql)


def test_a_statement_has_a_greatest_length() -> None:
    with pytest.raises(QueryRefused, match="limit"):
        CHECK.check("select '" + "x" * (1 << 20) + "'")


def test_parameters_are_known_by_position_and_by_name() -> None:
    assert CHECK.check("select ?, ?").parameters == ("1", "2")
    assert CHECK.check("select " + ", ".join("?" * 11)).parameters == tuple(str(n) for n in range(1, 12))
    assert CHECK.check("select $b, $a").parameters == ("a", "b")
    assert CHECK.check("explain select ?").parameters == ("1",)


def test_nothing_but_the_checked_select_follows_explain() -> None:
    assert CHECK.check("/* insert */ EXPLAIN -- x\n select 1").sql == "explain select 1"


@pytest.mark.parametrize(
    "sql",
    [
        "explain analyze /* /* */ select 1 -- */ create table zz as select 1",
        "explain /* /* */ select 1 -- */ */ delete from orders",
        "/* explain */ /* /* */ select 1 */ explain analyze create table zz as select 1",
    ],
)
def test_nested_comments_hide_nothing_behind_an_explain(sql: str) -> None:
    """DuckDB's comments nest: what looks like the SELECT may be a comment, and what looks like one may be run."""
    with pytest.raises((QueryRefused, QueryFailed)):
        CHECK.check(sql)
