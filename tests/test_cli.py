from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.main import get_command

from conftest import Result, Run
from continuad import Inspector, __version__
from continuad.cli import app, options
from continuad.cli import progress as progress_module
from continuad.cli.demo import PRODUCTS
from continuad.cli.progress import ProgressBar
from continuad.cli.settings import parse_settings
from continuad.continual import RoutingSettings
from continuad.datasets import LAYOUTS
from continuad.datasets.demo import DEMO_PRODUCTS, demo_task, write_mvtec
from continuad.detectors import METHODS
from continuad.detectors.checkpoint import Checkpoint
from continuad.errors import SettingsError
from continuad.inspector import Product
from continuad.inspector import inspector as inspector_module
from continuad.progress import Progress

COMMANDS = (
    "demo",
    "learn",
    "inspect",
    "products",
    "serve",
    "rename",
    "archive",
    "restore",
    "forget",
    "recalibrate",
    "evaluate",
    "bench",
    "analyze",
    "methods",
    "costs",
    "export",
    "watch",
)
SETTINGS = {"training": {"epochs": 2, "min_steps": 0}}
FAST = ("--head", "adapts-s", "--set", "training.epochs=2", "--set", "training.min_steps=0")
BARE = ("--backbone", "tiny", "--weights", "random", "--image-size", "64")
TINY = (*BARE, *FAST)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two products and, beside it, `bank`, which has learnt both."""
    folder = tmp_path_factory.mktemp("cli")
    inspector = Inspector.create(folder / "bank", backbone="tiny", weights="random", image_size=64)
    for name in ("cap", "wood"):
        task = demo_task(name, size=64, train=8, good=2, defective=2)
        write_mvtec(task, folder / "dataset" / name)
        inspector.learn(
            name, folder / "dataset" / name / "train" / "good", head="adapts-s", settings=SETTINGS
        )
    return folder


@pytest.fixture
def bank(data: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(data / "bank", tmp_path / "bank"))


@pytest.fixture
def good(data: Path) -> Path:
    return data / "dataset" / "cap" / "train" / "good"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def set_threshold(bank: Path, name: str, threshold: float) -> None:
    """Decide what will be anomalous, however well the product was learnt."""
    files = Inspector.open(bank).bank
    product = files.manifest().products[name]
    calibration = replace(product.calibration, threshold=threshold)
    files.update(replace(product, calibration=calibration), expected=product)


def rows(result: Result) -> list[dict[str, Any]]:
    """The objects that a command printed."""
    return [json.loads(line) for line in result.out.splitlines()]


def refused(result: Result, *words: str) -> None:
    """A sentence of what is wrong, one of what to do, and nothing else."""
    assert result.code == 2
    assert result.out == ""
    assert re.fullmatch(r"error: [^\n]+[.)]\n  [^\n]+\n", result.err), result.err
    for word in words:
        assert word in result.err


# --- the program as a whole


def python(code: str, *words: str | Path) -> list[str]:
    return [sys.executable, "-c", code, *map(str, words)]


def test_help_and_version_need_neither_torch_nor_scipy() -> None:
    code = """
import sys
import continuad
from continuad.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code
print(sorted({"torch", "sklearn", "scipy", "numpy", "PIL", "huggingface_hub"} & set(sys.modules)))
"""
    for words in (["--help"], ["--version"], ["learn", "--help"]):
        done = subprocess.run(python(code, *words), capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


def test_module_and_script_are_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "continuad", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"continuad {__version__}\n"


def test_help_lists_the_commands(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    listed = re.findall(r"^  (\w+)  ", result.out.partition("Commands:\n")[2], re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    assert max(map(len, result.out.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    for parameter in get_command(app).commands[command].params:  # type: ignore[attr-defined]
        assert parameter.help, parameter.name
        assert all(option in result.out for option in parameter.opts if option.startswith("-"))


def examples(run: Run, command: str) -> list[list[str]]:
    """The words of each example in a command's help."""
    lines = re.findall(r"^    (.*\bcontinuad .*)$", run(command, "--help").out, re.MULTILINE)
    found = [shlex.split(line.rpartition("|")[2]) for line in lines]
    assert found
    assert all(words[:2] == ["continuad", command] for words in found)
    return [words[1:] for words in found]


