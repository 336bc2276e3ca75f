"""`seal`, `unseal`, `drop`, `recreate`: how a dataset leaves, and how its name lives again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapshot_assets.cli.options import DatasetName, JsonOutput, StoreOptions, StoreUrl, open_store
from snapshot_assets.cli.output import count, print_json, size_text, spinner
from snapshot_assets.cli.retention import Confirm, print_unconfirmed

if TYPE_CHECKING:
    from snapshot_assets.maintenance.lifecycle import DropResult
    from snapshot_assets.model.head import Head

__all__ = ["drop", "recreate", "seal", "unseal"]


def seal(name: DatasetName, store: StoreUrl, store_option: StoreOptions = None, as_json: JsonOutput = False) -> None:
    """Refuse new writers of a dataset, and fence those at work. Readers go on."""
    from snapshot_assets.maintenance.maintenance import Maintenance

    head = Maintenance(open_store(store, store_option)).seal(name)
    if as_json:
        print_json(_state(head))
    else:
        typer.echo(f"{name} is sealed: it takes no writers, and readers go on.")
        typer.echo(f"  to undo: snapshot-assets unseal {name}")


def unseal(name: DatasetName, store: StoreUrl, store_option: StoreOptions = None, as_json: JsonOutput = False) -> None:
    """Let writers in again; a drop that was begun is undone."""
    from snapshot_assets.maintenance.maintenance import Maintenance

    head = Maintenance(open_store(store, store_option)).unseal(name)
    if as_json:
        print_json(_state(head))
    else:
        typer.echo(f"{name} takes writers again.")


def drop(
    name: DatasetName,
    store: StoreUrl,
    store_option: StoreOptions = None,
    confirm: Confirm = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --confirm: also when pins or live readers need it.")
    ] = False,
    as_json: JsonOutput = False,
) -> None:
    """Drop a dataset with all its snapshots, or finish a drop that was cut short. This can not be undone."""
    from snapshot_assets.maintenance.maintenance import Maintenance

    if force and not confirm:
        raise typer.BadParameter("--force goes with --confirm: look first at who needs the dataset")
    with spinner(f"Dropping {name}" if confirm else "Looking"):
        maintenance = Maintenance(open_store(store, store_option, read_only=not confirm))
        result = maintenance.drop(name, confirm=confirm, force=force)
    if as_json:
        print_json(result.to_json())
    else:
        _print_drop(result)


def recreate(
    name: DatasetName,
    store: StoreUrl,
    store_option: StoreOptions = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="ENGINE", help="The engine from now on; the one it had if left out."),
    ] = None,
    as_json: JsonOutput = False,
) -> None:
    """Let a dropped name live again: a new incarnation, empty, that takes writers."""
    from snapshot_assets.maintenance.maintenance import Maintenance

    head = Maintenance(open_store(store, store_option)).recreate(name, engine=engine)
    if as_json:
        print_json(_state(head))
    else:
        typer.echo(f"{name} lives again, empty, for {head.engine}. Publish to it.")


def _state(head: Head) -> dict[str, Any]:
    return {
        "dataset": head.dataset,
        "status": head.status.value,
        "engine": head.engine,
        "incarnation": head.incarnation,
        "generation": head.generation,
        "epoch": head.epoch,
        "revision": head.revision,
    }


def _print_drop(result: DropResult) -> None:
    size = f"{count(result.deleted_objects)} objects, {size_text(result.deleted_bytes)}"
    if result.outcome == "dropped":
        typer.echo(f"{result.dataset} is dropped; deleted: {size}.")
        typer.echo(f"  its name is taken until: snapshot-assets recreate {result.dataset}")
        return
    typer.echo(f"{result.dataset} would be dropped with {count(result.snapshots)} snapshots: {size}.")
    for who in result.needed_by:
        typer.echo(f"  needed by {who}")
    print_unconfirmed(["drop", result.dataset, "--confirm", *(["--force"] if result.needed_by else [])])
