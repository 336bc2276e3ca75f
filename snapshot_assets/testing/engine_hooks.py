"""What the engine contract must be told of an engine: its name, what it can, and how to write to its live database.

The defaults speak SQL as DuckDB, SQLite and Turso do. An engine with another language overrides the methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from snapshot_assets.engines.contract import Engine
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.engines.sql import quoted
from snapshot_assets.model.dataset import Dataset

__all__ = ["EngineHooks"]

_SQL_TYPES = {pa.int64(): "integer", pa.float64(): "real", pa.string(): "text", pa.binary(): "blob"}


class EngineHooks:
    """What differs from engine to engine.

    The dataset is called `orders`, and so is its main table: `id` (int64, not null) and `name` (string). An engine
    whose datasets are one table each has only that one.

    Attributes:
        engine_name: the engine under test.
        timeout: seconds that a capture may wait.
        has_many_tables: whether a dataset can hold other tables beside `orders`.
        is_folder: whether the live database is a folder.
        detects_flipped_bytes: whether a full `verify` notices bytes of the data that changed. The digests in the store
            notice them in any case.
        keeps_live_files: whether a capture leaves every byte of the live database's files as it was, when nobody else
            uses it; its content is left as it was in any case.
        refusal: a pattern in what a lease says to `write_to`.
        writer_pause: seconds between two transactions of a writer that goes on while the database is captured. An
            engine whose capture waits for a quiet moment needs one as long as a copy takes.
        many_orders: how many orders there are when ten of them change.
        small_change_share: the largest share of the data's bytes that may be stored, and fetched, after that change.
        types: columns of all types that the engine keeps, beside `id`.
        special_floats: what it keeps of the values that not every engine does.
        odd_names: names that its columns can have and, with many tables, its tables.
    """

    engine_name: ClassVar[str]
    timeout: ClassVar[float] = 10.0
    has_many_tables: ClassVar[bool] = True
    is_folder: ClassVar[bool] = False
    detects_flipped_bytes: ClassVar[bool] = True
    keeps_live_files: ClassVar[bool] = True
    refusal: ClassVar[str] = r"(?i)read-?only"
    writer_pause: ClassVar[float] = 0.002
    many_orders: ClassVar[int] = 50_000
    small_change_share: ClassVar[float] = 0.2
    types: ClassVar[pa.Schema] = pa.schema([(str(type_), type_) for type_ in _SQL_TYPES])
    special_floats: ClassVar[Sequence[float]] = (math.nan, math.inf, -math.inf, -0.0)
    odd_names: ClassVar[Sequence[str]] = (
        *("select", "two words", 'a "quoted" one', "it's; -- done", "ünïcödé 名前 🦆"),
        *("a.b", "Order", "100%", "{}", "x" * 60),
    )

    count_orders: ClassVar[str] = "select count(*) as n, sum(id) as total from orders"
    """What a pool and `staged_query` are asked, in any case in SQL."""
    insert_order: ClassVar[str] = "insert into orders values (999999, 'forbidden')"
    wrong_statement: ClassVar[str] = "select nothing from nowhere"

    @pytest.fixture
    def engine(self) -> Engine:
        """The engine under test."""
        return engine_named(self.engine_name)

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Dataset:
        """A dataset whose live database does not exist yet, nor the folder that it lies in."""
        return Dataset("orders", self.engine_name, tmp_path / "live" / f"orders.{self.engine_name}")

    # the live database; `connection` is what `Engine.connect_live` gives

    def fill(self, connection: Any, rows: int = 1_000) -> None:
        """Make the table `orders` with ids from 0 and names `order <id>`; beside it `customers` (id), empty.

        An engine with one table makes `orders` alone.
        """
        connection.execute("create table orders (id integer not null, name text)")
        connection.execute("create table customers (id integer)")
        self.append(connection, 0, rows)

    def append(self, connection: Any, first: int, rows: int) -> None:
        """Add orders with ids from `first`, committed."""
        values = ",".join(f"({number}, 'order {number}')" for number in range(first, first + rows))
        connection.execute(f"insert into orders values {values}")
        connection.commit()

    def update(self, connection: Any, ids: Sequence[int]) -> None:
        """Give the orders with these ids the names `changed <id>`, committed."""
        connection.execute(f"update orders set name = 'changed ' || id where id in ({_listed(ids)})")
        connection.commit()

    def delete(self, connection: Any, ids: Sequence[int]) -> None:
        """Remove the orders with these ids, committed."""
        connection.execute(f"delete from orders where id in ({_listed(ids)})")
        connection.commit()

    def commit_numbered(self, connection: Any, number: int) -> None:
        """In one transaction, add the order with the id `number` and give order 0 the name `<number>`."""
        connection.execute("begin")
        connection.execute(f"insert into orders values ({number}, 'order {number}')")
        connection.execute(f"update orders set name = '{number}' where id = 0")
        connection.commit()

    def add_column(self, connection: Any) -> None:
        """Change the schema of `orders` so that readers survive it: add a text column `note` without values."""
        connection.execute("alter table orders add column note text")
        connection.commit()

    def drop_column(self, connection: Any) -> None:
        """Change the schema of `orders` so that readers would not survive it: take the column `name` away."""
        connection.execute("alter table orders drop column name")
        connection.commit()

    def load(self, connection: Any, table: pa.Table, name: str = "orders") -> None:
        """Make a table of this name that holds the Arrow table, committed. An engine with one table makes `orders`.

        The columns have types of `types`, and names that may need quoting.
        """
        columns = ", ".join(
            f"{quoted(field.name)} {_SQL_TYPES[field.type]}{'' if field.nullable else ' not null'}"
            for field in table.schema
        )
        connection.execute(f"create table {quoted(name)} ({columns})")
        rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
        marks = ", ".join("?" * table.num_columns)
        connection.executemany(f"insert into {quoted(name)} values ({marks})", rows)
        connection.commit()

    def rows_of(self, connection: Any, name: str = "orders") -> list[tuple[Any, ...]]:
        """All rows of a table of the live database, by the first column."""
        return [tuple(row) for row in connection.execute(f"select * from {quoted(name)} order by 1").fetchall()]

    def use(self, connection: Any) -> None:
        """Do anything with the live database. Raises, with `closed` in its message, when the connection is closed."""
        connection.execute("select 1")

    # leases; `lease` is what `Pool.acquire` gives

    def count_of(self, lease: Any) -> tuple[int, int]:
        """How many orders a lease sees, and the sum of their ids."""
        ((rows, total),) = lease.execute(self.count_orders).fetchall()
        return rows, int(total or 0)

    def write_to(self, lease: Any) -> None:
        """Try to add an order; `refusal` is in what it raises."""
        lease.execute(self.insert_order)

    def disturb(self, lease: Any) -> None:
        """Leave in the lease's session what the engine lets one leave there: settings, temporary tables, a transaction.

        Nothing, where leases have no sessions.
        """
        lease.execute("create temp table mine as select 1 as one")
        lease.execute("begin")

    def check_undisturbed(self, lease: Any) -> None:
        """Fail if anything of what `disturb` does shows in a lease."""
        with pytest.raises(Exception, match="mine"):
            lease.execute("select * from mine")
        lease.execute("begin")


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))
