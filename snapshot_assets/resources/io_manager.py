"""An IO manager: what assets return becomes tables of published datasets, and inputs are read from snapshots."""

# Dagster reads the annotations of a resource's fields as objects, so they are not postponed here.

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import dagster as dg
from pydantic import Field, PrivateAttr

from snapshot_assets.asset_metadata import materialization_metadata, step_failure
from snapshot_assets.errors import ConfigurationError, InvalidDatasetName, SnapshotAssetsError
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.resources.columns import columns_to_read, columns_to_write, table_metadata
from snapshot_assets.resources.live_tables import SnapshotTable, TableName, live_table, snapshot_table
from snapshot_assets.resources.partitions import PartitionRows, partition_rows
from snapshot_assets.resources.reader import SnapshotReaderResource
from snapshot_assets.resources.run_key import idempotency_key, run_summary
from snapshot_assets.resources.store import SnapshotStoreResource

if TYPE_CHECKING:
    import pyarrow as pa

    from snapshot_assets.publish.publisher import PublishResult, Writing
    from snapshot_assets.reader.provider import SnapshotProvider
    from snapshot_assets.resources.run_reader import RunReader

__all__ = ["SnapshotIOManager"]

_SUFFIXES: Final = {"duckdb": ".duckdb", "sqlite": ".sqlite", "turso": ".db", "lance": ".lance", "cayenne": ""}
_ONE_TABLE: Final = frozenset({"cayenne", "lance"})
_VERSION: Final = "dagster.data_version"
"""In the summary of a snapshot: the data version of the rows that its asset returned."""

_LOAD_AS: Final = {
    "arrow": ("pyarrow", "Table"),
    "pandas": ("pandas", "DataFrame"),
    "polars": ("polars", "DataFrame"),
}


