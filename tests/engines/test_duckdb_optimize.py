"""Rebuilding a live DuckDB file: nothing is lost, nobody writes to the old file, and no crash leaves half of one."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from snapshot_assets.engines import duckdb_optimize
from snapshot_assets.engines.contract import Optimized
from snapshot_assets.engines.duckdb import DuckDBEngine
from snapshot_assets.engines.duckdb_optimize import rebuild_folder
from snapshot_assets.errors import CaptureError, LiveDatabaseBusy, LiveDatabaseMissing, UnsupportedLiveDatabase
from snapshot_assets.model.dataset import Dataset

from .conftest import Program, wait_until

ENGINE = DuckDBEngine()

CHILD = """
import json, os, signal, sys, time
from pathlib import Path
task = json.loads(sys.argv[1])
sys.path[:] = task["sys_path"]
from snapshot_assets.engines import duckdb_rebuild as rebuild
live = Path(task["live"])
def after(name, act):
    inner = getattr(rebuild, name)
    def step(*arguments):
        answer = inner(*arguments)
        act()
        return answer
    setattr(rebuild, name, step)
def pause():
    live.with_name("reached").touch()
    deadline = time.monotonic() + 20
    while not live.with_name("go").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
def die():
    os.kill(os.getpid(), signal.SIGKILL)
{code}
rebuild.main(task)
"""

STEPS = ("_build", "_check", "_settle", "_replace")


def bloat(connection: duckdb.DuckDBPyConnection) -> None:
    """Leave most of the file free: in the middle, for DuckDB cuts off by itself what is free at the end."""
    connection.execute("create table ballast as select hash(range) a, hash(range + 1) b from range(300000)")
    connection.execute("checkpoint")
    connection.execute("create or replace table at_the_end as select hash(range) a from range(20000)")
    connection.execute("checkpoint")
    connection.execute("drop table ballast")
    connection.execute("checkpoint")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    folder = tmp_path / "live"
    folder.mkdir()
    with duckdb.connect(str(folder / "shop.duckdb")) as connection:
        connection.execute("create table orders as select range id, 'order ' || range as text from range(1000)")
        bloat(connection)
    return Dataset("shop", "duckdb", folder / "shop.duckdb")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give the rebuilding process some code to run first."""
    return lambda code: monkeypatch.setattr(duckdb_optimize, "_CHILD", CHILD.replace("{code}", code))


def optimize(dataset: Dataset, timeout: float = 10) -> Optimized:
    return ENGINE.optimize(dataset, timeout=timeout)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(dataset: Dataset) -> set[str]:
    return {path.name for path in dataset.path.parent.iterdir()} - {"reached", "go"}


def count(path: Path) -> int:
    with duckdb.connect(str(path), read_only=True) as connection:
        (row,) = connection.execute("select count(*) from orders where text = 'order ' || id").fetchall()
        return int(row[0])


def test_a_file_that_is_mostly_free_becomes_small_and_then_there_is_nothing_to_do(dataset: Dataset) -> None:
    size = dataset.path.stat().st_size
    first = optimize(dataset)
    assert first.skipped is None
    assert first.figures["bytes_before"] == size
    assert first.figures["bytes_after"] == dataset.path.stat().st_size < size / 2
    assert first.figures["free_bytes_before"] > size / 2
    assert first.figures["free_bytes_after"] <= first.figures["bytes_after"] / 2
    assert count(dataset.path) == 1_000
    assert names(dataset) == {"shop.duckdb"}
    after = digest(dataset.path)
    second = optimize(dataset)
    assert second.skipped == "nothing_to_do"
    assert digest(dataset.path) == after


