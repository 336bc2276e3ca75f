"""`cleanup` and `repair`: what leaves the store, and what is settled."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from snapshot_assets.cli.options import JsonOutput, StoreOptions, StoreUrl, duration, open_store
from snapshot_assets.cli.output import (
    count,
    print_error,
    print_facts,
    print_json,
    print_table,
    size_text,
    spinner,
    time_text,
)

if TYPE_CHECKING:
    from snapshot_assets.errors import SnapshotAssetsError
    from snapshot_assets.maintenance.cleanup import CleanupRow
    from snapshot_assets.maintenance.repair import RepairRow

__all__ = ["Confirm", "cleanup", "print_unconfirmed", "repair"]

Confirm = Annotated[bool, typer.Option("--confirm", help="Do it; without this, only tell what would be done.")]


def cleanup(
    store: StoreUrl,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="The datasets; all of the store if left out.")
    ] = None,
    store_option: StoreOptions = None,
    keep: Annotated[
        int | None, typer.Option("--keep", min=3, metavar="N", help="The newest snapshots that stay, at least 3.")
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="LENGTH", help="Only older snapshots go, such as 7d. With --keep: both."),
    ] = None,
    grace: Annotated[
        str, typer.Option("--grace", metavar="LENGTH", help="How long objects stay for readers that still fetch them.")
    ] = "1h",
    confirm: Confirm = False,
    as_json: JsonOutput = False,
) -> None:
    """Remove snapshots that need not be kept, and delete what no snapshot needs any more."""
    from snapshot_assets.maintenance.maintenance import Maintenance

    if keep is None and older_than is None:
        raise typer.BadParameter("say what to keep: --keep, --older-than, or both")
    age, lasting = None if older_than is None else duration(older_than), duration(grace)
    with spinner("Cleaning up" if confirm else "Planning"):
        rows = Maintenance(open_store(store, store_option, read_only=not confirm)).cleanup(
            names or None, keep=keep, older_than=age, grace=lasting, confirm=confirm
        )
    if as_json:
        print_json({"datasets": [row.to_json() for row in rows]})
    else:
        _print_cleanup(rows, confirmed=confirm)
        if not confirm and any(row.outcome == "planned" for row in rows):
            options = [("--keep", keep), ("--older-than", older_than), ("--grace", None if grace == "1h" else grace)]
            given = [part for flag, value in options if value is not None for part in (flag, str(value))]
            print_unconfirmed(["cleanup", *(names or ()), *given, "--confirm"])
    _exit_after(row.error for row in rows)


def repair(
    store: StoreUrl,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The dataset; all of the store if left out.")
    ] = None,
    store_option: StoreOptions = None,
    confirm: Confirm = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --confirm: also set aside what can not be understood.")
    ] = False,
    wait: Annotated[
        float,
        typer.Option(
            "--wait",
            min=0,
            metavar="SECONDS",
            help="With --confirm: how long to wait for another writer; a dead one elsewhere takes over a minute.",
        ),
    ] = 0.0,
    as_json: JsonOutput = False,
) -> None:
    """Settle what dead processes left: what the next writers would do, done now."""
    from snapshot_assets.maintenance.maintenance import Maintenance

    if force and not confirm:
        raise typer.BadParameter("--force goes with --confirm: look at the findings first")
    with spinner("Repairing" if confirm else "Looking"):
        maintenance = Maintenance(open_store(store, store_option, read_only=not confirm))
        rows = maintenance.repair(name, confirm=confirm, force=force, wait=wait)
    if as_json:
        print_json({"findings": [row.to_json() for row in rows]})
    else:
        _print_repair(rows, confirmed=confirm)
        if not confirm and any(row.is_repairable for row in rows):
            print_unconfirmed(["repair", *([name] if name else []), "--confirm"])
            if any(row.needs_force for row in rows):
                typer.echo("With --force, too, what can not be understood is set aside. Look at it first.")
    _exit_after(row.error for row in rows)


def print_unconfirmed(command: Sequence[str]) -> None:
    """Say that nothing was done, and what to type."""
    typer.echo(f"\nNothing was changed. To do it:\n  {shlex.join(['snapshot-assets', *command])}")


def _print_cleanup(rows: Sequence[CleanupRow], *, confirmed: bool) -> None:
    if not rows:
        typer.echo("The store has no datasets yet.")
        return
    columns = ("dataset", "", "snapshots that go", "objects", "size", "kept though the policy says no", "deleted now")
    cells = [_cleanup_cells(row) for row in rows]
    shown = columns if confirmed else columns[:-1]
    print_table(shown, [row[: len(shown)] for row in cells], right=("objects", "size"))
    waiting = [row.not_before_ms for row in rows if row.not_before_ms is not None and row.objects]
    if waiting and any(row.objects and not row.deleted_objects for row in rows):
        typer.echo(
            f"\nThe objects stay until {time_text(max(waiting))}, for readers that still fetch them; "
            "the next cleanup or publish after that deletes them."
        )


def _cleanup_cells(row: CleanupRow) -> tuple[str, ...]:
    if row.error is not None:
        return (row.dataset, "FAILED", row.error.kind, "", "", "", "")
    said = {"planned": "would go", "cleaned": "cleaned", "nothing_to_do": "nothing to do"}[row.outcome]
    return (
        row.dataset,
        said,
        _ranges(row.removes),
        count(row.objects) if row.objects else "",
        size_text(row.data_bytes) if row.objects else "",
        "; ".join(f"{snapshot_id} ({why})" for snapshot_id, why in sorted(row.protected.items())),
        f"{count(row.deleted_objects)} objects, {size_text(row.deleted_bytes)}" if row.deleted_objects else "",
    )


def _ranges(ids: Iterable[int]) -> str:
    """Snapshot ids for people: 0 to 4, 7."""
    runs: list[list[int]] = []
    for one in sorted(ids):
        if runs and one == runs[-1][-1] + 1:
            runs[-1].append(one)
        else:
            runs.append([one])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _print_repair(rows: Sequence[RepairRow], *, confirmed: bool) -> None:
    if not rows:
        typer.echo("Nothing to repair.")
        return
    for number, row in enumerate(rows):
        named = row.kind if row.subject in {row.dataset, "data"} else f"{row.kind} {row.subject}"
        typer.echo(("\n" if number else "") + typer.style(f"{row.dataset}: {named}", bold=True))
        facts = [("found", row.found), _done_text(row, confirmed=confirmed)]
        print_facts(facts if row.done else [*facts, ("settled by", row.settled_by)])


def _done_text(row: RepairRow, *, confirmed: bool) -> tuple[str, str]:
    if row.error is not None:
        return "FAILED", f"{row.error.kind}: {row.error.message}"
    if row.done:
        return "done", row.action
    return "left" if confirmed else "to do", row.action + (" (needs --force)" if row.needs_force else "")


def _exit_after(errors: Iterable[SnapshotAssetsError | None]) -> None:
    """End with 1 when something failed, after all the rest was done and told."""
    failed = [error for error in errors if error is not None]
    for error in failed:
        print_error(error)
    if failed:
        raise typer.Exit(1)
