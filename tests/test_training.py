from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from continuad.detectors.training import TrainingSettings, train
from continuad.errors import SettingsError
from continuad.progress import silent

Losses = Callable[[Tensor, int], dict[str, Tensor]]
TARGETS = torch.linspace(-1, 1, 10)


def parabola(weight: nn.Parameter, seen: list[tuple[int, list[int]]] | None = None) -> Losses:
    """Mean squared distance of the weight from the targets of a minibatch."""

    def losses(indices: Tensor, epoch: int) -> dict[str, Tensor]:
        if seen is not None:
            seen.append((epoch, indices.tolist()))
        return {"fit": ((weight - TARGETS[indices]) ** 2).mean()}

    return losses


def sloped(weight: nn.Parameter, slope: float, indices: Tensor, epoch: int) -> dict[str, Tensor]:
    return {"slope": slope * weight}


def run(
    weight: nn.Parameter, losses: Losses, *, seed: int = 0, count: int = 10, **values: Any
) -> list[dict[str, float]]:
    schedule = TrainingSettings(**{"epochs": 3, "batch_size": 4, **values})
    return train(
        nn.ParameterList([weight]), losses, count=count, settings=schedule, seed=seed, progress=silent
    )


# --- the schedule ---------------------------------------------------------------------------------


def test_the_cosine_steps_once_per_epoch_from_the_first_rate_towards_the_last() -> None:
    weight = nn.Parameter(torch.zeros(()))
    values: list[float] = []

    def losses(indices: Tensor, epoch: int) -> dict[str, Tensor]:
        values.append(weight.item())
        return {"slope": weight}  # its gradient is 1: every step subtracts the learning rate

    run(weight, losses, epochs=5, batch_size=5, learning_rate=0.3, final_learning_rate=0.02)
    values.append(weight.item())
    rates = [before - after for before, after in itertools.pairwise(values)]
    expected = [0.02 + 0.28 * (1 + math.cos(math.pi * epoch / 5)) / 2 for epoch in range(5)]
    assert rates == pytest.approx([rate for rate in expected for _ in range(2)], abs=1e-6)


def test_momentum_and_weight_decay_reach_the_optimiser() -> None:
    def after_two_steps(**values: Any) -> float:
        weight = nn.Parameter(torch.ones(()))
        run(weight, partial(sloped, weight, 1.0), epochs=1, batch_size=5, learning_rate=0.1, **values)
        return weight.item()

    assert after_two_steps() == pytest.approx(1 - 0.1 - 0.1)
    assert after_two_steps(momentum=0.5) == pytest.approx(1 - 0.1 - 0.15)
    assert after_two_steps(weight_decay=1.0) == pytest.approx((1 - 0.2) - 0.1 * (1 + 0.8))


def test_the_defaults_are_the_published_ones() -> None:
    assert TrainingSettings() == TrainingSettings(
        epochs=30,
        min_steps=0,
        batch_size=32,
        optimiser="sgd",
        learning_rate=0.1,
        final_learning_rate=0.001,
        momentum=0.0,
        weight_decay=0.0,
        steps=0,
        drop_last=False,
        betas=(0.9, 0.999),
        patience=0,
        mixed_precision=False,
    )


@pytest.mark.parametrize("steps", [1, 3, 4, 8])
def test_a_number_of_steps_is_kept_exactly(steps: int) -> None:
    weight, seen = nn.Parameter(torch.zeros(())), list[list[int]]()

    def losses(indices: Tensor, epoch: int) -> dict[str, Tensor]:
        seen.append(indices.tolist())
        return {"ramp": indices.double().mean() + 0 * weight}

    history = run(weight, losses, steps=steps, min_steps=100)
    assert len(seen) == steps  # of three an epoch
    assert len(history) == math.ceil(steps / 3)
    last = [image for batch in seen[3 * (len(history) - 1) :] for image in batch]
    assert history[-1]["ramp"] == pytest.approx(sum(last) / len(last))


@pytest.mark.parametrize(("count", "sizes"), [(10, [4, 4]), (8, [4, 4]), (3, [3]), (5, [4])])
def test_a_short_last_batch_can_be_left_out(count: int, sizes: list[int]) -> None:
    weight, seen = nn.Parameter(torch.zeros(())), list[tuple[int, list[int]]]()
    run(weight, parabola(weight, seen), count=count, drop_last=True)
    assert [len(batch) for _, batch in seen] == 3 * sizes


