from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from continuad.backbones import BACKBONES, Backbone, checkpoint, create_backbone
from continuad.backbones.phinet import SqueezeExcite

MIB = 2**20
GROUPS = {"stfpm": (2, 6, 7), "paste": (5, 6, 7), "low": (4, 5, 6), "mid": (5, 6, 7), "high": (6, 7, 8)}
State = dict[str, Tensor]


def architecture() -> Backbone:
    """A backbone to count on: no memory behind its parameters."""
    with torch.device("meta"):
        return BACKBONES["phinet"]()


def pixels(*size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 3, *size), generator=generator, dtype=torch.uint8)


def shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in checkpoint(backbone).items()}


# --- what the network is --------------------------------------------------------------------------


def multiple_of_8(width: float) -> int:
    """The nearest one, or the next where that would take more than a tenth away."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest


def test_widths_follow_the_papers_scaling() -> None:
    alpha, beta, t0, depth = 1.2, 0.5, 6, 7
    found = shapes(architecture())
    before = multiple_of_8(int(24 * alpha))
    assert found["_layers.2._layers.4.weight"] == (before, multiple_of_8(int(48 * alpha)), 1, 1)
    for layer, base in enumerate((24, 24, 48, 96, 192, 192, 384), start=1):
        expansion = t0 * (beta * layer + depth - layer) / depth
        inner, after = multiple_of_8(int(expansion * before)), multiple_of_8(int(base * alpha))
        key = f"_layers.{layer + 2}._layers"
        assert found[f"{key}.0.weight"] == (inner, before, 1, 1)
        assert found[f"{key}.4.weight"] == (inner, 1, 3, 3)
        assert found[f"{key}.7.se_conv.weight"] == (multiple_of_8(inner // 6), inner, 1, 1)
        assert found[f"{key}.7.se_conv2.weight"] == (inner, multiple_of_8(inner // 6), 1, 1)
        assert found[f"{key}.8.weight"] == (after, inner, 1, 1)
        before = after


def test_parameters_have_the_names_of_the_public_checkpoints() -> None:
    parts = ("bias", "running_mean", "running_var", "weight")
    keys = shapes(architecture())
    expected = {
        1: (("0.weight", "1.weight"), (2,)),
        2: (("1.weight", "4.weight"), (2, 5)),
        **dict.fromkeys(
            range(3, 10),
            (("0.weight", "4.weight", "7.se_conv.weight", "7.se_conv2.weight", "8.weight"), (1, 5, 9)),
        ),
    }
    assert set(keys) == {
        f"_layers.{index}._layers.{key}"
        for index, (weights, norms) in expected.items()
        for key in (*weights, *(f"{norm}.{part}" for norm in norms for part in parts))
    }


def test_channels_and_sizes_at_224() -> None:
    backbone = architecture()
    taps = [block.name for block in backbone.blocks]
    out = backbone.features(torch.zeros(1, 3, 224, 224, device="meta"), taps)
    assert {name: tuple(features.shape[1:]) for name, features in out.items()} == {
        "layers.1": (56, 112, 112),
        "layers.2": (32, 112, 112),
        "layers.3": (32, 56, 56),
        "layers.4": (32, 56, 56),
        "layers.5": (56, 28, 28),
        "layers.6": (112, 14, 14),
        "layers.7": (232, 7, 7),
        "layers.8": (232, 7, 7),
        "layers.9": (464, 4, 4),
        "avgpool": (464, 1, 1),
    }
    assert [block.stride for block in backbone.blocks] == [2, 2, 4, 4, 8, 16, 32, 32, 64, 0]


# --- PaSTe's figures ------------------------------------------------------------------------------


def test_groups_are_those_of_paste() -> None:
    backbone = architecture()
    assert backbone.layer_groups == {
        name: tuple(f"layers.{index}" for index in indices) for name, indices in GROUPS.items()
    }
    channels = {block.name: block.channels for block in backbone.blocks}
    together = {name: sum(channels[tap] for tap in taps) for name, taps in backbone.layer_groups.items()}
    # PaDiM's embeddings in PaSTe's library
    assert together == {"stfpm": 376, "paste": 400, "low": 200, "mid": 400, "high": 576}


def test_stfpm_and_paste_memory_as_in_paste() -> None:
    teacher = architecture()
    last, shared = teacher.group("stfpm")[-1], teacher.before(teacher.group("paste")[0])
    assert shared == "layers.4"
    teacher.truncate(last, "both methods end there")

    def mib(student: Backbone) -> float:
        return sum(4 * each.numel() for part in (teacher, student) for each in part.parameters()) / MIB

    assert mib(teacher.student(last)) == pytest.approx(2.7, abs=0.005)
    assert mib(teacher.student(last, behind=shared)) == pytest.approx(2.5, abs=0.005)


def test_stfpm_and_paste_macs_as_in_paste() -> None:
    macs = [count / 1e6 for count in architecture().macs(224).values()]
    assert 2 * sum(macs[:7]) == pytest.approx(433.8, abs=0.05)
    assert sum(macs[:7]) + sum(macs[4:7]) == pytest.approx(270.81, abs=0.005)
    assert sum(macs[:7]) + sum(macs[4:7]) == pytest.approx(271.7, rel=0.004)  # the published figure


# --- against plain formulas -----------------------------------------------------------------------


def hard_swish(x: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6


def excited(x: Tensor, squeeze: Tensor, excite: Tensor) -> Tensor:
    means = x.sum((2, 3)) / (x.shape[2] * x.shape[3])
    hidden = hard_swish(means @ squeeze.flatten(1).T)
    weights = 1 / (1 + torch.exp(-hidden @ excite.flatten(1).T))
    return torch.einsum("bchw,bc->bchw", x, weights)


def test_squeeze_and_excitation() -> None:
    torch.manual_seed(0)
    module, x = SqueezeExcite(6, 4), torch.randn(3, 6, 5, 7)
    expected = excited(x, module.se_conv.weight, module.se_conv2.weight)
    torch.testing.assert_close(module(x), expected)


def framed(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    out = torch.zeros(*x.shape[:2], x.shape[2] + top + bottom, x.shape[3] + left + right)
    out[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    return out


def phinet_reference(state: State, images: Tensor) -> dict[str, Tensor]:
    def convolved(x: Tensor, key: str, stride: int = 1) -> Tensor:
        weight = state[f"{key}.weight"]
        return F.conv2d(x, weight, stride=stride, groups=x.shape[1] if weight.shape[1] == 1 else 1)

    def norm(x: Tensor, key: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{key}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    x = (images.float() / 255 - mean) / std
    height, width = x.shape[2:]
    x = framed(x, 1 if width % 2 else 0, 1, 1 if height % 2 else 0, 1)
    x = convolved(convolved(x, "_layers.1._layers.0", 2), "_layers.1._layers.1")
    x = hard_swish(norm(x, "_layers.1._layers.2"))
    out = {"layers.1": x}
    y = hard_swish(norm(convolved(framed(x, 1, 1, 1, 1), "_layers.2._layers.1"), "_layers.2._layers.2"))
    x = norm(convolved(y, "_layers.2._layers.4"), "_layers.2._layers.5")
    out["layers.2"] = x
    for index in range(3, 10):
        key, stride = f"_layers.{index}._layers", 1 if index in (4, 8) else 2
        y = hard_swish(norm(convolved(x, f"{key}.0"), f"{key}.1"))
        y = hard_swish(norm(convolved(framed(y, 1, 1, 1, 1), f"{key}.4", stride), f"{key}.5"))
        y = excited(y, state[f"{key}.7.se_conv.weight"], state[f"{key}.7.se_conv2.weight"])
        y = norm(convolved(y, f"{key}.8"), f"{key}.9")
        x = x + y if stride == 1 else y
        out[f"layers.{index}"] = x
    return {**out, "avgpool": x.mean((2, 3), keepdim=True)}


@pytest.mark.parametrize("size", [(64, 64), (77, 66)])
def test_a_checkpoint_gives_the_plain_network(tmp_path: Path, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    state = checkpoint(create_backbone("phinet", weights="random"))
    for name, tensor in state.items():
        if tensor.dim() == 1:
            state[name] = torch.empty_like(tensor).uniform_(0.5, 1.5, generator=generator)
    path = tmp_path / "phinet.safetensors"
    save_file({**state, "classifier.2.weight": torch.zeros(1000, 464)}, path)
    backbone = create_backbone("phinet", weights=str(path))
    got = backbone.features(pixels(*size), [block.name for block in backbone.blocks])
    expected = phinet_reference(state, pixels(*size))
    assert list(got) == list(expected)
    for name in expected:
        torch.testing.assert_close(
            got[name], expected[name], rtol=1e-3, atol=1e-4 * float(expected[name].abs().max())
        )


# --- as a student ---------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["stfpm", "paste"])
def test_a_student_learns_a_batch(group: str) -> None:
    teacher, images = create_backbone("phinet", weights="random"), pixels(64, 64)
    taps = teacher.group(group)
    split = teacher.before(taps[0]) if group == "paste" else None
    torch.manual_seed(1)
    student = teacher.student(taps[-1], behind=split).train()
    targets = teacher.features(images, taps if split is None else (split, *taps))
    optimiser = torch.optim.SGD(student.parameters(), lr=0.4, momentum=0.9)
    losses = []
    for _ in range(8):
        out = student.features(images if split is None else targets[split], taps, start=split)
        differences = [F.normalize(out[tap]) - F.normalize(targets[tap]) for tap in taps]
        loss = torch.stack([each.square().sum(1).mean() for each in differences]).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())

    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())


def test_a_student_in_training_depends_on_nothing_random() -> None:
    student = create_backbone("phinet", weights="random").student("layers.5").train()
    first, second = (student.features(pixels(32, 32), ["layers.5"])["layers.5"] for _ in range(2))
    assert torch.equal(first, second)


def test_a_students_statistics_are_not_those_of_its_last_batch() -> None:
    student = create_backbone("phinet", weights="random").student("layers.2").train()
    features = student.features(pixels(32, 32), ["layers.2"])["layers.2"]
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    # the last norm's output has the mean 0 and the standard deviation 1; its input's mean went in by a tenth
    torch.testing.assert_close(features.mean((0, 2, 3)), torch.zeros(32), atol=1e-4, rtol=0)
    kept = norms[-1].get_buffer("running_mean").clone()
    student.features(pixels(32, 32), ["layers.2"])
    torch.testing.assert_close(norms[-1].get_buffer("running_mean"), 1.9 * kept)
