from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from continuad.backbones import BACKBONES, Backbone, create_backbone
from continuad.backbones.folding import normalised
from continuad.detectors import METHODS
from continuad.detectors.checkpoint import Checkpoint
from continuad.detectors.rd4ad import RD4AD, RD4ADSettings, reconstruction_loss
from continuad.detectors.reverse import ReverseNetwork, UpConv2d
from continuad.detectors.training import TrainingSettings
from continuad.errors import SettingsError

MIB = 2**20
LIGHT = ("tiny", "efficientnet_lite0", "mobilenet_v2", "resnet18")
QUICK = TrainingSettings(
    epochs=3,
    batch_size=4,
    optimiser="adam",
    learning_rate=0.005,
    final_learning_rate=0.005,
    betas=(0.5, 0.999),
)


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return create_backbone("tiny", weights="random")


def pixels(count: int, *size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)


def stripes(count: int, seed: int = 0) -> Tensor:
    """A striped surface at any position, with some noise; (count, 3, 64, 64) uint8."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1, 1))
    wave = 128 + 80 * np.sin(np.arange(64) / 3 + phase) + rng.normal(0, 4, (count, 3, 64, 64))
    return torch.from_numpy(wave.clip(0, 255).astype(np.uint8))


def rand(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def meta(backbone: str) -> RD4AD:
    """A detector without memory: shapes only."""
    with torch.device("meta"):
        return RD4AD(BACKBONES[backbone](), RD4ADSettings())


def nbytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def network(backbone: Backbone, layers: Sequence[str] = ()) -> ReverseNetwork:
    torch.manual_seed(0)
    return ReverseNetwork(backbone, layers or backbone.group("stfpm")).eval()


def shapes(network: ReverseNetwork, backbone: Backbone, layers: Sequence[str], *size: int) -> None:
    with torch.no_grad():
        features = backbone.features(pixels(2, *size), layers)
        decoded = network([features[layer] for layer in layers])
    assert [d.shape for d in decoded] == [features[layer].shape for layer in layers]
    assert all(torch.isfinite(d).all() for d in decoded)


# --- sizes ----------------------------------------------------------------------------------------


def test_wide_resnet50_has_the_published_sizes() -> None:
    detector = meta("wide_resnet50_2")
    unused = (
        4 * (4096 * 2048 + 4 * 2048) + 8
    )  # a convolution and its norm: weight, bias, mean, variance, count
    bottleneck, decoder = nbytes(detector.network.bottleneck), nbytes(detector.network.decoder)
    assert round((bottleneck + unused) / MIB, 2) == 256.79
    assert round(decoder / MIB, 2) == 95.17
    encoder = detector.backbone.parameter_bytes("layer3", include_buffers=True)
    assert round((encoder + bottleneck + decoder) / MIB) == 415
    assert nbytes(detector.network.heads) == 0
    assert nbytes(detector) == bottleneck + decoder


def test_resnet18_has_the_sizes_computed_by_hand() -> None:
    def block(before: int, after: int, kernel: int, shortcut: int) -> int:
        """Parameters of a basic block; `kernel` and `shortcut`: kernel areas of its first and third layer."""
        norms = 2 * after * (3 if shortcut else 2)
        return before * after * kernel + 9 * after * after + before * after * shortcut + norms

    detector = meta("resnet18")
    fusion = 9 * (64 * 128 + 128 * 256 + 128 * 256) + 2 * (128 + 256 + 256)
    embedding = block(768, 512, 9, 1) + block(512, 512, 9, 0)
    decoder = sum(
        block(before, before // 2, 4, 4) + block(before // 2, before // 2, 9, 0) for before in (512, 256, 128)
    )
    counts = [
        sum(p.numel() for p in part.parameters())
        for part in (detector.network.bottleneck, detector.network.decoder, detector.network)
    ]
    assert counts == [fusion + embedding, decoder, fusion + embedding + decoder]


def test_the_decoder_of_a_resnet_is_as_deep_as_published() -> None:
    """The stage that runs first has the depth of the teacher's first stage, not of the one it restores."""
    stages = meta("wide_resnet50_2").network.decoder.stages
    assert [len(stage) for stage in stages] == [3, 4, 6]  # type: ignore[arg-type]
    assert [stage[-1].conv3.out_channels for stage in stages] == [1024, 512, 256]  # type: ignore[index,union-attr]


