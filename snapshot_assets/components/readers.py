"""Who is told of new snapshots, and how."""

# Dagster reads the annotations of models as objects, so they are not postponed here.

from typing import Annotated, Any, Literal

import dagster as dg
from pydantic import BaseModel, Field, SkipValidation

from snapshot_assets.components.schema import ANY_TEXT, Attributes, OrText, with_hint, written
from snapshot_assets.components.store import secret
from snapshot_assets.resources import ReaderFleetResource, SnapshotStoreResource
from snapshot_assets.sensors import Rollout

__all__ = ["ReadersAttributes", "RolloutAttributes", "SensorAttributes"]


class RolloutAttributes(Attributes):
    """The policy of a rollout: a canary, a look at its health, then the rest in waves."""

    canary: Annotated[
        str | int | None,
        dg.Resolver.default(
            model_field_type=Annotated[int, OrText(ANY_TEXT)],
            description="The readers that are asked first: a cohort's name, or how many.",
        ),
    ] = None
    waves: list[float | int] | None = Field(default=None, description="Shares of the rest, or sizes, in order.")
    soak: float | None = Field(default=None, description="Seconds for which a stage must be well before the next.")
    health: Annotated[str | None, written(str, "SQL that must return no row, asked of each reader.")] = None
    canary_max_failures: int | None = Field(default=None, description="How many readers of the canary may fail.")
    max_failures: int | None = Field(default=None, description="How many readers of a wave may fail.")
    rollback: bool | None = Field(default=None, description="Go back to the snapshot before when a rollout stops.")

    def to_rollout(self) -> Rollout:
        """The policy.

        Raises:
            ConfigurationError: a value makes no sense.
        """
        given: dict[str, Any] = {name: value for name, value in self if value is not None}
        if self.waves is not None:
            given["waves"] = tuple(self.waves)
        return Rollout(**given)


@with_hint
def _rollout(context: dg.ResolutionContext, value: BaseModel | None) -> RolloutAttributes | None:
    if value is None:
        return None
    rollout: RolloutAttributes = RolloutAttributes.resolve_from_model(context, value)
    rollout.to_rollout()
    return rollout


class ReadersAttributes(Attributes):
    """The reader nodes that go to every new snapshot: listed, behind one DNS name, or found in the store."""

    endpoints: list[str] | None = Field(
        default=None, description="Where each reader node answers, such as grpc://127.0.0.1:8815."
    )
    dns: str | None = Field(default=None, description="A host:port each of whose addresses is a reader node.")
    discover: bool | None = Field(default=None, description="Call the readers that announce themselves in the store.")
    allowed_hosts: list[str] | None = Field(default=None, description="Hosts that a discovered endpoint may have.")
    token: Annotated[
        # a validator would make a text of an `EnvVar`
        SkipValidation[str | None],
        dg.Resolver(
            secret,
            model_field_type=str,
            inject_before_resolve=False,
            description="The bearer token of the nodes' control actions.",
        ),
    ] = None
    tls_ca: str | None = Field(default=None, description="The certificates to trust, as a PEM file.")
    timeout: float | None = Field(default=None, description="Seconds that a node has to load what it was asked for.")
    rollout: Annotated[
        RolloutAttributes | None,
        dg.Resolver(_rollout, model_field_type=RolloutAttributes.model(), description="Ask the readers in stages."),
    ] = None

    def to_resource(self, store: SnapshotStoreResource | None) -> ReaderFleetResource:
        """The resource; readers are discovered in the store."""
        settings: dict[str, Any] = {name: value for name, value in self if value is not None and name != "rollout"}
        if store is not None:
            settings["store"] = store
        return ReaderFleetResource(**settings)


class SensorAttributes(Attributes):
    """The sensor that asks for a reload of every new snapshot."""

    name: str | None = Field(
        default=None, description="The sensor's name; the collection's and `_sensor`, when left out."
    )
    minimum_interval_seconds: int = Field(
        default=30, ge=1, description="The least time between two looks at the store."
    )
    max_requests: int = Field(default=25, ge=1, description="The most runs that one look asks for.")
    enabled: bool = Field(default=True, description="Whether there is a sensor.")
    default_status: Literal["running", "stopped"] = Field(
        default="stopped", description="Whether it runs when it is new."
    )
