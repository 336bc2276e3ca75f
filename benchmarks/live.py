"""Live databases to measure with: the same rows in each engine, which do not compress away, and changes of 1 %."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Protocol, get_args

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from snapshot_assets.engines.registry import engine_named
from snapshot_assets.model.dataset import Dataset

__all__ = ["CHANGES", "LIVE", "ChangeKind", "LiveDatabase", "change_sqlite", "live_size"]

ChangeKind = Literal["contiguous", "appended", "scattered"]
"""What becomes of 1 % of the rows: neighbours are updated, rows are added at the end, every hundredth is updated."""

CHANGES: Final[tuple[ChangeKind, ...]] = get_args(ChangeKind)

_SQLITE_TABLE: Final = "(id integer primary key, key integer, amount real, token text)"
_SQLITE_ROW: Final = "random(), random() / 1e9, lower(hex(randomblob(16)))"


class LiveDatabase(Protocol):
    """A live database of one engine. Its one table has the dataset's name: `id` from 0, `key`, `amount`, `token`.

    It keeps nothing in memory, since it is built in one process and measured in others.
    """

    row_bytes: ClassVar[int]
    """What a row takes, about."""

    @property
    def dataset(self) -> Dataset:
        """How it is published."""

    def build(self, rows: int) -> None:
        """Make it, with this many rows."""

    def change(self, kind: ChangeKind, number: int) -> None:
        """Change 1 % of the rows; other rows for each number, of which there are a dozen."""

    def plain(self, folder: Path) -> Path:
        """What one would upload oneself, a file or a folder, after whatever one has to do first."""


def live_size(live: LiveDatabase) -> int:
    """The bytes of the files."""
    path = live.dataset.path
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _changed(kind: ChangeKind, number: int, rows: int) -> range:
    """The ids of the rows that a change makes or updates."""
    hundredth = rows // 100
    match kind:
        case "contiguous":
            first = rows * (number + 1) // 20
            return range(first, first + hundredth)
        case "appended":
            return range(rows, rows + hundredth)
        case "scattered":
            return range(number, rows, 100)


def _where(kind: ChangeKind, number: int, rows: int) -> str:
    """The rows that a change updates, in SQL as every engine that has SQL understands it."""
    ids = _changed(kind, number, rows)
    step = f" and id % {ids.step} = {ids.start % ids.step}" if ids.step > 1 else ""
    return f"id >= {ids.start} and id < {ids.stop}{step}"


def _select(ids: range) -> str:
    """New rows, in DuckDB's SQL."""
    return (
        "select range as id, (hash(range) // 2)::bigint as key, random() as amount, md5(range::text) as token "
        f"from range({ids.start}, {ids.stop})"
    )


@contextmanager
def _arrow(ids: range) -> Iterator[pa.RecordBatchReader]:
    """New rows, for engines that take Arrow."""
    with duckdb.connect() as con:
        yield con.sql(_select(ids)).to_arrow_reader(65_536)


class _Named:
    row_bytes: ClassVar[int]
    engine: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = f"events_{self.engine}"
        self.dataset = Dataset(self.name, self.engine, folder / self.name)

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        with engine_named(self.engine).connect_live(self.dataset) as connection:
            yield connection


class _DuckDB(_Named):
    engine = "duckdb"
    row_bytes = 34

    def build(self, rows: int) -> None:
        with self._connected() as con:
            con.execute(f"create table {self.name} as {_select(range(rows))}")
            con.execute("checkpoint")

    def change(self, kind: ChangeKind, number: int) -> None:
        with self._connected() as con:
            [rows] = con.execute(f"select count(*) from {self.name}").fetchone()
            if kind == "appended":
                con.execute(f"insert into {self.name} {_select(_changed(kind, number, rows))}")
            else:
                con.execute(f"update {self.name} set amount = amount + 1 where {_where(kind, number, rows)}")
            con.execute("checkpoint")

    def plain(self, folder: Path) -> Path:
        with duckdb.connect(str(self.dataset.path)) as con:
            con.execute("checkpoint")
        return Path(shutil.copyfile(self.dataset.path, folder / "copy"))


