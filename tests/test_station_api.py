"""The station's API from end to end: over HTTP, on SQLite and on PostgreSQL."""

from __future__ import annotations

import csv
import io
import itertools
import shutil
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from prometheus_client.parser import text_string_to_metric_families

from continuad import Inspector
from continuad.inspector.calibration import threshold
from continuad.station.security import COOKIE
from stations import (
    KEY,
    ROOT,
    Running,
    history,
    inspect,
    job_after,
    listening,
    photo_set,
    png,
    schema,
    shots,
    teach,
    wait_for,
)

pytest_plugins = ["databases"]

TOKEN = "a-token-that-is-long-enough"
BLACK = png(np.zeros((40, 48, 3), np.uint8))
PRODUCT_FIELDS = {
    *("id", "name", "state", "method", "reason", "images", "bytes", "learnt", "seconds", "false_alarm_rate"),
    *("threshold", "samples", "counts", "last_inspected"),
}
_numbers = itertools.count()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def station(
    request: pytest.FixtureRequest, taught: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A station that knows "bolt" and "plate"; the tests leave it as they found it, but for the history."""
    bank = Path(shutil.copytree(taught, tmp_path_factory.mktemp("station") / "parts.bank"))
    if request.param == "sqlite":
        with Running(bank) as running:
            yield running
        return
    server = request.getfixturevalue("postgresql")
    with schema(server) as address, Running(bank, environment={"CONTINUAD_DATABASE": address}) as running:
        yield running
        assert not (running.folder / "station.db").exists()


@pytest.fixture
def client(station: Running) -> httpx.Client:
    return station.client


@pytest.fixture
def mark() -> str:
    """A reference that no other test uses."""
    return f"part {next(_numbers)}"


def refused(answer: httpx.Response, status: int, problem: str = "") -> dict[str, str]:
    """See that a request was refused in the way that the contract says."""
    assert answer.status_code == status, answer.text
    said: dict[str, str] = answer.json()
    assert said.keys() == {"problem", "remedy"}
    assert all(said.values())
    assert problem in said["problem"]
    return said


def product_of(client: httpx.Client, name: str) -> dict[str, Any]:
    items = client.get(f"{ROOT}/products").json()["items"]
    return next(product for product in items if product["name"] == name)


# --- inspecting


def test_an_inspection_says_what_the_inspector_says(
    station: Running, client: httpx.Client, taught: Path, mark: str
) -> None:
    images = [*shots("bolt", 2, width=60), *shots("plate", 2), BLACK]
    for image, verdict in zip(images, Inspector.open(taught).inspect(images), strict=True):
        found = inspect(client, image, reference=mark)
        assert (found["label"], found["product"]) == (verdict.label, verdict.product)
        assert found["nearest"] == verdict.nearest
        if verdict.product is not None:
            assert found["score"] == pytest.approx(verdict.score, rel=1e-4)
            assert found["threshold"] == verdict.threshold
        height, width = np.asarray(Image.open(io.BytesIO(image))).shape[:2]
        assert (found["width"], found["height"]) == (width, height)
        assert (found["source"], found["reference"], found["truth"]) == ("api", mark, None)
        assert datetime.fromisoformat(found["time"]).utcoffset() == timedelta(0)
        assert client.get(f"{ROOT}/inspections/{found['id']}").json() == found
    assert {file.suffix for file in station.folder.glob("pictures/*/*")} == {".png"}


def test_a_caller_may_name_the_product_or_want_the_nearest(client: httpx.Client) -> None:
    plate = product_of(client, "plate")
    [bolt] = shots("bolt", 1)
    for named in ("plate", plate["id"]):
        found = inspect(client, bolt, product=named, source="page")
        assert (found["product"], found["nearest"], found["source"]) == ("plate", None, "page")
    assert inspect(client, BLACK)["label"] == "unknown"
    nearest = inspect(client, BLACK, nearest=True)
    assert nearest["product"] == nearest["nearest"]
    assert nearest["label"] in ("normal", "anomalous")
    refused(client.post(f"{ROOT}/inspections", params={"product": "nobody"}, content=bolt), 404, "nobody")


def test_pictures_and_maps(client: httpx.Client) -> None:
    [bolt] = shots("bolt", 1, width=96, height=64)
    made = inspect(client, bolt)
    place = f"{ROOT}/inspections/{made['id']}"
    original = client.get(f"{place}/picture", params={"original": True})
    assert (original.content, original.headers["content-type"]) == (bolt, "image/png")
    assert "immutable" in original.headers["cache-control"]
    assert client.get(f"{place}/picture").content == bolt
    small = Image.open(io.BytesIO(client.get(f"{place}/picture", params={"width": 48}).content))
    assert (small.format, small.size) == ("JPEG", (48, 32))
    assert client.get(f"{place}/picture", params={"width": 4096}).status_code == 200
    refused(client.get(f"{place}/picture", params={"width": 15}), 422, "width")
    values = np.asarray(Image.open(io.BytesIO(client.get(f"{place}/map").content)))
    assert values.dtype == np.uint8
    assert values.shape == (32, 32)
    peak = made["score"] if made["label"] == "anomalous" else made["threshold"]
    assert made["map_peak"] == pytest.approx(peak, rel=0.05)
    tiff = io.BytesIO()
    Image.open(io.BytesIO(bolt)).save(tiff, "TIFF")
    shown = client.get(f"{ROOT}/inspections/{inspect(client, tiff.getvalue())['id']}/picture")
    assert shown.headers["content-type"] == "image/jpeg"  # which every browser shows
    unknown = inspect(client, BLACK)
    assert not unknown["has_map"]
    refused(client.get(f"{ROOT}/inspections/{unknown['id']}/map"), 404, "no anomaly map")


def test_what_is_not_there(client: httpx.Client) -> None:
    for path in ("inspections/999999", "inspections/999999/picture", "inspections/999999/map"):
        refused(client.get(f"{ROOT}/{path}"), 404)
    refused(client.put(f"{ROOT}/inspections/999999/truth", json={"truth": "good"}), 404)
    some = "ab" * 16
    for path in (f"jobs/{some}", f"photo-sets/{some}", f"photo-sets/{some}/photos/1/picture", "products/no"):
        refused(client.get(f"{ROOT}/{path}"), 404)
    refused(client.post(f"{ROOT}/jobs/{some}/cancel"), 404)
    refused(client.post(f"{ROOT}/photo-sets/{some}/photos", content=BLACK), 404)
    refused(client.post(f"{ROOT}/teachings", json={"name": "nut", "photo_set": some}), 404)
    refused(client.post(f"{ROOT}/teachings", json={"name": "nut", "inspections": [999999]}), 404)
    refused(client.delete(f"{ROOT}/products/no"), 404)
    refused(client.get(f"{ROOT}/nothing"), 404)
    refused(client.get("/nothing"), 404)
    refused(client.delete(f"{ROOT}/status"), 405)
    assert client.delete(f"{ROOT}/photo-sets/{some}").status_code == 204


@pytest.mark.parametrize(
    ("method", "path", "given"),
    [
        ("PUT", "inspections/1/truth", {"truth": "so so"}),
        ("PUT", "inspections/1/truth", {}),
        ("PUT", "inspections/1/truth", {"truth": None, "more": 1}),
        ("PUT", "inspections/0/truth", {"truth": None}),
        ("PUT", f"inspections/{2**63}/truth", {"truth": None}),
        ("GET", "inspections?limit=0", None),
        ("GET", "inspections?limit=201", None),
        ("GET", "inspections?label=good", None),
        ("GET", "inspections?since=yesterday", None),
        ("GET", "inspections?product=%00", None),
        ("POST", "inspections?source=watch", None),
        ("POST", "inspections?reference=" + 201 * "x", None),
        ("PATCH", "products/bolt", {"false_alarm_rate": 0.5}),
        ("PATCH", "products/bolt", {"name": ""}),
        ("POST", "products/bolt/recalibration", {"false_alarm_rate": 0}),
        ("GET", "products/bolt/calibration?false_alarm_rate=nan", None),
        ("GET", "products/bolt/samples/8", None),
        ("POST", "teachings", {"name": "nut", "photo_set": "../../etc"}),
        ("POST", "teachings", {"name": 81 * "n", "inspections": [1]}),
        ("POST", "unknown/dismiss", {"inspections": []}),
        ("POST", "session", {"token": 1}),
    ],
)
def test_values_that_cannot_be_used(client: httpx.Client, method: str, path: str, given: Any) -> None:
    refused(client.request(method, f"{ROOT}/{path}", json=given), 422)


def test_bodies_that_are_no_json(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    for body in (b"", b"{", b"\xff\xfe", b'{"truth":"\\ud800"}', b"null", b'"good"'):
        answer = client.put(f"{ROOT}/inspections/1/truth", content=body, headers=headers)
        refused(answer, 422, "body")
    deep = client.put(f"{ROOT}/inspections/1/truth", content=b"[" * 100_000, headers=headers)
    refused(deep, 400)
    large = client.post(f"{ROOT}/session", content=b" " * (2**20 + 1), headers=headers)
    refused(large, 413, "too large")
    pieces = client.post(f"{ROOT}/session", content=(b" " * 2**16 for _ in range(17)), headers=headers)
    refused(pieces, 413, "too large")


def test_a_repeated_request_has_one_effect(client: httpx.Client, mark: str) -> None:
    [bolt, other] = shots("bolt", 2)
    first = inspect(client, bolt, key=mark, reference=mark)
    assert inspect(client, bolt, key=mark, reference=mark) == first
    for image, query in ((other, {"reference": mark}), (bolt, {"reference": "another"})):
        answer = client.post(f"{ROOT}/inspections", params=query, content=image, headers={KEY: mark})
        refused(answer, 409, mark)
    assert [each["id"] for each in history(client) if each["reference"] == mark] == [first["id"]]
    assert inspect(client, bolt, reference=mark)["id"] > first["id"]


def test_a_request_that_is_repeated_at_the_same_time_has_one_effect(
    station: Running, client: httpx.Client, mark: str
) -> None:
    images = shots("bolt", 4)
    clients = [station.visitor() for _ in range(8)]

    def send(number: int) -> tuple[int, int]:
        image = number % len(images)
        return image, inspect(clients[number % 8], images[image], key=f"{mark} {image}", reference=mark)["id"]

    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(send, range(24)))
    assert len(made) == len(images)
    stored = [each["id"] for each in history(client) if each["reference"] == mark]
    assert sorted(stored) == sorted(number for _, number in made)


# --- the history


def test_the_history_is_paged_and_filtered(client: httpx.Client, mark: str) -> None:
    images = [*shots("bolt", 5), *shots("plate", 4), BLACK]
    made = [inspect(client, image, reference=mark) for image in images]
    first = made[0]["time"]
    page = client.get(f"{ROOT}/inspections", params={"limit": 4, "since": first}).json()
    seen = list(page["items"])
    while page["next"] is not None:
        assert len(page["items"]) == 4
        inspect(client, BLACK)  # what comes meanwhile moves nothing
        query = {"limit": 4, "since": first, "before": page["next"]}
        page = client.get(f"{ROOT}/inspections", params=query).json()
        seen += page["items"]
    assert [each for each in seen if each["reference"] == mark] == made[::-1]
    for query in ({"product": "bolt"}, {"label": "unknown"}, {"label": "normal"}, {"truth": "none"}):
        [(what, value)] = query.items()
        wanted = [each for each in made[::-1] if each.get(what) == value or value == "none"]
        assert [each for each in history(client, **query, since=first) if each["reference"] == mark] == wanted
    assert not history(client, until=first, since=first)
    assert history(client, product="nobody") == []


def test_corrections(client: httpx.Client, mark: str) -> None:
    number = inspect(client, shots("bolt", 1)[0])["id"]
    place = f"{ROOT}/inspections/{number}"
    before = product_of(client, "bolt")["counts"]
    changed = client.put(f"{place}/truth", json={"truth": "bad"}).json()
    assert changed["truth"] == "bad"
    assert changed["corrected"] >= changed["time"]
    assert client.get(place).json() == changed
    assert product_of(client, "bolt")["counts"]["bad"] == before["bad"] + 1
    assert number in [each["id"] for each in history(client, truth="any")]
    undone = client.put(f"{place}/truth", json={"truth": None}).json()
    assert (undone["truth"], undone["corrected"]) == (None, None)
    assert product_of(client, "bolt")["counts"] == before


def test_exports_hold_what_the_history_shows(client: httpx.Client, mark: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    images = shots("bolt", 3)
    since, *_ = [inspect(client, image, reference=mark)["time"] for image in images]
    wanted = {"since": since, "product": "bolt"}
    ids = [each["id"] for each in history(client, **wanted)]
    text = client.get(f"{ROOT}/history.csv", params=wanted)
    assert text.headers["content-type"].startswith("text/csv")
    assert "attachment" in text.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(text.content.decode("utf-8-sig"))))
    assert [int(row["id"]) for row in rows] == ids
    table = parquet.read_table(io.BytesIO(client.get(f"{ROOT}/history.parquet", params=wanted).content))
    assert table.column("id").to_pylist() == ids
    with zipfile.ZipFile(io.BytesIO(client.get(f"{ROOT}/history.zip", params=wanted).content)) as archive:
        assert archive.testzip() is None
        pictures = {archive.read(name) for name in archive.namelist() if name.endswith(".png")}
    assert set(images) <= pictures
    refused(client.get(f"{ROOT}/history.csv", params={"label": "good"}), 422)


# --- products


def test_what_a_product_is(client: httpx.Client, taught: Path) -> None:
    known = Inspector.open(taught).products
    items = client.get(f"{ROOT}/products").json()["items"]
    assert {item["name"] for item in items} == set(known)
    for item in items:
        product = known[item["name"]]
        assert item.keys() == PRODUCT_FIELDS
        assert (item["state"], item["false_alarm_rate"]) == ("active", product.calibration.false_alarm_rate)
        assert item["threshold"] == product.calibration.threshold
        for name in (item["id"], item["name"]):
            assert client.get(f"{ROOT}/products/{name}").json()["id"] == item["id"]
        for index in range(item["samples"]):
            sample = client.get(f"{ROOT}/products/{item['id']}/samples/{index}")
            assert Image.open(io.BytesIO(sample.content)).format == "JPEG"
        if item["samples"] < 8:
            refused(client.get(f"{ROOT}/products/{item['id']}/samples/{item['samples']}"), 404)


def test_a_product_is_renamed_with_its_history(client: httpx.Client) -> None:
    number = inspect(client, shots("plate", 1)[0])["id"]
    before = product_of(client, "plate")
    name = 'Platte "ä" </b> 50/2'
    renamed = client.patch(f"{ROOT}/products/{before['id']}", json={"name": f" {name} "}).json()
    try:
        assert {**renamed, "id": 0} == {**before, "id": 0, "name": name}
        assert renamed["id"].isascii()
        assert "/" not in renamed["id"]
        assert client.get(f"{ROOT}/inspections/{number}").json()["product"] == name
        assert inspect(client, shots("plate", 1)[0])["product"] == name
        refused(client.get(f"{ROOT}/products/{before['id']}"), 404)
        refused(client.patch(f"{ROOT}/products/{renamed['id']}", json={"name": "bolt"}), 409, "bolt")
    finally:
        client.patch(f"{ROOT}/products/{renamed['id']}", json={"name": "plate"})
    assert client.get(f"{ROOT}/inspections/{number}").json()["product"] == "plate"


def test_an_archived_product_is_put_aside(client: httpx.Client) -> None:
    plate = product_of(client, "plate")
    place = f"{ROOT}/products/{plate['id']}"
    assert client.patch(place, json={"archived": True}).json()["state"] == "archived"
    try:
        assert [item["name"] for item in client.get(f"{ROOT}/products").json()["items"]] == ["bolt", "plate"]
        assert client.get(f"{ROOT}/status").json()["products"] == 1
        [image] = shots("plate", 1)
        assert inspect(client, image)["product"] != "plate"
        answer = client.post(f"{ROOT}/inspections", params={"product": "plate"}, content=image)
        refused(answer, 409, "archived")
        refused(client.post(f"{place}/recalibration", json={}), 409, "archived")
        refused(client.patch(place, json={"name": "x"}), 409, "archived")
        set_of = photo_set(client, shots("plate", 6))
        answer = client.post(f"{ROOT}/teachings", json={"name": "plate", "photo_set": set_of})
        refused(answer, 409, "archived")
        assert client.patch(place, json={"archived": True}).json()["state"] == "archived"
    finally:
        restored = client.patch(place, json={"archived": False})
    assert restored.json()["state"] == "active"
    assert inspect(client, image)["product"] == "plate"


def test_recalibrating_with_what_humans_said(client: httpx.Client) -> None:
    place = f"{ROOT}/products/bolt"
    before = client.get(place).json()
    held_out = client.get(f"{place}/calibration").json()["held_out"]
    images = shots("bolt", 6, seed=77)
    made = [inspect(client, image) for image in images]
    for number, each in enumerate(made):
        truth = "bad" if number == 0 else "good"
        client.put(f"{ROOT}/inspections/{each['id']}/truth", json={"truth": truth})
    wish = {"false_alarm_rate": 0.2, "use_corrections": True}
    shown = client.get(f"{place}/calibration", params=wish).json()
    good, bad = shown["confirmed_good"], shown["confirmed_bad"]
    assert good == [each["score"] for each in made[:0:-1]]
    assert bad == [made[0]["score"]]
    assert shown["proposed_threshold"] == threshold((*held_out, *good), 0.2)
    assert shown["threshold"] == before["threshold"]
    scores = [each["score"] for each in shown["recent"]]
    assert scores[:6] == [each["score"] for each in made[::-1]]
    for when, bound in (("now", shown["threshold"]), ("then", shown["proposed_threshold"])):
        assert shown[f"alarms_{when}"] == sum(score > bound for score in scores)
        assert shown[f"missed_{when}"] == sum(score <= bound for score in bad)
    thresholds = [point["threshold"] for point in shown["curve"]]
    assert thresholds == sorted(thresholds, reverse=True)
    assert client.get(place).json()["threshold"] == before["threshold"]  # nothing was changed yet
    try:
        changed = client.post(f"{place}/recalibration", json=wish).json()
        assert changed["threshold"] == shown["proposed_threshold"]
        assert changed["false_alarm_rate"] == 0.2
        assert changed["images"] == before["images"] + len(good)
        again = client.post(f"{place}/recalibration", json=wish).json()
        assert again["threshold"] == changed["threshold"]  # each correction counts once
        assert inspect(client, images[0])["threshold"] == changed["threshold"]
    finally:
        client.patch(place, json={"false_alarm_rate": before["false_alarm_rate"]})
        for each in made:
            client.put(f"{ROOT}/inspections/{each['id']}/truth", json={"truth": None})


# --- teaching


def test_from_photos_to_a_product_and_back(client: httpx.Client) -> None:
    images = shots("nut", 8)
    made = photo_set(client, [*images, BLACK])
    found = wait_for(
        lambda: (shown := client.get(f"{ROOT}/photo-sets/{made}").json())["examined"] == 9 and shown
    )
    assert (found["ready"], found["minimum"]) == (True, 6)
    assert found["created"] > "2020"
    stranger = found["photos"][-1]
    assert stranger["warnings"]
    assert all(warning.keys() == {"kind", "text"} for warning in [*stranger["warnings"], *found["warnings"]])
    place = f"{ROOT}/photo-sets/{made}/photos"
    shown = client.get(f"{place}/{stranger['id']}/picture", params={"width": 24})
    assert Image.open(io.BytesIO(shown.content)).size == (24, 20)
    assert client.delete(f"{place}/{stranger['id']}").status_code == 204
    refused(client.delete(f"{place}/{stranger['id']}"), 404)
    sent_again = client.post(place, params={"name": "0"}, content=images[0])
    assert sent_again.json()["id"] == found["photos"][0]["id"]
    refused(client.post(place, content=b"no image"), 422)

    others = {name: product_of(client, name)["learnt"] for name in ("bolt", "plate")}
    with listening(client) as heard:
        wish = {"name": "nut", "photo_set": made, "false_alarm_rate": 0.05}
        job = teach(client, **wish)
        assert (job["kind"], job["state"], job["product"]) == ("teach", "queued", "nut")
        done = job_after(client, job["id"])
        assert done["state"] == "succeeded", done
        wait_for(lambda: [data for kind, data in heard if kind == "job" and data["state"] == "succeeded"])
        told = [data for kind, data in heard if kind == "job" and data["id"] == job["id"]]
        assert [each["state"] for each in told if each["done"]] != []
        assert all(each["done"] <= each["total"] for each in told)
        assert ("products", {}) in heard
    assert client.get(f"{ROOT}/jobs").json()["items"][0] == done
    assert (done["attempts"], done["problem"], done["remedy"]) == (1, None, None)
    refused(client.get(f"{ROOT}/photo-sets/{made}"), 404)  # its photos are not needed any more
    nut = product_of(client, "nut")
    assert (nut["false_alarm_rate"], nut["counts"]["normal"]) == (0.05, 0)
    assert {name: product_of(client, name)["learnt"] for name in others} == others
    verdict = inspect(client, shots("nut", 1, seed=9)[0])
    assert verdict["product"] == "nut"

    again = photo_set(client, images[:6])
    known = client.post(f"{ROOT}/teachings", json={"name": "nut", "photo_set": again})
    refused(known, 409, "already")
    replaced = job_after(client, teach(client, name="nut", photo_set=again, replace=True)["id"])
    assert replaced["state"] == "succeeded"
    assert product_of(client, "nut")["learnt"] > nut["learnt"]
    assert client.delete(f"{ROOT}/products/nut").status_code == 204
    refused(client.get(f"{ROOT}/products/nut"), 404)
    assert client.get(f"{ROOT}/inspections/{verdict['id']}").json()["product"] == "nut"
    entries = client.get(f"{ROOT}/audit", params={"limit": 3}).json()["items"]
    assert [(entry["action"], entry["subject"]) for entry in entries] == [
        ("forget", "nut"),
        ("teach", "nut"),
        ("teach", "nut"),
    ]
    assert [entry["detail"].get("photos") for entry in entries] == [None, 6, 8]


def test_too_few_photos(client: httpx.Client) -> None:
    made = photo_set(client, shots("nut", 5))
    assert not client.get(f"{ROOT}/photo-sets/{made}").json()["ready"]
    refused(client.post(f"{ROOT}/teachings", json={"name": "nut", "photo_set": made}), 422, "too few")
    both = {"name": "nut", "photo_set": made, "inspections": [1]}
    refused(client.post(f"{ROOT}/teachings", json=both), 409, "photo set, or")
    refused(client.post(f"{ROOT}/teachings", json={"name": "nut"}), 409, "photo set, or")
    assert client.delete(f"{ROOT}/photo-sets/{made}").status_code == 204
    refused(client.get(f"{ROOT}/photo-sets/{made}"), 404)


def test_unknown_images_become_a_product_in_two_calls(client: httpx.Client) -> None:
    for image in shots("washer", 7):
        assert inspect(client, image)["label"] == "unknown"
    other = inspect(client, png(np.full((40, 40, 3), 255, np.uint8)))["id"]

    unknown = client.get(f"{ROOT}/unknown").json()
    group = next(each for each in unknown["groups"] if each["size"] == 7)
    job = teach(client, name="washer", inspections=group["inspections"])

    assert job_after(client, job["id"])["state"] == "succeeded"
    assert inspect(client, shots("washer", 1, seed=8)[0])["product"] == "washer"
    assert client.get(f"{ROOT}/inspections/{group['inspections'][0]}").json()["settled"]
    left = client.get(f"{ROOT}/unknown").json()
    assert left["total"] == unknown["total"] - 7
    ids = [each for group in left["groups"] for each in group["inspections"]]
    assert other in ids
    assert client.post(f"{ROOT}/unknown/dismiss", json={"inspections": ids}).status_code == 204
    assert client.get(f"{ROOT}/unknown").json() == {"total": 0, "groups": []}
    assert client.get(f"{ROOT}/audit").json()["items"][0]["action"] == "dismiss"
    client.delete(f"{ROOT}/products/washer")


def test_a_lesson_that_is_asked_for_twice_is_taught_once(client: httpx.Client, mark: str) -> None:
    made = photo_set(client, shots("nut", 6))
    wish = {"name": "nut", "photo_set": made}
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda _: client.post(f"{ROOT}/teachings", json=wish, headers={KEY: mark}), range(4))
        )
    assert {answer.status_code for answer in answers} == {202}
    [job] = {answer.json()["id"] for answer in answers}
    other = client.post(f"{ROOT}/teachings", json={**wish, "name": "other"}, headers={KEY: mark})
    refused(other, 409, mark)
    as_inspection = client.post(f"{ROOT}/inspections", content=BLACK, headers={KEY: mark})
    refused(as_inspection, 409, mark)
    assert client.post(f"{ROOT}/jobs/{job}/cancel").json()["state"] == "cancelled"
    later = client.post(f"{ROOT}/teachings", json=wish, headers={KEY: mark}).json()
    assert (later["id"], later["state"]) == (job, "cancelled")


def test_jobs_are_cancelled_while_they_wait_and_while_they_run(
    station: Running, client: httpx.Client
) -> None:
    made = photo_set(client, shots("nut", 150))
    with listening(client) as heard:
        running = teach(client, name="nut", photo_set=made)
        waiting = teach(client, name="nut", photo_set=made)
        wait_for(lambda: [data for kind, data in heard if kind == "job" and data["done"]])
        for job in (waiting, running):
            ended = client.post(f"{ROOT}/jobs/{job['id']}/cancel").json()
            assert (ended["state"], ended["problem"]) == ("cancelled", None)
            assert ended["finished"] is not None
        wait_for(lambda: len([1 for kind, data in heard if kind == "job" and data["finished"]]) == 2)
        count = len(heard)
        assert client.post(f"{ROOT}/jobs/{running['id']}/cancel").json() == ended  # it is over: no news
        inspect(client, BLACK)
        wait_for(lambda: len(heard) > count)
        assert [kind for kind, _ in heard[count:]] == ["inspection"]
    assert not station.children
    refused(client.get(f"{ROOT}/products/nut"), 404)
    assert len(client.get(f"{ROOT}/photo-sets/{made}").json()["photos"]) == 150  # for another try


@pytest.mark.slow
def test_a_job_is_cancelled_at_whatever_moment(client: httpx.Client) -> None:
    made = photo_set(client, shots("nut", 6))
    for _ in range(6):
        job = teach(client, name="nut", photo_set=made)["id"]
        assert client.post(f"{ROOT}/jobs/{job}/cancel").json()["state"] == "cancelled"
    refused(client.get(f"{ROOT}/products/nut"), 404)


# --- news, metrics, health, the audit log


def test_inspections_and_corrections_are_news(client: httpx.Client) -> None:
    with listening(client) as heard, listening(client) as others:
        made = inspect(client, BLACK)
        changed = client.put(f"{ROOT}/inspections/{made['id']}/truth", json={"truth": "bad"}).json()
        for each in (heard, others):
            wait_for(lambda each=each: len(each) == 3)
            assert each == [("hello", {}), ("inspection", made), ("inspection", changed)]
    client.put(f"{ROOT}/inspections/{made['id']}/truth", json={"truth": None})


def test_every_change_of_a_product_is_in_the_audit_log(client: httpx.Client) -> None:
    headers = {"X-Continuad-User": "Anna\x7f Müller".encode("latin-1")}
    rate = product_of(client, "bolt")["false_alarm_rate"]
    changes: list[dict[str, Any]] = [
        {"false_alarm_rate": 0.1},
        {"name": "screw"},
        {"archived": True},
        {"archived": False, "name": "bolt", "false_alarm_rate": rate},
    ]
    place = product_of(client, "bolt")["id"]
    for change in changes:
        place = client.patch(f"{ROOT}/products/{place}", json=change, headers=headers).json()["id"]
    page = client.get(f"{ROOT}/audit", params={"limit": 4}).json()
    items = page["items"]
    items += client.get(f"{ROOT}/audit", params={"limit": 2, "before": page["next"]}).json()["items"]
    done = ["recalibrate", "rename", "restore", "archive", "rename", "recalibrate"]
    assert [item["action"] for item in items] == done
    assert {item["actor"] for item in items} == {"Anna Müller (127.0.0.1)"}
    assert items[4]["detail"] == {"from": "bolt"}
    assert items[5]["detail"]["false_alarm_rate"] == [rate, 0.1]
    assert [item["id"] for item in items] == sorted((item["id"] for item in items), reverse=True)


def test_the_status(station: Running, client: httpx.Client) -> None:
    inspect(client, BLACK)
    status = client.get(f"{ROOT}/status").json()
    assert (status["bank"], status["products"], status["image_size"]) == ("parts.bank", 2, 32)
    assert status["queue"]["limit"] == 64
    assert (status["watch"], status["needs_token"], status["deliveries"]) == (None, False, [])
    assert (status["minimum_photos"], status["advised_photos"]) == (6, 50)
    assert status["storage"]["rule"]
    kept = [file.stat().st_size for file in station.folder.glob("pictures/*/*")]
    assert 0 < status["storage"]["pictures"] <= len(kept)


def test_metrics_are_what_prometheus_reads(client: httpx.Client) -> None:
    inspect(client, BLACK)
    client.request("INVENTED", f"{ROOT}/status")
    client.get(f"{ROOT}/inspections/12345678")
    text = client.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    inspections = families["continuad_inspections"].samples
    unknown = {"product": "", "label": "unknown", "source": "api"}
    [count] = [each.value for each in inspections if each.labels == unknown and each.name.endswith("_total")]
    assert count >= 1
    answers = families["continuad_answers"].samples
    assert not [each for each in answers if "12345678" in each.labels["route"]]
    assert {each.labels["method"] for each in answers} <= {"GET", "POST", "PUT", "PATCH", "DELETE", "other"}
    products = {each.labels["state"]: each.value for each in families["continuad_products"].samples}
    assert products == {"active": 2, "archived": 0}
    assert families["continuad_request_seconds"].type == "histogram"
    assert families["continuad_disk_free_bytes"].samples[0].value > 0


def test_what_browsers_are_told(client: httpx.Client) -> None:
    for path in ("/", "/healthz", f"{ROOT}/status", f"{ROOT}/nothing", "/page/nothing.js"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
    assert client.get(f"{ROOT}/status").headers["cache-control"] == "no-store"
    for origin in ("http://evil.example", "null", "http://[", "http://127.0.0.1:1"):
        answer = client.post(f"{ROOT}/photo-sets", headers={"Origin": origin})
        refused(answer, 403, "Another web page")
    own = client.post(f"{ROOT}/photo-sets", headers={"Origin": str(client.base_url).rstrip("/")})
    assert own.status_code == 201
    refused(client.get(f"{ROOT}/status", headers={"Host": "rebound.example"}), 421)


# --- stations of their own


def test_who_knows_the_token_comes_in(folder: Path) -> None:
    with Running(folder, environment={"CONTINUAD_TOKEN": TOKEN}) as station:
        client = station.client
        for path in (f"{ROOT}/status", f"{ROOT}/events", "/metrics", "/api/openapi.json"):
            answer = client.get(path)
            refused(answer, 401, "token")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/healthz").json() == {"alive": True}
        assert client.get("/").status_code == 200
        refused(client.post(f"{ROOT}/inspections", content=BLACK), 401)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert client.get(f"{ROOT}/status", headers=headers).json()["needs_token"]
        refused(client.post(f"{ROOT}/session", json={"token": TOKEN + "x"}), 401, "wrong")
        answer = client.post(f"{ROOT}/session", json={"token": TOKEN})
        assert answer.status_code == 204
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
        assert TOKEN not in cookie
        assert client.get(f"{ROOT}/status").status_code == 200  # the cookie does
        with listening(client) as heard:
            assert heard == [("hello", {})]
        assert client.delete(f"{ROOT}/session").status_code == 204
        assert COOKIE not in client.cookies
        refused(client.get(f"{ROOT}/status"), 401)
        tries = (client.post(f"{ROOT}/session", json={"token": str(n)}).status_code for n in range(200))
        assert 429 in tries
        assert client.get(f"{ROOT}/status", headers=headers).status_code == 200
        assert not any(TOKEN in line for line in station.said)
        assert station.end() == 0


@pytest.mark.slow
def test_a_station_without_products_says_so(tmp_path: Path) -> None:
    Inspector.create(tmp_path / "empty.bank", backbone="tiny", weights="random", image_size=32)
    with Running(tmp_path / "empty.bank") as station:
        client = station.client
        assert client.get("/readyz").json()["ready"]
        refused(client.post(f"{ROOT}/inspections", content=BLACK), 409)
        assert client.get(f"{ROOT}/products").json() == {"items": []}
        made = photo_set(client, shots("nut", 6))
        assert job_after(client, teach(client, name="nut", photo_set=made)["id"])["state"] == "succeeded"
        assert inspect(client, shots("nut", 1, seed=9)[0])["product"] == "nut"
        other = Running(tmp_path / "empty.bank")
        with pytest.raises(AssertionError, match="Another station"):
            other.start()
        assert other.process.wait(timeout=30) == 2


def test_a_station_without_its_database_is_not_ready(folder: Path, postgresql: str) -> None:
    sql = pytest.importorskip("sqlalchemy")
    engine = sql.create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE away")
        address = postgresql.rpartition("/")[0] + "/away"
        with Running(folder, "--database", address) as station:
            client = station.client
            inspect(client, BLACK, key="before")
            set_of = photo_set(client, shots("nut", 6))
            assert client.get("/readyz").status_code == 200
            connection.exec_driver_sql("ALTER DATABASE away ALLOW_CONNECTIONS false")
            _cut(connection)
            answer = client.get("/readyz")
            assert answer.status_code == 503
            assert not answer.json()["ready"]
            assert answer.json()["checks"]["bank"] == "ok"
            assert answer.json()["checks"]["database"] != "ok"
            assert client.get("/healthz").status_code == 200
            for answer in (
                client.get(f"{ROOT}/inspections"),
                client.post(f"{ROOT}/inspections", content=BLACK, headers={KEY: "while"}),
                client.post(f"{ROOT}/photo-sets"),
                client.post(f"{ROOT}/teachings", json={"name": "nut", "photo_set": set_of}),
            ):
                refused(answer, 503, "database")
                assert int(answer.headers["retry-after"]) >= 1
            assert not list(station.folder.glob("pictures/*/*"))[1:]  # nothing was stored
            connection.exec_driver_sql("ALTER DATABASE away ALLOW_CONNECTIONS true")
            assert client.get("/readyz").status_code == 200
            inspect(client, BLACK, key="while")
            assert len(history(client)) == 2
            job = teach(client, name="nut", photo_set=set_of)["id"]
            wait_for(lambda: client.get(f"{ROOT}/jobs/{job}").json()["step"])
            connection.exec_driver_sql("ALTER DATABASE away ALLOW_CONNECTIONS false")
            _cut(connection)
            wait_for(lambda: not station.children)  # the lesson ends while nobody can note it
            connection.exec_driver_sql("ALTER DATABASE away ALLOW_CONNECTIONS true")
            assert job_after(client, job)["state"] == "succeeded"
            assert station.end() == 0
        connection.exec_driver_sql("DROP DATABASE away WITH (FORCE)")
    engine.dispose()


def _cut(connection: Any) -> None:
    """End all connections to the database "away"."""
    connection.exec_driver_sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'away'"
    )


def test_events_end_when_the_station_does(folder: Path) -> None:
    with Running(folder) as station:
        ends: list[str] = []

        def listen() -> None:
            with station.visitor() as visitor, visitor.stream("GET", f"{ROOT}/events") as stream:
                ends.extend(stream.iter_lines())
            ends.append("end")

        thread = threading.Thread(target=listen)
        thread.start()
        wait_for(lambda: station.client.get("/metrics").text.count("/events"))
        assert station.end() == 0  # it does not wait for those who listen
        thread.join(timeout=10)
        assert ends[-1] == "end"
