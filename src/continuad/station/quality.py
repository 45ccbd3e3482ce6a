"""What may be wrong with the photos of a set, said before a product is taught from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from continuad.inspector import ADVISED_IMAGES, MIN_IMAGES
from continuad.router import Vectors
from continuad.station.grouping import group
from continuad.station.photo_sets import Photo
from continuad.station.traits import Traits, examine

__all__ = ["PhotoWarning", "Report", "Traits", "check", "examine"]

ENOUGH = 20
"""Photos under which verdicts are not sure."""

SPREADS = 4.0
"""A photo deviates from the median by more than so many robust standard deviations, and by more than:"""

BLURRED = 0.2  # octaves of sharpness
MISLIT = 1.0  # octaves of the odds of its brightness: from half of full scale down to a third
RESHAPED = 0.2  # octaves of the aspect ratio: 15 %
RESIZED = 1.0  # octaves of the longer side: half, or twice

COPY_LEVELS = 1.0
"""Grey levels (RMS) between the fingerprints of copies: JPEG of quality 50 stays under 0.7, while aligned
photos of two parts differ by more."""

COPY_SHARE = 0.15
"""The same as a share of what neighbours in the set usually differ by; another size may change so much."""

COPY_LIKENESS = 0.95
"""Correlation between copies of what tells them from the rest of the set."""

RESEMBLANCE = 0.8
"""Correlation with a photo of a product from which a bad shot may show it, too."""

BLACK = 0.03
"""Brightness under which nothing can be seen; white is as far from 1."""

MEAN_WITHIN = 0.5
"""The mean of photos of a known product lies within this share of its limit."""

PARTY, PARTY_SHARE = 3, 0.1
"""Photos, and share of all, from which those apart are another product and not strays."""


_RELIGHT = "Check the light and take it again, or remove it"
BAD_SHOTS = {
    "dark": ("is darker than the others", _RELIGHT),
    "bright": ("is brighter than the others", _RELIGHT),
    "blurred": ("is blurred compared with the others", "Take it again or remove it"),
}


@dataclass(frozen=True)
class PhotoWarning:
    """What may be wrong, and what to do about it.

    Attributes:
        kind: few, mixture, known, outlier, duplicate, blurred, dark, bright or size.
        text: for whoever took the photos.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Report:
    """What the check has found.

    Attributes:
        warnings: about the set.
        photos: about single photos, by their id; without those that nothing is wrong with.
        examined: how many photos have traits; of the others only the bytes and the size were looked at.
    """

    warnings: tuple[PhotoWarning, ...]
    photos: Mapping[int, tuple[PhotoWarning, ...]]
    examined: int


def check(photos: Sequence[Photo], learnt: Mapping[str, tuple[Vectors, float]]) -> Report:
    """Check the photos from which a product will be taught.

    Of copies the first stays without warning, of several products the one with most photos: a set without the
    photos that were warned of is one that can be taught.

    Args:
        photos: of one set, in the order in which they came.
        learnt: of each product that the bank knows, the prototype (D,) and the limit.

    Raises:
        StationError: a photo's traits are damaged.
    """
    return _Check(photos, learnt).report()