class _SQLite(_Named):
    engine = "sqlite"
    row_bytes = 60

    def build(self, rows: int) -> None:
        with closing(sqlite3.connect(self.dataset.path)) as con:
            con.execute("pragma journal_mode = wal")
            con.execute(f"create table {self.name} {_SQLITE_TABLE}")
            _insert_sqlite(con, self.name, range(rows))

    def change(self, kind: ChangeKind, number: int) -> None:
        with closing(sqlite3.connect(self.dataset.path)) as con:
            change_sqlite(con, self.name, kind, number)

    def plain(self, folder: Path) -> Path:
        with closing(sqlite3.connect(self.dataset.path)) as con:
            con.execute("pragma wal_checkpoint(truncate)")
        return Path(shutil.copyfile(self.dataset.path, folder / "copy"))


def change_sqlite(con: sqlite3.Connection, table: str, kind: ChangeKind, number: int) -> None:
    """A change of 1 % of the rows of a SQLite database."""
    [rows] = con.execute(f"select count(*) from {table}").fetchone()
    if kind == "appended":
        _insert_sqlite(con, table, _changed(kind, number, rows))
        return
    with con:
        con.execute(f"update {table} set amount = amount + 1 where {_where(kind, number, rows)}")


def _insert_sqlite(con: sqlite3.Connection, table: str, ids: range) -> None:
    with con:
        con.execute(
            f"insert into {table} with recursive n(i) as (select {ids.start} union all select i + 1 from n "
            f"where i < {ids.stop - 1}) select i, {_SQLITE_ROW} from n"
        )


class _Turso(_Named):
    engine = "turso"
    row_bytes = _SQLite.row_bytes

    def build(self, rows: int) -> None:
        with self._connected() as con:
            con.execute(f"create table {self.name} {_SQLITE_TABLE}")
            self._insert(con, range(rows))

    def change(self, kind: ChangeKind, number: int) -> None:
        with self._connected() as con:
            [rows] = con.execute(f"select count(*) from {self.name}").fetchone()
            if kind == "appended":
                self._insert(con, _changed(kind, number, rows))
            else:
                con.execute(f"update {self.name} set amount = amount + 1 where {_where(kind, number, rows)}")

    def _insert(self, con: Any, ids: range) -> None:
        series = f"generate_series({ids.start}, {ids.stop - 1})"
        con.execute(f"insert into {self.name} select value, {_SQLITE_ROW} from {series}")

    def plain(self, folder: Path) -> Path:
        with self._connected() as con:
            con.execute("pragma wal_checkpoint(truncate)").fetchall()
            return Path(shutil.copyfile(self.dataset.path, folder / "copy"))


class _Cayenne(_Named):
    engine = "cayenne"
    row_bytes = 34

    def build(self, rows: int) -> None:
        with _arrow(range(rows)) as reader, self._connected() as table:
            table.define(reader.schema, primary_key=["id"])
            table.append(reader)

    def change(self, kind: ChangeKind, number: int) -> None:
        with self._connected() as table:
            ids = _changed(kind, number, table.count())
            if kind == "appended":
                with _arrow(ids) as reader:
                    table.append(reader)
                return
            wanted = pa.array(np.arange(ids.start, ids.stop, ids.step))
            matching = (batch.filter(pc.is_in(batch["id"], wanted)) for batch in table.scan())
            rows = pa.Table.from_batches(list(matching), schema=table.schema)
            place = rows.schema.get_field_index("amount")
            table.upsert(rows.set_column(place, rows.schema.field(place), pc.add(rows["amount"], 1.0)))

    def plain(self, folder: Path) -> Path:
        del folder  # its data files never change, so nothing has to be copied
        with closing(sqlite3.connect(self.dataset.path / "metadata" / "cayenne.db")) as con:
            con.execute("pragma wal_checkpoint(truncate)")
        return self.dataset.path


class _Lance(_Named):
    engine = "lance"
    row_bytes = 39

    def build(self, rows: int) -> None:
        with _arrow(range(rows)) as reader, self._connected() as table:
            table.write(reader)

    def change(self, kind: ChangeKind, number: int) -> None:
        with self._connected() as table:
            rows = table.dataset.count_rows()
            if kind == "appended":
                with _arrow(_changed(kind, number, rows)) as reader:
                    table.write(reader)
            else:
                table.dataset.update({"amount": "amount + 1"}, where=_where(kind, number, rows))

    def plain(self, folder: Path) -> Path:
        del folder  # its files never change, and every write is whole
        return self.dataset.path


LIVE: Final[Mapping[str, Callable[[Path], LiveDatabase]]] = {
    "duckdb": _DuckDB,
    "sqlite": _SQLite,
    "turso": _Turso,
    "cayenne": _Cayenne,
    "lance": _Lance,
}
"""For each engine its live databases, made with the folder that they get."""
