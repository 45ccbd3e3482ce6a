from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from continuad.backbones import BACKBONES, Backbone, checkpoint, create_backbone, fingerprint, load_weights
from continuad.errors import WeightsError

MIB = 2**20
NETWORKS = ("mcunet_in3", "mcunet_in4")
STRIDED = {"mcunet_in3": (1, 5, 8, 14), "mcunet_in4": (1, 4, 7, 13)}
State = dict[str, Tensor]


def pixels(*size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, *size), generator=generator, dtype=torch.uint8)


def architecture(name: str) -> Backbone:
    """A backbone to count on: no memory behind its parameters."""
    with torch.device("meta"):
        return BACKBONES[name]()


def parameters(backbone: nn.Module) -> int:
    return sum(parameter.numel() for parameter in backbone.parameters())


# --- what the network is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "features", "size", "total", "macs"),
    [("mcunet_in3", 160, 176, 0.737408e6, 81.79e6), ("mcunet_in4", 320, 160, 1.73e6, 125.9e6)],
)
def test_totals_with_a_classifier_as_published(
    name: str, features: int, size: int, total: float, macs: float
) -> None:
    backbone = architecture(name)
    assert backbone.blocks[-1].channels == features
    assert parameters(backbone) + 1000 * features + 1000 == pytest.approx(total, rel=0.002)
    assert sum(backbone.macs(size).values()) + 1000 * features == pytest.approx(macs, rel=0.0003)


def test_in3_has_exactly_its_parameters() -> None:
    assert parameters(architecture("mcunet_in3")) == 737_408 - 161_000


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_halve_the_image_where_the_table_says(name: str) -> None:
    blocks = architecture(name).blocks
    assert [block.name for block in blocks] == [*(f"blocks.{k}" for k in range(len(blocks) - 1)), "avgpool"]
    expected, stride = [], 2
    for index in range(len(blocks) - 1):
        stride *= 2 if index in STRIDED[name] else 1
        expected.append(stride)
    assert [block.stride for block in blocks] == [*expected, 0]


def test_in3_shapes_at_256() -> None:
    taps = ["blocks.5", "blocks.6", "blocks.10", "blocks.14"]
    out = architecture("mcunet_in3").features(torch.zeros(1, 3, 256, 256, device="meta"), taps)
    shapes = [tuple(out[name].shape[1:]) for name in taps]
    assert shapes == [(24, 32, 32), (24, 32, 32), (40, 16, 16), (96, 8, 8)]


def test_parameters_have_the_names_of_the_public_checkpoints() -> None:
    parts = ("bias", "running_mean", "running_var", "weight")

    def layer(name: str) -> list[str]:
        return [*(f"{name}.bn.{part}" for part in parts), f"{name}.conv.weight"]

    keys = checkpoint(architecture("mcunet_in3")).keys()
    first, second = "blocks.0.mobile_inverted_conv", "blocks.1.mobile_inverted_conv"
    assert [key for key in keys if key.startswith(("first_conv.", "blocks.0.", "blocks.1."))] == [
        *layer(f"{first}.depth_conv"),
        *layer(f"{first}.point_linear"),
        *layer(f"{second}.depth_conv"),
        *layer(f"{second}.inverted_bottleneck"),
        *layer(f"{second}.point_linear"),
        *layer("first_conv"),
    ]
    assert len(keys) == 5 * (1 + 2 + 17 * 3)


def test_dropping_the_first_block_drops_the_stem() -> None:
    student = architecture("mcunet_in3").student("blocks.1", behind="blocks.0")
    assert {key.split(".")[1] for key in checkpoint(student)} == {"1"}


def test_pixels_become_minus_one_to_one() -> None:
    for name in NETWORKS:
        extremes = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
        normalised = BACKBONES[name]().normalise(extremes)
        assert torch.equal(normalised, torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))


# --- PaSTe's figures ------------------------------------------------------------------------------


