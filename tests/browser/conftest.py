"""A browser on the demo location's UI. Without Chromium its tests are skipped, or fail if REQUIRE_BROWSER is set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, sync_playwright

from tests.browser.session import Session, demo_in
from tests.browser.ui import UI

_QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    chromium = shutil.which("chromium")
    if chromium is None:
        (pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip)(
            "Chromium is not installed: apt-get install chromium"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_QUIET)
        # One for all pages, so that the UI's own code is fetched once.
        yield browser.new_context(viewport={"width": 1400, "height": 1000})
        browser.close()


@pytest.fixture(scope="module")
def session(browser: BrowserContext, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with demo_in(tmp_path_factory.mktemp("ui")) as session:
        yield session


@pytest.fixture
def ui(browser: BrowserContext, session: Session, tmp_path: Path) -> Iterator[UI]:
    """A page of the UI. Its pictures go to the folder that SNAPSHOT_IMAGES names, for the docs."""
    with browser.new_page() as page:
        page.set_default_timeout(60_000)
        yield UI(page, session.dev.url, Path(os.environ.get("SNAPSHOT_IMAGES") or tmp_path))