HOLDS = """
    create type mood as enum ('sad', 'ok');
    create type money as decimal(10, 2);
    create schema s2;
    create type s2.pair as struct(a int, b varchar);
    create sequence used start 5 increment 2;
    select nextval('used') from range(3);
    create sequence unused start 9;
    create sequence s2.round minvalue 1 maxvalue 10 cycle;
    select nextval('s2.round') from range(12);
    create macro zz_one() as 1;
    create macro aa_default(a, b := 5) as a + b + zz_one();
    create macro many(a) as a, (a, b) as a + b;
    create table parent (id int primary key, m mood default 'ok', price money, n int default nextval('used'),
        one int default zz_one(), twice int generated always as (id * 2) virtual, check (id >= 0));
    insert into parent (id, price) select range, range / 100 from range(100);
    create table aa_child (id int references parent (id), v varchar collate nocase, u int unique, needed int not null);
    insert into aa_child select range, 'V' || range, range, 1 from range(100);
    create table link (a int, b int, primary key (a, b), foreign key (a) references parent (id));
    create table s2.kinds (l int[], s s2.pair, m map(varchar, int), u union (i int, t varchar), f int[2], d date,
        t timestamptz, h hugeint, b blob, j json);
    insert into s2.kinds values ([1, null], {'a': 1, 'b': 'x'}, map {'k': 1}, 3, [1, 2], '2020-01-01',
        '2020-01-01 00:00:00+01', 1::hugeint << 100, '\\xAA'::blob, '{"a": 1}'), (null, null, null, null, null, null,
        null, null, null, null);
    create table "we""ird.name" ("a b" int default 3, "select" varchar default 'it''s');
    create table shrunk (gone int, a int, b int);
    insert into shrunk select 1, range, range from range(10);
    alter table shrunk drop column gone;
    alter table shrunk rename column b to c;
    create table doomed (i int);
    create view broken as select * from doomed;
    drop table doomed;
    create view zz_view as select id, m from parent where m = 'ok';
    create view aa_view as select count(*) as n from zz_view;
    create view qualified as select * from shop.main.parent;
    create view s2.view as select * from shop.s2.kinds;
    create macro first_of(n) as table select * from aa_view, range(n);
    create index idx on parent (n);
    create index s2_idx on s2.kinds (d, (d + 1));
    create unique index unq on link (b, a);
    comment on table parent is 'the parent';
    comment on column parent.n is 'a column';
    comment on view zz_view is 'a view';
    comment on column zz_view.m is 'a column of a view';
    comment on index idx is 'an index';
    comment on sequence used is 'a sequence';
    comment on type mood is 'a type';
    comment on macro zz_one is 'a macro';
    comment on macro table first_of is 'a table macro';
    create table ordered as select i from range(10000) t(i) order by hash(i);
"""

TOLD = (
    "select schema_name, table_name, sql, comment from duckdb_tables() order by all",
    "select schema_name, view_name, sql, comment from duckdb_views() where not internal order by all",
    "select schema_name, index_name, sql, is_unique, comment from duckdb_indexes() order by all",
    "select * exclude (database_oid, schema_oid, sequence_oid) from duckdb_sequences() order by all",
    (
        "select table_name, column_name, column_index, data_type, column_default, is_nullable, comment "
        "from duckdb_columns() where not internal order by all"
    ),
    "select table_name, constraint_type, constraint_text from duckdb_constraints() order by all",
    "select schema_name, type_name, logical_type, labels, comment from duckdb_types() where not internal order by all",
    (
        "select function_name, parameters, macro_definition, comment from duckdb_functions() "
        "where not internal and database_name = 'shop' order by all"
    ),
    "from parent",
    "from aa_child",
    "from s2.kinds",
    "from shrunk",
    "from qualified",
    "from s2.view",
    "from first_of(2)",
    "select aa_default(1), aa_default(1, b := 1), many(1), many(1, 2)",
    "from ordered",
)