class _Check:
    """The photos, examined ones also by their traits, and what was found so far."""

    def __init__(self, photos: Sequence[Photo], learnt: Mapping[str, tuple[Vectors, float]]) -> None:
        self._all, self._learnt = photos, learnt
        self._photos = [photo for photo in photos if photo.traits is not None]
        self._traits = [Traits.from_bytes(photo.traits) for photo in photos if photo.traits is not None]
        self._copies: dict[int, Photo] = {}  # by the copy's id, the original
        self._of_set: list[PhotoWarning] = []
        self._of_photo: dict[int, list[PhotoWarning]] = defaultdict(list)

    def report(self) -> Report:
        self._find_copies()
        self._find_sizes()
        if self._traits:
            self._find_products()
        found = {
            photo.id: tuple(self._of_photo[photo.id]) for photo in self._all if photo.id in self._of_photo
        }
        return Report(tuple(self._of_set), found, len(self._traits))

    def _warn(self, photo: Photo, kind: str, problem: str, remedy: str) -> None:
        self._of_photo[photo.id].append(PhotoWarning(kind, f"Photo {photo.name} {problem}. {remedy}."))

    def _find_copies(self) -> None:
        originals: dict[str, Photo] = {}
        for photo in self._all:
            original = originals.setdefault(photo.sha256, photo)
            if original is not photo:
                self._copies[photo.id] = original
        for index, earlier in _copies([traits.fingerprint for traits in self._traits]).items():
            self._copies.setdefault(self._photos[index].id, self._photos[earlier])
        for photo in self._all:
            if photo.id in self._copies:
                problem = f"is the same picture as {self._copies[photo.id].name}"
                self._warn(photo, "duplicate", problem, "Remove one of the two: a copy teaches nothing new")
        self._count(len(self._all) - len(self._copies))

    def _count(self, different: int) -> None:
        if different < MIN_IMAGES:
            lacking = MIN_IMAGES - different
            text = (
                f"{_many(different, 'different photo')} {'is' if different == 1 else 'are'} too few to teach "
                f"a product. Add at least {lacking} more of good parts; {ADVISED_IMAGES} are best."
            )
        elif different < ENOUGH:
            text = (
                f"{different} different photos will do, but more make verdicts surer. "
                f"Add photos of other good parts, up to {ENOUGH} at least; {ADVISED_IMAGES} are best."
            )
        else:
            return
        self._of_set.append(PhotoWarning("few", text))

    def _find_sizes(self) -> None:
        if not self._all:
            return
        sides = np.log2([(photo.width, photo.height) for photo in self._all])
        shape = _deviations(sides[:, 0] - sides[:, 1], least=RESHAPED)
        scale = _deviations(sides.max(1), least=RESIZED)
        for photo, is_other in zip(self._all, (abs(shape) > 1) | (abs(scale) > 1), strict=True):
            if is_other:
                problem = f"has another size or shape ({photo.width} x {photo.height}) than the others"
                self._warn(photo, "size", problem, "Take it again as the others were taken, or remove it")

    def _find_products(self) -> None:
        """Look at each product of the set by itself, and at strays beside the largest."""
        embeddings = np.stack([traits.embedding for traits in self._traits])
        main, *apart = group(embeddings)
        shots = self._bad_shots(main)
        is_main = self._shows_what(main)
        apart = [[index for index in each if not (index in shots and is_main[index])] for each in apart]
        least = max(PARTY, PARTY_SHARE * len(embeddings))
        parties = [main, *(members for members in apart if len(members) >= least)]
        strays = sorted(index for members in apart if len(members) < least for index in members)
        self._find_mixture(parties, strays)
        self._find_known(embeddings, parties, strays)
        for members in apart:
            own = self._bad_shots(members)
            shots = {index: kind for index, kind in shots.items() if index not in members}
            shots |= {index: own[index] for index in members if index in own}
        for index, kind in sorted(shots.items()):
            if self._photos[index].id not in self._copies:  # another encoding costs detail
                self._warn(self._photos[index], kind, *BAD_SHOTS[kind])

    def _find_mixture(self, parties: Sequence[Sequence[int]], strays: Sequence[int]) -> None:
        examples = [self._photos[members[0]].name for members in parties]
        if len(parties) > 1:
            shares = [f"{len(m)} like {name}" for m, name in zip(parties, examples, strict=True)]
            text = (
                f"The photos seem to show {len(parties)} different products: {', '.join(shares)}. "
                "Teach one product at a time: remove the photos of the others."
            )
            self._of_set.append(PhotoWarning("mixture", text))
        elif 2 * len(strays) > len(self._photos):
            text = (
                "The photos have little in common with each other. "
                "Take photos of one product, always from the same place and in the same light."
            )
            self._of_set.append(PhotoWarning("mixture", text))
        for index in sorted(index for members in parties[1:] for index in members):
            problem = f"seems to show another product than {examples[0]} and those like it"
            self._warn(self._photos[index], "mixture", problem, "Remove it, and teach that product by itself")
        for index in strays:
            self._warn(
                self._photos[index],
                "outlier",
                "looks very different from the others",
                "Remove it unless it shows a good part of this product",
            )

    def _find_known(
        self, embeddings: Vectors, parties: Sequence[Sequence[int]], strays: Sequence[int]
    ) -> None:
        for members in parties:
            name = self._known(embeddings[members].mean(0), share=MEAN_WITHIN)
            if name and members is parties[0]:
                text = (
                    f"These photos look like the product {name}, which is known already. If they show it, "
                    "teach them under its name to replace it; if not, the two may be taken for each other."
                )
                self._of_set.append(PhotoWarning("known", text))
            elif name:
                self._warn_of_known(members, name)
        for index in strays:
            if name := self._known(embeddings[index]):
                self._warn_of_known([index], name)

    def _warn_of_known(self, members: Sequence[int], name: str) -> None:
        problem = f"looks like the product {name}, which is known already"
        for index in members:
            self._warn(self._photos[index], "known", problem, "Remove it if it was added by mistake")

    def _known(self, embedding: Vectors, *, share: float = 1.0) -> str:
        """The nearest product within so much of whose limit the embedding lies; "" if there is none."""
        near = {}
        for name, (prototype, limit) in self._learnt.items():
            distance = float(np.linalg.norm(embedding.astype(np.float64) - prototype))
            if distance <= share * limit:
                near[name] = distance
        return min(near, key=near.__getitem__, default="")

    def _bad_shots(self, usual: Sequence[int]) -> dict[int, str]:
        """How photos were taken badly in comparison with the usual ones; too few of these tell nothing."""
        if len(usual) < MIN_IMAGES:
            return {}
        brightness = np.clip([traits.brightness for traits in self._traits], BLACK / 10, 1 - BLACK / 10)
        light = _deviations(np.log2(brightness / (1 - brightness)), least=MISLIT, usual=usual)
        sharpness = np.array([traits.sharpness for traits in self._traits])
        blur = _deviations(sharpness, least=BLURRED, usual=usual)
        kinds = np.select([light < -1, light > 1, blur < -1], ["dark", "bright", "blurred"], default="")
        return {index: str(kind) for index, kind in enumerate(kinds) if kind}

    def _shows_what(self, members: Sequence[int]) -> NDArray[np.bool_]:
        """Which photos may show what the members show, but for the light and the sharpness.

        Those that look as much like one of the members as each of these does; of a black or white photo
        nobody knows. Where parts lie in many ways, not even good shots look alike so much.
        """
        levels = np.stack([traits.fingerprint for traits in self._traits]).reshape(len(self._traits), -1)
        alike = _correlations(levels.astype(np.float64))
        np.fill_diagonal(alike, -1)
        nearest = alike[:, members].max(1)
        brightness = np.array([traits.brightness for traits in self._traits])
        is_blank = (brightness < BLACK) | (brightness > 1 - BLACK)
        return np.asarray((nearest >= max(nearest[members].min(), RESEMBLANCE)) | is_blank)


