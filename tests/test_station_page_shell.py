"""The page of the station in a real browser: what holds wherever one is in it."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, ViewportSize, expect

from browsers import DESKTOP, PHONE, Visit, chromium
from conftest import new_bank
from page_visits import choose, files, good, learnt_station, product, show, stained
from stations import ROOT, Running, history, inspect, job_after, photo_set, teach, wait_for

AWAY = "net::ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE|INCOMPLETE_CHUNKED_ENCODING)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with learnt_station(tmp_path_factory.mktemp("page") / "bank") as running:
        yield running


@pytest.fixture
def visit(browser: Browser, station: Running) -> Iterator[Visit]:
    with Visit(browser, station.url) as visitor:
        yield visitor


def test_a_killed_station_loses_nothing_and_the_page_finds_it_again(
    browser: Browser, station: Running
) -> None:
    parts = files(good("spring", 60, seed=40), "killed")

    def sent() -> list[str]:
        names = [each["reference"] or "" for each in history(station.client)]
        return sorted(name for name in names if name.startswith("killed"))

    with Visit(browser, station.url, expected=AWAY) as visitor:
        page = visitor.page
        page.goto("/#/inspect")
        page.evaluate("window.loaded = 'once'")
        lesson = teach(station.client, name="late", photo_set=photo_set(station.client, good("late", 8)))
        choose(page, "#choose", parts)
        wait_for(lambda: len(sent()) >= 5)
        acknowledged = {each["id"] for each in history(station.client)}
        station.kill()
        expect(page.locator("#banner")).to_contain_text("The station does not answer.")

        station.start()
        expect(page.locator("#banner")).to_be_hidden(timeout=40_000)
        expect(page.locator("#strip-summary")).to_contain_text("60 pictures", timeout=40_000)
        expect(page.locator("#strip-summary .failed")).to_have_count(0)
        assert page.evaluate("window.loaded") == "once"
        assert acknowledged <= {each["id"] for each in history(station.client)}
        assert sent() == sorted(part["name"] for part in parts)
        done = job_after(station.client, lesson["id"])
        assert (done["state"], done["attempts"]) == ("succeeded", 2)


def test_a_locked_station_asks_for_its_token(browser: Browser, tmp_path: Path) -> None:
    token = "a-token-of-this-test"
    new_bank(tmp_path / "bank")
    with (
        Running(tmp_path / "bank", environment={"CONTINUAD_TOKEN": token}) as running,
        Visit(browser, running.url, expected="status of 401") as visitor,
    ):
        page = visitor.page
        page.goto("/")
        login = page.locator("#login")
        page.fill("#token", "a-wrong-token-of-ours")
        page.click("#login-submit")
        expect(login.get_by_role("alert")).to_contain_text("The token is wrong.")
        assert visitor.nameless() == []
        page.fill("#token", token)
        page.keyboard.press("Enter")
        expect(page.locator("#first-teach")).to_be_visible()
        expect(login).to_be_hidden()
        page.reload()
        expect(page.locator("#first-teach")).to_be_visible()
        assert token not in page.evaluate("document.cookie + JSON.stringify(localStorage)")
        page.click("#logout")
        expect(login).to_be_visible()


def test_the_keyboard_does_what_the_help_says(visit: Visit) -> None:
    page = visit.page
    page.goto("/")
    for key, name in enumerate(("Inspect", "Teach", "Products", "History", "Unknown"), 1):
        page.keyboard.press(str(key))
        expect(page).to_have_title(f"{name} · continuad")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()

    page.keyboard.press("1")
    choose(page, "#choose", files([*good("spring", 1, seed=50), stained("spring", seed=51)]))
    word = page.locator("#verdict-word")
    expect(page.locator("#strip-summary")).to_contain_text("2 pictures")
    expect(word).to_have_text("GOOD")
    page.keyboard.press("ArrowLeft")
    expect(word).to_have_text("DEFECT")
    page.keyboard.press("ArrowRight")
    expect(word).to_have_text("GOOD")
    page.keyboard.press("g")
    expect(page.locator("#consequence")).to_have_text("Confirmed: a good part.")
    level = page.get_by_test_id("zoom-level")
    page.keyboard.press("+")
    expect(level).to_have_text("1.5\N{MULTIPLICATION SIGN}")
    page.keyboard.press("0")
    expect(level).to_have_text("1\N{MULTIPLICATION SIGN}")
    canvas = page.locator("#stage canvas")
    page.keyboard.press("h")
    expect(canvas).to_have_css("opacity", "0")
    page.keyboard.press("h")
    expect(canvas).to_have_css("opacity", "0.8")
    page.keyboard.press("s")
    expect(page.get_by_test_id("pane-picture")).to_be_visible()

    page.goto("/#/teach")
    page.focus("#teach-name")
    page.keyboard.type("1 spring?")
    expect(page).to_have_title("Teach · continuad")
    expect(page.locator("#help")).to_be_hidden()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_page_fits_can_be_pressed_and_can_be_read_aloud(
    browser: Browser, station: Running, size: ViewportSize
) -> None:
    inspect(station.client, stained("spring", seed=60), reference="n" * 200)
    strange = inspect(station.client, good("stranger", 1)[0])
    [newest] = history(station.client, product="spring")[:1]

    def check(place: str) -> None:
        page.wait_for_function("() => !document.querySelector('[data-test=waiting]')?.checkVisibility()")
        assert (place, visitor.nameless()) == (place, [])
        assert (place, visitor.too_wide()) == (place, [])
        assert (place, visitor.too_small()) == (place, [])

    with Visit(browser, station.url, size=size) as visitor:
        page = visitor.page
        page.goto("/#/inspect")
        expect(page.locator("#welcome-choose")).to_be_visible()
        check("inspect, nothing yet")
        for image, word in (
            (stained("spring", seed=61), "DEFECT"),
            (good("stranger", 1, seed=9)[0], "UNKNOWN"),
        ):
            show(page, image, word)
            check(f"inspect, {word}")
        page.keyboard.press("?")
        check("help")
        page.keyboard.press("Escape")
        page.goto("/#/teach")
        choose(page, "#teach-choose", files(good("spring", 7), "n" * 100))
        page.fill("#teach-name", "spring")
        expect(page.get_by_test_id("photo")).to_have_count(7)
        expect(page.locator("#examining")).to_be_hidden()
        check("teach")
        page.click("#teach-discard")
        check("teach, start over")
        page.click("#discard-dialog-confirm")
        expect(page.get_by_test_id("photo")).to_have_count(0)
        for place, shown in (
            ("products", "[data-test=product]"),
            (f"products/{product(station, 'plate')['id']}", "#score-chart svg"),
            ("history", "[data-test=history-row]"),
            ("unknown", "[data-test=group]"),
            (f"history/{newest['id']}", "#item #verdict-word"),
            (f"history/{strange['id']}", "#item #verdict-word"),
        ):
            page.goto(f"/#/{place}")
            expect(page.locator(shown).first).to_be_visible()
            check(place)
            page.keyboard.press("Escape")
        page.goto(f"/#/products/{product(station, 'plate')['id']}")
        for button in ("#rename", "#archive", "#forget"):
            page.click(button)
            check(button)
            page.keyboard.press("Escape")
    left = [each["id"] for each in history(station.client, label="unknown")]
    station.client.post(f"{ROOT}/unknown/dismiss", json={"inspections": left})