def test_everything_that_a_file_holds_survives(dataset: Dataset) -> None:
    with duckdb.connect(str(dataset.path)) as connection:
        connection.execute(HOLDS)
        bloat(connection)
    with duckdb.connect(str(dataset.path)) as connection:
        before = [connection.execute(sql).fetchall() for sql in TOLD]
        assert all(before)
    assert optimize(dataset).skipped is None
    with duckdb.connect(str(dataset.path)) as connection:
        for sql, wanted in zip(TOLD, before, strict=True):
            assert connection.execute(sql).fetchall() == wanted, sql
        following = "select nextval('used'), nextval('unused'), nextval('s2.round')"
        assert connection.execute(following).fetchall() == [(211, 9, 3)]
        for refused in (
            "insert into parent (id) values (1)",
            "insert into parent (id) values (-1)",
            "insert into aa_child values (1000, 'x', 1000, 1)",
            "insert into aa_child values (1, 'x', 1, 1)",
            "insert into aa_child (id, u) values (1, 1000)",
            "delete from parent where id = 1",
        ):
            with pytest.raises(duckdb.ConstraintException):
                connection.execute(refused)
        assert connection.execute("select count(*) from aa_child where v = 'v7'").fetchall() == [(1,)]
        with pytest.raises(duckdb.CatalogException, match="doomed"):
            connection.execute("from broken")


LOST = {
    "a trigger": (
        (
            "create table t (i int); create trigger watch after insert on t for each statement insert into orders "
            "select 1, 'x'"
        ),
        "triggers .*watch",
    ),
    "rows that refer to rows of their own table": (
        (
            "create table t (id int primary key, up int references t (id)); insert into t values (1, null); "
            "insert into t values (2, 1)"
        ),
        "foreign key",
    ),
}


@pytest.mark.parametrize("what", LOST)
def test_what_would_be_lost_is_named_and_the_file_is_as_it_was(dataset: Dataset, what: str) -> None:
    sql, said = LOST[what]
    with duckdb.connect(str(dataset.path)) as connection:
        connection.execute(sql)
    before, inode = digest(dataset.path), dataset.path.stat().st_ino
    with pytest.raises(CaptureError, match=said):
        optimize(dataset)
    assert (digest(dataset.path), dataset.path.stat().st_ino) == (before, inode)
    assert names(dataset) == {"shop.duckdb"}


BEFORE_CHECK = """
inner = rebuild._build
def build(connection, fresh):
    inner(connection, fresh)
    with rebuild.duckdb.connect(str(fresh)) as spoiled:
        spoiled.execute(SQL)
rebuild._build = build
"""


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("update orders set text = 'other' where id = 7", "the rows of main.orders"),
        ("alter table orders add column more int", "columns main.orders.more"),
        ("create schema more", "schemas more"),
        ("comment on table orders is 'x'", "tables main.orders"),
    ],
)
def test_a_fresh_file_that_differs_never_takes_the_place_of_the_old_one(
    dataset: Dataset, steps: Callable[[str], None], spoil: str, said: str
) -> None:
    before = digest(dataset.path)
    steps(BEFORE_CHECK.replace("SQL", repr(spoil)))
    with pytest.raises(CaptureError, match=said):
        optimize(dataset)
    assert digest(dataset.path) == before


@pytest.mark.parametrize("name", ['it\'s "mine".duckdb', "memory.duckdb", "ünï 🦆"])
def test_any_file_name_will_do(dataset: Dataset, name: str) -> None:
    path = dataset.path.rename(dataset.path.with_name(name))
    assert optimize(Dataset("shop", "duckdb", path)).skipped is None
    assert count(path) == 1_000


def test_what_a_library_prints_does_not_spoil_the_answer(dataset: Dataset, steps: Callable[[str], None]) -> None:
    """DuckDB draws a progress bar when a statement takes long."""
    steps("after('_build', lambda: os.write(1, b'100% done'))")
    assert optimize(dataset).skipped is None


def test_a_fresh_file_that_is_not_smaller_is_thrown_away(dataset: Dataset, steps: Callable[[str], None]) -> None:
    before, inode = digest(dataset.path), dataset.path.stat().st_ino
    steps("after('_check', lambda: os.truncate(rebuild.rebuild_folder(live) / live.name, live.stat().st_size))")
    assert optimize(dataset).skipped == "nothing_to_do"
    assert (digest(dataset.path), dataset.path.stat().st_ino) == (before, inode)
    assert names(dataset) == {"shop.duckdb"}


