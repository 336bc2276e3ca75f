"""The options that verbs share, and what they mean."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = [
    "Checks",
    "DatasetName",
    "EngineName",
    "EngineOptions",
    "JsonOutput",
    "LivePath",
    "OptionalStoreUrl",
    "StoreOptions",
    "StoreUrl",
    "Wait",
    "WantedSnapshot",
    "duration",
    "engine_options",
    "open_store",
]

_STORE_HELP: Final = "The store: a folder, or a file://, s3://, gs:// or az:// URL."

DatasetName = Annotated[str, typer.Argument(metavar="NAME", help="The dataset.")]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine", metavar="ENGINE", help="The engine of the database: cayenne, duckdb, lance, sqlite or turso."
    ),
]
LivePath = Annotated[Path, typer.Option("--path", metavar="PATH", help="The live database.")]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="KEY=VALUE", help="A setting of the engine, such as metastore=PATH. Can be repeated."
    ),
]
Wait = Annotated[float, typer.Option("--wait", min=0, metavar="SECONDS", help="How long to wait for another writer.")]
Checks = Annotated[
    list[str] | None,
    typer.Option("--check", metavar="SQL", help="Must return no row, or nothing is published. Can be repeated."),
]
StoreUrl = Annotated[
    str, typer.Option("--store", envvar="SNAPSHOT_STORE", show_envvar=True, metavar="URL", help=_STORE_HELP)
]
OptionalStoreUrl = Annotated[
    str | None, typer.Option("--store", envvar="SNAPSHOT_STORE", show_envvar=True, metavar="URL", help=_STORE_HELP)
]
StoreOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--store-option", metavar="KEY=VALUE", help="A setting of the store, such as endpoint=URL. Can be repeated."
    ),
]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
WantedSnapshot = Annotated[
    int | None, typer.Option("--snapshot", min=0, metavar="N", help="A snapshot's id; the current one if left out.")
]

_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def open_store(url: str, options: list[str] | None, *, read_only: bool = False) -> SnapshotStore:
    """The store that the options name."""
    from snapshot_assets.store.snapshot_store import SnapshotStore

    return SnapshotStore.open(url, _by_key("--store-option", options), read_only=read_only)


def engine_options(options: list[str] | None) -> dict[str, str]:
    """The engine's own settings, by name."""
    return _by_key("--option", options)


def _by_key(flag: str, options: list[str] | None) -> dict[str, str]:
    settings: dict[str, str] = {}
    for option in options or []:
        key, separator, value = option.partition("=")
        if not (key and separator):
            raise typer.BadParameter(f"{option!r} is not KEY=VALUE", param_hint=f"'{flag}'")
        settings[key] = value
    return settings


def duration(text: str) -> timedelta:
    """A length of time such as 90s, 15m, 12h, 7d or 2w; a bare number is seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a length of time such as 90s, 15m, 12h, 7d or 2w")
    try:
        return timedelta(seconds=float(found[1]) * _SECONDS[found[2] or "s"])
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is too long") from None
