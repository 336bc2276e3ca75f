"""The component: each dataset of a `defs.yaml` becomes an asset, and a sensor and a job reload the readers of all."""

# Dagster reads the annotations of models as objects, so they are not postponed here.

import re
from typing import Annotated, Any, Final

import dagster as dg
from pydantic import BaseModel, Field, model_validator

from snapshot_assets.assets import LiveDatabase, snapshot_asset, snapshot_changed
from snapshot_assets.components.dataset import DatasetAttributes
from snapshot_assets.components.maintenance import MaintenanceAttributes
from snapshot_assets.components.readers import ReadersAttributes, SensorAttributes
from snapshot_assets.components.scaffolder import SnapshotCollectionScaffolder
from snapshot_assets.components.schema import ANY_TEXT, TEMPLATE, Attributes, OrText, resolve_each, with_hint
from snapshot_assets.components.store import StoreAttributes
from snapshot_assets.engines.registry import check_datasets
from snapshot_assets.errors import ConfigurationError
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.resources import SnapshotStoreResource, store_kind
from snapshot_assets.sensors import build_reload_job, build_snapshot_sensor

__all__ = ["SnapshotCollection"]

_KIND_TAG: Final = "dagster/kind/"


def _store(context: dg.ResolutionContext, value: BaseModel | str) -> StoreAttributes:
    model = StoreAttributes.model()(url=value) if isinstance(value, str) else value
    store: StoreAttributes = StoreAttributes.resolve_from_model(context, model)
    return store


def _dataset(context: dg.ResolutionContext, value: BaseModel) -> DatasetAttributes:
    data: DatasetAttributes = DatasetAttributes.resolve_from_model(context, value)
    folder = dg.ComponentLoadContext.from_resolution_context(context).project_root
    check_datasets([data.to_dataset(folder)])
    data.to_asset_spec()
    return data


@with_hint
def _datasets(context: dg.ResolutionContext, values: tuple[BaseModel | str, ...]) -> list[DatasetAttributes]:
    data = resolve_each(context, values, _dataset)
    folder = dg.ComponentLoadContext.from_resolution_context(context).project_root
    _check_together([one.to_dataset(folder) for one in data])
    return data


def _check_together(datasets: list[Dataset]) -> None:
    names = [dataset.name for dataset in datasets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"the dataset {name!r} stands twice", hint="Name each dataset once.")
    check_datasets(datasets)


