"""`publish`: capture a live database and publish it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from snapshot_assets.cli.options import (
    Checks,
    DatasetName,
    EngineName,
    EngineOptions,
    JsonOutput,
    LivePath,
    StoreOptions,
    StoreUrl,
    Wait,
    engine_options,
    open_store,
)
from snapshot_assets.cli.output import count, print_facts, print_json, size_text, spinner

if TYPE_CHECKING:
    from snapshot_assets.publish.publisher import PublishResult

__all__ = ["print_published", "publish"]

_WORTH_NAMING: Final = 0.01
_SAID: Final = {
    "published": "Published {name}: snapshot {id}, generation {generation}.",
    "unchanged": "Unchanged: {name} stays at snapshot {id}, generation {generation}.",
    "already_published": "Already published under this idempotency key: {name} snapshot {id}, generation {generation}.",
}


def publish(
    name: DatasetName,
    engine: EngineName,
    path: LivePath,
    store: StoreUrl,
    store_option: StoreOptions = None,
    option: EngineOptions = None,
    force: Annotated[bool, typer.Option("--force", help="Publish also when nothing changed.")] = False,
    allow_schema_change: Annotated[
        bool, typer.Option("--allow-schema-change", help="Publish also when readers of the old schema would break.")
    ] = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option("--idempotency-key", metavar="KEY", help="Publish once under this name, however often asked."),
    ] = None,
    wait: Wait = 0.0,
    check: Checks = None,
    as_json: JsonOutput = False,
) -> None:
    """Capture a live database and publish it as the dataset's next snapshot."""
    from snapshot_assets.model.dataset import Dataset
    from snapshot_assets.publish.publisher import Publisher

    dataset = Dataset(name, engine, path, validators=tuple(check or ()), options=engine_options(option))
    with spinner(f"Publishing {name}"), Publisher(open_store(store, store_option), wait=wait) as publisher:
        result = publisher.publish(
            dataset, idempotency_key=idempotency_key, force=force, allow_schema_change=allow_schema_change
        )
    if as_json:
        print_json(result.to_json() | {"reused_share": round(result.reused_share, 6)})
    else:
        print_published(result)


def print_published(result: PublishResult) -> None:
    """A publish, for people."""
    typer.echo(_SAID[result.outcome].format(name=result.dataset, id=result.snapshot_id, generation=result.generation))
    rows = ", ".join(f"{table} {count(rows)}" for table, rows in sorted(result.row_counts.items()))
    facts = [("rows", rows or "no tables"), ("data", size_text(result.data_bytes))]
    if result.outcome == "published":
        sent = f"{size_text(result.uploaded_bytes)} in {count(result.uploaded_objects)} objects"
        there = f"; {result.reused_share:.0%} of the data was in the store already" if result.reused_share else ""
        facts.append(("uploaded", sent + there))
    phases = ", ".join(f"{phase} {spent:.2f}" for phase, spent in result.seconds.items() if spent >= _WORTH_NAMING)
    facts.append(("seconds", f"{sum(result.seconds.values()):.2f}" + (f" ({phases})" if phases else "")))
    print_facts(facts)
