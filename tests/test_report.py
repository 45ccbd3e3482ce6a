from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from continuad import __version__
from continuad.bench.comparison import Cell, Column, ComparedRow, Comparison
from continuad.bench.report import write_report
from continuad.bench.runner import FinishedRun, Results
from continuad.errors import ContinuadError
from made_runs import FORGETS, HOLDS, failed_run, made, seeds

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

SECTIONS = ["findings", "summary", "published", "figures", "matrices", "failed", "settings", "repeat"]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a page says and holds; that its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.sections: list[str] = []
        self.captions: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "section":
            self.sections.append(dict(attrs)["id"] or "")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] == "figcaption":
            self.captions.append(data)
        if "tr" in self.open and ("td" in self.open or "th" in self.open):
            self.tables[-1][-1][-1] += data

    def handle_decl(self, decl: str) -> None:
        assert decl == "doctype html"

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def table(self, heading: str) -> list[list[str]]:
        """The cells of the first table with such a heading; each with its spaces collapsed."""
        tables = [[[" ".join(cell.split()) for cell in row] for row in table] for table in self.tables]
        return next(table for table in tables if heading in table[0])


COMPARISON = Comparison(
    name="storage",
    title="Storage, table 5.5",
    columns=[Column("p_f1max", "P-F1", "1", 2), Column("memory_bytes", "memory, MB", "MB", 1)],
    rows=[
        ComparedRow("Kinds", "floats", [Cell(0.5, 0.484, 0.0123), Cell(9.83, 9.81, None)]),
        ComparedRow("Kinds", "bytes", [Cell(0.32, None, None), Cell(None, 2.5, 0.04)]),
        ComparedRow("Others", "nothing", [Cell(None, None, None), Cell(1234.5, None, None)]),
    ],
    remarks=["Measured on three products."],
)


def results(folder: Path | None = None, **changes: Any) -> Results:
    """Two strategies of two seeds on three tasks, a group that is no stream, and a failed run."""
    examples = folder or Path("nowhere")
    return Results(
        [
            *seeds("fine-tuning", 0, 0.1, scores=FORGETS, examples=examples, **changes),
            *seeds(
                "replay", 0, 0.1, scores=HOLDS, memory=2**20, items=40, size=40, examples=examples, **changes
            ),
            made("joint", [[0.5], [0.6], [0.7]], scenario="single", **changes),
        ],
        [failed_run()],
    )


