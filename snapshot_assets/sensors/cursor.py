"""The cursor of the snapshot sensor: what it last saw of each dataset, in six characters each.

A mark is four characters of a hash of the head's version token, by which a change is noticed, and two that hold the
generation modulo 4,096, by which a new snapshot is told from a pin or a claim. Names are not stored: datasets are
dealt into 64 buckets by name, and a bucket holds a fingerprint of its names and their marks in order. Adding or
removing a dataset forgets its own bucket only, and the run keys keep what is then asked for again from running twice.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["MAX_CURSOR_BYTES", "HeadCursor"]

MAX_CURSOR_BYTES: Final = 64 * 1024
"""What 10,000 datasets must fit in; Dagster stores the cursor anew with every tick."""

_VERSION: Final = 1
_BUCKETS: Final = 64
_TOKEN_CHARS: Final = 4
_MARK_CHARS: Final = 6
_UNSEEN: Final = "." * _MARK_CHARS
_MAX_REPORTED: Final = 32


def _short(text: str, size: int) -> str:
    return base64.urlsafe_b64encode(hashlib.blake2b(text.encode(), digest_size=size).digest()).decode().rstrip("=")


def _token_mark(token: str) -> str:
    return _short(token, 3)


def _generation_mark(generation: int) -> str:
    return base64.urlsafe_b64encode((generation % 4096 << 4).to_bytes(2, "big")).decode()[:2]


def _deal(names: Iterable[str]) -> dict[str, list[str]]:
    buckets: dict[str, list[str]] = {}
    for name in sorted(names):
        number = hashlib.blake2b(name.encode(), digest_size=1).digest()[0] % _BUCKETS
        buckets.setdefault(f"{number:x}", []).append(name)
    return buckets


class HeadCursor:
    """What the sensor last saw of each dataset.

    Args:
        names: the datasets that the sensor looks at.
        text: the cursor of the last tick; anything that is not one counts as none.
    """

    def __init__(self, names: Sequence[str], text: str | None = None) -> None:
        self._buckets = _deal(names)
        self._marks: dict[str, str] = {}
        self._reported: dict[str, str] = {}
        self.next_name = ""
        if text:
            self._load(text)

    def _load(self, text: str) -> None:
        try:
            stored = json.loads(text)
            known = stored["v"] == _VERSION
            buckets, reported, next_name = stored["heads"], stored.get("reported", {}), stored.get("next", "")
        except (ValueError, KeyError, TypeError):
            return
        if not known or not isinstance(buckets, dict) or not isinstance(reported, dict):
            return
        for number, names in self._buckets.items():
            content = buckets.get(number)
            if not isinstance(content, str) or content[:_TOKEN_CHARS] != _short("\0".join(names), 3):
                continue
            marks = content[_TOKEN_CHARS:]
            for position, name in enumerate(names):
                mark = marks[position * _MARK_CHARS : (position + 1) * _MARK_CHARS]
                if len(mark) == _MARK_CHARS and mark != _UNSEEN:
                    self._marks[name] = mark
        self._reported = {str(name): str(mark) for name, mark in reported.items()}
        self.next_name = str(next_name)

    def to_text(self) -> str:
        """The cursor to hand to Dagster."""
        heads = {
            number: _short("\0".join(names), 3) + "".join(self._marks.get(name, _UNSEEN) for name in names)
            for number, names in self._buckets.items()
            if any(name in self._marks for name in names)
        }
        stored: dict[str, object] = {"v": _VERSION, "heads": heads}
        if self._reported:
            stored["reported"] = dict(sorted(self._reported.items())[:_MAX_REPORTED])
        if self.next_name:
            stored["next"] = self.next_name
        return json.dumps(stored, separators=(",", ":"))

    def is_changed(self, name: str, token: str) -> bool:
        """Whether the head is another one than at the last look."""
        return self._marks.get(name, _UNSEEN)[:_TOKEN_CHARS] != _token_mark(token)

    def is_raised(self, name: str, generation: int) -> bool:
        """Whether the generation is another one than at the last look. It never falls, so another is a higher one."""
        return self._marks.get(name, _UNSEEN)[_TOKEN_CHARS:] != _generation_mark(generation)

    def advance(self, name: str, token: str, generation: int) -> None:
        """Remember a head that was dealt with: requested, or seen to ask for nothing."""
        self._marks[name] = _token_mark(token) + _generation_mark(generation)
        self._reported.pop(name, None)

    def report(self, name: str, error: str) -> bool:
        """Remember that a dataset's error was told; whether it is new."""
        mark = _short(error, 3)
        is_new = self._reported.get(name) != mark
        self._reported[name] = mark
        return is_new