def test_stfpm_and_paste_parameters_as_in_paste() -> None:
    teacher = architecture("mcunet_in3")
    teacher.truncate("blocks.14", "both methods end there")
    whole, shared = teacher.student("blocks.14"), teacher.student("blocks.14", behind="blocks.5")
    assert parameters(teacher) == parameters(whole) == 231_064
    assert 4 * (parameters(teacher) + parameters(whole)) / MIB == pytest.approx(1.763, abs=0.0005)
    assert 4 * (parameters(teacher) + parameters(shared)) / MIB == pytest.approx(1.677, abs=0.0005)


@pytest.mark.parametrize(("size", "stfpm", "paste"), [(224, 224.31, 159.04), (256, 292.97, 207.73)])
def test_stfpm_and_paste_macs_as_in_paste(size: int, stfpm: float, paste: float) -> None:
    macs = [count / 1e6 for count in architecture("mcunet_in3").macs(size).values()]
    assert sum(macs[:15]) + sum(macs[:15]) == pytest.approx(stfpm, abs=0.005)
    assert sum(macs[:15]) + sum(macs[6:15]) == pytest.approx(paste, abs=0.005)


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_name_blocks_in_order(name: str) -> None:
    backbone = architecture(name)
    assert set(backbone.layer_groups) == {"stfpm", "paste", "low", "mid", "high"}
    for group in backbone.layer_groups:
        assert backbone.order(backbone.group(group)) == backbone.group(group)
        assert len(backbone.group(group)) == 3


def test_groups_of_in4_lie_where_those_of_in3_do() -> None:
    def places(name: str) -> dict[str, list[tuple[int, int]]]:
        """Stride of each block of a group, and how many blocks lie between it and the downsampling."""
        backbone = architecture(name)
        strides = {block.name: block.stride for block in backbone.blocks}
        first = {stride: list(strides.values()).index(stride) for stride in strides.values()}
        order = list(strides)
        return {
            group: [(strides[block], order.index(block) - first[strides[block]]) for block in blocks]
            for group, blocks in backbone.layer_groups.items()
        }

    assert places("mcunet_in4") == places("mcunet_in3")
    assert [stride for stride, _ in places("mcunet_in4")["stfpm"]] == [4, 8, 32]


# --- folded batch norms ---------------------------------------------------------------------------


