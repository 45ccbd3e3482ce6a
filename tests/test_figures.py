from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from continuad import plotting
from continuad.bench import figures
from continuad.bench.runner import FinishedRun
from continuad.bench.summary import Group, groups, labels
from continuad.errors import ContinuadError
from made_runs import FORGETS, HOLDS, KEEPS, Scores, made, seeds

matplotlib = pytest.importorskip("matplotlib")

SINGLE: Scores = [[0.5], [0.6], [0.7]]
UNKNOWN: Scores = [[0.5], [0.5, None], [0.5, None, 0.7]]


@pytest.fixture(autouse=True)
def settings_stay() -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def together(*runs: FinishedRun) -> tuple[list[Group], list[str]]:
    found = groups(runs)
    return found, labels(found)


def axes_of(figure: Any) -> list[Any]:
    assert figure is not None
    return list(figure.axes)


def only(found: Any) -> Any:
    (one,) = found
    return one


def texts(axes: Any) -> list[str]:
    return [each.get_text() for each in axes.texts]


def test_lines_are_the_means_over_tasks_and_seeds() -> None:
    runs = [*seeds("fine-tuning", 0, 0.1, scores=FORGETS), made("joint", SINGLE, scenario="single")]
    figure = figures.over_time(*together(*runs, made("replay", HOLDS)), "p_f1max", "P-F1")
    axes = only(axes_of(figure))
    tuned, replay = axes.lines
    np.testing.assert_allclose(tuned.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(tuned.get_ydata(), np.array([0.8, 0.6, 1.4 / 3]) + 0.05)
    np.testing.assert_allclose(replay.get_ydata(), [0.8, 0.7, 2.12 / 3])
    assert [tuned.get_color(), replay.get_color()] == [plotting.COLOURS[0], plotting.COLOURS[2]]
    assert texts(axes) == ["fine-tuning, continual", "replay, continual"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["bolt", "nut", "cap"]
    assert axes.get_ylabel() == "P-F1"


def test_columns_are_added_and_divided() -> None:
    runs = together(made("replay", model=2048, memory=1024))
    axes = only(axes_of(figures.over_time(*runs, "model_bytes+memory_bytes", "KiB", unit=1024)))
    np.testing.assert_allclose(only(axes.lines).get_ydata(), [3, 3, 3])


def test_orders_that_differ_are_numbered() -> None:
    runs = together(made("replay"), made("replay", tasks=("nut", "bolt", "cap")))
    axes = only(axes_of(figures.over_time(*runs, "p_f1max", "P-F1")))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "3"]


def test_a_line_ends_where_it_is_known_and_is_labelled_there() -> None:
    runs = together(made("replay", [[0.5], [0.5, 0.7], [0.5, None, 0.7]]), made("ewc"))
    axes = only(axes_of(figures.over_time(*runs, "p_f1max", "P-F1")))
    assert math.isnan(axes.lines[0].get_ydata()[2])
    assert axes.texts[0].xy == (2.0, pytest.approx(0.6))


def test_there_is_no_line_where_there_is_nothing() -> None:
    single = together(made("joint", SINGLE, scenario="single"))
    assert figures.over_time(*single, "p_f1max", "P-F1") is None
    assert figures.over_time(*together(made("replay")), "routing_accuracy", "routing") is None
    assert figures.over_time(*together(made("replay")), "memory_bytes", "memory") is None
    assert figures.over_time([], [], "p_f1max", "P-F1") is None
    mixed = together(made("replay"), made("routed", routing=0.9))
    axes = only(axes_of(figures.over_time(*mixed, "routing_accuracy", "routing")))
    assert texts(axes) == ["routed"]
    assert only(axes.lines).get_color() == plotting.COLOURS[1]


def test_points_are_memory_and_metric_with_their_deviation() -> None:
    runs = together(*seeds("replay", 0, 0.2, memory=2**20 - 1024), *seeds("ewc", 0.05, model=2**20))
    axes = only(axes_of(figures.accuracy_memory(*runs, "p_f1max")))
    assert axes.get_xscale() == "log"
    (replay, _, (bar,)), (ewc, _, _) = axes.containers
    np.testing.assert_allclose([*replay.get_xdata(), *replay.get_ydata()], [2, 0.7])
    np.testing.assert_allclose([*ewc.get_xdata(), *ewc.get_ydata()], [2, 0.65])
    ((_, low), (_, high)) = only(bar.get_segments())
    assert (high - low) / 2 == pytest.approx(math.sqrt(0.02))
    assert texts(axes) == ["replay", "ewc"]
    low, high = axes.get_xlim()
    assert low < 2 < high
    assert len(axes.get_xticks()) >= 1


def test_a_single_point_is_no_figure() -> None:
    assert figures.accuracy_memory(*together(made("replay")), "p_f1max") is None
    assert figures.accuracy_memory(*together(made("replay"), made("ewc", UNKNOWN)), "p_f1max") is None


def test_labels_keep_apart_and_in_order() -> None:
    values, heights = np.array([5.0, 5.0, 9.0, 4.9, 0.0]), np.array([1.0, 2.0, 1.0, 1.0, 1.0])
    moved = figures._apart(values, heights)
    order = np.argsort(moved)
    assert order.tolist() == [4, 3, 0, 1, 2]
    gaps = np.diff(moved[order])
    assert (gaps >= (heights[order][1:] + heights[order][:-1]) / 2 - 1e-9).all()
    assert moved[[2, 4]].tolist() == [9.0, 0.0]
    assert moved[[0, 1, 3]].mean() == pytest.approx(values[[0, 1, 3]].mean())


def _widths(axes: Any) -> NDArray[np.float64]:
    return np.array([bar.get_width() for bar in axes.patches])


def test_stored_items_are_drawn_in_kib_beside_the_score() -> None:
    runs = together(
        made("replay", memory=8192, items=2),
        made("ewc", memory=4096),
        made("compressed-replay", memory=2048, items=2, shift=-0.1),
        made("compressed-replay", UNKNOWN, memory=512, items=1, codec="float16"),
    )
    figure = figures.replay_memory(*runs)
    memory, scores = axes_of(figure)
    np.testing.assert_allclose(_widths(memory), [4, 1, 0.5])
    np.testing.assert_allclose(_widths(scores), [0.6, 0.5, 0])
    assert texts(scores) == ["0.600", "0.500", "-"]
    assert [bar.get_facecolor()[:3] for bar in memory.patches] == [
        pytest.approx(matplotlib.colors.to_rgb(plotting.COLOURS[i])) for i in (0, 2, 3)
    ]
    assert figures.replay_memory(*together(made("ewc", memory=4096), made("replay"))) is None


def test_backbones_are_drawn_for_what_ran_on_several() -> None:
    runs = [
        made("replay", shift=shift, backbone=name, method=method)
        for method, name, shift in (
            ("paste", "tiny", 0),
            ("paste", "large", 0.1),
            ("stfpm", "tiny", 0.2),
            ("stfpm", "large", 0.3),
            ("destseg", "large", 0.3),
        )
    ]
    figure = figures.by_backbone(groups(runs))
    paste, stfpm = axes_of(figure)
    np.testing.assert_allclose(_widths(paste), [0.6, 0.7])
    np.testing.assert_allclose(_widths(stfpm), [0.8, 0.9])
    assert [axes.get_title(loc="left").split(", ")[-1] for axes in (paste, stfpm)] == ["paste", "stfpm"]
    assert [tick.get_text() for tick in paste.get_yticklabels()] == ["tiny", "large"]
    assert max(_widths(stfpm)) < paste.get_xlim()[1] == stfpm.get_xlim()[1]
    assert figures.by_backbone(groups([runs[0], runs[-1]])) is None


def test_the_matrix_holds_each_score_once() -> None:
    (group,) = groups(seeds("fine-tuning", 0, 0.04, scores=FORGETS))
    figure = figures.matrix(group)
    pixel, image = axes_of(figure)
    shown = pixel.collections[0].get_array().filled(math.nan)
    np.testing.assert_allclose(shown[np.tril_indices(3)], np.array([0.8, 0.4, 0.8, 0.2, 0.4, 0.8]) + 0.02)
    assert np.isnan(shown[np.triu_indices(3, 1)]).all()
    assert texts(pixel) == ["0.82", "0.42", "0.82", "0.22", "0.42", "0.82"]
    assert texts(image) == ["0.91", "0.71", "0.91", "0.61", "0.71", "0.91"]
    bottom, top = pixel.get_ylim()
    assert bottom > top  # the first task is at the top
    assert figures.matrix(groups([made("joint", SINGLE, scenario="single")])[0]) is None
    unknown = [[None], [None, None], [None, None, None]]
    assert figures.matrix(groups([made("joint", unknown)])[0]) is None


def test_svg_is_xml_whose_texts_are_texts() -> None:
    tasks = ("a$b$<i>", "nüt & “q\"'", r"\frac{1}{2}", 'z id="a_1"')
    (group,) = groups([made("replay", [[0.5] * (step + 1) for step in range(4)], tasks=tasks)])
    figure = figures.over_time([group], ["replay"], "p_f1max", "P-F1")
    assert figure is not None
    markup = plotting.svg(figure, 'of "<a> & b"')
    root = ElementTree.fromstring(markup)
    found = ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert set(tasks) <= set(found)
    assert root.get("aria-label") == 'of "<a> & b"'
    assert root.get("viewBox") is not None
    assert root.get("width") is None
    used = [value for each in root.iter() for name, value in each.items() if name.endswith("href")]
    assert used
    assert all(value.startswith("#") for value in used)
    assert not any("metadata" in each.tag for each in root.iter())


def test_svg_is_the_same_every_time_and_whatever_the_style() -> None:
    def drawn() -> str:
        (group,) = groups([made("replay", HOLDS)])
        figure = figures.matrix(group)
        assert figure is not None
        return plotting.svg(figure, "a matrix")

    first = drawn()
    with matplotlib.rc_context(
        {"font.size": 20, "svg.fonttype": "path", "figure.dpi": 30, "text.usetex": True}
    ):
        assert drawn() == first


def test_styles_repeat_no_look() -> None:
    found = plotting.styles(20)
    assert len(set(found)) == 20
    assert found[:7] == plotting.styles(7)


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ContinuadError, match=r'matplotlib is not installed.*pip install "continuad\[report\]"'
    ):
        figures.over_time(*together(made("replay", KEEPS)), "p_f1max", "P-F1")
