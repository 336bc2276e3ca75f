"""`serve`: the reader node."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from snapshot_assets.cli.options import JsonOutput, StoreOptions, StoreUrl, duration, open_store
from snapshot_assets.errors import MissingExtra

__all__ = ["serve"]


def serve(
    dataset: Annotated[
        list[str], typer.Option("--dataset", metavar="NAME", help="A dataset to serve. Can be repeated.")
    ],
    data_dir: Annotated[
        Path, typer.Option("--data-dir", metavar="DIR", help="Where local copies are kept; for this process alone.")
    ],
    store: StoreUrl,
    store_option: StoreOptions = None,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="The address to bind; any but loopback needs --token-file.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65_535, metavar="PORT", help="Flight SQL; 0: a free one.")
    ] = 8815,
    http_port: Annotated[
        int, typer.Option("--http-port", min=0, max=65_535, metavar="PORT", help="/healthz and /readyz; 0: a free one.")
    ] = 8816,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="The tokens that admit to queries, one a line.")
    ] = None,
    control_token_file: Annotated[
        Path | None,
        typer.Option("--control-token-file", metavar="FILE", help="The tokens that admit to status and refresh."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="The certificate chain of both ports, PEM.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its key, PEM.")] = None,
    refresh_interval: Annotated[
        str,
        typer.Option(
            "--refresh-interval", metavar="LENGTH", help="Between two looks at the store; off: only when told."
        ),
    ] = "60s",
    keep_local: Annotated[
        int, typer.Option("--keep-local", min=1, metavar="N", help="How many local copies of a dataset stay warm.")
    ] = 2,
    pin: Annotated[
        list[str] | None,
        typer.Option(
            "--pin", metavar="NAME=SNAPSHOT", help="Serve this snapshot, whatever is published. Can be repeated."
        ),
    ] = None,
    schema_policy: Annotated[
        str,
        typer.Option(
            "--schema-policy", metavar="POLICY", help="Which schema changes are taken: strict, widening, any."
        ),
    ] = "strict",
    on_damage: Annotated[
        str,
        typer.Option(
            "--on-damage", metavar="POLICY", help="When a snapshot is damaged in the store: raise, or fallback."
        ),
    ] = "raise",
    cohort: Annotated[
        str | None, typer.Option("--cohort", metavar="NAME", help="The group that a rollout counts this reader to.")
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(
            "--advertise", metavar="HOST[:PORT]", help="Where others reach this node, as it is announced in the store."
        ),
    ] = None,
    announce_interval: Annotated[
        str,
        typer.Option(
            "--announce-interval", metavar="LENGTH", help="Between two signs of life in the store; off: none at all."
        ),
    ] = "5m",
    query_timeout: Annotated[
        float, typer.Option("--query-timeout", min=0, metavar="SECONDS", help="What one query may take.")
    ] = 300.0,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", min=1, metavar="N", help="What one result may hold.")
    ] = None,
    max_concurrency: Annotated[
        int, typer.Option("--max-concurrency", min=1, metavar="N", help="How many queries run at once.")
    ] = 16,
    memory_limit: Annotated[
        str | None, typer.Option("--memory-limit", metavar="SIZE", help="Of DuckDB, such as 4GB; its own if left out.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, metavar="N", help="Of DuckDB; all cores if left out.")
    ] = None,
    as_json: JsonOutput = False,
) -> None:
    """Serve datasets over Flight SQL, following every new snapshot without a pause, until SIGTERM.

    When every dataset was tried, one line of JSON tells the addresses, also without --json.
    """
    del as_json  # the one line is JSON anyway
    try:
        from snapshot_assets.serve.node import NodeSettings, run_node
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the reader node needs the package {error.name}", hint="pip install 'snapshot-assets[serve]'"
        ) from error
    from snapshot_assets.reader.reader import SnapshotReader
    from snapshot_assets.reader.settings import ReaderSettings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    node = NodeSettings(
        host=host,
        port=port,
        http_port=http_port,
        token_file=token_file,
        control_token_file=control_token_file,
        max_rows=max_rows,
        query_timeout=query_timeout,
        max_concurrency=max_concurrency,
        memory_limit=memory_limit,
        threads=threads,
        tls_cert=tls_cert,
        tls_key=tls_key,
        advertise=advertise,
    )
    settings = ReaderSettings(
        refresh_interval=_interval(refresh_interval),
        keep_local=keep_local,
        pins=_pins(pin, dataset),
        # What is no policy is refused with the ones that there are.
        schema_policy=cast("Any", schema_policy),
        on_damage=cast("Any", on_damage),
        cohort=cohort,
        announce_interval=_interval(announce_interval),
        catalog_config=node.catalog_config,
    )
    with SnapshotReader(open_store(store, store_option, read_only=True), data_dir, settings) as reader:
        run_node(reader, dataset, node)


def _interval(text: str) -> timedelta | None:
    """A length of time, or none for `off`."""
    return None if text == "off" else duration(text)


def _pins(pins: list[str] | None, datasets: list[str]) -> dict[str, int]:
    """The snapshot to hold, by dataset."""
    held: dict[str, int] = {}
    for pin in pins or []:
        name, separator, snapshot = pin.partition("=")
        if not separator or not snapshot.isdecimal():
            raise typer.BadParameter(f"{pin!r} is not NAME=SNAPSHOT, such as orders=41", param_hint="'--pin'")
        if name not in datasets:
            raise typer.BadParameter(f"{name!r} is pinned and is not served", param_hint="'--pin'")
        held[name] = int(snapshot)
    return held
