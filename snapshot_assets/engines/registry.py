"""Engines by name, and what datasets that are declared together may not do to each other."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from snapshot_assets.errors import InconsistentSnapshotSettings, MissingExtra
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.engines import engine_source

if TYPE_CHECKING:
    from snapshot_assets.engines.contract import Engine

__all__ = ["check_datasets", "engine_named", "missing_extra"]


def engine_named(name: str) -> Engine:
    """The engine of this name; its package is imported only now.

    Raises:
        UnsupportedEngine: no engine has this name.
        MissingExtra: its package is not installed.
    """
    source = engine_source(name)
    try:
        engine: Engine = getattr(import_module(source.module), source.class_name)()
    except ModuleNotFoundError as error:
        raise missing_extra(name, error.name) from error
    return engine


def missing_extra(engine: str, package: str | None) -> MissingExtra:
    """The error for an engine whose package is not installed; the caller raises it."""
    extra = engine_source(engine).extra
    what = f"'snapshot-assets[{extra}]'" if extra else str(package)
    return MissingExtra(
        f"the engine {engine!r} needs the package {package!r}, which is not installed",
        hint=f"Run `pip install {what}`.",
    )


def check_datasets(datasets: Iterable[Dataset]) -> None:
    """Refuse, when they are declared, datasets that could never be captured, alone or beside each other.

    Raises:
        InconsistentSnapshotSettings: two of them name one live database, or use with different settings what they
            share; or one name stands twice for different live databases.
        ConfigurationError: an engine refuses one of them, or its package is not installed.
    """
    owners: dict[Path, str] = {}
    places: dict[str, Path] = {}
    agreed: dict[Path, tuple[str, str]] = {}
    for dataset in datasets:
        engine = engine_named(dataset.engine)
        engine.check_dataset(dataset)
        place, name = engine.live_path(dataset), dataset.name
        if owners.setdefault(place, name) != name:
            raise InconsistentSnapshotSettings(
                f"{owners[place]!r} and {name!r} both publish {dataset.path}; one dataset owns a live database",
                hint="Publish it as one dataset, or give each a live database of its own.",
                dataset=name,
            )
        if places.setdefault(name, place) != place:
            raise InconsistentSnapshotSettings(
                f"{name!r} stands for two live databases, {places[name]} and {place}",
                hint="Give one of them another name.",
                dataset=name,
            )
        for path, settings in engine.shares(dataset).items():
            other, theirs = agreed.setdefault(path, (name, settings))
            if settings != theirs:
                raise InconsistentSnapshotSettings(
                    f"{other!r} uses {path} with {theirs}, and {name!r} with {settings}",
                    hint="Give both the same settings, or a folder each.",
                    dataset=name,
                )
