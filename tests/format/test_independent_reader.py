"""The written format suffices: a reader that was made from it alone restores whatever is published."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pytest

from snapshot_assets import Dataset, Publisher, SnapshotStore
from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.engines.contract import Captured, StagedFile
from snapshot_assets.engines.sqlite import SQLiteEngine
from snapshot_assets.model.manifest import Layout, TableContent
from tests.format.independent_reader import MIB, FormatError, restore

NAME = "orders"
TABLES = ("orders", "Line items")
CREATE = {
    "duckdb": """
        create table orders (id bigint, note varchar, weight double);
        create table "Line items" (
            a decimal(10, 2) not null, b integer[], c struct(x integer, y varchar), d timestamptz, e enum ('p', 'q'),
            f uuid, g hugeint, h date, i blob, j map(varchar, integer), k time, l interval, m boolean
        );
        create view heavy as select * from orders where weight > 0.5;
        insert into orders select i, 'note ' || md5(i::varchar), random() from range({rows}) r(i);
        insert into "Line items" (a, b, e) select i, [i, i + 1], 'p' from range(1000) r(i);
    """,
    "sqlite": """
        create table orders (id integer primary key, note text not null, weight real);
        create table "Line items" (a decimal(10, 2) not null, b blob, c, primary key (a)) without rowid;
        create view heavy as select * from orders where weight > 0.5;
        with recursive r(i) as (select 0 union all select i + 1 from r where i + 1 < {rows})
            insert into orders select i, 'note ' || hex(randomblob(40)) || i, i / 3.0 from r;
        insert into "Line items" values (1, x'00', null);
    """,
}
ROWS = {"duckdb": 800_000, "sqlite": 250_000}
APPEND = "insert into orders select max(id) + 1, 'appended', 0.25 from orders"
UPDATE = "update orders set note = 'updated ' || id where id % 50021 = 7"
DELETE = "delete from orders where id between 1000 and 60000"
GROW_OTHER = 'insert into "Line items" (a) values (-1)'


def execute(path: Path, engine: str, statements: str) -> None:
    """Change a live database and close it, so that the file is complete."""
    if engine == "duckdb":
        with duckdb.connect(str(path)) as connection:
            connection.execute(statements)
        return
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"begin; {statements}; commit;")


def same_content(first: Path, second: Path, engine: str) -> bool:
    """Whether two databases hold the same tables, views and rows."""
    if engine == "sqlite":
        with closing(sqlite3.connect(first)) as one, closing(sqlite3.connect(second)) as two:
            order = {"orders": "id", "Line items": "a"}
            queries = ["select type, name, sql from sqlite_schema order by name"]
            queries += [f'select * from "{table}" order by "{order[table]}"' for table in TABLES]
            return all(
                left == right
                for query in queries
                for left, right in zip(one.execute(query), two.execute(query), strict=True)
            )
    with duckdb.connect() as connection:
        connection.execute(f"attach '{first}' as one (read_only); attach '{second}' as two (read_only)")
        sides: list[set[object]] = [
            {
                *connection.sql(
                    f"select table_name, column_name, data_type from duckdb_columns() where database_name = '{side}'"
                ).fetchall(),
                *connection.sql(f"select view_name, sql from duckdb_views() where database_name = '{side}'").fetchall(),
            }
            for side in ("one", "two")
        ]
        counts = [
            [connection.sql(f'select count(*) from {side}."{table}"').fetchall() for table in TABLES]
            for side in ("one", "two")
        ]
        missing = [
            connection.sql(f'select 1 from (from one."{table}" except all from two."{table}") limit 1').fetchall()
            for table in TABLES
        ]
        return sides[0] == sides[1] and counts[0] == counts[1] and not any(missing)


def published_bytes(store: SnapshotStore, snapshot_id: int, folder: Path) -> dict[str, tuple[int, bytes]]:
    """What the package itself restores: mode and bytes by path."""
    head = store.head(NAME)
    entry = next(entry for entry in head.snapshots if entry.snapshot_id == snapshot_id)
    content = read_content(store.objects, NAME, head.incarnation, entry.operation_id, entry.manifest_digest)
    folder.mkdir(parents=True)
    restore_files(store.objects, content, folder)
    return files_in(folder)


def files_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and bytes of every file below a folder, by path."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mode, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass
class History:
    """A store, and what the live database held at each snapshot in it."""

    engine: str
    root: Path
    live: Path
    kept: dict[int, Path] = field(default_factory=dict)

    @property
    def dataset(self) -> Dataset:
        return Dataset(name=NAME, engine=self.engine, path=self.live)

    @property
    def folder(self) -> Path:
        """Where the data of the only incarnation lies."""
        (found,) = (self.root / "data" / NAME).iterdir()
        return found

    @property
    def listed(self) -> list[int]:
        head = json.loads((self.root / "heads" / f"{NAME}.json").read_bytes())
        return [entry["snapshot_id"] for entry in head["snapshots"]]

    def operation(self, snapshot_id: int) -> Path:
        """The folder of the operation that wrote a snapshot."""
        head = json.loads((self.root / "heads" / f"{NAME}.json").read_bytes())
        (found,) = (e["operation_id"] for e in head["snapshots"] if e["snapshot_id"] == snapshot_id)
        return self.folder / str(found)

    def publish(self, publisher: Publisher) -> str:
        """Publish the live database, and keep a copy of it for the snapshot that holds it."""
        result = publisher.publish(self.dataset)
        if result.outcome == "published":
            self.kept[result.snapshot_id] = self.live.with_name(f"kept-{result.snapshot_id}")
            shutil.copyfile(self.live, self.kept[result.snapshot_id])
        return result.outcome


@pytest.fixture(scope="module", params=["duckdb", "sqlite"])
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> History:
    base = tmp_path_factory.mktemp(request.param)
    (base / "live").mkdir()
    made = History(request.param, base / "store", base / "live" / "orders.db")
    publisher = Publisher(SnapshotStore.open(str(made.root)))
    create = CREATE[made.engine].format(rows=ROWS[made.engine])
    for statements in (create, APPEND, APPEND, GROW_OTHER, UPDATE, DELETE, APPEND):
        execute(made.live, made.engine, statements)
        assert made.publish(publisher) == "published"
        assert made.publish(publisher) == "unchanged"
    made.live.unlink()
    execute(made.live, made.engine, create)
    assert made.publish(publisher) == "published"
    assert made.listed == list(range(8)) == list(made.kept)
    return made


def test_every_listed_snapshot_is_restored_bit_for_bit(history: History, tmp_path: Path) -> None:
    store = SnapshotStore.open(str(history.root), read_only=True)
    for snapshot_id in history.listed:
        restored = restore(history.root, NAME, snapshot_id, tmp_path / f"here-{snapshot_id}")
        expected = published_bytes(store, snapshot_id, tmp_path / f"there-{snapshot_id}")
        assert files_in(tmp_path / f"here-{snapshot_id}") == expected
        assert [path.relative_to(tmp_path / f"here-{snapshot_id}").as_posix() for path in restored] == list(expected)


def test_every_listed_snapshot_holds_what_the_live_database_held(history: History, tmp_path: Path) -> None:
    for snapshot_id, kept in history.kept.items():
        (restored,) = restore(history.root, NAME, snapshot_id, tmp_path / str(snapshot_id))
        assert same_content(restored, kept, history.engine)
    assert not same_content(restored, history.kept[0], history.engine), "the comparison sees no difference"


def test_without_an_id_the_current_snapshot_is_restored(history: History, tmp_path: Path) -> None:
    (current,) = restore(history.root, NAME, None, tmp_path / "current")
    (newest,) = restore(history.root, NAME, max(history.listed), tmp_path / "newest")
    assert current.read_bytes() == newest.read_bytes()


def test_the_history_is_one_that_shares_packs_and_segments(history: History) -> None:
    """Otherwise the tests above would show less than they say."""
    manifests = [json.loads((history.operation(i) / "manifest.json").read_bytes()) for i in history.listed]
    assert len(manifests[3]["operations"]) > 1
    assert all(manifest["files"][0]["size"] > 16 * MIB for manifest in manifests)
    appended = sum(path.stat().st_size for path in history.operation(2).iterdir())
    assert appended < manifests[2]["files"][0]["size"] / 20


def test_a_damaged_pack_never_gives_other_bytes(history: History, tmp_path: Path) -> None:
    root = shutil.copytree(history.root, tmp_path / "store")
    (pack, *_) = sorted((root / history.operation(1).relative_to(history.root)).glob("*.pack"))
    whole = pack.read_bytes()
    for position in random.Random(1).sample(range(len(whole)), 25):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        pack.write_bytes(damaged)
        with pytest.raises(FormatError):
            restore(root, NAME, 1, tmp_path / f"flipped-{position}")
    pack.write_bytes(whole[:-1])
    with pytest.raises(FormatError):
        restore(root, NAME, 1, tmp_path / "short")
    pack.unlink()
    with pytest.raises(FormatError):
        restore(root, NAME, 1, tmp_path / "gone")


@pytest.mark.parametrize(("name", "what"), [("manifest.json", "manifest"), ("index.arrow", "index")])
def test_a_damaged_manifest_or_index_is_refused(history: History, tmp_path: Path, name: str, what: str) -> None:
    root = shutil.copytree(history.root, tmp_path / "store")
    path = root / history.operation(0).relative_to(history.root) / name
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(FormatError, match=f"the {what} has another digest"):
        restore(root, NAME, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("page_size", [512, 65536])
def test_the_smallest_and_the_largest_pages_are_restored(tmp_path: Path, page_size: int) -> None:
    made = History("sqlite", tmp_path / "store", tmp_path / "live" / "orders.db")
    made.live.parent.mkdir()
    with closing(sqlite3.connect(made.live)) as connection:
        connection.execute(f"pragma page_size = {page_size}")
        connection.execute("create table t (a)")
    store = SnapshotStore.open(str(made.root))
    for rows in (150_000, 1):
        with closing(sqlite3.connect(made.live)) as connection, connection:
            connection.executemany("insert into t values (randomblob(120))", [()] * rows)
        made.publish(Publisher(store))
    for snapshot_id in made.listed:
        restore(made.root, NAME, snapshot_id, tmp_path / f"here-{snapshot_id}")
        expected = published_bytes(store, snapshot_id, tmp_path / f"there-{snapshot_id}")
        assert files_in(tmp_path / f"here-{snapshot_id}") == expected


def test_snapshots_stay_readable_while_old_packs_are_rewritten_and_old_snapshots_dropped(tmp_path: Path) -> None:
    """Each of many changes adds what stays in use, so that a snapshot comes to need packs of many operations."""
    made = History("sqlite", tmp_path / "store", tmp_path / "live" / "orders.db")
    made.live.parent.mkdir()
    store = SnapshotStore.open(str(made.root))
    publisher = Publisher(store, max_snapshots=6)
    execute(made.live, "sqlite", CREATE["sqlite"].format(rows=1000))
    needed = []
    for change in range(36):
        rows = f"with recursive r(i) as (select 1 union all select i + 1 from r where i < {200 + change})"
        execute(made.live, "sqlite", f"{rows} insert into orders (note) select hex(randomblob(1500)) from r")
        assert made.publish(publisher) == "published"
        manifest = json.loads((made.operation(change) / "manifest.json").read_bytes())
        needed.append(len(manifest["operations"]))
    assert made.listed == list(range(30, 36))
    assert max(needed) == 32, "nothing had to be rewritten"
    for snapshot_id in made.listed:
        (restored,) = restore(made.root, NAME, snapshot_id, tmp_path / f"here-{snapshot_id}")
        expected = published_bytes(store, snapshot_id, tmp_path / f"there-{snapshot_id}")
        assert files_in(tmp_path / f"here-{snapshot_id}") == expected
        assert same_content(restored, made.kept[snapshot_id], "sqlite")


class WithDocuments(SQLiteEngine):
    """SQLite, with a folder of immutable files beside it, as an engine of many files would stage it."""

    def __init__(self, documents: Path) -> None:
        self.documents = documents

    def capture(self, dataset: Dataset, staging: Path, *, timeout: float) -> Captured:
        captured = super().capture(dataset, staging, timeout=timeout)
        found = [path for path in sorted(self.documents.rglob("*")) if path.is_file()]
        documents = [
            StagedFile(
                f"documents/{path.relative_to(self.documents).as_posix()}",
                path,
                path.stat().st_size,
                0o640,
                Layout.whole(),
            )
            for path in found
        ]
        return Captured((*documents, *captured.files), captured.engine_version, captured.storage_version)

    def describe(self, dataset: Dataset, folder: Path, files: Sequence[str]) -> Mapping[str, TableContent]:
        return super().describe(dataset, folder, [path for path in files if path.endswith(".sqlite")])

    def verify(self, *_: object) -> None:
        """The database was looked at by `describe`."""


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    monkeypatch.setattr("snapshot_assets.publish.publisher.engine_named", lambda _: WithDocuments(folder))
    return folder


def test_whole_files_are_restored_among_others(documents: Path, tmp_path: Path) -> None:
    made = History("sqlite", tmp_path / "store", tmp_path / "live" / "orders.db")
    made.live.parent.mkdir()
    store = SnapshotStore.open(str(made.root))
    execute(made.live, "sqlite", CREATE["sqlite"].format(rows=1000))
    noise = random.Random(2)
    kept: list[dict[str, bytes]] = []
    for written in (
        {"a.vortex": noise.randbytes(20 * MIB + 1), "deep/b.vortex": b"b" * 8 * MIB, "empty": b"", "é.json": b"{}"},
        {"c.vortex": noise.randbytes(8 * MIB + 1), "deep/d.vortex": b""},
        {"a.vortex": b"short now"},
    ):
        for path, data in written.items():
            (documents / path).parent.mkdir(exist_ok=True)
            (documents / path).write_bytes(data)
        assert made.publish(Publisher(store)) == "published"
        kept.append({f"documents/{path}": data for path, (_, data) in files_in(documents).items()})
    for snapshot_id, expected in enumerate(kept):
        restore(made.root, NAME, snapshot_id, tmp_path / f"here-{snapshot_id}")
        here = files_in(tmp_path / f"here-{snapshot_id}")
        assert here == published_bytes(store, snapshot_id, tmp_path / f"there-{snapshot_id}")
        assert {path: data for path, (_, data) in here.items() if path.startswith("documents/")} == expected
    assert sum(path.stat().st_size for path in made.operation(1).iterdir()) < 9 * MIB, "whole files were not reused"