def test_parts_have_a_learning_rate_of_their_own_and_the_rest_has_none() -> None:
    model = nn.ModuleList(nn.ParameterList([torch.zeros(())]) for _ in range(3))
    fast, slow, still = (part[0] for part in model)  # type: ignore[index]
    schedule = TrainingSettings(epochs=2, batch_size=10, learning_rate=1, final_learning_rate=0.5)
    train(
        model,
        lambda indices, epoch: {"slope": fast + slow + still},
        count=10,
        settings=schedule,
        seed=0,
        learning_rates=[(model[0], 0.4), (model[1], 0.1)],
    )
    assert fast.item() == pytest.approx(-0.4 * (1 + 0.75))
    assert slow.item() == pytest.approx(-0.1 * (1 + 0.75))
    assert still.item() == 0


def test_gradients_can_be_changed_before_the_step() -> None:
    """A quadratic penalty, as of elastic weight consolidation: the minimum is the weighted mean."""
    weight = nn.Parameter(torch.tensor(5.0))

    def pull(model: nn.Module) -> None:
        assert weight.grad is not None
        weight.grad += 2 * 3 * (weight.detach() - 1)

    schedule = TrainingSettings(epochs=200, batch_size=10, learning_rate=0.05, final_learning_rate=0.05)
    model = nn.ParameterList([weight])
    train(model, parabola(weight), count=10, settings=schedule, seed=0, on_gradients=pull)
    assert weight.item() == pytest.approx((0 * 1 + 1 * 3) / 4, abs=1e-4)


def test_mixed_precision_is_for_gpus() -> None:
    def outcome(**values: Any) -> float:
        layer = nn.Linear(4, 4, bias=False)
        nn.init.eye_(layer.weight)
        inputs = torch.linspace(0, 1, 40).reshape(10, 4)
        train(
            layer,
            lambda indices, epoch: {"loss": layer(inputs[indices]).square().mean()},
            count=10,
            settings=TrainingSettings(epochs=1, **values),
            seed=0,
        )
        return layer.weight.sum().item()

    assert outcome(mixed_precision=True) == outcome()


def test_adam_steps_by_the_learning_rate_whatever_the_slope() -> None:
    for slope in (1e-3, 50.0):
        weight = nn.Parameter(torch.zeros(()))
        run(
            weight,
            partial(sloped, weight, slope),
            epochs=1,
            batch_size=10,
            learning_rate=0.01,
            optimiser="adam",
        )
        assert weight.item() == pytest.approx(-0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("count", "min_steps", "epochs"), [(10, 0, 3), (10, 9, 3), (10, 10, 4), (1, 7, 7), (100, 7, 3)]
)
def test_few_images_make_more_epochs(count: int, min_steps: int, epochs: int) -> None:
    weight = nn.Parameter(torch.zeros(()))
    history = run(weight, partial(sloped, weight, 1.0), count=count, min_steps=min_steps)
    assert len(history) == epochs  # of batches of four images
    each, total = TrainingSettings(epochs=3, batch_size=4, min_steps=min_steps).steps_for(count)
    assert (each, total) == (math.ceil(count / 4), epochs * each)


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"optimiser is 'sdg'.*'sgd' or 'adam'"):
        TrainingSettings(optimiser="sdg")  # type: ignore[arg-type]


# --- minibatches and history ----------------------------------------------------------------------


def test_every_epoch_sees_every_image_once_in_another_order() -> None:
    weight, seen = nn.Parameter(torch.zeros(())), list[tuple[int, list[int]]]()
    run(weight, parabola(weight, seen))
    orders = [[index for at, batch in seen for index in batch if at == epoch] for epoch in range(3)]
    assert [[len(batch) for at, batch in seen if at == epoch] for epoch in range(3)] == [[4, 4, 2]] * 3
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_the_history_is_the_mean_over_images_not_over_batches() -> None:
    weight = nn.Parameter(torch.zeros(()))

    def losses(indices: Tensor, epoch: int) -> dict[str, Tensor]:
        ramp = indices.double().mean() + 100 * epoch
        return {"ramp": ramp + 0 * weight, "one": torch.ones(()) + weight * 0}

    history = run(weight, losses)
    assert [epoch["ramp"] for epoch in history] == pytest.approx([4.5, 104.5, 204.5])
    assert [epoch["one"] for epoch in history] == pytest.approx([1, 1, 1])


