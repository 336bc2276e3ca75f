"""`rollback`, `pin`, `unpin`: what readers serve, and what retention must keep."""

from __future__ import annotations

import getpass
import os
import socket
from typing import Annotated

import typer

from snapshot_assets.cli.look import wanted_entry
from snapshot_assets.cli.options import (
    DatasetName,
    JsonOutput,
    StoreOptions,
    StoreUrl,
    WantedSnapshot,
    duration,
    open_store,
)
from snapshot_assets.cli.output import print_json, time_text

__all__ = ["pin", "rollback", "unpin"]


def rollback(
    name: DatasetName,
    to: Annotated[
        int, typer.Option("--to", min=0, metavar="N", help="The id of the snapshot that readers should serve.")
    ],
    store: StoreUrl,
    store_option: StoreOptions = None,
    as_json: JsonOutput = False,
) -> None:
    """Make an older snapshot current. The generation rises, so live readers follow."""
    from snapshot_assets.maintenance.maintenance import Maintenance

    undo = Maintenance(open_store(store, store_option)).rollback(name, to)
    if as_json:
        print_json(undo.to_json())
        return
    typer.echo(f"{name} is at snapshot {undo.snapshot_id}, generation {undo.generation}.")
    if undo.replaced_snapshot_id not in {None, undo.snapshot_id}:
        typer.echo(f"  to undo: snapshot-assets rollback {name} --to {undo.replaced_snapshot_id}")


def pin(
    name: DatasetName,
    label: Annotated[str, typer.Argument(metavar="PIN", help="The pin's name; a pin of this name is replaced.")],
    store: StoreUrl,
    store_option: StoreOptions = None,
    snapshot: WantedSnapshot = None,
    owner: Annotated[
        str | None, typer.Option("--owner", metavar="WHO", help="Who needs it; this user on this host if left out.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="WHY", help="Why it is needed.")] = "",
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="LENGTH", help="For how long, such as 12h or 30d; for ever if left out."),
    ] = None,
    as_json: JsonOutput = False,
) -> None:
    """Protect a snapshot from retention."""
    from snapshot_assets.maintenance.maintenance import Maintenance

    lasting = None if expires is None else duration(expires)
    opened = open_store(store, store_option)
    snapshot_id = wanted_entry(opened.head(name), snapshot).snapshot_id
    made = Maintenance(opened).pin(
        name, label, snapshot_id, owner=owner or _this_user(), reason=reason, expires=lasting
    )
    if as_json:
        print_json({"dataset": name, **made.to_json()})
    else:
        until = "" if made.expires_at_ms is None else f" until {time_text(made.expires_at_ms)}"
        typer.echo(f"Snapshot {made.snapshot_id} of {name} is pinned as {label!r}{until}.")


def unpin(
    name: DatasetName,
    label: Annotated[str, typer.Argument(metavar="PIN", help="The pin's name.")],
    store: StoreUrl,
    store_option: StoreOptions = None,
    as_json: JsonOutput = False,
) -> None:
    """Remove a pin."""
    from snapshot_assets.maintenance.maintenance import Maintenance

    Maintenance(open_store(store, store_option)).unpin(name, label)
    if as_json:
        print_json({"dataset": name, "name": label, "removed": True})
    else:
        typer.echo(f"The pin {label!r} of {name} is gone.")


def _this_user() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as containers have
        user = f"uid {os.getuid()}"
    return f"{user} on {socket.gethostname()}"
