"""Named places at which tests stop, break or kill an operation.

A component takes a `Failpoints` and calls `hit` with a constant of this module. In production nothing is armed and a
hit is one dictionary look-up.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = [
    "CLEANUP_AFTER_COMMIT",
    "CLEANUP_AFTER_END",
    "CLEANUP_AFTER_PLAN",
    "CLEANUP_AFTER_SIDECAR",
    "DROP_AFTER_COMMIT",
    "DROP_AFTER_END",
    "DROP_AFTER_SEAL",
    "DROP_AFTER_SETTLED",
    "DROP_AFTER_SIDECAR",
    "NO_FAILPOINTS",
    "PUBLISH_AFTER_AUDIT",
    "PUBLISH_AFTER_CAPTURE",
    "PUBLISH_AFTER_COMMIT",
    "PUBLISH_AFTER_CONFIRM",
    "PUBLISH_AFTER_EFFECTS",
    "PUBLISH_AFTER_LEASE",
    "PUBLISH_AFTER_PLAN",
    "PUBLISH_AFTER_RECOVERY",
    "PUBLISH_AFTER_RETIRE",
    "PUBLISH_AFTER_SIDECAR",
    "PUBLISH_BEFORE_COMMIT",
    "PUBLISH_DURING_EFFECTS",
    "REFRESH_AFTER_FETCH",
    "REFRESH_AFTER_INSTALL",
    "REFRESH_AFTER_READY",
    "REFRESH_AFTER_RENAME",
    "REFRESH_AFTER_SPARE",
    "REFRESH_AFTER_STATE",
    "REFRESH_AFTER_SWAP",
    "REFRESH_DURING_FETCH",
    "Failpoints",
]

PUBLISH_AFTER_LEASE = "publish.after_lease"
PUBLISH_AFTER_RECOVERY = "publish.after_recovery"
PUBLISH_AFTER_CAPTURE = "publish.after_capture"
PUBLISH_AFTER_PLAN = "publish.after_plan"
PUBLISH_AFTER_SIDECAR = "publish.after_sidecar"
PUBLISH_DURING_EFFECTS = "publish.during_effects"
PUBLISH_AFTER_EFFECTS = "publish.after_effects"
PUBLISH_AFTER_CONFIRM = "publish.after_confirm"
PUBLISH_BEFORE_COMMIT = "publish.before_commit"
PUBLISH_AFTER_COMMIT = "publish.after_commit"
PUBLISH_AFTER_AUDIT = "publish.after_audit"
PUBLISH_AFTER_RETIRE = "publish.after_retire"

CLEANUP_AFTER_PLAN = "cleanup.after_plan"
CLEANUP_AFTER_SIDECAR = "cleanup.after_sidecar"
CLEANUP_AFTER_COMMIT = "cleanup.after_commit"
CLEANUP_AFTER_END = "cleanup.after_end"

DROP_AFTER_SEAL = "drop.after_seal"
DROP_AFTER_SIDECAR = "drop.after_sidecar"
DROP_AFTER_COMMIT = "drop.after_commit"
DROP_AFTER_SETTLED = "drop.after_settled"
DROP_AFTER_END = "drop.after_end"

REFRESH_AFTER_SPARE = "refresh.after_spare"
REFRESH_DURING_FETCH = "refresh.during_fetch"
REFRESH_AFTER_FETCH = "refresh.after_fetch"
REFRESH_AFTER_RENAME = "refresh.after_rename"
REFRESH_AFTER_INSTALL = "refresh.after_install"
REFRESH_AFTER_READY = "refresh.after_ready"
REFRESH_AFTER_SWAP = "refresh.after_swap"
REFRESH_AFTER_STATE = "refresh.after_state"


class Failpoints:
    """What happens at which failpoint: a name, and what to call there.

    Args:
        actions: called without arguments each time their failpoint is hit; whatever they raise goes through.
    """

    def __init__(self, actions: dict[str, Callable[[], None]] | None = None) -> None:
        self._actions = dict(actions or {})

    def hit(self, name: str) -> None:
        """Call what is armed under the name, if anything is."""
        action = self._actions.get(name)
        if action is not None:
            action()


NO_FAILPOINTS = Failpoints()
