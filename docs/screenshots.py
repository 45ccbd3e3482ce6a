"""Take the pictures of the station's page: python docs/screenshots.py FOLDER.

A station with the default backbone learns three demo products and inspects good, defective and unknown parts;
a headless Chromium then looks at each page.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from playwright.sync_api import Browser, FilePayload, Page, ViewportSize, expect, sync_playwright

from continuad.client import Station
from continuad.datasets.demo import demo_task
from continuad.datasets.task import Sample

TAUGHT = ("cap", "flange", "circuit")
UNKNOWN = ("blister", "screw")
PHOTOS = 50
SIZE = 512
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
SEEN = """() => [...document.images].every(
    each => each.complete || each.getBoundingClientRect().top > innerHeight)"""
"""Whether all pictures within the window have come."""

expect.set_options(timeout=60_000)


def main() -> None:
    """Fill a station, and look at it."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "parts.bank") as url:
        with Station(url) as station:
            fill(station)
        with sync_playwright() as playwright:
            playwright.selectors.set_test_id_attribute("data-test")
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            take(Studio(browser, url, out))
            browser.close()


@contextmanager
def serving(bank: Path) -> Iterator[str]:
    """The address of a station in a process of its own."""
    command = [sys.executable, "-m", "continuad", "serve", str(bank), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        for line in process.stderr or ():
            if found := re.search(r"runs at (\S+)/", line):
                break
        else:
            raise SystemExit("The station has not started.")
        try:
            yield found[1]
        finally:
            process.terminate()


def fill(station: Station) -> None:
    """Teach and inspect; correct each third verdict, and those that are wrong."""
    shown = []
    for name in TAUGHT:
        task = demo_task(name, size=SIZE, train=PHOTOS, good=14, defective=8)
        print(f"Teaching {name} ...", flush=True)
        station.teach(name, task.train)
        shown.append([(name, sample) for sample in mixed(task.test)])
    for name in UNKNOWN:
        task = demo_task(name, size=SIZE, train=0, good=9, defective=0)
        shown.append([(name, sample) for sample in task.test])
    for left in range(max(map(len, shown)), 0, -1):
        for name, sample in (each[-left] for each in shown if left <= len(each)):
            found = station.inspect(sample.image, reference=f"{name} {1000 - left}")
            is_wrong = found.product and (found.label == "anomalous") != sample.is_anomalous
            if is_wrong or (found.product and left % 3 == 0):
                station.correct(found.id, "bad" if sample.is_anomalous else "good")


def mixed(samples: Sequence[Sample]) -> list[Sample]:
    """Good and bad ones in turn; the good ones are more."""
    good = [each for each in samples if not each.is_anomalous]
    bad = [each for each in samples if each.is_anomalous]
    return [each for at, part in enumerate(good) for each in (part, *bad[at : at + 1])]


class Studio:
    """Takes pictures of pages.

    Args:
        browser: that shows them.
        url: of the station.
        out: where the pictures go.
    """

    def __init__(self, browser: Browser, url: str, out: Path) -> None:
        self._browser, self._url, self._out = browser, url, out

    def take(
        self,
        name: str,
        place: str,
        ready: str,
        act: Callable[[Page], None] = lambda _: None,
        *,
        size: ViewportSize = DESKTOP,
        is_dark: bool = False,
    ) -> None:
        """Open a page, act on it, wait until something is `ready`, and keep what is seen."""
        context = self._browser.new_context(
            base_url=self._url,
            viewport=size,
            color_scheme="dark" if is_dark else "light",
            is_mobile=size is PHONE,
            locale="en-GB",
            reduced_motion="reduce",
        )
        page = context.new_page()
        page.goto(f"/#/{place}")
        act(page)
        expect(page.locator(ready).first).to_be_visible()
        page.wait_for_function(SEEN)
        page.wait_for_timeout(500)
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        self._keep(name, page.screenshot())
        context.close()

    def _keep(self, name: str, data: bytes) -> None:
        file = self._out / f"{name}.jpg"
        Image.open(io.BytesIO(data)).convert("RGB").save(file, quality=85, optimize=True)
        print(f"{file}: {file.stat().st_size / 1024:.0f} KiB")


def take(studio: Studio) -> None:
    """All pictures."""
    first, shown = TAUGHT[0], demo_task(TAUGHT[0], size=SIZE, train=0, good=4, defective=4, seed=3).test
    fresh = [
        Image.fromarray(np.asarray(each))
        for each in demo_task("leather", size=SIZE, train=24, good=0, defective=0).train
    ]
    fresh[5] = fresh[5].filter(ImageFilter.GaussianBlur(4))
    fresh[9] = fresh[2]

    def open_product(page: Page) -> None:
        page.get_by_role("link", name=first, exact=True).click()
        page.check("#use-corrections")
        page.locator("#rate-slider").press("ArrowRight")
        expect(page.get_by_test_id("effect-limit")).to_be_visible()
        page.locator(".strictness").evaluate("each => each.scrollIntoView()")

    def teach(page: Page) -> None:
        page.fill("#teach-name", "leather, brown")
        pick(page, "#teach-choose", fresh)
        expect(page.locator("#photo-count")).to_have_text(f"{len(fresh)} photos")
        expect(page.locator("#examining")).to_be_hidden()
        page.locator(".photo-meter").evaluate("each => each.scrollIntoView()")

    def inspect(page: Page) -> None:
        pick(page, "#choose", [Image.fromarray(np.asarray(each.image)) for each in shown])
        expect(page.locator("#strip-summary")).to_contain_text(f"{len(shown)} pictures")
        page.locator("[data-test=thumb][data-label=anomalous]").first.click()

    studio.take("products", "products", "[data-test=product]")
    studio.take("product", "products", "#score-chart svg", open_product)
    studio.take("history", "history", "[data-test=history-row]", is_dark=True)
    studio.take("unknown", "unknown", "[data-test=group]")
    studio.take("teach", "teach", "[data-test=photo]", teach)
    studio.take("inspect", "inspect", "#stage canvas", inspect)
    studio.take("phone", "inspect", "#stage canvas", inspect, size=PHONE)


def pick(page: Page, button: str, images: Sequence[Image.Image]) -> None:
    """Choose images as a person chooses files."""
    with page.expect_file_chooser() as chooser:
        page.click(button)
    files: list[FilePayload] = []
    for at, image in enumerate(images):
        stream = io.BytesIO()
        image.save(stream, "PNG")
        files.append({"name": f"part {at + 1:02}.png", "mimeType": "image/png", "buffer": stream.getvalue()})
    chooser.value.set_files(files)


if __name__ == "__main__":
    main()
