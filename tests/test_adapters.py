from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from continuad.backbones import create_backbone
from continuad.detectors.adapters import ADAPTER_KINDS, Adapter
from continuad.detectors.adapts import AdapTS, AdapTSSettings
from continuad.errors import SettingsError


def fill(parameter: Tensor | None, *values: float) -> None:
    assert parameter is not None
    with torch.no_grad():
        parameter.copy_(torch.tensor(values).view_as(parameter))


def test_equation_2_by_hand() -> None:
    adapter = Adapter(2).eval()
    fill(adapter.conv1.weight, 1, 2, 0, -1)  # W1 x + b1 = (5, -1.5) for x = (1, 2), b1 = (0, 0.5)
    fill(adapter.conv1.bias, 0, 0.5)
    fill(adapter.norm1.running_mean, 1, 0)
    fill(adapter.norm1.running_var, 4 - adapter.norm1.eps, 1 - adapter.norm1.eps)
    fill(adapter.norm1.weight, 3, 1)
    fill(adapter.norm1.bias, 1, 0)  # BN: ((5 - 1) / 2 * 3 + 1, -1.5) = (7, -1.5), relu: (7, 0)
    fill(adapter.conv2.weight, 2, 100, -1, 100)
    fill(adapter.conv2.bias, 0.25, 0)  # W2 h + b2 = (14.25, -7)
    x = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    assert torch.allclose(adapter.hidden(x).flatten(), torch.tensor([7.0, 0.0]), atol=1e-5)
    assert torch.allclose(adapter(x).flatten(), torch.tensor([15.25, -5.0]), atol=1e-5)


def test_a_bottleneck_normalises_its_residual_too() -> None:
    adapter = Adapter(4, "bottleneck50").eval()
    assert adapter.norm2 is not None
    x = torch.randn(1, 4, 3, 3)
    plain = adapter.conv2(adapter.hidden(x))
    fill(adapter.norm2.bias, 1, 2, 3, 4)
    fill(adapter.norm2.running_var, *[0.25 - adapter.norm2.eps] * 4)
    expected = x + 2 * plain + torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    assert torch.allclose(adapter(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "channels", "latent"),
    [
        ("linear", 7, 7),
        ("expansion", 7, 14),
        ("bottleneck50", 7, 3),
        ("bottleneck50", 1, 1),
        ("bottleneck25", 40, 10),
        ("bottleneck25", 7, 1),
        ("bottleneck25", 3, 1),
    ],
)
def test_latent_channels_are_floored_and_at_least_one(kind: str, channels: int, latent: int) -> None:
    adapter = Adapter(channels, kind)
    x = torch.randn(2, channels, 5, 4)
    assert adapter.hidden(x).shape == (2, latent, 5, 4)
    assert adapter(x).shape == x.shape
    assert (adapter.norm2 is not None) == kind.startswith("bottleneck")


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_initial_weights_are_orthogonal_and_biases_zero(kind: str) -> None:
    adapter = Adapter(24, kind)
    for conv in (adapter.conv1, adapter.conv2):
        weight = conv.weight.detach().flatten(1)
        gram = weight @ weight.t() if weight.shape[0] <= weight.shape[1] else weight.t() @ weight
        assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5)
        assert conv.bias is not None
        assert not conv.bias.any()


def test_positions_do_not_mix() -> None:
    adapter = Adapter(6).eval()
    x = torch.randn(1, 6, 4, 4)
    changed = x.clone()
    changed[:, :, 1, 2] += 1
    differs = (adapter(x) != adapter(changed)).any(1)[0]
    assert differs.nonzero().tolist() == [[1, 2]]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"no adapter kind 'lora'\. Choose one of: linear, expansion"):
        Adapter(8, "lora")


# --- as the student's part of AdapTS --------------------------------------------------------------


def detector(passes: Literal[1, 2]) -> AdapTS:
    torch.manual_seed(0)
    settings = AdapTSSettings(taps=("layer0", "layer1", "layer2"), passes=passes, fusion="sum")
    return AdapTS(create_backbone("tiny", weights="random"), settings)


def images() -> Tensor:
    return torch.randint(
        0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )


def make_identities(model: AdapTS) -> None:
    for adapter in model.adapters:
        assert isinstance(adapter, Adapter)
        nn.init.zeros_(adapter.conv2.weight)
        fill(adapter.conv2.bias, *[0.0] * adapter.conv2.out_channels)


def test_identity_adapters_see_no_anomaly_anywhere() -> None:
    once, twice = detector(1), detector(2)
    assert once.anomaly_maps(images()).min() > 0
    for model in (once, twice):
        make_identities(model)
        assert not model.anomaly_maps(images()).any()


def test_passes_feed_the_next_block_with_the_adapter_applied_once_or_twice() -> None:
    once, twice = detector(1), detector(2)
    twice.load_state_dict(once.state_dict())
    shared = once.backbone.features(images(), ["layer0"])["layer0"]
    first, second = list(once.adapters)[:2]
    for model, fed in [(once, first(shared)), (twice, first(first(shared)))]:
        student = model.student_features(shared, list(model.adapters))
        below = model.backbone.features(fed, ["layer1"], start="layer0")["layer1"]
        assert torch.equal(student["layer0"], first(shared))
        assert torch.equal(student["layer1"], second(below))


def test_the_last_adapter_is_applied_once_and_nothing_runs_behind_it() -> None:
    model = detector(2)
    calls = [0, 0, 0]

    def counted(index: int) -> nn.Module:
        def count(*_: object) -> None:
            calls[index] += 1

        model.adapters[index].register_forward_hook(count)
        return model.adapters[index]

    shared = model.backbone.features(images(), ["layer0"])["layer0"]
    model.student_features(shared, [counted(index) for index in range(3)])
    assert calls == [2, 2, 1]
