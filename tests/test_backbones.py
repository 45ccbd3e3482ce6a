from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from continuad.backbones import BACKBONES, Backbone, base, checkpoint, create_backbone
from continuad.backbones.efficientnet_lite import SameConv2d
from continuad.errors import SettingsError, WeightsError

MIB = 2**20


@pytest.fixture(scope="module", params=list(BACKBONES))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return create_backbone(request.param, weights="random")


def pixels(*size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, *size), generator=generator, dtype=torch.uint8)


def names(backbone: Backbone) -> list[str]:
    return [block.name for block in backbone.blocks]


def architecture(name: str) -> Backbone:
    """A backbone to count on: no memory behind its parameters."""
    with torch.device("meta"):
        return BACKBONES[name]()


def content(backbone: Backbone) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in backbone.state_dict().items()}


# --- every backbone -------------------------------------------------------------------------------


def test_name_is_the_registered_one() -> None:
    assert {name: architecture(name).name for name in BACKBONES} == {name: name for name in BACKBONES}


@pytest.mark.parametrize("size", [(64, 64), (75, 52)])
def test_blocks_have_the_stated_channels_and_strides(backbone: Backbone, size: tuple[int, int]) -> None:
    out = backbone.features(pixels(*size), names(backbone))
    assert list(out) == names(backbone)
    for block in backbone.blocks:
        sides = [math.ceil(side / block.stride) if block.stride else 1 for side in size]
        assert out[block.name].shape == (2, block.channels, *sides), block.name


def test_random_features_neither_fade_nor_explode(backbone: Backbone) -> None:
    for name, features in backbone.features(pixels(64, 64), names(backbone)).items():
        assert 1e-2 < features.std() < 1e4, name


def test_continuing_behind_any_block_is_bit_identical(backbone: Backbone) -> None:
    whole = backbone.features(pixels(32, 32), names(backbone))
    before = {name: features.clone() for name, features in whole.items()}
    for start, tap in itertools.pairwise(names(backbone)):
        assert torch.equal(backbone.features(whole[start], [tap], start=start)[tap], whole[tap])
    assert all(torch.equal(whole[name], before[name]) for name in whole), "a block changed its input"


