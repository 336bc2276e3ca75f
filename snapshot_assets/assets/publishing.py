"""The asset factory: a function that changes a live database becomes an asset that publishes it.

Nothing heavy is imported before it is needed: an engine when a dataset of it is declared, the rest by a run.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_type_hints

import dagster as dg

from snapshot_assets.asset_metadata import materialization_metadata, step_failure
from snapshot_assets.assets.validator_checks import (
    own_checks_not_run,
    passed_validators,
    refused_validators,
    validator_specs,
)
from snapshot_assets.engines.registry import check_datasets
from snapshot_assets.errors import ConfigurationError, SnapshotAssetsError, ValidationFailed
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.resources.run_key import idempotency_key, run_summary
from snapshot_assets.resources.store import SnapshotStoreResource

if TYPE_CHECKING:
    from snapshot_assets.publish.publisher import Writing

__all__ = ["LiveDatabase", "build_snapshot_asset", "snapshot_asset"]

_BODY_ARGUMENT: Final = "live"


class LiveDatabase:
    """The live database, as the body of a snapshot asset may use it: nobody else writes or captures it meanwhile.

    Attributes:
        dataset: what will be published.
        path: the live database itself.
    """

    def __init__(self, writing: Writing) -> None:
        self.dataset = writing.dataset
        self.path: Path = writing.dataset.path
        self._writing = writing

    def connect(self) -> AbstractContextManager[Any]:
        """A read-write connection of the engine's own type; the live database is made if it is missing.

        DuckDB gives a `DuckDBPyConnection`, SQLite a `sqlite3.Connection`, Turso a `turso.Connection`, Cayenne a
        `CayenneTable` and Lance a `LanceTable`.

        Raises:
            LiveDatabaseBusy: a program that does not know the write gate has it open.
        """
        return self._writing.connect()


def snapshot_asset(
    dataset: Dataset, *, store_key: str = "snapshot_store", allow_schema_change: bool = False, **asset_args: Any
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Make an asset of a function that changes a live database, which is then published.

    The function is called with `live` (a `LiveDatabase`) and, where it asks for them, `context`, `config`, resources
    and upstream assets, as the function of any asset is. It may return metadata: a dict or a `MaterializeResult`.

    In a run: the writer lease, the write gate, the function, the capture, the gate opened, the publish. A step that is
    retried or re-executed after it published runs nothing again and reports the same snapshot. Content that did not
    change is not published again, and keeps the data version. The dataset's validators are blocking asset checks: a
    failed one stops the publish before anything is visible. With `partitions_def`, backfills are one run and one
    publish by default.

    Example:
        .. code-block:: python

            @snapshot_asset(flights, group_name="nyc", owners=["team:data"])
            def flights_snapshot(context, live):
                with live.connect() as con:
                    con.execute("insert into flights ...")

    Args:
        dataset: what is published. Its name is the asset's, unless `name` or `key` is given.
        store_key: the name of the `SnapshotStoreResource`.
        allow_schema_change: publish schemas that readers of the current one may not survive.
        asset_args: passed on to `dagster.asset`.

    Raises:
        ConfigurationError: the dataset can not be captured: its engine refuses the live database or an option, or the
            engine's package is not installed.
    """

    def decorate(body: Callable[..., Any]) -> dg.AssetsDefinition:
        if inspect.iscoroutinefunction(body) or inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
            raise ConfigurationError(
                f"the snapshot asset of {dataset.name!r} is async or yields",
                hint="Return metadata as a dict or a MaterializeResult.",
                dataset=dataset.name,
            )
        return _build(dataset, body, store_key, asset_args, allow_schema_change=allow_schema_change)

    return decorate


def build_snapshot_asset(
    dataset: Dataset, *, store_key: str = "snapshot_store", allow_schema_change: bool = False, **asset_args: Any
) -> dg.AssetsDefinition:
    """Make an asset that publishes what something else built: dbt, dlt, another asset, named in `deps`.

    Like `snapshot_asset` with a function that does nothing.

    Example:
        .. code-block:: python

            warehouse = build_snapshot_asset(Dataset("warehouse", "duckdb", "dbt.duckdb"), deps=[my_dbt_assets])
    """

    def body() -> None: ...

    return _build(dataset, body, store_key, asset_args, allow_schema_change=allow_schema_change)


def _build(
    dataset: Dataset,
    body: Callable[..., Any],
    store_key: str,
    asset_args: dict[str, Any],
    *,
    allow_schema_change: bool,
) -> dg.AssetsDefinition:
    check_datasets([dataset])
    parameters = _parameters(body, store_key, asset_args)
    is_asked = store_key in inspect.signature(body).parameters

    def publish(context: dg.AssetExecutionContext, /, **inputs: Any) -> Iterator[Any]:
        resource: SnapshotStoreResource = getattr(context.resources, store_key)
        if not is_asked:
            inputs.pop(store_key, None)
        try:
            yield _publish(context, resource, dataset, _bound(body, context, inputs), allow_schema_change)
        except ValidationFailed as error:
            yield from refused_validators(error)
            raise step_failure(error) from error
        except SnapshotAssetsError as error:
            raise step_failure(error) from error

    publish.__name__ = body.__name__
    # Dagster finds inputs, resources and configuration by the signature; `live` is ours to give.
    publish.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    publish.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    with warnings.catch_warnings():
        if "backfill_policy" not in asset_args:
            # that the argument is in beta is for those to know who chose it themselves
            warnings.simplefilter("ignore", dg.BetaWarning)
        asset: dg.AssetsDefinition = dg.asset(**_asset_args(dataset, body, store_key, asset_args))(publish)
    return asset


