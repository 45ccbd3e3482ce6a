"""The strategies of continual learning by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from continuad.continual.learners import Joint, Learner, OneDetector
from continuad.continual.penalised import ElasticWeightConsolidation, LearningWithoutForgetting
from continuad.continual.replayed import Replay
from continuad.continual.routed_learner import Routed
from continuad.continual.selective import FeatureSelective
from continuad.registry import Registry


@dataclass(frozen=True)
class Strategy:
    """A named way to learn a stream.

    Attributes:
        summary: a line that says what it is.
        learner: called with what builds a detector, and the settings by name.
        settings: the settings and their defaults.
    """

    summary: str
    learner: Callable[..., Learner]
    settings: Mapping[str, Any]


STRATEGIES: Registry[Strategy] = Registry("strategy")
STRATEGIES.register("fine-tuning")(Strategy("One detector, trained further on each task.", OneDetector, {}))
STRATEGIES.register("joint")(Strategy("One detector, trained anew on all tasks so far.", Joint, {}))
STRATEGIES.register("replay")(
    Strategy("Fine-tuning with stored images.", Replay, {"size": 100, "rule": "add", "seed": 0})
)
STRATEGIES.register("compressed-replay")(
    Strategy(
        "Fine-tuning with stored features.", Replay, {"size": 100, "codec": "none", "rule": "add", "seed": 0}
    )
)
STRATEGIES.register("lwf")(
    Strategy("Fine-tuning that keeps earlier answers.", LearningWithoutForgetting, {"weight": 1.0})
)
STRATEGIES.register("ewc")(
    Strategy(
        "Fine-tuning that keeps weights that mattered.",
        ElasticWeightConsolidation,
        {"weight": 10_000.0, "images": 64},
    )
)
STRATEGIES.register("routed")(Strategy("A detector for each task, picked by its prototype.", Routed, {}))
STRATEGIES.register("feature-selective")(
    Strategy(
        "Fine-tuning, or joint training, on the features that matter for each task.",
        FeatureSelective,
        {
            "percent": 20.0,
            "training": True,
            "conflicts": "keep",
            "joint": False,
            "foresight": False,
            "oracle": False,
        },
    )
)
