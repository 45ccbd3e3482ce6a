"""Early stopping, and trainings that are interrupted and go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from continuad.detectors import checkpoint
from continuad.detectors.checkpoint import Checkpoint
from continuad.detectors.training import TrainingSettings, train
from continuad.errors import ContinuadError, SettingsError

INPUTS = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
PLAN = TrainingSettings(epochs=3, batch_size=6, learning_rate=0.05, momentum=0.9)
STEPS = 12


@pytest.fixture(autouse=True)
def _save_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "is_due", lambda self: True)


def network() -> nn.Sequential:
    """A network with statistics, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))


def fit(
    path: Path | None, plan: TrainingSettings = PLAN, *, stop_at: int | None = None, seed: int = 0
) -> tuple[dict[str, Tensor], list[dict[str, float]], list[list[int]]]:
    """Train the network; returns its state, the history and the minibatches seen."""
    model, steps = network(), list[list[int]]()

    def losses(indices: Tensor, epoch: int) -> dict[str, Tensor]:
        x = INPUTS[indices]
        if torch.is_grad_enabled():
            steps.append(indices.tolist())
        return {"a": (model(x).squeeze(1) - x[:, 0] * epoch).square().mean(), "b": model(x).abs().mean()}

    def progress(done: int, total: int, what: str) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    try:
        history = train(
            model, losses, count=len(INPUTS), settings=plan, seed=seed, progress=progress, checkpoint=path
        )
    except KeyboardInterrupt:
        history = []
    return model.state_dict(), history, steps


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# --- going on -------------------------------------------------------------------------------------


@examples(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stops=st.lists(st.integers(1, STEPS), max_size=3, unique=True).map(sorted),
    optimiser=st.sampled_from(["sgd", "adam"]),
    patience=st.sampled_from([0, 1, 3]),
)
def test_any_interruptions_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], optimiser: Any, patience: int
) -> None:
    plan = replace(PLAN, optimiser=optimiser, patience=patience, epochs=4)
    path = tmp_path_factory.mktemp("run") / "folder" / "model.safetensors"
    state, history, steps = fit(None, plan)
    made: list[list[int]] = []
    for stop in [*stops, None]:
        resumed, again, more = fit(path, plan, stop_at=stop)
        made += more
    assert same(resumed, state)
    assert again == history
    assert made == steps, "a step was made twice, or not at all"


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    state, history, _ = fit(tmp_path / "model.safetensors")
    again, same_history, steps = fit(tmp_path / "model.safetensors")
    assert steps == []
    assert same(again, state)
    assert same_history == history


@pytest.mark.parametrize("change", [{"learning_rate": 0.06}, {"epochs": 4}, {"batch_size": 5}])
def test_another_training_does_not_go_on_from_it(tmp_path: Path, change: dict[str, Any]) -> None:
    path, other = tmp_path / "model.safetensors", replace(PLAN, **change)
    fit(path, stop_at=5)
    assert same(fit(path, other)[0], fit(None, other)[0])
    fit(path, stop_at=5)
    assert same(fit(path, seed=1)[0], fit(None, seed=1)[0])


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None])
def test_a_damaged_checkpoint_counts_as_none(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "model.safetensors"
    fit(path, stop_at=5)
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    state, _, steps = fit(path)
    assert len(steps) == STEPS
    assert same(state, fit(None)[0])


def test_a_checkpoint_is_a_plain_safetensors_file_that_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    fit(path, stop_at=5)
    tensors = safetensors.torch.load_file(path)
    assert {name.partition(".")[0] for name in tensors} == {"model", "optimiser"}
    with safetensors.safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    assert facts["about"]["count"] == len(INPUTS)
    assert facts["state"]["step"] == 5
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_whole", full)
    with pytest.raises(
        ContinuadError, match=r"cannot be written: No space left on device\. Check free space"
    ):
        fit(tmp_path / "model.safetensors")


def test_saving_waits_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    clock = iter([0.0, 9.9, 10.0, 11.0, 13.0, 13.0, 50.0, 53.1])
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: next(clock))
    kept = Checkpoint(tmp_path / "file", {})
    assert [kept.is_due(), kept.is_due()] == [False, True]
    kept.save({}, {})  # takes two seconds: a twentieth of the time is 40 seconds
    assert [kept.is_due(), kept.is_due()] == [False, True]


# --- early stopping -------------------------------------------------------------------------------


def watched(values: list[float], **plan: Any) -> tuple[list[dict[str, float]], float, list[set[int]]]:
    """Train a counter of steps whose held-out losses are given; returns history, count and images seen."""
    counter = nn.Parameter(torch.zeros(()))
    seen: list[set[int]] = [set(), set()]

    def losses(indices: Tensor, epoch: int) -> dict[str, Tensor]:
        training = torch.is_grad_enabled()
        seen[training] |= set(indices.tolist())
        return {"loss": -counter if training else torch.tensor(values[epoch])}

    schedule = TrainingSettings(
        **{"epochs": len(values), "batch_size": 99, "learning_rate": 1, "final_learning_rate": 1, **plan}
    )
    history = train(nn.ParameterList([counter]), losses, count=20, settings=schedule, seed=0)
    return history, counter.item(), seen


def test_training_stops_after_its_patience_and_returns_to_the_best_epoch() -> None:
    history, steps, _ = watched([5, 3, 4, 3, 2.5, 9, 2.5, 1], patience=2)
    assert [epoch["held_out"] for epoch in history] == [5, 3, 4, 3]
    assert steps == 2
    history, steps, _ = watched([5, 3, 4, 3, 2.5, 9, 2.5, 1], patience=3)
    assert len(history) == 8
    assert steps == 8


def test_what_is_held_out_is_never_trained_on() -> None:
    _, _, (held, trained) = watched([3, 2, 1], patience=1, held_out=0.25)
    assert len(held) == 5
    assert held | trained == set(range(20))
    assert not held & trained


def test_without_patience_all_images_are_trained_on_and_the_last_epoch_counts() -> None:
    history, steps, (held, trained) = watched([1, 2, 3])
    assert (len(trained), len(held), steps) == (20, 0, 3)
    assert all("held_out" not in epoch for epoch in history)


def test_one_image_leaves_none_to_hold_out() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(SettingsError, match="none to hold out"):
        train(model, lambda i, e: {}, count=1, settings=TrainingSettings(patience=1), seed=0)


def test_held_out_images_meet_a_network_in_eval_mode() -> None:
    model, modes = nn.Linear(1, 1), list[tuple[bool, bool]]()

    def losses(indices: Tensor, epoch: int) -> dict[str, Tensor]:
        modes.append((model.training, torch.is_grad_enabled()))
        return {"loss": model(torch.ones(1)).sum()}

    train(model, losses, count=4, settings=TrainingSettings(epochs=2, patience=2), seed=0)
    assert modes == [(True, True), (False, False)] * 2
    assert not model.training


def test_an_early_end_completes_the_progress() -> None:
    ticks: list[tuple[int, int]] = []
    model = nn.Linear(1, 1)
    schedule = TrainingSettings(epochs=9, patience=1)

    def losses(indices: Tensor, epoch: int) -> dict[str, Tensor]:
        return {"loss": model(torch.ones(1)).sum() * 0 + epoch}

    def note(done: int, total: int, what: str) -> None:
        ticks.append((done, total))

    train(model, losses, count=4, settings=schedule, seed=0, progress=note)
    assert ticks == [(1, 9), (2, 9), (9, 9)]
