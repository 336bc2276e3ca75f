"""`python -m benchmarks [NAME ...] [--full]`: each benchmark prints one table or more."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer
from rich.console import Console

from benchmarks.measure import Report
from benchmarks.settings import Settings

_MIB: Final = 1024 * 1024
_BENCHMARKS: Final[Mapping[str, str]] = {
    "p1": "publishing",
    "p2": "changing",
    "p3": "publishing",
    "p4": "fetching",
    "p5": "fetching",
    "p8": "reading",
    "p9": "reading",
    "p13": "starting",
    "catalogue": "catalogue",
}


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Which: {', '.join(_BENCHMARKS)}; all if left out.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Live databases of 1 GiB, and more rounds.")] = False,  # noqa: FBT002
    size_mib: Annotated[int, typer.Option("--size-mib", min=1, help="The size of the live databases.")] = 128,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often each contender runs.")] = 3,
    scratch: Annotated[
        Path | None, typer.Option("--scratch", help="Where scratch files go; a temporary folder if left out.")
    ] = None,
) -> None:
    """Measure ours and the peers in the same run, taking turns: medians, with the least and the greatest."""
    unknown = sorted(set(names or ()) - set(_BENCHMARKS))
    if unknown:
        raise typer.BadParameter(f"no benchmark is called {', '.join(unknown)}")
    console = Console() if os.isatty(1) else Console(width=160)
    console.print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}\n")
    for name in names or _BENCHMARKS:
        with TemporaryDirectory(prefix="snapshot-assets-benchmark-", dir=scratch) as folder:
            settings = Settings(Path(folder), (1024 if full else size_mib) * _MIB, 5 if full else rounds)
            # A process each: what one leaves in memory, and its threads, are no business of the next.
            process = get_context("fork").Process(target=_run, args=(name, settings, console))
            process.start()
            process.join()
        if process.exitcode:
            raise typer.Exit(1)


def _run(name: str, settings: Settings, console: Console) -> None:
    benchmark: Callable[[Settings], Iterator[Report]] = getattr(import_module(f"benchmarks.{_BENCHMARKS[name]}"), name)
    for report in benchmark(settings):
        console.print(report.table())
        console.print()


if __name__ == "__main__":
    typer.run(main)