@pytest.mark.parametrize(("version", "block_bytes"), [("v1.0.0", 262_144), ("v1.2.0", 16_384)])
def test_mode_storage_version_and_block_size_are_kept(tmp_path: Path, version: str, block_bytes: int) -> None:
    path = tmp_path / "old.duckdb"
    with duckdb.connect() as connection:
        connection.execute(f"attach '{path}' as old (storage_version '{version}', block_size {block_bytes})")
        connection.execute("use old")
        connection.execute("create table orders as select range id, 'order ' || range as text from range(10)")
        bloat(connection)
        header = read_header(path)
    path.chmod(0o640)
    os.setxattr(path, "user.kept", b"yes")
    os.chown(path, os.getuid(), another_group())
    before = path.stat()
    assert optimize(Dataset("old", "duckdb", path)).skipped is None
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert (stat.S_IMODE(after.st_mode), after.st_uid, after.st_gid) == (0o640, before.st_uid, before.st_gid)
    assert os.getxattr(path, "user.kept") == b"yes"
    assert after.st_mtime_ns > before.st_mtime_ns
    assert read_header(path) == header
    with duckdb.connect(str(path), read_only=True) as connection:
        (row,) = connection.execute(
            "select tags['storage_version'], block_size from duckdb_databases() join pragma_database_size() "
            "using (database_name) where database_name = 'old'"
        ).fetchall()
    assert row == (f"{version}+", block_bytes)


def read_header(path: Path) -> bytes:
    """The magic bytes, and the version number by which an older DuckDB decides whether it can open the file."""
    with path.open("rb") as file:
        return file.read(20)[8:]


def another_group() -> int:
    """A group that this process may give a file to; its own, when there is no other."""
    return 12_345 if os.getuid() == 0 else next(iter({*os.getgroups()} - {os.getgid()}), os.getgid())


def test_what_is_in_the_log_of_a_writer_that_died_is_in_the_rebuilt_file(
    dataset: Dataset, program: Callable[..., Program]
) -> None:
    with duckdb.connect(str(dataset.path)) as connection:
        connection.execute("create sequence numbers")
    writer = program(
        "import duckdb, os, signal, sys\n"
        "connection = duckdb.connect(sys.argv[1])\n"
        "connection.execute(\"insert into orders select nextval('numbers') + 999, 'order 1000'\")\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
        dataset.path,
    )
    assert writer.end() == -signal.SIGKILL
    assert names(dataset) == {"shop.duckdb", "shop.duckdb.wal"}
    assert optimize(dataset).skipped is None
    assert names(dataset) == {"shop.duckdb"}
    assert count(dataset.path) == 1_001


# --- nobody else has it


def hold_by_default(path: Path) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(str(path))


def hold_to_read(path: Path) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(str(path), read_only=True)