def _deviations(
    values: NDArray[np.float64], *, least: float, usual: Sequence[int] | slice = slice(None)
) -> NDArray[np.float64]:
    """How far values (N,) lie from the median of the usual ones; beyond -1 and 1 they deviate."""
    centre = np.median(values[usual])
    spread = 1.4826 * np.median(np.abs(values[usual] - centre))  # the standard deviation, if they are normal
    deviations: NDArray[np.float64] = (values - centre) / max(SPREADS * spread, least)
    return deviations


def _correlations(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's correlation of each row (N, D) with each; 0 for rows without variance."""
    centred = values - values.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    return np.asarray(unit @ unit.T)


def _copies(fingerprints: Sequence[NDArray[np.float16]]) -> dict[int, int]:
    """Each fingerprint (S, S) that is a copy of an earlier one, and the earliest such.

    Parts in a fixture look so alike that only their chance differences from the rest of the set tell that two
    photos are one; with fewer than `MIN_IMAGES` there is no rest to speak of.
    """
    count = len(fingerprints)
    if count < 2:
        return {}
    levels = np.stack(fingerprints).reshape(count, -1).astype(np.float64)
    distances = squareform(pdist(levels)) / np.sqrt(levels.shape[1])
    others = distances + np.diag(np.full(count, np.inf))
    alike = others < max(COPY_LEVELS, COPY_SHARE * np.median(others.min(1)))
    if count >= MIN_IMAGES:
        alike &= (_correlations(levels - np.median(levels, axis=0)) > COPY_LIKENESS) | (distances == 0)
    earlier = np.tril(alike, -1)
    return {int(index): int(earlier[index].argmax()) for index in np.flatnonzero(earlier.any(1))}


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
