"""P13: what it costs to start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import Report, alternate
from benchmarks.settings import Settings

__all__ = ["p13"]


def p13(settings: Settings) -> Iterator[Report]:
    """Importing the package and starting the command line, beside a bare interpreter and others of their kind."""
    rounds = max(settings.rounds, 7)
    imports = {
        "import snapshot_assets": _python("import snapshot_assets"),
        "nothing": _python("pass"),
        "import sqlite_utils": _python("import sqlite_utils"),
        "import duckdb": _python("import duckdb"),
        "import dagster": _python("import dagster"),
    }
    title = "P13  a fresh interpreter that imports"
    yield Report(title, "import snapshot_assets <= 150 ms", unit="ms", samples=alternate(imports, rounds=rounds))
    commands = {
        "snapshot-assets --version": _command("snapshot-assets", "--version"),
        "snapshot-assets --help": _command("snapshot-assets", "--help"),
        "sqlite-utils --version": _command("sqlite-utils", "--version"),
        "dagster --version": _command("dagster", "--version"),
    }
    yield Report("P13  a command that starts", "<= 300 ms", unit="ms", samples=alternate(commands, rounds=rounds))


def _python(code: str) -> Callable[[], None]:
    return _run([sys.executable, "-c", code])


def _command(name: str, *args: str) -> Callable[[], None]:
    return _run([str(Path(sys.executable).with_name(name)), *args])


def _run(command: list[str]) -> Callable[[], None]:
    def run() -> None:
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    return run
