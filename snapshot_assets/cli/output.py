"""What a verb says: one JSON document or text for people, errors, progress."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ParamSpec

import typer

from snapshot_assets.errors import SnapshotAssetsError

__all__ = [
    "count",
    "duration_text",
    "print_error",
    "print_facts",
    "print_json",
    "print_table",
    "progress",
    "size_text",
    "spinner",
    "time_text",
    "verb",
]

P = ParamSpec("P")


def verb(function: Callable[P, None]) -> Callable[P, None]:
    """The function as a command: a typed error is reported and makes the exit code 1."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except SnapshotAssetsError as error:
            if kwargs.get("as_json"):
                print_json({"error": error.to_json()})
            print_error(error)
            raise typer.Exit(1) from None

    return run


def print_error(error: SnapshotAssetsError) -> None:
    """The error on standard error: its kind, what happened, and what to do."""
    typer.echo(typer.style(error.kind, fg="red", bold=True) + f": {error.message}", err=True)
    if error.dataset or error.operation_id:
        named = (("dataset", error.dataset), ("operation", error.operation_id))
        typer.echo("  " + ", ".join(f"{what} {value}" for what, value in named if value), err=True)
    if error.hint:
        typer.echo(f"  hint: {error.hint}", err=True)


def print_json(document: object) -> None:
    """The one document that a verb prints under --json."""
    typer.echo(json.dumps(document, ensure_ascii=False, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table for people: as wide as the terminal, or as wide as it needs to be in a file or a pipe."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(Text(column), justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _console().print(table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names and values, one a line."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        typer.echo(f"  {name:<{width}}  {value}")


def _console() -> Any:
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=10_000, soft_wrap=True)


@contextmanager
def spinner(what: str) -> Iterator[None]:
    """A sign of life on standard error, on a terminal only, while the work in the block goes on."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


@contextmanager
def progress(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, on a terminal only; the block calls with the bytes that it has moved on by."""
    if not sys.stderr.isatty():
        yield lambda _bytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda moved: bar.update(task, advance=moved)


def count(number: int) -> str:
    """A number with its thousands apart."""
    return f"{number:,}"


def size_text(size: int) -> str:
    """A size in bytes, for people."""
    amount, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"


def duration_text(seconds: float) -> str:
    """A length of time, for people."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def time_text(at_ms: int | None) -> str:
    """A time of a document, for people, in UTC."""
    return "-" if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
