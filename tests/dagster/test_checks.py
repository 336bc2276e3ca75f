"""Checks of what was published: each passes, and fails for each of its reasons; what can not be seen is no pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from snapshot_assets.assets import (
    FreshnessCheck,
    IntegrityCheck,
    ReaderLagCheck,
    RowCountCheck,
    SchemaCheck,
    SnapshotCheck,
    build_snapshot_asset,
    build_snapshot_checks,
    snapshot_asset,
)
from snapshot_assets.assets import checks as checks_module
from snapshot_assets.assets.check_kinds import Finding, Look
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.errors import ConfigurationError
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.announcement import READERS_PREFIX, Announced, Announcement, announcement_key
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import head_key
from snapshot_assets.publish.publisher import Publisher, PublishResult
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.resources import SnapshotStoreResource
from snapshot_assets.store.snapshot_store import SnapshotStore

MINUTE, HOUR = 60.0, 3600.0


@dataclass
class Shop:
    """A dataset that is published without Dagster, and checks of it that are run by Dagster."""

    dataset: Dataset
    resource: SnapshotStoreResource
    instance: dg.DagsterInstance

    @property
    def store(self) -> SnapshotStore:
        return self.resource.open_store()

    def publish(self, *statements: str, **options: Any) -> PublishResult:
        with engine_named(self.dataset.engine).connect_live(self.dataset) as live:
            for statement in statements:
                live.execute(statement)
            live.commit()
        return Publisher(self.store).publish(self.dataset, **options)

    def orders(self, rows: int) -> PublishResult:
        """Publish so many orders."""
        return self.publish(
            "drop table if exists orders",
            "create table orders (id bigint not null, note text)",
            f"insert into orders with recursive n(i) as (select 1 union all select i + 1 from n where i < {rows}) "
            "select i, 'note' from n" if rows else "select 1",
        )  # fmt: skip

    def run(
        self, checks: Sequence[dg.AssetChecksDefinition], selection: dg.AssetSelection | None = None
    ) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            checks,
            selection=selection or dg.AssetSelection.checks(*checks),
            resources={"snapshot_store": self.resource},
            instance=self.instance,
            raise_on_error=False,
        )

    def check(self, check: SnapshotCheck) -> tuple[Finding, dict[str, Any]]:
        """What one check finds, without a run; its metadata as values."""
        look = checks_module._look(self.resource, "orders")
        finding = check.look_at(look) if isinstance(look, Look) else look
        shown = {name: getattr(value, "value", value) for name, value in finding.metadata.items()}
        return finding, shown


@pytest.fixture
def shop(tmp_path: Path, instance: dg.DagsterInstance) -> Shop:
    dataset = Dataset("orders", "sqlite", tmp_path / "orders.sqlite")
    return Shop(dataset, SnapshotStoreResource(url=str(tmp_path / "store"), retry_for=0.1), instance)


@pytest.fixture
def duckdb_shop(shop: Shop, tmp_path: Path) -> Shop:
    return replace(shop, dataset=Dataset("orders", "duckdb", tmp_path / "orders.duckdb"))


def _packs(shop: Shop) -> Iterator[Path]:
    return (path for path in Path(shop.resource.url, "data").rglob("*") if path.is_file() and "pack" in path.name)


class TestIntegrity:
    @pytest.mark.parametrize("level", ["sizes", "digest", "restore"])
    def test_a_whole_snapshot_passes(self, shop: Shop, level: Any) -> None:
        published = shop.orders(100)
        finding, shown = shop.check(IntegrityCheck(level=level))
        assert finding.passed
        assert finding.text.startswith("Snapshot 0 is whole: ")
        assert shown["check/snapshot"] == "0"
        assert shown["check/data_bytes"] == published.data_bytes
        assert (shown["check/read_bytes"] > 0) == (level != "sizes")
        assert set(shown) == {"check/snapshot", "check/data_bytes", "check/read_bytes", "check/seconds"}

    def test_a_lance_snapshot_is_opened_by_lance(self, shop: Shop, tmp_path: Path) -> None:
        lance = replace(shop, dataset=Dataset("orders", "lance", tmp_path / "orders.lance"))
        with engine_named("lance").connect_live(lance.dataset) as live:
            live.write(pa.table({"id": [1, 2, 3]}), "create")
        Publisher(lance.store).publish(lance.dataset)
        finding, _ = lance.check(IntegrityCheck())
        assert finding.passed
        assert "opened with lance" in finding.text

    def test_a_damaged_object_is_found(self, duckdb_shop: Shop) -> None:
        duckdb_shop.orders(1000)
        [pack] = _packs(duckdb_shop)
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 0xFF
        pack.write_bytes(data)
        assert duckdb_shop.check(IntegrityCheck(level="sizes"))[0].passed
        finding, shown = duckdb_shop.check(IntegrityCheck())
        assert not finding.passed
        assert finding.text.startswith("Snapshot 0 is damaged: ")
        assert shown["check/error"] == "SnapshotDamaged"
        assert "Roll back" in shown["check/hint"]

    def test_a_missing_object_is_found_by_its_size(self, shop: Shop) -> None:
        shop.orders(10)
        for pack in _packs(shop):
            pack.unlink()
        finding, shown = shop.check(IntegrityCheck(level="sizes"))
        assert not finding.passed
        assert "is missing" in finding.text
        assert shown["check/error"] == "SnapshotDamaged"

    def test_what_readers_are_to_serve_is_checked_and_not_the_newest(self, shop: Shop) -> None:
        shop.orders(10)
        shop.orders(20)
        Maintenance(shop.store).rollback("orders", 0)
        assert shop.check(IntegrityCheck())[1]["check/snapshot"] == "0"


class TestSchema:
    def test_the_first_snapshot_passes(self, shop: Shop) -> None:
        shop.orders(1)
        finding, shown = shop.check(SchemaCheck())
        assert finding.passed
        assert finding.text == "Snapshot 0 is the first that is listed; there is none before it."
        assert not shown

    def test_the_same_schema_passes(self, duckdb_shop: Shop) -> None:
        duckdb_shop.orders(1)
        duckdb_shop.orders(2)
        finding, shown = duckdb_shop.check(SchemaCheck())
        assert finding.passed
        assert finding.text == "The schema of snapshot 1 is that of snapshot 0."
        assert shown == {"check/snapshot": "1", "check/change": "identical"}

    def test_a_column_that_was_added_fails_unless_widening_is_allowed(self, duckdb_shop: Shop) -> None:
        duckdb_shop.orders(1)
        duckdb_shop.publish("alter table orders add column price double")
        finding, shown = duckdb_shop.check(SchemaCheck())
        assert not finding.passed
        assert finding.text == "The schema of snapshot 1 is wider than that of snapshot 0."
        assert shown["check/change"] == "widening"
        assert "Left: snapshot 0. Right: snapshot 1." in shown["check/difference"]
        assert "> price double" in shown["check/difference"]
        assert duckdb_shop.check(SchemaCheck(policy="widening"))[0].passed

    def test_a_type_that_changed_fails_under_either_policy(self, duckdb_shop: Shop) -> None:
        duckdb_shop.orders(1)
        duckdb_shop.publish("alter table orders alter column id type varchar", allow_schema_change=True)
        for policy in ("strict", "widening"):
            finding, shown = duckdb_shop.check(SchemaCheck(policy=policy))
            assert not finding.passed
            assert finding.text == "The schema of snapshot 1 does not fit that of snapshot 0."
            assert shown["check/change"] == "incompatible"
            assert "id int64" in shown["check/difference"]

    def test_a_contract_is_compared_instead(self, duckdb_shop: Shop) -> None:
        duckdb_shop.orders(1)
        asked = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("note", pa.string())])
        finding, _ = duckdb_shop.check(SchemaCheck(contract={"orders": asked}))
        assert finding.passed
        assert finding.text == "The schema of snapshot 0 is that of the contract."
        finding, shown = duckdb_shop.check(SchemaCheck(contract={"orders": asked, "items": asked}))
        assert not finding.passed
        assert "table items" in shown["check/difference"]

    def test_after_a_rollback_the_next_snapshot_is_compared_with_the_one_it_followed(self, duckdb_shop: Shop) -> None:
        duckdb_shop.orders(1)
        duckdb_shop.publish("alter table orders add column price double")
        Maintenance(duckdb_shop.store).rollback("orders", 0)
        duckdb_shop.orders(5)
        finding, _ = duckdb_shop.check(SchemaCheck())
        assert finding.text == "The schema of snapshot 2 is that of snapshot 0."

    def test_a_policy_that_is_unknown_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="strict"):
            SchemaCheck(policy="any")  # type: ignore[arg-type]


class TestRowCounts:
    def test_a_first_snapshot_passes_with_its_rows(self, shop: Shop) -> None:
        shop.orders(100)
        finding, shown = shop.check(RowCountCheck())
        assert finding.passed
        assert finding.text == "Snapshot 0 has 100 rows."
        assert shown["check/rows"] == 100
        assert shown["check/compared_with"] == "nothing: it is the first that is listed"
        assert "| orders | - | 100 |  |  |" in shown["check/row_counts"]

    def test_a_drop_beyond_the_bound_fails_and_names_the_table(self, shop: Shop) -> None:
        shop.orders(100)
        shop.orders(50)
        assert shop.check(RowCountCheck(max_drop=0.5))[0].passed
        finding, shown = shop.check(RowCountCheck(max_drop=0.4))
        assert not finding.passed
        assert finding.text == "Snapshot 1: orders fell from 100 to 50 rows, by more than 40%."
        assert shown["check/rows"] == 50
        assert shown["check/compared_with"] == "snapshot 0"
        assert "| orders | 100 | 50 | -50.0% | fell from" in shown["check/row_counts"]

    def test_growth_beyond_the_bound_fails(self, shop: Shop) -> None:
        shop.orders(10)
        shop.orders(30)
        assert shop.check(RowCountCheck())[0].passed
        assert shop.check(RowCountCheck(max_growth=2.0))[0].passed
        finding, _ = shop.check(RowCountCheck(max_growth=1.5))
        assert not finding.passed
        assert finding.text == "Snapshot 1: orders grew from 10 to 30 rows, by more than 150%."

    def test_a_change_of_just_the_bound_passes(self, shop: Shop) -> None:
        shop.orders(10)
        shop.orders(3)
        assert shop.check(RowCountCheck(max_drop=0.7))[0].passed
        shop.orders(100)
        shop.orders(115)
        assert shop.check(RowCountCheck(max_growth=0.15))[0].passed

    def test_too_few_rows_fail_also_in_the_first_snapshot(self, shop: Shop) -> None:
        shop.orders(0)
        finding, _ = shop.check(RowCountCheck())
        assert not finding.passed
        assert finding.text == "Snapshot 0: orders has 0 rows, at least 1 are asked for."
        assert shop.check(RowCountCheck(min_rows=0))[0].passed

    def test_each_table_is_compared_and_one_that_is_gone_is_named(self, shop: Shop) -> None:
        shop.publish("create table a as select 1 as x", "create table b as select 1 as x union all select 2")
        shop.publish("drop table a", allow_schema_change=True)
        finding, shown = shop.check(RowCountCheck())
        assert not finding.passed
        assert finding.text == "Snapshot 1: a is gone."
        assert {name: shown[name] for name in shown if name.startswith("check/rows")} == {
            "check/rows": 2,
            "check/rows/a": 0,
            "check/rows/b": 2,
        }
        assert shop.check(RowCountCheck(tables=["b"]))[0].passed
        assert not shop.check(RowCountCheck(tables=["c"]))[0].passed

    @pytest.mark.parametrize("bound", [{"min_rows": -1}, {"max_drop": 1.1}, {"max_growth": -0.1}])
    def test_a_bound_that_makes_no_sense_is_refused(self, bound: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match=next(iter(bound))):
            RowCountCheck(**bound)


class TestFreshness:
    def test_new_content_passes_and_old_content_fails(self, shop: Shop) -> None:
        shop.orders(1)
        finding, shown = shop.check(FreshnessCheck(max_age=timedelta(hours=1)))
        assert finding.passed
        assert set(shown) == {"check/snapshot", "check/published_at", "check/age_seconds"}
        _commit_earlier(shop, 3 * HOUR)
        finding, shown = shop.check(FreshnessCheck(max_age=2 * HOUR))
        assert not finding.passed
        assert finding.text == "Snapshot 0 was published 3 h ago; at most 2 h is asked for."
        assert shown["check/age_seconds"] >= 3 * HOUR

    def test_an_unchanged_publish_makes_no_content_younger(self, shop: Shop) -> None:
        shop.orders(1)
        _commit_earlier(shop, 3 * HOUR)
        assert Publisher(shop.store).publish(shop.dataset).outcome == "unchanged"
        assert not shop.check(FreshnessCheck(max_age=2 * HOUR))[0].passed
        shop.orders(2)
        assert shop.check(FreshnessCheck(max_age=2 * HOUR))[0].passed

    def test_an_age_that_makes_no_sense_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="max_age"):
            FreshnessCheck(max_age=-1)

    def test_a_freshness_policy_is_passed_to_the_asset(self, shop: Shop) -> None:
        policy = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=26))
        [spec] = build_snapshot_asset(shop.dataset, freshness_policy=policy).specs
        assert spec.freshness_policy == policy


def _commit_earlier(shop: Shop, seconds: float) -> None:
    """Let all that was committed have been committed that much earlier."""
    head, token = shop.store.read_head("orders")
    ms = round(seconds * 1000)
    entries = tuple(replace(entry, committed_at_ms=entry.committed_at_ms - ms) for entry in head.snapshots)
    assert head.current_since_ms is not None
    earlier = replace(head, snapshots=entries, current_since_ms=head.current_since_ms - ms)
    shop.store.objects.write_if_match(head_key("orders"), earlier.to_bytes(), token)


@pytest.fixture
def follow(shop: Shop, tmp_path: Path) -> Iterator[Callable[..., SnapshotReader]]:
    """Start a real reader that follows the orders, and wait until it has announced what it serves."""
    readers: list[SnapshotReader] = []

    def start(**settings: Any) -> SnapshotReader:
        reader = SnapshotReader(
            SnapshotStore.open(shop.resource.url, read_only=False),
            tmp_path / f"reader-{len(readers)}",
            ReaderSettings(refresh_interval=None, **settings),
        )
        readers.append(reader)
        reader.follow("orders", refresh=False)
        _wait_until(lambda: len(Maintenance(shop.store).readers()) == len(readers))
        return reader

    yield start
    for reader in readers:
        reader.close()


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _announced(shop: Shop) -> Announced:
    [reader] = Maintenance(shop.store).readers()
    return reader.announcement.datasets["orders"]


class TestReaderLag:
    def test_nobody_to_lag_passes_unless_readers_are_asked_for(self, shop: Shop) -> None:
        shop.orders(1)
        finding, shown = shop.check(ReaderLagCheck())
        assert finding.passed
        assert finding.text == "No reader of it has announced itself."
        assert shown == {
            "check/generation": "1",
            "check/readers_alive": 0,
            "check/readers_failing": 0,
            "check/generations_behind": 0,
        }
        finding, _ = shop.check(ReaderLagCheck(min_readers=1))
        assert not finding.passed
        assert finding.text == "0 readers are alive, at least 1 are asked for."

    def test_a_reader_that_keeps_up_passes_and_one_that_is_behind_fails(
        self, shop: Shop, follow: Callable[..., SnapshotReader]
    ) -> None:
        shop.orders(1)
        reader = follow(cohort="canary")
        finding, shown = shop.check(ReaderLagCheck(min_readers=1, max_behind=0))
        assert finding.passed
        assert finding.text == "All 1 live readers keep up with generation 1."
        assert "| canary |  | snapshot 0, generation 1 | up to date |" in shown["check/readers"]

        shop.orders(2)
        shop.orders(3)
        finding, shown = shop.check(ReaderLagCheck())
        assert finding.passed
        assert shown["check/generations_behind"] == 2
        finding, shown = shop.check(ReaderLagCheck(max_behind=1))
        assert not finding.passed
        assert "1 of 1 readers do not keep up: " in finding.text
        assert "2 generations behind, for " in finding.text
        assert shown["check/readers_failing"] == 1
        _commit_earlier(shop, 20 * MINUTE)
        finding, shown = shop.check(ReaderLagCheck())
        assert not finding.passed
        assert "2 generations behind, for 20" in shown["check/readers"]
        assert shop.check(ReaderLagCheck(max_age=HOUR))[0].passed

        reader.refresh("orders")
        _wait_until(lambda: _announced(shop).generation == 3)
        assert shop.check(ReaderLagCheck(max_behind=0))[0].passed

    def test_a_reader_that_is_stuck_fails_with_its_reason_before_its_time(
        self, shop: Shop, follow: Callable[..., SnapshotReader]
    ) -> None:
        shop.orders(1)
        reader = follow(announce_interval=0.5)
        shop.publish("alter table orders add column price real")
        with pytest.raises(Exception, match="price"):
            reader.refresh("orders")
        _wait_until(lambda: _announced(shop).last_error is not None)
        finding, shown = shop.check(ReaderLagCheck(max_age=HOUR))
        assert not finding.passed
        assert "1 generation behind" in finding.text
        assert "SchemaIncompatible" in finding.text
        assert len([line for line in shown["check/readers"].splitlines() if line.startswith("|")]) == 3

    def test_a_reader_that_could_only_load_an_older_snapshot_fails(
        self, shop: Shop, follow: Callable[..., SnapshotReader]
    ) -> None:
        shop.orders(1)
        before = set(_packs(shop))
        shop.orders(2)
        for pack in set(_packs(shop)) - before:
            pack.unlink()
        follow(on_damage="fallback")
        finding, _ = shop.check(ReaderLagCheck(max_age=HOUR))
        assert not finding.passed
        assert "1 generation behind" in finding.text
        assert "SnapshotDamaged" in finding.text

    def test_a_pin_of_the_reader_is_no_lag(self, shop: Shop, follow: Callable[..., SnapshotReader]) -> None:
        shop.orders(1)
        shop.orders(2)
        follow(pins={"orders": 0})
        finding, shown = shop.check(ReaderLagCheck(max_behind=0))
        assert finding.passed
        assert "held by a pin of its own" in shown["check/readers"]

    def test_a_dead_reader_is_named_and_fails_only_where_that_is_asked_for(self, shop: Shop) -> None:
        shop.orders(1)
        _announce(shop, "gone", Announced("loaded", shop.store.head("orders").incarnation, 1, 0))
        finding, shown = shop.check(ReaderLagCheck())
        assert finding.passed
        assert finding.text == "All 0 live readers keep up with generation 1; 1 are dead."
        assert "| gone |" in shown["check/readers"]
        assert "dead: silent for " in shown["check/readers"]
        assert not shop.check(ReaderLagCheck(fail_on_dead=True))[0].passed
        assert not shop.check(ReaderLagCheck(min_readers=1))[0].passed

    @pytest.mark.parametrize(
        ("said", "state"),
        [
            (Announced("waiting"), "2 generations behind"),
            (Announced("loaded", "01ARZ3NDEKTSV4RRFFQ69G5FAV", 1, 0), "1 generation behind"),
            (Announced("loaded", None, 9, 1), "ahead of the head, at 2: the store went back"),
        ],
        ids=["serves nothing", "an earlier incarnation", "ahead"],
    )
    def test_what_readers_may_announce(self, shop: Shop, said: Announced, state: str) -> None:
        shop.orders(1)
        shop.orders(2)
        if said.generation == 9:
            said = replace(said, incarnation=shop.store.head("orders").incarnation)
        _announce(shop, "r", said, alive=True)
        finding, _ = shop.check(ReaderLagCheck(max_behind=0))
        assert not finding.passed
        assert state in finding.text

    def test_readers_of_other_datasets_do_not_count(self, shop: Shop) -> None:
        shop.orders(1)
        _announce(shop, "other", Announced("loaded", None, 1, 0), dataset="stock", alive=True)
        assert "check/readers" not in shop.check(ReaderLagCheck(max_behind=0, max_age=0))[1]

    def test_what_can_not_be_understood_is_no_pass(self, shop: Shop) -> None:
        shop.orders(1)
        shop.store.objects.write_if_absent(f"{READERS_PREFIX}x.json", b"{")
        result = shop.run(build_snapshot_checks(shop.dataset, [ReaderLagCheck(), RowCountCheck()]))
        assert not result.success
        assert [one.check_name for one in result.get_asset_check_evaluations()] == ["row_count_change"]
        assert "Delete readers/x.json" in _failure(result)

    @pytest.mark.parametrize("bound", [{"max_age": -1}, {"max_behind": -1}, {"min_readers": -1}])
    def test_a_bound_that_makes_no_sense_is_refused(self, bound: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match=next(iter(bound))):
            ReaderLagCheck(**bound)


def _announce(shop: Shop, reader_id: str, said: Announced, *, dataset: str = "orders", alive: bool = False) -> None:
    announcement = Announcement(reader_id, None, None, 60_000 if alive else 0, 0, {dataset: said})
    shop.store.objects.write_if_absent(announcement_key(reader_id), announcement.to_bytes())
    time.sleep(0.01)


def _failure(result: dg.ExecuteInProcessResult) -> str:
    [event] = result.get_step_failure_events()
    data = event.step_failure_data
    assert data.user_failure_data is not None
    return str(data.user_failure_data.description)


class TestAll:
    def test_the_usual_ones_pass_in_the_run_that_publishes_and_do_not_block(self, shop: Shop) -> None:
        @snapshot_asset(shop.dataset, key=["nyc", "orders"])
        def orders(live: Any) -> None:
            with live.connect() as con:
                con.execute("create table orders as select 1 as id")
                con.commit()

        checks = build_snapshot_checks(orders)
        result = dg.materialize([orders, *checks], resources={"snapshot_store": shop.resource}, instance=shop.instance)
        assert result.success
        assert {(one.asset_key, one.check_name, one.passed) for one in result.get_asset_check_evaluations()} == {
            (dg.AssetKey(["nyc", "orders"]), name, True)
            for name in ("snapshot_integrity", "schema_drift", "row_count_change", "reader_lag")
        }
        specs = [spec for one in checks for spec in one.check_specs]
        assert not any(spec.blocking for spec in specs)
        assert all(str(spec.description).endswith(".") for spec in specs)
        assert [one.op.name for one in checks] == [
            "nyc__orders__schema_drift_and_2_more",
            "nyc__orders__snapshot_integrity",
        ]

    def test_each_can_be_run_alone(self, shop: Shop) -> None:
        shop.orders(3)
        checks = build_snapshot_checks(shop.dataset)
        key = dg.AssetCheckKey(dg.AssetKey("orders"), "row_count_change")
        result = shop.run(checks, selection=dg.AssetSelection.checks(key))
        assert result.success
        assert [one.check_name for one in result.get_asset_check_evaluations()] == ["row_count_change"]

    def test_what_was_never_published_fails_every_check(self, shop: Shop) -> None:
        result = shop.run(build_snapshot_checks("orders", [IntegrityCheck(), FreshnessCheck(max_age=HOUR)]))
        assert result.success
        evaluations = result.get_asset_check_evaluations()
        assert [one.passed for one in evaluations] == [False, False]
        assert "was never published to file://" in str(evaluations[0].description)

    def test_a_dropped_dataset_has_nothing_to_check(self, shop: Shop) -> None:
        shop.orders(1)
        Maintenance(shop.store).drop("orders", confirm=True)
        finding, shown = shop.check(RowCountCheck())
        assert not finding.passed
        assert "'orders' is dropped and has no current snapshot" in finding.text
        assert shown["check/hint"]

    def test_failed_checks_are_shown_with_their_severity_and_findings(self, shop: Shop) -> None:
        shop.orders(100)
        shop.publish("alter table orders add column price real", "delete from orders where id > 10")
        _announce(shop, "r", Announced("waiting", last_error="StoreUnavailable: no answer"), alive=True)
        for pack in _packs(shop):
            pack.unlink()
        checks = [
            IntegrityCheck(),
            SchemaCheck(),
            RowCountCheck(severity=dg.AssetCheckSeverity.WARN),
            FreshnessCheck(max_age=0.001),
            ReaderLagCheck(),
        ]
        result = shop.run(build_snapshot_checks("orders", checks))
        assert result.success
        error, warn = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
        found = {one.check_name: one for one in result.get_asset_check_evaluations()}
        assert {name: (one.passed, one.severity) for name, one in found.items()} == {
            "snapshot_integrity": (False, error),
            "schema_drift": (False, warn),
            "row_count_change": (False, warn),
            "freshness": (False, error),
            "reader_lag": (False, error),
        }
        assert all(str(one.description).endswith(".") and "\n" not in str(one.description) for one in found.values())
        for name, key in {
            "schema_drift": "check/difference",
            "row_count_change": "check/row_counts",
            "reader_lag": "check/readers",
        }.items():
            assert isinstance(found[name].metadata[key], dg.MarkdownMetadataValue)
        assert isinstance(found["freshness"].metadata["check/published_at"], dg.TimestampMetadataValue)
        numbers = [
            key
            for one in found.values()
            for key, value in one.metadata.items()
            if isinstance(value.value, int | float) and key != "check/published_at"
        ]
        assert sorted(numbers) == [
            "check/age_seconds",
            "check/generations_behind",
            "check/readers_alive",
            "check/readers_failing",
            "check/rows",
        ]

    def test_a_store_that_does_not_answer_fails_the_step_with_what_to_do(self, shop: Shop) -> None:
        options = {"endpoint": "http://127.0.0.1:9", "region": "r", "access_key_id": "k", "secret_access_key": "s"}
        down = replace(shop, resource=SnapshotStoreResource(url="s3://bucket/x", options=options, retry_for=0.1))
        result = down.run(build_snapshot_checks("orders"))
        assert not result.success
        assert not result.get_asset_check_evaluations()
        for event in result.get_step_failure_events():
            data = event.step_failure_data.user_failure_data
            assert data is not None
            assert data.metadata["error"].value == "StoreUnavailable"
            assert "Check the network" in str(data.description)

    def test_a_damaged_head_is_no_pass(self, shop: Shop) -> None:
        shop.orders(1)
        token = shop.store.heads()["orders"]
        shop.store.objects.write_if_match(head_key("orders"), b"{", token)
        result = shop.run(build_snapshot_checks("orders", [RowCountCheck(), FreshnessCheck(max_age=HOUR)]))
        assert not result.success
        assert not result.get_asset_check_evaluations()
        assert "doctor" in _failure(result)

    def test_two_of_a_kind_and_two_calls_stand_side_by_side(self, shop: Shop) -> None:
        shop.orders(100)
        shop.orders(80)
        warn = RowCountCheck(name="a_tenth_is_gone", max_drop=0.1, severity=dg.AssetCheckSeverity.WARN)
        checks = [
            *build_snapshot_checks("orders", [warn, RowCountCheck(), SchemaCheck()]),
            *build_snapshot_checks("orders", [ReaderLagCheck(), FreshnessCheck(max_age=HOUR)]),
        ]
        result = shop.run(checks)
        assert result.success
        found = {one.check_name: one.passed for one in result.get_asset_check_evaluations()}
        assert found == {
            "a_tenth_is_gone": False,
            "row_count_change": True,
            "schema_drift": True,
            "reader_lag": True,
            "freshness": True,
        }

    def test_they_can_have_a_schedule_of_their_own_and_belong_to_another_asset(self, shop: Shop) -> None:
        daily = dg.AutomationCondition.on_cron("@daily")
        checks = build_snapshot_checks(shop.dataset, asset_key=["a", "b"], automation_condition=daily)
        specs = [spec for one in checks for spec in one.check_specs]
        assert {spec.asset_key for spec in specs} == {dg.AssetKey(["a", "b"])}
        assert {spec.automation_condition for spec in specs} == {daily}

    @pytest.mark.parametrize("checks", [[], [RowCountCheck(), RowCountCheck(max_drop=None)]], ids=["none", "twice"])
    def test_none_and_two_of_one_name_are_refused(self, checks: list[SnapshotCheck]) -> None:
        with pytest.raises(ConfigurationError, match="name"):
            build_snapshot_checks("orders", checks)

    def test_an_asset_that_publishes_no_dataset_is_refused(self) -> None:
        @dg.asset
        def other() -> None: ...

        with pytest.raises(ConfigurationError, match="snapshot_asset"):
            build_snapshot_checks(other)
