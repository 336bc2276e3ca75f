from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from snapshot_assets.errors import ConfigurationError, InconsistentSnapshotSettings, InvalidDatasetName
from snapshot_assets.model.schema import SchemaPolicy
from snapshot_assets.reader.settings import DrainPolicy, OnDamage, ReaderSettings


def test_durations_are_seconds_or_timedeltas_and_choices_are_words() -> None:
    settings = ReaderSettings(
        refresh_interval=timedelta(minutes=2),
        drain_timeout=5,
        drain_policy="cancel",
        schema_policy="widening",
        on_damage="fallback",
    )
    assert settings.refresh_interval == 120.0
    assert settings.drain_timeout == 5.0
    assert settings.drain_policy is DrainPolicy.CANCEL
    assert settings.schema_policy is SchemaPolicy.WIDENING
    assert settings.on_damage is OnDamage.FALLBACK
    assert ReaderSettings(refresh_interval=None).refresh_interval is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"refresh_interval": 0},
        {"refresh_interval": -1.0},
        {"refresh_interval": float("nan")},
        {"refresh_interval": float("inf")},
        {"refresh_interval": "soon"},
        {"refresh_interval": True},
        {"drain_timeout": timedelta(0)},
        {"keep_local": 0},
        {"keep_local": 1.5},
        {"threads": 0},
        {"schema_policy": "loose"},
        {"on_damage": "ignore"},
        {"on_bootstrap_failure": None},
        {"on_dropped": "delete"},
        {"drain_policy": "kill"},
    ],
)
def test_a_bad_value_is_refused_by_its_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        ReaderSettings(**wrong)


def test_cancelling_without_a_timeout_is_refused() -> None:
    with pytest.raises(InconsistentSnapshotSettings):
        ReaderSettings(drain_policy="cancel")


def test_a_contract_names_valid_datasets() -> None:
    with pytest.raises(InvalidDatasetName):
        ReaderSettings(contract={"No Such": {}})