def written(folder: Path, found: Results, **changes: Any) -> str:
    path = folder / "report.html"
    rest: dict[str, Any] = {"title": "A bench", "comparisons": [COMPARISON], "command": "continuad bench"}
    write_report(path, results=found, **{**rest, **changes})
    assert [each.name for each in folder.iterdir() if each.is_file()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of `results`."""
    return written(
        tmp_path_factory.mktemp("report"), results(), command="continuad bench grid.toml --workers 2"
    )


def test_the_report_holds_everything(text: str) -> None:
    page = Page(text)
    assert page.sections == SECTIONS
    for expected in (
        "A bench",
        "5 runs finished, 1 failed · 7 min 32 s of computing",
        f"continuad {__version__}",
        "Highest P-F1 of 2",
        "Measured on three products.",
        "There is no light. Switch it on.",
        "ffff.txt",
        "continuad bench grid.toml --workers 2",
        *("bolt", "nut", "cap"),
    ):
        assert expected in page.said
    assert {value for tag, name, value in page.attributes if (tag, name) == ("html", "lang")} == {"en"}
    assert [caption.partition(":")[0] for caption in page.captions] == [
        "P-F1 over the stream",
        "I-AUROC over the stream",
        "P-F1 against memory; bars are standard deviations over the seeds.",
        "I-AUROC against memory; bars are standard deviations over the seeds.",
        "Memory of an item in the replay buffer, and P-F1 with it.",
        "Memory over the stream",
        "Time to learn each task.",
        "fine-tuning, continual",
        "replay, continual",
    ]
    assert text.count("<svg") == len(page.captions)
    assert len(text.encode()) < 400_000


def test_the_summary_is_over_tasks_and_seeds(text: str) -> None:
    table = Page(text).table("seeds")
    tuned, replay, joint = (dict(zip(table[0], row, strict=True)) for row in table[1:])
    assert tuned[""] == "fine-tuning, continual"
    assert replay[""] == "replay, continual"
    assert [each["seeds"] for each in (tuned, replay, joint)] == ["2", "2", "1"]
    assert tuned["P-F1"] == "0.517 ± 0.071"  # (0.2 + 0.4 + 0.8) / 3, and 0.1 more; 0.1 / sqrt(2)
    assert tuned["P-F1 lost, absolute"] == "0.500"
    assert joint["P-F1"] == "0.600"
    assert joint["P-F1 lost, relative"] == "-"
    assert replay["memory, MiB"] == "1.000"
    assert replay["total, MiB"] == "2.001"
    assert replay["learn, s"] == "60.0"
    assert "routing accuracy" not in table[0]


def test_published_values_stand_beside_measured_ones(text: str) -> None:
    assert Page(text).table("memory, MB") == [
        ["", "P-F1", "memory, MB"],
        ["Kinds"],
        ["floats", "0.50 | 0.48 ± 0.01", "9.8 | 9.8"],
        ["bytes", "0.32 | -", "- | 2.5 ± 0.0"],
        ["Others"],
        ["nothing", "- | -", "1,234.5 | -"],
    ]
    assert "0.50 | <strong>0.48</strong>" in text


def test_settings_and_machines_are_told_apart(tmp_path: Path) -> None:
    found = results(settings={"training": {"epochs": 3}})
    other = FinishedRun(**{**vars(found.finished[0]), "environment": {"torch": "2.4", "gpu": "none"}})
    page = Page(written(tmp_path, Results([other, *found.finished[1:]], [])))
    settings = page.table("strategy's changes")
    replay = dict(zip(settings[0], settings[2], strict=True))
    assert replay["method's changes"] == '{"training": {"epochs": 3}}'
    assert replay["strategy's changes"] == '{"size": 40}'
    assert (replay["tasks"], replay["seeds"], replay["image size"]) == ("bolt, nut, cap", "0, 1", "256")
    assert replay["dataset"] == "parts (auto)"
    assert page.table("computed with") == [
        ["computed with", "1 run", "4 runs"],
        ["torch", "2.4", "2.9"],
        ["gpu", "none", "-"],
        ["continuad", "-", "0.1"],
        ["threads", "-", "1"],
    ]
    assert "failed" not in page.sections


def test_the_report_needs_nothing_beside_it(tmp_path: Path) -> None:
    text = written(tmp_path, results(pictures(tmp_path / "pictures", "bolt")))
    for tag, name, value in Page(text).attributes:
        if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert value.startswith(("#", "data:image/jpeg;base64,")), (tag, name, value)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert not re.search(r"<(script|link|iframe|object|embed)\b|@import", text)
    assert "default-src 'none'" in text


def test_links_lead_to_sections(text: str) -> None:
    page = Page(text)
    links = [value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == page.sections


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    found = results(pictures(tmp_path / "pictures", "bolt"))
    assert written(tmp_path, found) == written(tmp_path, found)


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    tasks = ("<b>bolt", "nut & \"cap'", "$x_1$")
    found = results(tasks=tasks)
    failed = Results(found.finished, [type(failed_run())("f", made("ewc").run, "<script>", Path("<i>.txt"))])
    text = written(tmp_path, failed, title="<title> & co", command="a < b", comparisons=[])
    page = Page(text)
    for name in (*tasks, "<title> & co", "<script>", "<i>.txt", "a < b"):
        assert name in page.said
    assert not {"b", "script", "i"} & {tag for tag, _, _ in page.attributes}
    assert "<b>" not in text
    assert "<script" not in text


def pictures(folder: Path, *tasks: str) -> Path:
    folder.mkdir(exist_ok=True)
    for task in tasks:
        for what, colour in {"photo": (200, 0, 0), "truth": (255, 255, 255), "map": (0, 0, 200)}.items():
            Image.new("RGB", (320, 200), colour).save(folder / f"{task} {what}.png")
    return folder


def test_pictures_are_small_and_inside(tmp_path: Path) -> None:
    page = Page(written(tmp_path, results(pictures(tmp_path / "pictures", "bolt", "cap"))))
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(sources) == 2 * 4
    found = [Image.open(io.BytesIO(base64.b64decode(each.partition(",")[2]))) for each in sources]
    assert {(each.format, each.size) for each in found} == {("JPEG", (160, 100))}
    seen = [each.getpixel((80, 50)) for each in found[:4]]
    for colour, (red, _, blue) in zip(["red", "white", "blue", "blue"], seen, strict=True):
        assert (red > 100, blue > 100) == (colour in ("red", "white"), colour in ("blue", "white"))
    assert page.table("ground truth") == [
        [
            "",
            "photo",
            "ground truth",
            "fine-tuning, continual",
            "replay, continual",
            "joint, single",
        ],
        ["bolt", "", "", "", "", "-"],
        ["cap", "", "", "", "", "-"],
    ]


def test_a_damaged_picture_leaves_the_old_report(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", "bolt")
    before = written(tmp_path, results(folder))
    (folder / "bolt map.png").write_bytes(b"none")
    with pytest.raises(ContinuadError, match=r"bolt map.png cannot be read as a picture. Delete it"):
        written(tmp_path, results(folder))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before


def test_a_bench_without_a_finished_run_is_reported_too(tmp_path: Path) -> None:
    page = Page(written(tmp_path, Results([], [failed_run()]), comparisons=[]))
    assert page.sections == ["findings", "failed", "repeat"]
    assert "0 runs finished, 1 failed · 0 s" in page.said


def test_a_single_run_is_reported(tmp_path: Path) -> None:
    page = Page(written(tmp_path, Results([made("routed", [[0.5]], tasks=("bolt",), routing=1.0)], [])))
    assert "1 run finished · 1 min 30 s of computing" in page.said
    assert "figures" not in page.sections
    assert "nan" not in page.said


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ContinuadError, match=r"report\.html cannot be written"):
        write_report(tmp_path / "file/report.html", title="", results=Results([], []), command="")


def test_without_jinja2_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ContinuadError, match=r'jinja2 is not installed.*pip install "continuad\[report\]"'):
        written(tmp_path, results())
    assert not any(tmp_path.iterdir())


def test_what_reports_need_is_not_needed_to_import_them() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['jinja2'] = None; import continuad.bench.report"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
