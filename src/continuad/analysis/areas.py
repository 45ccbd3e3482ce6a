"""How large a product's defects are."""

from __future__ import annotations

from collections.abc import Sequence

from continuad.datasets.task import Task
from continuad.images import load_mask
from continuad.progress import Progress, silent


def mean_anomaly_areas(tasks: Sequence[Task], *, progress: Progress = silent) -> dict[str, float]:
    """Return the mean share of pixels that the masks of each product's test images mark, by product.

    Products without masks are left out, and so are images without one: a normal image does not make the
    defects smaller.

    Raises:
        ImageError: a mask cannot be read.
    """
    areas = {}
    for task in tasks:
        masks = [sample.mask for sample in task.test if sample.mask is not None]
        shares = []
        for done, mask in enumerate(masks):
            progress(done, len(masks), f"{task.name}: measuring defects")
            shares.append(float(load_mask(mask).mean()))
        if shares:
            areas[task.name] = sum(shares) / len(shares)
    return areas
