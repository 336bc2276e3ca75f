"""Optimizing through a publish: what was rewritten becomes a snapshot, and nothing else ever does."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from snapshot_assets import failpoints
from snapshot_assets.clock import SYSTEM_CLOCK
from snapshot_assets.engines.contract import Optimized
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.engines.sqlite import SQLiteEngine
from snapshot_assets.errors import (
    DatasetSealed,
    LiveDatabaseMissing,
    SidecarUnreadable,
    SnapshotAssetsError,
    ValidationFailed,
    WriterBusy,
)
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.ids import new_operation_id
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import Status
from snapshot_assets.publish.heads import change_head
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.publish.support import audits, check_store

ROWS = 200
WASTED = 200_000


def waste_sql(dataset: Dataset) -> None:
    """A table with few rows, in a file that is mostly free."""
    with engine_named(dataset.engine).connect_live(dataset) as live:
        live.execute("drop table if exists orders")
        live.execute("create table orders (id integer, text text)")
        live.execute("create table ballast (a text, b text)")
        series = f"with recursive n(i) as (select 0 union all select i + 1 from n where i < {WASTED // 10}) "
        live.execute(f"insert into ballast {series} select 'ballast ' || i, 'more ' || (i * 7) from n")
        live.commit()
        live.execute(f"insert into orders {series} select i, 'order ' || i from n where i < {ROWS}")
        live.execute("drop table ballast")
        live.commit()


def waste_duckdb(dataset: Dataset) -> None:
    with engine_named(dataset.engine).connect_live(dataset) as live:
        live.execute(f"create table ballast as select hash(range) a, hash(range + 1) b from range({WASTED})")
        live.execute("checkpoint")
        live.execute(f"create or replace table orders as select range id, 'order ' || range as text from range({ROWS})")
        # DuckDB cuts off by itself what is free at the end of a file.
        live.execute("create table at_the_end as select hash(range) a from range(20_000)")
        live.execute("checkpoint")
        live.execute("drop table ballast")


def waste_lance(dataset: Dataset) -> None:
    with engine_named(dataset.engine).connect_live(dataset) as live:
        rows = pa.table({"id": range(ROWS), "text": [f"order {number}" for number in range(ROWS)]})
        live.write(rows.slice(0, 50), "overwrite" if dataset.path.exists() else "create")
        for start in range(50, ROWS, 50):
            live.write(rows.slice(start, 50))


def waste_cayenne(dataset: Dataset) -> None:
    with engine_named(dataset.engine).connect_live(dataset) as live:
        for numbers in (range(-1, 100), range(100, ROWS)):
            live.append(pa.table({"id": numbers, "text": [f"order {number}" for number in numbers]}))
        live.delete(pc.field("id") < 0)


WASTE: dict[str, Callable[[Dataset], None]] = {
    "cayenne": waste_cayenne,
    "duckdb": waste_duckdb,
    "lance": waste_lance,
    "sqlite": waste_sql,
    "turso": waste_sql,
}
every_engine = pytest.mark.parametrize("engine", sorted(WASTE))


def grow(dataset: Dataset) -> None:
    """One more row."""
    with engine_named(dataset.engine).connect_live(dataset) as live:
        row = pa.table({"id": [ROWS], "text": [f"order {ROWS}"]})
        if dataset.engine == "lance":
            live.write(row)
        elif dataset.engine == "cayenne":
            live.append(row)
        else:
            live.execute(f"insert into orders values ({ROWS}, 'order {ROWS}')")
            live.commit()


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore.open(str(tmp_path / "store"))


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], Dataset]:
    """A dataset whose live database is worth to be rewritten."""

    def make(engine: str) -> Dataset:
        dataset = Dataset("orders", engine, tmp_path / "live" / f"orders.{engine}", tables=["orders"])
        WASTE[engine](dataset)
        return dataset

    return make


def objects(store: SnapshotStore) -> dict[str, str]:
    """Everything in the store but the writer leases, which every writer takes."""
    return {one.key: one.token for one in store.objects.list("") if not one.key.startswith("leases/")}


@every_engine
def test_what_was_rewritten_is_published_smaller_and_a_second_run_changes_nothing(
    store: SnapshotStore, made: Callable[[str], Dataset], tmp_path: Path, engine: str
) -> None:
    dataset = made(engine)
    before = Publisher(store).publish(dataset)
    result = Maintenance(store).optimize(dataset)
    assert (result.dataset, result.outcome, result.skipped) == ("orders", "optimized", None)
    assert result.publish is not None
    assert (result.publish.outcome, result.publish.snapshot_id) == ("published", 1)
    assert result.publish.row_counts == before.row_counts == {"orders": ROWS}
    assert {"optimize", "capture", "upload"} & set(result.seconds) >= {"optimize", "capture"}
    if engine == "lance":
        assert result.figures["fragments_removed"] == 4
    elif engine == "cayenne":
        assert result.figures["deleted_rows_before"] == 1
        assert (result.figures["files_before"], result.figures["files_after"]) == (2, 1)
    else:
        assert result.publish.data_bytes < before.data_bytes / 2
    first, second = store.head("orders").snapshots
    assert second.summary == {"optimize": result.detail}
    assert first.schema_id == second.schema_id
    check_store(store, tmp_path / "scratch")
    seen = objects(store)
    again = Maintenance(store).optimize(dataset)
    assert (again.outcome, again.skipped, again.publish) == ("skipped", "nothing_to_do", None)
    assert again.detail
    assert objects(store) == seen
    assert Publisher(store).publish(dataset).outcome == "unchanged"


@every_engine
def test_a_reader_finds_the_same_rows_in_what_was_rewritten(
    store: SnapshotStore, made: Callable[[str], Dataset], tmp_path: Path, engine: str
) -> None:
    dataset = made(engine)
    Publisher(store).publish(dataset)
    with SnapshotReader(store, tmp_path / "reader") as reader:
        provider = reader.follow("orders", refresh=False)
        query = "select id, text from orders order by id"
        before = provider.query(query)
        Maintenance(store).optimize(dataset)
        assert reader.refresh("orders").outcome == "loaded"
        assert provider.current.snapshot_id == 1
        assert provider.query(query).equals(before)
        assert before.num_rows == ROWS


def test_what_changed_since_the_last_publish_is_published_by_a_rewrite_and_not_by_a_skip(
    store: SnapshotStore, made: Callable[[str], Dataset]
) -> None:
    dataset = made("sqlite")
    Publisher(store).publish(dataset)
    grow(dataset)
    result = Maintenance(store).optimize(dataset)
    assert result.publish is not None
    assert result.publish.row_counts == {"orders": ROWS + 1}
    grow(dataset)
    assert Maintenance(store).optimize(dataset).skipped == "nothing_to_do"
    assert store.head("orders").current_snapshot_id == 1
    assert Publisher(store).publish(dataset).row_counts == {"orders": ROWS + 2}


def test_the_first_snapshot_of_a_dataset_can_come_from_a_rewrite(
    store: SnapshotStore, made: Callable[[str], Dataset]
) -> None:
    dataset = made("sqlite")
    assert Maintenance(store).optimize(dataset).outcome == "optimized"
    assert store.head("orders").current_snapshot_id == 0


def test_a_skip_of_what_was_never_published_makes_no_dataset(
    store: SnapshotStore, made: Callable[[str], Dataset], tmp_path: Path
) -> None:
    dataset = made("sqlite")
    Maintenance(SnapshotStore.open(str(tmp_path / "other"))).optimize(dataset)
    before = objects(store)
    assert Maintenance(store).optimize(dataset).outcome == "skipped"
    assert objects(store) == before
    assert store.heads() == {}


# --- who else is there


def bytes_of(dataset: Dataset) -> bytes:
    return dataset.path.read_bytes()


def test_a_dead_operation_is_settled_first_also_when_there_is_nothing_to_do(
    store: SnapshotStore, made: Callable[[str], Dataset], tmp_path: Path
) -> None:
    dataset = made("sqlite")
    Maintenance(store).optimize(dataset)
    grow(dataset)

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Publisher(store, failpoints=Failpoints({failpoints.PUBLISH_BEFORE_COMMIT: die})).publish(dataset)
    assert list(store.objects.list("recovery/orders/"))
    assert Maintenance(store).optimize(dataset).outcome == "skipped"
    check_store(store, tmp_path / "scratch")
    assert sorted(audits(store).values()) == ["committed", "rolled_back"]


def test_a_live_database_is_not_touched_while_an_operation_can_not_be_understood(
    store: SnapshotStore, made: Callable[[str], Dataset]
) -> None:
    dataset = made("sqlite")
    Publisher(store).publish(dataset)
    store.objects.write_if_absent(f"recovery/orders/{new_operation_id()}.json", b"{}")
    before = bytes_of(dataset)
    with pytest.raises(SidecarUnreadable):
        Maintenance(store).optimize(dataset)
    assert bytes_of(dataset) == before


def test_a_live_database_is_not_touched_when_its_dataset_takes_no_writers(
    store: SnapshotStore, made: Callable[[str], Dataset]
) -> None:
    dataset = made("sqlite")
    Publisher(store).publish(dataset)
    change_head(
        store, "orders", new_operation_id(), lambda head: replace(head, status=Status.SEALED), clock=SYSTEM_CLOCK
    )
    before = bytes_of(dataset)
    with pytest.raises(DatasetSealed):
        Maintenance(store).optimize(dataset)
    assert bytes_of(dataset) == before


def test_another_writer_is_not_disturbed(store: SnapshotStore, made: Callable[[str], Dataset]) -> None:
    dataset = made("sqlite")
    with Publisher(store).writing(dataset) as writing:
        before = bytes_of(dataset)
        with pytest.raises(WriterBusy):
            Maintenance(store).optimize(dataset)
        assert bytes_of(dataset) == before
        writing.publish()


@every_engine
def test_a_missing_live_database_is_not_made(store: SnapshotStore, tmp_path: Path, engine: str) -> None:
    dataset = Dataset("orders", engine, tmp_path / f"orders.{engine}")
    with pytest.raises(LiveDatabaseMissing):
        Maintenance(store).optimize(dataset)
    made = {path.name for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(tmp_path / "store")}
    assert all(name.endswith(".snapshot-assets.lock") for name in made)
    assert store.heads() == {}


# --- what goes wrong


def test_a_validator_looks_at_what_was_rewritten_before_anybody_sees_it(
    store: SnapshotStore, made: Callable[[str], Dataset]
) -> None:
    dataset = made("sqlite")
    Publisher(store).publish(dataset)
    strict = Dataset("orders", "sqlite", dataset.path, validators=["select * from orders where id = 7"])
    before = len(bytes_of(dataset))
    with pytest.raises(ValidationFailed):
        Maintenance(store).optimize(strict)
    assert len(bytes_of(dataset)) < before / 2
    assert store.head("orders").current_snapshot_id == 0
    assert Publisher(store).publish(dataset).snapshot_id == 1


def test_the_publisher_that_is_given_publishes_with_its_settings(
    store: SnapshotStore, made: Callable[[str], Dataset], tmp_path: Path
) -> None:
    dataset = made("sqlite")
    for _ in range(3):
        Publisher(store).publish(dataset, force=True)
    publisher = Publisher(store, max_snapshots=3, staging_dir=tmp_path / "staging")
    Maintenance(store).optimize(dataset, publisher=publisher)
    assert [entry.snapshot_id for entry in store.head("orders").snapshots] == [1, 2, 3]
    assert (tmp_path / "staging" / "orders").is_dir()


KILLED = """
import os, signal, sys
from snapshot_assets import Dataset, Maintenance, Publisher, SnapshotStore
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.failpoints import Failpoints

