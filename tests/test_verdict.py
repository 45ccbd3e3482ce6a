from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from continuad import Verdict

MAP = np.zeros((2, 3), np.float32)
NAN = float("nan")


def test_a_verdict_in_one_word() -> None:
    assert Verdict("bolt", 2.0, 1.0, True, MAP).label == "anomalous"
    assert Verdict("bolt", 1.0, 1.0, False, MAP).label == "normal"
    assert Verdict(None, NAN, NAN, None, None, "bolt", 1.5).label == "unknown"


@pytest.mark.parametrize(
    ("product", "decision", "anomaly_map"),
    [(None, True, MAP), (None, None, MAP), (None, False, None), ("bolt", None, MAP), ("bolt", True, None)],
)
def test_a_verdict_has_a_product_a_map_and_a_decision_or_none_of_them(
    product: str | None, decision: bool | None, anomaly_map: Any
) -> None:
    with pytest.raises(ValueError, match="or none of them"):
        Verdict(product, 1.0, 1.0, decision, anomaly_map)


def test_plain_values_are_strict_json() -> None:
    verdict = Verdict("bölt", 0.5, 0.75, False, MAP, "bölt", 0.25, {"head": 1.23456})
    values = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
    assert values == {
        "label": "normal",
        "product": "bölt",
        "score": 0.5,
        "threshold": 0.75,
        "is_anomalous": False,
        "nearest": "bölt",
        "distance": 0.25,
        "timings_ms": {"head": 1.235},
    }
    unknown = Verdict(None, NAN, NAN, None, None, "bölt", 1.5).as_dict()
    assert json.loads(json.dumps(unknown, allow_nan=False)) == {
        "label": "unknown",
        "product": None,
        "score": None,
        "threshold": None,
        "is_anomalous": None,
        "nearest": "bölt",
        "distance": 1.5,
        "timings_ms": {},
    }
    named = Verdict("bolt", 1.0, 0.5, True, MAP).as_dict()
    assert named["nearest"] is None
    assert named["distance"] is None


def test_the_map_is_not_printed() -> None:
    assert "array" not in repr(Verdict("bolt", 1.0, 0.5, True, MAP))
