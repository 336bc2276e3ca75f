"""The sensor's cursor: small, and never wrong about what it saw."""

from __future__ import annotations

from snapshot_assets.sensors.cursor import MAX_CURSOR_BYTES, HeadCursor

NAMES = [f"a_dataset_with_quite_a_long_name_{number:05d}" for number in range(10_000)]


def _full() -> HeadCursor:
    cursor = HeadCursor(NAMES)
    for number, name in enumerate(NAMES):
        cursor.advance(name, f"token of {name}", number)
    return cursor


def test_ten_thousand_datasets_fit_in_the_limit() -> None:
    cursor = _full()
    for name in NAMES[:100]:
        cursor.report(name, "an error")
    cursor.next_name = NAMES[-1]
    assert len(cursor.to_text().encode()) < MAX_CURSOR_BYTES == 65_536


def test_nothing_changed_when_nothing_did() -> None:
    read = HeadCursor(NAMES, _full().to_text())
    assert not [name for name in NAMES if read.is_changed(name, f"token of {name}")]


def test_every_change_is_seen() -> None:
    read = HeadCursor(NAMES, _full().to_text())
    unseen = [name for name in NAMES if not read.is_changed(name, f"another token of {name}")]
    assert not unseen
    assert all(read.is_raised(name, number + 1) for number, name in enumerate(NAMES))
    assert not any(read.is_raised(name, number) for number, name in enumerate(NAMES))


def test_a_dataset_that_is_removed_forgets_only_its_neighbours() -> None:
    fewer = NAMES[1:]
    read = HeadCursor(fewer, _full().to_text())
    forgotten = [name for name in fewer if read.is_changed(name, f"token of {name}")]
    assert 0 < len(forgotten) < len(NAMES) / 32


def test_an_error_is_new_only_once_until_the_head_is_read() -> None:
    cursor = HeadCursor(["orders"])
    assert cursor.report("orders", "damaged")
    again = HeadCursor(["orders"], cursor.to_text())
    assert not again.report("orders", "damaged")
    assert again.report("orders", "damaged otherwise")
    again.advance("orders", "token", 1)
    assert HeadCursor(["orders"], again.to_text()).report("orders", "damaged otherwise")