def test_two_halves_equal_the_whole(backbone: Backbone) -> None:
    *_, last = names(backbone)
    half = names(backbone)[len(names(backbone)) // 2]
    whole = backbone.features(pixels(32, 32), [half, last])
    first = backbone.features(pixels(32, 32), [half])
    assert torch.equal(first[half], whole[half])
    assert torch.equal(backbone.features(first[half], [last], start=half)[last], whole[last])


def test_batches_are_split_only_where_nothing_is_trained(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.cat([pixels(32, 32, seed=seed) for seed in range(2)])[:3]
    taps = names(backbone)
    singles = [backbone.features(image[None], taps) for image in images]
    parts: list[int] = []
    normalise = backbone.normalise

    def counted(part: Tensor) -> Tensor:
        parts.append(len(part))
        return normalise(part)

    monkeypatch.setattr(backbone, "normalise", counted)
    for at_a_time, split in [(1, [1, 1, 1]), (2 * 32 * 32, [2, 1])]:
        monkeypatch.setattr(base, "PIXELS_AT_A_TIME", at_a_time)
        for trained, expected in [(False, split), (True, [3])]:
            parts.clear()
            with torch.set_grad_enabled(trained):
                found = backbone.features(images, taps)
            assert parts == expected
            assert list(found) == taps
            for tap in taps:
                whole = torch.cat([single[tap] for single in singles])
                torch.testing.assert_close(found[tap], whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))


def test_taps_come_in_block_order_whatever_order_they_are_asked_in(backbone: Backbone) -> None:
    first, *_, last = names(backbone)
    assert list(backbone.features(pixels(32, 32), [last, first, last])) == [first, last]
    assert backbone.features(pixels(32, 32), []) == {}


def test_taps_that_cannot_be_had_are_refused(backbone: Backbone) -> None:
    first, second, *_ = names(backbone)
    with pytest.raises(SettingsError, match=rf"{backbone.name} has no block 'layer9'.*{first}"):
        backbone.features(pixels(32, 32), ["layer9"])
    with pytest.raises(SettingsError, match=f"{first!r} does not lie behind {second!r}"):
        backbone.features(torch.zeros(1, 1, 1, 1), [first], start=second)
    with pytest.raises(SettingsError, match="does not lie behind"):
        backbone.features(torch.zeros(1, 1, 1, 1), [first], start=first)


def test_uint8_and_float_images_agree(backbone: Backbone) -> None:
    images = pixels(32, 32)
    (from_bytes,) = backbone.features(images, ["avgpool"]).values()
    (from_floats,) = backbone.features(images.double(), ["avgpool"]).values()
    assert from_bytes.dtype == torch.float32
    assert torch.equal(from_bytes, from_floats)


def test_stays_frozen_and_in_eval_mode_byte_for_byte(backbone: Backbone) -> None:
    before = content(backbone)
    assert backbone.train() is backbone
    assert not any(module.training for module in backbone.modules())
    backbone.features(pixels(32, 32), names(backbone))
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert content(backbone) == before


def test_gradients_pass_through_to_the_images_only(backbone: Backbone) -> None:
    images = pixels(32, 32).float().requires_grad_()
    loss = backbone.features(images, ["avgpool"])["avgpool"].square().sum()
    (gradient,) = torch.autograd.grad(loss, images)
    assert gradient.abs().max() > 0
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_every_parameter_belongs_to_exactly_one_block(backbone: Backbone) -> None:
    last = names(backbone)[-1]
    tensors = list(backbone.parameters())
    assert backbone.parameter_bytes(last, include_buffers=False) == sum(
        4 * tensor.numel() for tensor in tensors
    )
    owned = [path for block in backbone.blocks for path in block.modules]
    assert len(owned) == len(set(owned))


def test_stage_is_the_last_block_of_a_stride(backbone: Backbone) -> None:
    for stride in (2, 4, 8, 16):
        expected = [block.name for block in backbone.blocks if block.stride == stride][-1:]
        if expected:
            assert backbone.stage(stride) == expected[0]
    with pytest.raises(SettingsError, match="no features of stride 3"):
        backbone.stage(3)


@pytest.mark.parametrize("name", ["tiny", "resnet18", "mobilenet_v2", "efficientnet_lite0"])
def test_a_copy_runs_its_own_parameters(name: str) -> None:
    backbone, images = create_backbone(name, weights="random"), pixels(32, 32)
    before = backbone.features(images, ["avgpool"])["avgpool"]
    twin = copy.deepcopy(backbone)
    assert torch.equal(twin.features(images, ["avgpool"])["avgpool"], before)
    for parameter in twin.parameters():
        parameter.mul_(0.5)
    assert not torch.equal(twin.features(images, ["avgpool"])["avgpool"], before)
    assert torch.equal(backbone.features(images, ["avgpool"])["avgpool"], before)


# --- students -------------------------------------------------------------------------------------


def test_a_student_can_be_trained_and_its_teacher_cannot(backbone: Backbone) -> None:
    before = content(backbone)
    first, last = backbone.group("paste")[0], backbone.group("paste")[-1]
    split = backbone.before(first)
    student = backbone.student(last, behind=split)
    assert not student.training
    student.train()
    assert all(module.training for module in student.modules())
    teacher = backbone.features(pixels(64, 64), [last] if split is None else [split, last])
    statistics = {name: buffer.clone() for name, buffer in student.named_buffers()}
    x = pixels(64, 64) if split is None else teacher[split]
    features = student.features(x, [last], start=split)[last]
    assert features.shape == teacher[last].shape
    (features - teacher[last]).square().mean().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert any(not torch.equal(buffer, statistics[name]) for name, buffer in student.named_buffers())
    assert content(backbone) == before
    assert not any(module.training for module in backbone.modules())


def test_a_student_holds_its_own_blocks_only(backbone: Backbone) -> None:
    whole = {name: tensor.shape for name, tensor in backbone.named_parameters()}
    for group in backbone.layer_groups.values():
        split = backbone.before(group[0])
        full, part = backbone.student(group[-1]), backbone.student(group[-1], behind=split)
        counted = backbone.parameter_bytes(group[-1], include_buffers=False)
        shared = backbone.parameter_bytes(split, include_buffers=False) if split else 0
        assert 4 * sum(p.numel() for p in full.parameters()) == counted
        assert 4 * sum(p.numel() for p in part.parameters()) == counted - shared
        assert {name: p.shape for name, p in part.named_parameters()}.items() <= whole.items()
        pointers = {p.data_ptr() for p in backbone.parameters()}
        assert pointers.isdisjoint(p.data_ptr() for p in full.parameters())


def test_a_student_in_eval_mode_is_the_folded_network(backbone: Backbone) -> None:
    last = backbone.group("stfpm")[-1]
    student = backbone.student(last)
    student.load_state_dict(backbone.state_dict(), strict=False)
    teacher = backbone.features(pixels(32, 32), [last])[last]
    assert torch.equal(student.features(pixels(32, 32), [last])[last], teacher)


def test_a_student_reaches_further_than_a_teacher_whose_checkpoint_ends() -> None:
    teacher = create_backbone("resnet18", weights="random")
    teacher.truncate("layer3", "the weights end")
    assert teacher.student("layer4").block("layer4").channels == 512


def test_groups_lie_in_order_on_blocks_with_features(backbone: Backbone) -> None:
    assert {"stfpm", "paste"} <= set(backbone.layer_groups)
    for layers in backbone.layer_groups.values():
        assert backbone.order(layers) == layers
        assert all(backbone.block(layer).stride for layer in layers)
    with pytest.raises(SettingsError, match=r"no group of layers 'best'\. Choose from: stfpm, paste"):
        backbone.group("best")


def test_before_the_first_block_there_is_none(backbone: Backbone) -> None:
    first, second, *_ = names(backbone)
    assert backbone.before(first) is None
    assert backbone.before(second) == first


# --- create_backbone ------------------------------------------------------------------------------


def test_random_weights_repeat_and_leave_the_callers_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = create_backbone("tiny", weights="random")
    assert torch.equal(torch.rand(3), expected)
    two = create_backbone("tiny", weights="random")
    assert content(one) == content(two)


def test_an_unknown_backbone_is_refused_with_a_suggestion() -> None:
    with pytest.raises(SettingsError, match=r"no backbone named 'resnet19'\. Did you mean 'resnet"):
        create_backbone("resnet19")


# --- truncation -----------------------------------------------------------------------------------


def test_truncation_drops_blocks_and_parameters_and_says_why() -> None:
    backbone = create_backbone("efficientnet_lite0", weights="random")
    expected = backbone.features(pixels(64, 64), ["blocks.9"])["blocks.9"]
    kept = backbone.parameter_bytes("blocks.9", include_buffers=False)
    backbone.truncate("blocks.9", "the file ends there")
    assert names(backbone)[-1] == "blocks.9"
    assert torch.equal(backbone.features(pixels(64, 64), ["blocks.9"])["blocks.9"], expected)
    assert sum(4 * parameter.numel() for parameter in backbone.parameters()) == kept
    for name in ("blocks.10", "head", "avgpool"):
        with pytest.raises(WeightsError, match=rf"no block '{name}': the file ends there\."):
            backbone.block(name)
    with pytest.raises(WeightsError, match=r"'blocks\.10': the file ends there"):
        backbone.stage(16)  # blocks.9 has this stride too, but is not the stage's last
    with pytest.raises(SettingsError, match=r"no block 'blocks\.16'"):
        backbone.block("blocks.16")


# --- known sizes, shapes and costs ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("tiny", 11_896),  # 9 (3*8 + 8*16 + 16*24 + 24*32) + 2 (8 + 16 + 24 + 32)
        ("resnet18", 11_689_512 - 513_000),  # torchvision's total less the classifier
        ("resnet34", 21_797_672 - 513_000),
        ("resnet50", 25_557_032 - 2_049_000),
        ("wide_resnet50_2", 68_883_240 - 2_049_000),
        ("mobilenet_v2", 3_504_872 - 1_281_000),
        ("efficientnet_lite0", 4_652_008 - 1_281_000),  # the published checkpoint's total less the classifier
    ],
)
def test_parameter_totals(name: str, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in architecture(name).parameters()) == parameters


