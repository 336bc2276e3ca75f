"""Snapshot assets: what a run does, what it shows, and what it never does twice."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from snapshot_assets import asset_metadata
from snapshot_assets.assets import LiveDatabase, build_snapshot_asset, publishing, snapshot_asset
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.errors import (
    ConfigurationError,
    LiveDatabaseBusy,
    NotFound,
    StoreUnavailable,
    UnsupportedLiveDatabase,
)
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset, StagedCopy, Validator
from snapshot_assets.model.head import Head
from snapshot_assets.model.manifest import Manifest, manifest_key
from snapshot_assets.publish.validators import NotNull, RowCountAtLeast
from snapshot_assets.resources import SnapshotReaderResource, SnapshotStoreResource
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.servers import S3Server

DAYS = dg.DailyPartitionsDefinition("2013-01-01", end_date="2013-02-01")


@pytest.fixture
def orders(tmp_path: Path) -> Dataset:
    return Dataset("orders", "duckdb", tmp_path / "orders.duckdb")


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStoreResource:
    return SnapshotStoreResource(url=str(tmp_path / "store"), wait=30.0)


def _fill(live: LiveDatabase, rows: int) -> None:
    with live.connect() as con:
        con.execute("create or replace table orders (id bigint not null, note varchar)")
        con.execute(f"insert into orders select range, 'note ' || range from range({rows})")


def _orders_asset(orders: Dataset, rows: int = 3, **args: Any) -> dg.AssetsDefinition:
    @snapshot_asset(orders, **args)
    def fill(live: LiveDatabase) -> None:
        """Three orders."""
        _fill(live, rows)

    return fill


def _materialize(
    asset: dg.AssetsDefinition, store: SnapshotStoreResource, **args: Any
) -> tuple[dg.ExecuteInProcessResult, Mapping[str, Any]]:
    result = dg.materialize([asset], resources={"snapshot_store": store}, **args)
    [event, *_] = result.asset_materializations_for_node(asset.op.name)
    return result, {name: value.value for name, value in event.metadata.items()}


def _head(store: SnapshotStoreResource, name: str = "orders") -> Head:
    return store.open_store(read_only=True).head(name)


def _manifest(store: SnapshotStoreResource, name: str = "orders") -> Manifest:
    opened = store.open_store(read_only=True)
    head = opened.head(name)
    entry = head.current
    assert entry is not None
    return read_content(opened.objects, name, head.incarnation, entry.operation_id, entry.manifest_digest).manifest


class TestMaterialization:
    def test_metadata_tells_everything_about_the_snapshot(self, orders: Dataset, store: SnapshotStoreResource) -> None:
        _, metadata = _materialize(_orders_asset(orders), store)
        head = _head(store)
        [entry] = head.snapshots
        root = f"file://{store.url}"
        columns = metadata["dagster/column_schema"].columns
        assert [(column.name, column.type, column.constraints.nullable) for column in columns] == [
            ("id", "int64", False),
            ("note", "string", True),
        ]
        assert metadata["dagster/row_count"] == 3
        assert metadata["dagster/uri"] == f"{root}/heads/orders.json"
        assert metadata["dagster/table_name"] == "orders.main.orders"
        assert metadata["snapshot/id"] == 0
        assert metadata["snapshot/generation"] == 1
        assert metadata["snapshot/outcome"] == "published"
        assert metadata["snapshot/operation_id"] == entry.operation_id
        assert metadata["snapshot/content_digest"] == entry.content_digest
        assert metadata["snapshot/data_bytes"] == entry.data_bytes > 0
        assert metadata["snapshot/uploaded_bytes"] == entry.uploaded_bytes > 0
        assert metadata["snapshot/reused_share"] == 0.0
        assert metadata["snapshot/capture_seconds"] > 0
        assert metadata["snapshot/publish_seconds"] > 0
        assert metadata["snapshot/row_counts"] == {"orders": 3}
        assert "Published as snapshot 0" in metadata["snapshot/summary"]
        assert "| orders | 3 |" in metadata["snapshot/summary"]
        assert metadata["snapshot/url"] == f"{root}/{manifest_key('orders', head.incarnation, entry.operation_id)}"
        assert set(metadata) == {
            "dagster/column_schema", "dagster/row_count", "dagster/uri", "dagster/table_name", "snapshot/id",
            "snapshot/generation", "snapshot/outcome", "snapshot/operation_id", "snapshot/content_digest",
            "snapshot/data_bytes", "snapshot/uploaded_bytes", "snapshot/reused_share", "snapshot/capture_seconds",
            "snapshot/publish_seconds", "snapshot/row_counts", "snapshot/summary", "snapshot/url",
        }  # fmt: skip

    def test_the_run_is_named_in_the_snapshot(self, orders: Dataset, store: SnapshotStoreResource) -> None:
        result, _ = _materialize(_orders_asset(orders), store)
        [entry] = _head(store).snapshots
        assert entry.summary["dagster.run_id"] == result.run_id
        assert entry.summary["dagster.asset_key"] == "orders"

    def test_the_data_version_is_the_content_digest(self, orders: Dataset, store: SnapshotStoreResource) -> None:
        result, metadata = _materialize(_orders_asset(orders), store)
        [event] = result.asset_materializations_for_node("orders")
        assert event.tags is not None
        assert event.tags["dagster/data_version"] == metadata["snapshot/content_digest"]

    def test_an_unchanged_publish_keeps_snapshot_and_data_version(
        self, orders: Dataset, store: SnapshotStoreResource
    ) -> None:
        first, _ = _materialize(_orders_asset(orders), store)
        second, metadata = _materialize(build_snapshot_asset(orders), store)
        assert metadata["snapshot/outcome"] == "unchanged"
        assert metadata["snapshot/id"] == 0
        assert metadata["snapshot/uploaded_bytes"] == 0
        assert metadata["snapshot/reused_share"] == 1.0
        versions = {
            (event.tags or {})["dagster/data_version"]
            for result in (first, second)
            for event in result.asset_materializations_for_node("orders")
        }
        assert len(versions) == 1
        assert len(_head(store).snapshots) == 1

    def test_several_tables_are_shown_as_table_and_column(self, orders: Dataset, store: SnapshotStoreResource) -> None:
        @snapshot_asset(orders)
        def two_tables(live: LiveDatabase) -> None:
            with live.connect() as con:
                con.execute("create table b as select 1::integer as x")
                con.execute("create table a as select 'text' as x, 2.5::double as y union all select 'more', 1")

        _, metadata = _materialize(two_tables, store)
        assert [column.name for column in metadata["dagster/column_schema"].columns] == ["a.x", "a.y", "b.x"]
        assert metadata["dagster/table_name"] == "orders.main"
        assert metadata["dagster/row_count"] == 3
        assert metadata["snapshot/row_counts"] == {"a": 2, "b": 1}

    def test_a_sqlite_database_that_something_else_built_is_published(
        self, tmp_path: Path, store: SnapshotStoreResource
    ) -> None:
        import sqlite3

        planes = Dataset("planes", "sqlite", tmp_path / "planes.sqlite")

        @dg.asset
        def loader() -> None:
            con = sqlite3.connect(planes.path)
            con.execute("create table planes (tail text not null, seats integer)")
            con.execute("insert into planes values ('N1', 100), ('N2', null)")
            con.commit()
            con.close()

        published = build_snapshot_asset(planes, deps=[loader], group_name="fleet")
        result = dg.materialize([loader, published], resources={"snapshot_store": store})
        [event] = result.asset_materializations_for_node("planes")
        assert event.metadata["dagster/row_count"].value == 2
        assert published.asset_deps[dg.AssetKey("planes")] == {dg.AssetKey("loader")}

    def test_a_snapshot_can_be_read_in_a_run(self, orders: Dataset, store: SnapshotStoreResource) -> None:
        rows: list[Any] = []

        @dg.asset(deps=["orders"])
        def downstream(snapshots: SnapshotReaderResource) -> None:
            with snapshots.open_reader() as reader:
                table = reader.follow("orders", refresh=False).query("select id from orders order by id")
                rows.extend(table.column("id").to_pylist())

        dg.materialize(
            [_orders_asset(orders), downstream],
            resources={"snapshot_store": store, "snapshots": SnapshotReaderResource(store=store)},
        )
        assert rows == [0, 1, 2]

    def test_credentials_may_come_from_dagster_aws(
        self, orders: Dataset, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dagster_aws.s3 import S3Resource

        monkeypatch.setenv("LAKE_SECRET", s3_server.secret_access_key)
        s3 = S3Resource(
            endpoint_url=s3_server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=s3_server.access_key_id,
            aws_secret_access_key=dg.EnvVar("LAKE_SECRET"),
        )
        store = SnapshotStoreResource(url=s3_url, s3=s3)
        _, metadata = _materialize(_orders_asset(orders), store)
        assert metadata["dagster/uri"] == f"{s3_url}/heads/orders.json"
        assert SnapshotStore.open(s3_url, s3_server.options, read_only=True).head("orders").current_snapshot_id == 0


class TestBody:
    def test_the_body_gets_what_any_asset_gets(self, orders: Dataset, store: SnapshotStoreResource) -> None:
        seen: dict[str, Any] = {}

        @dg.asset
        def upstream() -> int:
            return 5

        @snapshot_asset(orders, name="shop_orders", tags={"team": "shop"})
        def body(
            context: dg.AssetExecutionContext, upstream: int, config: Rows, other: Other, live: LiveDatabase
        ) -> dict[str, Any]:
            seen.update(asset=context.asset_key.to_user_string(), upstream=upstream, word=other.word)
            _fill(live, config.rows)
            return {"loaded": config.rows, "snapshot/id": "the publish has the last word"}

        result = dg.materialize(
            [upstream, body],
            resources={"snapshot_store": store, "other": Other(word="hello")},
            run_config={"ops": {"shop_orders": {"config": {"rows": 7}}}},
        )
        [event] = result.asset_materializations_for_node("shop_orders")
        assert seen == {"asset": "shop_orders", "upstream": 5, "word": "hello"}
        assert event.metadata["loaded"].value == 7
        assert event.metadata["snapshot/id"].value == 0
        assert event.metadata["dagster/row_count"].value == 7

    def test_required_resource_keys_work_too(self, orders: Dataset, store: SnapshotStoreResource) -> None:
        seen: list[str] = []

        @snapshot_asset(orders, required_resource_keys={"other"})
        def body(context: dg.AssetExecutionContext, live: LiveDatabase) -> None:
            seen.append(context.resources.other.word)
            _fill(live, 1)

        assert dg.materialize([body], resources={"snapshot_store": store, "other": Other(word="hi")}).success
        assert seen == ["hi"]

    def test_the_body_may_ask_for_the_store_itself(self, orders: Dataset, store: SnapshotStoreResource) -> None:
        seen: list[str] = []

        @snapshot_asset(orders)
        def body(snapshot_store: SnapshotStoreResource, live: LiveDatabase) -> None:
            seen.append(snapshot_store.url)
            _fill(live, 1)

        assert _materialize(body, store)[0].success
        assert seen == [store.url]

    def test_a_materialize_result_is_merged(self, orders: Dataset, store: SnapshotStoreResource) -> None:
        spec = dg.AssetCheckSpec("own", asset="orders")

        @snapshot_asset(orders, check_specs=[spec])
        def body(live: LiveDatabase) -> dg.MaterializeResult[Any]:
            _fill(live, 1)
            check = dg.AssetCheckResult(passed=False, check_name="own", severity=dg.AssetCheckSeverity.WARN)
            return dg.MaterializeResult(metadata={"mine": 1}, check_results=[check], tags={"by": "me"})

        result, metadata = _materialize(body, store)
        [event] = result.asset_materializations_for_node("orders")
        assert metadata["mine"] == 1
        assert (event.tags or {})["by"] == "me"
        assert [(check.check_name, check.passed) for check in result.get_asset_check_evaluations()] == [("own", False)]

    def test_a_body_that_returns_data_publishes_nothing(self, orders: Dataset, store: SnapshotStoreResource) -> None:
        @snapshot_asset(orders)
        def body(live: LiveDatabase) -> list[int]:
            _fill(live, 1)
            return [1, 2, 3]

        with pytest.raises(dg.Failure, match="returned a list"):
            dg.materialize([body], resources={"snapshot_store": store})
        assert not store.open_store(read_only=True).heads()

    def test_a_body_that_fails_publishes_nothing_and_frees_the_dataset(
        self, orders: Dataset, store: SnapshotStoreResource
    ) -> None:
        @snapshot_asset(orders)
        def body(live: LiveDatabase) -> None:
            _fill(live, 1)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            dg.materialize([body], resources={"snapshot_store": store})
        assert not store.open_store(read_only=True).heads()
        assert _materialize(_orders_asset(orders), store)[0].success

    def test_a_body_that_yields_or_awaits_is_refused_when_it_is_declared(self, orders: Dataset) -> None:
        with pytest.raises(ConfigurationError, match="async or yields"):

            @snapshot_asset(orders)
            def body(live: LiveDatabase) -> Any:
                yield 1


class Rows(dg.Config):
    rows: int = 1


class Other(dg.ConfigurableResource[Any]):
    word: str


class TestDefinition:
    def test_what_could_never_be_captured_is_refused_when_it_is_declared(self, tmp_path: Path) -> None:
        (tmp_path / "orders.csv").write_text("id,name\n" * 100)
        with pytest.raises(UnsupportedLiveDatabase, match=r"orders\.csv"):
            build_snapshot_asset(Dataset("orders", "duckdb", tmp_path / "orders.csv"))
        with pytest.raises(ConfigurationError, match="no_such_option"):
            build_snapshot_asset(Dataset("orders", "duckdb", tmp_path / "orders", options={"no_such_option": 1}))

    def test_it_looks_like_what_it_is(self, orders: Dataset) -> None:
        asset = _orders_asset(orders, group_name="shop", owners=["team:data"], kinds={"s3"})
        [spec] = asset.specs
        assert spec.key == dg.AssetKey("orders")
        assert spec.kinds == {"duckdb", "s3"}
        assert spec.group_name == "shop"
        assert spec.owners == ["team:data"]
        assert spec.description == "Three orders."
        assert spec.metadata["snapshot/dataset"] == "orders"
        assert asset.op.pool == "snapshot_orders"
        [spec] = build_snapshot_asset(orders).specs
        assert spec.description == f"Publishes the duckdb database `{orders.path}`."

    def test_partitioned_assets_are_backfilled_in_one_run_unless_told_otherwise(self, orders: Dataset) -> None:
        assert _orders_asset(orders).backfill_policy is None
        assert _orders_asset(orders, partitions_def=DAYS).backfill_policy == dg.BackfillPolicy.single_run()
        several = dg.BackfillPolicy.multi_run(2)
        assert _orders_asset(orders, partitions_def=DAYS, backfill_policy=several).backfill_policy == several

    def test_validators_are_blocking_checks(self, tmp_path: Path) -> None:
        def no_gaps(staged: StagedCopy) -> str | None:
            """Ids follow each other."""
            return None if staged.tables else "no table"

        validators: list[Validator] = [no_gaps, "select 1 where false", NotNull("orders", "id", "note")]
        dataset = Dataset("orders", "duckdb", tmp_path / "x.duckdb", validators=validators)
        specs = list(_orders_asset(dataset, key_prefix="shop").check_specs)
        assert [(spec.name, spec.blocking) for spec in specs] == [
            ("no_gaps", True),
            ("sql", True),
            ("not_null", True),
        ]
        assert specs[0].description == "Ids follow each other."
        assert specs[2].description == "No value of the columns may be null. Asked for: table orders; columns id, note."
        assert specs[0].asset_key == dg.AssetKey(["shop", "orders"])


class TestPartitions:
    def test_a_backfill_of_many_days_is_one_publish_that_names_them(
        self, orders: Dataset, store: SnapshotStoreResource
    ) -> None:
        asset = _by_day(orders)
        tags = {
            "dagster/asset_partition_range_start": "2013-01-03",
            "dagster/asset_partition_range_end": "2013-01-07",
        }
        result = dg.materialize([asset], resources={"snapshot_store": store}, tags=tags)
        events = result.asset_materializations_for_node("orders")
        days = [f"2013-01-0{day}" for day in range(3, 8)]
        assert [event.partition for event in events] == days
        assert {event.metadata["snapshot/id"].value for event in events} == {0}
        assert len(_head(store).snapshots) == 1
        assert list(_manifest(store).partition_keys) == days

    def test_one_day_after_another_makes_a_snapshot_each(self, orders: Dataset, store: SnapshotStoreResource) -> None:
        asset = _by_day(orders)
        for day in ("2013-01-01", "2013-01-02"):
            dg.materialize([asset], resources={"snapshot_store": store}, partition_key=day)
            assert list(_manifest(store).partition_keys) == [day]
        assert [entry.row_count for entry in _head(store).snapshots] == [1, 2]

    def test_runs_at_the_same_time_wait_for_each_other(self, orders: Dataset, store: SnapshotStoreResource) -> None:
        asset = _by_day(orders)
        results: list[bool] = []

        def run(day: str) -> None:
            made = dg.materialize([asset], resources={"snapshot_store": store}, partition_key=day)
            results.append(made.success)

        threads = [threading.Thread(target=run, args=(f"2013-01-0{day}",)) for day in range(1, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert results == [True, True, True]
        assert [entry.row_count for entry in _head(store).snapshots] == [1, 2, 3]


def _by_day(orders: Dataset) -> dg.AssetsDefinition:
    @snapshot_asset(orders, partitions_def=DAYS)
    def by_day(context: dg.AssetExecutionContext, live: LiveDatabase) -> None:
        with live.connect() as con:
            con.execute("create table if not exists orders (day date)")
            con.executemany("insert into orders values (?)", [[day] for day in context.partition_keys])

    return by_day


class TestOnce:
    def test_a_step_that_is_retried_after_it_published_does_nothing_again(
        self, orders: Dataset, store: SnapshotStoreResource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[int] = []
        failures = [StoreUnavailable("the network went away right after the publish")]

        @snapshot_asset(orders, retry_policy=dg.RetryPolicy(max_retries=1))
        def body(live: LiveDatabase) -> None:
            calls.append(1)
            _fill(live, len(calls))

        def show(*args: Any) -> Any:
            if failures:
                raise failures.pop()
            return asset_metadata.materialization_metadata(*args)

        monkeypatch.setattr(publishing, "materialization_metadata", show)
        _, metadata = _materialize(body, store)
        assert metadata["snapshot/outcome"] == "already_published"
        assert metadata["snapshot/id"] == 0
        assert metadata["dagster/row_count"] == 1
        assert len(calls) == 1
        assert len(_head(store).snapshots) == 1

    def test_a_check_of_its_own_that_is_not_made_again_does_not_fail_the_step(
        self, orders: Dataset, store: SnapshotStoreResource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failures = [StoreUnavailable("the network went away right after the publish")]
        spec = dg.AssetCheckSpec("own", asset="orders", blocking=True)

        @snapshot_asset(orders, check_specs=[spec], retry_policy=dg.RetryPolicy(max_retries=1))
        def body(live: LiveDatabase) -> dg.MaterializeResult[Any]:
            _fill(live, 1)
            return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=True, check_name="own")])

        def show(*args: Any) -> Any:
            if failures:
                raise failures.pop()
            return asset_metadata.materialization_metadata(*args)

        monkeypatch.setattr(publishing, "materialization_metadata", show)
        result, metadata = _materialize(body, store)
        assert metadata["snapshot/outcome"] == "already_published"
        [check] = result.get_asset_check_evaluations()
        assert (check.check_name, check.passed, check.severity) == ("own", False, dg.AssetCheckSeverity.WARN)
        assert check.description == (
            "It did not run: this step published snapshot 0 before, and a step that has published does nothing again."
        )

    def test_a_run_that_is_executed_again_does_nothing_again(
        self,
        tmp_path: Path,
        store: SnapshotStoreResource,
        instance: dg.DagsterInstance,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        module = tmp_path / "shop_definitions.py"
        module.write_text(_SHOP)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("SHOP_HOME", str(tmp_path))
        import shop_definitions  # type: ignore[import-not-found]

        job = dg.reconstructable(shop_definitions.make_job)
        first = dg.execute_job(job, instance)
        again = dg.ReexecutionOptions(parent_run_id=first.run_id)
        second = dg.execute_job(job, instance, reexecution_options=again)
        third = dg.execute_job(job, instance)
        assert first.success
        assert second.success
        assert third.success
        assert (tmp_path / "calls").read_text() == "xx"
        assert [entry.row_count for entry in _head(store).snapshots] == [1, 2]


_SHOP = """
import os
from pathlib import Path
import dagster as dg
from snapshot_assets import Dataset
from snapshot_assets.assets import snapshot_asset
from snapshot_assets.resources import SnapshotStoreResource

