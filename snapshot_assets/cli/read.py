"""`query`, `pull`, `verify`: the rows and the bytes of snapshots."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, cast

import typer

from snapshot_assets.cli.look import wanted_entry
from snapshot_assets.cli.options import DatasetName, JsonOutput, StoreOptions, StoreUrl, WantedSnapshot, open_store
from snapshot_assets.cli.output import count, print_facts, print_json, print_table, progress, size_text, spinner
from snapshot_assets.cli.values import json_value, text_value
from snapshot_assets.errors import ConfigurationError, QueryRefused

if TYPE_CHECKING:
    import pyarrow as pa

    from snapshot_assets.content.restore import Restored
    from snapshot_assets.content.snapshot import Content
    from snapshot_assets.store.contract import Store

__all__ = ["pull", "query", "verify"]


class VerifyDepth(StrEnum):
    """How thoroughly a snapshot is verified."""

    SIZES = "sizes"
    DIGEST = "digest"
    RESTORE = "restore"


class Format(StrEnum):
    """How the rows of a query are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    ARROW = "arrow"


def query(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The dataset; with --all, the SQL.")],
    store: StoreUrl,
    sql: Annotated[str | None, typer.Argument(metavar="SQL", help="One statement, in the engine's own SQL.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every dataset in one DuckDB session, its tables named dataset.main.table.")
    ] = False,
    output: Annotated[Format, typer.Option("--format", help="How to print the rows.")] = Format.TABLE,
    store_option: StoreOptions = None,
    as_json: JsonOutput = False,
) -> None:
    """Run one statement on current snapshots, fetched for this once."""
    from snapshot_assets.reader.reader import SnapshotReader
    from snapshot_assets.reader.settings import ReaderSettings

    if everything == (sql is not None):
        raise typer.BadParameter("give NAME and SQL, or --all and SQL", param_hint="'SQL'")
    opened = open_store(store, store_option, read_only=True)
    with (
        TemporaryDirectory(prefix="snapshot-assets-") as folder,
        SnapshotReader(opened, Path(folder), ReaderSettings(refresh_interval=None)) as reader,
    ):
        with spinner("Fetching"):
            datasets = sorted(opened.heads()) if everything else [name]
            providers = [reader.follow(dataset, refresh=False) for dataset in datasets]
        with _engine_errors():
            result = reader.catalog.query(name) if sql is None else providers[0].query(sql)
    _print_rows(result, Format.JSON if as_json else output)


@contextmanager
def _engine_errors() -> Iterator[None]:
    """What an engine says of a statement, as an error of ours.

    Raises:
        QueryRefused: the engine could not run it.
    """
    import sqlite3

    import duckdb

    try:
        yield
    except (duckdb.Error, sqlite3.Error) as error:
        raise QueryRefused(f"the engine can not run this statement: {error}", hint="Correct the statement.") from error


def pull(
    name: DatasetName,
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="The folder to make; it must not exist, or be empty.")
    ],
    store: StoreUrl,
    store_option: StoreOptions = None,
    snapshot: WantedSnapshot = None,
    as_json: JsonOutput = False,
) -> None:
    """Fetch a checked copy of a snapshot's files into a folder that appears only when it is complete."""
    from snapshot_assets.content.snapshot import read_content

    started = time.monotonic()
    _check_free(to)
    opened = open_store(store, store_option, read_only=True)
    head = opened.head(name)
    entry = wanted_entry(head, snapshot)
    content = read_content(opened.objects, name, head.incarnation, entry.operation_id, entry.manifest_digest)
    with progress(f"Fetching {name}", content.manifest.data_bytes) as moved:
        restored = _restore(opened.objects, content, to, moved)
    document = {
        "dataset": name,
        "snapshot_id": entry.snapshot_id,
        "operation_id": entry.operation_id,
        "content_digest": entry.content_digest,
        "path": str(to.resolve()),
        "files": [file.path for file in content.manifest.files],
        "data_bytes": content.manifest.data_bytes,
        "fetched_bytes": restored.fetched_bytes,
        "seconds": round(time.monotonic() - started, 3),
    }
    if as_json:
        print_json(document)
        return
    typer.echo(f"Snapshot {entry.snapshot_id} of {name} is in {to}, every digest checked.")
    print_facts(
        [
            ("files", ", ".join(file.path for file in content.manifest.files)),
            ("data", f"{size_text(content.manifest.data_bytes)}, fetched as {size_text(restored.fetched_bytes)}"),
        ]
    )


