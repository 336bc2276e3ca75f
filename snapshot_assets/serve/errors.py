"""How the package's errors travel over Flight.

An error travels twice in one answer: in words, for clients that only show the message, and as JSON in the Flight
error's extra information, from which `NodeClient` raises the same typed error again.
"""

from __future__ import annotations

import json
import re

import pyarrow.flight as fl

from snapshot_assets import errors
from snapshot_assets.errors import NodeUnavailable, ReaderError, SnapshotAssetsError, TokenRefused

__all__ = ["from_flight", "timed_out", "to_flight"]


_WRAPPING = re.compile(
    r"^Flight returned \w+ error, with message: |failed to connect to all addresses; last error: \w+: "
)
"""What Flight and gRPC put before the reason."""
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
        message = _WRAPPING.sub("", str(error).partition(". Detail: ")[0]).strip()
        if isinstance(error, _UNAVAILABLE):
            return NodeUnavailable(f"the reader node did not answer: {message}")
        return ReaderError(f"the reader node failed: {message}", hint="Look at the node's own log.")


def timed_out(error: BaseException) -> bool:
    """Whether a client gave up because the node took too long, rather than because nobody answered."""
    return isinstance(error.__cause__, fl.FlightTimedOutError)


def _kind(name: str) -> type[SnapshotAssetsError]:
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SnapshotAssetsError)):
        raise KeyError(name)
    return kind
