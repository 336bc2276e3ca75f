"""The account of packs: how much of each pack a snapshot still needs. It travels in the manifest's properties."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from snapshot_assets.ids import OperationId

__all__ = ["PACKS_PROPERTY", "Pack", "PackAccount"]

PACKS_PROPERTY: Final = "snapshot_assets.packs"
"""The name is reserved: a dataset's own properties live beside it."""

Pack = tuple[OperationId, int]
"""A pack, by the operation that wrote it and its number."""


class PackAccount:
    """Two counts for each pack, in plain bytes: what was put into it, and what is still needed of it.

    What is needed: once for each distinct place in the root, the frame there, and for a chunk table each of its
    distinct chunks. So a pack's count is zero exactly when the snapshot does not need it.
    """

    def __init__(self) -> None:
        self._live: dict[Pack, int] = {}
        self._plain: dict[Pack, int] = {}

    @classmethod
    def parse(cls, properties: Mapping[str, Any]) -> PackAccount | None:
        """The account in a manifest's properties; nothing when there is none that makes sense."""
        account = cls()
        rows = properties.get(PACKS_PROPERTY)
        if not isinstance(rows, list):
            return None
        for row in rows:
            match row:
                case {
                    "operation": str(operation),
                    "pack": int(pack),
                    "live_bytes": int(live),
                    "plain_bytes": int(plain),
                }:
                    account._live[OperationId(operation), pack] = live
                    account._plain[OperationId(operation), pack] = plain
                case _:
                    return None
        return account

    def to_json(self) -> list[dict[str, Any]]:
        """The account as properties store it: only packs that are needed."""
        return [
            {"operation": operation, "pack": pack, "live_bytes": live, "plain_bytes": self._plain[operation, pack]}
            for (operation, pack), live in sorted(self._live.items())
        ]

    def stored(self, pack: Pack, plain_bytes: int) -> None:
        """Something was put into a pack."""
        self._plain[pack] = self._plain.get(pack, 0) + plain_bytes

    def needed(self, uses: Mapping[Pack, int]) -> None:
        """More of some packs is needed."""
        for pack, size in uses.items():
            self._live[pack] = self._live.get(pack, 0) + size

    def released(self, uses: Mapping[Pack, int]) -> None:
        """Less of some packs is needed."""
        for pack, size in uses.items():
            left = self._live.get(pack, 0) - size
            if left > 0:
                self._live[pack] = left
            else:
                self._live.pop(pack, None)

    def assume_full(self) -> None:
        """For an account made up from what is needed alone: nothing more was ever put into the packs."""
        self._plain = dict(self._live)

    @property
    def packs(self) -> Iterable[Pack]:
        """The packs that are needed."""
        return self._live.keys()

    @property
    def operations(self) -> set[OperationId]:
        """The operations whose packs are needed."""
        return {operation for operation, _ in self._live}

    def live_bytes(self, pack: Pack) -> int:
        """The plain bytes of a pack that are needed."""
        return self._live.get(pack, 0)

    def dead_bytes(self, pack: Pack) -> int:
        """The plain bytes of a pack that are needed no more."""
        return max(self._plain.get(pack, 0) - self._live.get(pack, 0), 0)
