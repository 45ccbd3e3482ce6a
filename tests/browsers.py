"""A real browser that looks at a page and complains about everything that a person would not see."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import pytest
from playwright.sync_api import Browser, Dialog, Page, Request, ViewportSize, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
TOUCH = 44
"""Pixels of the smallest thing that a finger in a glove can hit."""

NAMED = frozenset(
    {"button", "checkbox", "combobox", "dialog", "DisclosureTriangle", "image", "img", "link", "listbox"}
    | {"meter", "option", "progressbar", "radio", "radiogroup", "searchbox", "slider", "spinbutton", "switch"}
    | {"tab", "textbox"}
)
"""Roles that mean nothing to who cannot see them unless they have a name."""

WATCH = """addEventListener('securitypolicyviolation',
    e => console.error(`refused: ${e.violatedDirective} ${e.blockedURI}`));"""

SMALL = """least => [...document.querySelectorAll('a[href], button, input, select, summary, [role=option]')]
    .filter(e => e.checkVisibility({visibilityProperty: true}) && !e.matches('.skip, .unseen, :disabled'))
    .map(e => [e, e.matches('[type=checkbox], [type=radio]') && e.closest('label') || e])
    .map(([e, whole]) => [e, whole.getBoundingClientRect()])
    .filter(([e, {width, height}]) => Math.min(width, height) < least - 0.5)
    .map(([e, {width, height}]) => `${e.outerHTML.slice(0, 160)} is ${width} x ${height}`)"""

WIDE = """() => {
    const room = document.documentElement.clientWidth;
    const clips = e => e && e !== document.body
        && (getComputedStyle(e).overflowX !== 'visible' || clips(e.parentElement));
    const over = [...document.body.querySelectorAll('*')].filter(e => e.checkVisibility()
        && e.getBoundingClientRect().right > room + 1 && !clips(e.parentElement) && !e.closest('.unseen'));
    const wide = document.documentElement.scrollWidth;
    const names = over.map(e => e.outerHTML.slice(0, 160));
    return wide > room ? [`the page is ${wide} wide`, ...names] : names;
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this machine; the test is skipped where there is none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"there is no browser: none of {', '.join(PROGRAMS)}")
    with sync_playwright() as playwright:
        playwright.selectors.set_test_id_attribute("data-test")
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A visitor with an empty memory at one web page.

    Leaving fails if the browser had anything to complain about, or if the page asked another host.

    Args:
        browser: to visit with.
        url: of the site.
        size: of the window; a phone's has a touch screen.
        expected: what the browser may complain about (regular expression).

    Attributes:
        page: of Playwright.
        complaints: so far.
    """

    def __init__(
        self, browser: Browser, url: str, *, size: ViewportSize | None = None, expected: str | None = None
    ) -> None:
        self._url, self._expected = url, expected
        self.complaints: list[str] = []
        self._waiting: dict[Request, None] = {}
        is_phone = size == PHONE
        self._context = browser.new_context(
            base_url=url, viewport=size or DESKTOP, is_mobile=is_phone, has_touch=is_phone, locale="en-GB"
        )
        self._context.add_init_script(WATCH)
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("console", lambda said: self._complain(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self._complain(str(error)))
        self.page.on("dialog", self._refuse)
        self.page.on("request", self._check)
        self.page.on("requestfinished", lambda request: self._waiting.pop(request, None))
        self.page.on("requestfailed", lambda request: self._waiting.pop(request, None))

    def _complain(self, text: str) -> None:
        if self._expected is None or not re.search(self._expected, text):
            self.complaints.append(text)

    def _refuse(self, dialog: Dialog) -> None:
        self._complain(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _check(self, request: Request) -> None:
        self._waiting[request] = None
        if not request.url.startswith((f"{self._url}/", f"blob:{self._url}/", "data:")):
            self._complain(f"asked for {request.url}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        waiting = [f"{each.method} {each.url} is not answered" for each in self._waiting]
        self._context.close()
        if error is None:
            assert self.complaints == []
        else:
            print("The browser said:", *self.complaints, *waiting, sep="\n")

    def nameless(self) -> list[str]:
        """What a screen reader could only call a button, a link or a picture."""
        session = self._context.new_cdp_session(self.page)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        session.detach()
        return [
            f"{_value(node, 'role')} {node.get('properties')}"
            for node in nodes
            if not node["ignored"] and _value(node, "role") in NAMED and not str(_value(node, "name")).strip()
        ]

    def too_small(self, least: int = TOUCH) -> list[str]:
        """What can be pressed, but is smaller than a finger."""
        found: list[str] = self.page.evaluate(SMALL, least)
        return found

    def too_wide(self) -> list[str]:
        """What does not fit into the width of the window."""
        found: list[str] = self.page.evaluate(WIDE)
        return found


def _value(node: dict[str, Any], name: str) -> Any:
    return node.get(name, {}).get("value", "")
