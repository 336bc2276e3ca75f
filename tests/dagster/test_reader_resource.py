"""All steps of a run read one snapshot of a dataset, in whatever process; and what the run itself published."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa
import pytest

from snapshot_assets.assets import LiveDatabase, snapshot_asset
from snapshot_assets.errors import NotLoaded, SnapshotMissing
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.resources import SnapshotIOManager, SnapshotReaderResource, SnapshotStoreResource
from snapshot_assets.resources.run_reads import Chosen, RunReads


class Shop:
    """A dataset of one number, which anybody may publish at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.orders = Dataset("orders", "duckdb", folder / "orders.duckdb")
        self.store = SnapshotStoreResource(url=str(folder / "store"), wait=30.0, retry_for=1.0)

    def publish(self, value: int) -> None:
        """As another run does it, or no run at all."""
        with self.store.open_publisher() as publisher, publisher.writing(self.orders) as writing:
            with writing.connect() as con:
                _fill(con, value)
            writing.publish()

    def read(self, reader: Any) -> int:
        """The number that is read."""
        return int(reader.follow("orders", refresh=False).query("select v from orders")["v"][0].as_py())


def _fill(con: duckdb.DuckDBPyConnection, value: int) -> None:
    con.execute(f"create or replace table orders as select {value}::bigint as v")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def step(name: str, body: Callable[[Any], None], *deps: Any) -> dg.AssetsDefinition:
    """An asset whose body gets an open reader of its own."""

    @dg.asset(name=name, deps=list(deps))
    def asset(snapshots: SnapshotReaderResource) -> None:
        with snapshots.open_reader() as reader:
            body(reader)

    return asset


