"""A browser that opens reports from disk, and sees that nothing fails in it and nothing leaves the folder."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
)
LOCAL = ("file:", "data:", "blob:")
PHONE, TABLET, DESK = (390, 844), (800, 1000), (1400, 900)
WAIT = 20_000
"""Milliseconds that anything may take on a busy machine."""


def find_browser(playwright: Any) -> str | None:
    """Path of a browser; None where there is none."""
    named = os.environ.get("PSI_FAST_BROWSER")
    own = playwright.chromium.executable_path
    return named or next(filter(None, map(shutil.which, NAMES)), None) or (own if Path(own).exists() else None)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all pages; the tests are skipped where there is none, but not in CI."""
    lacking = pytest.fail if os.environ.get("CI") else pytest.skip
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        lacking("no playwright: the report is not tested in a browser (pip install playwright)")
    with sync_playwright() as playwright:
        path = find_browser(playwright)
        if path is None:
            lacking(
                f"no browser: none of {', '.join(NAMES)} is on PATH (PSI_FAST_BROWSER names one, `make browser` gets one)"
            )
        try:
            opened = playwright.chromium.launch(executable_path=path, args=SWITCHES)
        except Error as error:
            lacking(f"the browser {path} does not start: {error.message.splitlines()[0]}")
        yield opened
        opened.close()


def attributes(place: Any, name: str) -> list[str | None]:
    """The attribute of each element of a locator."""
    return place.evaluate_all("(all, name) => all.map(one => one.getAttribute(name))", name)


class Visit:
    """A report in a page of its own.

    Attributes
    ----------
    page : playwright's Page
    faults : list[str]
        What must not happen and did: messages of errors, failed requests, requests that leave the disk, dialogs.
    """

    def __init__(self, browser: Any, index: Path, size: tuple[int, int] = DESK, **options: Any) -> None:
        self.index = index
        self.faults: list[str] = []
        self._saved: list[str] = []
        self.context = browser.new_context(viewport=dict(zip(("width", "height"), size, strict=True)), **options)
        self.context.set_default_timeout(WAIT)
        self.context.add_init_script("window.hits = []; window.hit = (name) => window.hits.push(String(name));")
        self.page = self.context.new_page()
        for event, watch in (
            ("console", self._console),
            ("pageerror", lambda error: self.faults.append(f"page error: {error}")),
            ("request", self._request),
            ("requestfailed", lambda request: self.faults.append(f"failed: {request.url}")),
            ("dialog", self._dialog),
            ("download", lambda download: self._saved.append(f"failed: {download.url}")),  # it ends as a request
        ):
            self.page.on(event, watch)

    def _console(self, message: Any) -> None:
        if message.type == "error" or (message.type == "warning" and "Content Security Policy" in message.text):
            self.faults.append(f"console {message.type}: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith(LOCAL):
            self.faults.append(f"request: {request.url}")

    def _dialog(self, dialog: Any) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def go(self, address: str = "") -> "Visit":
        """Open an address of the report, without its #, and wait until its page is complete."""
        self.page.goto(self.index.as_uri() + (f"#{address}" if address else ""))
        return self.settled()

    def settled(self) -> "Visit":
        """Wait until the page of the current address is complete."""
        self.until("document.documentElement.dataset.ready === (location.hash || '#')")
        return self

    def reload(self) -> "Visit":
        self.page.reload()
        return self.settled()

    def back(self) -> "Visit":
        self.page.go_back()
        return self.settled()

    def asks(self, hash_: str) -> "Visit":
        """Wait until the address is `hash_`, and its page complete."""
        self.until("hash => location.hash === hash", hash_)
        return self.settled()

    def press(self, *keys: str) -> "Visit":
        for key in keys:
            self.page.keyboard.press(key)
        return self

    def find(self, selector: str) -> Any:
        return self.page.locator(selector)

    def texts(self, selector: str) -> list[str]:
        """Texts of all elements there are, as they stand in the document."""
        return self.find(selector).all_text_contents()

    def text(self, selector: str) -> str:
        """Text of the one element."""
        return self.find(selector).text_content()

    def run(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def attributes(self, selector: str, name: str) -> list[str | None]:
        """The attribute of each of the elements."""
        return attributes(self.find(selector), name)

    def rows(self, selector: str) -> list[list[str]]:
        """Texts of the cells of each of the rows."""
        return self.find(selector).evaluate_all("all => all.map(one => [...one.cells].map(cell => cell.textContent))")

    def until(self, script: str, argument: Any = None) -> None:
        """Wait until an expression, or a function of `argument`, is true."""
        self.page.wait_for_function(script, arg=argument)

    def style(self, selector: str, name: str) -> str:
        return self.run("([where, name]) => getComputedStyle(document.querySelector(where))[name]", [selector, name])

    def width(self) -> int:
        """How wide the page is, in px."""
        return self.run("document.documentElement.scrollWidth")

    def end(self) -> None:
        """Close the page, which must have gone without faults."""
        hits = self.run("window.hits")
        self.context.close()
        assert not [fault for fault in self.faults if fault not in self._saved]
        assert not hits, "names from data ran as scripts"


@pytest.fixture
def visit(chromium) -> Iterator[Any]:
    """Opens reports; each is seen to have had no fault when the test ends."""
    opened: list[Visit] = []

    def visit(index: Path, *arguments: Any, **options: Any) -> Visit:
        opened.append(Visit(chromium, index, *arguments, **options))
        return opened[-1]

    yield visit
    for one in opened:
        one.end()
