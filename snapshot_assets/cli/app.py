"""The verbs, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Final

import typer

import snapshot_assets
from snapshot_assets.cli.change import pin, rollback, unpin
from snapshot_assets.cli.demo import demo
from snapshot_assets.cli.doctor import doctor
from snapshot_assets.cli.fleet import readers
from snapshot_assets.cli.lifecycle import drop, recreate, seal, unseal
from snapshot_assets.cli.look import ls, pins, show
from snapshot_assets.cli.optimize import optimize
from snapshot_assets.cli.output import verb
from snapshot_assets.cli.publish import publish
from snapshot_assets.cli.pull import pull
from snapshot_assets.cli.read import query, verify
from snapshot_assets.cli.retention import cleanup, repair
from snapshot_assets.cli.serve import serve
from snapshot_assets.cli.status import status

__all__ = ["app"]

# Tracebacks are for our own faults; they show no local values, which could be credentials.
app = typer.Typer(
    name="snapshot-assets",
    help="Publish embedded databases as versioned, verified snapshots, and look after them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_GROUPS: Final[Mapping[str, Sequence[Callable[..., None]]]] = {
    "Publish and look": (publish, optimize, ls, show, status),
    "Read": (query, pull, verify, serve),
    "Change what is current": (rollback, pin, unpin, pins),
    "Keep it small and whole": (cleanup, repair, readers),
    "Drop and recreate": (seal, unseal, drop, recreate),
    "This machine": (doctor, demo),
}

for _group, _verbs in _GROUPS.items():
    for _verb in _verbs:
        app.command(name=_verb.__name__, rich_help_panel=_group)(verb(_verb))


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"snapshot-assets {snapshot_assets.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