@dg.scaffold_with(SnapshotCollectionScaffolder)
class SnapshotCollection(dg.Component, Attributes):
    """Publishes databases as snapshots: an asset for each, and a sensor and a job that reload their readers.

    Without readers there is neither a sensor nor a job. Resources, jobs and sensor bear the collection's name, so that
    any number of collections can stand in one project. To change a live database in Python, subclass it and override
    `execute`; to name or group assets in your own way, `get_asset_spec`.
    """

    store: Annotated[
        StoreAttributes,
        dg.Resolver(
            _store,
            model_field_type=Annotated[StoreAttributes.model(), OrText(ANY_TEXT)],
            inject_before_resolve=False,
            description="Where snapshots are kept: a url, or a url and settings.",
        ),
    ]
    datasets: Annotated[
        list[DatasetAttributes],
        dg.Resolver(
            _datasets,
            model_field_type=tuple[Annotated[DatasetAttributes.model(), OrText(TEMPLATE)], ...],
            description="What is published.",
        ),
    ]
    readers: ReadersAttributes | None = Field(
        default=None, description="The reader nodes that go to every new snapshot."
    )
    sensor: SensorAttributes | None = Field(default=None, description="How new snapshots are noticed.")
    maintenance: MaintenanceAttributes | None = Field(default=None, description="What keeps the store small and sound.")
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*$",
        description="What its resources, jobs and sensor are named after; the collection's folder, when left out.",
    )

    @staticmethod
    @dg.template_var
    def snapshot_changed() -> dg.AutomationCondition[Any]:
        """What `{{ snapshot_changed }}` stands for in a `defs.yaml`."""
        return snapshot_changed()

    @model_validator(mode="after")
    def _check(self) -> "SnapshotCollection":
        if self.sensor is not None and self.readers is None:
            raise ConfigurationError("a sensor without readers would have nobody to tell")
        if self.readers is not None and self.readers.discover and self.store.url is None:
            raise ConfigurationError("readers are discovered in a store with a url; this one has a resource_key")
        return self

    def get_asset_spec(self, data: DatasetAttributes) -> dg.AssetSpec:
        """The asset of a dataset; override it to name, group or tag assets in your own way."""
        spec = data.to_asset_spec()
        if self.store.url is None:
            return spec
        return spec.replace_attributes(kinds={*spec.kinds, store_kind(self.store.url)})

    def execute(self, context: dg.AssetExecutionContext, live: LiveDatabase) -> Any:
        """Change a live database, under the write gate, before it is captured and published.

        Runs the statements of the dataset, `live.dataset`. Override it to do more or something else; as the function
        of a `snapshot_asset`, it may return metadata.
        """
        statements = next(data.statements for data in self.datasets if data.name == live.dataset.name)
        if not statements:
            return
        is_partitioned = context.has_partition_key or context.has_partition_key_range
        with live.connect() as connection:
            for parameters in [{"partition_key": key} for key in context.partition_keys] if is_partitioned else [{}]:
                for statement in statements:
                    # DuckDB refuses parameters that a statement does not name
                    connection.execute(statement, parameters if "$partition_key" in statement else {})

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The assets, resources, job and sensor of the collection.

        Raises:
            ConfigurationError: a dataset can not be captured, or two of them contradict each other.
        """
        name, folder = self.name or _place(context), context.project_root
        datasets = [data.to_dataset(folder) for data in self.datasets]
        _check_together(datasets)
        store_key, store = self.store.resource_key or f"{name}_store", self.store.to_resource(folder)
        assets = [
            self._build_asset(data, dataset, store_key) for data, dataset in zip(self.datasets, datasets, strict=True)
        ]
        parts = [dg.Definitions(assets=assets, resources={} if store is None else {store_key: store})]
        if self.readers is not None:
            parts.append(self._build_reload(self.readers, assets, store, name, store_key))
        if self.maintenance is not None:
            keys = {dataset.name: asset.key for dataset, asset in zip(datasets, assets, strict=True)}
            parts.append(self.maintenance.to_definitions(datasets, keys, name=name, store_key=store_key))
        return dg.Definitions.merge(*parts)

    def _build_reload(
        self,
        readers: ReadersAttributes,
        assets: list[dg.AssetsDefinition],
        store: SnapshotStoreResource | None,
        name: str,
        store_key: str,
    ) -> dg.Definitions:
        fleet_key, sensor = f"{name}_readers", self.sensor or SensorAttributes()
        rollout = None if readers.rollout is None else readers.rollout.to_rollout()
        reload = build_reload_job(f"reload_{name}", rollout=rollout, fleet_key=fleet_key, store_key=store_key)
        watch = build_snapshot_sensor(
            assets,
            job=reload,
            name=sensor.name or f"{name}_sensor",
            minimum_interval_seconds=sensor.minimum_interval_seconds,
            max_requests=sensor.max_requests,
            store_key=store_key,
            default_status=dg.DefaultSensorStatus(sensor.default_status.upper()),
        )
        return dg.Definitions(
            jobs=[reload],
            sensors=[watch] if sensor.enabled else [],
            resources={fleet_key: readers.to_resource(store)},
        )

    def _build_asset(self, data: DatasetAttributes, dataset: Dataset, store_key: str) -> dg.AssetsDefinition:
        spec = self.get_asset_spec(data)

        def body(context: dg.AssetExecutionContext, live: LiveDatabase) -> Any:
            return self.execute(context, live)

        given = {
            "description": spec.description,
            "partitions_def": spec.partitions_def,
            "automation_condition": spec.automation_condition,
            "freshness_policy": spec.freshness_policy,
            "group_name": spec.group_name,
            "code_version": spec.code_version,
        }
        return snapshot_asset(
            dataset,
            store_key=store_key,
            allow_schema_change=data.allow_schema_change,
            key=spec.key,
            deps=list(spec.deps),
            owners=spec.owners,
            kinds=spec.kinds,
            tags={key: tag for key, tag in spec.tags.items() if not key.startswith(_KIND_TAG)},
            metadata=spec.metadata,
            **{name: value for name, value in given.items() if value is not None},
        )(body)


def _place(context: dg.ComponentLoadContext) -> str:
    """A name for a collection that has none, unlike those of others in the project."""
    place = context.path.relative_to(context.defs_module_path).as_posix().removesuffix(".py")
    position = context.component_path.instance_key
    if position:
        place += f"/{position + 1 if isinstance(position, int) else position}"
    name = re.sub(r"\W", "_", place, flags=re.ASCII)
    return name if name.isidentifier() else f"snapshots_{name}".rstrip("_")
