"""YAML attributes whose mistakes are reported at their own line, with their own reason.

In Dagster a template may stand for any value, so the type of each field is a union with text. A validator that finds
no fitting member of a union can only say that none fits, and at the line of the whole. Here templates are told apart
first, and everything else is checked against the one type that it should have.
"""

# Dagster reads the annotations of models as objects, so they are not postponed here.

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, create_model
from pydantic_core import CoreSchema, core_schema

from snapshot_assets.errors import ConfigurationError, SnapshotAssetsError

__all__ = ["ANY_TEXT", "TEMPLATE", "Attributes", "OrText", "as_written", "resolve_each", "with_hint", "written"]

T = TypeVar("T")

TEMPLATE: Final = "{{"
ANY_TEXT: Final = ""


class OrText:
    """Marks a type in whose place texts may stand that hold a mark, and, if need be, nothing."""

    def __init__(self, mark: str | None, *, or_nothing: bool = False) -> None:
        self._mark, self._or_nothing = mark, or_nothing

    def _stands(self, value: object) -> bool:
        if isinstance(value, str):
            return self._mark is not None and self._mark in value
        return value is None and self._or_nothing

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any, checked: Callable[[Any], Any]) -> Any:
            return value if self._stands(value) else checked(value)

        as_it_is = core_schema.plain_serializer_function_ser_schema(
            lambda value: value, return_schema=core_schema.any_schema()
        )
        return core_schema.no_info_wrap_validator_function(check, handler(source), serialization=as_it_is)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        text = [] if self._mark is None else [{"type": "string", "pattern": re.escape(self._mark)}]
        nothing = [{"type": "null"}] if self._or_nothing else []
        return {"if": {"anyOf": [*text, *nothing]}, "else": handler(schema)}


class Attributes(dg.Model, dg.Resolvable):
    """Attributes in a `defs.yaml`."""

    model_config = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True)

    @classmethod
    def model(cls) -> type[BaseModel]:
        """The model that YAML is checked against."""
        return _told_apart(super().model())


@cache
def _told_apart(model: type[BaseModel]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if get_origin(field.annotation) not in (Union, UnionType):
            continue
        members = get_args(field.annotation)
        others = tuple(member for member in members if member not in (str, NoneType)) or (str,)
        if not any(isinstance(mark, OrText) for mark in getattr(others[0], "__metadata__", ())):
            mark = TEMPLATE if str in members and others != (str,) else None
            others = (Annotated[Union[others], OrText(mark, or_nothing=NoneType in members)],)  # noqa: UP007
        fields[name] = (others[0], field)
    told_apart: type[BaseModel] = create_model(model.__name__, __base__=model, **fields)
    return told_apart


def as_written(context: dg.ResolutionContext, value: Any) -> Any:
    """Resolve the templates in a value, and leave other texts alone: Dagster would make a number of "2024"."""
    if isinstance(value, Mapping):
        return {key: as_written(context.at_path(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_written(context.at_path(position), item) for position, item in enumerate(value)]
    return context.resolve_value(value) if isinstance(value, str) and TEMPLATE in value else value


def written(field_type: Any, description: str) -> dg.Resolver:
    """The resolver of a field whose texts are left as they are written."""
    return dg.Resolver(as_written, model_field_type=field_type, inject_before_resolve=False, description=description)


def with_hint(resolve: Callable[[dg.ResolutionContext, Any], T]) -> Callable[[dg.ResolutionContext, Any], T]:
    """Put the hint of a typed error into its message, which is all of it that Dagster shows."""

    @wraps(resolve)
    def resolved(context: dg.ResolutionContext, value: Any) -> T:
        try:
            return resolve(context, value)
        except SnapshotAssetsError as error:
            raise ConfigurationError(f"{error.message.rstrip('.')}. {error.hint}".strip()) from None

    return resolved


def resolve_each(
    context: dg.ResolutionContext, values: Iterable[Any], resolve: Callable[[dg.ResolutionContext, Any], T]
) -> list[T]:
    """Resolve the items of a list, each of which may be a template; an error is reported at the item's line."""

    def resolved(context: dg.ResolutionContext, value: Any) -> Any:
        return context.resolve_value(value) if isinstance(value, str) else with_hint(resolve)(context, value)

    item = dg.Resolver.from_model(resolved)
    return [item.execute(context.at_path(position), value, str(position)) for position, value in enumerate(values)]
