"""The page of the station in a real browser: what a line engineer does with it."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import csv
import io
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.sync_api import Browser, expect

from browsers import Visit, chromium
from conftest import new_bank
from page_visits import EVIL, TAUGHT, choose, files, good, learnt_station, product, show, stained
from stations import ROOT, Running, history, inspect


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


def test_a_product_is_taught_and_inspected_from_an_empty_bank(browser: Browser, tmp_path: Path) -> None:
    new_bank(tmp_path / "bank")
    with Running(tmp_path / "bank") as running, Visit(browser, running.url) as visitor:
        page = visitor.page
        page.goto("/")
        page.click("#first-teach")
        expect(page.locator("#teach-start")).to_be_disabled()
        page.fill("#teach-name", EVIL)
        choose(page, "#teach-choose", files(good("cap", 5), EVIL))
        expect(page.locator("#photo-count")).to_have_text("5 photos")
        expect(page.locator("#teach-missing")).to_have_text("Still needed: 1 more photo")
        choose(page, "#teach-choose", files(good("cap", TAUGHT - 5, seed=6), EVIL))
        expect(page.locator("#photo-count")).to_have_text(f"{TAUGHT} photos")
        expect(page.get_by_test_id("photo")).to_have_count(TAUGHT)
        page.click("#teach-start")
        job = page.locator("[data-test=job]")
        expect(job.get_by_role("progressbar")).to_be_visible()
        expect(job).to_have_attribute("data-state", "succeeded", timeout=60_000)
        expect(job.locator("h2")).to_contain_text(EVIL)
        expect(job.locator("#score-chart svg")).to_be_visible()

        job.get_by_test_id("inspect-now").click()
        choose(page, "#welcome-choose", files(good("cap", 1, seed=7), EVIL))
        expect(page.locator("#verdict-word")).to_have_text("GOOD")
        choose(page, "#choose", files([stained("cap")]))
        expect(page.locator("#verdict-word")).to_have_text("DEFECT")
        expect(page.locator("#verdict-product")).to_have_text(EVIL)
        expect(page.get_by_test_id("thumb")).to_have_count(2)
        for place in ("products", "history", "teach", f"products/{product(running, EVIL)['id']}"):
            page.goto(f"/#/{place}")
            expect(page.locator("main").get_by_text(EVIL).first).to_be_attached()
        assert page.locator("img[src=x]").count() == 0


def test_the_heatmap_shows_where_and_can_be_faded_and_enlarged(visit: Visit, station: Running) -> None:
    page = visit.page
    show(page, stained("spring"), "DEFECT")
    canvas = page.locator("#stage canvas")
    expect(canvas).to_be_visible()
    found = history(station.client)[0]
    heat = image_of(b64decode(canvas.evaluate("canvas => canvas.toDataURL().split(',')[1]")))
    levels = image_of(station.client.get(f"{ROOT}/inspections/{found['id']}/map").content)
    map_ = np.asarray(levels.convert("L").resize(heat.size, Image.Resampling.BICUBIC)) / 255
    octaves = np.log2(np.maximum(map_, 1e-6) * found["map_peak"] / found["threshold"])
    wanted = 255 * np.interp(octaves, [-1, 0, 1, 2], [0, 0.75, 0.9, 0.95])
    shown = np.asarray(heat)[..., 3]
    is_rim = shown == 255  # of what is beyond the limit
    assert (abs(shown - wanted) < 8)[~is_rim].mean() > 0.99
    assert is_rim.mean() < 0.1
    assert shown.max() > 150

    stage = page.locator("#stage")
    strong = pixels(stage.screenshot())
    page.locator("#heat-opacity").fill("0")
    faded = pixels(stage.screenshot())
    assert np.abs(strong - faded).max() > 60
    page.locator("#heat-opacity").fill("100")
    assert np.abs(pixels(stage.screenshot()) - faded).mean() > np.abs(strong - faded).mean()

    level = page.get_by_test_id("zoom-level")
    whole = page.locator("#stage .pane img").last.bounding_box()
    page.click("#zoom-in")
    expect(level).to_have_text("1.5\N{MULTIPLICATION SIGN}")
    enlarged = page.locator("#stage .pane img").last.bounding_box()
    assert whole is not None
    assert enlarged is not None
    assert enlarged["width"] == pytest.approx(1.5 * whole["width"], rel=0.01)
    stage.hover()
    page.mouse.wheel(0, -300)
    expect(level).not_to_have_text("1.5\N{MULTIPLICATION SIGN}")
    page.click("#zoom-fit")
    expect(level).to_have_text("1\N{MULTIPLICATION SIGN}")

    expect(page.get_by_test_id("pane-picture")).to_be_hidden()
    page.click("#side-by-side")
    expect(page.get_by_test_id("pane-picture")).to_be_visible()


def test_a_verdict_is_corrected_and_the_correction_taken_back(visit: Visit, station: Running) -> None:
    page = visit.page

    def truth() -> object:
        return station.client.get(f"{ROOT}/inspections/{number}").json()["truth"]

    show(page, stained("spring", seed=20), "DEFECT")
    number = history(station.client)[0]["id"]
    said = page.locator("#consequence")
    page.click("#truth-good")
    expect(said).to_have_text("Noted as a false alarm.")
    expect(page.locator("#truth-good")).to_have_attribute("aria-pressed", "true")
    assert truth() == "good"
    page.click("#truth-good")
    expect(page.locator("#truth-good")).to_have_attribute("aria-pressed", "false")
    assert truth() is None
    page.keyboard.press("b")
    expect(said).to_have_text("Confirmed: a bad part.")
    assert truth() == "bad"


def test_the_limit_moves_only_when_the_preview_is_applied(visit: Visit, station: Running) -> None:
    before = product(station, "plate")
    for seed in range(4):
        false_alarm = inspect(station.client, stained("plate", seed=seed), product=before["id"])
        station.client.put(f"{ROOT}/inspections/{false_alarm['id']}/truth", json={"truth": "good"})
    page = visit.page
    with page.expect_response("**/api/v1/events"):  # which lets the page be drawn anew
        page.goto("/#/products")
    page.click("[data-test=product][data-name=plate] a")
    expect(page.locator("#score-chart svg")).to_be_visible()
    expect(page.locator("#apply")).to_be_disabled()
    page.check("#use-corrections")
    effect = page.get_by_test_id("effect-limit").locator("b")
    expect(effect).to_be_visible()
    expect(page.locator("#score-chart .limit.next")).to_be_attached()
    proposed = float(effect.inner_text())
    assert proposed > before["threshold"] * 1.01
    assert product(station, "plate")["threshold"] == before["threshold"]

    page.click("#apply")
    expect(page.get_by_test_id("toast-ok")).to_contain_text("The limit of “plate” is now")
    after = product(station, "plate")
    assert after["threshold"] == pytest.approx(proposed, rel=0.01)
    assert after["false_alarm_rate"] == before["false_alarm_rate"]
    expect(page.locator("#apply")).to_be_disabled()

    slider = page.locator("#rate-slider")
    slider.focus()
    slider.press("End")
    expect(page.locator("#rate-words")).to_have_text("1 in 5 good parts may be stopped")
    expect(effect).to_be_visible()
    assert float(effect.inner_text()) < after["threshold"]
    page.click("#reset-rate")
    expect(effect).to_be_hidden()
    assert product(station, "plate")["threshold"] == after["threshold"]


def test_a_product_is_renamed_archived_restored_and_forgotten(visit: Visit, station: Running) -> None:
    page = visit.page
    inspect(station.client, good("bolt", 1)[0], product="bolt")
    page.goto("/#/products")
    page.click("[data-test=product][data-name=bolt] a")
    page.click("#rename")
    page.fill("#rename-name", EVIL)
    page.click("#rename-confirm")
    expect(page.locator("#product-name")).to_have_text(EVIL)
    assert page.url.endswith(f"/#/products/{product(station, EVIL)['id']}")
    assert [each["product"] for each in history(station.client, product=EVIL)] == [EVIL]

    page.click("#archive")
    page.click("#archive-dialog-confirm")
    expect(page.locator("#archive")).to_have_text("Restore")
    assert product(station, EVIL)["state"] == "archived"
    page.click("#back")
    archived = page.locator("#archived").get_by_test_id("product")
    expect(archived).to_contain_text(EVIL)
    archived.get_by_test_id("restore").click()
    expect(page.locator("#archived")).to_be_hidden()
    assert product(station, EVIL)["state"] == "active"

    page.locator("#products").get_by_role("link", name=EVIL).click()
    page.click("#forget")
    page.fill("#forget-name", EVIL[:-1])
    expect(page.locator("#forget-confirm")).to_be_disabled()
    page.fill("#forget-name", EVIL)
    page.click("#forget-confirm")
    expect(page.locator("#products").get_by_test_id("product")).to_have_count(2)
    assert EVIL not in str(station.client.get(f"{ROOT}/products").json())
    assert len(history(station.client, product=EVIL)) == 1
    assert page.locator("img[src=x]").count() == 0


def test_the_history_is_filtered_opened_and_downloaded(visit: Visit, station: Running) -> None:
    for image in (*good("spring", 3, seed=30), stained("spring", seed=30), stained("spring", seed=31)):
        inspect(station.client, image, product="spring", reference=EVIL)
    page = visit.page
    page.goto("/#/history")
    rows = page.get_by_test_id("history-row")
    page.select_option("#filter-product", "spring")
    page.select_option("#filter-label", "anomalous")
    page.select_option("#filter-time", "1")
    wanted = history(station.client, product="spring", label="anomalous")
    expect(rows).to_have_count(len(wanted))
    assert [int(row.get_attribute("data-id") or 0) for row in rows.all()] == [each["id"] for each in wanted]
    with page.expect_download() as download:
        page.click("#download-csv")
    table = list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8-sig"))))
    assert {(int(line["id"]), line["label"]) for line in table} == {
        (each["id"], "anomalous") for each in wanted
    }

    rows.first.click()
    item = page.locator("#item")
    expect(item.locator("#verdict-word")).to_have_text("DEFECT")
    expect(item.locator("#stage canvas")).to_be_visible()
    item.locator("#details-summary").click()
    expect(item.locator("dd").get_by_text(str(wanted[0]["id"]), exact=True)).to_be_visible()
    page.click("#item-older")
    expect(item.locator("dd").get_by_text(str(wanted[1]["id"]), exact=True)).to_be_visible()
    page.keyboard.press("g")
    expect(item.locator("#consequence")).to_have_text("Noted as a false alarm.")
    page.keyboard.press("Escape")
    expect(item).to_be_hidden()
    expect(rows.nth(1)).to_contain_text("said good")

    page.select_option("#filter-truth", "good")
    expect(rows).to_have_count(
        len(history(station.client, product="spring", label="anomalous", truth="good"))
    )
    page.select_option("#filter-label", "unknown")
    expect(page.get_by_test_id("empty")).to_be_visible()


def test_unknown_pictures_become_a_product_in_two_clicks(visit: Visit, station: Running) -> None:
    page = visit.page
    page.goto("/#/unknown")
    expect(page.get_by_test_id("empty")).to_be_visible()
    mixed = [image for pair in zip(good("ring", 8), good("gear", 8), strict=True) for image in pair][:-2]
    for image in mixed:
        assert inspect(station.client, image)["label"] == "unknown"
    page.click("#unknown-refresh")
    groups = page.get_by_test_id("group")
    expect(groups).to_have_count(2)
    assert [group.get_attribute("data-size") for group in groups.all()] == ["7", "7"]
    page.reload()
    expect(page.locator("#tab-unknown .counter")).to_have_text("14")
    first = groups.first.get_by_test_id("unknown-picture").first.get_attribute("data-id")

    groups.first.get_by_test_id("teach-group").click()
    page.fill("#new-product-name", "found")
    page.click("#teach-group-start")

    expect(page.get_by_test_id("job")).to_have_attribute("data-state", "succeeded", timeout=60_000)
    page.goto("/#/unknown")
    expect(groups).to_have_count(1)
    again = station.client.get(f"{ROOT}/inspections/{first}/picture?original=true").content
    assert inspect(station.client, again)["product"] == "found"

    page.get_by_test_id("dismiss").click()
    page.click("#dismiss-dialog-confirm")
    expect(page.get_by_test_id("empty")).to_be_visible()
    expect(page.locator("#tab-unknown .counter")).to_be_hidden()


def image_of(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def pixels(data: bytes) -> npt.NDArray[np.int16]:
    return np.asarray(image_of(data).convert("RGB"), np.int16)
