"""What assets return becomes tables of published datasets, whole or not at all; inputs are read from snapshots."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pyarrow as pa
import pytest

from snapshot_assets import asset_metadata
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.errors import StoreUnavailable
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import Head
from snapshot_assets.model.manifest import Manifest
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.resources import SnapshotIOManager, SnapshotReaderResource, SnapshotStoreResource, io_manager
from snapshot_assets.resources.frames import rows_digest

ENGINES = ("duckdb", "sqlite", "turso", "cayenne", "lance")
DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")
REGIONS = dg.StaticPartitionsDefinition(["eu", "us", "o'fallon"])
UTC = dt.UTC
wall = dt.datetime.fromisoformat  # without a zone


@dataclass
class Shop:
    """An IO manager over a store, used as Dagster uses it, without a run around each step."""

    manager: SnapshotIOManager
    folder: Path

    def write(
        self,
        value: object,
        key: str = "orders",
        keys: Sequence[str] = (),
        partitions_def: dg.PartitionsDefinition[Any] | None = None,
        **metadata: Any,
    ) -> Mapping[str, Any]:
        """What a step does that returned the value; the metadata of its materialization."""
        context = dg.OutputContext(
            asset_key=dg.AssetKey(key.split("/")),
            definition_metadata=_named(metadata),
            asset_partitions_def=partitions_def,
            asset_partitions_subset=_subset(partitions_def, keys),
            **_around(),
        )
        self.manager.handle_output(context, value)
        return {name: shown.value for name, shown in context.get_logged_metadata().items()}

    def read(
        self,
        kind: type = pa.Table,
        key: str = "orders",
        keys: Sequence[str] = (),
        partitions_def: dg.PartitionsDefinition[Any] | None = None,
        asked: Mapping[str, Any] | None = None,
        **metadata: Any,
    ) -> Any:
        """What a step gets whose input is annotated so."""
        asset_key = dg.AssetKey(key.split("/"))
        context = dg.InputContext(
            asset_key=asset_key,
            definition_metadata=dict(asked or {}),
            dagster_type=dg.PythonObjectDagsterType(kind) if kind is not object else dg.DagsterType(_anything, "Any"),
            upstream_output=dg.OutputContext(asset_key=asset_key, definition_metadata=_named(metadata), **_around()),
            asset_partitions_def=partitions_def,
            asset_partitions_subset=_subset(partitions_def, keys),
            **_around(),
        )
        return self.manager.load_input(context)

    def rows(self, key: str = "orders", **args: Any) -> list[tuple[Any, ...]]:
        """The rows of a table in their order."""
        return [tuple(row.values()) for row in self.read(pa.Table, key, **args).to_pylist()]

    def head(self, name: str = "orders") -> Head:
        return self.manager.store.open_store(read_only=True).head(name)

    def manifest(self, name: str = "orders") -> Manifest:
        store = self.manager.store.open_store(read_only=True)
        head = store.head(name)
        entry = head.current
        assert entry is not None
        return read_content(store.objects, name, head.incarnation, entry.operation_id, entry.manifest_digest).manifest

    def live(self, name: str = "orders") -> Path:
        return self.folder / f"{name}{io_manager._SUFFIXES[self.manager.engine]}"

    def on_another_host(self) -> Shop:
        """The same store, and a folder in which nothing is yet."""
        folder = self.folder.with_name("other")
        manager = SnapshotIOManager(store=self.manager.store, directory=str(folder), engine=self.manager.engine)
        return Shop(manager, folder)


@cache
def _around() -> dict[str, Any]:
    """What all contexts may share: each that is built by itself makes a Dagster instance."""
    built = dg.build_output_context()
    return {"log_manager": built.log, "resources": built.resources}


def _subset(
    partitions_def: dg.PartitionsDefinition[Any] | None, keys: Sequence[str]
) -> dg.PartitionsSubset[Any] | None:
    return None if partitions_def is None else partitions_def.subset_with_partition_keys(keys)


def _anything(_: object, __: object) -> bool:
    return True


def _named(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("snapshot_", "snapshot/"): value for name, value in metadata.items()}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    made: list[Shop] = []

    def shop(engine: Any = "duckdb", **args: Any) -> Shop:
        store = SnapshotStoreResource(url=str(tmp_path / "store"), wait=30.0, retry_for=1.0)
        live = tmp_path / "live"
        made.append(Shop(SnapshotIOManager(store=store, directory=str(live), engine=engine, **args), live))
        return made[-1]

    yield shop
    for one in made:
        one.manager._opened.close()


@pytest.fixture
def shop(make: Callable[..., Shop]) -> Shop:
    return make()


@pytest.fixture(params=ENGINES)
def any_shop(request: pytest.FixtureRequest, make: Callable[..., Shop]) -> Shop:
    return make(request.param)


def refused(call: Callable[[], object]) -> str:
    """The words of the failure with which a step ends."""
    with pytest.raises(dg.Failure) as caught:
        call()
    return str(caught.value.description)


ORDERS = pa.table({"id": [1, 2, 3], "name": ["a", None, "ü"]})


class TestKinds:
    @pytest.mark.parametrize(
        "value",
        [
            ORDERS,
            ORDERS.to_batches()[0],
            ORDERS.to_reader(),
            ORDERS.to_pandas(),
            pl.DataFrame(ORDERS),
            pl.LazyFrame(ORDERS),
            duckdb.connect().from_arrow(ORDERS),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_tables_of_every_kind_are_written(self, shop: Shop, value: object) -> None:
        shop.write(value)
        assert shop.read().equals(ORDERS)

    @pytest.mark.parametrize("engine", ["duckdb", "sqlite", "lance"])
    def test_an_input_is_of_the_kind_that_it_is_annotated_with(self, make: Callable[..., Shop], engine: str) -> None:
        shop = make(engine)
        shop.write(ORDERS)
        assert shop.read(pa.Table).equals(ORDERS)
        assert shop.read(pa.RecordBatchReader).read_all().equals(ORDERS)
        pd.testing.assert_frame_equal(shop.read(pd.DataFrame), ORDERS.to_pandas())
        assert shop.read(pl.DataFrame).equals(pl.DataFrame(ORDERS))
        assert shop.read(pl.LazyFrame).collect().equals(pl.DataFrame(ORDERS))
        assert shop.read(duckdb.DuckDBPyRelation).filter("id > 1").fetchall() == [(2, None), (3, "ü")]

    def test_a_relation_can_be_used_after_the_snapshot_is_not_the_newest_any_more(self, shop: Shop) -> None:
        shop.write(ORDERS)
        relation = shop.read(duckdb.DuckDBPyRelation)
        reader = shop.read(pa.RecordBatchReader)
        for number in range(4):
            shop.write(ORDERS.slice(0, number))
            assert len(shop.rows()) == number
        assert relation.fetchall() == [(1, "a"), (2, None), (3, "ü")]
        assert reader.read_all().equals(ORDERS)

    def test_an_input_without_an_annotation_is_what_the_settings_say(self, make: Callable[..., Shop]) -> None:
        for kind, expected in (("arrow", pa.Table), ("pandas", pd.DataFrame), ("polars", pl.DataFrame)):
            shop = make(load_as=kind)
            shop.write(ORDERS)
            assert isinstance(shop.read(object), expected)

    def test_other_kinds_are_refused_with_those_that_there_are(self, shop: Shop) -> None:
        assert "a dict" in refused(lambda: shop.write({"id": [1]}))
        assert "returned nothing" in refused(lambda: shop.write(None))
        assert "without columns" in refused(lambda: shop.write(pa.table({})))
        assert "two columns of one name: a, A" in refused(lambda: shop.write(pa.table({"a": [1], "A": [2]})))
        shop.write(ORDERS)
        assert "can not be loaded as list" in refused(lambda: shop.read(list))
        assert "pandas.DataFrame" in refused(lambda: shop.read(list))
        assert len(shop.head().snapshots) == 1

    def test_a_stream_that_breaks_writes_nothing(self, shop: Shop) -> None:
        shop.write(ORDERS)

        def batches() -> Iterator[pa.RecordBatch]:
            yield ORDERS.to_batches()[0]
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            shop.write(pa.RecordBatchReader.from_batches(ORDERS.schema, batches()))
        assert shop.write(ORDERS)["snapshot/outcome"] == "unchanged"

    def test_only_the_columns_that_an_input_names_are_read(self, any_shop: Shop) -> None:
        any_shop.write(ORDERS)
        assert any_shop.read(asked={"columns": ["name"]}).equals(ORDERS.select(["name"]))
        words = refused(lambda: any_shop.read(asked={"columns": ["nope", "id"]}))
        assert "no column nope; there are: id, name" in words


class TestTypes:
    NESTED = pa.table(
        {
            "list": pa.array([[1, 2], None, []], pa.list_(pa.int32())),
            "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}]),
            "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
            "vector": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        }
    )
    PLAIN = pa.table(
        {
            "int": pa.array([1, None, -(2**63)], pa.int64()),
            "float": [1.5, None, -0.0],
            "text": ["", None, "ü\0x"],
            "bytes": [b"", None, b"\xff"],
            "bool": [True, None, False],
            "date": [dt.date(1, 1, 1), None, dt.date(2024, 2, 29)],
            "moment": [wall("2024-01-01 12:30:00.123456"), None, wall("1969-12-31")],
            "instant": pa.array(
                [dt.datetime(2024, 7, 1, 12, tzinfo=UTC), None, dt.datetime(2024, 1, 1, tzinfo=UTC)],
                pa.timestamp("us", "UTC"),
            ),
        }
    )
    EXACT = pa.table(
        {
            "decimal": pa.array([decimal.Decimal("1.10"), None, decimal.Decimal("-99999.99")], pa.decimal128(7, 2)),
            "small": pa.array([1, None, 255], pa.uint8()),
            "big": pa.array([0, None, 2**64 - 1], pa.uint64()),
            "time": pa.array([dt.time(1, 2, 3, 4), None, dt.time()], pa.time64("us")),
            "nanos": pa.array([1, None, 2], pa.timestamp("ns")),
        }
    )

    def test_plain_values_come_back_as_they_were(self, any_shop: Shop) -> None:
        rows = (
            self.PLAIN
            if any_shop.manager.engine != "turso"
            else self.PLAIN.set_column(2, "text", pa.array(["", None, "ü"]))
        )
        any_shop.write(rows)
        assert any_shop.read().equals(rows)
        assert any_shop.write(rows)["snapshot/outcome"] == "unchanged"

    @pytest.mark.parametrize("engine", ["duckdb", "lance", "cayenne"])
    def test_exact_values_come_back_as_they_were(self, make: Callable[..., Shop], engine: str) -> None:
        shop = make(engine)
        shop.write(self.EXACT)
        assert shop.read().equals(self.EXACT)

    def test_nested_values_come_back_as_they_were(self, shop: Shop) -> None:
        shop.write(self.NESTED)
        assert shop.read().equals(self.NESTED)

    def test_categories_come_back_as_what_they_stand_for(self, shop: Shop) -> None:
        shop.write(pd.DataFrame({"c": pd.Categorical(["x", "y", "x"])}))
        shop.write(pl.DataFrame({"c": pl.Series(["z", None, "x"], dtype=pl.Categorical)}))
        assert shop.rows() == [("z",), (None,), ("x",)]

    def test_a_zone_becomes_utc_and_the_instant_stays(self, any_shop: Shop) -> None:
        berlin = pa.array([dt.datetime(2024, 7, 1, 12, tzinfo=UTC)], pa.timestamp("us", "Europe/Berlin"))
        any_shop.write(pa.table({"at": berlin}))
        assert any_shop.read()["at"][0].as_py() == dt.datetime(2024, 7, 1, 12, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("engine", "column", "words"),
        [
            ("duckdb", pa.array([1.5], pa.float16()), "DuckDB can not keep column 'c' of type halffloat"),
            ("duckdb", pa.array([dt.timedelta(1)]), "'c' holds values of type duration[us]"),
            ("duckdb", pa.array([1], pa.time64("ns")), None),
            ("duckdb", pa.nulls(1), "has no type"),
            ("sqlite", pa.array([decimal.Decimal(1)]), "SQLite has nothing to keep column 'c' of type decimal"),
            ("sqlite", pa.array([[1]]), "SQLite has nothing to keep column 'c' of type list"),
            ("sqlite", pa.array([2**63], pa.uint64()), "'c' holds values of type uint64"),
            ("sqlite", pa.array([1], pa.timestamp("ns")), "'c' holds values of type timestamp[ns]"),
            ("sqlite", pa.array([1.0, float("nan")]), "has a NaN"),
            ("turso", pa.array([float("nan")]), "has a NaN"),
            ("lance", pa.nulls(1), "has no type"),
            ("cayenne", pa.array([dt.timedelta(1)]), "'c'"),
        ],
    )
    def test_what_an_engine_can_not_hold_is_refused_and_nothing_is_written(
        self, make: Callable[..., Shop], engine: str, column: pa.Array, words: str | None
    ) -> None:
        shop = make(engine)
        rows = pa.table({"c": column})
        if words is None:
            shop.write(rows)
            assert shop.read().equals(rows)
            return
        assert words in refused(lambda: shop.write(rows))
        assert shop.manager.store.open_store(read_only=True).heads() == {}

    def test_a_column_that_can_not_be_held_leaves_the_table_as_it_was(self, any_shop: Shop) -> None:
        any_shop.write(ORDERS)
        rows = ORDERS.append_column("c", pa.nulls(3))
        refused(lambda: any_shop.write(rows))
        refused(lambda: any_shop.write(rows, snapshot_allow_schema_change=True))
        assert any_shop.write(ORDERS)["snapshot/outcome"] == "unchanged"

    def test_an_empty_frame_keeps_the_columns(self, any_shop: Shop) -> None:
        any_shop.write(ORDERS.slice(0, 0))
        assert any_shop.read().equals(ORDERS.slice(0, 0))
        any_shop.write(ORDERS)
        any_shop.write(ORDERS.slice(0, 0))
        assert any_shop.read().schema.names == ["id", "name"]
        assert any_shop.rows() == []


class TestWriting:
    def test_the_same_rows_are_not_published_again_and_other_ones_are(self, any_shop: Shop) -> None:
        assert any_shop.write(ORDERS)["snapshot/outcome"] == "published"
        assert any_shop.write(ORDERS)["snapshot/outcome"] == "unchanged"
        assert any_shop.write(ORDERS.slice(0, 2))["snapshot/outcome"] == "published"
        assert any_shop.write(ORDERS.slice(0, 3))["snapshot/outcome"] == "published"
        turned = ORDERS.take([2, 0, 1])
        assert any_shop.write(turned)["snapshot/outcome"] == "published"
        assert any_shop.read().equals(turned)

    def test_tables_lie_in_the_schema_that_the_asset_or_its_prefix_names(self, make: Callable[..., Shop]) -> None:
        shop = make(dataset="shop")
        shop.write(ORDERS, "orders")
        shop.write(ORDERS.slice(0, 1), "raw/orders")
        shop.write(ORDERS.slice(0, 2), "clean/orders", schema="tidy")
        shop.write(ORDERS.slice(1, 2), "x", snapshot_table="raw.other")
        assert sorted(shop.manifest("shop").tables) == ["orders", "raw.orders", "raw.other", "tidy.orders"]
        assert [len(shop.rows(key)) for key in ("orders", "raw/orders")] == [3, 1]
        assert len(shop.rows("clean/orders", schema="tidy")) == 2
        assert shop.rows("any", asked={"snapshot/table": "raw.other"}) == [(2, None), (3, "ü")]
        assert make(dataset="shop", schema="raw").rows("orders") == [(1, "a")]

    def test_without_schemas_the_prefix_is_part_of_the_name(self, make: Callable[..., Shop]) -> None:
        shop = make("sqlite", dataset="shop")
        shop.write(ORDERS, "orders")
        shop.write(ORDERS.slice(0, 1), "raw/orders")
        assert sorted(shop.manifest("shop").tables) == ["orders", "raw_orders"]
        assert len(shop.rows("raw/orders")) == 1

    def test_an_asset_has_a_dataset_of_its_own_unless_another_is_named(self, any_shop: Shop) -> None:
        any_shop.write(ORDERS, "raw/orders")
        any_shop.write(ORDERS.slice(0, 1), "orders")
        any_shop.write(ORDERS.slice(0, 2), "anything", snapshot_dataset="named")
        assert set(any_shop.manager.store.open_store().heads()) == {"raw_orders", "orders", "named"}
        assert [len(any_shop.rows(key)) for key in ("raw/orders", "orders")] == [3, 1]
        assert len(any_shop.rows("anything", snapshot_dataset="named")) == 2

    def test_names_that_can_not_be_are_refused_with_what_to_do(self, make: Callable[..., Shop]) -> None:
        words = refused(lambda: make().write(ORDERS, "Orders"))
        assert "'Orders' is not a valid dataset name" in words
        assert '{"snapshot/dataset": "<a name>"}' in words
        assert "can not hold every asset" in refused(lambda: make("lance", dataset="shop").write(ORDERS))

    def test_a_missing_table_or_dataset_is_named(self, make: Callable[..., Shop]) -> None:
        shop = make(dataset="shop")
        assert "nothing of 'shop' is loaded yet" in refused(lambda: shop.read())
        shop.write(ORDERS)
        assert "has no table 'items'; there are: orders" in refused(lambda: shop.read(key="items"))

    def test_a_table_keeps_its_constraints_and_a_breach_writes_nothing(self, shop: Shop) -> None:
        shop.folder.mkdir()
        with closing(duckdb.connect(str(shop.live()))) as con:
            con.execute("create table orders (id bigint primary key, name varchar not null)")
        rows = pa.table({"id": [1, 2], "name": ["a", "b"]})
        shop.write(rows)
        shop.write(pa.table({"id": [2, 1], "name": ["c", "d"]}))
        assert "refuses the rows" in refused(lambda: shop.write(pa.table({"id": [1, 1], "name": ["a", "b"]})))
        assert shop.rows() == [(2, "c"), (1, "d")]
        assert shop.write(pa.table({"id": [2, 1], "name": ["c", "d"]}))["snapshot/outcome"] == "unchanged"

    def test_a_dataset_that_something_else_publishes_can_be_read(self, shop: Shop, tmp_path: Path) -> None:
        with closing(duckdb.connect(str(tmp_path / "dbt.duckdb"))) as con:
            con.execute("create table customers as select 7 as id")
        with Publisher(shop.manager.store.open_store()) as publisher:
            publisher.publish(Dataset("warehouse", "duckdb", tmp_path / "dbt.duckdb"))
        assert shop.rows("x/y", snapshot_dataset="warehouse", asked={"snapshot/table": "customers"}) == [(7,)]


def test_a_data_version_tells_of_columns_and_rows_and_not_of_how_they_lie_in_memory() -> None:
    rows = pa.table({"id": pa.array([1, None, 3]), "list": [["a"], None, []], "text": ["x", None, "z"]})
    hidden = pa.array([1, 99, 3]).buffers()[1]
    same = [
        pa.concat_tables([rows.slice(0, 1), rows.slice(1)]),
        pa.concat_tables([rows, rows]).slice(3),
        # Something lies where the value is missing.
        rows.set_column(0, "id", pa.Array.from_buffers(pa.int64(), 3, [rows["id"].chunk(0).buffers()[0], hidden])),
    ]
    assert all(other.equals(rows) for other in same)
    assert {rows_digest(other) for other in same} == {rows_digest(rows)}
    other = [
        rows.take([0, 2, 1]),
        rows.slice(0, 2),
        rows.rename_columns(["id", "list", "name"]),
        rows.set_column(0, "id", rows["id"].cast(pa.int32())),
        rows.set_column(0, "id", pa.array([1, 0, 3])),
    ]
    assert len({rows_digest(rows), *map(rows_digest, other)}) == 6


class TestSchemaChanges:
    def test_new_columns_are_added_at_the_end(self, any_shop: Shop) -> None:
        any_shop.write(ORDERS)
        wider = pa.table({"more": [1.5, 2.5], "id": [1, 2], "name": ["a", "b"]})
        any_shop.write(wider)
        assert any_shop.read().equals(wider.select(["id", "name", "more"]))

    def test_other_changes_are_refused_before_anything_is_written_unless_the_asset_allows_them(
        self, any_shop: Shop
    ) -> None:
        any_shop.write(ORDERS)
        for rows in (ORDERS.select(["id"]), pa.table({"id": ["x"], "name": ["a"]})):
            words = refused(lambda rows=rows: any_shop.write(rows))  # type: ignore[misc]
            assert "its readers would not survive; nothing was written" in words
            assert "snapshot/allow_schema_change" in words
        assert any_shop.write(ORDERS)["snapshot/outcome"] == "unchanged"
        any_shop.write(ORDERS.select(["name"]), snapshot_allow_schema_change=True)
        assert any_shop.read().equals(ORDERS.select(["name"]))

    def test_a_column_keeps_its_type_as_long_as_all_values_fit(self, any_shop: Shop) -> None:
        any_shop.write(ORDERS)
        # What pandas makes of integers when one is missing.
        any_shop.write(pd.DataFrame({"id": [1, None], "name": ["a", "b"]}))
        assert any_shop.read().schema.field("id").type == pa.int64()
        assert any_shop.rows() == [(1, "a"), (None, "b")]
        any_shop.write(pa.table({"name": pa.nulls(1), "id": pa.array([5], pa.int8())}))
        assert any_shop.rows() == [(5, None)]
        assert "readers would not survive" in refused(lambda: any_shop.write(pa.table({"id": [1.5], "name": ["a"]})))


class TestPartitions:
    @staticmethod
    def day(*keys: str, values: Sequence[int] = (1, 2)) -> pa.Table:
        return pa.table(
            {
                "day": [dt.date.fromisoformat(key) for key in keys for _ in values],
                "v": [value for _ in keys for value in values],
            }
        )

    def test_a_partition_replaces_its_own_rows_only(self, any_shop: Shop) -> None:
        about: dict[str, Any] = {"partitions_def": DAYS, "partition_expr": "day"}
        any_shop.write(self.day("2024-01-01"), keys=["2024-01-01"], **about)
        shown = any_shop.write(self.day("2024-01-02"), keys=["2024-01-02"], **about)
        assert shown["dagster/row_count"] == 4
        assert shown["dagster/partition_row_count"] == 2
        assert any_shop.manifest().partition_keys == ("2024-01-02",)
        any_shop.write(self.day("2024-01-01", values=[7]), keys=["2024-01-01"], **about)
        first, second = dt.date(2024, 1, 1), dt.date(2024, 1, 2)
        assert sorted(any_shop.rows()) == [(first, 7), (second, 1), (second, 2)]
        assert any_shop.rows(keys=["2024-01-01"], **about) == [(first, 7)]
        assert any_shop.rows(keys=["2024-01-02"], **about) == [(second, 1), (second, 2)]
        assert len(any_shop.rows(keys=["2024-01-02", "2024-01-01", "2024-01-09"], **about)) == 3
        assert any_shop.read(keys=[], **about).schema.names == ["day", "v"]
        assert any_shop.rows(keys=[], **about) == []
        again = any_shop.write(self.day("2024-01-02"), keys=["2024-01-02"], **about)
        assert again["snapshot/outcome"] == "unchanged"

    def test_several_partitions_are_one_publish(self, any_shop: Shop) -> None:
        about: dict[str, Any] = {"partitions_def": DAYS, "partition_expr": "day"}
        keys = [f"2024-01-{day:02}" for day in range(1, 6)]
        any_shop.write(self.day(*keys, values=[1]), keys=keys, **about)
        shown = any_shop.write(self.day(*keys[1:3], values=[2]), keys=keys[1:3], **about)
        assert "dagster/partition_row_count" not in shown
        assert shown["snapshot/generation"] == 2
        assert sorted(value for _, value in any_shop.rows()) == [1, 1, 1, 2, 2]

    def test_rows_of_other_partitions_are_refused_and_nothing_is_written(self, any_shop: Shop) -> None:
        about: dict[str, Any] = {"keys": ["2024-01-01"], "partitions_def": DAYS, "partition_expr": "day"}
        any_shop.write(self.day("2024-01-01"), **about)
        words = refused(lambda: any_shop.write(self.day("2024-01-01", "2024-01-02"), **about))
        assert "2 rows for" in words
        assert "do not belong to the partition 2024-01-01; nothing was written" in words
        missing = pa.table({"day": pa.array([None], pa.date32()), "v": [1]})
        assert "1 rows for" in refused(lambda: any_shop.write(missing, **about))
        assert len(any_shop.rows()) == 2

    def test_without_partition_expr_a_step_fails_and_says_what_to_add(self, any_shop: Shop) -> None:
        about: dict[str, Any] = {"keys": ["2024-01-01"], "partitions_def": DAYS}
        words = refused(lambda: any_shop.write(self.day("2024-01-01"), **about))
        assert 'Add the metadata {"partition_expr": "<the column of the partition>"} to the asset' in words
        any_shop.write(self.day("2024-01-01"), **about, partition_expr="day")
        assert "partition_expr" in refused(lambda: any_shop.read(**about))

    @pytest.mark.parametrize("engine", ENGINES)
    def test_static_partitions_are_told_apart_by_a_value(self, make: Callable[..., Shop], engine: str) -> None:
        shop = make(engine)
        about: dict[str, Any] = {"partitions_def": REGIONS, "partition_expr": "region"}
        for key, v in (("eu", 1), ("o'fallon", 2), ("eu", 3)):
            shop.write(pa.table({"region": [key], "v": [v]}), keys=[key], **about)
        assert sorted(shop.rows()) == [("eu", 3), ("o'fallon", 2)]
        assert shop.rows(keys=["o'fallon"], **about) == [("o'fallon", 2)]
        years: dict[str, Any] = {
            "partitions_def": dg.StaticPartitionsDefinition(["2023", "2024"]),
            "partition_expr": "year",
        }
        for count in (1, 2):
            shop.write(pa.table({"year": [2023] * count}), "years", keys=["2023"], **years)
        assert shop.rows("years") == [(2023,), (2023,)]

    @pytest.mark.parametrize("engine", ENGINES)
    def test_two_dimensions_are_told_apart_by_two_columns(self, make: Callable[..., Shop], engine: str) -> None:
        shop = make(engine)
        grid = dg.MultiPartitionsDefinition({"day": DAYS, "region": REGIONS})
        about: dict[str, Any] = {"partitions_def": grid, "partition_expr": {"day": "d", "region": "r"}}

        def rows(*keys: str, value: int) -> pa.Table:
            parts = [key.split("|") for key in keys]
            days = [dt.date.fromisoformat(day) for day, _ in parts]
            return pa.table({"d": days, "r": [region for _, region in parts], "v": [value] * len(keys)})

        keys = [f"2024-01-{day:02}|{region}" for day in (1, 2, 3) for region in ("eu", "us")]
        shop.write(rows(*keys, value=1), keys=keys, **about)
        # No rectangle: what lies between these keys must stay.
        some = [keys[0], keys[3], keys[4]]
        shop.write(rows(*some, value=2), keys=some, **about)
        assert {f"{day}|{region}" for day, region, value in shop.rows() if value == 2} == set(some)
        assert len(shop.rows()) == 6
        assert len(shop.rows(keys=some, **about)) == 3
        bad = {**about, "partition_expr": {"day": "d"}}
        assert '"partition_expr": {"day": "<its column>", "region"' in refused(
            lambda: shop.write(rows(keys[0], value=3), keys=keys[:1], **bad)
        )

    @pytest.mark.parametrize("engine", ENGINES)
    def test_a_day_of_a_zone_is_that_zones_day(self, make: Callable[..., Shop], engine: str) -> None:
        shop = make(engine)
        days = dg.DailyPartitionsDefinition("2024-07-01", timezone="Europe/Berlin", end_date="2024-07-05")
        first = dt.datetime(2024, 6, 30, 22, tzinfo=UTC)
        about: dict[str, Any] = {"partitions_def": days, "partition_expr": "at", "keys": ["2024-07-01"]}
        inside = [first, first + dt.timedelta(hours=23, minutes=59)]
        kind = pa.timestamp("us", "UTC")
        shop.write(pa.table({"at": pa.array(inside, kind)}), **about)
        assert len(shop.rows(**about)) == 2
        late = pa.table({"at": pa.array([first + dt.timedelta(days=1)], kind)})
        assert "do not belong" in refused(lambda: shop.write(late, **about))
        shop.write(pa.table({"at": [wall("2024-07-01"), wall("2024-07-01 23:59")]}), "wall", **about)
        assert len(shop.rows("wall", **about)) == 2

    def test_hours_are_told_apart_by_timestamps(self, any_shop: Shop) -> None:
        hours = dg.HourlyPartitionsDefinition("2024-01-01-00:00", end_date="2024-01-02-00:00")
        about: dict[str, Any] = {"partitions_def": hours, "partition_expr": "at"}
        for hour in ("01", "02", "01"):
            rows = pa.table({"at": [wall(f"2024-01-01 {hour}:59:59")]})
            any_shop.write(rows, keys=[f"2024-01-01-{hour}:00"], **about)
        assert len(any_shop.rows()) == 2

    def test_sql_and_dates_as_text_tell_partitions_apart_where_the_engine_has_sql(
        self, make: Callable[..., Shop]
    ) -> None:
        for engine in ("duckdb", "sqlite", "turso"):
            shop = make(engine)
            about: dict[str, Any] = {"partitions_def": DAYS, "partition_expr": "substr(key, 1, 10)"}
            for key in ("2024-01-01", "2024-01-02", "2024-01-01"):
                shop.write(pa.table({"key": [f"{key}/x"]}), engine, keys=[key], **about)
            assert sorted(shop.rows(engine)) == [("2024-01-01/x",), ("2024-01-02/x",)]
        for engine in ("lance", "cayenne"):
            words = refused(
                lambda: make(engine).write(pa.table({"key": ["x"]}), engine, keys=["2024-01-01"], **about)  # noqa: B023
            )
            assert "no column 'substr(key, 1, 10)'" in words

    def test_a_partition_with_new_columns_leaves_nulls_in_the_others(self, any_shop: Shop) -> None:
        about: dict[str, Any] = {"partitions_def": DAYS, "partition_expr": "day"}
        any_shop.write(self.day("2024-01-01", values=[1]), keys=["2024-01-01"], **about)
        wider = self.day("2024-01-02", values=[2]).append_column("note", pa.array(["new"]))
        any_shop.write(wider, keys=["2024-01-02"], **about)
        assert sorted(row[1:] for row in any_shop.rows()) == [(1, None), (2, "new")]
        words = refused(lambda: any_shop.write(self.day("2024-01-03"), keys=["2024-01-03"], **about))
        assert "lack columns that other partitions have: note" in words
        other = wider.set_column(1, "v", pa.array(["text"]))
        assert "'v' holds values of type" in refused(
            lambda: any_shop.write(other, keys=["2024-01-02"], snapshot_allow_schema_change=True, **about)
        )


class TestLiveDatabase:
    def test_one_that_is_missing_is_made_of_the_newest_snapshot(self, any_shop: Shop) -> None:
        about: dict[str, Any] = {"partitions_def": DAYS, "partition_expr": "day"}
        for key in ("2024-01-01", "2024-01-02"):
            any_shop.write(TestPartitions.day(key), keys=[key], **about)
        other = any_shop.on_another_host()
        other.write(TestPartitions.day("2024-01-02", values=[9]), keys=["2024-01-02"], **about)
        assert sorted(value for _, value in other.rows()) == [1, 2, 9]
        assert not [path for path in other.folder.iterdir() if path.name.startswith(".building")]

    def test_what_is_left_of_one_is_not_taken_for_a_part_of_the_restored_one(self, make: Callable[..., Shop]) -> None:
        shop = make("sqlite")
        shop.write(ORDERS)
        shop.live().unlink()
        left = shop.live().with_name("orders.sqlite-wal")
        left.write_bytes(b"committed, and not in the file")
        assert "orders.sqlite-wal, which belongs to it, is" in refused(lambda: shop.write(ORDERS))

    def test_a_snapshot_is_read_while_another_process_has_the_live_file_open_for_writing(
        self, shop: Shop, instance: dg.DagsterInstance
    ) -> None:
        shop.write(ORDERS)
        hold = "import duckdb, sys; con = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", hold, str(shop.live())]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "open\n"
            read: list[int] = []

            @dg.asset
            def orders() -> None: ...

            @dg.asset(ins={"orders": dg.AssetIn()})
            def downstream(orders: pd.DataFrame) -> None:
                read.append(len(orders))

            result = dg.materialize(
                [orders, downstream],
                selection=[downstream],
                resources={"io_manager": shop.manager},
                instance=instance,
            )
            assert result.success
            assert read == [3]
            words = refused(lambda: shop.write(ORDERS.slice(0, 1)))
            assert f"is held by process {holder.pid}" in words
            holder.communicate(timeout=30)
        shop.write(ORDERS.slice(0, 1))


class TestRuns:
    """Whole runs, and what they show."""

    def test_a_step_downstream_reads_what_its_run_published(
        self, make: Callable[..., Shop], instance: dg.DagsterInstance
    ) -> None:
        shop = make(dataset="shop")
        seen: list[list[int]] = []

        @dg.asset
        def orders() -> pa.Table:
            return ORDERS

        @dg.asset(key_prefix="raw")
        def items(orders: pd.DataFrame) -> pl.DataFrame:
            return pl.DataFrame({"order": orders["id"] * 10})

        @dg.asset(ins={"items": dg.AssetIn(key=["raw", "items"], metadata={"columns": ["order"]})})
        def total(items: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
            seen.append([row[0] for row in items.fetchall()])
            return items.sum("order")

        assets = [orders, items, total]
        first = dg.materialize(assets, resources={"io_manager": shop.manager}, instance=instance)
        assert seen == [[10, 20, 30]]
        assert shop.rows("total") == [(60,)]
        metadata: dict[str, Any] = {
            name: value.value for name, value in first.asset_materializations_for_node("raw__items")[0].metadata.items()
        }
        assert metadata["dagster/row_count"] == 3
        assert metadata["dagster/table_name"] == "shop.raw.items"
        assert [(column.name, column.type) for column in metadata["dagster/column_schema"].columns] == [
            ("order", "int64")
        ]
        assert metadata["snapshot/id"] == 1
        assert metadata["snapshot/row_counts"] == {"orders": 3, "raw.items": 3}
        [entry] = [entry for entry in shop.head("shop").snapshots if entry.snapshot_id == 1]
        assert entry.summary["dagster.run_id"] == first.run_id
        assert entry.summary["dagster.asset_key"] == "raw/items"

        again = dg.materialize(assets, resources={"io_manager": shop.manager}, instance=instance)
        for node in ("orders", "raw__items", "total"):
            one, other = (run.asset_materializations_for_node(node)[0].tags or {} for run in (first, again))
            assert one["dagster/data_version"] == other["dagster/data_version"]
        assert len(shop.head("shop").snapshots) == 3

    def test_a_step_that_published_and_is_retried_publishes_nothing_and_keeps_its_data_version(
        self, make: Callable[..., Shop], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop = make()
        calls: list[int] = []
        failures = [StoreUnavailable("gone"), None]
        real = asset_metadata.materialization_metadata

        def show(*args: Any) -> Any:
            failure = failures.pop(0)
            if failure is not None:
                raise failure
            return real(*args)

        monkeypatch.setattr(io_manager, "materialization_metadata", show)

        @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
        def orders() -> pa.Table:
            calls.append(1)
            return pa.table({"attempt": [len(calls)]})

        result = dg.materialize([orders], resources={"io_manager": shop.manager}, instance=instance)
        [made] = result.asset_materializations_for_node("orders")
        assert len(calls) == 2
        assert made.metadata["snapshot/outcome"].value == "already_published"
        assert shop.rows() == [(1,)]
        [entry] = shop.head().snapshots
        assert (made.tags or {})["dagster/data_version"] == entry.summary["dagster.data_version"]

    def test_a_refusal_is_shown_with_what_to_do_and_is_not_retried(
        self, shop: Shop, instance: dg.DagsterInstance
    ) -> None:
        @dg.asset(retry_policy=dg.RetryPolicy(max_retries=3))
        def orders() -> int:
            return 5

        result = dg.materialize(
            [orders], resources={"io_manager": shop.manager}, instance=instance, raise_on_error=False
        )
        [event] = [event for event in result.all_events if event.is_step_failure]
        failure = event.step_failure_data.user_failure_data
        assert failure is not None
        assert "returned a int" in (failure.description or "")
        assert failure.metadata["error"].value == "ConfigurationError"
        assert not [event for event in result.all_events if event.is_step_up_for_retry]

    def test_a_backfill_in_one_run_is_one_publish_and_downstream_partitions_read_their_own(
        self, shop: Shop, instance: dg.DagsterInstance
    ) -> None:
        seen: list[tuple[Any, ...]] = []
        single = dg.BackfillPolicy.single_run()

        @dg.asset(partitions_def=DAYS, metadata={"partition_expr": "day"}, backfill_policy=single)
        def orders(context) -> pa.Table:  # type: ignore[no-untyped-def]
            return TestPartitions.day(*context.partition_keys, values=[1])

        @dg.asset(partitions_def=DAYS)
        def each(orders: pa.Table) -> None:
            seen.append(tuple(orders["day"].to_pylist()))

        @dg.asset
        def whole(orders: pa.Table) -> None:
            seen.append(tuple(orders["day"].to_pylist()))

        ends = {"dagster/asset_partition_range_start": "2024-01-03", "dagster/asset_partition_range_end": "2024-01-06"}
        resources = {"io_manager": shop.manager}
        dg.materialize([orders], resources=resources, instance=instance, tags=ends)
        assert len(shop.head().snapshots) == 1
        assert shop.manifest().partition_keys == tuple(f"2024-01-0{day}" for day in range(3, 7))
        assets = [orders, each, whole]
        dg.materialize(assets, selection=[each], resources=resources, instance=instance, partition_key="2024-01-04")
        dg.materialize(assets, selection=[whole], resources=resources, instance=instance)
        days = tuple(dt.date(2024, 1, day) for day in range(3, 7))
        assert seen == [(days[1],), days]

    def test_an_asset_without_partitions_is_published_by_each_run_of_a_backfill(
        self, shop: Shop, instance: dg.DagsterInstance
    ) -> None:
        """A job may hold both kinds of assets; its backfill is a run for each partition, and all share the backfill."""

        @dg.asset(partitions_def=DAYS)
        def each() -> None: ...

        count = iter((1, 2, 3))

        @dg.asset(deps=[each])
        def orders() -> pa.Table:
            return ORDERS.slice(0, next(count))

        outcomes = []
        for tags in (
            {"dagster/partition": "2024-01-01"},
            {"dagster/partition": "2024-01-02"},
            {
                "dagster/asset_partition_range_start": "2024-01-03",
                "dagster/asset_partition_range_end": "2024-01-04",
            },
        ):
            result = dg.materialize(
                [each, orders],
                resources={"io_manager": shop.manager},
                instance=instance,
                tags={"dagster/backfill": "one"} | tags,
            )
            [event] = result.asset_materializations_for_node("orders")
            outcomes.append(event.metadata["snapshot/outcome"].value)
        assert outcomes == ["published"] * 3
        assert len(shop.rows()) == 3

    def test_an_input_may_name_its_snapshot_and_values_can_be_loaded_without_a_run(
        self, shop: Shop, instance: dg.DagsterInstance
    ) -> None:
        for count in (1, 2, 3):
            shop.write(ORDERS.slice(0, count))
        assert len(shop.rows(asked={"snapshot/id": 1})) == 2
        assert len(shop.rows()) == 3
        words = refused(lambda: shop.rows(asked={"snapshot/id": 9}))
        assert "snapshot 9 of 'orders'" in words

        @dg.asset
        def orders() -> pa.Table:
            return ORDERS

        store = shop.manager.store
        pinned = SnapshotIOManager(
            store=store,
            directory=shop.manager.directory,
            reader=SnapshotReaderResource(store=store, pins={"orders": 0}),
        )
        defs = dg.Definitions(assets=[orders], resources={"io_manager": pinned})
        loaded = defs.load_asset_value("orders", python_type=pa.Table, instance=instance)
        assert isinstance(loaded, pa.Table)
        assert loaded.num_rows == 1


_FOLLOWING_APP = """
import json, sys
from pathlib import Path
from snapshot_assets import ReaderSettings, SnapshotReader, SnapshotStore
url, folder, stop = sys.argv[1:]
settings = ReaderSettings(refresh_interval=0.1, schema_policy="any", announce_interval=None)
seen, queries = [], 0
with SnapshotReader(SnapshotStore.open(url, read_only=True), Path(folder), settings) as reader:
    provider = reader.follow("shop")
    print("following", flush=True)
    while not Path(stop).exists():
        with provider.connect() as con:
            tables = con.execute("select table_name from duckdb_tables() order by 1").fetchall()
            counts = [con.execute(f"select count(*), count(distinct run) from main.{t}").fetchone() for t, in tables]
        queries += 1
        assert all(runs == 1 for _, runs in counts), counts
        if counts != (seen[-1] if seen else None):
            seen.append(counts)
