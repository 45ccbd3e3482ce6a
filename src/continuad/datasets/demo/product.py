"""A demo product: what it is, how it can be defective, and how it is photographed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from continuad.datasets.demo.camera import expose, sense, visible_change
from continuad.datasets.demo.canvas import Array, Scene
from continuad.errors import SettingsError
from continuad.registry import Registry

_HEAP = 30 << 20

Draw = Callable[[Scene, str | None], Array]


@dataclass(frozen=True)
class DemoProduct:
    """A product rendered by code.

    Attributes:
        name: the key in `DEMO_PRODUCTS`.
        description: one line for people.
        defects: the kinds of defect it can have.
        draw: returns the linear light (3, N, N) of a scene, with the given defect or none; the part draws its
            chance from `scene.part` only, the defect from `scene.flaw` only.
    """

    name: str
    description: str
    defects: tuple[str, ...]
    draw: Draw

    def render(
        self, rng: np.random.Generator, size: int, defect: str | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Photograph one part: image uint8 (size, size, 3) and mask bool (size, size).

        The same generator state gives the same part with and without a defect; the mask holds the pixels in
        which the two differ visibly.

        Raises:
            SettingsError: the product has no such defect.
        """
        if defect is not None and defect not in self.defects:
            raise SettingsError(
                f"The demo product {self.name!r} has no defect {defect!r}.",
                f"Choose one of: {', '.join(self.defects)}.",
            )
        # A scene makes hundreds of arrays of a megabyte or three. Once one large block was freed, glibc keeps
        # such memory instead of returning it to the system after each operation: less than half the time.
        np.empty(_HEAP, dtype=np.uint8)
        part, flaw, sensor = (int(seed) for seed in rng.integers(2**63, size=3))

        def photograph(kind: str | None) -> Array:
            scene = Scene(2 * size, part=np.random.default_rng(part), flaw=np.random.default_rng(flaw))
            return expose(scene, self.draw(scene, kind))

        levels = normal = photograph(None)
        mask = np.zeros((size, size), dtype=np.bool_)
        if defect is not None:
            levels = photograph(defect)
            mask = visible_change(normal, levels)
        return sense(np.random.default_rng(sensor), levels), mask


DEMO_PRODUCTS: Registry[DemoProduct] = Registry("demo product")


def demo_product(name: str, description: str, *, defects: tuple[str, ...]) -> Callable[[Draw], Draw]:
    """Return a decorator that files a drawing function as a demo product."""

    def add(draw: Draw) -> Draw:
        DEMO_PRODUCTS.register(name)(DemoProduct(name, description, defects, draw))
        return draw

    return add