class SnapshotIOManager(dg.ConfigurableIOManager):
    """Keeps what assets return in live databases, publishes it, and reads inputs from the published snapshots.

    An asset may return an Arrow table, record batch or record batch reader, a pandas or polars frame, or a DuckDB
    relation. It becomes a table of the asset's dataset, in place of the rows that were there; of a partitioned asset,
    only those of the run's partitions, which the metadata `partition_expr` tells apart. Then the dataset is published.

    An input is read from the newest snapshot, or the one that its run sees, never from the live database; it has the
    type with which it is annotated: `pyarrow.Table`, `pyarrow.RecordBatchReader`, `pandas.DataFrame`,
    `polars.DataFrame`, `polars.LazyFrame` or `duckdb.DuckDBPyRelation`. What is read of a snapshot, such as a relation,
    can be used until the step ends.

    Metadata of an asset, all optional: `snapshot/dataset`, `snapshot/table`, `schema`, `partition_expr`, and
    `snapshot/allow_schema_change`. Metadata of an input: `columns`, the columns that are read; `snapshot/id`, the
    snapshot; `snapshot/table`.

    Example:
        .. code-block:: python

            @dg.asset
            def orders() -> pd.DataFrame: ...

            @dg.asset
            def big_orders(orders: pd.DataFrame) -> pd.DataFrame:
                return orders[orders.amount > 1000]

            store = SnapshotStoreResource(url="s3://lake/snapshots")
            dg.Definitions(
                assets=[orders, big_orders],
                resources={"io_manager": SnapshotIOManager(store=store, directory="data", dataset="shop")},
            )
    """

    store: dg.ResourceDependency[SnapshotStoreResource]
    directory: str = Field(
        description="The folder of the live databases, on a local disk. One that is missing is made of the newest "
        "snapshot, so the folder need not outlive a run."
    )
    engine: Literal["duckdb", "sqlite", "turso", "cayenne", "lance"] = Field(
        default="duckdb",
        description="The engine of the live databases. Cayenne and Lance datasets have one table.",
    )
    dataset: str | None = Field(
        default=None,
        description="The dataset that all assets are tables of. By default each asset has one of its own, named by its "
        "key, the parts joined by underscores.",
    )
    schema_: str | None = Field(
        default=None,
        alias="schema",
        description="The schema of the tables. By default the prefix of the asset's key, or main.",
    )
    load_as: Literal["arrow", "pandas", "polars"] = Field(
        default="arrow", description="What an input without a type annotation is loaded as."
    )
    reader: dg.ResourceDependency[SnapshotReaderResource] = Field(
        default=cast("Any", None),
        description="How inputs are read: pins, consistency and data_dir. By default as a reader of the same store "
        "without settings does.",
    )

    _run: dg.DagsterRun | None = PrivateAttr(default=None)
    _instance: dg.DagsterInstance | None = PrivateAttr(default=None)
    _reader: SnapshotReaderResource | None = PrivateAttr(default=None)
    _opened: ExitStack = PrivateAttr(default_factory=ExitStack)
    _following: Any = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Note the run, for idempotency keys and so that all its steps read one snapshot."""
        self._run, self._instance = context.run, context.instance
        given: SnapshotReaderResource | None = self.reader
        self._reader = given or SnapshotReaderResource(store=self.store)
        if given is None:
            self._reader.setup_for_execution(context)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002
        """Give back what inputs were read from."""
        self._opened.close()
        self._following = None

    # Out.

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Write what an asset returned to its table of the live database, and publish.

        Raises:
            Failure: the rows can not be written or published; it says what to do. The live database has all of them or
                none.
        """
        with _failures():
            if obj is None:
                raise ConfigurationError(
                    "the asset returned nothing, so nothing was written",
                    hint="Return a table; an asset without one is annotated with `-> None`.",
                )
            self._write(context, obj)

    def _write(self, context: dg.OutputContext, obj: object) -> None:
        from snapshot_assets.resources.frames import arrow_rows, rows_digest

        if not context.has_asset_key:
            raise ConfigurationError(
                f"the output {context.name!r} belongs to no asset, so there is no table for it",
                hint="Use SnapshotIOManager for assets, and another IO manager for the outputs of ops.",
            )
        asked = context.definition_metadata
        dataset = self._dataset(self._dataset_name(context.asset_key, asked))
        name = self._table(dataset.name, self.engine, context.asset_key, asked)
        part = _part(context, asked)
        with arrow_rows(obj) as rows:
            version = rows_digest(rows)
            result = self._publish(context, dataset, name, rows, part, version)
            written = rows.num_rows
        store = self.store.open_store(read_only=True)
        metadata = table_metadata(
            materialization_metadata(store, result, () if part is None else part.keys), result, name
        )
        if part is not None and len(part.keys) == 1:
            metadata["dagster/partition_row_count"] = written
        context.add_output_metadata(metadata)
        if self._run is not None:
            if result.outcome == "already_published":
                entry = store.head(name.dataset).entry_of_operation(result.operation_id)
                version = version if entry is None else entry.summary.get(_VERSION, version)
            # Of the rows, not of the dataset: other assets change that.
            dg.OpExecutionContext.get().set_data_version(context.asset_key, dg.DataVersion(version))

    def _publish(
        self,
        context: dg.OutputContext,
        dataset: Dataset,
        name: TableName,
        rows: "pa.Table",
        part: PartitionRows | None,
        version: str,
    ) -> "PublishResult":
        keys = () if part is None else part.keys
        allowed = context.definition_metadata.get("snapshot/allow_schema_change") is True
        key, summary = None, {}
        if self._run is not None and self._instance is not None:
            key = idempotency_key(self._instance, self._run, context.asset_key, keys)
            summary = run_summary(self._run, context.asset_key) | {_VERSION: version}
        with self.store.open_publisher() as publisher, publisher.writing(dataset, idempotency_key=key) as writing:
            if writing.already is not None:
                context.log.info(
                    "This step published snapshot %s of %r before, so nothing is done again; a new run publishes anew.",
                    writing.already.snapshot_id,
                    name.dataset,
                )
                return writing.already
            self._write_live(context, writing, name, rows, part, allow_schema_change=allowed)
            return writing.publish(allow_schema_change=allowed, summary=summary, partition_keys=keys)

    def _write_live(
        self,
        context: dg.OutputContext,
        writing: "Writing",
        name: TableName,
        rows: "pa.Table",
        part: PartitionRows | None,
        *,
        allow_schema_change: bool,
    ) -> None:
        from snapshot_assets.resources.frames import fitted
        from snapshot_assets.resources.restoring import restore_live_database

        restored = restore_live_database(self.store.open_store(read_only=True), writing.dataset)
        if restored is not None:
            context.log.info(
                "There was no live database at %s, so it was made of snapshot %s.", writing.dataset.path, restored
            )
        with writing.connect() as connection:
            table = live_table(self.engine, connection, name)
            columns = columns_to_write(
                table, rows, name, is_part=part is not None, allow_schema_change=allow_schema_change
            )
            table.write(fitted(rows, columns, name.in_sql), part)

    # In.

    def load_input(self, context: dg.InputContext) -> Any:
        """Read a table of a snapshot, as the type with which the input is annotated.

        Raises:
            Failure: it can not be read; it says what to do.
        """
        with _failures():
            return self._load(context)

    def _load(self, context: dg.InputContext) -> Any:
        from snapshot_assets.resources.frames import loader_of

        annotated = loader_of(context.dagster_type.typing_type, _LOAD_AS[self.load_as])
        upstream = {} if context.upstream_output is None else context.upstream_output.definition_metadata
        asked = context.definition_metadata
        dataset = self._dataset_name(context.asset_key, upstream)
        part = _part(context, upstream)
        provider = self._follow(dataset, asked.get("snapshot/id"))
        # Whoever published the dataset may have used another engine than this IO manager does.
        engine = provider.find().copy.manifest.engine
        table = asked.get("snapshot/table", upstream.get("snapshot/table"))
        name = self._table(dataset, engine, context.asset_key, {**upstream, "snapshot/table": table})
        columns = columns_to_read(provider, name, asked.get("columns"))
        with ExitStack() as stack:
            lease = provider.connect()
            connection = stack.enter_context(lease)
            context.log.info(
                "%s is read from snapshot %s of %r, generation %s.",
                name.in_sql,
                lease.current.snapshot_id,
                name.dataset,
                lease.current.generation,
            )
            value = _loaded(snapshot_table(engine, connection, name), annotated, columns, part)
            if annotated in _LAZY:
                self._opened.enter_context(stack.pop_all())
        return value

    def _follow(self, dataset: str, snapshot_id: object) -> "SnapshotProvider":
        from snapshot_assets.reader.settings import snapshot_number
        from snapshot_assets.resources.run_reads import Chosen

        if self._following is None:
            reader = self._reader or SnapshotReaderResource(store=self.store)
            self._following = self._opened.enter_context(reader.open_reader())
        following: RunReader = self._following
        if snapshot_id is None:
            return following.follow(dataset, refresh=False)
        return following.follow_at(dataset, Chosen(snapshot_number("snapshot/id", snapshot_id), None))

    # Names.

    def _dataset_name(self, asset_key: dg.AssetKey, metadata: Mapping[str, Any]) -> str:
        if self.dataset is not None and self.engine in _ONE_TABLE:
            raise ConfigurationError(
                f"a {self.engine} dataset has one table, so {self.dataset!r} can not hold every asset",
                hint="Leave dataset out of the IO manager, so that each asset has a dataset of its own.",
            )
        return str(metadata.get("snapshot/dataset") or self.dataset or "_".join(asset_key.path))

    def _table(self, dataset: str, engine: str, asset_key: dg.AssetKey, metadata: Mapping[str, Any]) -> TableName:
        """The table of an asset in a dataset of an engine."""
        *prefix, last = asset_key.path
        given = metadata.get("snapshot/table")
        if engine in _ONE_TABLE:
            return TableName(dataset, None, dataset)
        if engine == "duckdb" and given is not None:
            schema, _, table = str(given).rpartition(".")
            return TableName(dataset, schema or "main", table)
        if given is not None:
            return TableName(dataset, None, str(given))
        schema = metadata.get("schema") or self.schema_ or "_".join(prefix)
        if engine == "duckdb":
            return TableName(dataset, schema or "main", last)
        return TableName(dataset, None, f"{schema}_{last}" if schema else last)

    def _dataset(self, name: str) -> Dataset:
        try:
            return Dataset(name, self.engine, Path(self.directory) / f"{name}{_SUFFIXES[self.engine]}")
        except InvalidDatasetName as error:
            raise InvalidDatasetName(
                error.message,
                hint=f'{error.hint} Give the asset the metadata {{"snapshot/dataset": "<a name>"}}.',
            ) from error


_LAZY: Final = frozenset({("duckdb", "DuckDBPyRelation"), ("pyarrow", "RecordBatchReader")})
"""What reads a snapshot only when it is used, and so needs the lease until the step ends."""


@contextmanager
def _failures() -> Iterator[None]:
    """Errors of this package become failures that Dagster shows well."""
    try:
        yield
    except SnapshotAssetsError as error:
        raise step_failure(error) from error


def _part(context: dg.InputContext | dg.OutputContext, asked: Mapping[str, Any]) -> PartitionRows | None:
    """The rows of the partitions that are written or read; none for an asset without partitions."""
    if not context.has_asset_partitions:
        return None
    keys = context.asset_partition_keys
    return partition_rows(context.asset_partitions_def, keys, asked.get("partition_expr"), context.asset_key)


def _loaded(
    table: SnapshotTable, annotated: tuple[str, str], columns: list[str] | None, part: PartitionRows | None
) -> Any:
    from snapshot_assets.resources.frames import LOADERS

    relation = getattr(table, "relation", None)
    if relation is not None and annotated == ("duckdb", "DuckDBPyRelation"):
        return relation(columns, part)
    return LOADERS[annotated](table.read(columns, part))