def test_wide_resnet_parameters_as_in_adapts() -> None:
    teacher = architecture("wide_resnet50_2")
    count = [
        teacher.parameter_bytes(name, include_buffers=False) // 4 for name in ("layer2", "layer3", "avgpool")
    ]
    assert count == [4_126_528, 24_862_528, 66_834_240]
    assert 2 * count[1] * 4 / MIB == pytest.approx(189.69, abs=0.005)  # STFPM: teacher and student
    stored = [
        teacher.parameter_bytes(name, include_buffers=True) / MIB for name in ("layer2", "layer3", "avgpool")
    ]
    assert stored == pytest.approx([15.791, 94.994, 255.213], abs=0.001)


def test_wide_resnet_macs_as_in_adapts() -> None:
    macs = architecture("wide_resnet50_2").macs(224)
    assert list(macs) == ["stem", "layer1", "layer2", "layer3", "layer4", "avgpool"]
    cumulative = dict(zip(macs, itertools.accumulate(macs.values()), strict=True))
    reached = [cumulative[f"layer{index}"] / 1e9 for index in (1, 2, 3, 4)]
    assert reached == pytest.approx([2.096, 4.973, 9.187, 11.396], abs=0.0005)


def test_wide_resnet_stage_shapes_at_224() -> None:
    teacher = architecture("wide_resnet50_2")
    taps = ["layer1", "layer2", "layer3", "layer4", "avgpool"]
    out = teacher.features(torch.zeros(1, 3, 224, 224, device="meta"), taps)
    assert [tuple(out[name].shape[1:]) for name in taps] == [
        (256, 56, 56),
        (512, 28, 28),
        (1024, 14, 14),
        (2048, 7, 7),
        (2048, 1, 1),
    ]