class TestOneSnapshotForARun:
    def test_steps_go_on_with_what_the_first_one_found(self, shop: Shop, instance: dg.DagsterInstance) -> None:
        shop.publish(1)
        read: list[int] = []

        def first(reader: Any) -> None:
            read.append(shop.read(reader))
            shop.publish(2)

        one = step("one", first)
        two = step("two", lambda reader: read.append(shop.read(reader)), one)
        resources = {"snapshots": SnapshotReaderResource(store=shop.store)}
        result = dg.materialize([one, two], resources=resources, instance=instance)
        assert read == [1, 1]
        said = [
            event.dagster_event.message
            for event in instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
            if event.dagster_event and "reads snapshot" in (event.dagster_event.message or "")
        ]
        incarnation = shop.store.open_store().head("orders").incarnation
        assert said == [
            f"This run reads snapshot 0 of file://{shop.store.url}/heads/orders.json (incarnation {incarnation})."
        ]
        dg.materialize([two], resources=resources, instance=instance)
        assert read == [1, 1, 2]

    def test_newest_means_the_newest_of_each_step(self, shop: Shop, instance: dg.DagsterInstance) -> None:
        shop.publish(1)
        read: list[int] = []

        def first(reader: Any) -> None:
            read.append(shop.read(reader))
            shop.publish(2)
            read.append(shop.read(reader))

        one = step("one", first)
        two = step("two", lambda reader: read.append(shop.read(reader)), one)
        newest = SnapshotReaderResource(store=shop.store, consistency="newest")
        dg.materialize([one, two], resources={"snapshots": newest}, instance=instance)
        assert read == [1, 2, 2]

    def test_what_the_run_publishes_moves_it_on_and_what_others_publish_does_not(
        self, shop: Shop, instance: dg.DagsterInstance
    ) -> None:
        shop.publish(1)
        read: list[int] = []
        before = step("before", lambda reader: read.append(shop.read(reader)))

        @snapshot_asset(shop.orders, deps=[before])
        def orders(live: LiveDatabase) -> None:
            with live.connect() as con:
                _fill(con, 2)

        def other(reader: Any) -> None:
            shop.publish(3)
            read.append(shop.read(reader))

        after = step("after", other, orders)
        later = step("later", lambda reader: read.append(shop.read(reader)), after)
        resources = {"snapshots": SnapshotReaderResource(store=shop.store), "snapshot_store": shop.store}
        dg.materialize([before, orders, after, later], resources=resources, instance=instance)
        assert read == [1, 2, 2]

    def test_inputs_and_readers_of_a_run_see_the_same(self, shop: Shop, instance: dg.DagsterInstance) -> None:
        shop.publish(1)
        read: list[int] = []

        def first(reader: Any) -> None:
            read.append(shop.read(reader))
            shop.publish(2)

        one = step("one", first)

        @dg.asset(deps=[one])
        def two(orders: pa.Table) -> None:
            read.append(orders["v"][0].as_py())

        resources = {
            "snapshots": SnapshotReaderResource(store=shop.store),
            "io_manager": SnapshotIOManager(store=shop.store, directory=str(shop.folder)),
        }
        external = dg.AssetSpec("orders")
        dg.materialize([external, one, two], resources=resources, instance=instance)
        assert read == [1, 1]

    def test_a_resumed_run_goes_on_with_what_the_failed_one_read(
        self, shop: Shop, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop.publish(1)
        (shop.folder / "resumed_definitions.py").write_text(_RESUMED)
        monkeypatch.syspath_prepend(str(shop.folder))
        import resumed_definitions  # type: ignore[import-not-found]

        job = dg.reconstructable(resumed_definitions.make_job)
        failed = dg.execute_job(job, instance)
        assert not failed.success
        shop.publish(2)
        resume = dg.ReexecutionOptions.from_failure(failed.run_id, instance)
        assert dg.execute_job(job, instance, reexecution_options=resume).success
        whole = dg.ReexecutionOptions(parent_run_id=failed.run_id)
        assert dg.execute_job(job, instance, reexecution_options=whole).success
        assert (shop.folder / "read").read_text().split() == ["one:1", "two:1", "one:2", "two:2"]

    def test_each_step_process_reads_the_same(
        self, shop: Shop, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop.publish(1)
        (shop.folder / "process_definitions.py").write_text(_PROCESSES)
        monkeypatch.syspath_prepend(str(shop.folder))
        monkeypatch.chdir(shop.folder)
        import process_definitions  # type: ignore[import-not-found]

        assert dg.execute_job(dg.reconstructable(process_definitions.make_job), instance).success
        told = dict(line.split(":") for line in (shop.folder / "read").read_text().split())
        assert set(told.values()) == {"1"}
        assert len(told) == 3
        assert str(os.getpid()) not in told
        assert len(shop.store.open_store().head("orders").snapshots) == 2


_RESUMED = """
from pathlib import Path
import dagster as dg
from snapshot_assets.resources import SnapshotReaderResource, SnapshotStoreResource

home = Path(__file__).parent

def note(name, snapshots):
    with snapshots.open_reader() as reader:
        value = reader.follow("orders", refresh=False).query("select v from orders")["v"][0].as_py()
    with (home / "read").open("a") as file:
        file.write(f"{name}:{value}\\n")

@dg.asset
def one(snapshots: SnapshotReaderResource) -> None:
    note("one", snapshots)

@dg.asset(deps=[one])
def two(snapshots: SnapshotReaderResource) -> None:
    if not (home / "failed").exists():
        (home / "failed").touch()
        raise RuntimeError
    note("two", snapshots)

def make_job():
    defs = dg.Definitions(
        assets=[one, two],
        jobs=[dg.define_asset_job("resumed", [one, two], executor_def=dg.in_process_executor)],
        resources={"snapshots": SnapshotReaderResource(store=SnapshotStoreResource(url=str(home / "store")))},
    )
    return defs.resolve_job_def("resumed")
"""

_PROCESSES = """
import os
from pathlib import Path
import dagster as dg
from snapshot_assets import Dataset, Publisher, SnapshotStore
from snapshot_assets.resources import SnapshotReaderResource, SnapshotStoreResource

home = Path(__file__).parent

def note(snapshots):
    with snapshots.open_reader() as reader:
        value = reader.follow("orders", refresh=False).query("select v from orders")["v"][0].as_py()
    with (home / "read").open("a") as file:
        file.write(f"{os.getpid()}:{value}\\n")

@dg.asset
def one(snapshots: SnapshotReaderResource) -> None:
    note(snapshots)
    with Publisher(SnapshotStore.open(str(home / "store")), wait=30) as publisher:
        with publisher.writing(Dataset("orders", "duckdb", home / "orders.duckdb")) as writing:
            with writing.connect() as con:
                con.execute("create or replace table orders as select 2::bigint as v")
            writing.publish()

@dg.asset(deps=[one])
def two(snapshots: SnapshotReaderResource) -> None:
    note(snapshots)

@dg.asset(deps=[one])
def three(snapshots: SnapshotReaderResource) -> None:
    note(snapshots)

def make_job():
    executor = dg.multiprocess_executor.configured({"max_concurrent": 2, "start_method": {"forkserver": {}}})
    store = SnapshotStoreResource(url=str(home / "store"))
    defs = dg.Definitions(
        assets=[one, two, three],
        jobs=[dg.define_asset_job("processes", [one, two, three], executor_def=executor)],
        resources={"snapshots": SnapshotReaderResource(store=store, data_dir=str(home / "copies"))},
    )
    return defs.resolve_job_def("processes")
"""


class TestAgreement:
    """Steps agree, whoever asks first and whatever each of them finds."""

    @staticmethod
    def run(shop: Shop, instance: dg.DagsterInstance) -> dg.DagsterRun:
        resources = {"snapshots": SnapshotReaderResource(store=shop.store)}
        return dg.materialize([step("nothing", lambda _: None)], instance=instance, resources=resources).dagster_run

    @pytest.fixture
    def reads(self, shop: Shop, instance: dg.DagsterInstance) -> Callable[[], RunReads]:
        run = self.run(shop, instance)
        return lambda: RunReads(instance, run)

    def test_many_that_ask_at_once_and_find_different_snapshots_agree(self, reads: Callable[[], RunReads]) -> None:
        together = threading.Barrier(8)

        def ask(number: int) -> Chosen | None:
            together.wait(30)
            return reads().choose("s3://a/heads/orders.json", lambda: Chosen(number, "INCARNATION"))

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(8)))
        assert len(set(answers)) == 1

    def test_datasets_and_stores_are_told_apart(self, reads: Callable[[], RunReads]) -> None:
        for number, url in enumerate(("s3://a/heads/x.json", "s3://b/heads/x.json", "s3://a b/heads/y.json")):
            chosen = Chosen(number, "I")
            assert reads().choose(url, partial(Chosen, number, "I")) == chosen
            assert reads().choose(url, lambda: Chosen(99, "I")) == chosen

    def test_the_newest_that_a_run_published_counts_whoever_told_of_it_last(
        self, shop: Shop, instance: dg.DagsterInstance
    ) -> None:
        """Of two steps that publish one dataset, the one that was first may be the last to be recorded."""
        url = "s3://a/heads/shop.json"

        def published(*snapshot_ids: int) -> dg.DagsterRun:
            @dg.op(out=dg.Out(dg.Nothing))
            def publish(context) -> None:  # type: ignore[no-untyped-def]
                for number in snapshot_ids:
                    metadata: dict[str, Any] = {"dagster/uri": url, "snapshot/id": number}
                    context.log_event(dg.AssetMaterialization(f"table_{number}", metadata=metadata))

            @dg.job
            def publishing() -> None:
                publish()

            return publishing.execute_in_process(instance=instance).dagster_run

        def newest() -> Chosen:
            pytest.fail("the run has published")

        run = published(8, 7)
        assert RunReads(instance, run).choose(url, newest) == Chosen(8, None)
        # A step that had published before it failed says so again, and another one had published after it.
        tags = {"dagster/is_resume_retry": "true"}
        resumed = published(7)._replace(parent_run_id=run.run_id, root_run_id=run.run_id, tags=tags)
        assert RunReads(instance, resumed).choose(url, newest) == Chosen(8, None)

    def test_nothing_is_settled_while_nothing_is_published(self, reads: Callable[[], RunReads]) -> None:
        assert reads().choose("s3://a/heads/orders.json", lambda: None) is None
        assert reads().choose("s3://a/heads/orders.json", lambda: Chosen(0, "I")) == Chosen(0, "I")