print(json.dumps({"queries": queries, "seen": seen}))
"""

_SHOP = """
from pathlib import Path
import dagster as dg
import pyarrow as pa
from snapshot_assets.resources import SnapshotIOManager, SnapshotStoreResource

home = Path(__file__).parent

def rows(context, count):
    return pa.table({"id": list(range(count)), "run": [context.run.run_id] * count})

@dg.asset
def left(context: dg.AssetExecutionContext) -> pa.Table:
    return rows(context, 2000)

@dg.asset
def right(context: dg.AssetExecutionContext) -> pa.Table:
    return rows(context, 3000)

@dg.asset
def both(context: dg.AssetExecutionContext, left: pa.Table, right: pa.Table) -> pa.Table:
    assert left["run"][0].as_py() == right["run"][0].as_py() == context.run.run_id
    return rows(context, left.num_rows + right.num_rows)

def make_job():
    store = SnapshotStoreResource(url=str(home / "store"))
    manager = SnapshotIOManager(store=store, directory=str(home / "live"), dataset="shop")
    executor = dg.multiprocess_executor.configured({"max_concurrent": 2, "start_method": {"forkserver": {}}})
    defs = dg.Definitions(
        assets=[left, right, both],
        jobs=[dg.define_asset_job("shop", [left, right, both], executor_def=executor)],
        resources={"io_manager": manager},
    )
    return defs.resolve_job_def("shop")
