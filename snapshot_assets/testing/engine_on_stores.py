"""What an engine promises through a store: publish, read, refresh, roll back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pytest

from snapshot_assets.engines.registry import engine_named
from snapshot_assets.engines.sql import quoted
from snapshot_assets.errors import (
    ConfigurationError,
    EngineMismatch,
    LiveDatabaseMissing,
    NotFound,
    ReadOnlyDataset,
    SchemaChangeRefused,
    SchemaIncompatible,
    UnsupportedLiveDatabase,
    ValidationFailed,
)
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.provider import SnapshotProvider
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.engine_hooks import EngineHooks

__all__ = ["EngineOnStores", "rows_in"]

_CHANGED: Final = range(20_000, 20_010)
"""The ids of a small change, in the midst of the rows."""


class EngineOnStores(EngineHooks):
    """Publish, read, refresh and roll back; what depends on the store runs on one of each kind.

    The S3 store is that of the fixtures `s3_url` and `s3_options`, which a server of `snapshot_assets.testing.servers`
    gives. Without one, override `any_store`.
    """

    @pytest.fixture(params=["memory", "local", "s3"])
    def any_store(self, request: pytest.FixtureRequest, tmp_path: Path) -> SnapshotStore:
        """A new store of each kind."""
        if request.param == "s3":
            return SnapshotStore.open(request.getfixturevalue("s3_url"), request.getfixturevalue("s3_options"))
        return SnapshotStore.open("memory://" if request.param == "memory" else tmp_path / "store")

    @pytest.fixture
    def store(self, tmp_path: Path) -> SnapshotStore:
        """A new store in a folder."""
        return SnapshotStore.open(tmp_path / "store")

    @contextmanager
    def live(self, dataset: Dataset) -> Iterator[Any]:
        """A connection to the live database."""
        with engine_named(dataset.engine).connect_live(dataset) as connection:
            yield connection

    @contextmanager
    def reading(
        self, store: SnapshotStore, data_dir: Path, **settings: Any
    ) -> Iterator[tuple[SnapshotReader, SnapshotProvider]]:
        """A reader that follows `orders` and looks at the store when it is told."""
        with SnapshotReader(store, data_dir, ReaderSettings(refresh_interval=None, **settings)) as reader:
            yield reader, reader.follow("orders")

    def check_equal(self, reader: SnapshotReader, provider: SnapshotProvider, dataset: Dataset) -> None:
        """Fail unless provider, lease and catalogue hold what the live database holds, table by table."""
        with self.live(dataset) as connection:
            for table in provider.tables:
                rows = self.rows_of(connection, table)
                assert rows_in(provider.query(f"select * from {quoted(table)} order by 1")) == rows
                name = f"orders.main.{quoted(table)}"
                assert rows_in(reader.catalog.query(f"select * from {name} order by 1")) == rows
            orders = self.rows_of(connection)
        with provider.connect() as lease:
            assert self.count_of(lease) == (len(orders), sum(row[0] for row in orders))

    # on each kind of store

    def test_readers_get_what_the_live_database_holds(
        self, dataset: Dataset, any_store: SnapshotStore, tmp_path: Path
    ) -> None:
        publisher = Publisher(any_store)
        with self.live(dataset) as connection:
            self.fill(connection)
        assert publisher.publish(dataset).outcome == "published"
        with self.reading(any_store, tmp_path / "data") as (reader, provider):
            assert set(provider.tables) == ({"orders", "customers"} if self.has_many_tables else {"orders"})
            self.check_equal(reader, provider, dataset)
            changes: tuple[Callable[[Any], None], ...] = (
                lambda connection: self.append(connection, 1_000, 300),
                lambda connection: self.update(connection, range(100, 200)),
                lambda connection: self.delete(connection, range(500, 1_100)),
            )
            for change in changes:
                with self.live(dataset) as connection:
                    change(connection)
                published = publisher.publish(dataset)
                assert published.outcome == "published"
                assert reader.refresh("orders").snapshot_id == published.snapshot_id
                self.check_equal(reader, provider, dataset)
        report = Maintenance(any_store).verify("orders", level="restore")
        assert report.snapshot_id == published.snapshot_id

    def test_unchanged_content_is_not_published_again(self, dataset: Dataset, any_store: SnapshotStore) -> None:
        with self.live(dataset) as connection:
            self.fill(connection)
        first = Publisher(any_store).publish(dataset)
        before = _published(any_store)
        with self.live(dataset) as connection:
            self.use(connection)
        again = Publisher(any_store).publish(dataset)
        assert (again.outcome, again.snapshot_id) == ("unchanged", first.snapshot_id)
        assert (again.uploaded_objects, again.uploaded_bytes, again.stored_bytes) == (0, 0, 0)
        assert _published(any_store) == before

    def test_a_small_change_stores_and_fetches_little(
        self, dataset: Dataset, any_store: SnapshotStore, tmp_path: Path
    ) -> None:
        letters = random.Random(7).randbytes(8 * self.many_orders).hex()  # noqa: S311 - it only must not shrink
        names = [letters[16 * number : 16 * number + 16] for number in range(self.many_orders)]
        schema = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("name", pa.string())])
        with self.live(dataset) as connection:
            self.load(connection, pa.table([range(self.many_orders), names], schema=schema))
        publisher = Publisher(any_store)
        publisher.publish(dataset)
        with self.reading(any_store, tmp_path / "data") as (reader, provider):
            with self.live(dataset) as connection:
                self.update(connection, _CHANGED)
            published = publisher.publish(dataset)
            refreshed = reader.refresh("orders")
            assert published.stored_bytes <= self.small_change_share * published.data_bytes
            assert refreshed.fetched_bytes <= self.small_change_share * published.data_bytes
            assert refreshed.reused_bytes > 0
            changed = provider.query("select id from orders where name = 'changed ' || id order by id")
            assert changed.column("id").to_pylist() == list(_CHANGED)
            (row,) = provider.query(self.count_orders).to_pylist()
            assert row == {"n": self.many_orders, "total": self.many_orders * (self.many_orders - 1) // 2}

    # schemas, rollback, refusals

    def test_a_schema_may_widen_and_may_narrow_only_on_purpose(
        self, dataset: Dataset, store: SnapshotStore, tmp_path: Path
    ) -> None:
        publisher = Publisher(store)
        with self.live(dataset) as connection:
            self.fill(connection)
        publisher.publish(dataset)
        with self.reading(store, tmp_path / "data", schema_policy="widening") as (reader, provider):
            narrow = store.head("orders").current
            with self.live(dataset) as connection:
                self.add_column(connection)
            assert publisher.publish(dataset).outcome == "published"
            wide = store.head("orders").current
            assert narrow is not None
            assert wide is not None
            assert wide.schema_id != narrow.schema_id
            assert reader.refresh("orders").outcome == "loaded"
            assert provider.tables["orders"].names == ["id", "name", "note"]
            assert provider.query("select count(*) n, count(note) m from orders").to_pylist() == [{"n": 1_000, "m": 0}]
            self.check_equal(reader, provider, dataset)

            with self.live(dataset) as connection:
                self.drop_column(connection)
            with pytest.raises(SchemaChangeRefused, match="name"):
                publisher.publish(dataset)
            assert store.head("orders").current == wide
            assert publisher.publish(dataset, allow_schema_change=True).outcome == "published"
            with pytest.raises(SchemaIncompatible):
                reader.refresh("orders")
            assert provider.query("select count(name) n from orders").to_pylist() == [{"n": 1_000}]
        with self.reading(store, tmp_path / "other") as (reader, provider):
            assert provider.tables["orders"].names == ["id", "note"]
            self.check_equal(reader, provider, dataset)

    def test_a_rollback_reaches_readers_and_the_next_publish_goes_on(
        self, dataset: Dataset, store: SnapshotStore, tmp_path: Path
    ) -> None:
        publisher = Publisher(store)
        with self.live(dataset) as connection:
            self.fill(connection)
        publisher.publish(dataset)
        with self.reading(store, tmp_path / "data") as (reader, provider):
            with self.live(dataset) as connection:
                self.append(connection, 1_000, 10)
            publisher.publish(dataset)
            reader.refresh("orders")
            Maintenance(store).rollback("orders", 0)
            refreshed = reader.refresh("orders")
            assert (refreshed.outcome, refreshed.snapshot_id, refreshed.fetched_bytes) == ("loaded", 0, 0)
            with provider.connect() as lease:
                assert self.count_of(lease) == (1_000, 499_500)
            with self.live(dataset) as connection:
                self.append(connection, 1_010, 10)
            assert publisher.publish(dataset).snapshot_id == 2
            assert reader.refresh("orders").outcome == "loaded"
            self.check_equal(reader, provider, dataset)

    def test_a_data_folder_that_was_moved_is_served_where_it_is(
        self, dataset: Dataset, store: SnapshotStore, tmp_path: Path
    ) -> None:
        with self.live(dataset) as connection:
            self.fill(connection)
        Publisher(store).publish(dataset)
        with self.reading(store, tmp_path / "data"):
            pass
        (tmp_path / "data").rename(tmp_path / "moved")
        (tmp_path / "store").rename(tmp_path / "store that is away")
        with self.reading(store, tmp_path / "moved") as (reader, provider):
            self.check_equal(reader, provider, dataset)

    def test_what_can_not_be_published_is_refused_by_name_and_leaves_nothing_visible(
        self, dataset: Dataset, store: SnapshotStore
    ) -> None:
        publisher = Publisher(store, capture_timeout=1)
        with pytest.raises(LiveDatabaseMissing):
            publisher.publish(dataset)
        other = dataset.path.with_name("prices.csv")
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(b"name,price\n" + b"tea,5\n" * 5_000)
        with pytest.raises(UnsupportedLiveDatabase):
            publisher.publish(Dataset("orders", dataset.engine, other))
        with pytest.raises(ConfigurationError, match="no_such_option"):
            publisher.publish(Dataset("orders", dataset.engine, dataset.path, options={"no_such_option": 1}))
        with self.live(dataset) as connection:
            self.fill(connection)
        with pytest.raises(ValidationFailed):
            publisher.publish(_validated(dataset, "select * from orders where id = 999"))
        with pytest.raises(NotFound):
            store.head("orders")
        assert publisher.publish(_validated(dataset, "select * from orders where id < 0")).snapshot_id == 0
        another = "sqlite" if dataset.engine == "duckdb" else "duckdb"
        with pytest.raises(EngineMismatch, match=dataset.engine):
            publisher.publish(Dataset("orders", another, dataset.path.with_name("other")))

    def test_readers_write_nothing(self, dataset: Dataset, store: SnapshotStore, tmp_path: Path) -> None:
        with self.live(dataset) as connection:
            self.fill(connection)
        Publisher(store).publish(dataset)
        with self.reading(store, tmp_path / "data") as (reader, provider):
            with pytest.raises(ReadOnlyDataset):
                provider.query(self.insert_order)
            with pytest.raises(Exception, match=self.refusal), provider.connect() as lease:
                self.write_to(lease)
            with pytest.raises(ReadOnlyDataset):
                reader.catalog.query("insert into orders.main.orders values (999999, 'forbidden')")
            self.check_equal(reader, provider, dataset)


def _validated(dataset: Dataset, *validators: str) -> Dataset:
    """The same dataset with other validators."""
    return Dataset(dataset.name, dataset.engine, dataset.path, validators, options=dataset.options)


def _published(store: SnapshotStore) -> dict[str, str]:
    """Every object with its token, but for the writers' leases."""
    return {listed.key: listed.token for listed in store.objects.list("") if not listed.key.startswith("leases/")}


def rows_in(table: pa.Table) -> list[tuple[Any, ...]]:
    """The rows of a result."""
    return [tuple(row.values()) for row in table.to_pylist()]
