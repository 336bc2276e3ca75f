"""Whatever people and processes do, in any order: nothing acknowledged is lost, and nothing wrong is shown."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.stateful.machine import OnDisk, OnMemory, World

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
SHORT = settings(
    max_examples=15, stateful_step_count=40, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET
)
LONG = settings(
    max_examples=400, stateful_step_count=80, deadline=None, database=None, print_blob=True, suppress_health_check=QUIET
)


@pytest.mark.parametrize("world", [OnMemory, OnDisk])
def test_in_any_order_nothing_is_lost_and_nothing_wrong_is_shown(world: type[World]) -> None:
    run_state_machine_as_test(world, settings=SHORT)


@pytest.mark.soak
@pytest.mark.parametrize("world", [OnMemory, OnDisk])
def test_in_any_order_for_long(world: type[World]) -> None:
    run_state_machine_as_test(world, settings=LONG)


def test_the_world_has_at_least_twenty_rules() -> None:
    assert len(OnMemory.setup_state().rules) >= 20
