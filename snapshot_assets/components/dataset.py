"""The datasets of a collection, and what must hold before one is published."""

# Dagster reads the annotations of models as objects, so they are not postponed here.

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import dagster as dg
from pydantic import BaseModel, Field

from snapshot_assets.components.partitions import PartitionsAttributes
from snapshot_assets.components.schema import (
    TEMPLATE,
    Attributes,
    OrText,
    as_written,
    resolve_each,
    with_hint,
    written,
)
from snapshot_assets.errors import ConfigurationError
from snapshot_assets.ids import check_dataset_name
from snapshot_assets.model.dataset import Dataset, Validator
from snapshot_assets.model.engines import engine_names, engine_source

__all__ = ["SQL_ENGINES", "CheckAttributes", "DatasetAttributes"]

SQL_ENGINES: Final = frozenset({"duckdb", "sqlite", "turso"})
"""Those whose live connections run SQL."""


class _OfColumns(Attributes):
    table: str
    columns: list[str] = Field(min_length=1)


class _AtLeast(Attributes):
    minimum: int
    table: str | None = None


class _Within(Attributes):
    percent: float
    table: str | None = None


class CheckAttributes(Attributes):
    """One check of the staged copy. A failed one stops the publish before anything is visible."""

    sql: Annotated[str | None, written(str, "A statement that must return no row.")] = None
    not_null: _OfColumns | None = Field(default=None, description="No value of the columns may be null.")
    unique: _OfColumns | None = Field(default=None, description="No two rows may agree in all of the columns.")
    row_count_at_least: _AtLeast | None = Field(
        default=None, description="How many rows there must be, in a table or in all."
    )
    row_count_within: _Within | None = Field(default=None, description="By how many percent the row count may change.")

    def to_validator(self) -> Validator:
        """The validator.

        Raises:
            ConfigurationError: none is named, or several.
        """
        from snapshot_assets.publish.validators import NotNull, RowCountAtLeast, RowCountWithin, Unique

        made: list[Validator] = []
        if self.sql is not None:
            made.append(self.sql)
        if self.not_null is not None:
            made.append(NotNull(self.not_null.table, *self.not_null.columns))
        if self.unique is not None:
            made.append(Unique(self.unique.table, *self.unique.columns))
        if self.row_count_at_least is not None:
            made.append(RowCountAtLeast(self.row_count_at_least.minimum, self.row_count_at_least.table))
        if self.row_count_within is not None:
            made.append(RowCountWithin(self.row_count_within.percent, self.row_count_within.table))
        if len(made) != 1:
            known = ", ".join(type(self).model_fields)
            raise ConfigurationError(f"a check names one of {known}; this one names {len(made)} of them", hint="")
        return made[0]


@with_hint
def _name(context: dg.ResolutionContext, value: str) -> str:
    return check_dataset_name(context.resolve_value(value, as_type=str))


@with_hint
def _engine(context: dg.ResolutionContext, value: str) -> str:
    name = context.resolve_value(value, as_type=str)
    engine_source(name)
    return name


def _check(context: dg.ResolutionContext, value: BaseModel) -> Validator:
    check: CheckAttributes = CheckAttributes.resolve_from_model(context, value)
    return check.to_validator()


@with_hint
def _partitions(context: dg.ResolutionContext, value: BaseModel | None) -> dg.PartitionsDefinition | None:
    if value is None:
        return None
    partitions: PartitionsAttributes = PartitionsAttributes.resolve_from_model(context, value)
    return partitions.to_definition()


@with_hint
def _condition(context: dg.ResolutionContext, value: Any) -> dg.AutomationCondition[Any] | None:
    condition = context.resolve_value(value)
    if condition is None or isinstance(condition, dg.AutomationCondition):
        return condition
    raise ConfigurationError(
        f"{condition!r} is not an automation condition",
        hint="Write {{ snapshot_changed }} or {{ dg.AutomationCondition.eager() }}, for example.",
    )


def _tags(context: dg.ResolutionContext, value: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(tag) for key, tag in as_written(context, value).items()}


class DatasetAttributes(Attributes):
    """A dataset, and what Dagster should know of its asset."""

    name: Annotated[str, dg.Resolver(_name, description="The dataset's name, and the asset's unless it has a key.")]
    engine: Annotated[
        str,
        dg.Resolver(
            _engine,
            model_field_type=Literal[engine_names()],
            description="The engine of the live database.",
        ),
    ]
    path: str = Field(description="The live database. A relative path starts at the project's folder.")
    statements: Annotated[
        list[str],
        written(
            list[str],
            "SQL that changes the live database, under the write gate, before it is published. With partitions, it is "
            "run for each key of a run, which stands for $partition_key.",
        ),
    ] = Field(default_factory=list)
    checks: Annotated[
        list[Any],
        dg.Resolver(
            lambda context, values: resolve_each(context, values, _check),
            model_field_type=tuple[Annotated[CheckAttributes.model(), OrText(TEMPLATE)], ...],
            description="What must hold before anything is published.",
        ),
    ] = Field(default_factory=list)
    partitions: Annotated[
        dg.PartitionsDefinition | None,
        dg.Resolver(_partitions, model_field_type=PartitionsAttributes.model(), description="The asset's partitions."),
    ] = None
    key: dg.ResolvedAssetKey | None = None
    deps: list[dg.ResolvedAssetKey] = Field(default_factory=list, description="The assets that write the database.")
    group: str | None = Field(default=None, description="The asset's group.")
    owners: list[str] = Field(default_factory=list, description="E-mail addresses, or team:name.")
    description: Annotated[str | None, written(str, "What people should know of the dataset.")] = None
    tags: Annotated[
        dict[str, str],
        dg.Resolver(_tags, model_field_type=dict[str, str | int | float | bool], description="The asset's tags."),
    ] = Field(default_factory=dict)
    automation_condition: Annotated[
        dg.AutomationCondition[Any] | None,
        dg.Resolver(
            _condition,
            model_field_type=str,
            inject_before_resolve=False,
            description="When to publish by itself, such as {{ snapshot_changed }}.",
        ),
    ] = None
    tables: list[str] | None = Field(
        default=None, description="The tables that readers are told of; all, when left out."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="The engine's own settings.")
    properties: Annotated[dict[str, Any], written(dict[str, Any], "Recorded in every manifest.")] = Field(
        default_factory=dict
    )
    allow_schema_change: bool = Field(default=False, description="Publish schemas that readers may not survive.")

    def to_asset_spec(self) -> dg.AssetSpec:
        """The asset, without its store."""
        return dg.AssetSpec(
            self.key or self.name,
            deps=self.deps,
            description=self.description,
            group_name=self.group,
            owners=self.owners,
            tags=self.tags,
            kinds={self.engine},
            automation_condition=self.automation_condition,
            partitions_def=self.partitions,
        )

    def to_dataset(self, folder: Path) -> Dataset:
        """The dataset. A relative path starts at the folder.

        Raises:
            ConfigurationError: a setting can not work.
        """
        if self.statements and self.engine not in SQL_ENGINES:
            raise ConfigurationError(
                f"{self.name!r} has statements, and its engine {self.engine!r} takes no SQL",
                hint=f"{', '.join(sorted(SQL_ENGINES))} do. For another, override `execute` in a component of yours.",
            )
        declared = Dataset(self.name, self.engine, self.path, self.checks, self.tables, self.options, self.properties)
        return replace(declared, path=folder / declared.path)