def test_the_examples_in_the_help_work(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good, test = data / "dataset/cap/train/good", data / "dataset/cap/test"
    Inspector.create("parts.bank", backbone="tiny", weights="random", image_size=64)
    for folder in ("photos/bottle/good", "photos/bottle/this_week"):
        shutil.copytree(good, folder)
    shutil.copytree(test, "photos/new")
    for image in good.iterdir():
        Image.open(image).save(f"photos/{image.stem}_ok.jpg")
    for dataset, names in {"mvtec_ad": ("bottle", "cable"), "visa": ("fryum",)}.items():
        for name in names:
            shutil.copytree(data / "dataset/cap", Path("datasets", dataset, name))
    more = {
        "learn": FAST,
        "forget": ("--yes",),
        "evaluate": TINY,
        "demo": (*TINY, "--train", "6", "--good", "1", "--defective", "1"),
    }
    for command in (
        *("methods", "costs", "learn", "inspect", "products", "recalibrate", "forget", "evaluate", "demo"),
    ):
        for words in examples(run, command):
            if command == "demo" and "--products" not in words:
                continue  # all products: too slow for a test
            listing = io.TextIOWrapper(io.BytesIO(b"photos/new/good/000.png\n"))
            monkeypatch.setattr("sys.stdin", listing)
            result = run(*words, *more.get(command, ()))
            assert result.code == 0, (words, result)
            assert result.out, words


def test_defaults_are_those_of_the_python_api() -> None:
    assert options.DEFAULT_BACKBONE == inspector_module.DEFAULT_BACKBONE
    assert options.DEFAULT_HEAD == inspector_module.DEFAULT_HEAD
    assert options.DEFAULT_IMAGE_SIZE == inspector_module.DEFAULT_IMAGE_SIZE
    assert options.DEFAULT_FALSE_ALARM_RATE == inspector_module.DEFAULT_FALSE_ALARM_RATE


def test_choices_in_the_help_are_those_there_are(run: Run) -> None:
    assert ", ".join(DEMO_PRODUCTS) == PRODUCTS
    text = " ".join(run("evaluate", "--help").out.split())
    assert f"auto, {', '.join(LAYOUTS)}." in text


def test_a_wrong_option_is_a_usage_error(run: Run) -> None:
    result = run("products", "--colour")
    assert (result.code, result.out) == (2, "")
    assert "--colour" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("place", ["before", "behind"])
def test_debug_shows_the_traceback(run: Run, tmp_path: Path, place: str) -> None:
    words = ["products", str(tmp_path / "none")]
    plain = run(*words)
    refused(plain, "There is no bank")
    result = run("--debug", *words) if place == "before" else run(*words, "--debug")
    assert result.code == 2
    assert result.err.startswith("Traceback")
    assert result.err.endswith(plain.err)


def test_behind_two_dashes_debug_is_a_word_like_any_other(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("products", "--", "--debug"), "--debug")


def test_a_bug_is_one_line_and_asks_for_debug(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: object, **kwargs: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(Inspector, "open", explode)
    result = run("inspect", data / "bank", data)
    assert (result.code, result.out) == (70, "")
    assert re.fullmatch(r"error: [^\n]*RuntimeError: boom[^\n]*\n  [^\n]*--debug[^\n]*\n", result.err)
    assert 'raise RuntimeError("boom")' in run("inspect", data / "bank", data, "--debug").err


# --- learn


def test_learn_creates_a_bank_and_inspect_uses_it(run: Run, data: Path, good: Path, tmp_path: Path) -> None:
    result = run("learn", tmp_path / "parts.bank", "cap", good, *TINY)
    assert result.code == 0
    assert re.fullmatch(
        r"Learnt 'cap' from 8 photos in [\d.]+ s: [\d.]+ KiB, threshold [\d.e-]+\.\n", result.out
    )
    product = Inspector.open(tmp_path / "parts.bank").product("cap")
    assert product.settings["training"]["epochs"] == 2
    again = run("inspect", tmp_path / "parts.bank", good)
    assert again.code == 0
    assert len(again.out.splitlines()) == 9


def test_learn_takes_files_folders_and_globs_once_each(run: Run, bank: Path, good: Path) -> None:
    assert run("learn", bank, "new", good / "000.png", good / "00[0-5].png", *FAST).code == 0
    product = Inspector.open(bank).product("new")
    assert product.images + len(product.calibration.scores) == 6
    assert run("learn", bank, "all", good / "000.png", good, *FAST).code == 0
    product = Inspector.open(bank).product("all")
    assert product.images + len(product.calibration.scores) == 8


def test_learn_passes_every_option_on(run: Run, tmp_path: Path, good: Path) -> None:
    words = ("--head", "adapts-l", "--false-alarm-rate", "0.2", "--seed", "3", "--routing", "layer2")
    assert run("learn", tmp_path / "bank", "cap", good, *TINY, *words).code == 0
    reference = Inspector.create(
        tmp_path / "reference",
        backbone="tiny",
        weights="random",
        image_size=64,
        routing=RoutingSettings("layer2"),
    )
    expected = reference.learn(
        "cap",
        good,
        head="adapts-l",
        settings=SETTINGS,
        false_alarm_rate=0.2,
        seed=3,
    )
    inspector = Inspector.open(tmp_path / "bank")
    product = inspector.product("cap")
    assert (product.method, product.calibration) == (expected.method, expected.calibration)
    assert inspector.bank.manifest().routing["tap"] == "layer2"


def test_learn_refuses_a_known_product_unless_told_to_replace_it(run: Run, bank: Path, good: Path) -> None:
    before = contents(bank)
    refused(run("learn", bank, "cap", good, *FAST), "'cap'")
    assert contents(bank) == before
    assert run("learn", bank, "cap", good, "--replace", "--seed", "1", *FAST).code == 0
    assert contents(bank) != before
    assert sorted(Inspector.open(bank).products) == ["cap", "wood"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--backbone", "resnet18"], "--backbone tiny, not resnet18"),
        (["--image-size", "96"], "--image-size 64, not 96"),
        (["--routing", "layer1"], "--routing layer3, not layer1"),
    ],
)
def test_a_bank_keeps_what_it_was_created_with(
    run: Run, bank: Path, good: Path, words: Sequence[str], named: str
) -> None:
    before = contents(bank)
    refused(run("learn", bank, "new", good, *words), named)
    assert contents(bank) == before


def test_other_weights_for_an_existing_bank_are_refused(
    run: Run, bank: Path, good: Path, tmp_path: Path
) -> None:
    import torch

    from continuad.backbones import checkpoint, create_backbone

    state = checkpoint(create_backbone("tiny", weights="random"))
    torch.save(state, tmp_path / "same.pth")
    torch.save({name: tensor * 2 for name, tensor in state.items()}, tmp_path / "other.pth")
    refused(run("learn", bank, "new", good, "--weights", tmp_path / "other.pth"), "--weights", "other.pth")
    assert run("learn", bank, "new", good, "--weights", tmp_path / "same.pth", *FAST).code == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["cap", "{good}/none"], "none"),
        (["cap", "{good}/000.png"], "1 images are too few"),
        (["", "{good}"], "''"),
        (["cap", "{good}", "--head", "adapts-x"], "adapts-"),
        (["cap", "{good}", "--backbone", "tinny"], "'tiny'"),
        (["cap", "{good}", "--routing", "layer9"], "'layer9'"),
        (["cap", "{good}", "--image-size", "5"], "5"),
        (["cap", "{good}", "--weights", "no.pth"], "no.pth"),
        (["cap", "{good}", "--false-alarm-rate", "0"], "0"),
        (["cap", "{good}", "--device", "abacus"], "'abacus'"),
        (["cap", "{good}", "--set", "budget"], "budget"),
        (["cap", "{good}", "--set", "budget=1"], "budget"),
        (["cap", "{good}", "--head", "adapts-s", "--set", "training.epochs=0"], "epochs"),
    ],
)
def test_a_refused_learn_leaves_no_bank(
    run: Run, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Sequence[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("learn", "bank", *BARE, *(word.format(good=good) for word in words)), named)
    assert not list(tmp_path.iterdir())


def test_learn_leaves_a_folder_that_is_no_bank_alone(run: Run, good: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear Anna")
    refused(run("learn", tmp_path, "cap", good, *TINY), "no bank")
    (tmp_path / "file").write_text("")
    refused(run("learn", tmp_path / "file", "cap", good, *TINY), "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "letter.txt"]


# a learner that reports every step, so that the test knows when to press Ctrl-C
LEARNER = """
import signal, sys
from continuad.cli import main, progress
signal.signal(signal.SIGINT, signal.default_int_handler)
progress.LINE_SECONDS = 0
main(sys.argv[1:])
"""


@contextmanager
def started(command: Sequence[str | Path]) -> Iterator[subprocess.Popen[str]]:
    """Run a process that a hanging test cannot outlive."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(list(map(str, command)), stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("is_new", [True, False])
def test_ctrl_c_while_learning_changes_nothing(bank: Path, good: Path, tmp_path: Path, is_new: bool) -> None:
    path = tmp_path / "new.bank" if is_new else bank
    before = contents(tmp_path)
    words = ("learn", path, "new", good, *BARE, "--head", "adapts-s", "--set", "training.epochs=1000000")
    with started(python(LEARNER, *words)) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("training"):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("training")]
    assert lines == [f"Interrupted. Nothing was learnt; {path} is as it was."]
    assert contents(tmp_path) == before
    assert path.exists() != is_new


def test_ctrl_c_after_a_checkpoint_promises_to_go_on(
    run: Run, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "is_due", lambda self: True)
    learn, steps = Inspector.learn, list[int]()

    def halted(self: Inspector, *args: Any, progress: Progress, **kwargs: Any) -> Product:
        def halt(done: int, total: int, what: str) -> None:
            if what == "training":
                steps.append(done)
                if steps == [1, 2, 3]:
                    raise KeyboardInterrupt

        return learn(self, *args, progress=halt, **kwargs)

    monkeypatch.setattr(Inspector, "learn", halted)
    words = ("learn", tmp_path / "new.bank", "new", good, *BARE, "--head", "stfpm")
    words = (*words, "--set", "training.steps=9", "--set", "training.batch_size=4")
    result = run(*words)
    assert result.code == 130
    assert result.err.endswith("Nothing was learnt; the same command goes on from its last checkpoint.\n")
    assert run(*words).code == 0
    assert steps == sorted(set(steps))
    assert steps[-1] > 3


def test_ctrl_c_elsewhere_is_no_traceback(
    run: Run, data: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Inspector, "inspect", interrupt)
    assert run("inspect", data / "bank", good) == Result(130, "", "Interrupted.\n")
    bank, out = tmp_path / "bank", tmp_path / "result.json"
    result = run("evaluate", data / "dataset", *TINY, "--bank", bank, "--out", out)
    assert result.code == 130
    assert result.err.endswith(f"Interrupted. The same command goes on with what {bank} holds.\n")
    assert list(Inspector.open(bank).products) == ["cap", "wood"]
    assert not out.exists()


# --- inspect


def test_inspect_prints_a_line_for_each_image(run: Run, data: Path) -> None:
    result = run("inspect", data / "bank", data / "dataset/cap/test", data / "dataset/wood/test/good/000.png")
    assert result.code == 0
    header, *lines = result.out.splitlines()
    assert header.split() == ["verdict", "product", "score", "ms", "image"]
    assert len(lines) == 5
    for line in lines:
        label, product, score, milliseconds, image = line.split(maxsplit=4)
        verdict = Inspector.open(data / "bank").inspect(image)
        assert (label, product) == (verdict.label, verdict.product)
        assert score == f"{verdict.score / verdict.threshold:.2f}x"
        assert float(milliseconds) >= 0
    assert re.fullmatch(r"5 images: .*\.\n", result.err)


def test_json_lines_hold_the_whole_verdict(run: Run, data: Path) -> None:
    found = rows(run("inspect", data / "bank", data / "dataset/cap/test", "--json"))
    assert len(found) == 4
    for row in found:
        expected = Inspector.open(data / "bank").inspect(row["image"]).as_dict()
        assert row.pop("timings_ms").keys() == expected.pop("timings_ms").keys()
        assert row == {"image": row["image"], **expected}


@pytest.fixture
def mixed(data: Path, tmp_path: Path) -> Path:
    """A folder with good images, a damaged one, one of no known product and one that is no image."""
    folder = tmp_path / "mixed"
    shutil.copytree(data / "dataset/cap/test/good", folder)
    damaged = (folder / "000.png").read_bytes()[:200]
    (folder / "0005.png").write_bytes(damaged)
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, np.arange(64) % 16 < 8] = 255
    Image.fromarray(stripes).save(folder / "zebra.png")
    (folder / "zzz.png").write_text("not an image")
    return folder


def test_unreadable_images_do_not_stop_the_others(run: Run, data: Path, mixed: Path) -> None:
    result = run("inspect", data / "bank", mixed, mixed / "none.png", "--json")
    assert result.code == 2
    found = {Path(row["image"]).name: row for row in rows(result)}
    assert list(found) == ["000.png", "001.png", "0005.png", "zebra.png", "zzz.png", "none.png"]
    for name in ("0005.png", "zzz.png", "none.png"):
        assert found[name].keys() == {"image", "error"}
        assert name in found[name]["error"]
    assert found["000.png"]["product"] == "cap"
    assert found["zebra.png"]["label"] == "unknown"
    assert found["zebra.png"]["score"] is None
    assert "6 images" in result.err
    assert "3 not readable" in result.err


def test_unreadable_images_are_sentences_beside_the_lines(run: Run, bank: Path, mixed: Path) -> None:
    set_threshold(bank, "cap", 1e9)
    result = run("inspect", bank, mixed)
    assert result.code == 2
    assert [line.split()[0] for line in result.out.splitlines()[1:]] == ["normal", "normal", "unknown"]
    assert len(re.findall(r"^error: The image .*\n  .*\n", result.err, re.MULTILINE)) == 2


def test_strict_stops_at_the_first(run: Run, data: Path, mixed: Path) -> None:
    result = run("inspect", data / "bank", mixed, "--strict", "--json")
    assert result.code == 2
    assert [Path(row["image"]).name for row in rows(result)] == ["000.png", "001.png"]
    assert result.err.startswith("error: The image ")
    assert "0005.png" in result.err


def test_exit_code_tells_of_unknown_and_anomalous_images(run: Run, bank: Path, mixed: Path) -> None:
    set_threshold(bank, "cap", 1e9)
    assert run("inspect", bank, mixed / "zebra.png").code == 0
    assert run("inspect", bank, mixed / "zebra.png", "--exit-code").code == 1
    assert run("inspect", bank, mixed / "000.png", "--exit-code").code == 0
    assert run("inspect", bank, mixed, "--exit-code").code == 2
    set_threshold(bank, "cap", 1e-9)
    assert run("inspect", bank, mixed / "000.png").code == 0
    forced = run("inspect", bank, mixed / "000.png", "--exit-code")
    assert forced.out.splitlines()[1].split()[:2] == ["anomalous", "cap"]
    assert forced.code == 1


def test_nearest_and_product_give_strangers_a_verdict(run: Run, data: Path, mixed: Path) -> None:
    (row,) = rows(run("inspect", data / "bank", mixed / "zebra.png", "--json"))
    assert row["product"] is None
    for words in (["--nearest"], ["--product", "wood"]):
        (forced,) = rows(run("inspect", data / "bank", mixed / "zebra.png", "--json", *words))
        assert forced["product"] == (row["nearest"] if words == ["--nearest"] else "wood")


def test_inspect_refuses_what_concerns_all_images(run: Run, data: Path, good: Path, tmp_path: Path) -> None:
    refused(run("inspect", data / "bank", good, "--product", "cup"), "'cup'")
    refused(run("inspect", tmp_path / "none", good), "none")
    refused(run("inspect", data / "bank", good, "--device", "abacus"), "'abacus'")
    Inspector.create(tmp_path / "empty", backbone="tiny", weights="random", image_size=64)
    refused(run("inspect", tmp_path / "empty", good), "no product yet")


def test_heatmaps_never_overwrite_anything(run: Run, data: Path, tmp_path: Path) -> None:
    images = [tmp_path / folder / name for folder in ("a", "b") for name in ("x.png", "x.jpg")]
    source = Image.open(data / "dataset/cap/test/good/000.png")
    for image in images:
        image.parent.mkdir(exist_ok=True)
        source.save(image)
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"mine")
    folder = tmp_path / "a"  # the overlays go where the images are
    words = ("inspect", data / "bank", *images, "--json", "--heatmaps", folder)
    first = [Path(row["heatmap"]) for row in rows(run(*words))]
    (folder / "link.png").symlink_to(outside)
    second = [Path(row["heatmap"]) for row in rows(run(*words))]
    written = [*first, *second]
    assert len(set(written)) == 8
    assert {path.parent for path in written} == {folder}
    assert not set(written) & set(images)
    assert sorted(folder.iterdir()) == sorted({*written, *images[:2], folder / "link.png"})
    for path in written:
        assert Image.open(path).size[0] >= 64
    assert Image.open(images[0]).size == source.size
    assert outside.read_bytes() == b"mine"


def test_a_link_in_the_heatmap_folder_is_not_followed(run: Run, data: Path, tmp_path: Path) -> None:
    image = data / "dataset/cap/test/good/000.png"
    words = ("inspect", data / "bank", image, "--json", "--heatmaps")
    (row,) = rows(run(*words, tmp_path / "a"))
    name = Path(row["heatmap"]).name
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / name).symlink_to(tmp_path / "not there yet.png")
    (row,) = rows(run(*words, tmp_path / "b"))
    assert Path(row["heatmap"]).name != name
    assert not (tmp_path / "not there yet.png").exists()


def test_heatmaps_stay_in_their_folder(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    shutil.copy(data / "dataset/cap/test/good/000.png", tmp_path / f"{'long' * 50}.png")
    monkeypatch.chdir(tmp_path / "here")
    result = run(
        "inspect", data / "bank", f"../../{tmp_path.name}/{'long' * 50}.png", "--heatmaps", "../maps"
    )
    assert result.code == 0
    assert len(list((tmp_path / "maps").iterdir())) == 1
    assert not list((tmp_path / "here").iterdir())


def test_a_heatmap_folder_that_cannot_be_is_refused(run: Run, data: Path, good: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run("inspect", data / "bank", good, "--heatmaps", tmp_path / "file"), "file")


def test_a_list_on_stdin_is_inspected_as_it_comes(data: Path) -> None:
    test = data / "dataset/cap/test/good"
    with started([sys.executable, "-m", "continuad", "inspect", data / "bank", "-", "--json"]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for name in ("000.png", "none.png", "001.png"):
            process.stdin.write(f"{test / name}\n\n")
            process.stdin.flush()
            row = json.loads(process.stdout.readline())  # while stdin is still open
            assert row["image"] == str(test / name)
            assert ("error" in row) == (name == "none.png")
        out, err = process.communicate()
    assert process.returncode == 2
    assert out == ""
    assert "3 images" in err


@pytest.mark.skipif(os.name != "posix", reason="other systems report a closed pipe otherwise")
def test_a_reader_that_leaves_is_no_error(data: Path) -> None:
    image = data / "dataset/cap/test/good/000.png"
    with started([sys.executable, "-m", "continuad", "inspect", data / "bank", "-"]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(f"{image}\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.stdout.close()
        process.stdin.write(f"{image}\n" * 3)
        process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait() != 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_file_names_that_are_no_text(run: Run, data: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    shutil.copy(os.fsencode(data / "dataset/cap/test/good/000.png"), name)
    for words in ([], ["--json"], ["--heatmaps", tmp_path / "maps"]):
        result = run("inspect", data / "bank", tmp_path, *words)
        assert result.code == 0
        assert "caf" in result.out
    (row,) = rows(run("inspect", data / "bank", tmp_path / "caf*", "--json"))
    assert os.fsencode(row["image"]) == name


# --- products, forget, recalibrate, methods


def test_products_lists_the_bank(run: Run, data: Path) -> None:
    result = run("products", data / "bank")
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()[3:]]
    assert [line[:3] for line in lines] == [["cap", "adapts-s", "8"], ["wood", "adapts-s", "8"]]
    assert result.err == "2 products on tiny at 64 pixels.\n"
    known = Inspector.open(data / "bank").products
    expected = [{**product.as_dict()} for product in known.values()]
    for facts in expected:
        del facts["prototype"]
        facts["archived"] = False
    assert rows(run("products", data / "bank", "--json")) == json.loads(json.dumps(expected))


def test_products_of_an_empty_bank(run: Run, tmp_path: Path) -> None:
    Inspector.create(tmp_path / "bank", backbone="tiny", weights="random", image_size=64)
    result = run("products", tmp_path / "bank")
    assert result == Result(0, "", "0 products on tiny at 64 pixels.\n")


def test_names_and_markup_are_shown_as_they_are(run: Run, bank: Path, good: Path) -> None:
    assert "'[b]x[/b] :x:'" in run("learn", bank, "[b]x[/b] :x:", good, *FAST).out
    assert "[b]x[/b] :x:" in run("products", bank).out


def test_forget_with_yes(run: Run, bank: Path) -> None:
    assert run("forget", bank, "cap", "--yes") == Result(0, "Removed 'cap'.\n", "")
    assert list(Inspector.open(bank).products) == ["wood"]
    refused(run("forget", bank, "cap", "--yes"), "'cap'")


def test_rename_archive_and_restore(run: Run, bank: Path) -> None:
    assert run("rename", bank, "cap", "lid") == Result(0, "'cap' is called 'lid' now.\n", "")
    refused(run("rename", bank, "lid", "wood"), "'wood'")
    assert run("archive", bank, "lid") == Result(0, "Archived 'lid'.\n", "")
    assert list(Inspector.open(bank).products) == ["wood"]
    assert "Archived: lid." in run("products", bank).err
    assert [(row["name"], row["archived"]) for row in rows(run("products", bank, "--json"))] == [
        ("wood", False),
        ("lid", True),
    ]
    refused(run("archive", bank, "lid"), "'lid'")
    assert run("restore", bank, "lid") == Result(0, "Restored 'lid'.\n", "")
    refused(run("restore", bank, "lid"), "none")
    assert run("archive", bank, "lid").code == 0
    assert run("forget", bank, "lid", "--yes").code == 0
    assert not Inspector.open(bank).archived


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("answer", ["y", "n"])
def test_forget_asks_on_a_terminal(
    run: Run, bank: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    result = run("forget", bank, "cap")
    assert "'cap'" in result.err
    assert result.code == (0 if answer == "y" else 1)
    assert ("cap" in Inspector.open(bank).products) == (answer == "n")


def test_forget_does_not_guess_without_a_terminal(
    run: Run, bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    refused(run("forget", bank, "cap"), "--yes")
    assert "cap" in Inspector.open(bank).products


def test_recalibrate_shows_both_thresholds(run: Run, bank: Path, good: Path) -> None:
    before = Inspector.open(bank).product("cap").calibration
    result = run("recalibrate", bank, "cap", "--false-alarm-rate", "0.1")
    after = Inspector.open(bank).product("cap").calibration
    assert (after.false_alarm_rate, after.scores) == (0.1, before.scores)
    assert after.threshold < before.threshold
    first, second = result.out.splitlines()
    assert f"{before.threshold:.4g}" in first
    assert f"{after.threshold:.4g}" in second

    words = ("--images", good / "000.png", "--images", good / "00[1-4].png")
    assert run("recalibrate", bank, "cap", *words).code == 0
    last = Inspector.open(bank).product("cap").calibration
    assert len(last.scores) == 5
    assert last.false_alarm_rate == 0.1


def test_recalibrate_refuses_what_it_cannot_do(run: Run, bank: Path, good: Path) -> None:
    before = contents(bank)
    refused(run("recalibrate", bank, "cap"), "--false-alarm-rate")
    refused(run("recalibrate", bank, "cup", "--false-alarm-rate", "0.1"), "'cup'")
    refused(run("recalibrate", bank, "cap", "--false-alarm-rate", "0"), "0")
    refused(run("recalibrate", bank, "cap", "--false-alarm-rate", "0.7"), "0.7")
    refused(run("recalibrate", bank, "cap", "--images", good / "000.png"), "2")
    refused(run("recalibrate", bank, "cap", "--images", good / "none"), "none")
    assert contents(bank) == before


def test_methods_lists_heads_and_backbones(run: Run) -> None:
    from continuad.backbones import BACKBONES

    text = run("methods").out
    for name in (*METHODS, *BACKBONES):
        assert re.search(rf"^{name}  +\S", text, re.MULTILINE), name
    found = rows(run("methods", "--json"))
    assert [row["name"] for row in found] == [*METHODS, *BACKBONES]
    assert all(row["summary"] for row in found)
    assert found[0]["settings"]["training"]["epochs"] == METHODS["adapts-l"].settings.training.epochs


def test_costs_are_those_of_the_paper_and_the_honest_ones(run: Run) -> None:
    wide = ("--backbone", "wide_resnet50_2", "--image-size", "224", "--routing", "avgpool")
    result = run("costs", *wide, "--products", "15", "--set", "passes=2")
    assert result.code == 0
    table = {
        words[0]: [float(word) for word in words[1:]]
        for words in map(str.split, result.out.splitlines()[3:6])
    }
    assert table["adapts-l"] == pytest.approx([150.5, 245.5, 44.45 / 2, 150.6, 405.9, 16.84], abs=0.05)
    (row, *_) = rows(run("costs", "--backbone", "tiny", "--image-size", "64", "--json"))
    assert row["method"] == "adapts-l"
    assert row["additional_bytes"] > row["additional_bytes_paper"] > 0
    refused(run("costs", "--routing", "layer9"), "layer9")


def test_costs_of_any_method(run: Run) -> None:
    size = ("--image-size", "64")
    words = ("costs", "--method", "stfpm,adapts-m", "--backbone", "tiny", *size)
    result = run(*words)
    assert result.code == 0
    table = [line.split() for line in result.out.splitlines()]
    assert [row[0] for row in table if row and row[0] in METHODS] == ["stfpm", "adapts-m"] * 2
    assert max(map(len, result.out.splitlines())) <= 80
    found = rows(run(*words, "--measure", "--json"))
    assert [row["method"] for row in found] == ["stfpm", "adapts-m"]
    for row in found:
        assert row["total_bytes"] > row["parameter_bytes"] > 0
        assert row["training_macs"] > row["training_macs_forward"] > row["later_training_macs_forward"] > 0
        assert row["training_peak_bytes"] is not None
    (row,) = rows(run("costs", "--method", "stfpm-micronet", *size, "--json"))
    assert (row["backbone"], row["inspection_peak_bytes"]) == ("micronet_m1", None)
    refused(run("costs", "--method", "stfpm-micronet", "--backbone", "tiny"), "micronet_m1")
    refused(run("costs", "--method", "stfmp"), "'stfpm'")
    refused(run("costs", "--method", ","), "no method")
    refused(run(*words, "--products", "2"), "--products")
    refused(run("costs", "--measure"), "--method")


# --- evaluate and demo


def test_evaluate_prints_a_table_and_writes_json(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "result.json"
    result = run("evaluate", data / "dataset", *TINY, "--out", out, "--seed", "1")
    assert result.code == 0
    lines = [line.rstrip() for line in result.out.splitlines()]
    assert max(map(len, lines)) <= 80
    found = json.loads(out.read_text())
    assert [row["product"] for row in found["products"]] == ["cap", "wood"]
    assert (found["image_size"], found["seed"], found["settings"]["training"]["epochs"]) == (64, 1, 2)
    for line, row in zip((*lines[3:5], lines[-1]), (*found["products"], found["mean"]), strict=True):
        name, auroc, *_ = line.split()
        assert (name, auroc) == (row.get("product", "mean"), f"{row['i_auroc']:.3f}")
    mean = np.mean([row["p_auroc"] for row in found["products"]])
    assert found["mean"]["p_auroc"] == pytest.approx(mean)
    assert list(out.parent.iterdir()) == [out]


def test_evaluate_goes_on_with_what_a_bank_holds(run: Run, data: Path, tmp_path: Path) -> None:
    words = ("evaluate", data / "dataset", *TINY, "--bank", tmp_path / "bank", "--out", tmp_path / "r.json")
    first = run(*words, "--products", "wood")
    assert re.findall(r"^(\w+): learnt", first.err, re.MULTILINE) == ["wood"]
    wood = Inspector.open(tmp_path / "bank").product("wood")
    second = run(*words, "--products", "wood,cap")
    assert re.findall(r"^(\w+): learnt", second.err, re.MULTILINE) == ["cap"]
    assert Inspector.open(tmp_path / "bank").product("wood") == wood
    found = json.loads((tmp_path / "r.json").read_text())["products"]
    assert [row["product"] for row in found] == ["wood", "cap"]


def test_evaluate_takes_the_dataset_from_the_environment(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTINUAD_DATA", str(data / "dataset" / "cap"))
    assert run("evaluate", *TINY, "--out", tmp_path / "r.json").code == 0
    monkeypatch.delenv("CONTINUAD_DATA")
    assert run("evaluate", *TINY).code == 2


def test_evaluate_refuses_before_it_learns(run: Run, data: Path, tmp_path: Path) -> None:
    words = (*TINY, "--bank", tmp_path / "bank")
    (tmp_path / "file").write_text("")
    refused(run("evaluate", tmp_path / "none", *words), "none")
    refused(run("evaluate", data / "dataset", *words, "--products", "cup"), "'cup'")
    refused(run("evaluate", data / "dataset", *words, "--layout", "mvtek"), "'mvtec'")
    refused(run("evaluate", data / "dataset", *words, "--out", tmp_path / "file" / "r.json"), "--out")
    refused(run("evaluate", data / "dataset", *words, "--set", "int8=maybe"), "true or false")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_demo_reports_and_its_last_commands_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--products", "cap,wood", "--train", "8", "--good", "1", "--defective", "2", "--out", "my demo")
    result = run("demo", *TINY, *words)
    assert result.code == 0
    assert re.findall(r"^(\w+): learnt", result.err, re.MULTILINE) == ["cap", "wood"]
    lines = result.out.splitlines()
    for header in ("I-AUROC", "P-AUROC", "routing", "KiB", "ms"):
        assert header in lines[1]
    assert [line.split()[0] for line in lines[3:5]] == ["cap", "wood"]
    digests = re.findall(r"^  (?:then|now)\s+([0-9a-f]{64})$", result.out, re.MULTILINE)
    assert len(digests) == 2
    assert digests[0] == digests[1]
    assert "nothing was forgotten" in result.out
    (sheet,) = re.findall(r"Look at (.*\.png)\.", result.out)
    assert Image.open(sheet).size[0] > 300
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("  continuad ")]
    assert [command[0] for command in commands] == ["learn", "inspect"]
    for command in commands:  # the first with the default head
        assert run(*command).code == 0
    assert len(Inspector.open("my demo/bank").products) == 3


def test_demo_does_not_touch_a_folder_of_others(run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    refused(run("demo", *TINY, "--out", tmp_path), str(tmp_path))
    refused(run("demo", *TINY, "--out", tmp_path / "a", "--products", "capp"), "'cap'")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# --- parts


@dataclass(frozen=True)
class Inner:
    epochs: int = 1
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    folder: str | None = "here"
    flag: bool = False
    passes: Literal[1, 2] = 1
    mode: Literal["sum", "product"] = "sum"
    strides: tuple[int, ...] = (8,)
    taps: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)


def test_settings_are_read_by_their_types() -> None:
    pairs = [
        "name=a=b",
        "folder=none",
        "flag=True",
        "passes=2",
        "mode=product",
        "strides=8,16",
        "taps=",
        "inner.epochs=3",
        " inner.rate = 1e-3 ",
        "inner.epochs=4",
    ]
    assert parse_settings(pairs, Outer()) == {
        "name": "a=b",
        "folder": None,
        "flag": True,
        "passes": 2,
        "mode": "product",
        "strides": (8, 16),
        "taps": (),
        "inner": {"epochs": 4, "rate": 0.001},
    }
    assert parse_settings(["folder=there", "strides=4", "flag=off"], Outer()) == {
        "folder": "there",
        "strides": (4,),
        "flag": False,
    }
    assert parse_settings([], Outer()) == {}


@pytest.mark.parametrize(
    ("pair", "remedy"),
    [
        ("flag", "NAME=VALUE"),
        ("flag=2", "true or false"),
        ("flog=1", "flag"),
        ("inner.epoch=1", "epochs, rate"),
        ("inner.epochs=1.5", "whole number"),
        ("inner.rate=fast", "a number"),
        ("inner=5", "epochs, rate"),
        ("inner.epochs.x=5", "last dot"),
        ("passes=3", "1 or 2"),
        ("strides=8;16", "commas"),
        ("=1", "name"),
    ],
)
def test_settings_that_do_not_fit_are_refused(pair: str, remedy: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        parse_settings([pair], Outer())
    assert pair.partition("=")[0] in refusal.value.problem
    assert remedy in refusal.value.remedy


@pytest.mark.parametrize("name", list(METHODS))
def test_every_setting_of_every_method_can_be_set(name: str) -> None:
    def pairs(values: object, prefix: str = "") -> Iterator[str]:
        for key, value in vars(values).items():
            if hasattr(value, "__dataclass_fields__"):
                yield from pairs(value, f"{prefix}{key}.")
            else:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                yield f"{prefix}{key}={text}"

    method = METHODS[name]
    assert method.configure(parse_settings(list(pairs(method.settings)), method.settings)) == method.settings


def test_progress_on_a_terminal_is_a_bar_with_the_time_left() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with ProgressBar(console) as progress:
        progress(0, 10, "reading [x]")
        progress(3, 10, "reading [x]")
        progress(1, 4, "training")
    text = screen.getvalue()
    assert "training" in text
    assert "1/4" in text
    assert re.search(r"-?-?[\d-]:[\d-][\d-]", text)


def test_progress_elsewhere_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80)
    with ProgressBar(console) as progress:
        progress(1, 2, "training")
        assert screen.getvalue() == ""
        monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.0)
        progress(2, 2, "training")
    assert screen.getvalue() == "training: 2 of 2\n"
