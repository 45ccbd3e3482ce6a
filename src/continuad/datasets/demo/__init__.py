"""Demo products: parts rendered by code, normal and defective, with exact masks; no download, no licence.

An image depends only on the seed, the product, its split and its number: asking for more changes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np

# each product registers itself in DEMO_PRODUCTS when its module is imported, in this order
from continuad.datasets.demo import blister, cap, circuit, fabric, flange, leather, screw, wood  # noqa: F401
from continuad.datasets.demo.export import write_mvtec
from continuad.datasets.demo.product import DEMO_PRODUCTS, DemoProduct
from continuad.datasets.task import Sample, Task
from continuad.errors import SettingsError
from continuad.progress import Progress, silent

__all__ = ["DEMO_PRODUCTS", "DemoProduct", "demo_task", "demo_tasks", "write_mvtec"]

SMALLEST = 64
"""Below this many pixels a side, fine defects vanish."""


def demo_task(
    name: str,
    *,
    size: int = 256,
    train: int = 60,
    good: int = 10,
    defective: int = 20,
    seed: int = 0,
    progress: Progress = silent,
) -> Task:
    """Render one product: `train` normal images to learn, `good` normal and `defective` ones to test on.

    Args:
        name: a key of `DEMO_PRODUCTS`.
        size: pixels a side.
        train: normal images to learn from.
        good: normal images among the test images.
        defective: defective test images, spread evenly over the product's kinds of defect.
        seed: same seed, same bytes; not negative.
        progress: told about each image.

    Returns:
        A task of arrays: images uint8 (size, size, 3), masks bool (size, size), None for normal images.

    Raises:
        SettingsError: there is no such product, or a number is out of range.
    """
    product = DEMO_PRODUCTS[name]
    if size < SMALLEST:
        raise SettingsError(
            f"A demo image cannot have {size} pixels a side.", f"Give a size of at least {SMALLEST}."
        )
    if min(train, good, defective, seed) < 0:
        raise SettingsError(
            "The demo was given a negative number of images or seed.", "Give numbers of at least 0."
        )
    total = train + good + defective
    done = 0

    def render(split: str, index: int, defect: str | None = None) -> Sample:
        nonlocal done
        progress(done, total, f"rendering {name}")
        done += 1
        rng = np.random.default_rng([seed, crc32(name.encode()), crc32(split.encode()), index])
        image, mask = product.render(rng, size, defect)
        if defect is None:
            return Sample(image, is_anomalous=False)
        return Sample(image, is_anomalous=True, defect=defect, mask=mask)

    learned = [render("train", index).image for index in range(train)]
    normal = [render("good", index) for index in range(good)]
    kinds = product.defects
    flawed = [render("defective", index, kinds[index % len(kinds)]) for index in range(defective)]
    progress(total, total, f"rendering {name}")
    return Task(name, learned, [*normal, *flawed])


def demo_tasks(
    names: Sequence[str] | None = None,
    *,
    size: int = 256,
    train: int = 60,
    good: int = 10,
    defective: int = 20,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Task]:
    """Render several products, or all of them; see `demo_task`."""
    return [
        demo_task(name, size=size, train=train, good=good, defective=defective, seed=seed, progress=progress)
        for name in (DEMO_PRODUCTS if names is None else names)
    ]
