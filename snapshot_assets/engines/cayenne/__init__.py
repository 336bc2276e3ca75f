"""The Cayenne engine: tables of Vortex files, described by rows in a SQLite metastore that many datasets share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from snapshot_assets.engines.cayenne.slice_export import export_slice
from snapshot_assets.engines.cayenne.slice_import import import_slice

if TYPE_CHECKING:
    from snapshot_assets.engines.cayenne.table import CayenneTable

__all__ = ["CayenneTable", "export_slice", "import_slice"]


def __getattr__(name: str) -> Any:
    # Slices need no Vortex, tables do: what is not asked for is not imported.
    if name == "CayenneTable":
        from snapshot_assets.engines.cayenne.table import CayenneTable

        return CayenneTable
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