@contextmanager
def opened(shop: Shop, reads: RunReads) -> Iterator[Any]:
    """A reader as a step of a run gets it."""
    resource = SnapshotReaderResource(store=shop.store)
    resource._run_reads = reads
    with resource.open_reader() as reader:
        yield reader


class TestReader:
    def test_outside_of_a_run_the_newest_is_read_also_when_it_is_followed_again(self, shop: Shop) -> None:
        shop.publish(1)
        with SnapshotReaderResource(store=shop.store).open_reader() as reader:
            assert shop.read(reader) == 1
            shop.publish(2)
            assert shop.read(reader) == 2

    def test_pins_win_over_everything(self, shop: Shop, instance: dg.DagsterInstance) -> None:
        for value in (1, 2, 3):
            shop.publish(value)
        read: list[int] = []
        one = step("one", lambda reader: read.append(shop.read(reader)))
        pinned = SnapshotReaderResource(store=shop.store, pins={"orders": 1})
        dg.materialize([one], resources={"snapshots": pinned}, instance=instance)
        assert read == [2]

    def test_a_snapshot_that_was_removed_or_is_of_another_life_is_named_with_what_to_do(
        self, shop: Shop, instance: dg.DagsterInstance
    ) -> None:
        for value in range(6):
            shop.publish(value)
        reads = RunReads(instance, TestAgreement.run(shop, instance))
        maintenance = Maintenance(shop.store.open_store())

        def read() -> int:
            with opened(shop, reads) as reader:
                return shop.read(reader)

        assert read() == 5
        maintenance.rollback("orders", 1)
        assert read() == 5
        for value in range(6, 9):
            shop.publish(value)
        assert read() == 5
        maintenance.cleanup(["orders"], keep=3, grace=0, confirm=True)
        with pytest.raises(SnapshotMissing, match="snapshot 5 of 'orders', which this run reads") as caught:
            read()
        assert "Launch a new run" in caught.value.hint

    def test_a_dataset_that_was_made_anew_is_not_taken_for_the_one_that_a_run_reads(
        self, shop: Shop, instance: dg.DagsterInstance
    ) -> None:
        shop.publish(1)
        reads = RunReads(instance, TestAgreement.run(shop, instance))
        with opened(shop, reads) as reader:
            assert shop.read(reader) == 1
        maintenance = Maintenance(shop.store.open_store())
        maintenance.drop("orders", confirm=True)
        maintenance.recreate("orders")
        shop.publish(2)
        with (
            opened(shop, reads) as reader,
            pytest.raises(SnapshotMissing, match="which this run reads"),
        ):
            shop.read(reader)

    def test_nothing_published_is_not_loaded(self, shop: Shop) -> None:
        with SnapshotReaderResource(store=shop.store).open_reader() as reader, pytest.raises(NotLoaded):
            shop.read(reader)

    def test_readers_that_are_open_at_once_share_a_data_dir_and_the_next_one_fetches_nothing(self, shop: Shop) -> None:
        shop.publish(1)
        resource = SnapshotReaderResource(store=shop.store, data_dir=str(shop.folder / "copies"))
        with resource.open_reader() as one, resource.open_reader() as two:
            assert one.data_dir != two.data_dir
            assert shop.read(one) == shop.read(two) == 1
        with resource.open_reader() as again:
            assert shop.read(again) == 1
            assert again.data_dir == one.data_dir
            assert again.status()["orders"].swaps == ()
        assert sorted(path.name for path in (shop.folder / "copies").iterdir()) == ["reader-0", "reader-1"]

    def test_a_kept_copy_does_not_keep_a_changed_schema_from_being_read(self, shop: Shop) -> None:
        shop.publish(1)
        resource = SnapshotReaderResource(store=shop.store, data_dir=str(shop.folder / "copies"))
        with resource.open_reader() as reader:
            assert shop.read(reader) == 1
        with shop.store.open_publisher() as publisher, publisher.writing(shop.orders) as writing:
            with writing.connect() as con:
                con.execute("create or replace table orders as select 'text' as w")
            writing.publish(allow_schema_change=True)
        with resource.open_reader() as reader:
            # The newest is read, not what lies there.
            assert reader.follow("orders", refresh=False).query("select w from orders")["w"].to_pylist() == ["text"]
