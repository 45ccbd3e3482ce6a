from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from continuad.backbones import BACKBONES, Backbone, checkpoint, create_backbone
from continuad.backbones.micronet import Separable, ShiftMax

MIB = 2**20
GROUPS = {"stfpm": (2, 4, 5), "paste": (3, 4, 5), "low": (1, 2, 3), "mid": (2, 3, 4), "high": (3, 4, 5)}
# the authors' table: stride, channels, kernel, the two factors that widen, groups of the first 1x1
# convolution (0: there is none) and of its shuffle, both of the second, mixtures of the activations
# (0: ReLU6), factor of the reduction
TABLE = (
    (2, 8, 3, 2, 2, 0, 6, 2, 2, (2, 0, 1), 1),
    (2, 16, 3, 2, 2, 0, 8, 4, 4, (2, 2, 1), 1),
    (2, 16, 5, 2, 2, 0, 16, 4, 4, (2, 2, 1), 1),
    (1, 32, 5, 1, 6, 4, 4, 4, 4, (2, 2, 1), 1),
    (2, 64, 5, 1, 6, 8, 8, 8, 8, (2, 2, 1), 1),
    (1, 96, 3, 1, 6, 8, 8, 8, 8, (2, 2, 1), 2),
    (1, 576, 3, 1, 6, 12, 12, 0, 0, (2, 2, 1), 2),
)
State = dict[str, Tensor]


def architecture() -> Backbone:
    """A backbone to count on: no memory behind its parameters."""
    with torch.device("meta"):
        return BACKBONES["micronet_m1"]()


def pixels(*size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 3, *size), generator=generator, dtype=torch.uint8)


