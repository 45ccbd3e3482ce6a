"""What features are for: studies on disk, what is selected, figures, and the whole of it."""

from __future__ import annotations

import csv
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from conftest import end_child, snapshot, start_child, watched
from continuad.analysis import Study, StudySettings, analyze, kept, selected
from continuad.analysis.areas import mean_anomaly_areas
from continuad.analysis.selected import LayerUse, columns, layer_use, selected_features, shared_share
from continuad.analysis.separation import classify, embed
from continuad.backbones import Backbone, create_backbone
from continuad.datasets import load_tasks
from continuad.datasets.demo import demo_task, write_mvtec
from continuad.datasets.task import Sample, Task
from continuad.detectors.importance import LayerImportance, feature_importance
from continuad.errors import ContinuadError, DatasetError, ImageError, SettingsError
from continuad.images import load_stack
from continuad.progress import Progress

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from continuad.analysis import charts, maps  # noqa: E402
from continuad.plotting import COLOURS, svg  # noqa: E402

SETTINGS = StudySettings(("layer1", "layer2"), image_size=64, percent=10)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone("tiny", weights="random")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two products in the MVTec layout; the masks of "wood" are missing."""
    root = tmp_path_factory.mktemp("data")
    for name in ("cap", "wood"):
        write_mvtec(demo_task(name, size=64, train=8, good=2, defective=2), root / name)
    for mask in (root / "wood" / "ground_truth").rglob("*.png"):
        mask.unlink()
    return root


@pytest.fixture(scope="module")
def tasks(data: Path) -> list[Task]:
    return load_tasks(data)


@pytest.fixture(scope="module")
def whole(backbone: Backbone, tasks: list[Task], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an analysis that was run through."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    analyze(backbone, tasks, SETTINGS, folder)
    return folder


@pytest.fixture(scope="module")
def found(backbone: Backbone, tasks: list[Task]) -> Mapping[str, Mapping[str, LayerImportance]]:
    return {
        task.name: feature_importance(backbone, torch.from_numpy(load_stack(task.train, 64)), SETTINGS.layers)
        for task in tasks
    }


@pytest.fixture(scope="module")
def uses(found: Mapping[str, Mapping[str, LayerImportance]]) -> dict[str, dict[str, LayerUse]]:
    return {
        product: {layer: layer_use(each, SETTINGS.percent) for layer, each in layers.items()}
        for product, layers in found.items()
    }


def same(one: Mapping[str, LayerImportance], other: Mapping[str, LayerImportance]) -> bool:
    return list(one) == list(other) and all(
        np.array_equal(value, vars(other[layer])[name])
        for layer, each in one.items()
        for name, value in vars(each).items()
    )


def searched(backbone: Backbone, tasks: list[Task], settings: StudySettings, folder: Path) -> list[str]:
    """The products that a study had to look at."""
    names: list[str] = []
    Study(backbone, tasks, settings, folder).find(found=names.append)
    return names


# --- a study


def test_a_study_keeps_what_feature_importance_finds(
    backbone: Backbone, tasks: list[Task], found: Mapping[str, Mapping[str, LayerImportance]], tmp_path: Path
) -> None:
    study = Study(backbone, tasks, SETTINGS, tmp_path)
    study.find()
    for product, layers in found.items():
        assert same(study.importance(product), layers)


def test_what_is_kept_is_not_looked_for_again(
    backbone: Backbone, tasks: list[Task], data: Path, tmp_path: Path
) -> None:
    assert searched(backbone, tasks[:1], SETTINGS, tmp_path) == ["cap"]
    assert searched(backbone, tasks, SETTINGS, tmp_path) == ["wood"]
    moved = [Task(task.name, [Path(str(image)).read_bytes() for image in task.train]) for task in tasks]
    elsewhere = tmp_path / "moved"
    for task in moved:
        (elsewhere / task.name).mkdir(parents=True)
        for index, image in enumerate(task.train):
            (elsewhere / task.name / f"{index:03}.png").write_bytes(image)  # type: ignore[arg-type]
    copies = [Task(task.name, sorted((elsewhere / task.name).iterdir())) for task in moved]
    other_percent = StudySettings(SETTINGS.layers, image_size=64, percent=50)
    before = snapshot(tmp_path)
    assert searched(backbone, copies, other_percent, tmp_path) == []
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "changes",
    [{"layers": ("layer1",)}, {"images": "test"}, {"image_size": 32}, {"seed": 1}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_it_depends_on_is_noticed(
    backbone: Backbone, tasks: list[Task], tmp_path: Path, changes: dict[str, Any]
) -> None:
    searched(backbone, tasks[:1], SETTINGS, tmp_path)
    changed = StudySettings(**{**vars(SETTINGS), **changes})
    assert searched(backbone, tasks[:1], changed, tmp_path) == ["cap"]


def test_other_images_and_weights_are_noticed(backbone: Backbone, tasks: list[Task], tmp_path: Path) -> None:
    (task, _) = tasks
    searched(backbone, [task], SETTINGS, tmp_path)
    fewer = Task(task.name, task.train[1:])
    assert searched(backbone, [fewer], SETTINGS, tmp_path) == ["cap"]
    other = create_backbone("tiny", weights="random")
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    assert searched(other, [fewer], SETTINGS, tmp_path) == ["cap"]


def test_a_damaged_file_is_replaced(backbone: Backbone, tasks: list[Task], tmp_path: Path) -> None:
    searched(backbone, tasks[:1], SETTINGS, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"x" * 100):
        file.write_bytes(damaged)
        assert searched(backbone, tasks[:1], SETTINGS, tmp_path) == ["cap"]
        assert file.read_bytes() == whole


def test_killed_at_any_moment_no_half_written_file_is_taken(
    found: Mapping[str, Mapping[str, LayerImportance]], tmp_path: Path
) -> None:
    file = tmp_path / "importance" / "cap.safetensors"

    def killed(at: int) -> None:
        with watched(lambda number, _: os.kill(os.getpid(), signal.SIGKILL) if number == at else None):
            kept.keep(file, found["cap"], {"attempt": "new"})

    at = 1
    while end_child(start_child(lambda: killed(at))) == -signal.SIGKILL:  # noqa: B023
        if kept.is_kept(file, {"attempt": "new"}):
            assert same(kept.load(file), found["cap"])
        else:
            assert not file.exists()
        at += 1
    assert at > 4
    assert kept.is_kept(file, {"attempt": "new"})
    (tmp_path / "importance" / "cap.safetensors.1.tmp").write_bytes(b"half")
    (tmp_path / "my.tmp").write_bytes(b"mine")
    with kept.held(tmp_path):
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        assert (tmp_path / "my.tmp").exists()


def test_layers_stay_in_order(found: Mapping[str, Mapping[str, LayerImportance]], tmp_path: Path) -> None:
    layers = dict(zip(("blocks.4", "blocks.10"), found["cap"].values(), strict=True))
    kept.keep(tmp_path / "file", layers, {})
    assert same(kept.load(tmp_path / "file"), layers)


def test_two_cannot_write_into_a_folder(tmp_path: Path) -> None:
    with kept.held(tmp_path), pytest.raises(ContinuadError, match="Another analysis"), kept.held(tmp_path):
        pass


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": ()}, "no layer"),
        ({"percent": 0.0}, "percent is 0.0"),
        ({"percent": float("nan")}, "percent is nan"),
        ({"percent": 101.0}, "percent is 101.0"),
        ({"images": "some"}, "'some'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        StudySettings(**{"layers": ("layer1",), **settings})


def test_a_study_of_nothing_is_refused(backbone: Backbone, tasks: list[Task], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no block 'layer9'"):
        Study(backbone, tasks, StudySettings(("layer9",)), tmp_path)
    one = Task("bolt", tasks[0].train[:1])
    with pytest.raises(DatasetError, match="'bolt' has 1 train images"):
        Study(backbone, [*tasks, one], SETTINGS, tmp_path)
    untested = Task("bolt", tasks[0].train)
    with pytest.raises(DatasetError, match="'bolt' has no test images"):
        Study(backbone, [untested], StudySettings(("layer1",), images="test"), tmp_path)
    missing = Task("bolt", [tmp_path / "none.png", tmp_path / "neither.png"])
    with pytest.raises(ImageError, match=r"none\.png"):
        Study(backbone, [missing], SETTINGS, tmp_path).find()


# --- what is selected


def use(*channels: int) -> LayerUse:
    """A layer of four channels at two positions; those selected at the first."""
    mask = np.zeros((4, 1, 2), np.bool_)
    mask[list(channels), 0, 0] = True
    return LayerUse(1, 1, np.ones((1, 2), np.bool_), mask, np.full(len(channels), 0.5, np.float32))


def test_columns_are_the_union_over_products() -> None:
    uses = {
        "a": {"one": use(0, 1), "two": use(3)},
        "b": {"one": use(1), "two": use(2)},
        "c": {"one": use(1, 3), "two": use(2)},
    }
    wanted = columns(uses)
    assert {layer: each.tolist() for layer, each in wanted.items()} == {"one": [0, 2, 6], "two": [4, 6]}
    assert shared_share(uses) == 2 / 5
    assert shared_share({"a": uses["a"]}) == 0


def test_images_that_are_all_alike_are_refused(backbone: Backbone, tasks: list[Task], tmp_path: Path) -> None:
    alike = [Task(task.name, [task.train[0]] * 3) for task in tasks]
    with pytest.raises(DatasetError, match="No feature varies"):
        analyze(backbone, alike, StudySettings(("layer2",), image_size=32), tmp_path)
    one = analyze(backbone, [tasks[0], alike[1]], StudySettings(("layer2",), image_size=32), tmp_path)
    assert one.uses["wood"]["layer2"].mask.sum() == one.shared == 0
    assert one.accuracy is not None


def test_a_selection_has_its_values(found: Mapping[str, Mapping[str, LayerImportance]]) -> None:
    importance = found["cap"]["layer1"].importance
    chosen = layer_use(found["cap"]["layer1"], 10)
    assert (chosen.mask.sum(0) == 2).all()  # of 16 channels
    assert chosen.usage.tolist() == [int(each.sum()) for each in chosen.mask]
    assert sorted(chosen.values) == sorted(np.sort(importance, 0)[-2:].ravel())


def test_where_nothing_varies_nothing_is_selected(backbone: Backbone, tasks: list[Task]) -> None:
    images = torch.from_numpy(load_stack(tasks[0].train, 64))
    images[:, :, :, 40:] = 255
    layer = feature_importance(backbone, images, ["layer1"])["layer1"]
    chosen = layer_use(layer, 10)
    assert not chosen.varies[:, 11:].any()
    assert chosen.varies[:, :10].all()
    np.testing.assert_array_equal(chosen.mask.any(0), chosen.varies)
    photo = np.zeros((3, 64, 64), np.uint8)
    _, top, _ = (
        image.get_array()
        for axes in maps.heatmaps({"layer1": layer}, {"layer1": chosen}, photo, 10).axes
        for image in axes.images
    )
    np.testing.assert_array_equal(np.ma.getmaskarray(top), ~chosen.varies)


def test_streamed_features_are_those_of_all_images_at_once(
    backbone: Backbone,
    tasks: list[Task],
    uses: dict[str, dict[str, LayerUse]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selected, "BATCH", 3)
    images = [image for task in tasks for image in task.train]
    streamed = selected_features(backbone, images, columns(uses), 64)
    with torch.no_grad():
        features = backbone.features(torch.from_numpy(load_stack(images, 64)), SETTINGS.layers)
    either = {layer: uses["cap"][layer].mask | uses["wood"][layer].mask for layer in SETTINGS.layers}
    expected = np.concatenate([features[layer].numpy()[:, mask] for layer, mask in either.items()], 1)
    assert streamed.dtype == np.float32
    assert len(streamed) == 16
    np.testing.assert_allclose(streamed, expected, rtol=1e-5, atol=1e-6)


# --- whether products are told apart


def clouds(sizes: Mapping[str, int], distance: float) -> tuple[NDArray[np.float32], list[str]]:
    rng = np.random.default_rng(0)
    names = [name for name, size in sizes.items() for _ in range(size)]
    centres = {name: distance * rng.normal(size=30) for name in sizes}
    return np.array([centres[name] + rng.normal(size=30) for name in names], np.float32), names


def test_classifiers_are_tested_on_a_fifth_of_each_product() -> None:
    apart = classify(*clouds({"a": 5, "b": 13, "c": 2}, 9), seed=0)
    assert (apart.forest, apart.mlp) == (1, 1)
    assert (apart.learnt, apart.held_out) == (20 - 1 - 3 - 1, 1 + 3 + 1)
    alike = classify(*clouds({"a": 60, "b": 60}, 0), seed=0)
    assert 0.2 < alike.forest < 0.8
    assert 0.2 < alike.mlp < 0.8
    assert alike == classify(*clouds({"a": 60, "b": 60}, 0), seed=0)
    assert alike != classify(*clouds({"a": 60, "b": 60}, 0), seed=1)


@pytest.mark.parametrize("sizes", [{"a": 2, "b": 2}, {"a": 40, "b": 60}], ids=["few", "many"])
def test_an_embedding_keeps_neighbours(sizes: dict[str, int]) -> None:
    features, names = clouds(sizes, 20)
    points = embed(features, seed=0)
    assert points.shape == (len(names), 2)
    np.testing.assert_array_equal(points, embed(features, seed=0))
    if len(names) > 4:
        distances = np.linalg.norm(points[:, None] - points, axis=2) + np.diag([np.inf] * len(names))
        assert [names[each] for each in distances.argmin(1)] == names


def test_anomaly_areas_are_of_masks_alone() -> None:
    def mask(marked: int) -> NDArray[np.bool_]:
        return (np.arange(100) < marked).reshape(10, 10)

    photo = np.zeros((10, 10, 3), np.uint8)
    normal = Sample(photo, is_anomalous=False)
    tested = [normal, Sample(photo, True, mask=mask(10)), Sample(photo, True, mask=mask(30))]
    tasks = [
        Task("a", [photo], [*tested, Sample(photo, True)]),
        Task("b", [photo], [normal, Sample(photo, True)]),
    ]
    assert mean_anomaly_areas(tasks) == {"a": pytest.approx(0.2)}


# --- figures


@pytest.fixture
def settings_stay() -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def pictures(figure: Any) -> list[NDArray[Any]]:
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]


@pytest.mark.usefixtures("settings_stay")
def test_maps_count_components_at_each_share_of_the_variance(
    found: Mapping[str, Mapping[str, LayerImportance]],
) -> None:
    shown = pictures(maps.component_maps(found["cap"]))
    assert len(shown) == 2 * 9
    for number, layer in enumerate(SETTINGS.layers):
        for picture, variance in zip(shown[9 * number :], maps.VARIANCES, strict=False):
            np.testing.assert_array_equal(picture, found["cap"][layer].counts(variance))


@pytest.mark.usefixtures("settings_stay")
def test_heatmaps_sum_the_importances_of_what_is_selected(
    found: Mapping[str, Mapping[str, LayerImportance]], uses: dict[str, dict[str, LayerUse]]
) -> None:
    photo = np.zeros((3, 64, 64), np.uint8)
    shown = pictures(maps.heatmaps(found["cap"], uses["cap"], photo, 10))
    assert shown[0].shape == (64, 64, 3)
    for number, layer in enumerate(SETTINGS.layers):
        top, variance = shown[1 + 2 * number : 3 + 2 * number]
        importance = found["cap"][layer].importance
        np.testing.assert_allclose(top, np.sort(importance, 0)[-len(importance) // 8 :].sum(0), rtol=1e-5)
        np.testing.assert_allclose(variance, (found["cap"][layer].std ** 2).sum(0))


@pytest.mark.usefixtures("settings_stay")
def test_charts_show_the_numbers(uses: dict[str, dict[str, LayerUse]]) -> None:
    bars = charts.components(uses)
    for axes, layer in zip(bars.axes, SETTINGS.layers, strict=True):
        assert [bar.get_width() for bar in axes.patches] == [uses[p][layer].components for p in uses]  # type: ignore[attr-defined]
    (axes,) = charts.boxes(uses).axes
    medians = [float(line.get_ydata()[0]) for line in axes.lines if line.get_color() == "white"]  # type: ignore[index]
    np.testing.assert_allclose(
        medians, [np.median(uses[product][layer].values) for layer in SETTINGS.layers for product in uses]
    )
    points = np.arange(8, dtype=np.float32).reshape(4, 2)
    (axes,) = charts.embedding(points, ["a", "b", "a", "b"]).axes
    np.testing.assert_array_equal(axes.collections[1].get_offsets(), points[1::2])
    (axes,) = charts.areas({"a": 0.01, "b": 0.05, "c": 0.02}).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["b", "c", "a"]


@pytest.mark.usefixtures("settings_stay")
def test_usage_counts_channels_over_all_positions(uses: dict[str, dict[str, LayerUse]]) -> None:
    one, two = (uses["cap"][layer].usage for layer in SETTINGS.layers)
    rows = np.array(charts.usage(uses).axes).reshape(2, 3)
    shown = [axes.patches[0].get_data().values for axes in rows[0]]
    np.testing.assert_array_equal(shown[0], np.pad(one, (0, len(two) - len(one))) + two)
    np.testing.assert_array_equal(shown[1], one)
    np.testing.assert_array_equal(shown[2], two)


@pytest.mark.parametrize(
    ("counts", "number"), [([1, 1, 1, 1], 2), ([0, 9, 1], 1), ([3, 2, 2, 2], 2), ([3, 2, 2, 2, 2], 3)]
)
def test_half_of_the_uses(counts: list[int], number: int) -> None:
    assert charts.half(np.array(counts)) == number


@pytest.mark.usefixtures("settings_stay")
def test_more_products_than_colours_are_still_told_apart() -> None:
    names = [f"product {number}" for number in range(len(COLOURS) + 1)]
    uses = {name: {"one": use(0), "two": use(1)} for name in names}
    for figure in (charts.components(uses), charts.boxes(uses), charts.usage(uses)):
        ElementTree.fromstring(svg(figure, "many"))
    figure = charts.embedding(np.zeros((len(names), 2), np.float32), names)
    looks = {
        (tuple(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes())  # type: ignore[index,union-attr]
        for points in figure.axes[0].collections
    }
    assert len(looks) == len(names)


# --- all of it


def test_an_analysis_leaves_tables_figures_and_a_page(
    whole: Path, uses: dict[str, dict[str, LayerUse]]
) -> None:
    with (whole / "components.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["product"], row["layer"]) for row in rows] == [
        (product, layer) for product in uses for layer in SETTINGS.layers
    ]
    for row in rows:
        chosen = uses[row["product"]][row["layer"]]
        shape = [int(row[name]) for name in ("channels", "height", "width")]
        assert (*shape, int(row["images"])) == (*chosen.mask.shape, 8)
        assert int(row["estimated"]) == chosen.components
        assert int(row["exact"]) == chosen.exact
        assert int(row["selected"]) == chosen.mask.sum()
    of_each = [f"{kind}_{product}" for kind in ("components", "importance") for product in uses]
    names = {*of_each, "components", "importance", "usage", "tsne", "areas"}
    assert {path.name for path in (whole / "figures").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "png")
    }
    for name in names:
        with Image.open(whole / "figures" / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5
        assert ElementTree.parse(whole / "figures" / f"{name}.svg").getroot().tag == f"{SVG}svg"


def test_the_page_needs_nothing_beside_it(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    assert page.count("<figure") == 9
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)
    assert "<script" not in page
    assert "random forest recognises" in page
    assert "The smallest defects are those of cap" in page


def interrupting(at: str) -> Progress:
    def progress(done: int, total: int, what: str, /) -> None:
        if what.startswith(at):
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    ("at", "is_kept"),
    [("cap", []), ("cap: taking", []), ("wood: reading", ["cap"]), ("wood: taking", ["cap"])],
)
def test_an_interrupted_study_goes_on_with_the_product_that_it_was_at(
    backbone: Backbone,
    tasks: list[Task],
    found: Mapping[str, Mapping[str, LayerImportance]],
    tmp_path: Path,
    at: str,
    is_kept: list[str],
) -> None:
    study = Study(backbone, tasks, SETTINGS, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        study.find(progress=interrupting(at))
    assert [path.stem for path in tmp_path.iterdir()] == is_kept
    assert [*is_kept, *searched(backbone, tasks, SETTINGS, tmp_path)] == ["cap", "wood"]
    assert all(same(study.importance(product), layers) for product, layers in found.items())


def test_interrupted_twice_the_same_call_ends_as_if_it_had_not_been(
    backbone: Backbone, tasks: list[Task], whole: Path, tmp_path: Path
) -> None:
    for at in ("wood: taking", "drawing"):
        with pytest.raises(KeyboardInterrupt):
            analyze(backbone, tasks, SETTINGS, tmp_path, progress=interrupting(at))
        assert not (tmp_path / "report.html").exists()
    found: list[str] = []
    analyze(backbone, tasks, SETTINGS, tmp_path, found=found.append)
    assert found == []
    assert snapshot(tmp_path) == snapshot(whole)


def test_a_single_product_has_nothing_to_be_told_apart_from(
    backbone: Backbone, tasks: list[Task], tmp_path: Path
) -> None:
    analysis = analyze(backbone, tasks[1:], SETTINGS, tmp_path)
    assert analysis.accuracy is None
    assert analysis.areas == {}
    said = " ".join(analysis.sentences())
    assert "There is a single product" in said
    assert "No test image has a mask" in said
    assert not {path.stem for path in (tmp_path / "figures").iterdir()} & {"tsne", "areas"}
    assert "There is a single product" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_without_what_reports_need_nothing_is_begun(
    backbone: Backbone, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ContinuadError, match=rf'{module} is not installed.*pip install "continuad\[report\]"'
    ):
        analyze(backbone, tasks, SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(
    backbone: Backbone, tasks: list[Task], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ContinuadError, match="file cannot be read or written"):
        analyze(backbone, tasks, SETTINGS, tmp_path / "file")
