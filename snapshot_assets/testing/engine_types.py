"""What an engine promises of types, values and names: readers get what was loaded, to the last digit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.types as t
import pytest

from snapshot_assets.engines.contract import Engine
from snapshot_assets.engines.sql import quoted
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.provider import SnapshotProvider
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.engine_hooks import EngineHooks

__all__ = ["EngineTypes"]

Serve = Callable[[Mapping[str, pa.Table]], tuple[SnapshotReader, SnapshotProvider]]

_ROWS: Final = 24
_WIDE: Final = 500
_LONG: Final = 100_000
_TEXTS: Final = (
    "",
    "plain",
    "it's",
    "ünïcödé 名前 🦆",
    "two\nlines\tand a tab",
    " spaces ",
    "NULL",
    "nul\0inside",
    "long" * _LONG,
)
_BLOBS: Final = (b"", b"\0", b"text", bytes(range(256)), b"\xff\xfe" * _LONG)
_SECONDS: Final = (0, -1, 1_772_323_199, -1_815_249_000, 4_102_444_799)
_TICKS: Final = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


class EngineTypes(EngineHooks):
    """Types, values, empty and wide tables, and names."""

    @pytest.fixture
    def serve(self, engine: Engine, dataset: Dataset, tmp_path: Path) -> Iterator[Serve]:
        """`serve(tables)`: load the tables into the live database, publish it, and follow it."""
        opened: list[SnapshotReader] = []

        def load_publish_and_follow(tables: Mapping[str, pa.Table]) -> tuple[SnapshotReader, SnapshotProvider]:
            with engine.connect_live(dataset) as connection:
                for name, table in tables.items():
                    self.load(connection, table, name)
            store = SnapshotStore.open("memory://")
            Publisher(store, verify="full").publish(dataset)
            reader = SnapshotReader(store, tmp_path / "data", ReaderSettings(refresh_interval=None))
            opened.append(reader)
            return reader, reader.follow("orders")

        yield load_publish_and_follow
        for reader in opened:
            reader.close()

    def values(self, data_type: pa.DataType) -> list[Any]:
        """Values at the edges of a type, and within; without null."""
        if t.is_floating(data_type):
            return [0.0, 1.5, -2.25, 1e-30, *self.special_floats]
        if t.is_boolean(data_type):
            return [True, False]
        if t.is_integer(data_type):
            signed, bits = t.is_signed_integer(data_type), data_type.bit_width
            return [0, 1, 2 ** (bits - signed) - 1, *([-1, -(2 ** (bits - 1))] if signed else [])]
        if t.is_decimal(data_type):
            nines, scale = (9,) * data_type.precision, -data_type.scale
            return [Decimal((sign, digits, scale)) for sign in (0, 1) for digits in ((0,), (1,), nines)]
        if t.is_string(data_type) or t.is_large_string(data_type):
            return list(_TEXTS)
        if t.is_binary(data_type) or t.is_large_binary(data_type):
            return list(_BLOBS)
        if t.is_date(data_type):
            return [0, -1, 20_000, -719_162, 2_932_896]
        if t.is_time(data_type):
            day = 86_400 * _TICKS[data_type.unit]
            return [0, 1, day // 2 + 1, day - 1]
        if t.is_timestamp(data_type):
            ticks = _TICKS[data_type.unit]
            return [*(seconds * ticks for seconds in _SECONDS), 1_772_323_199 * ticks + ticks // 7]
        return self._nested_values(data_type)

    def _nested_values(self, data_type: pa.DataType) -> list[Any]:
        if t.is_fixed_size_list(data_type):
            endless = cycle([*self.values(data_type.value_type), None])
            return [list(islice(endless, data_type.list_size)) for _ in range(4)]
        if t.is_list(data_type) or t.is_large_list(data_type):
            items = self.values(data_type.value_type)[:4]
            return [[], items, [None], [*items, None, *items]]
        if t.is_struct(data_type):
            members = [data_type.field(position) for position in range(data_type.num_fields)]
            columns = {member.name: cycle([*self.values(member.type), None]) for member in members}
            return [{name: next(values) for name, values in columns.items()} for _ in range(7)]
        if t.is_map(data_type):
            pairs = list(
                zip(self.values(data_type.key_type)[:4], cycle(self.values(data_type.item_type)), strict=False)
            )
            return [[], pairs[:1], pairs, [(pairs[-1][0], None)]]
        raise NotImplementedError(f"the suite has no values of the type {data_type}; override `values`")

    def columns(self, rows: int) -> pa.Table:
        """A table with ids, and a column of each type that the engine keeps."""
        arrays = [
            pa.array(list(islice(cycle([*self.values(field.type), None]), rows)), field.type) for field in self.types
        ]
        ids = pa.field("id", pa.int64(), nullable=False)
        return pa.table([pa.array(range(rows), pa.int64()), *arrays], schema=pa.schema([ids, *self.types]))

    def test_every_type_comes_through_unchanged(self, serve: Serve) -> None:
        table = self.columns(_ROWS)
        reader, provider = serve({"orders": table})
        assert _plain(provider.tables["orders"]) == _plain(table.schema)
        _check_same(provider.query("select * from orders order by id"), table)
        _check_same(reader.catalog.query("select * from orders.main.orders order by id"), table)

    def test_a_table_without_rows_keeps_its_columns(self, serve: Serve) -> None:
        table = self.columns(0)
        reader, provider = serve({"orders": table})
        assert _plain(provider.tables["orders"]) == _plain(table.schema)
        found = provider.query("select * from orders")
        assert (found.column_names, found.num_rows) == (table.column_names, 0)
        _check_same(reader.catalog.query("select * from orders.main.orders"), table)

    def test_a_column_without_values_keeps_its_type(self, serve: Serve) -> None:
        table = self.columns(3)
        nothing = pa.table([table["id"], *(pa.nulls(3, field.type) for field in self.types)], schema=table.schema)
        reader, provider = serve({"orders": nothing})
        assert _plain(provider.tables["orders"]) == _plain(table.schema)
        assert provider.query("select * from orders order by id").to_pylist() == nothing.to_pylist()
        _check_same(reader.catalog.query("select * from orders.main.orders order by id"), nothing)

    def test_a_wide_table_comes_through(self, serve: Serve) -> None:
        narrow = self.columns(2)
        wide = pa.table({"id": narrow["id"]}, schema=pa.schema([narrow.schema.field("id")]))
        for number, field in zip(range(_WIDE), cycle(self.types), strict=False):
            wide = wide.append_column(pa.field(f"column {number}", field.type), narrow[field.name])
        reader, provider = serve({"orders": wide})
        _check_same(provider.query("select * from orders order by id"), wide)
        _check_same(reader.catalog.query("select * from orders.main.orders order by id"), wide)

    def test_columns_and_tables_of_any_name_come_through(self, serve: Serve) -> None:
        ids = pa.field("id", pa.int64(), nullable=False)
        schema = pa.schema([ids, *(pa.field(name, pa.int64()) for name in self.odd_names)])
        table = pa.table([[number, number + 1] for number in range(len(schema))], schema=schema)
        tables = dict.fromkeys(["orders", *(self.odd_names if self.has_many_tables else ())], table)
        reader, provider = serve(tables)
        assert set(provider.tables) == set(tables)
        for name in tables:
            _check_same(provider.query(f"select * from {quoted(name)} order by id"), table)
            _check_same(reader.catalog.query(f"select * from orders.main.{quoted(name)} order by id"), table)
        for name in self.odd_names:
            wanted = table.filter(pa.compute.equal(table[name], table[name][1])).select([name])
            sql = f"select {quoted(name)} from orders where {quoted(name)} = {table[name][1]}"
            _check_same(provider.query(sql), wanted)
            _check_same(reader.catalog.query(sql.replace("from orders", "from orders.main.orders")), wanted)


def _check_same(found: pa.Table, wanted: pa.Table) -> None:
    """Fail unless both tables have the same columns, types and values. An instant is the same in any zone."""
    assert _plain(found.schema) == _plain(wanted.schema)
    assert found.num_rows == wanted.num_rows
    for field in wanted.schema:
        mine, theirs = wanted[field.name], found[field.name].cast(field.type)
        # Arrow finds no NaN equal to another, and -0.0 equal to 0.0; as text they are what they are.
        floating = any(word in str(field.type) for word in ("float", "double"))
        same = repr(mine.to_pylist()) == repr(theirs.to_pylist()) if floating else mine.equals(theirs)
        assert same, f"column {field.name!r}: {theirs} in place of {mine}"


def _plain(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    """Names and types of the columns, all zones as one."""
    return [
        (field.name, pa.timestamp(field.type.unit, "UTC") if getattr(field.type, "tz", None) else field.type)
        for field in schema
    ]
