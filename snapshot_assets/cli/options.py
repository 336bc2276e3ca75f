"""The options that verbs share, and what they mean."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = [
    "DatasetName",
    "JsonOutput",
    "OptionalStoreUrl",
    "StoreOptions",
    "StoreUrl",
    "WantedSnapshot",
    "duration",
    "open_store",
]

_STORE_HELP: Final = "The store: a folder, or a file://, s3://, gs:// or az:// URL."

DatasetName = Annotated[str, typer.Argument(metavar="NAME", help="The dataset.")]
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

    settings: dict[str, str] = {}
    for option in options or []:
        key, separator, value = option.partition("=")
        if not (key and separator):
            raise typer.BadParameter(f"{option!r} is not KEY=VALUE", param_hint="'--store-option'")
        settings[key] = value
    return SnapshotStore.open(url, settings, read_only=read_only)


def duration(text: str) -> timedelta:
    """A length of time such as 90s, 15m, 12h, 7d or 2w; a bare number is seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a length of time such as 90s, 15m, 12h, 7d or 2w")
    try:
        return timedelta(seconds=float(found[1]) * _SECONDS[found[2] or "s"])
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is too long") from None
