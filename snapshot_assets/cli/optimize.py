"""`optimize`: rewrite a live database and publish the result."""

from __future__ import annotations

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
from snapshot_assets.cli.output import print_json, spinner
from snapshot_assets.cli.publish import print_published

__all__ = ["optimize"]


def optimize(
    name: DatasetName,
    engine: EngineName,
    path: LivePath,
    store: StoreUrl,
    store_option: StoreOptions = None,
    option: EngineOptions = None,
    wait: Wait = 0.0,
    check: Checks = None,
    as_json: JsonOutput = False,
) -> None:
    """Rewrite a live database so that it is small and fast to read, and publish it; or find nothing to do."""
    from snapshot_assets.maintenance.maintenance import Maintenance
    from snapshot_assets.model.dataset import Dataset
    from snapshot_assets.publish.publisher import Publisher

    dataset = Dataset(name, engine, path, validators=tuple(check or ()), options=engine_options(option))
    opened = open_store(store, store_option)
    with spinner(f"Optimizing {name}"), Publisher(opened, wait=wait) as publisher:
        result = Maintenance(opened).optimize(dataset, publisher=publisher)
    if as_json:
        print_json(result.to_json())
    elif result.publish is None:
        typer.echo(f"Left as it is: {name}: {result.detail}.")
    else:
        typer.echo(f"Optimized {name}: {result.detail}.")
        print_published(result.publish)