# --- what the network is --------------------------------------------------------------------------


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, as the authors' table implies it."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(conv: str, norm: str, after: int, *rest: int) -> None:
        shapes[f"{conv}.weight"] = (after, *rest)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = (after,)

    def perceptron(key: str, width: int, reduction: int, mixtures: int) -> None:
        hidden = max(4, width // reduction)
        assert width // reduction % 4 == 0 or width // reduction < 4  # else it would be rounded
        shapes[f"{key}.fc.0.weight"], shapes[f"{key}.fc.0.bias"] = (hidden, width), (hidden,)
        outputs = 2 * mixtures * width
        shapes[f"{key}.fc.2.weight"], shapes[f"{key}.fc.2.bias"] = (outputs, hidden), (outputs,)

    convolution("features.0.stem.0.conv.0", "features.0.stem.0.conv.1", 3, 3, 3, 1)
    convolution("features.0.stem.0.conv.2", "features.0.stem.0.conv.3", 6, 1, 1, 3)
    before = 6
    for index, (_, after, kernel, once, twice, groups, _, last_groups, _, mixtures, factor) in enumerate(
        TABLE, 1
    ):
        key, wide, reduction = f"features.{index}.layers", before * once * twice, 8 * factor
        if not groups:
            convolution(f"{key}.0.conv.0", f"{key}.0.conv.1", before * once, 1, kernel, 1)
            convolution(f"{key}.0.conv.2", f"{key}.0.conv.3", wide, 1, 1, kernel)
            if mixtures[1]:
                perceptron(f"{key}.1", wide, reduction, mixtures[1])
            convolution(f"{key}.4.conv.0", f"{key}.4.conv.1", after, wide // last_groups, 1, 1)
            perceptron(f"{key}.5", after, reduction // 2, mixtures[2])
        elif last_groups:
            convolution(f"{key}.0.conv.0", f"{key}.0.conv.1", wide, before // groups, 1, 1)
            perceptron(f"{key}.1", wide, reduction, mixtures[0])
            convolution(f"{key}.3.conv.0", f"{key}.3.conv.1", wide, 1, kernel, 1)
            convolution(f"{key}.3.conv.2", f"{key}.3.conv.3", wide, 1, 1, kernel)
            perceptron(f"{key}.5", wide, reduction, mixtures[1])
            convolution(f"{key}.7.conv.0", f"{key}.7.conv.1", after, wide // last_groups, 1, 1)
            perceptron(f"{key}.8", after, reduction // 2, mixtures[2])
        else:
            convolution(f"{key}.0.conv.0", f"{key}.0.conv.1", wide, before // groups, 1, 1)
            perceptron(f"{key}.1", wide, reduction, mixtures[2])
        before = after
    return shapes


def test_parameters_have_the_names_and_shapes_of_the_public_checkpoint() -> None:
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint(architecture()).items()}
    assert found == expected_shapes()


def test_parameters_with_a_classifier_as_published() -> None:
    backbone = sum(parameter.numel() for parameter in architecture().parameters())
    assert backbone == 258_747
    classifier = 960 * (576 + 1 + 2) + 1000 * (960 + 1 + 2)  # two layers with biases and norms
    assert backbone + classifier == pytest.approx(1.8e6, rel=0.02)


def test_channels_and_sizes_at_224() -> None:
    backbone = architecture()
    taps = [block.name for block in backbone.blocks]
    out = backbone.features(torch.zeros(1, 3, 224, 224, device="meta"), taps)
    assert {name: tuple(features.shape[1:]) for name, features in out.items()} == {
        "features.0": (6, 112, 112),
        "features.1": (8, 56, 56),
        "features.2": (16, 28, 28),
        "features.3": (16, 14, 14),
        "features.4": (32, 14, 14),
        "features.5": (64, 7, 7),
        "features.6": (96, 7, 7),
        "features.7": (576, 7, 7),
        "avgpool": (576, 1, 1),
    }
    assert [block.stride for block in backbone.blocks] == [2, 4, 8, 16, 16, 32, 32, 32, 0]


# --- PaSTe's figures ------------------------------------------------------------------------------


def test_groups_are_those_of_paste() -> None:
    backbone = architecture()
    assert backbone.layer_groups == {
        name: tuple(f"features.{index}" for index in indices) for name, indices in GROUPS.items()
    }
    channels = {block.name: block.channels for block in backbone.blocks}
    together = {name: sum(channels[tap] for tap in taps) for name, taps in backbone.layer_groups.items()}
    # PaDiM's embeddings in PaSTe's library
    assert together == {"stfpm": 112, "paste": 112, "low": 40, "mid": 64, "high": 112}


def test_stfpm_and_paste_memory_as_in_paste() -> None:
    teacher = architecture()
    last, shared = teacher.group("stfpm")[-1], teacher.before(teacher.group("paste")[0])
    assert shared == "features.2"
    teacher.truncate(last, "both methods end there")

    def mib(student: Backbone) -> float:
        return sum(4 * each.numel() for part in (teacher, student) for each in part.parameters()) / MIB

    assert mib(teacher.student(last)) == pytest.approx(0.6, abs=0.005)
    assert mib(teacher.student(last, behind=shared)) == pytest.approx(0.59, abs=0.005)


def test_stfpm_macs_as_in_paste_and_pastes_own_that_cannot_be() -> None:
    macs = [count / 1e6 for count in architecture().macs(224).values()]
    assert 2 * sum(macs[:6]) == pytest.approx(5.86, abs=0.005)
    assert sum(macs[:6]) + sum(macs[3:6]) == pytest.approx(3.949, abs=0.0005)
    assert sum(macs[3:6]) > 0.58  # the published figure: less than the student alone needs


# --- against plain formulas -----------------------------------------------------------------------


def test_a_separable_convolution_is_one_with_kernels_of_rank_one() -> None:
    torch.manual_seed(0)
    module = Separable(4, 4, 4, 5, stride=2, groups=4).eval()
    column, row = module.get_parameter("conv.0.weight"), module.get_parameter("conv.2.weight")
    x = torch.randn(2, 4, 13, 10)
    expected = F.conv2d(x, column * row, stride=2, padding=2, groups=4) / (1 + 1e-5)  # two fresh norms
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_shift_max_by_hand() -> None:
    module = ShiftMax(4, groups=2, reduction=1, mixtures=2)
    x = torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(1, 4, 1, 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        assert torch.equal(module(x), x)
        # x + 2 x' and 3 x - 2 x', where each of two groups of two meets the other, last channel first
        weights = torch.tensor([0.0, 2.0, 2.0, -2.0])
        module.get_parameter("fc.2.bias").copy_((1.5 * weights).repeat_interleave(4))
        assert module(x).flatten().tolist() == pytest.approx([2001.0, 210.0, 280.0, 2998.0])
        module.get_parameter("fc.2.bias").mul_(100)  # beyond the ends of the hard sigmoid
        assert module(x).flatten().tolist() == pytest.approx([2001.0, 210.0, 280.0, 2998.0])


def test_weights_of_the_mixtures_come_from_the_means() -> None:
    torch.manual_seed(0)
    module, x = ShiftMax(6, groups=3, reduction=1, mixtures=1), torch.randn(2, 6, 4, 5)
    swapped = x.flip(3).roll(1, 2)  # the same means
    torch.testing.assert_close(module(swapped), module(x).flip(3).roll(1, 2))
    assert not torch.allclose(module(2 * x), 2 * module(x))


def dealt(x: Tensor, groups: int) -> Tensor:
    """The first channel of each group, the second of each, and so on."""
    size = x.shape[1] // groups
    return x[:, [group * size + place for place in range(size) for group in range(groups)]]


def shift_max_reference(state: State, key: str, x: Tensor, groups: int) -> Tensor:
    hidden = (x.mean((2, 3)) @ state[f"{key}.fc.0.weight"].T + state[f"{key}.fc.0.bias"]).clamp(min=0)
    logits = hidden @ state[f"{key}.fc.2.weight"].T + state[f"{key}.fc.2.bias"]
    weights = (((logits + 3).clamp(0, 6) / 6 - 0.5) * 4)[:, :, None, None]
    channels = x.shape[1]
    size = channels // groups
    mixtures = []
    for start in range(0, weights.shape[1], 2 * channels):
        mixture = torch.empty_like(x)
        for channel in range(channels):
            group, place = divmod(channel, size)
            other = (group + 1) % groups * size + (place + 1) % size
            a, b = weights[:, start + channel], weights[:, start + channels + channel]
            mixture[:, channel] = (1 + a) * x[:, channel] + b * x[:, other]
        mixtures.append(mixture)
    return torch.stack(mixtures).amax(0)


def micronet_reference(state: State, images: Tensor) -> dict[str, Tensor]:
    def convolution(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        height, width = weight.shape[2:]
        strides = (stride if height > 1 else 1, stride if width > 1 else 1)
        padding, groups = (height // 2, width // 2), x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=strides, padding=padding, groups=groups)
        mean, var, scale, shift = (
            state[f"{norm}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def separable(x: Tensor, key: str, stride: int) -> Tensor:
        x = convolution(x, f"{key}.conv.0", f"{key}.conv.1", stride)
        return convolution(x, f"{key}.conv.2", f"{key}.conv.3", stride)

    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    x = separable((images.float() / 255 - mean) / std, "features.0.stem.0", 2)
    x = dealt(x, 3).clamp(0, 6)
    out = {"features.0": x}
    for index, (stride, after, _, _, _, groups, shuffled, last_groups, last, mixtures, _) in enumerate(
        TABLE, 1
    ):
        key = f"features.{index}.layers"
        if not groups:
            x = separable(x, f"{key}.0", stride)
            wide = x.shape[1]
            x = shift_max_reference(state, f"{key}.1", x, shuffled) if mixtures[1] else x.clamp(0, 6)
            x = dealt(x, shuffled)
            x = dealt(x, wide // 2) if mixtures[1] else x
            x = convolution(x, f"{key}.4.conv.0", f"{key}.4.conv.1")
            x = shift_max_reference(state, f"{key}.5", x, last)
        else:
            x = convolution(x, f"{key}.0.conv.0", f"{key}.0.conv.1")
            x = shift_max_reference(state, f"{key}.1", x, shuffled)
        if groups and last_groups:
            x = separable(dealt(x, shuffled), f"{key}.3", stride)
            wide = x.shape[1]
            x = shift_max_reference(state, f"{key}.5", x, wide // shuffled)
            x = convolution(dealt(x, wide // 4), f"{key}.7.conv.0", f"{key}.7.conv.1")
            x = shift_max_reference(state, f"{key}.8", x, last)
        if last_groups:
            x = dealt(dealt(x, last), after // 2)
        out[f"features.{index}"] = x
    x = x.clamp(0, 6).mean((2, 3), keepdim=True)
    return {**out, "avgpool": x * (x + 3).clamp(0, 6) / 6}


@pytest.mark.parametrize("size", [(64, 64), (77, 66)])
def test_a_checkpoint_gives_the_plain_network(tmp_path: Path, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    state = checkpoint(create_backbone("micronet_m1", weights="random"))
    for name, tensor in state.items():
        if name.endswith("running_var"):
            state[name] = torch.empty_like(tensor).uniform_(0.5, 2.0, generator=generator)
        elif tensor.dim() == 1 and name.endswith("weight"):
            state[name] = torch.empty_like(tensor).uniform_(0.5, 1.0, generator=generator)
        elif tensor.dim() == 1:
            state[name] = torch.empty_like(tensor).normal_(std=0.3, generator=generator)
    path = tmp_path / "micronet.safetensors"
    save_file({**state, "classifier.0.linear.0.bias": torch.zeros(960)}, path)
    backbone = create_backbone("micronet_m1", weights=str(path))
    got = backbone.features(pixels(*size), [block.name for block in backbone.blocks])
    expected = micronet_reference(state, pixels(*size))
    assert list(got) == list(expected)
    for name in expected:
        torch.testing.assert_close(
            got[name], expected[name], rtol=1e-3, atol=1e-4 * float(expected[name].abs().max())
        )


# --- as a student ---------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["stfpm", "paste"])
def test_a_student_learns_a_batch(group: str) -> None:
    teacher, images = create_backbone("micronet_m1", weights="random"), pixels(64, 64)
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