def folded(name: str, seed: int = 1) -> State:
    """A checkpoint of random convolutions with biases, without a norm."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for key, tensor in checkpoint(create_backbone(name, weights="random")).items():
        if key.endswith("conv.weight"):
            state[key] = tensor
            state[key.replace("weight", "bias")] = 0.5 * torch.randn(len(tensor), generator=generator)
    return state


def plain_network(name: str, state: State, images: Tensor) -> dict[str, Tensor]:
    """The network as convolutions, clamps and sums."""

    def convolution(x: Tensor, key: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight, bias = state[f"{key}.conv.weight"], state[f"{key}.conv.bias"]
        return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2, groups=groups)

    out = {}
    x = convolution(images.float() / 127.5 - 1, "first_conv", 2).clamp(0, 6)
    for index in range(18 if name == "mcunet_in3" else 17):
        key, y = f"blocks.{index}.mobile_inverted_conv", x
        if index > 0:
            y = convolution(y, f"{key}.inverted_bottleneck").clamp(0, 6)
        stride = 2 if index in STRIDED[name] else 1
        y = convolution(y, f"{key}.depth_conv", stride, y.shape[1]).clamp(0, 6)
        y = convolution(y, f"{key}.point_linear")
        x = x + y if x.shape == y.shape else y
        out[f"blocks.{index}"] = x
    return {**out, "avgpool": x.mean((2, 3), keepdim=True)}


def close(got: Tensor, expected: Tensor) -> bool:
    return torch.allclose(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_checkpoint_gives_the_plain_network(tmp_path: Path, name: str) -> None:
    state, path = folded(name), tmp_path / "folded.safetensors"
    save_file({**state, "classifier.linear.bias": torch.zeros(1000)}, path)
    backbone = create_backbone(name, weights=str(path))
    images = pixels(77, 64)
    got = backbone.features(images, [block.name for block in backbone.blocks])
    expected = plain_network(name, state, images)
    assert list(got) == list(expected)
    assert [block for block in got if not close(got[block], expected[block])] == []


def test_an_unfolded_norm_only_adds_the_bias(tmp_path: Path) -> None:
    state, path = folded("mcunet_in3"), tmp_path / "folded.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in state.items()}, path)
    backbone = create_backbone("mcunet_in3", weights=str(path))
    for name, norm in backbone.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            bias = state[f"{backbone.checkpoint_name(name).removesuffix('bn')}conv.bias"]
            assert torch.equal(norm.bias, bias.bfloat16().float())
            gain = norm.weight / (norm.get_buffer("running_var") + norm.eps).sqrt()
            torch.testing.assert_close(gain, torch.ones_like(gain), rtol=0, atol=2e-7)
            assert not norm.get_buffer("running_mean").any()


def fold(state: State, norm_of: Callable[[str], str], eps: float) -> State:
    """Move every norm into its convolution."""
    result: State = {}
    for key, weight in state.items():
        if weight.dim() == 4:
            conv = key.removesuffix(".weight")
            scale, shift, mean, var = (
                state[f"{norm_of(conv)}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
            )
            gain = scale / (var + eps).sqrt()
            result[key], result[f"{conv}.bias"] = weight * gain.view(-1, 1, 1, 1), shift - mean * gain
    return result


def mcunet_norm(conv: str) -> str:
    return f"{conv.removesuffix('conv')}bn"


def resnet_norm(conv: str) -> str:
    return conv.replace("conv", "bn").replace("downsample.0", "downsample.1")


def mobilenet_norm(conv: str) -> str:
    parent, _, index = conv.rpartition(".")
    return f"{parent}.{int(index) + 1}"


def efficientnet_norm(conv: str) -> str:
    for part, norm in (("stem|expand", 0), ("depthwise|head", 1), ("project", 2)):
        conv = re.sub(rf"_(conv_)?({part})(_conv)?$", f"_bn{norm}", conv)
    return conv


@pytest.mark.parametrize(
    ("name", "norm_of", "eps"),
    [
        ("mcunet_in3", mcunet_norm, 1e-5),
        ("resnet50", resnet_norm, 1e-5),
        ("mobilenet_v2", mobilenet_norm, 1e-5),
        ("efficientnet_lite0", efficientnet_norm, 1e-3),
    ],
)
def test_folding_the_norms_of_a_file_changes_no_feature(
    tmp_path: Path, name: str, norm_of: Callable[[str], str], eps: float
) -> None:
    backbone = create_backbone(name, weights="random")
    torch.manual_seed(2)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.get_buffer("running_mean"), std=0.5)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2.0)
    path = tmp_path / "folded.safetensors"
    save_file(fold(checkpoint(backbone), norm_of, eps), path)
    images = pixels(40, 40)
    (expected,) = backbone.features(images, ["avgpool"]).values()
    (got,) = create_backbone(name, weights=str(path)).features(images, ["avgpool"]).values()
    assert close(got, expected)


def test_folded_and_unfolded_layers_may_be_mixed(tmp_path: Path) -> None:
    backbone, path = create_backbone("mcunet_in3", weights="random"), tmp_path / "mixed.safetensors"
    state = checkpoint(backbone)
    del state["first_conv.conv.weight"]
    for key in [key for key in state if key.startswith("first_conv.bn.")]:
        del state[key]
    stem = {key: tensor for key, tensor in folded("mcunet_in3").items() if key.startswith("first_conv.")}
    save_file(state | stem, path)
    mixed = create_backbone("mcunet_in3", weights=str(path))
    assert all(torch.equal(checkpoint(mixed)[key], tensor) for key, tensor in state.items())
    images = pixels(32, 32)
    x = F.conv2d(images / 127.5 - 1, stem["first_conv.conv.weight"], stem["first_conv.conv.bias"], 2, 1)
    expected = backbone.get_submodule("_blocks.0")(x.clamp(0, 6))
    assert close(mixed.features(images, ["blocks.0"])["blocks.0"], expected)


def test_a_folded_checkpoint_that_stops_early_truncates(tmp_path: Path) -> None:
    present = ("first_conv.", *(f"blocks.{index}." for index in range(15)))
    state = {key: tensor for key, tensor in folded("mcunet_in3").items() if key.startswith(present)}
    save_file(state, tmp_path / "early.safetensors")
    backbone = create_backbone("mcunet_in3", weights=str(tmp_path / "early.safetensors"))
    assert backbone.blocks[-1].name == "blocks.14"
    assert parameters(backbone) == 231_064
    with pytest.raises(WeightsError, match=r"early\.safetensors end with 'blocks\.14'"):
        backbone.block("blocks.15")


def without(state: State, *keys: str) -> State:
    assert all(key in state for key in keys)
    return {key: tensor for key, tensor in state.items() if key not in keys}


POINT = "blocks.1.mobile_inverted_conv.point_linear"


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        (without(folded("mcunet_in3"), f"{POINT}.conv.bias"), f"lacks '{POINT}.bn.bias', though it has 'bl"),
        (without(folded("mcunet_in3"), "first_conv.conv.bias"), "lacks 'first_conv.bn.bias', though"),
        (without(folded("mcunet_in3"), f"{POINT}.conv.weight"), f"lacks '{POINT}.conv.weight', though"),
        (
            folded("mcunet_in3") | {f"{POINT}.conv.bias": torch.zeros(1)},
            rf"'{POINT}.conv.bias' has the shape \(1,\) instead of \(16,\)",
        ),
        (
            folded("mcunet_in3") | {f"{POINT}.conv.bias": torch.zeros(16, dtype=torch.int32)},
            f"'{POINT}.conv.bias' holds torch.int32",
        ),
        (
            folded("mcunet_in3") | {f"{POINT}.bn.running_mean": torch.zeros(16)},
            f"has '{POINT}.conv.bias', which mcunet_in3 does not have",
        ),
        (folded("mcunet_in4"), "'first_conv.conv.bias' has the shape"),
        ({key: tensor for key, tensor in folded("mcunet_in3").items() if tensor.dim() == 4}, "lacks 'bl"),
    ],
)
def test_a_folded_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(
    tmp_path: Path, state: State, complaint: str
) -> None:
    save_file(state, tmp_path / "misfit.safetensors")
    backbone = create_backbone("mcunet_in3", weights="random")
    before = fingerprint(backbone)
    with pytest.raises(WeightsError, match=f"misfit.safetensors:? {complaint}"):
        load_weights(backbone, str(tmp_path / "misfit.safetensors"))
    assert fingerprint(backbone) == before
    assert backbone.block("avgpool")


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_tensors_under_state_dict_are_found(tmp_path: Path, suffix: str) -> None:
    random = checkpoint(create_backbone("mcunet_in3", weights="random"))
    state, path = {key: tensor + 1 for key, tensor in random.items()}, tmp_path / f"nested{suffix}"
    extra = {"first_conv.bn.num_batches_tracked": torch.tensor(9), "classifier.linear.bias": torch.ones(1000)}
    torch.save({"state_dict": state | extra, "epoch": 3}, path)
    loaded = checkpoint(create_backbone("mcunet_in3", weights=str(path)))
    assert loaded.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.items())


@pytest.mark.parametrize("inner", [[1], {}, {"state_dict": {}}])
def test_a_state_dict_without_tensors_is_refused(tmp_path: Path, inner: object) -> None:
    torch.save({"state_dict": inner}, tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match="seems not to be a checkpoint of mcunet_in3"):
        create_backbone("mcunet_in3", weights=str(tmp_path / "empty.pth"))


@pytest.mark.parametrize("name", NETWORKS)
def test_without_published_weights_a_file_is_asked_for(name: str) -> None:
    with pytest.raises(WeightsError, match=f"no published weights for {name}"):
        create_backbone(name)
