from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from continuad.bench import grid
from continuad.bench.fingerprints import Fingerprints
from continuad.bench.grid import RunSpec, load_grid
from continuad.errors import ContinuadError, DatasetError, SettingsError, WeightsError
from grid_works import dataset, put

LEAST = """
dataset = "data"
method = "stfpm"
backbone = "tiny"
strategy = "joint"
scenario = "continual"
"""


def load(folder: Path, text: str) -> list[RunSpec]:
    (folder / "study.toml").write_text(text)
    loaded = load_grid(folder / "study.toml")
    assert loaded.name == "study"
    return list(loaded.runs)


def test_a_spec_of_single_values_is_one_run(tmp_path: Path) -> None:
    assert load(tmp_path, LEAST) == [
        RunSpec(
            method="stfpm",
            backbone="tiny",
            weights="auto",
            strategy="joint",
            scenario="continual",
            seed=0,
            image_size=256,
            products=None,
            settings={},
            strategy_settings={},
            dataset=tmp_path / "data",
            layout="auto",
        )
    ]


def test_lists_multiply_and_the_seed_changes_fastest(tmp_path: Path) -> None:
    text = LEAST.replace('"stfpm"', '["paste", "stfpm"]').replace('"joint"', '["joint", "replay", "lwf"]')
    runs = load(tmp_path, text + 'seed = [3, 1]\nproducts = [["bolt", "nut"], ["nut", "bolt"]]\n')
    assert len(runs) == len({str((run, run.products)) for run in runs}) == 2 * 3 * 2 * 2
    assert [run.seed for run in runs[:4]] == [3, 1, 3, 1]
    assert [run.method for run in runs[:4]] == ["paste", "paste", "stfpm", "stfpm"]
    assert {run.products for run in runs[:12]} == {("bolt", "nut")}
    assert {run.products for run in runs[12:]} == {("nut", "bolt")}


def test_settings_reach_the_runs_of_their_method_and_strategy(tmp_path: Path) -> None:
    text = LEAST.replace('"stfpm"', '["paste", "stfpm"]').replace('"joint"', '["joint", "replay"]')
    text += "[settings.paste]\nsplit = 4\ntraining.epochs = 9\n[strategy_settings.replay]\nimages = 40\n"
    found = [(run.method, run.settings, run.strategy, run.strategy_settings) for run in load(tmp_path, text)]
    paste = {"split": 4, "training": {"epochs": 9}}
    assert found == [
        ("paste", paste, "joint", {}),
        ("stfpm", {}, "joint", {}),
        ("paste", paste, "replay", {"images": 40}),
        ("stfpm", {}, "replay", {"images": 40}),
    ]


def test_weights_may_differ_by_backbone(tmp_path: Path) -> None:
    text = LEAST.replace('"tiny"', '["tiny", "phinet", "resnet18"]')
    text += '[weights]\nphinet = "phi.pth"\ntiny = "random"\n'
    expected = [("tiny", "random"), ("phinet", str(tmp_path / "phi.pth")), ("resnet18", "auto")]
    assert [(run.backbone, run.weights) for run in load(tmp_path, text)] == expected
    with pytest.raises(SettingsError, match=r"\[weights.mcunet_in4\] is for a backbone not run"):
        load(tmp_path, text + 'mcunet_in4 = "auto"\n')
    with pytest.raises(SettingsError, match=r"weights.resnet18 is 3"):
        load(tmp_path, text + "resnet18 = 3\n")


def test_overrides_replace_what_the_file_and_its_entries_say(tmp_path: Path) -> None:
    text = LEAST.replace('dataset = "data"\n', "") + '[[run]]\nweights = "random"\n[[run]]\nseed = 3\n'
    (tmp_path / "study.toml").write_text(text)
    overrides = {"dataset": "/elsewhere", "weights": {"tiny": "auto"}}
    runs = load_grid(tmp_path / "study.toml", overrides=overrides).runs
    assert [(run.dataset, run.weights, run.seed) for run in runs] == [
        (Path("/elsewhere"), "auto", 0),
        (Path("/elsewhere"), "auto", 3),
    ]
    with pytest.raises(SettingsError, match="for a backbone not run"):
        load_grid(tmp_path / "study.toml", overrides={**overrides, "weights": {"phinet": "auto"}})


