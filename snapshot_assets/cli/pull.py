"""`pull`: the files of a snapshot, without a reader."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from snapshot_assets.cli.look import wanted_entry
from snapshot_assets.cli.options import DatasetName, JsonOutput, StoreOptions, StoreUrl, WantedSnapshot, open_store
from snapshot_assets.cli.output import print_facts, print_json, progress, size_text
from snapshot_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from snapshot_assets.content.restore import Restored
    from snapshot_assets.content.snapshot import Content
    from snapshot_assets.store.contract import Store

__all__ = ["pull"]

_GATE_SECONDS: Final = 60.0


def pull(
    name: DatasetName,
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="The folder to make; it must not exist, or be empty.")
    ],
    store: StoreUrl,
    store_option: StoreOptions = None,
    snapshot: WantedSnapshot = None,
    into_metastore: Annotated[
        Path | None,
        typer.Option(
            "--into-metastore",
            metavar="FILE",
            help="Of a Cayenne dataset: make it a live table of this metastore, with DIR as its root. Both may be in "
            "use; other datasets stay as they are.",
        ),
    ] = None,
    as_json: JsonOutput = False,
) -> None:
    """Fetch a checked copy of a snapshot's files into a folder that appears only when it is complete."""
    from snapshot_assets.content.snapshot import read_content

    started = time.monotonic()
    if into_metastore is None:
        _check_free(to)
    opened = open_store(store, store_option, read_only=True)
    head = opened.head(name)
    entry = wanted_entry(head, snapshot)
    content = read_content(opened.objects, name, head.incarnation, entry.operation_id, entry.manifest_digest)
    with progress(f"Fetching {name}", content.manifest.data_bytes) as moved:
        if into_metastore is None:
            restored = _restore(opened.objects, content, to, moved)
        else:
            restored = _restore_table(opened.objects, content, to, into_metastore, moved)
    document = {
        "dataset": name,
        "snapshot_id": entry.snapshot_id,
        "operation_id": entry.operation_id,
        "content_digest": entry.content_digest,
        "path": str(to.resolve()),
        "files": [file.path for file in content.manifest.files],
        "data_bytes": content.manifest.data_bytes,
        "fetched_bytes": restored.fetched_bytes,
        "seconds": round(time.monotonic() - started, 3),
    }
    if as_json:
        print_json(document)
        return
    typer.echo(f"Snapshot {entry.snapshot_id} of {name} is in {to}, every digest checked.")
    print_facts(
        [
            ("files", ", ".join(file.path for file in content.manifest.files)),
            ("data", f"{size_text(content.manifest.data_bytes)}, fetched as {size_text(restored.fetched_bytes)}"),
        ]
    )


def _check_free(folder: Path) -> None:
    """Refuse to fetch into a place where something is."""
    try:
        taken = folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir())))
    except OSError as error:
        raise ConfigurationError(f"{folder} can not be looked into: {error.strerror}") from error
    if taken:
        raise ConfigurationError(
            f"{folder} is there already, and not an empty folder", hint="Name a folder that does not exist yet."
        )


def _restore_table(
    objects: Store, content: Content, root: Path, metastore: Path, on_progress: Callable[[int], None]
) -> Restored:
    """Build the files within the root, then make them a table of the metastore under the table's write gate."""
    from snapshot_assets.engines.gate import write_gate
    from snapshot_assets.engines.registry import engine_named
    from snapshot_assets.ids import new_ulid
    from snapshot_assets.model.dataset import Dataset
    from snapshot_assets.reader.data_dir import BUILDING

    manifest = content.manifest
    if manifest.engine != "cayenne":
        raise ConfigurationError(
            f"{manifest.dataset!r} is a dataset of the engine {manifest.engine!r}, which has no metastore",
            hint="Pull it without --into-metastore.",
            dataset=manifest.dataset,
        )
    dataset = Dataset(manifest.dataset, "cayenne", root, options={"metastore": metastore})
    engine = engine_named("cayenne")
    engine.check_dataset(dataset)
    from snapshot_assets.engines.cayenne.restore import restore_table  # the engine's package is there, as was seen

    copy = root / f"{BUILDING}{new_ulid()}"
    with _building(root, copy):
        restored = _fetch(objects, content, copy, on_progress)
        engine.verify(copy, [file.path for file in manifest.files], manifest.tables, "quick")
        with write_gate(engine.live_path(dataset), timeout=_GATE_SECONDS, dataset=manifest.dataset):
            restore_table(copy, root, manifest.dataset, metastore=metastore)
    return restored


def _restore(objects: Store, content: Content, folder: Path, on_progress: Callable[[int], None]) -> Restored:
    """Build the files beside their place, then give them their name in one durable step."""
    from snapshot_assets.durable import sync_folder
    from snapshot_assets.ids import new_ulid
    from snapshot_assets.reader.data_dir import BUILDING

    parent = folder.absolute().parent
    building = parent / f"{BUILDING}{new_ulid()}"
    with _building(folder, building):
        restored = _fetch(objects, content, building, on_progress)
        building.rename(folder)
        sync_folder(parent)
    return restored


@contextmanager
def _building(folder: Path, building: Path) -> Iterator[None]:
    """Around what is built for a folder: nothing of it is left behind when it fails."""
    from snapshot_assets.reader.data_dir import remove_folder

    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{folder} can not be made: {error}", hint="Name a folder that this user may make."
        ) from error
    finally:
        remove_folder(building)


def _fetch(objects: Store, content: Content, folder: Path, on_progress: Callable[[int], None]) -> Restored:
    from snapshot_assets.content.restore import restore_files

    folder.mkdir(parents=True)
    return restore_files(objects, content, folder, on_progress=on_progress)
