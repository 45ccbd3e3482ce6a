"""The benchmark of inspection: its smallest run, and what its processes may import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from conftest import CHILD_SECONDS, photos

pytest.importorskip("onnxscript")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

from continuad.export import export

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ModuleType:
    """The benchmark, whose measurements run in this process: starting one for each takes most of the time."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found, process = import_module("runtime"), import_module("runtime_process")

    def at_once(script: Path, *words: object, threads: int) -> dict[str, object]:
        assert script == BENCHMARKS / "runtime_process.py"
        process.main([*map(str, words), "--started", str(time.time())])
        figures: dict[str, object] = json.loads(capsys.readouterr().out)
        return figures

    monkeypatch.setattr(found, "in_fresh_process", at_once)
    monkeypatch.setattr(found, "LEARNT", 6)
    monkeypatch.setattr(found, "PHOTOS", 3)
    monkeypatch.setattr(found, "RENDERED", 64)
    monkeypatch.setattr(process, "SIDE", 64)
    return found


def tables(page: str) -> list[list[dict[str, str]]]:
    """The tables of a page, each a list of rows by the titles of their columns."""
    blocks = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    cells = [[[cell.strip() for cell in row.strip("|").split("|")] for row in block] for block in blocks]
    return [[dict(zip(head, row, strict=True)) for row in rows] for head, _, *rows in cells]


def first(cell: str) -> float:
    return float(cell.replace("*", "").replace(",", "").split()[0])


def test_the_smallest_run_fills_its_tables(benchmark: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    engines = ["torch", "openvino", "onnx int8"]
    small = "--heads compact,adapts-s --backbones tiny --image-sizes 32 --products 1,3 --threads 1"
    small += " --images 2 --stream 10 --rounds 2"
    benchmark.main([*small.split(), "--engines", ",".join(engines), "--out", str(out)])
    page = out.read_text()
    assert "`python benchmarks/runtime.py --heads compact,adapts-s --backbones tiny" in page
    assert "--engines 'torch,openvino,onnx int8' --image-sizes 32 --products 1,3" in page
    cases, growth, products, stream = tables(page)
    assert [(case["head"], case["engine"]) for case in cases] == [
        *(("compact", engine) for engine in engines),
        ("adapts-s", "torch"),
        ("adapts-s", "openvino"),
    ]
    for case in cases:
        assert first(case["p50"]) <= first(case["p95"])
        for column in ("images/s", "RAM MiB", "cold s", "KiB backbone", "KiB head", "of torch"):
            assert first(case[column]) > 0, column
        if case["engine"] != "torch":
            low, high = case["of torch"].partition("(")[2].strip(")").split(" to ")
            assert float(low) <= first(case["of torch"]) <= float(high)
    assert [row["pixels a side"] for row in growth] == ["pixels", *engines]
    assert all(first(row["32"]) > 0 for row in growth)
    by_title = {row.pop("products"): row for row in products}
    assert set(by_title["RAM, MiB"]) == {"1", "3"}
    assert by_title["products in the photos"]["1"] == "1"
    assert int(by_title["products in the photos"]["3"]) > 1
    assert [row["engine"] for row in stream] == ["torch", "openvino"]


@pytest.mark.parametrize(
    ("words", "match"), [(["--heads", "none"], "choose from"), (["--engines", "onnx"], "torch")]
)
def test_what_cannot_be_measured_is_refused(
    benchmark: ModuleType, words: list[str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(words)
    assert match in capsys.readouterr().err


def test_multiplications_are_those_of_the_layers(benchmark: ModuleType, tmp_path: Path) -> None:
    subject = benchmark.Subject("compact", "tiny", 32)
    (case,) = benchmark.prepare(subject, ("torch",), photos("bolt", 7), tmp_path / "made")
    inspector = benchmark.Inspector.open(case.place)
    bank = inspector.head(benchmark.PRODUCT)
    blocks = inspector.backbone.macs(32)
    upto = list(blocks).index(inspector.backbone.stage(16)) + 1
    patches, (vectors, dimensions) = (32 // 8) ** 2, bank.codes.shape
    assert case.macs == (
        sum(list(blocks.values())[:upto]),
        patches * dimensions * vectors + patches * dimensions * dimensions,
    )


def test_an_exported_bank_is_measured_without_torch(taught: Path, tmp_path: Path) -> None:
    export(taught, tmp_path / "edge")
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(photos("bolt", 2) + photos("plate", 2)):
        Image.fromarray(photo).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "torch.py").write_text("raise AssertionError('nobody needs torch here')")
    begin = time.time()
    words = ["--place", tmp_path / "edge", "--photos", tmp_path / "photos", "--images", 3, "--threads", 1]
    done = subprocess.run(
        [
            sys.executable,
            BENCHMARKS / "runtime_process.py",
            "inspect",
            *map(str, words),
            "--started",
            str(begin),
        ],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0 < found["cold_s"] < time.time() - begin
    assert found["products_seen"] == 2