def test_only_resnets_do_without_heads() -> None:
    for name in BACKBONES:
        heads = meta(name).network.heads
        plain = [isinstance(head, nn.Identity) for head in heads]
        assert plain == [name in ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")] * len(heads)


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (72, 72), (75, 52), (33, 96)])
@pytest.mark.parametrize("name", LIGHT)
def test_what_is_decoded_has_the_teachers_shapes(name: str, size: tuple[int, int]) -> None:
    backbone = create_backbone(name, weights="random")
    shapes(network(backbone), backbone, backbone.group("stfpm"), *size)


@pytest.mark.parametrize("size", [64, 72, 225])
def test_shapes_agree_on_every_backbone(size: int) -> None:
    for name in BACKBONES:
        with torch.device("meta"):
            backbone = BACKBONES[name]()
            layers = backbone.group("stfpm")
            features = backbone.features(torch.zeros(1, 3, size, size), layers)
            decoded = ReverseNetwork(backbone, layers).eval()([*features.values()])
        assert [d.shape for d in decoded] == [f.shape for f in features.values()], name


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("tiny", ("layer3",)),
        ("tiny", ("layer0", "layer3")),  # an eighth of the size in between
        ("resnet18", ("stem", "layer1", "layer2")),  # stem and layer1 are as large
        ("resnet18", ("layer1", "layer2", "layer3", "layer4")),
        ("mobilenet_v2", ("features.7", "features.10", "features.13")),
    ],
)
def test_layers_of_any_strides_will_do(name: str, layers: tuple[str, ...]) -> None:
    backbone = create_backbone(name, weights="random")
    shapes(network(backbone, layers), backbone, layers, 72, 72)


def test_every_position_of_the_maps_is_decoded_from_the_embedding(tiny: Backbone) -> None:
    """Where sizes are odd, the embedding's last row reaches the maps' last row."""
    net = network(tiny)
    features = [*tiny.features(pixels(1, 72, 72), tiny.group("stfpm")).values()]
    embedded = net.bottleneck(features)
    assert embedded.shape[-2:] == (5, 5)
    changed = embedded.clone()
    changed[..., -1, :] += 5
    sizes = [f.shape[-2:] for f in features]
    for before, after in zip(net.decoder(embedded, sizes), net.decoder(changed, sizes), strict=True):
        assert (before[..., -1, :] != after[..., -1, :]).any()
        assert torch.equal(before[..., 0, :], after[..., 0, :])


def test_nothing_passes_by_the_embedding(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(tiny)
    sizes = [(1, 16, 16, 16), (1, 24, 8, 8)]
    monkeypatch.setattr(net.bottleneck, "forward", lambda features: torch.ones(1, 48, 4, 4))
    first, second = (net([rand(*size, seed=seed) for size in sizes]) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- transposed convolutions ----------------------------------------------------------------------


@pytest.mark.parametrize("stride", [2, 3])
def test_a_transposed_convolution_paints_a_square_for_each_pixel(stride: int) -> None:
    layer, x = UpConv2d(3, 5, stride), rand(2, 3, 4, 6)
    expected = torch.zeros(2, 5, 4 * stride, 6 * stride)
    for row, column in np.ndindex(4, 6):
        square = torch.einsum("bi,oikl->bokl", x[:, :, row, column], layer.weight)
        rows, columns = (slice(i * stride, (i + 1) * stride) for i in (row, column))
        expected[:, :, rows, columns] = square
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_its_norm_can_be_folded_into_it() -> None:
    layer, norm = UpConv2d(3, 5, 2), nn.BatchNorm2d(5)
    norm(rand(8, 5, 4, 4) * 3 + 1)  # some statistics
    nn.init.normal_(norm.weight)
    norm.eval()
    x = rand(2, 3, 4, 6, seed=1)
    assert torch.allclose(normalised(x, layer, norm), norm(layer(x)), atol=1e-5)


# --- the loss -------------------------------------------------------------------------------------


def reference_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> float:
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        for image in range(len(t)):
            u, v = t[image].double().numpy().ravel(), s[image].double().numpy().ravel()
            dot = sum(float(a) * float(b) for a, b in zip(u, v, strict=True))
            lengths = math.sqrt(sum(float(a) ** 2 for a in u)) * math.sqrt(sum(float(b) ** 2 for b in v))
            total += (1 - dot / lengths) / len(t)
    return total


def test_the_loss_agrees_with_loops() -> None:
    sizes = ((3, 4, 6, 5), (3, 7, 3, 2))
    teacher = [rand(*size, seed=index) for index, size in enumerate(sizes)]
    student = [rand(*size, seed=10 + index) for index, size in enumerate(sizes)]
    expected = reference_loss(teacher, student)
    assert reconstruction_loss(teacher, student).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_compares_whole_maps_not_positions() -> None:
    teacher, student = torch.ones(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]])  # alike at each position
    assert reconstruction_loss([teacher], [student]).item() == pytest.approx(1 - 4 / math.sqrt(20))
    assert reconstruction_loss([teacher], [3 * teacher]).item() == pytest.approx(0, abs=1e-6)
    assert reconstruction_loss([teacher], [-teacher]).item() == pytest.approx(2)