home = Path(os.environ["SHOP_HOME"])

@snapshot_asset(Dataset("orders", "duckdb", home / "orders.duckdb"))
def orders(live):
    with (home / "calls").open("a") as calls:
        calls.write("x")
    with live.connect() as con:
        con.execute("create table if not exists orders (id integer)")
        con.execute("insert into orders values (1)")

def make_job():
    defs = dg.Definitions(
        assets=[orders],
        jobs=[dg.define_asset_job("shop", [orders], executor_def=dg.in_process_executor)],
        resources={"snapshot_store": SnapshotStoreResource(url=str(home / "store"))},
    )
    return defs.resolve_job_def("shop")
"""


class TestChecks:
    def test_passed_validators_are_passed_checks(self, tmp_path: Path, store: SnapshotStoreResource) -> None:
        dataset = Dataset("orders", "duckdb", tmp_path / "o.duckdb", validators=[RowCountAtLeast(2)])
        result, _ = _materialize(_orders_asset(dataset), store)
        assert _checks(result) == [("row_count_at_least", True)]

    def test_a_failed_validator_is_a_failed_check_and_publishes_nothing(
        self, tmp_path: Path, store: SnapshotStoreResource, instance: dg.DagsterInstance
    ) -> None:
        validators: list[Validator] = [
            RowCountAtLeast(2),
            "select id, note from orders where id > 1",
            RowCountAtLeast(99),
        ]
        dataset = Dataset("orders", "duckdb", tmp_path / "o.duckdb", validators=validators)
        asset = _orders_asset(dataset, retry_policy=dg.RetryPolicy(max_retries=3))
        downstream_runs: list[int] = []

        @dg.asset(deps=[asset])
        def downstream() -> None:
            downstream_runs.append(1)

        result = dg.materialize(
            [asset, downstream], resources={"snapshot_store": store}, instance=instance, raise_on_error=False
        )
        assert not result.success
        assert _checks(result) == [("row_count_at_least", True), ("sql", False), ("row_count_at_least_2", False)]
        evaluations = result.get_asset_check_evaluations()
        assert all(one.blocking and one.severity == dg.AssetCheckSeverity.ERROR for one in evaluations)
        assert [one.description for one in evaluations] == [
            None,
            "1 row where none may be: (2, 'note 2').",
            "3 rows, at least 99 are asked for.",
        ]
        assert {name: value.value for name, value in evaluations[1].metadata.items()} == {
            "check/consequence": "Nothing was published: readers go on with the snapshot that they serve.",
            "check/hint": "Repair the data, or change the validator.",
        }
        assert not evaluations[0].metadata
        assert not result.asset_materializations_for_node("orders")
        assert not downstream_runs
        [failure] = result.get_step_failure_events()
        assert failure.step_failure_data.user_failure_data is not None
        assert failure.step_failure_data.user_failure_data.metadata["error"].value == "ValidationFailed"
        with pytest.raises(NotFound):
            _head(store)

    def test_a_good_snapshot_stays_current_when_the_next_one_is_refused(
        self, tmp_path: Path, store: SnapshotStoreResource
    ) -> None:
        dataset = Dataset("orders", "duckdb", tmp_path / "o.duckdb", validators=[RowCountAtLeast(2)])
        _materialize(_orders_asset(dataset, rows=5), store)
        refused = dg.materialize(
            [_orders_asset(dataset, rows=1)], resources={"snapshot_store": store}, raise_on_error=False
        )
        assert not refused.success
        assert _head(store).current_snapshot_id == 0
        assert _head(store).generation == 1

    def test_a_refused_publish_leaves_the_store_as_it_was(self, tmp_path: Path, store: SnapshotStoreResource) -> None:
        def objects() -> dict[str, str]:
            listed = store.open_store(read_only=True).objects.list("")
            return {one.key: one.token for one in listed if not one.key.startswith("leases/")}

        dataset = Dataset("orders", "duckdb", tmp_path / "o.duckdb", validators=[RowCountAtLeast(2)])
        _materialize(_orders_asset(dataset, rows=5), store)
        before = objects()
        refused = dg.materialize(
            [_orders_asset(dataset, rows=1)], resources={"snapshot_store": store}, raise_on_error=False
        )
        assert not refused.success
        assert objects() == before
        assert [left.name for left in tmp_path.glob(".snapshot-assets/orders/staging/*")] == [".lock"]
        assert _materialize(_orders_asset(dataset, rows=6), store)[1]["snapshot/id"] == 1

    def test_a_validator_that_can_not_run_is_a_failed_check(self, tmp_path: Path, store: SnapshotStoreResource) -> None:
        dataset = Dataset("orders", "duckdb", tmp_path / "o.duckdb", validators=["select nothing from nowhere"])
        result = dg.materialize([_orders_asset(dataset)], resources={"snapshot_store": store}, raise_on_error=False)
        [check] = result.get_asset_check_evaluations()
        assert not check.passed
        assert str(check.description).startswith("It could not be run: ")

    def test_a_step_that_is_tried_again_before_its_validators_ran_reports_them_once(
        self, tmp_path: Path, store: SnapshotStoreResource
    ) -> None:
        dataset = Dataset("orders", "duckdb", tmp_path / "o.duckdb", validators=[RowCountAtLeast(1)])
        busy = [LiveDatabaseBusy("somebody has it open")]

        @snapshot_asset(dataset, retry_policy=dg.RetryPolicy(max_retries=1))
        def body(live: LiveDatabase) -> None:
            if busy:
                raise busy.pop()
            _fill(live, 3)

        result, _ = _materialize(body, store)
        assert result.success
        assert not busy
        assert _checks(result) == [("row_count_at_least", True)]

    def test_a_step_that_ends_before_its_validators_ran_fails_with_that_alone(
        self, tmp_path: Path, store: SnapshotStoreResource
    ) -> None:
        dataset = Dataset("orders", "duckdb", tmp_path / "o.duckdb", validators=[RowCountAtLeast(1)])

        @snapshot_asset(dataset)
        def body(live: LiveDatabase) -> None:
            raise LiveDatabaseBusy("somebody has it open")

        result = dg.materialize([body], resources={"snapshot_store": store}, raise_on_error=False)
        [failure] = result.get_step_failure_events()
        data = failure.step_failure_data.user_failure_data
        assert data is not None
        assert data.description == ("somebody has it open. Close the other connection, or raise the capture timeout.")
        assert not _checks(result)

    def test_a_validator_that_a_published_snapshot_never_met_is_not_shown_as_passed(
        self, tmp_path: Path, store: SnapshotStoreResource, instance: dg.DagsterInstance
    ) -> None:
        path = tmp_path / "o.duckdb"
        first = Dataset("orders", "duckdb", path, validators=[RowCountAtLeast(1)])
        more = Dataset("orders", "duckdb", path, validators=[RowCountAtLeast(1), RowCountAtLeast(99)])
        run_id = "00000000-0000-4000-8000-000000000001"
        with (
            store.open_publisher() as publisher,
            publisher.writing(first, idempotency_key=f"dagster:{run_id}:orders") as writing,
        ):
            _fill(LiveDatabase(writing), 3)
            writing.publish()
        result = _run_as(build_snapshot_asset(more), store, instance, run_id)
        assert result.success
        [passed, never] = result.get_asset_check_evaluations()
        assert passed.passed
        assert (never.passed, never.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert never.description == ("It did not run: snapshot 0 was published before, without this validator.")


def _run_as(
    asset: dg.AssetsDefinition, store: SnapshotStoreResource, instance: dg.DagsterInstance, run_id: str
) -> dg.ExecuteInProcessResult:
    """Materialize in a run of a given id."""
    defs = dg.Definitions([asset], resources={"snapshot_store": store}, jobs=[dg.define_asset_job("one", [asset])])
    return defs.resolve_job_def("one").execute_in_process(instance=instance, run_id=run_id)


def _checks(result: dg.ExecuteInProcessResult) -> Sequence[tuple[str, bool]]:
    return [(check.check_name, check.passed) for check in result.get_asset_check_evaluations()]


class TestFailures:
    def test_a_missing_live_database_says_what_to_do(self, orders: Dataset, store: SnapshotStoreResource) -> None:
        with pytest.raises(dg.Failure) as failure:
            dg.materialize([build_snapshot_asset(orders)], resources={"snapshot_store": store})
        assert failure.value.metadata["error"].value == "LiveDatabaseMissing"
        assert failure.value.metadata["hint"].value
        assert failure.value.allow_retries is False

    def test_a_store_that_is_down_can_be_retried(self, orders: Dataset) -> None:
        options = {"endpoint": "http://127.0.0.1:9", "region": "r", "access_key_id": "k", "secret_access_key": "s"}
        down = SnapshotStoreResource(url="s3://bucket/x", options=options, retry_for=0.1)
        with pytest.raises(dg.Failure) as failure:
            dg.materialize([_orders_asset(orders)], resources={"snapshot_store": down})
        assert failure.value.metadata["error"].value == "StoreUnavailable"
        assert failure.value.allow_retries is True

    def test_a_schema_that_readers_may_not_survive_is_refused_until_allowed(
        self, orders: Dataset, store: SnapshotStoreResource
    ) -> None:
        def change(live: LiveDatabase) -> None:
            with live.connect() as con:
                con.execute("create or replace table orders (id varchar)")

        _materialize(_orders_asset(orders), store)
        with pytest.raises(dg.Failure) as failure:
            dg.materialize([snapshot_asset(orders)(change)], resources={"snapshot_store": store})
        assert failure.value.metadata["error"].value == "SchemaChangeRefused"
        allowed = snapshot_asset(orders, allow_schema_change=True)(change)
        assert _materialize(allowed, store)[1]["snapshot/id"] == 1

    def test_a_rollback_is_seen_by_the_next_publish(self, orders: Dataset, store: SnapshotStoreResource) -> None:
        _materialize(_orders_asset(orders, rows=1), store)
        _materialize(_orders_asset(orders, rows=2), store)
        Maintenance(store.open_store()).rollback("orders", 0)
        _, metadata = _materialize(build_snapshot_asset(orders), store)
        assert metadata["snapshot/outcome"] == "published"
        assert metadata["snapshot/id"] == 2
        assert metadata["snapshot/generation"] == 4
