"""The automatic head: what is chosen, on what grounds, and what of it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import new_bank, photos
from continuad import Inspector
from continuad.backbones import create_backbone
from continuad.detectors import METHODS, Detector
from continuad.detectors.compact import CompactBank
from continuad.errors import SettingsError
from continuad.inspector import choice
from continuad.inspector.choice import AUTO, CANDIDATES, CHOSEN, Choice, choose
from continuad.metrics import image_scores

SIZE = 64


def cloth(count: int, seed: int) -> Tensor:
    """Woven stripes with noise."""
    rng = np.random.default_rng(seed)
    stripes = 120 + 40 * np.sin(np.arange(SIZE) / 3)
    images = stripes + stripes[:, None] / 2 + rng.normal(0, 3, (count, 3, SIZE, SIZE))
    return torch.from_numpy(np.clip(images, 0, 255).astype(np.uint8))


def fitted(**changes: Any) -> CompactBank:
    head = METHODS["compact"].build(create_backbone("tiny", weights="random"), {"budget": 100, **changes})
    assert isinstance(head, CompactBank)
    head.fit(cloth(10, 0))
    return head


@pytest.fixture(scope="module")
def head() -> CompactBank:
    return fitted()


def test_the_choice_is_deterministic_and_leaves_the_head_as_it_was(head: CompactBank) -> None:
    before, settings = {k: v.clone() for k, v in head.state_dict().items()}, head.settings
    first, second = (choose(head, cloth(10, 0), cloth(6, 1), fixed=(), seed=3) for _ in range(2))
    assert first == second
    assert head.settings == settings
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())
    assert (first.method, first.changes) in [(each.method, each.changes) for each in CANDIDATES]


@pytest.mark.parametrize("number", range(1, len(CANDIDATES)))
def test_another_candidate_must_be_clearly_better(
    head: CompactBank, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def scores(found: int) -> Any:
        """The candidate finds so many of 20 defects, and the others none."""
        table = np.zeros((40, len(CANDIDATES)))
        table[:20] = 1
        table[20 : 20 + found, number] = 2
        return lambda *_: table

    for found, expected in ((1, CANDIDATES[0]), (20, CANDIDATES[number])):
        monkeypatch.setattr(choice, "_scores", scores(found))
        made = choose(head, cloth(10, 0), cloth(20, 1), fixed=(), seed=0)
        assert (made.method, made.changes) == (expected.method, expected.changes)
        assert f"{CANDIDATES[number].says}: {found / 20:.3f}" in made.reason


def test_pairs_are_ranked_as_the_auroc_counts_them() -> None:
    rng = np.random.default_rng(0)
    normal, damaged = rng.integers(0, 5, (7, 3)).astype(float), rng.integers(1, 6, (9, 3)).astype(float)
    labels = np.arange(16) >= 7
    for column, ranked in enumerate(choice._ranked(normal, damaged).mean((0, 1))):
        scores = np.concatenate([normal, damaged])[:, column]
        assert ranked == pytest.approx(image_scores(scores, labels).i_auroc)


def test_the_scores_that_are_compared_are_those_that_will_be_given(head: CompactBank) -> None:
    images = cloth(4, 5)
    heads: dict[str, Detector] = {
        "compact": head,
        "context": METHODS["context"].build(head.backbone, {"hidden": 0}),
    }
    heads["context"].fit(cloth(10, 0))
    scores = choice._scores(heads, CANDIDATES, images, lambda *_: None)
    for column, candidate in zip(scores.T, CANDIDATES, strict=True):
        other = METHODS[candidate.method].build(head.backbone, candidate.changes)
        other.load_state_dict(heads[candidate.method].state_dict())
        expected = [float(other.image_scores(other.anomaly_maps(each[None]))) for each in images]
        assert column == pytest.approx(expected, rel=1e-6)


def test_what_the_user_settles_is_not_chosen(head: CompactBank) -> None:
    made = choose(head, cloth(10, 0), cloth(6, 1), fixed=CHOSEN, seed=0)
    assert (made.method, made.changes) == ("compact", {})
    assert made.reason.count(": 0.") + made.reason.count(": 1.") == 1
    other = choose(head, cloth(10, 0), cloth(6, 1), fixed=["budget"], seed=0)
    assert "around it" not in other.reason


def test_another_method_learns_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Choice("context", CANDIDATES[-1].changes, "It does.")
    monkeypatch.setattr("continuad.inspector.inspector.choose", lambda *_, **__: taken)
    chosen = new_bank(tmp_path / "auto")
    product = chosen.learn("bolt", photos("bolt", 9))
    assert (product.method, product.reason, product.settings["hidden"]) == ("context", "It does.", 0)
    named = new_bank(tmp_path / "named")
    expected = named.learn("bolt", photos("bolt", 9), head="context", settings=taken.changes)
    assert product.calibration == expected.calibration
    image = photos("bolt", 1)[0]
    assert Inspector.open(tmp_path / "auto").inspect(image).score == named.inspect(image).score


def test_the_automatic_head_is_the_default_and_says_why(tmp_path: Path) -> None:
    inspector = new_bank(tmp_path / "bank")
    product = inspector.learn("bolt", photos("bolt", 7), settings={"budget": 60})
    assert product.method == "compact"
    assert "synthetic defect" in product.reason
    assert product.bytes < 61 * 1024
    again = Inspector.open(tmp_path / "bank")
    assert again.product("bolt") == product
    image = photos("bolt", 1)[0]
    assert again.inspect(image).score == inspector.inspect(image).score
    twin = new_bank(tmp_path / "twin").learn("bolt", photos("bolt", 7), settings={"budget": 60}, head=AUTO)
    assert (twin.reason, twin.calibration) == (product.reason, product.calibration)
    named = again.learn("nut", photos("bolt", 7), settings={"budget": 60}, head="compact")
    assert named.reason == ""


def test_a_setting_of_the_automatic_head_is_kept(tmp_path: Path) -> None:
    inspector = new_bank(tmp_path / "bank")
    product = inspector.learn("bolt", photos("bolt", 7), settings={"budget": 60, "by_position": False})
    assert product.settings["by_position"] is False


def test_a_wrong_setting_is_refused_before_any_image_is_read(tmp_path: Path) -> None:
    inspector = new_bank(tmp_path / "bank")
    with pytest.raises(SettingsError, match="no setting 'epochs'"):
        inspector.learn("bolt", ["missing.png"] * 9, settings={"epochs": 3})
