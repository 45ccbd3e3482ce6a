"""Whether features tell products apart: a map of the images, and two plain classifiers."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HELD_OUT = 0.2
TREES = 100
HIDDEN = 100
PERPLEXITY = 30.0


@dataclass(frozen=True)
class Accuracy:
    """The share of held-out images whose product is recognised.

    Attributes:
        forest: by a random forest.
        mlp: by a perceptron with one hidden layer.
        learnt: images that they have learnt from.
        held_out: images that they were tested on.
    """

    forest: float
    mlp: float
    learnt: int
    held_out: int


def classify(features: NDArray[np.float32], products: Sequence[str], *, seed: int) -> Accuracy:
    """Recognise the product of images (N, K), two or more of each.

    A fifth of each product's images is held out. The forest has 100 trees; the perceptron has 100 hidden
    units and learns from standardised features; otherwise they are scikit-learn's.
    """
    ensemble: Any = importlib.import_module("sklearn.ensemble")
    neural: Any = importlib.import_module("sklearn.neural_network")
    preprocessing: Any = importlib.import_module("sklearn.preprocessing")
    truth = np.asarray(products)
    learnt, held_out = _split(truth, seed)
    seen, unseen = features[learnt], features[held_out]
    forest = ensemble.RandomForestClassifier(TREES, random_state=seed).fit(seen, truth[learnt])
    by_forest = forest.score(unseen, truth[held_out])
    scaler = preprocessing.StandardScaler(copy=False)  # both are copies already
    seen, unseen = scaler.fit_transform(seen), scaler.transform(unseen)
    perceptron = neural.MLPClassifier((HIDDEN,), random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged: the accuracy says enough
        perceptron.fit(seen, truth[learnt])
    by_mlp = perceptron.score(unseen, truth[held_out])
    return Accuracy(float(by_forest), float(by_mlp), learnt=len(learnt), held_out=len(held_out))


def embed(features: NDArray[np.float32], *, seed: int) -> NDArray[np.float32]:
    """Lay images (N, K) out on a plane (N, 2), similar ones together, by t-SNE.

    The perplexity is scikit-learn's 30, or for fewer than 91 images a third of the others.
    """
    manifold: Any = importlib.import_module("sklearn.manifold")
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    points: NDArray[np.float32] = manifold.TSNE(2, perplexity=perplexity, random_state=seed).fit_transform(
        features
    )
    return points


def _split(products: NDArray[np.str_], seed: int) -> tuple[list[int], list[int]]:
    """Hold a fifth of each product's images out, rounded, at least one; neither part lacks a product."""
    rng = np.random.default_rng(seed)
    learnt: list[int] = []
    held_out: list[int] = []
    for name in np.unique(products):
        order = rng.permutation(np.flatnonzero(products == name)).tolist()
        count = max(1, math.floor(HELD_OUT * len(order) + 0.5))
        held_out += order[:count]
        learnt += order[count:]
    return learnt, held_out
