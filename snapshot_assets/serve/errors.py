"""How the package's errors travel over Flight.

An error travels twice in one answer: in words, for clients that only show the message, and as JSON in the Flight
error's extra information, from which `NodeClient` raises the same typed error again.
"""

from __future__ import annotations

import json

import pyarrow.flight as fl

from snapshot_assets import errors
from snapshot_assets.errors import NodeUnavailable, ReaderError, SnapshotAssetsError, TokenRefused

__all__ = ["from_flight", "to_flight"]


_UNAVAILABLE = (fl.FlightUnavailableError, fl.FlightTimedOutError)


def to_flight(error: SnapshotAssetsError) -> fl.FlightError:
    """The error as a Flight server raises it."""
    words = f"{error.kind}: {error.message}"
    if error.hint:
        words = f"{words} ({error.hint})"
    details = json.dumps(error.to_json()).encode()
    match error:
        case TokenRefused():
            return fl.FlightUnauthenticatedError(words, details)
        case NodeUnavailable():
            return fl.FlightUnavailableError(words, details)
        case _:
            # never Flight's "cancelled", not even for what was cancelled: pyarrow clients take it for a Ctrl-C
            return fl.FlightServerError(words, details)


def from_flight(error: fl.FlightError) -> SnapshotAssetsError:
    """The typed error that a node raised; `NodeUnavailable` when what answered was no reader node, or nothing."""
    try:
        fields = json.loads(error.extra_info)
        kind = _kind(fields["kind"])
        return kind(
            fields["message"],
            hint=fields.get("hint"),
            dataset=fields.get("dataset"),
            operation_id=fields.get("operation_id"),
        )
    except (ValueError, KeyError, TypeError):
        message = str(error).partition(". Detail: ")[0].strip()
        if isinstance(error, _UNAVAILABLE):
            return NodeUnavailable(f"the reader node did not answer: {message}")
        return ReaderError(f"the reader node failed: {message}", hint="Look at the node's own log.")


def _kind(name: str) -> type[SnapshotAssetsError]:
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SnapshotAssetsError)):
        raise KeyError(name)
    return kind