# --- the map --------------------------------------------------------------------------------------


def reference_map(teacher: Sequence[Tensor], student: Sequence[Tensor], size: int) -> NDArray[np.float64]:
    """Of a single image: cosines by loops, corners aligned, SciPy's Gaussian."""
    total = np.zeros((size, size))
    for t, s in zip(teacher, student, strict=True):
        u, v = t[0].double().numpy(), s[0].double().numpy()
        side = u.shape[-1]
        coarse = np.zeros((side, side))
        for row, column in np.ndindex(side, side):
            a, b = u[:, row, column], v[:, row, column]
            coarse[row, column] = 1 - a @ b / math.sqrt((a @ a) * (b @ b))
        for row, column in np.ndindex(size, size):
            y, x = (i * (side - 1) / (size - 1) for i in (row, column))
            top, left = min(int(y), side - 2), min(int(x), side - 2)
            dy, dx = y - top, x - left
            upper = (1 - dx) * coarse[top, left] + dx * coarse[top, left + 1]
            lower = (1 - dx) * coarse[top + 1, left] + dx * coarse[top + 1, left + 1]
            total[row, column] += (1 - dy) * upper + dy * lower
    smoothed: NDArray[np.float64] = ndimage.gaussian_filter(total, 4.0, mode="nearest")
    return smoothed


def test_the_map_agrees_with_loops(tiny: Backbone) -> None:
    detector = RD4AD(tiny, RD4ADSettings())
    images = pixels(1, 48, 48)
    features = tiny.features(images, detector.taps)
    teacher = [features[tap] for tap in detector.taps]
    with torch.no_grad():
        student = detector.network(teacher)
    expected = reference_map(teacher, student, 48)
    assert expected.std() > 0.01
    assert detector.anomaly_maps(images)[0].numpy() == pytest.approx(expected, rel=1e-4)


def test_smoothing_is_a_real_blur(tiny: Backbone) -> None:
    detector, images = RD4AD(tiny, RD4ADSettings(smoothing=0)), pixels(2, 48, 48)
    sharp = detector.anomaly_maps(images)
    smoothed = RD4AD(tiny, RD4ADSettings(smoothing=2.5))
    smoothed.load_state_dict(detector.state_dict())
    expected = ndimage.gaussian_filter(sharp.double().numpy(), (0, 2.5, 2.5), mode="nearest")
    assert smoothed.anomaly_maps(images).numpy() == pytest.approx(expected, rel=1e-4)
    assert not np.allclose(expected, sharp.numpy(), rtol=1e-2)