def test_mobilenet_v2_costs_as_in_paste() -> None:
    teacher = architecture("mobilenet_v2")
    all_, shared = (
        teacher.parameter_bytes(name, include_buffers=False) for name in ("features.14", "features.6")
    )
    assert 2 * all_ / MIB == pytest.approx(5.324, abs=0.0005)  # STFPM
    assert (2 * all_ - shared) / MIB == pytest.approx(5.112, abs=0.0005)  # PaSTe
    macs = list(teacher.macs(224).values())
    assert 2 * sum(macs[:15]) / 1e6 == pytest.approx(450.9, abs=0.05)
    assert (2 * sum(macs[:15]) - sum(macs[:7])) / 1e6 == pytest.approx(337.7, abs=0.05)


# --- against plain functions of the checkpoint ----------------------------------------------------

State = dict[str, Tensor]


def norm(state: State, key: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    mean, var, weight, bias = (
        state[f"{key}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + eps).sqrt() * weight + bias


def imagenet(images: Tensor) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std


def resnet_reference(state: State, images: Tensor) -> Tensor:
    x = norm(state, "bn1", F.conv2d(imagenet(images), state["conv1.weight"], stride=2, padding=3)).relu()
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage, index in itertools.product(range(1, 5), range(6)):
        key = f"layer{stage}.{index}"
        if f"{key}.conv1.weight" not in state:
            continue
        stride = 2 if stage > 1 and index == 0 else 1
        convolutions = 3 if f"{key}.conv3.weight" in state else 2
        y = x
        for number in range(1, convolutions + 1):
            weight = state[f"{key}.conv{number}.weight"]
            strided = number == convolutions - 1  # conv1 of a basic block, conv2 of a bottleneck
            y = F.conv2d(y, weight, stride=stride if strided else 1, padding=weight.shape[-1] // 2)
            y = norm(state, f"{key}.bn{number}", y)
            y = y if number == convolutions else y.relu()
        if f"{key}.downsample.0.weight" in state:
            x = norm(
                state, f"{key}.downsample.1", F.conv2d(x, state[f"{key}.downsample.0.weight"], stride=stride)
            )
        x = (x + y).relu()
    return x.mean((2, 3), keepdim=True)


def mobilenet_reference(state: State, images: Tensor) -> Tensor:
    x = F.conv2d(imagenet(images), state["features.0.0.weight"], stride=2, padding=1)
    x = norm(state, "features.0.1", x).clamp(0, 6)
    for index in range(1, 18):
        key, y = f"features.{index}.conv", x
        stride = 2 if index in (2, 4, 7, 14) else 1
        if index > 1:
            y = norm(state, f"{key}.0.1", F.conv2d(y, state[f"{key}.0.0.weight"])).clamp(0, 6)
        spatial = 0 if index == 1 else 1
        y = F.conv2d(y, state[f"{key}.{spatial}.0.weight"], stride=stride, padding=1, groups=y.shape[1])
        y = norm(state, f"{key}.{spatial}.1", y).clamp(0, 6)
        y = norm(state, f"{key}.{spatial + 2}", F.conv2d(y, state[f"{key}.{spatial + 1}.weight"]))
        x = x + y if x.shape == y.shape else y
    x = norm(state, "features.18.1", F.conv2d(x, state["features.18.0.weight"])).clamp(0, 6)
    return x.mean((2, 3), keepdim=True)


def same_reference(x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    """TensorFlow's definition of 'same': pad the image with the smaller half in front, then convolve."""
    pads = []
    for side in (3, 2):
        size, kernel = x.shape[side], weight.shape[side]
        excess = size % stride or stride
        total = max(kernel - excess, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def efficientnet_reference(state: State, images: Tensor) -> Tensor:
    x = same_reference((images.float() - 127) / 128, state["_conv_stem.weight"], 2)
    x = norm(state, "_bn0", x, 1e-3).clamp(0, 6)
    for index in range(16):
        key, y = f"_blocks.{index}", x
        if index > 0:
            y = norm(state, f"{key}._bn0", F.conv2d(y, state[f"{key}._expand_conv.weight"]), 1e-3).clamp(0, 6)
        stride = 2 if index in (1, 3, 5, 11) else 1
        y = same_reference(y, state[f"{key}._depthwise_conv.weight"], stride, y.shape[1])
        y = norm(state, f"{key}._bn1", y, 1e-3).clamp(0, 6)
        y = norm(state, f"{key}._bn2", F.conv2d(y, state[f"{key}._project_conv.weight"]), 1e-3)
        x = x + y if x.shape == y.shape else y
    x = norm(state, "_bn1", F.conv2d(x, state["_conv_head.weight"]), 1e-3).clamp(0, 6)
    return x.mean((2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("resnet18", resnet_reference),
        ("resnet50", resnet_reference),
        ("mobilenet_v2", mobilenet_reference),
        ("efficientnet_lite0", efficientnet_reference),
    ],
)
def test_agrees_with_plain_functions_of_its_checkpoint(
    name: str, reference: Callable[[State, Tensor], Tensor]
) -> None:
    backbone = create_backbone(name, weights="random")
    torch.manual_seed(1)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.get_buffer("running_mean"), std=0.5)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2.0)
    images = pixels(77, 64)
    got = backbone.features(images, ["avgpool"])["avgpool"]
    expected = reference(checkpoint(backbone), images)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@given(
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    kernel=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 4]),
)
@settings(deadline=None, max_examples=60)
def test_same_padding_at_any_size(height: int, width: int, kernel: int, stride: int, groups: int) -> None:
    convolution = SameConv2d(4, 4, kernel, stride=stride, groups=groups)
    x = torch.randn(2, 4, height, width)
    got = convolution(x)
    assert got.shape == (2, 4, math.ceil(height / stride), math.ceil(width / stride))
    torch.testing.assert_close(
        got, same_reference(x, convolution.weight, stride, groups), rtol=1e-4, atol=1e-5
    )