def test_the_sum_of_all_terms_is_minimised() -> None:
    weight = nn.Parameter(torch.zeros(()))
    run(
        weight,
        lambda indices, epoch: {"low": (weight - 1) ** 2, "high": (weight - 3) ** 2},
        epochs=50,
        learning_rate=0.1,
    )
    assert weight.item() == pytest.approx(2.0, abs=1e-3)


def test_same_seed_same_result_other_seed_other_order() -> None:
    def outcome(seed: int) -> tuple[float, list[dict[str, float]]]:
        weight = nn.Parameter(torch.zeros(()))
        return weight.item(), run(weight, parabola(weight), seed=seed)

    assert outcome(3) == outcome(3)
    assert outcome(3) != outcome(4)


def test_the_callers_random_state_is_left_alone() -> None:
    weight = nn.Parameter(torch.zeros(()))
    before = torch.random.get_rng_state()
    run(weight, parabola(weight))
    assert torch.equal(torch.random.get_rng_state(), before)


# --- progress -------------------------------------------------------------------------------------


def test_progress_ticks_after_every_step() -> None:
    weight, ticks = nn.Parameter(torch.zeros(())), list[tuple[int, int, str]]()
    train(
        nn.ParameterList([weight]),
        parabola(weight),
        count=10,
        settings=TrainingSettings(epochs=2, batch_size=4),
        seed=0,
        progress=lambda *tick: ticks.append(tick),
    )
    assert ticks == [(done, 6, "training") for done in range(1, 7)]


def test_progress_may_stop_the_work() -> None:
    weight, seen = nn.Parameter(torch.zeros(())), list[tuple[int, list[int]]]()

    def stop(done: int, total: int, what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            nn.ParameterList([weight]),
            parabola(weight, seen),
            count=10,
            settings=TrainingSettings(batch_size=4),
            seed=0,
            progress=stop,
        )
    assert len(seen) == 2


# --- what cannot work -----------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "batch_size"), [(50, 10), (1, 2)])
def test_divergence_is_an_error(epochs: int, batch_size: int) -> None:
    weight = nn.Parameter(torch.ones(()))
    with pytest.raises(SettingsError, match=r"diverged in epoch \d+.* Lower the learning rate"):
        run(weight, parabola(weight), epochs=epochs, batch_size=batch_size, learning_rate=1e30)


def test_divergence_by_the_very_last_step_is_an_error_too() -> None:
    weight = nn.Parameter(torch.ones(()))
    with pytest.raises(SettingsError, match=r"diverged in epoch 1"):
        run(weight, partial(sloped, weight, 1e30), epochs=1, batch_size=10, learning_rate=1e30)


def test_a_single_value_has_no_spread_for_a_batch_norm() -> None:
    norm = nn.BatchNorm1d(2)
    with pytest.raises(SettingsError, match=r"single value .* Give more or larger images"):
        train(
            norm,
            lambda indices, epoch: {"loss": norm(torch.ones(len(indices), 2)).sum()},
            count=1,
            settings=TrainingSettings(),
            seed=0,
        )


@pytest.mark.parametrize("name", ["epochs", "batch_size", "learning_rate"])
@pytest.mark.parametrize("value", [0, -1])
def test_settings_that_train_nothing_are_refused(name: str, value: int) -> None:
    with pytest.raises(SettingsError, match=rf"{name} is {value}\. Set {name} to more than 0"):
        TrainingSettings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 1.0), (-0.1, 0.9), (0.5, math.nan)])
def test_betas_that_do_not_average_are_refused(betas: tuple[float, ...]) -> None:
    with pytest.raises(SettingsError, match=r"betas is .*two numbers"):
        TrainingSettings(betas=betas)


@pytest.mark.parametrize("share", [0, 1, -0.5, math.nan])
def test_holding_out_nothing_or_all_is_refused(share: float) -> None:
    with pytest.raises(SettingsError, match=r"held_out is .*between 0 and 1"):
        TrainingSettings(held_out=share)


@pytest.mark.parametrize(
    "name", ["min_steps", "steps", "patience", "final_learning_rate", "momentum", "weight_decay"]
)
def test_negative_settings_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} is -0\.1\. Set {name} to 0 or more"):
        TrainingSettings(**{name: -0.1})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["learning_rate", "final_learning_rate", "momentum", "weight_decay"])
def test_settings_that_are_not_numbers_are_refused(name: str) -> None:
    nan = json.loads("NaN")
    with pytest.raises(SettingsError, match=f"{name} is nan"):
        TrainingSettings(**{name: nan})