"""


def test_processes_write_one_dataset_at_once_while_an_app_reads_it_without_a_pause(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "frames_definitions.py").write_text(_SHOP)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)  # where the step processes look for the module
    import frames_definitions  # type: ignore[import-not-found]

    store = SnapshotStoreResource(url=str(tmp_path / "store"))
    first = SnapshotIOManager(store=store, directory=str(tmp_path / "live"), dataset="shop")
    Shop(first, tmp_path / "live").write(pa.table({"id": [1], "run": ["before"]}), "left")
    command = [sys.executable, "-c", _FOLLOWING_APP, store.url, str(tmp_path / "app"), str(tmp_path / "stop")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as app:
        try:
            assert app.stdout is not None
            assert app.stdout.readline() == "following\n"
            result = dg.execute_job(dg.reconstructable(frames_definitions.make_job), instance)
        finally:
            (tmp_path / "stop").touch()
        told = json.loads(app.communicate(timeout=60)[0])
    assert result.success
    assert app.returncode == 0
    assert told["queries"] > 10
    assert told["seen"][0] == [[1, 1]]
    assert len(told["seen"]) >= 2
    opened = store.open_store(read_only=True)
    head = opened.head("shop")
    assert [entry.row_count for entry in head.snapshots] in ([1, 2000, 5000, 10000], [1, 3001, 5000, 10000])
    assert Maintenance(store.open_store()).verify("shop", level="restore").snapshot_id == 3
