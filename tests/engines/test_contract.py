"""The engine contract, for the engines that every installation has."""

from __future__ import annotations

import math

import duckdb
import pyarrow as pa

from snapshot_assets.engines.sql import quoted
from snapshot_assets.testing import EngineContract


class TestDuckDB(EngineContract):
    engine_name = "duckdb"
    writer_pause = 0.2
    # An update writes all of the row group, of 122,880 rows, anew.
    many_orders = 500_000
    small_change_share = 0.3
    types = pa.schema(
        [
            *(
                (f"{sign}int{bits}", getattr(pa, f"{sign}int{bits}")())
                for sign in ("", "u")
                for bits in (8, 16, 32, 64)
            ),
            *(("float", pa.float32()), ("double", pa.float64()), ("bool", pa.bool_())),
            *(("decimal", pa.decimal128(9, 2)), ("wide decimal", pa.decimal128(38, 10))),
            *(("text", pa.string()), ("blob", pa.binary()), ("date", pa.date32()), ("time", pa.time64("us"))),
            *((f"timestamp {unit}", pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
            ("timestamp with zone", pa.timestamp("us", "UTC")),
            ("list", pa.list_(pa.int32())),
            ("list of lists", pa.list_(pa.list_(pa.string()))),
            ("array", pa.list_(pa.float32(), 3)),
            ("struct", pa.struct([("whole", pa.int64()), ("text", pa.string()), ("list", pa.list_(pa.date32()))])),
            ("map", pa.map_(pa.string(), pa.int64())),
        ]
    )

    def load(self, connection: duckdb.DuckDBPyConnection, table: pa.Table, name: str = "orders") -> None:
        connection.register("loaded", table)
        connection.execute(f"create table {quoted(name)} as select * from loaded")
        for field in table.schema:
            if not field.nullable:
                connection.execute(f"alter table {quoted(name)} alter column {quoted(field.name)} set not null")
        connection.unregister("loaded")


class TestSQLite(EngineContract):
    engine_name = "sqlite"
    # SQLite stores NaN as NULL, and a real that is whole as an integer, which has no -0.
    special_floats = (math.inf, -math.inf)
