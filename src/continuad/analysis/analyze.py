"""All of chapter 4 on some products: importances, figures, tables and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from continuad.analysis import charts, kept, maps
from continuad.analysis.areas import mean_anomaly_areas
from continuad.analysis.report import Figures, Section, write_page
from continuad.analysis.result import Analysis
from continuad.analysis.selected import (
    Uses,
    columns,
    layer_use,
    selected_features,
    shared_share,
)
from continuad.analysis.separation import Accuracy, classify, embed
from continuad.analysis.study import Study, StudySettings
from continuad.backbones import Backbone, fingerprint
from continuad.datasets.task import Task
from continuad.durable import write_whole
from continuad.images import load_stack
from continuad.needs import needed
from continuad.progress import Progress, silent


def analyze(
    backbone: Backbone,
    tasks: Sequence[Task],
    settings: StudySettings,
    folder: Path,
    *,
    command: str = "",
    progress: Progress = silent,
    found: Callable[[str], None] | None = None,
) -> Analysis:
    """Look at what a teacher's features are for, and write it into a folder.

    It gets importance/PRODUCT.safetensors, figures/NAME.svg and .png, components.csv and report.html. The
    importances of a product are kept as soon as they are found: interrupted or killed, the same call goes on.

    Args:
        backbone: the teacher.
        tasks: the products, one or more.
        settings: what is looked at.
        folder: is created.
        command: what repeats it, for the page.
        progress: told about long work.
        found: called with the name of each product whose importances were not kept before.

    Raises:
        SettingsError: the backbone has no such block.
        DatasetError: a product has not two images, or nothing differs in the images of any.
        ImageError: an image cannot be read.
        ContinuadError: matplotlib or jinja2 is not installed, or the folder cannot be written or is in use.
    """
    for module in ("matplotlib", "jinja2"):
        needed(module)
    study = Study(backbone, tasks, settings, folder / "importance")
    with kept.held(folder):
        study.find(progress=progress, found=found)
        sections = _sections(settings)
        figures = Figures(folder / "figures")
        uses = _uses(study)
        features = sum(len(each) for each in columns(uses).values())
        write_whole(folder / "components.csv", _table(study, uses))
        figures.add(sections["counts"], "components", _COMPONENTS, charts.components(uses))
        figures.add(sections["importance"], "importance", _BOXES, charts.boxes(uses))
        figures.add(sections["usage"], "usage", _USAGE, charts.usage(uses))
        _draw_maps(study, uses, figures, sections, progress)
        accuracy = _tell_apart(study, uses, figures, sections["products"], progress)
        areas = mean_anomaly_areas(tasks, progress=progress)
        if areas:
            figures.add(sections["areas"], "areas", "Mean anomaly area.", charts.areas(areas))
        analysis = Analysis(uses, settings.percent, features, shared_share(uses), accuracy, areas)
        write_page(
            folder / "report.html",
            title=f"What the features of {backbone.name} are for",
            uses=uses,
            images={name: len(images) for name, images in study.images.items()},
            settings=settings.importance,
            findings=analysis.sentences(),
            sections=list(sections.values()),
            facts=_facts(study),
            command=command,
        )
    return analysis


_COMPONENTS = (
    "Components of each layer as estimated at a sample of the positions; a line marks the exact number."
)
_BOXES = "Importances of the selected features; a box has the middle half of them."
_USAGE = (
    "Positions at which each channel is selected, over all layers by the channel's number, and in each layer."
)


def _sections(settings: StudySettings) -> dict[str, Section]:
    percent = f"{settings.percent:g} %"
    return {
        section.name: section
        for section in (
            Section(
                "counts",
                "Components by position",
                "The more components a position takes, the more ways its features vary in: few where all "
                "images are alike. What takes few components at 80 % of the variance may take many at 99 %.",
            ),
            Section(
                "importance",
                "Importance",
                f"At each position the most important {percent} of the channels are selected. Where their "
                "importances add up to much, few channels carry the variance. The importances of all "
                "channels add up to 1 at every position; what differs is their variance. Where nothing "
                "varies, in grey, nothing is selected.",
            ),
            Section(
                "usage",
                "Usage of channels",
                'At how many positions each channel is selected. Where it says "half by 6 of 64", six '
                "channels make up half of the selection: the fewer, the more a product rests on the same "
                "ones everywhere.",
            ),
            Section(
                "products",
                "Products told apart",
                "Each point is an image, laid out by t-SNE from the features that at least one product "
                "selects: where products keep apart, their features tell them apart.",
            ),
            Section(
                "areas",
                "Size of defects",
                "Mean over the defective test images of the pixels that their masks mark; products without "
                "masks are left out.",
            ),
        )
    }


def _uses(study: Study) -> Uses:
    """Select the features of each product, whose importances are in memory no longer than that."""
    percent = study.settings.percent
    return {
        product: {layer: layer_use(each, percent) for layer, each in study.importance(product).items()}
        for product in study.images
    }


def _draw_maps(
    study: Study, uses: Uses, figures: Figures, sections: Mapping[str, Section], progress: Progress
) -> None:
    for done, (product, images) in enumerate(study.images.items()):
        progress(done, len(study.images), "drawing")
        found = study.importance(product)
        photo = load_stack(images[:1], study.settings.image_size)[0]
        figures.add(
            sections["counts"],
            f"components_{product}",
            f"Components that each position takes, {product}.",
            maps.component_maps(found),
        )
        figures.add(
            sections["importance"],
            f"importance_{product}",
            f"Importance of each position's features, {product}.",
            maps.heatmaps(found, uses[product], photo, study.settings.percent),
        )


def _tell_apart(
    study: Study, uses: Uses, figures: Figures, section: Section, progress: Progress
) -> Accuracy | None:
    """Lay the images out and classify them by the selected features; None for a single product."""
    if len(uses) < 2:
        return None
    wanted, settings = columns(uses), study.settings
    images = [image for each in study.images.values() for image in each]
    products = [name for name, each in study.images.items() for _ in each]
    matrix = selected_features(study.backbone, images, wanted, settings.image_size, progress=progress)
    progress(0, 2, "laying images out")
    points = embed(matrix, seed=settings.seed)
    progress(1, 2, "recognising products")
    accuracy = classify(matrix, products, seed=settings.seed)
    progress(2, 2, "recognising products")
    caption = f"{len(images):,} images by {matrix.shape[1]:,} features."
    figures.add(section, "tsne", caption, charts.embedding(points, products))
    return accuracy


def _table(study: Study, uses: Uses) -> bytes:
    """The numbers of components as CSV."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["product", "layer", "channels", "height", "width", "images", "estimated", "exact", "selected"]
    )
    for product, layers in uses.items():
        images = len(study.images[product])
        writer.writerows(
            [product, layer, *use.mask.shape, images, use.components, use.exact, int(use.mask.sum())]
            for layer, use in layers.items()
        )
    return stream.getvalue().encode()


def _facts(study: Study) -> dict[str, str]:
    settings = study.settings
    return {
        "backbone": study.backbone.name,
        "weights": f"sha256 {fingerprint(study.backbone)}",
        "layers": ", ".join(study.layers),
        "products": ", ".join(study.images),
        "images": f"{settings.images}, {settings.image_size} x {settings.image_size} pixels",
        "selected": f"{settings.percent:g} %",
        "seed": str(settings.seed),
        **{name: f"{value:g}" for name, value in asdict(settings.importance).items()},
    }
