"""Contract suites, fault tools and real servers, for this package's tests and for those of third parties.

The suites need pytest; they are imported when they are asked for, so that child processes of tests start fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snapshot_assets.testing.engine_contract import EngineContract
    from snapshot_assets.testing.faults import Call, Fault, FaultStore
    from snapshot_assets.testing.relay import Relay
    from snapshot_assets.testing.servers import (
        RestartableServer,
        S3Server,
        rclone_server,
        restartable_weed_server,
        weed_server,
    )
    from snapshot_assets.testing.store_contract import StoreContract

__all__ = [
    "Call",
    "EngineContract",
    "Fault",
    "FaultStore",
    "Relay",
    "RestartableServer",
    "S3Server",
    "StoreContract",
    "rclone_server",
    "restartable_weed_server",
    "weed_server",
]

_MODULES = {
    "Call": "faults",
    "EngineContract": "engine_contract",
    "Fault": "faults",
    "FaultStore": "faults",
    "Relay": "relay",
    "RestartableServer": "servers",
    "S3Server": "servers",
    "StoreContract": "store_contract",
    "rclone_server": "servers",
    "restartable_weed_server": "servers",
    "weed_server": "servers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