def _check_free(folder: Path) -> None:
    """Refuse to fetch into a place where something is."""
    try:
        taken = folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir())))
    except OSError as error:
        raise ConfigurationError(f"{folder} can not be looked into: {error.strerror}") from error
    if taken:
        raise ConfigurationError(
            f"{folder} is there already, and not an empty folder", hint="Name a folder that does not exist yet."
        )


def _restore(objects: Store, content: Content, folder: Path, on_progress: Callable[[int], None]) -> Restored:
    """Build the files beside their place, then give them their name in one durable step."""
    from snapshot_assets.content.restore import restore_files
    from snapshot_assets.durable import sync_folder
    from snapshot_assets.ids import new_ulid
    from snapshot_assets.reader.data_dir import BUILDING, remove_folder

    parent = folder.absolute().parent
    building = parent / f"{BUILDING}{new_ulid()}"
    try:
        building.mkdir(parents=True)
        restored = restore_files(objects, content, building, on_progress=on_progress)
        building.rename(folder)
        sync_folder(parent)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} can not be made: {error}", hint="Name a folder that this user may make."
        ) from error
    finally:
        remove_folder(building)
    return restored


def verify(
    name: DatasetName,
    store: StoreUrl,
    store_option: StoreOptions = None,
    snapshot: WantedSnapshot = None,
    level: Annotated[
        VerifyDepth,
        typer.Option(
            "--level",
            help="sizes: every object is there in its size; digest: every byte is read and checked; "
            "restore: the snapshot is restored and opened by its engine.",
        ),
    ] = VerifyDepth.DIGEST,
    as_json: JsonOutput = False,
) -> None:
    """Check that a snapshot is complete and undamaged in the store."""
    from snapshot_assets.maintenance.maintenance import Maintenance

    opened = open_store(store, store_option, read_only=True)
    with spinner(f"Verifying {name}"):
        result = Maintenance(opened).verify(name, snapshot, level=level.value)
    if as_json:
        print_json(result.to_json())
    else:
        typer.echo(f"Snapshot {result.snapshot_id} of {name} is complete and undamaged ({level.value}).")


def _print_rows(table: pa.Table, output: Format) -> None:
    import pyarrow as pa

    columns = table.column_names
    match output:
        case Format.ARROW:
            _write_arrow(table)
        case Format.JSON:
            print_json({"columns": columns, "rows": [[json_value(cell) for cell in row] for row in _rows(table)]})
        case Format.CSV:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([text_value(cell) for cell in row] for row in _rows(table))
        case Format.TABLE:
            numeric = [
                field.name
                for field in table.schema
                if pa.types.is_integer(field.type)
                or pa.types.is_floating(field.type)
                or pa.types.is_decimal(field.type)
            ]
            print_table(columns, [[text_value(cell) for cell in row] for row in _rows(table)], right=numeric)
            typer.echo(f"({count(table.num_rows)} rows)" if table.num_rows != 1 else "(1 row)")


def _rows(table: pa.Table) -> Iterator[tuple[object, ...]]:
    """The rows one after the other; by position, since two columns may share a name."""
    for batch in table.to_batches():
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _write_arrow(table: pa.Table) -> None:
    import pyarrow as pa

    if sys.stdout.isatty():
        raise typer.BadParameter("Arrow data is not for a terminal; send it to a file", param_hint="'--format'")
    sink = pa.PythonFile(cast("io.IOBase", sys.stdout.buffer), mode="w")
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
