"""What a visitor of the station's page does again and again, with parts that a small backbone tells apart."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import FilePayload, Page, expect

from conftest import new_bank, photos
from stations import ROOT, Running, png, shots

EVIL = "<img src=x onerror=alert(1)>"
"""A name that must stay text."""

WIDTH, HEIGHT = 64, 48
TAUGHT = 20

expect.set_options(timeout=30_000)


@contextmanager
def learnt_station(bank: Path) -> Iterator[Running]:
    """A station that keeps its address, and knows three products; nobody changes "spring"."""
    inspector = new_bank(bank)
    for name in ("spring", "plate", "bolt"):
        inspector.learn(name, photos(name, TAUGHT, width=WIDTH, height=HEIGHT))
    with Running(bank, "--port", str(free_port())) as running:
        yield running


def free_port() -> int:
    """One that stays the station's when it is started again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def good(name: str, count: int, *, seed: int = 5) -> list[bytes]:
    return shots(name, count, seed=seed, width=WIDTH, height=HEIGHT)


def stained(name: str, *, seed: int = 5) -> bytes:
    """A part with a magenta stain in the upper left quarter: still that product, and no good one."""
    [part] = photos(name, 1, seed=seed, width=WIDTH, height=HEIGHT)
    part[8:16, 14:22] = 255, 0, 255
    return png(part)


def files(images: list[bytes], name: str = "part") -> list[FilePayload]:
    return [
        {"name": f"{name} {at}.png", "mimeType": "image/png", "buffer": image}
        for at, image in enumerate(images)
    ]


def choose(page: Page, button: str, chosen: list[FilePayload]) -> None:
    with page.expect_file_chooser() as chooser:
        page.click(button)
    chooser.value.set_files(chosen)


def show(page: Page, image: bytes, word: str) -> None:
    """Inspect a picture on the page, and wait for its verdict."""
    page.goto("/#/inspect")
    choose(page, "#choose", files([image]))
    expect(page.locator("#verdict-word")).to_have_text(word)


def product(station: Running, name: str) -> dict[str, Any]:
    items = station.client.get(f"{ROOT}/products").json()["items"]
    found: dict[str, Any] = next(each for each in items if each["name"] == name)
    return found
