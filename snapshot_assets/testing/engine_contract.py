"""The engine contract as tests, for any engine, of this package or of another."""

from __future__ import annotations

import pytest

_SUITES = ("staging", "live", "copies", "on_stores", "under_load", "types")
pytest.register_assert_rewrite(*(f"snapshot_assets.testing.engine_{name}" for name in _SUITES))

from snapshot_assets.testing.engine_copies import EngineCopies  # noqa: E402
from snapshot_assets.testing.engine_live import EngineLive  # noqa: E402
from snapshot_assets.testing.engine_staging import manifest_for  # noqa: E402
from snapshot_assets.testing.engine_types import EngineTypes  # noqa: E402
from snapshot_assets.testing.engine_under_load import EngineUnderLoad  # noqa: E402

__all__ = ["EngineContract", "manifest_for"]


class EngineContract(EngineLive, EngineCopies, EngineUnderLoad, EngineTypes):
    """What every engine promises. Offer the engine, subclass this in a test module, and pytest runs the suite.

    The engine is found by its name, as users find it: among the entry points `snapshot_assets.engines` of the package
    that offers it (`pip install -e .` while you write it):

        [project.entry-points."snapshot_assets.engines"]
        mine = "my_package.engine:MyEngine"

    The subclass names it, and says how it differs from a database in one file that speaks SQL:

        class TestMyEngine(EngineContract):
            engine_name = "mine"
            has_many_tables = False
            types = pa.schema([("whole", pa.int64()), ("text", pa.string())])

            def append(self, connection, first, rows):
                connection.write(orders(first, rows), mode="append")

    - attributes: `EngineHooks` lists them, with what each of them excuses the engine from;
    - the live database: `fill`, `append`, `update`, `delete`, `commit_numbered`, `add_column`, `drop_column`, `load`,
      `rows_of` and `use` talk to what `Engine.connect_live` gives;
    - leases: `count_of`, `write_to`, `disturb` and `check_undisturbed` talk to what `Pool.acquire` gives;
    - pools, `staged_query` and the catalogue are asked in SQL, whatever the engine speaks;
    - the S3 store comes from two fixtures, `s3_url` and `s3_options`. `snapshot_assets.testing.weed_server` runs one;
      without it, override the fixture `any_store`.
    """
