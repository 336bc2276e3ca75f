"""`demo`: the main job, end to end, on this machine."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from snapshot_assets.cli.options import JsonOutput

__all__ = ["demo"]


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the demo's folder in place.")] = False,
    as_json: JsonOutput = False,
) -> None:
    """Publish real data through Dagster, serve it, swap it under load, roll it back, and tell what happened."""
    # A process of its own: it is Dagster's side of the package, which the command line must not import.
    command = [sys.executable, "-m", "snapshot_assets.demo"]
    command += [flag for flag, wanted in (("--keep", keep), ("--json", as_json)) if wanted]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