def _parameters(body: Callable[..., Any], store_key: str, asset_args: Mapping[str, Any]) -> list[inspect.Parameter]:
    """The parameters that Dagster is to see: a context, the body's own without `live`, and the store.

    Annotations are resolved here, so that a body may come from a module that postpones them.
    """
    own = [p for p in inspect.signature(body).parameters.values() if p.name not in {_BODY_ARGUMENT, "context"}]
    annotated = {p.name: p.annotation for p in own if p.annotation is not inspect.Parameter.empty}

    def holder() -> None: ...

    holder.__annotations__ = annotated
    resolved = get_type_hints(holder, globalns=getattr(body, "__globals__", None), include_extras=True)
    resolved.setdefault(store_key, SnapshotStoreResource)
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_ONLY, annotation=dg.AssetExecutionContext)
    seen = [context, *(p.replace(annotation=resolved.get(p.name, p.annotation)) for p in own)]
    # Dagster takes resources as arguments or as required keys, not as both: the store comes the way the others do.
    is_asked = any(parameter.name == store_key for parameter in own)
    if not is_asked and not asset_args.get("required_resource_keys"):
        seen.append(inspect.Parameter(store_key, inspect.Parameter.KEYWORD_ONLY, annotation=resolved[store_key]))
    return seen


def _bound(
    body: Callable[..., Any], context: dg.AssetExecutionContext, inputs: Mapping[str, Any]
) -> Callable[..., Any]:
    """The body with all it asked for, waiting for the live database."""
    asked = inspect.signature(body).parameters

    def run(live: LiveDatabase) -> Any:
        ours = {"context": context, _BODY_ARGUMENT: live}
        return body(**{name: value for name, value in ours.items() if name in asked}, **inputs)

    return run


def _asset_args(dataset: Dataset, body: Callable[..., Any], store_key: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `dagster.asset`: those given, and what a dataset has to say for itself."""
    args = dict(given)
    args.setdefault("description", inspect.getdoc(body) or f"Publishes the {dataset.engine} database `{dataset.path}`.")
    if "key" not in args:
        args.setdefault("name", dataset.name)
    key = dg.AssetKey.from_coercible(args["key"]) if "key" in args else _prefixed(args.get("key_prefix"), args["name"])
    args["kinds"] = {dataset.engine, *(args.get("kinds") or ())}
    args["metadata"] = {
        "snapshot/dataset": dataset.name,
        "snapshot/live_database": dg.MetadataValue.path(str(dataset.path)),
        **(args.get("metadata") or {}),
    }
    args["check_specs"] = [*validator_specs(dataset, key), *(args.get("check_specs") or ())]
    if args.get("required_resource_keys"):
        args["required_resource_keys"] = {store_key, *args["required_resource_keys"]}
    args.setdefault("pool", f"snapshot_{dataset.name}")
    if args.get("partitions_def") is not None:
        args.setdefault("backfill_policy", dg.BackfillPolicy.single_run())
    return args


def _prefixed(prefix: Any, name: str) -> dg.AssetKey:
    parts = [] if prefix is None else [prefix] if isinstance(prefix, str) else list(prefix)
    return dg.AssetKey([*parts, name])


def _publish(
    context: dg.AssetExecutionContext,
    resource: SnapshotStoreResource,
    dataset: Dataset,
    body: Callable[[LiveDatabase], Any],
    allow_schema_change: bool,  # noqa: FBT001
) -> dg.MaterializeResult[Any]:
    """Run the body under the write gate and publish; or, when this step has published before, report that."""
    partition_keys = tuple(context.partition_keys) if _is_partitioned(context) else ()
    key = idempotency_key(context.instance, context.run, context.asset_key, partition_keys)
    returned = _Returned()
    with resource.open_publisher() as publisher, publisher.writing(dataset, idempotency_key=key) as writing:
        if writing.already is not None:
            result = writing.already
            not_run = own_checks_not_run(context.assets_def.check_specs, dataset, result)
            returned = _Returned(check_results=not_run)
            context.log.info(
                "This step published snapshot %s of %r before, so nothing is done again; a new run publishes anew.",
                result.snapshot_id,
                dataset.name,
            )
        else:
            returned = _Returned.of(body(LiveDatabase(writing)))
            result = writing.publish(
                allow_schema_change=allow_schema_change,
                summary=run_summary(context.run, context.asset_key),
                partition_keys=partition_keys,
            )
    store = resource.open_store(read_only=True)
    metadata = materialization_metadata(store, result, partition_keys)
    checks = passed_validators(store, dataset, result)
    return dg.MaterializeResult(
        metadata={**returned.metadata, **metadata},
        check_results=[*checks, *returned.check_results],
        data_version=dg.DataVersion(result.content_digest),
        tags=returned.tags,
    )


@dataclass(frozen=True, slots=True)
class _Returned:
    """What the body has to say of its own. The names of the publish win over it."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    check_results: Sequence[dg.AssetCheckResult] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any) -> _Returned:
        """Read what a body returned, before anything is captured.

        Raises:
            ConfigurationError: it is neither metadata nor a `MaterializeResult`.
        """
        if value is None:
            return cls()
        if isinstance(value, dg.MaterializeResult):
            return cls(value.metadata or {}, value.check_results or (), value.tags or {})
        if isinstance(value, Mapping):
            return cls(value)
        raise ConfigurationError(
            f"the body of a snapshot asset returned a {type(value).__name__}, so nothing was published",
            hint="Return metadata as a dict or a MaterializeResult, or nothing.",
        )


def _is_partitioned(context: dg.AssetExecutionContext) -> bool:
    return bool(context.has_partition_key or context.has_partition_key_range)
