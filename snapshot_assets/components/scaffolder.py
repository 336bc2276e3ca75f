"""What `dg scaffold defs snapshot_assets.SnapshotCollection` writes."""

from __future__ import annotations

import re
from typing import Any, Final

import click
import dagster as dg
from pydantic import BaseModel, Field

from snapshot_assets.components.dataset import SQL_ENGINES
from snapshot_assets.errors import ConfigurationError, InvalidDatasetName
from snapshot_assets.ids import check_dataset_name
from snapshot_assets.model.engines import engine_source

__all__ = ["SnapshotCollectionParams", "SnapshotCollectionScaffolder"]

_SUFFIXES: Final = {"duckdb": ".duckdb", "lance": ".lance", "sqlite": ".sqlite", "turso": ".db"}
_EXAMPLE: Final = (
    "create table if not exists example (id integer, note text)",
    "delete from example",
    "insert into example values (1, 'a row')",
)


class SnapshotCollectionParams(BaseModel):
    """What can be asked for."""

    store: str = Field(
        default="{{ env('SNAPSHOT_STORE', 'snapshots') }}", description="Where snapshots are kept: a url or a folder."
    )
    dataset: str | None = Field(default=None, description="The dataset's name; the folder's, when left out.")
    engine: str = Field(default="duckdb", description="The dataset's engine.")
    path: str | None = Field(
        default=None, description="The live database; when left out, one that the first run makes as an example."
    )


class SnapshotCollectionScaffolder(dg.Scaffolder[SnapshotCollectionParams]):
    """Writes a collection of one dataset that can be published at once."""

    @classmethod
    def get_scaffold_params(cls) -> type[SnapshotCollectionParams]:
        """What can be asked for."""
        return SnapshotCollectionParams

    def scaffold(self, request: dg.ScaffoldRequest[SnapshotCollectionParams]) -> None:
        """Write the file.

        Raises:
            click.ClickException: the dataset can not have the name, or no engine is called so.
        """
        params = request.params
        folder = request.target_path.parent if request.append else request.target_path
        try:
            engine_source(params.engine)
            name = check_dataset_name(params.dataset) if params.dataset else _name_like(folder.name)
        except ConfigurationError as error:
            if not request.append:
                folder.rmdir()  # made for this, and in the way of a second try
            raise click.ClickException(f"{error.message}. {error.hint}") from error
        path = params.path or f"data/{name}{_SUFFIXES.get(params.engine, '')}"
        dataset: dict[str, Any] = {"name": name, "engine": params.engine, "path": path}
        if params.path is None and params.engine in SQL_ENGINES:
            dataset["statements"] = list(_EXAMPLE)
        dg.scaffold_component(request, {"store": params.store, "datasets": [dataset]})


def _name_like(text: str) -> str:
    try:
        return check_dataset_name(re.sub(r"\W+", "_", text.lower()))
    except InvalidDatasetName:
        return "example"
