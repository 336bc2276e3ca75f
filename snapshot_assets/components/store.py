"""The store of a collection, and settings that nobody but their user should see."""

# Dagster reads the annotations of models as objects, so they are not postponed here.

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import dagster as dg
from pydantic import Field, SkipValidation, model_validator

from snapshot_assets.components.schema import Attributes, as_written, with_hint
from snapshot_assets.errors import ConfigurationError
from snapshot_assets.resources import SnapshotStoreResource
from snapshot_assets.store.open import open_objects

__all__ = ["StoreAttributes", "secret"]

_VARIABLE: Final = re.compile(r"\s*\{\{\s*env(?:\.(\w+)|\(\s*['\"](\w+)['\"]\s*\))\s*\}\}\s*")
_OBJECT_STORES: Final = frozenset({"s3", "gs", "az"})
"""Looking closer at these would load what speaks to them."""


def secret(context: dg.ResolutionContext, value: Any) -> Any:
    """A setting that the UI must not show: an environment variable in it is read by whoever uses it, not before."""
    if isinstance(value, Mapping):
        return {key: secret(context.at_path(key), item) for key, item in value.items()}
    named = _VARIABLE.fullmatch(value) if isinstance(value, str) else None
    return dg.EnvVar(named[1] or named[2]) if named else as_written(context, value)


@with_hint
def _url(context: dg.ResolutionContext, value: str) -> str:
    url = context.resolve_value(value, as_type=str)
    if url:
        if url.partition("://")[0] not in _OBJECT_STORES:
            open_objects(url)
        return url
    named = _VARIABLE.fullmatch(value)
    raise ConfigurationError(
        f"the environment variable {named[1] or named[2]} is not set" if named else "the store has no url",
        hint="Name a bucket or a folder, such as {{ env('SNAPSHOT_STORE', 'snapshots') }}.",
    )


class StoreAttributes(Attributes):
    """Where snapshots are kept: a url and settings, or the key of a resource that the project has."""

    url: Annotated[
        str | None,
        dg.Resolver(
            _url,
            model_field_type=str,
            inject_before_resolve=False,
            description="s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, or a folder of the project.",
        ),
    ] = None
    resource_key: str | None = Field(
        default=None, description="The key of a SnapshotStoreResource that the project has."
    )
    options: Annotated[
        # a validator would make a text of an `EnvVar`
        SkipValidation[dict[str, str] | None],
        dg.Resolver(
            secret,
            model_field_type=dict[str, str],
            inject_before_resolve=False,
            description="The object store's own settings: endpoint, region, access_key_id, allow_http ...",
        ),
    ] = None
    staging_dir: str | None = Field(default=None, description="Where staged copies are made.")
    capture_timeout: float | None = Field(
        default=None, description="Seconds to wait for the live database to come to rest."
    )
    wait: float | None = Field(default=None, description="Seconds to wait for another writer of the same dataset.")
    lease_duration: float | None = Field(
        default=None, description="Seconds after which a silent writer may be taken over."
    )
    verify: Literal["quick", "full", "none"] | None = Field(default=None, description="How a staged copy is checked.")
    verify_upload: Literal["sizes", "digest", "restore"] | None = Field(
        default=None, description="How uploads are checked."
    )
    max_snapshots: int | None = Field(default=None, description="How many snapshots a dataset lists at most.")
    retry_for: float | None = Field(default=None, description="Seconds for which an unavailable store is asked again.")

    @model_validator(mode="after")
    def _check(self) -> "StoreAttributes":
        given = {name for name, value in self if value is not None}
        if given != {"resource_key"} and ("url" not in given or "resource_key" in given):
            raise ConfigurationError("a store has a url, with settings or without, or else a resource_key alone")
        return self

    def to_resource(self, folder: Path) -> SnapshotStoreResource | None:
        """The resource; none when it is the project's. Relative paths start at the folder."""
        if self.url is None:
            return None
        settings: dict[str, Any] = {name: value for name, value in self if value is not None}
        if "://" not in self.url:
            settings["url"] = str(folder / Path(self.url).expanduser())
        if self.staging_dir is not None:
            settings["staging_dir"] = str(folder / self.staging_dir)
        return SnapshotStoreResource(**settings)