def test_defaults_count_where_the_file_says_nothing(tmp_path: Path) -> None:
    for text, expected in (
        (LEAST, tmp_path / "data"),
        (LEAST.replace('dataset = "data"\n', ""), Path("/usual")),
    ):
        (tmp_path / "study.toml").write_text(text)
        (run,) = load_grid(tmp_path / "study.toml", defaults={"dataset": "/usual"}).runs
        assert run.dataset == expected


def test_run_entries_are_grids_that_override_the_top(tmp_path: Path) -> None:
    text = LEAST + "seed = [0, 1]\n[settings.stfpm]\nlayers = 3\ntraining.epochs = 9\n"
    text += "[[run]]\n"
    text += '[[run]]\nmethod = ["paste", "stfpm"]\nseed = 7\nsettings.stfpm.training.epochs = 2\n'
    found = [(run.method, run.seed, run.settings) for run in load(tmp_path, text)]
    assert found == [
        ("stfpm", 0, {"layers": 3, "training": {"epochs": 9}}),
        ("stfpm", 1, {"layers": 3, "training": {"epochs": 9}}),
        ("paste", 7, {}),
        ("stfpm", 7, {"layers": 3, "training": {"epochs": 2}}),
    ]


def test_an_entry_may_say_what_the_top_leaves_open(tmp_path: Path) -> None:
    text = LEAST.replace('method = "stfpm"\n', "")
    assert [run.method for run in load(tmp_path, text + '[[run]]\nmethod = "paste"\n')] == ["paste"]


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies").mkdir()
    monkeypatch.chdir(tmp_path)
    sources = ["auto", "random", "w/net.pth", "/w/net.pth", "https://a.b/net.pth#sha256=00000000"]
    text = LEAST.replace('"data"', '["../data", "/abs"]') + f"weights = {sources}\n"
    (tmp_path / "studies/study.toml").write_text(text)
    runs = load_grid(Path("studies/study.toml")).runs
    assert {run.dataset for run in runs} == {tmp_path / "studies/../data", Path("/abs")}
    assert [run.weights for run in runs[:5]] == [
        "auto",
        "random",
        str(tmp_path / "studies/w/net.pth"),
        "/w/net.pth",
        "https://a.b/net.pth#sha256=00000000",
    ]


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        (LEAST.replace("method", "metod"), "there is no key 'metod'", "Did you mean 'method'?"),
        (LEAST + "zzz = 1\n", "there is no key 'zzz'", "Choose one of: dataset, layout, scenario"),
        (LEAST + "[[run]]\nsed = 1\n", "number 1: there is no key 'sed'", "Did you mean 'seed'?"),
        (LEAST.replace('backbone = "tiny"', ""), "says no backbone", "Add backbone = ..."),
        (LEAST + "seed = []\n", "seed is an empty list", "Fill it, or leave it out"),
        (LEAST + "products = []\n", "products is an empty list", "Fill it"),
        (LEAST + 'products = [["bolt"], []]\n', "products is an empty list", "Fill it"),
        (LEAST + "run = []\n", "run is an empty list", "Fill it"),
        (LEAST + 'seed = ["1"]\n', "seed is '1'", "Give whole numbers from 0 up"),
        (LEAST + "seed = true\n", "seed is True", "Give whole numbers"),
        (LEAST + "seed = -1\n", "seed is -1", "from 0 up"),
        (LEAST + "image_size = 0\n", "image_size is 0", "from 1 up"),
        (LEAST + "layout = 1\n", "layout is 1", "Give text, one or a list"),
        (LEAST + 'layout = [["mvtec"]]\n', "layout is", "Give text"),
        (LEAST + 'weights = ""\n', "weights is ''", "Give text"),
        (LEAST + 'products = "bolt"\n', "products is 'bolt'", "Give a list of names"),
        (LEAST + 'products = [["bolt"], "nut"]\n', "products is", "Give a list of names"),
        (LEAST + 'products = ["bolt", "nut", "bolt"]\n', "names one twice", "Name each once"),
        (LEAST + "settings = 3\n", "settings is not sorted by method", "Write [settings.NAME]"),
        (LEAST + "[strategy_settings]\nimages = 3\n", "not sorted by strategy", "[strategy_settings.NAME]"),
        (LEAST + "[settings.stfmp]\nx = 1\n", "[settings.stfmp] is for a method not run", "'stfpm'?"),
        (LEAST + "[[run]]\nsettings.paste.x = 1\n", "number 1: [settings.paste]", "Choose one of: stfpm."),
        (LEAST + "[settings.stfpm]\nday = 2024-01-01\n", "holds a date or a time", "Give numbers or text"),
        (LEAST + "[run]\nseed = 1\n", "run is not a list of tables", "Write [[run]] above each entry"),
        (LEAST + "seed = = 1\n", "is not TOML", "line 7"),
    ],
)
def test_what_is_wrong_with_a_spec_is_said(tmp_path: Path, text: str, problem: str, remedy: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert caught.value.problem.startswith(str(tmp_path / "study.toml"))
    assert problem in caught.value.problem
    assert remedy in str(caught.value)


def test_a_spec_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml cannot be read \(No such file"):
        load_grid(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes("method = 'é'".encode("latin-1"))
    with pytest.raises(SettingsError, match="is not UTF-8 text"):
        load_grid(tmp_path / "latin.toml")


def base(root: Path) -> RunSpec:
    """A run on two products with a weights file, all of which exist under `root`."""
    put(root / "net.pth", "weights")
    return RunSpec(
        method="stfpm",
        backbone="tiny",
        weights=str(root / "net.pth"),
        strategy="joint",
        scenario="continual",
        seed=0,
        image_size=256,
        products=("bolt", "nut"),
        settings={"training": {"epochs": 1}},
        strategy_settings={},
        dataset=dataset(root / "data", "bolt", "nut", "cap"),
        layout="auto",
        device="cpu",
    )


def key(run: RunSpec) -> str:
    return run.key(Fingerprints())


FIELDS: dict[str, Any] = {
    "method": "paste",
    "backbone": "resnet18",
    "weights": "auto",
    "strategy": "replay",
    "scenario": "single",
    "seed": 1,
    "image_size": 224,
    "products": ("nut", "bolt"),
    "settings": {"training": {"epochs": 2}},
    "strategy_settings": {"images": 1},
    "dataset": Path("data"),
    "layout": "mvtec",
    "device": "cuda",
}
NO_PATHS = [name for name in FIELDS if name != "dataset"]


def test_the_key_is_of_what_the_settings_come_to(tmp_path: Path) -> None:
    run = base(tmp_path)
    other = replace(run, settings={"training": {"epochs": 1, "rate": 0.4}})

    def key(run: RunSpec, rate: float) -> str:
        return run.key(Fingerprints(settings=lambda run: {"rate": rate} | run.settings["training"]))

    assert key(run, 0.4) == key(other, 0.4) == key(other, 0.5)
    assert len({key(run, 0.4), key(run, 0.5), run.key(Fingerprints()), other.key(Fingerprints())}) == 4


def test_no_field_is_left_out_below() -> None:
    assert set(FIELDS) == {field.name for field in fields(RunSpec)}


@pytest.mark.parametrize("name", NO_PATHS)
def test_the_key_changes_with_each_field(tmp_path: Path, name: str) -> None:
    run = base(tmp_path)
    other = replace(run, **{name: FIELDS[name]})
    assert key(other) != key(run)
    assert key(replace(other, **{name: getattr(run, name)})) == key(run)
    assert len(key(run)) == 32


def test_the_keys_of_runs_that_differ_in_two_fields_differ_from_either(tmp_path: Path) -> None:
    run = base(tmp_path)
    pairs = [{first: FIELDS[first], second: FIELDS[second]} for first in NO_PATHS for second in NO_PATHS]
    known = Fingerprints()
    keys = {tuple(sorted(pair)): replace(run, **pair).key(known) for pair in pairs}
    assert len(set(keys.values())) == len(keys) == len(NO_PATHS) * (len(NO_PATHS) + 1) // 2


def rename(root: Path) -> None:
    (root / "data/bolt/train/good/1.png").rename(root / "data/bolt/train/good/2.png")


def relabel(root: Path) -> None:
    (root / "data/bolt/test/crack").rename(root / "data/bolt/test/dent")
    (root / "data/bolt/ground_truth/crack").rename(root / "data/bolt/ground_truth/dent")


INFLUENCES: dict[str, Callable[[Path], object]] = {
    "a weights file": lambda root: put(root / "net.pth", "other weights"),
    "a training image": lambda root: put(root / "data/nut/train/good/0.png", "other"),
    "a test image": lambda root: put(root / "data/nut/test/good/0.png", "other"),
    "a mask": lambda root: put(root / "data/nut/ground_truth/crack/0_mask.png", "other"),
    "a mask less": lambda root: (root / "data/nut/ground_truth/crack/0_mask.png").unlink(),
    "an image more": lambda root: put(root / "data/bolt/train/good/2.png", "more"),
    "an image less": lambda root: (root / "data/bolt/train/good/1.png").unlink(),
    "an image with another name": rename,
    "another kind of defect": relabel,
}
NO_INFLUENCES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda root: None,
    "a product not chosen": lambda root: put(root / "data/cap/train/good/0.png", "other"),
    "a product more": lambda root: dataset(root / "data", "plug"),
    "a file that is no image": lambda root: put(root / "data/bolt/readme.txt", "hello"),
}


@pytest.mark.parametrize("change", INFLUENCES)
def test_the_key_changes_with_what_lies_behind_the_paths(tmp_path: Path, change: str) -> None:
    run = base(tmp_path)
    before = key(run)
    INFLUENCES[change](tmp_path)
    assert key(run) != before


@pytest.mark.parametrize("change", NO_INFLUENCES)
def test_the_key_stays_where_the_result_does(tmp_path: Path, change: str) -> None:
    run = base(tmp_path)
    before = key(run)
    NO_INFLUENCES[change](tmp_path)
    assert key(run) == before


def test_a_product_more_counts_where_all_are_learnt(tmp_path: Path) -> None:
    run = replace(base(tmp_path), products=None)
    before = key(run)
    dataset(tmp_path / "data", "plug")
    assert key(run) != before


def test_the_key_changes_with_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = base(tmp_path)
    before = key(run)
    monkeypatch.setattr(grid, "__version__", "99")
    assert key(run) != before


def test_the_key_does_not_depend_on_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = base(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    (tmp_path / "there/data").rename(tmp_path / "there/photos")
    (tmp_path / "there/net.pth").rename(tmp_path / "there/copy.pt")
    moved = replace(run, dataset=tmp_path / "there/photos", weights=str(tmp_path / "there/copy.pt"))
    assert key(moved) == key(run)
    monkeypatch.chdir(tmp_path / "there")
    assert key(replace(moved, dataset=Path("photos"), weights="copy.pt")) == key(run)


def test_files_are_read_once(tmp_path: Path) -> None:
    run, known = base(tmp_path), Fingerprints()
    before = run.key(known)
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "net.pth").unlink()
    assert run.key(known) == before


def test_reading_a_dataset_shows_progress(tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    known = Fingerprints(progress=lambda done, total, what: calls.append((done, total, what)))
    known.dataset(dataset(tmp_path / "data"))
    assert calls == [(done, 4, "reading data") for done in range(5)]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    run = base(tmp_path)
    with pytest.raises(WeightsError, match=r"none\.pth cannot be read \(No such file"):
        key(replace(run, weights=str(tmp_path / "none.pth")))
    with pytest.raises(DatasetError, match="does not exist"):
        key(replace(run, dataset=tmp_path / "none"))
    with pytest.raises(ContinuadError, match="no product 'nutt'"):
        key(replace(run, products=("nutt",)))


def test_the_facts_are_flat_and_hold_no_folders(tmp_path: Path) -> None:
    facts = base(tmp_path).facts()
    assert all(value is None or isinstance(value, str | int) for value in facts.values())
    assert str(tmp_path) not in str(facts)
    assert (facts["dataset"], facts["weights"]) == ("data", "net.pth")
    assert (facts["products"], facts["settings"]) == ('["bolt","nut"]', '{"training":{"epochs":1}}')
