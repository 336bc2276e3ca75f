"""The UI as a person sees it: what stands on a page, in which tables, under which labels."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import FloatRect, Locator, Page, expect

__all__ = ["UI"]

_NOT_FOR_PEOPLE = {"undefined", "null", "NaN", "[object Object]"}


class UI:
    """One page of a browser.

    Args:
        page: the browser's page.
        url: where the web server answers.
        pictures: the folder that pictures go to.
    """

    def __init__(self, page: Page, url: str, pictures: Path) -> None:
        self.page = page
        self._url = url
        self._pictures = pictures

    def open(self, path: str, *, height: int = 1000) -> None:
        """Go to a page."""
        self.page.set_viewport_size({"width": 1400, "height": height})
        self.page.goto(f"{self._url}{path}")

    def sees(self, *texts: str | re.Pattern[str]) -> None:
        """Wait until each text stands on the page, where it can be seen."""
        for text in texts:
            expect(self.page.get_by_text(text).filter(visible=True).first).to_be_visible(timeout=60_000)

    def text(self) -> str:
        """All that can be read on the page; fails when a value leaked into it that is not for people."""
        found = self.page.inner_text("body")
        leaked = {line.strip() for line in re.split(r"[\n\t]", found)} & _NOT_FOR_PEOPLE
        assert not leaked, leaked
        assert "[object Object]" not in found
        return found

    def table(self, label: str) -> dict[str, Locator]:
        """The rows of the table in which a label stands first in its row, by their labels; fails if one is doubled."""
        cell = self.page.locator("td").get_by_text(label, exact=True).first
        expect(cell).to_be_visible(timeout=60_000)
        rows = cell.locator("xpath=ancestor::table[1]").locator("> tbody > tr").all()
        labels = [row.locator("td").first.inner_text().strip() for row in rows]
        assert len(set(labels)) == len(labels), labels
        return dict(zip(labels, rows, strict=True))

    def plots(self, count: int) -> list[str]:
        """The titles of the plots on the page, once there are so many."""
        canvases = self.page.locator("canvas")
        expect(canvases).to_have_count(count, timeout=60_000)
        return [str(title) for title in canvases.evaluate_all(_TITLES)]

    def picture(self, name: str, *, top: int = 0, bottom: int = 1000, left: int = 0, right: int = 1400) -> None:
        """Keep what a part of the page looks like."""
        box: FloatRect = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        self.page.screenshot(path=self._picture(name), clip=box)

    def picture_of(self, shown: Locator, name: str) -> None:
        """Keep what something on the page looks like."""
        shown.screenshot(path=self._picture(name))

    def _picture(self, name: str) -> Path:
        self._pictures.mkdir(parents=True, exist_ok=True)
        return self._pictures / f"{name}.png"


_TITLES = """
canvases => canvases.map(canvas => {
  let node = canvas;
  while (!node.innerText.trim()) node = node.parentElement;
  return node.innerText.trim();
})"""
"""What is written nearest to each canvas: the plot's title."""
