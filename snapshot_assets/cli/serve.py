"""`serve`: the reader node."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

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
    )
    settings = ReaderSettings(
        refresh_interval=None if refresh_interval == "off" else duration(refresh_interval),
        catalog_config=node.catalog_config,
    )
    with SnapshotReader(open_store(store, store_option, read_only=True), data_dir, settings) as reader:
        run_node(reader, dataset, node)
