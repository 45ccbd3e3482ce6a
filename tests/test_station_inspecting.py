"""The queue of inspections, and the products as the station shows and changes them."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sqlalchemy")
pytest.importorskip("fastapi")

from conftest import Photo, photos
from continuad import Inspector
from continuad.errors import ProductError
from continuad.images import resize
from continuad.inspector.calibration import threshold
from continuad.station.audit import Audit
from continuad.station.catalogue import Catalogue
from continuad.station.database import Database, renames
from continuad.station.faults import ConflictError, NotFoundError
from continuad.station.history import History, Inspection
from continuad.station.inspecting import Inspecting, Order, QueueFullError
from continuad.station.pictures import Pictures
from continuad.station.preparing import Prepared

STRANGER = np.zeros((40, 48, 3), np.uint8)


def png(image: Photo) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def order(image: Photo, **options: Any) -> Order:
    return Order(Prepared(png(image), resize(image, 32), image.shape[1], image.shape[0]), **options)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "station.db")
    yield opened
    opened.close()


@pytest.fixture
def history(database: Database, tmp_path: Path) -> History:
    return History(database, Pictures(tmp_path / "pictures"))


@pytest.fixture
def told() -> list[Inspection]:
    return []


@pytest.fixture
def inspecting(inspector: Inspector, history: History, told: list[Inspection]) -> Iterator[Inspecting]:
    made = Inspecting(inspector, history, limit=20, report=told.extend)
    yield made
    made.stop()


@pytest.fixture
def catalogue(folder: Path, history: History, database: Database) -> Catalogue:
    return Catalogue(Inspector.open(folder), history, Audit(database), database)


def inspect(inspecting: Inspecting, images: Sequence[Photo], **options: Any) -> list[Inspection]:
    return [future.result() for future in [inspecting.submit(order(image, **options)) for image in images]]


def test_the_station_says_what_the_inspector_says(
    inspecting: Inspecting, folder: Path, history: History, told: list[Inspection]
) -> None:
    images = [*photos("bolt", 6, seed=3, width=60), *photos("plate", 6, seed=4, height=30), STRANGER]
    futures = [inspecting.submit(order(image)) for image in images]
    assert inspecting.waiting == len(images)
    inspecting.start()
    found = [future.result() for future in futures]
    for image, inspection, verdict in zip(images, found, Inspector.open(folder).inspect(images), strict=True):
        assert (inspection.product, inspection.label) == (verdict.product, verdict.label)
        assert inspection.nearest == verdict.nearest
        assert (inspection.width, inspection.height) == (image.shape[1], image.shape[0])
        if verdict.product is None:
            assert (inspection.score, inspection.map_peak) == (None, None)
        else:
            assert inspection.score == pytest.approx(verdict.score, rel=1e-5)
            assert inspection.threshold == verdict.threshold
    assert [each.id for each in found] == [each.id for each in reversed(history.page(limit=20))]
    assert told == found


def test_a_map_is_kept_with_what_its_white_stands_for(inspecting: Inspecting, history: History) -> None:
    inspecting.start()
    image = photos("bolt", 1)[0]
    image[10:30, 10:30] = 255 - image[10:30, 10:30]
    (found,) = inspect(inspecting, [image], product="bolt")
    data = history.map(found.id)
    assert data is not None
    values = np.asarray(Image.open(io.BytesIO(data)))
    assert values.shape == (32, 32)
    assert found.score is not None
    assert found.map_peak is not None
    assert found.map_peak >= max(found.score, found.threshold or 0)
    assert values.max() / 255 * found.map_peak == pytest.approx(found.score, rel=0.01)


def test_unknown_images_keep_what_tells_them_apart(
    inspecting: Inspecting, history: History, folder: Path
) -> None:
    inspecting.start()
    (found,) = inspect(inspecting, [STRANGER])
    ((inspection, embedding),) = history.unknowns()
    assert (inspection, found.label) == (found, "unknown")
    assert np.allclose(embedding, Inspector.open(folder).embed([STRANGER])[0], atol=1e-5)
    (forced,) = inspect(inspecting, [STRANGER], reject_unknown=False)
    assert forced.product == found.nearest


def test_more_than_can_wait_is_refused_with_a_time(inspecting: Inspecting) -> None:
    futures = [inspecting.submit(order(STRANGER)) for _ in range(20)]
    with pytest.raises(QueueFullError) as refused:
        inspecting.submit(order(STRANGER))
    assert refused.value.seconds == 1  # 20 images at the pace that is assumed at first
    inspecting.start()
    assert all(future.result() for future in futures)


def test_one_failure_is_the_answer_to_its_own_order(inspecting: Inspecting) -> None:
    futures = [inspecting.submit(order(STRANGER, product=name)) for name in ("bolt", "nut", "plate")]
    inspecting.start()
    assert futures[0].result().product == "bolt"
    assert isinstance(futures[1].exception(), ProductError)
    assert futures[2].result().product == "plate"


def test_a_history_that_fails_fails_the_order_and_not_the_worker(
    inspecting: Inspecting, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspecting.start()
    with monkeypatch.context() as patch:
        patch.setattr(history, "add", lambda batch: (_ for _ in ()).throw(OSError(28, "full")))
        assert isinstance(inspecting.submit(order(STRANGER)).exception(), OSError)
    assert inspect(inspecting, [STRANGER])
    assert inspecting.is_alive


def test_orders_come_before_errands_and_errands_hold_nothing_up(inspecting: Inspecting) -> None:
    done: list[str] = []
    errand = inspecting.when_idle(lambda inspector: done.append(f"errand on {len(inspector.products)}"))
    failing: Future[None] = inspecting.when_idle(lambda _: 1 / 0)  # type: ignore[func-returns-value, arg-type]
    futures = [inspecting.submit(order(STRANGER)) for _ in range(10)]
    for future in futures:
        future.add_done_callback(lambda _: done.append("order"))
    inspecting.start()
    errand.result()
    assert isinstance(failing.exception(), ZeroDivisionError)
    assert done == ["order"] * 10 + ["errand on 2"]


def test_at_the_end_what_waits_is_inspected_and_nothing_more_is_taken(
    inspector: Inspector, history: History
) -> None:
    inspecting = Inspecting(inspector, history, limit=20, report=lambda _: None)
    futures = [inspecting.submit(order(STRANGER)) for _ in range(9)]
    inspecting.start()
    inspecting.stop()
    assert all(future.done() for future in futures)
    with pytest.raises(QueueFullError):
        inspecting.submit(order(STRANGER))
    with pytest.raises(CancelledError):
        inspecting.when_idle(lambda _: None).result()


def test_orders_from_many_threads_are_each_answered_once(inspecting: Inspecting, history: History) -> None:
    inspecting.start()
    images = photos("bolt", 4)
    found: list[int] = []

    def work() -> None:
        found.extend(each.id for each in inspect(inspecting, images))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(each.id for each in history.page(limit=100))
    assert len(set(found)) == 16


# The products.


def test_products_are_shown_with_what_was_inspected(inspecting: Inspecting, catalogue: Catalogue) -> None:
    inspecting.start()
    found = inspect(inspecting, photos("bolt", 3), product="bolt")
    catalogue.archive(catalogue.entry("plate"), True, actor="me")
    bolt, plate = catalogue.describe(catalogue.entries())
    assert (bolt["name"], bolt["state"], plate["state"]) == ("bolt", "active", "archived")
    assert bolt["counts"]["normal"] + bolt["counts"]["anomalous"] == len(found)
    assert (bolt["samples"], bolt["images"]) == (3, 7)
    assert bolt["last_inspected"]
    assert plate["last_inspected"] is None
    assert Image.open(io.BytesIO(catalogue.sample(catalogue.entry("bolt"), 2))).size == (32, 32)
    with pytest.raises(NotFoundError):
        catalogue.sample(catalogue.entry("bolt"), 3)
    with pytest.raises(ProductError, match="archived"):
        catalogue.named("plate")
    assert catalogue.named(bolt["id"]) == "bolt"


def test_a_rename_takes_the_history_along(
    inspecting: Inspecting, catalogue: Catalogue, history: History
) -> None:
    inspecting.start()
    (found,) = inspect(inspecting, photos("bolt", 1), product="bolt")
    entry = catalogue.rename(catalogue.entry("bolt"), "bolt M6", actor="me")
    assert history.get(found.id).product == "bolt M6" == entry.product.name
    assert inspect(inspecting, photos("bolt", 1), product="bolt M6")
    with pytest.raises(ConflictError):
        catalogue.rename(entry, "plate", actor="me")
    with pytest.raises(ProductError):
        catalogue.rename(entry, "\n", actor="me")
    with pytest.raises(ConflictError):
        catalogue.rename(catalogue.archive(entry, True, actor="me"), "nut", actor="me")


@pytest.mark.parametrize("is_renamed", [True, False])
def test_a_rename_that_was_cut_off_is_completed_or_dropped(
    inspecting: Inspecting,
    catalogue: Catalogue,
    history: History,
    database: Database,
    is_renamed: bool,
    folder: Path,
) -> None:
    inspecting.start()
    (found,) = inspect(inspecting, photos("bolt", 1), product="bolt")
    with database.write() as connection:
        connection.execute(renames.insert().values(old="bolt", new="nut"))
    if is_renamed:
        Inspector.open(folder).rename("bolt", "nut")
    catalogue.settle_renames()
    assert history.get(found.id).product == ("nut" if is_renamed else "bolt")
    with database.read() as connection:
        assert not connection.execute(renames.select()).all()


def test_the_effect_of_a_rate_is_shown_before_it_is_applied(
    inspecting: Inspecting, catalogue: Catalogue, history: History, folder: Path, database: Database
) -> None:
    inspecting.start()
    found = inspect(inspecting, photos("bolt", 12, seed=9), product="bolt")
    for inspection, truth in zip(found, ["good"] * 5 + ["bad"] * 2, strict=False):
        history.set_truth(inspection.id, truth)
    entry = catalogue.entry("bolt")
    held_out = list(entry.product.calibration.scores)
    scores = [inspection.score or 0.0 for inspection in found]
    for corrections in (False, True):
        shown = catalogue.calibration(entry, 0.2, use_corrections=corrections)
        limit = threshold([*held_out, *(reversed(scores[:5]) if corrections else ())], 0.2)
        assert shown["proposed_threshold"] == pytest.approx(limit)
        assert shown["threshold"] == entry.product.calibration.threshold
        assert shown["alarms_then"] == sum(score > limit for score in scores)
        assert shown["missed_then"] == sum(score <= limit for score in scores[5:7])
        assert shown["alarms_now"] == sum(score > shown["threshold"] for score in scores)
        curve = [point["threshold"] for point in shown["curve"]]
        assert curve == sorted(curve, reverse=True)
    assert catalogue.entry("bolt") == entry
    changed = catalogue.recalibrate(entry, 0.2, use_corrections=True, actor="Ida")
    assert changed.product.calibration.threshold == pytest.approx(limit)
    again = catalogue.recalibrate(changed, 0.2, use_corrections=True, actor="Ida")
    assert again.product.calibration == changed.product.calibration  # each score counts once
    entries = Audit(database).page()
    assert [(each.actor, each.action, each.subject) for each in entries] == [
        ("Ida", "recalibrate", "bolt")
    ] * 2
    assert entries[1].detail["threshold"] == [shown["threshold"], changed.product.calibration.threshold]
    with pytest.raises(ConflictError):
        catalogue.recalibrate(
            catalogue.archive(entry, True, actor="me"), 0.1, use_corrections=False, actor="me"
        )


def test_scores_of_a_head_that_was_replaced_do_not_count(
    inspecting: Inspecting, catalogue: Catalogue, folder: Path
) -> None:
    inspecting.start()
    inspect(inspecting, photos("bolt", 2), product="bolt")
    Inspector.open(folder).learn("bolt", photos("bolt", 8), head="padim", replace_existing=True)
    assert catalogue.calibration(catalogue.entry("bolt"), None, use_corrections=True)["recent"] == []