def test_what_is_restored_perfectly_is_not_anomalous(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, images = RD4AD(tiny, RD4ADSettings()), pixels(2, 48, 48)
    assert detector.anomaly_maps(images).min() > 0
    monkeypatch.setattr(detector.network, "forward", lambda features: features)
    assert detector.anomaly_maps(images).abs().max() == 0
    monkeypatch.setattr(detector.network, "forward", lambda features: [-f for f in features])
    maps = detector.anomaly_maps(images)
    assert torch.allclose(
        maps, torch.full_like(maps, 4.0)
    )  # twice 1 - cos = 2; a ReLU left no position empty


# --- training -------------------------------------------------------------------------------------


def test_training_lowers_the_loss(tiny: Backbone) -> None:
    detector = RD4AD(tiny, RD4ADSettings(training=replace(QUICK, epochs=8)))
    detector.fit(stripes(16))
    losses = [epoch["reconstruction"] for epoch in detector.history_]
    assert len(losses) == 8
    assert losses[-1] < 0.3 * losses[0]
    features = [*tiny.features(stripes(8, seed=1), detector.taps).values()]
    with torch.no_grad():
        unseen = reconstruction_loss(features, detector.network(features))
    assert unseen < 0.5 * losses[0]


def test_the_first_step_is_adams(tiny: Backbone) -> None:
    """Each weight that has a gradient moves by the learning rate, whatever the gradient's size."""
    one = TrainingSettings(
        steps=1, batch_size=4, optimiser="adam", learning_rate=0.005, final_learning_rate=0.005
    )
    detector, images = RD4AD(tiny, RD4ADSettings(training=one)), pixels(4, 64, 64)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = ReverseNetwork(tiny, detector.taps).train()
    features = [*tiny.features(images, detector.taps).values()]
    reconstruction_loss(features, network(features)).backward()  # type: ignore[no-untyped-call]
    detector.fit(images, seed=7)
    moved = 0
    for old, new in zip(network.parameters(), detector.network.parameters(), strict=True):
        assert old.grad is not None
        steep = old.grad.abs() > 1e-5  # Adam's epsilon is 1e-8
        assert torch.allclose((old - new)[steep], 0.005 * old.grad.sign()[steep], atol=1e-5)
        moved += int(steep.sum())
    assert moved > 0.8 * sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("moment", [1, 4, 6, 8])
def test_interrupted_training_goes_on_and_ends_bit_by_bit_the_same(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    monkeypatch.setattr(Checkpoint, "is_due", lambda self: True)
    whole, halted, resumed = (RD4AD(tiny, RD4ADSettings(training=QUICK)) for _ in range(3))
    untrained = copy.deepcopy(halted.state_dict())
    images = pixels(10, 48, 48)
    whole.fit(images, seed=3)

    def stop(done: int, total: int, what: str) -> None:
        if done == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halted.fit(images, seed=3, progress=stop, checkpoints=tmp_path)
    assert all(torch.equal(tensor, untrained[name]) for name, tensor in halted.state_dict().items())
    assert (tmp_path / "decoder.safetensors").is_file()
    steps: list[int] = []
    resumed.fit(images, seed=3, progress=lambda done, total, what: steps.append(done), checkpoints=tmp_path)
    assert {*steps} == {*range(moment + 1, 10)}  # none is made twice
    assert resumed.history_ == whole.history_
    state = resumed.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.state_dict().items())


def test_the_teacher_runs_once_per_image(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    features = tiny.features

    def counted(x: Tensor, taps: Sequence[str], start: str | None = None) -> dict[str, Tensor]:
        seen.append(len(x))
        return features(x, taps, start)

    monkeypatch.setattr(tiny, "features", counted)
    RD4AD(tiny, RD4ADSettings(training=QUICK)).fit(pixels(10, 48, 48))
    assert sum(seen) == 10


# --- methods and settings -------------------------------------------------------------------------


def test_defaults_are_the_published_ones() -> None:
    training = RD4ADSettings().training
    assert (training.epochs, training.batch_size, training.optimiser) == (200, 16, "adam")
    assert (training.learning_rate, training.betas, training.weight_decay) == (0.005, (0.5, 0.999), 0)
    assert {training.decay(epoch, 200) for epoch in range(200)} == {1.0}
    assert METHODS["rd4ad-wrn50"].settings == METHODS["rd4ad-resnet18"].settings == RD4ADSettings()
    assert METHODS["rd4ad"].settings.training.steps_for(320) == (20, 400)
    assert METHODS["rd4ad"].settings.training.steps_for(20) == (2, 200)


def test_layers_by_name_replace_the_group(tiny: Backbone) -> None:
    assert RD4AD(tiny, RD4ADSettings()).taps == ("layer1", "layer2")
    assert RD4AD(tiny, RD4ADSettings(group="paste")).taps == ("layer2", "layer3")
    assert RD4AD(tiny, RD4ADSettings(layers=("layer3", "layer0"))).taps == ("layer0", "layer3")


def test_settings_that_do_not_fit_are_refused(tiny: Backbone) -> None:
    for wrong in (-1.0, math.nan):
        with pytest.raises(SettingsError, match=r"smoothing is .* 0 or more"):
            RD4ADSettings(smoothing=wrong)
    with pytest.raises(SettingsError, match="'avgpool' is not 'layer3' halved"):
        RD4AD(tiny, RD4ADSettings(layers=("layer3", "avgpool")))
    with pytest.raises(SettingsError, match="no block 'layer9'"):
        RD4AD(tiny, RD4ADSettings(layers=("layer9",)))
    with torch.device("meta"), pytest.raises(SettingsError, match="4 stages cannot restore 5 layers"):
        RD4AD(BACKBONES["resnet18"](), RD4ADSettings(layers=("stem", "layer1", "layer2", "layer3", "layer4")))


def test_images_that_leave_nothing_to_embed_are_refused(tiny: Backbone) -> None:
    detector = RD4AD(tiny, RD4ADSettings(training=QUICK))
    with pytest.raises(SettingsError, match=r"16 pixels in a single position, behind 'layer2'.*more than 16"):
        detector.fit(pixels(5, 16, 16))
    detector.fit(pixels(5, 17, 17))  # the last batch is a single image
    assert torch.isfinite(detector.anomaly_maps(pixels(1, 17, 17))).all()