def hold_attached(path: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute(f"attach '{path}' as held")
    return connection


@pytest.mark.parametrize("hold", [hold_by_default, hold_to_read, hold_attached])
def test_a_file_that_this_process_has_open_is_busy(
    dataset: Dataset, hold: Callable[[Path], duckdb.DuckDBPyConnection]
) -> None:
    with hold(dataset.path) as held:
        with pytest.raises(LiveDatabaseBusy, match="open in this process"):
            optimize(dataset, timeout=0.2)
        dataset.path.read_bytes()  # which gives up the lock that this process has on the file
        with pytest.raises(LiveDatabaseBusy, match="open in this process"):
            optimize(dataset, timeout=0.2)
        assert held.execute("select 1").fetchall() == [(1,)]
    assert optimize(dataset).skipped is None


def test_a_connection_that_this_process_makes_in_the_last_moment_is_noticed(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After this process looked at its own connections, the lock decides."""
    held = duckdb.connect(str(dataset.path))
    monkeypatch.setattr(duckdb_optimize, "connect_by", lambda *_, **__: duckdb.connect())
    with pytest.raises(LiveDatabaseBusy, match=f"held by process {os.getpid()}"):
        optimize(dataset, timeout=0.2)
    held.close()


@pytest.mark.parametrize("how", ["", "read_only=True"])
def test_a_file_that_another_process_has_open_is_busy_until_it_lets_go(
    dataset: Dataset, program: Callable[..., Program], how: str
) -> None:
    holder = program(
        f"import duckdb, sys\nheld = duckdb.connect(sys.argv[1], {how})\n"
        "print('held', flush=True); sys.stdin.readline()",
        dataset.path,
    )
    assert holder.hear() == "held"
    with pytest.raises(LiveDatabaseBusy, match=str(holder.pid)):
        optimize(dataset, timeout=0.2)
    holder.say()
    assert optimize(dataset).skipped is None


class Paused:
    """An optimize in a process of its own, whose rebuilding process waits after one step."""

    def __init__(self, dataset: Dataset, step: str) -> None:
        self._go = dataset.path.with_name("go")
        code = f"after({step!r}, pause)"
        script = (
            "import sys\n"
            "from snapshot_assets.engines import duckdb_optimize\n"
            f"duckdb_optimize._CHILD = {CHILD.replace('{code}', code)!r}\n"
            "from pathlib import Path\n"
            "print(duckdb_optimize.optimize_file(Path(sys.argv[1]), 'shop', timeout=10).skipped)\n"
        )
        self.child = subprocess.Popen(
            [sys.executable, "-c", script, str(dataset.path)], stdout=subprocess.PIPE, text=True
        )
        wait_until(dataset.path.with_name("reached").exists)

    def end(self) -> str:
        self._go.touch()
        return self.child.communicate(timeout=30)[0].strip()


TRY_TO_OPEN = "import duckdb, sys; duckdb.connect(sys.argv[1], read_only=len(sys.argv) > 2)"


@pytest.mark.parametrize("step", ["_build", "_settle"])
def test_nobody_can_open_the_file_while_it_is_rebuilt(dataset: Dataset, step: str) -> None:
    paused = Paused(dataset, step)
    for arguments in ([], ["read-only"]):
        command = [sys.executable, "-c", TRY_TO_OPEN, str(dataset.path), *arguments]
        tried = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert "Could not set lock" in tried.stderr
        with pytest.raises(duckdb.IOException, match="lock"):
            duckdb.connect(str(dataset.path), read_only=bool(arguments))
    assert paused.end() == "None"
    assert count(dataset.path) == 1_000


def test_a_writer_that_is_faster_than_the_end_keeps_what_it_wrote(
    dataset: Dataset, program: Callable[..., Program]
) -> None:
    """It opens the fresh file while the rebuilding process still has the old one, and dies with a log."""
    paused = Paused(dataset, "_replace")
    writer = program(
        "import duckdb, os, sys\n"
        "connection = duckdb.connect(sys.argv[1])\n"
        "connection.execute(\"insert into orders values (1000, 'order 1000')\")\n"
        "print('written', flush=True); sys.stdin.readline()",
        dataset.path,
    )
    assert writer.hear() == "written"
    assert paused.end() == "None"
    writer.kill()
    assert dataset.path.with_name("shop.duckdb.wal").exists()
    assert count(dataset.path) == 1_001


COUNT_AT_THE_END = """
end = os._exit
def count(status):
    held = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            held += os.readlink(f"/proc/self/fd/{number}") == f"{live} (deleted)"
        except FileNotFoundError:
            pass
    live.with_name("held").write_text(str(held))
    end(status)
os._exit = count
"""


def test_the_old_file_is_held_to_the_end_and_never_closed(dataset: Dataset, steps: Callable[[str], None]) -> None:
    """By DuckDB with its lock, and by the descriptor that makes it unreadable."""
    steps(COUNT_AT_THE_END)
    assert optimize(dataset).skipped is None
    assert dataset.path.with_name("held").read_text() == "2"


def test_whoever_opened_the_old_file_and_locks_it_too_late_is_refused(dataset: Dataset) -> None:
    """DuckDB opens a file and then asks for its lock: between the two, the path can get another file."""
    late = os.open(dataset.path, os.O_RDWR)
    try:
        assert os.pread(late, 4, 8) == b"DUCK"
        assert optimize(dataset).skipped is None
        assert os.fstat(late).st_nlink == 0
        with pytest.raises(duckdb.IOException, match="not a valid DuckDB database"):
            duckdb.connect(f"/proc/self/fd/{late}")
    finally:
        os.close(late)
    assert count(dataset.path) == 1_000


def test_a_file_with_another_name_is_refused_before_that_name_could_lead_to_an_old_file(dataset: Dataset) -> None:
    other = dataset.path.with_name("other.duckdb")
    other.hardlink_to(dataset.path)
    with pytest.raises(CaptureError, match="hard links"):
        optimize(dataset)
    assert (count(dataset.path), count(other)) == (1_000, 1_000)


def test_a_file_that_is_reached_through_a_link_is_rebuilt_where_it_lies(dataset: Dataset, tmp_path: Path) -> None:
    link = tmp_path / "link.duckdb"
    link.symlink_to(dataset.path)
    size = dataset.path.stat().st_size
    assert optimize(Dataset("shop", "duckdb", link)).skipped is None
    assert link.is_symlink()
    assert dataset.path.stat().st_size < size


# --- what dies, or does not fit


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_it_leaves_a_whole_file_and_the_next_run_finishes(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = digest(dataset.path)
    with monkeypatch.context() as patch:
        patch.setattr(duckdb_optimize, "_CHILD", CHILD.replace("{code}", f"after({step!r}, die)"))
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(CaptureError, match="ended with -9"):
            optimize(dataset)
    assert rebuild_folder(dataset.path).exists()
    assert (digest(dataset.path) == before) == (step != "_replace")
    assert count(dataset.path) == 1_000
    assert optimize(dataset).skipped == ("nothing_to_do" if step == "_replace" else None)
    assert names(dataset) == {"shop.duckdb"}


@pytest.mark.parametrize("step", ["_build", "_settle"])
def test_the_rebuilding_process_ends_when_its_parent_is_killed(dataset: Dataset, step: str) -> None:
    before = digest(dataset.path)
    paused = Paused(dataset, step)
    paused.child.kill()
    paused.child.communicate(timeout=20)
    # Only now does the lock come free, and "go" is never said.
    assert optimize(dataset).skipped is None
    assert digest(dataset.path) != before
    assert count(dataset.path) == 1_000
    assert names(dataset) == {"shop.duckdb"}


def test_a_full_disk_leaves_the_file_as_it_was(dataset: Dataset, file_size_limit: Callable[[int], None]) -> None:
    with duckdb.connect(str(dataset.path)) as connection:
        connection.execute("create table more as select hash(range) a from range(100000)")
    before = digest(dataset.path)
    file_size_limit(300_000)
    with pytest.raises(CaptureError):
        optimize(dataset)
    file_size_limit(-1)
    assert digest(dataset.path) == before
    assert names(dataset) == {"shop.duckdb"}
    assert optimize(dataset).skipped is None


def test_what_is_not_a_duckdb_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "live.duckdb"
    with pytest.raises(LiveDatabaseMissing):
        optimize(Dataset("shop", "duckdb", path))
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"no database" * 1_000)
    with pytest.raises(UnsupportedLiveDatabase):
        optimize(Dataset("shop", "duckdb", path))
    path.write_bytes(b"\0" * 8 + b"DUCK" + b"\0" * 20_000)
    with pytest.raises(UnsupportedLiveDatabase, match="does not open"):
        optimize(Dataset("shop", "duckdb", path))


def test_a_file_that_is_half_used_is_left_alone(dataset: Dataset, steps: Callable[[str], None]) -> None:
    with duckdb.connect(str(dataset.path)) as connection:
        connection.execute("create table used as select hash(range) a, hash(range + 1) b from range(150000)")
    inode = dataset.path.stat().st_ino
    steps("rebuild._build = None")
    answer: Any = optimize(dataset)
    assert answer.skipped == "nothing_to_do"
    assert 0 < answer.figures["free_bytes_before"] <= answer.figures["bytes_before"] / 2
    assert dataset.path.stat().st_ino == inode
