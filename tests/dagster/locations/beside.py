"""One code location of all that a session of `dagster dev` has beside the demo."""

from __future__ import annotations

import dagster as dg

from tests.dagster.locations import regions, reports, thousand

defs = dg.Definitions.merge(regions.defs, reports.defs, thousand.defs, dg.Definitions(executor=dg.in_process_executor))
