"""`query`, `verify`: the rows of snapshots, and whether their bytes are whole."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, cast

import typer

from snapshot_assets.cli.options import DatasetName, JsonOutput, StoreOptions, StoreUrl, WantedSnapshot, open_store
from snapshot_assets.cli.output import count, print_json, print_table, spinner
from snapshot_assets.cli.values import json_value, text_value
from snapshot_assets.errors import QueryRefused

if TYPE_CHECKING:
    import pyarrow as pa


__all__ = ["query", "verify"]


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
        SnapshotReader(opened, Path(folder), ReaderSettings(refresh_interval=None, announce_interval=None)) as reader,
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
