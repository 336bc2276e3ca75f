"""What SQL over several datasets costs each engine, beside the engine's own way to read the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.live import LIVE, LiveDatabase
from benchmarks.measure import Contender, Report, Sample, alternate
from benchmarks.settings import Settings
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["catalogue"]

_IO: Final = Path("/proc/self/io")


@dataclass(frozen=True, slots=True)
class _Query:
    """A query of one table: some columns of all rows, or of one row."""

    what: str
    columns: tuple[str, ...]
    row: int | None = None

    def sql(self, table: str) -> str:
        """It, in every engine's SQL."""
        if self.row is None:
            return f"select {', '.join(f'sum({column})' for column in self.columns)} from {table}"
        return f"select {', '.join(self.columns)} from {table} where id = {self.row}"


def catalogue(settings: Settings) -> Iterator[Report]:
    """The catalogue, beside the engines themselves: a join of all, one column of many, one row of many.

    What is read is counted once, by a reader that has just been opened, so that no engine has anything in its memory;
    the operating system may. Where the operating system does not count it, it is left out.
    """
    store = SnapshotStore.open(str(settings.scratch / "store"))
    databases = [kind(settings.scratch / engine) for engine, kind in LIVE.items()]
    rows = settings.database_bytes // max(live.row_bytes for live in databases)
    with Publisher(store) as publisher:
        for live in databases:
            live.build(rows)
            publisher.publish(live.dataset)
    opened = _Opened(store, settings.scratch / "reader", databases)
    yield _joined(opened, rows, settings)
    queries = [
        _Query(f"one column of four, all {rows:,} rows", ("amount",)),
        _Query(f"all columns of one of {rows:,} rows", ("id", "key", "amount", "token"), rows // 2),
    ]
    for query in queries:
        yield _pushed_down(opened, query, settings)


class _Opened:
    """Opens readers of the same local copies, one after another."""

    def __init__(self, store: SnapshotStore, data_dir: Path, databases: list[LiveDatabase]) -> None:
        self._store = store
        self._data_dir = data_dir
        self.databases = databases

    def __call__(self) -> SnapshotReader:
        reader = SnapshotReader(self._store, self._data_dir, ReaderSettings(refresh_interval=None))
        for live in self.databases:
            reader.follow(live.dataset.name, refresh=False)
        reader.catalog.query("select 1")
        return reader


def _joined(opened: _Opened, rows: int, settings: Settings) -> Report:
    """A join of all engines' tables, beside reading the same columns with each engine and joining what came."""
    names = [live.dataset.name for live in opened.databases]
    first, *others = [f"(select id, amount from {name}.main.{name}) as {name}" for name in names]
    total = " + ".join(f"{name}.amount" for name in names)
    sql = f"select count(*), sum({total}) from {first} {' '.join(f'join {other} using (id)' for other in others)}"
    scan = _Query("", ("id", "amount"))
    with opened() as reader:

        def ours() -> None:
            assert reader.catalog.query(sql).column(0).to_pylist() == [rows]

        def by_hand() -> None:
            with closing(duckdb.connect()) as con:
                for live in opened.databases:
                    con.register(f"scanned_{live.dataset.name}", _own_rows(live, reader, scan))
                text = sql
                for name in names:
                    text = text.replace(f"from {name}.main.{name}", f"from scanned_{name}")
                assert con.execute(text).fetchone()[0] == rows  # type: ignore[index]  # there is a row

        def in_one() -> None:
            assert con.execute(sql.replace(".main.", "_")).fetchone()[0] == rows  # type: ignore[index]

        with closing(duckdb.connect(str(settings.scratch / "one.duckdb"))) as con:
            for name in names:
                con.register("fetched", reader.catalog.query(f"select id, amount from {name}.main.{name}"))
                con.execute(f"create table {name}_{name} as from fetched")
                con.unregister("fetched")
            con.execute("checkpoint")
            contenders: Mapping[str, Contender] = {
                "catalogue": ours,
                "each engine's own scan to Arrow, then a join": by_hand,
                "all in one DuckDB file": in_one,
            }
            samples = alternate(contenders, rounds=settings.rounds)
    title = f"A join of five tables of {rows:,} rows, an engine each"
    return Report(title, "no slower than the engines' own scans", samples=samples)


def _pushed_down(opened: _Opened, query: _Query, settings: Settings) -> Report:
    samples: dict[str, list[Sample]] = {}
    for live in opened.databases:
        engine, name = live.dataset.engine, live.dataset.name
        sql = query.sql(f"{name}.main.{name}")
        notes: list[dict[str, float]] = []
        for work in (_by_catalogue(sql), _by_engine(live, query)):
            with opened() as reader:
                before = _bytes_read()
                work(reader)()
                read = {} if before is None else {"read, MiB": ((_bytes_read() or 0) - before) / 1024**2}
            notes.append(read)
        with opened() as reader:
            notes[0]["rows to DuckDB"] = _rows_scanned(reader, sql)
            mine, own = f"{engine}, catalogue", f"{engine}, itself"
            contenders = {mine: _by_catalogue(sql)(reader), own: _by_engine(live, query)(reader)}
            taken = alternate(contenders, rounds=settings.rounds)
        for (contender, found), noted in zip(taken.items(), notes, strict=True):
            samples[contender] = [replace(sample, notes=noted) for sample in found]
    bases = {name: name.replace("catalogue", "itself") for name in samples if name.endswith("catalogue")}
    title = f"SQL of one table: {query.what}"
    return Report(title, "what the engine itself reads", "ms", samples=samples, ratio="this / itself", bases=bases)


def _bytes_read() -> int | None:
    """What this process has asked the operating system to read from files, cached or not."""
    if not _IO.exists():
        return None
    return int(dict(line.split(": ") for line in _IO.read_text().splitlines())["rchar"])


def _rows_scanned(reader: SnapshotReader, sql: str) -> int:
    """The rows that the scan of a statement with one scan handed on to DuckDB."""
    [plan] = reader.catalog.query(f"explain (analyze, format json) {sql}").column(1).to_pylist()
    [operator] = json.loads(plan)["operator"]
    while operator.get("children"):
        [operator] = operator["children"]
    return int(operator["intermediate_rows"])


def _by_catalogue(sql: str) -> Callable[[SnapshotReader], Contender]:
    def prepare(reader: SnapshotReader) -> Contender:
        def work() -> None:
            assert reader.catalog.query(sql).num_rows == 1

        return work

    return prepare


def _by_engine(live: LiveDatabase, query: _Query) -> Callable[[SnapshotReader], Contender]:
    """The engine's own means: SQL where it has some, otherwise a scan, and Arrow's sums."""
    name = live.dataset.name

    def prepare(reader: SnapshotReader) -> Contender:
        def work() -> None:
            if live.dataset.engine in {"duckdb", "sqlite", "turso"}:
                with reader.follow(name, refresh=False).connect() as con:
                    assert len(con.execute(query.sql(name)).fetchall()) == 1
                return
            rows = _own_rows(live, reader, query)
            if query.row is None:
                assert all(pc.sum(rows.column(column)).is_valid for column in query.columns)
            else:
                assert rows.num_rows == 1

        return work

    return prepare


def _own_rows(live: LiveDatabase, reader: SnapshotReader, query: _Query) -> pa.Table:
    """Rows by the engine's own scan, as Arrow."""
    name, columns, row = live.dataset.name, list(query.columns), query.row
    with reader.follow(name, refresh=False).connect() as con:
        match live.dataset.engine:
            case "lance":
                return con.to_table(columns=columns, filter=None if row is None else f"id = {row}")
            case "cayenne":
                return con.scan(columns, None if row is None else pc.field("id") == row).read_all()
            case "duckdb":
                return con.sql(f"select {', '.join(columns)} from {name}").to_arrow_table()
            case _:
                return _as_arrow(con.execute(f"select {', '.join(columns)} from {name}"), columns)


def _as_arrow(cursor: Any, columns: list[str]) -> pa.Table:
    return pa.table(dict(zip(columns, map(list, zip(*cursor.fetchall(), strict=True)), strict=True)))