url, name, engine, path, failpoint = sys.argv[1:]
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
made = type(engine_named(engine))
inner = made.optimize
def optimize(self, dataset, *, timeout):
    done = inner(self, dataset, timeout=timeout)
    assert done.skipped is None, done
    if failpoint == "optimize":
        kill()
    return done
made.optimize = optimize
store = SnapshotStore.open(url)
publisher = Publisher(store, failpoints=Failpoints({failpoint: kill}))
dataset = Dataset(name, engine, path, tables=["orders"])
Maintenance(store).optimize(dataset, publisher=publisher)
"""
EVERY_FAILPOINT = [
    value for name, value in sorted(vars(failpoints).items()) if name.startswith("PUBLISH_") and isinstance(value, str)
]
BEFORE_THE_REWRITE = {failpoints.PUBLISH_AFTER_LEASE, failpoints.PUBLISH_AFTER_RECOVERY}
VISIBLE_AFTER = {failpoints.PUBLISH_AFTER_COMMIT, failpoints.PUBLISH_AFTER_AUDIT, failpoints.PUBLISH_AFTER_RETIRE}


@pytest.mark.parametrize(
    ("engine", "failpoint"),
    [
        *(("sqlite", failpoint) for failpoint in EVERY_FAILPOINT),
        ("duckdb", failpoints.PUBLISH_BEFORE_COMMIT),
        *((engine, "optimize") for engine in sorted(WASTE)),
    ],
)
def test_killed_anywhere_it_leaves_a_whole_live_database_and_a_store_that_the_next_writer_heals(
    store: SnapshotStore, made: Callable[[str], Dataset], tmp_path: Path, engine: str, failpoint: str
) -> None:
    dataset = made(engine)
    Publisher(store).publish(dataset)
    grow(dataset)
    arguments = [store.url.removeprefix("file://"), "orders", engine, str(dataset.path), failpoint]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], timeout=60, check=False, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    visible = failpoint in VISIBLE_AFTER
    assert store.head("orders").current_snapshot_id == (1 if visible else 0)
    again = Maintenance(store).optimize(dataset)
    assert again.outcome == ("optimized" if failpoint in BEFORE_THE_REWRITE else "skipped")
    result = again.publish or Publisher(store).publish(dataset)
    assert (result.outcome, result.snapshot_id) == ("unchanged" if visible else "published", 1)
    assert result.row_counts == {"orders": ROWS + 1}
    check_store(store, tmp_path / "scratch")


# --- Lance


def test_a_published_index_covers_the_rows_that_were_added_after_it_was_built(
    store: SnapshotStore, tmp_path: Path
) -> None:
    dataset = Dataset("orders", "lance", tmp_path / "orders.lance")
    with engine_named("lance").connect_live(dataset) as live:
        live.write(pa.table({"id": range(1_000)}))
        live.dataset.create_scalar_index("id", "BTREE")
        live.write(pa.table({"id": range(1_000, 1_500)}))
        assert live.dataset.stats.index_stats("id_idx")["num_unindexed_rows"] == 500
    assert Maintenance(store).optimize(dataset).outcome == "optimized"
    with SnapshotReader(store, tmp_path / "reader") as reader, reader.follow("orders").connect() as copy:
        told = copy.stats.index_stats("id_idx")
        assert (told["num_unindexed_rows"], told["num_indexed_rows"]) == (0, 1_500)
    assert Maintenance(store).optimize(dataset).skipped == "nothing_to_do"


def test_the_reason_of_a_skip_is_the_engines_own(
    store: SnapshotStore, made: Callable[[str], Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Optimized("blob_columns", "they stay as they are", {"fragments": 7})
    monkeypatch.setattr(SQLiteEngine, "optimize", lambda *_, **__: answer)
    result = Maintenance(store).optimize(made("sqlite"))
    assert (result.outcome, result.skipped, result.detail) == ("skipped", answer.skipped, answer.detail)
    assert (result.figures, result.publish) == ({"fragments": 7}, None)
    assert store.heads() == {}


def test_errors_name_the_dataset(store: SnapshotStore, tmp_path: Path) -> None:
    with pytest.raises(SnapshotAssetsError) as caught:
        Maintenance(store).optimize(Dataset("orders", "duckdb", tmp_path / "orders.duckdb"))
    assert caught.value.dataset == "orders"
