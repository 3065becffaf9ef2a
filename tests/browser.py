"""A real Chromium for tests of the page, without a window; skipped where none is installed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_MS = 300_000


@contextlib.contextmanager
def running_browser() -> Iterator[Browser]:
    """Start the Chromium of this machine. Inside, the thread has an event loop: no `asyncio.run`."""
    program = next((found for found in map(shutil.which, _NAMES) if found), None)
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """One page, and what went wrong on it."""

    def __init__(self, browser: Browser, url: str, **context: object) -> None:
        self.context = browser.new_context(**context)  # type: ignore[arg-type]
        self.context.set_default_timeout(TIMEOUT_MS)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.requested: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("request", self._note_request)
        self.page.goto(f"{url}/")

    def _note(self, kind: str, text: str) -> None:
        if kind == "error" and "Failed to load resource" not in text:  # an error of the API is not the page's
            self.errors.append(text)

    def _note_request(self, request: Request) -> None:
        self.requested.append(request.url)


@contextlib.contextmanager
def opened(browser: Browser, url: str, **context: object) -> Iterator[Page]:
    """Open the page of a router; at the end nothing has failed on it, and nothing came from elsewhere."""
    watched = Watched(browser, url, **context)
    try:
        yield watched.page
        assert watched.errors == []
        assert [each for each in watched.requested if not each.startswith(url)] == []
    finally:
        watched.context.close()
