from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare
from torch import Tensor

from conftest import watched
from continuad.continual.codecs import CODECS, Floats
from continuad.continual.replay import ReplayBuffer, batch_shares
from continuad.errors import ContinuadError, SettingsError


def draw(
    buffer: ReplayBuffer, count: int, rng: np.random.Generator, *, balanced: bool = False
) -> tuple[Tensor, list[str]]:
    """Items as a training would replay them, and the task of each."""
    numbers = buffer.choose(count, rng, balanced=balanced)
    names = [name for name, held in buffer.counts.items() for _ in range(held)]
    return buffer.items()[numbers], [names[number] for number in numbers]


def numbered(task: int, count: int) -> Tensor:
    """Items (count, 1, 1, 2) that hold the number of their task and their own."""
    return torch.tensor([[task, index] for index in range(count)], dtype=torch.float32).view(count, 1, 1, 2)


def stored(buffer: ReplayBuffer) -> dict[str, list[int]]:
    """The numbers of the items that a buffer of `numbered` items holds, by task."""
    return {
        name: held.decode(range(len(held)))[:, 0, 0, 1].int().tolist() for name, held in buffer._tasks.items()
    }


def filled(*counts: int, size: int, seed: int = 0, codec: str = "none") -> ReplayBuffer:
    """A buffer after tasks "0", "1", ... of `numbered` items."""
    buffer = ReplayBuffer(size, codec, seed=seed)
    for task, count in enumerate(counts):
        buffer.add(str(task), numbered(task, count))
    return buffer


def maps(seed: int, count: int = 6) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 3, 4, 4)).astype(np.float32))


def items_for(codec: str, seed: int) -> Tensor:
    return (maps(seed) * 50 + 128).clamp(0, 255).byte() if codec == "uint8-image" else maps(seed)


def drawn(buffer: ReplayBuffer, seed: int = 0) -> tuple[bytes, list[str]]:
    items, names = draw(buffer, 20, np.random.default_rng(seed))
    return items.numpy().tobytes(), names


# --- what is stored -------------------------------------------------------------------------------


def test_tasks_share_the_places_equally() -> None:
    buffer = ReplayBuffer(100, "none", seed=0)
    shares = []
    for task in range(10):
        buffer.add(str(task), numbered(task, 200))
        assert len(set(buffer.counts.values())) == 1
        shares.append(buffer.counts["0"])
    assert shares == [100, 50, 33, 25, 20, 16, 14, 12, 11, 10]
    assert [*buffer.counts] == [str(task) for task in range(10)]


def test_a_task_with_few_items_is_stored_whole() -> None:
    buffer = filled(3, 60, size=20)
    assert buffer.counts == {"0": 3, "1": 10}
    assert stored(buffer)["0"] == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40),
    counts=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    seed=st.integers(0, 2**40),
)
def test_the_buffer_never_holds_more_than_its_size_nor_an_item_twice(
    size: int, counts: list[int], seed: int
) -> None:
    buffer = ReplayBuffer(size, "none", seed=seed)
    before: dict[str, list[int]] = {}
    for task, count in enumerate(counts[:size]):
        buffer.add(str(task), numbered(task, count))
        now = stored(buffer)
        share = size // (task + 1)
        assert sum(buffer.counts.values()) <= size
        assert buffer.counts == {str(old): min(share, counts[old]) for old in range(task + 1)}
        assert all(len(set(held)) == len(held) for held in now.values())
        assert set(now[str(task)]) <= set(range(count))
        assert all(set(now[name]) <= set(held) for name, held in before.items())
        before = now


def test_every_item_is_as_likely_to_be_stored() -> None:
    """Of 9 items 6 are stored, then 3 of these and of 9 others, then 2 each."""
    rounds = 1500
    included: dict[tuple[int, str], npt.NDArray[np.int64]] = {}
    for seed in range(rounds):
        buffer = ReplayBuffer(6, "none", seed=seed)
        for task in range(3):
            buffer.add(str(task), numbered(task, 9))
            for name, held in stored(buffer).items():
                included.setdefault((task, name), np.zeros(9, np.int64))[held] += 1
    assert len(included) == 6
    for (task, _), counts in included.items():
        share = 6 // (task + 1)
        expected = rounds * share / 9
        assert counts.sum() == rounds * share
        # without replacement counts vary less than a multinomial's, by (9 - share) / (9 - 1)
        statistic = ((counts - expected) ** 2 / expected).sum() * 8 / (9 - share)
        assert 0.001 < chi2.sf(statistic, 8) < 0.999


def test_the_choice_for_one_task_says_nothing_about_another() -> None:
    held = [stored(filled(9, 9, 9, size=3, seed=seed)) for seed in range(900)]  # in the end one item each
    for one, other in [("0", "1"), ("0", "2"), ("1", "2")]:
        pairs = Counter((each[one][0], each[other][0]) for each in held)
        assert 0.001 < chisquare([pairs[a, b] for a in range(9) for b in range(9)]).pvalue < 0.999


def test_the_choice_depends_on_the_seed_alone() -> None:
    assert stored(filled(50, 40, size=20, seed=3)) == stored(filled(50, 40, size=20, seed=3))
    assert stored(filled(50, 40, size=20, seed=3)) != stored(filled(50, 40, size=20, seed=4))


def test_only_the_items_drawn_are_looked_at() -> None:
    class Lazy:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int, /) -> Tensor:
            self.seen.append(index)
            return numbered(0, 1000)[index]

    items = Lazy()
    buffer = ReplayBuffer(5, "none", seed=0)
    buffer.add("a", items)
    assert stored(buffer)["a"] == items.seen
    assert len(items.seen) == 5


@pytest.mark.parametrize("codec", CODECS)
def test_items_that_stay_are_never_encoded_anew(codec: str) -> None:
    buffer = ReplayBuffer(6, codec, seed=0)
    buffer.add("a", items_for(codec, 0))
    first = {each.numpy().tobytes() for each in buffer._tasks["a"].decode(range(6))}
    for task in "bcd":
        buffer.add(task, items_for(codec, ord(task)))
    held = buffer._tasks["a"]
    assert buffer.counts["a"] == 1
    assert held.decode([0])[0].numpy().tobytes() in first


@pytest.mark.parametrize(
    ("codec", "shape", "size"),
    [
        ("uint8-image", (3, 256, 256), 19_660_800),
        ("none", (24, 32, 32), 9_830_400),
        ("int8-map", (24, 32, 32), 2_457_600 + 800),
    ],
)
def test_sizes_as_in_the_thesis(codec: str, shape: tuple[int, ...], size: int) -> None:
    """Eq. 5.1: C H W, times bytes per value, times items."""
    buffer = ReplayBuffer(100, codec, seed=0)
    kind = torch.uint8 if codec == "uint8-image" else torch.float32
    for task in range(5):
        buffer.add(str(task), torch.zeros(1, dtype=kind).expand(110, *shape))
        assert buffer.bytes == size // 100 * sum(buffer.counts.values())
    assert buffer.bytes == size


def test_each_task_has_a_basis() -> None:
    buffer = ReplayBuffer(6, "pca-task", seed=0)
    buffer.add("a", maps(0))
    alone = buffer.bytes
    buffer.add("b", maps(1))
    assert alone == 4 * (6 * 3 * 16 + 3 * 3 + 3)
    assert buffer.bytes == alone + 4 * (3 * 3 + 3)


# --- what cannot be stored ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "items", "message"),
    [
        ("a", numbered(0, 3), r"holds a task 'a' already\. Give every task"),
        ("b", numbered(0, 0), r"'b' has no items"),
        ("b", numbered(0, 3) / 0, r"infinite or not a number"),
        ("b", numbered(0, 3).byte(), r"no feature maps but \(1, 1, 1, 2\) uint8"),
        ("b", torch.zeros(3, 1, 2, 1), r"of shape \(1, 1, 2\), not \(1, 2, 1\)\. Use one image size"),
    ],
)
def test_what_cannot_be_added_leaves_the_buffer_as_it_was(name: str, items: Tensor, message: str) -> None:
    buffer = ReplayBuffer(2, "none", seed=0)
    buffer.add("a", numbered(0, 9))
    before = stored(buffer)
    with pytest.raises(ContinuadError, match=message):
        buffer.add(name, items)
    assert stored(buffer) == before
    buffer.add("b", numbered(1, 9))
    assert buffer.counts == {"a": 1, "b": 1}
    with pytest.raises(SettingsError, match=r"size 2 has no room for 3 tasks\. Make it larger"):
        buffer.add("c", numbered(2, 9))
    assert buffer.counts == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("size", "codec", "seed", "message"),
    [(0, "none", 0, "size 0 holds nothing"), (9, "nine", 0, "no codec named"), (9, "none", -1, "seed is -1")],
)
def test_settings_that_cannot_be_are_refused(size: int, codec: str, seed: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ReplayBuffer(size, codec, seed=seed)


# --- drawing --------------------------------------------------------------------------------------


def test_a_task_is_drawn_uniformly_and_then_one_of_its_items() -> None:
    buffer = filled(1, 2, 9, size=15)  # 1, 2 and 5 items
    items, names = draw(buffer, 6000, np.random.default_rng(0))
    assert items.shape == (6000, 1, 1, 2)
    pairs = Counter((int(task), int(index)) for task, index in items.flatten(1).tolist())
    assert Counter(int(name) for name in names) == Counter(items[:, 0, 0, 0].int().tolist())
    held = [(int(name), index) for name, indices in stored(buffer).items() for index in indices]
    expected = [6000 / 3 / buffer.counts[str(task)] for task, _ in held]
    assert pairs.keys() == set(held)
    assert 0.001 < chisquare([pairs[each] for each in held], expected).pvalue < 0.999


def test_draws_within_a_batch_are_independent() -> None:
    buffer, rng = filled(2, 2, size=4), np.random.default_rng(0)
    pairs = Counter(tuple(draw(buffer, 2, rng)[0].flatten(1)[:, 0].int().tolist()) for _ in range(1200))
    assert 0.001 < chisquare([pairs[a, b] for a in (0, 1) for b in (0, 1)]).pvalue < 0.999


def test_balanced_draws_take_every_task_equally_often_or_once_more() -> None:
    buffer, rng = filled(1, 1, 9, size=15), np.random.default_rng(0)
    more: Counter[str] = Counter()
    for _ in range(600):
        items, names = draw(buffer, 8, rng, balanced=True)
        assert [str(task) for task in items[:, 0, 0, 0].int().tolist()] == names
        counts = Counter(names)
        assert sorted(counts.values()) == [2, 3, 3]
        more.update(name for name, count in counts.items() if count == 3)
    assert chisquare([more[name] for name in "012"]).pvalue > 0.001  # each in two of three batches
    indices = Counter(
        int(i) for _ in range(300) for t, i in draw(buffer, 3, rng, balanced=True)[0].flatten(1) if t == 2
    )
    assert indices.keys() == set(stored(buffer)["2"])
    assert 0.001 < chisquare([*indices.values()]).pvalue < 0.999


def test_with_fewer_draws_than_tasks_balanced_ones_are_of_different_tasks() -> None:
    buffer = filled(*[4] * 6, size=12)
    for seed in range(20):
        assert len(set(draw(buffer, 4, np.random.default_rng(seed), balanced=True)[1])) == 4


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_drawn_is_what_was_encoded(codec: str) -> None:
    buffer = ReplayBuffer(6, codec, seed=0)
    buffer.add("a", items_for(codec, 0))
    items, names = draw(buffer, 9, np.random.default_rng(0))
    encoded = CODECS[codec].encode(items_for(codec, 0)).decode(range(6))
    assert names == ["a"] * 9
    assert items.dtype == items_for(codec, 0).dtype
    assert {each.numpy().tobytes() for each in items} <= {each.numpy().tobytes() for each in encoded}


def test_drawing_nothing_gives_nothing() -> None:
    items, names = draw(filled(3, size=3), 0, np.random.default_rng(0), balanced=True)
    assert (items.shape, items.dtype, names) == ((0, 1, 1, 2), torch.float32, [])


def test_changing_what_was_drawn_does_not_change_the_buffer() -> None:
    buffer = filled(3, 3, size=6)
    before = drawn(buffer)
    draw(buffer, 50, np.random.default_rng(0))[0].fill_(-1)
    assert drawn(buffer) == before


def test_an_empty_buffer_has_nothing_to_draw() -> None:
    with pytest.raises(ContinuadError, match=r"nothing to replay yet\. Add a task"):
        draw(ReplayBuffer(5, "none", seed=0), 1, np.random.default_rng(0))


def test_shares_of_a_batch() -> None:
    assert [batch_shares(size, "add") for size in (8, 1)] == [(8, 8), (1, 1)]
    assert [batch_shares(size, "replace") for size in (32, 7, 1)] == [(16, 16), (4, 3), (1, 0)]
    with pytest.raises(SettingsError, match=r"'swap'\. Use 'add' or 'replace'"):
        batch_shares(8, "swap")  # type: ignore[arg-type]


# --- on disk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_a_loaded_buffer_goes_on_as_if_nothing_had_happened(codec: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "buffer.safetensors"
    buffer = ReplayBuffer(7, codec, seed=5)
    for task in range(3):
        buffer.save(path)
        loaded = ReplayBuffer.load(path)
        for each in (buffer, loaded):
            each.add(f"task {task}.é", items_for(codec, task))
        assert (loaded.size, loaded.codec, loaded.seed) == (7, codec, 5)
        assert (loaded.counts, loaded.bytes) == (buffer.counts, buffer.bytes)
        assert drawn(loaded) == drawn(buffer)
        buffer = loaded
    assert len(buffer.counts) == 3


def test_more_than_ten_tasks_and_items_come_back_in_order(tmp_path: Path) -> None:
    buffer = filled(*[15] * 12, size=144)
    buffer.save(tmp_path / "buffer")
    loaded = ReplayBuffer.load(tmp_path / "buffer")
    assert [*loaded.counts.items()] == [*buffer.counts.items()]
    assert stored(loaded) == stored(buffer)


def test_maps_without_variance_survive_a_file(tmp_path: Path) -> None:
    buffer = ReplayBuffer(4, "pca-map", seed=0)
    buffer.add("a", torch.ones(4, 3, 2, 2))  # not one component
    buffer.save(tmp_path / "buffer")
    assert torch.equal(
        draw(ReplayBuffer.load(tmp_path / "buffer"), 1, np.random.default_rng(0))[0], torch.ones(1, 3, 2, 2)
    )


def test_any_changed_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    filled(2, 2, size=2).save(path)
    data = path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(ContinuadError, match=r"damaged, or no replay buffer\. Restore it"):
            ReplayBuffer.load(path)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "buffer"
    filled(2, 2, size=2).save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ContinuadError, match="damaged, or no replay buffer"):
        ReplayBuffer.load(path)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(safetensors.torch.save({"weight": torch.zeros(2)}))
    with pytest.raises(ContinuadError, match="damaged, or no replay buffer"):
        ReplayBuffer.load(tmp_path / "weights")
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(ContinuadError, match=r"cannot be read: .*Check the path"):
            ReplayBuffer.load(absent)


def test_a_codec_of_ones_own_must_be_known_when_its_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CODECS._entries, "double", Floats(torch.float64))
    filled(3, 3, size=4, codec="double").save(tmp_path / "buffer")
    assert ReplayBuffer.load(tmp_path / "buffer").bytes == 4 * 2 * 8
    monkeypatch.delitem(CODECS._entries, "double")
    with pytest.raises(SettingsError, match="no codec named 'double'"):
        ReplayBuffer.load(tmp_path / "buffer")


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_earlier_file(tmp_path: Path, step: str) -> None:
    path = tmp_path / "buffer"
    old, new = filled(3, size=3), filled(3, 3, size=3)
    old.save(path)

    def fail(number: int, name: str) -> None:
        if name == step:
            raise OSError(28, "No space left on device")

    with watched(fail), pytest.raises(ContinuadError, match=r"No space left on device\. Check free space"):
        new.save(path)
    assert ReplayBuffer.load(path).counts == old.counts
    assert [each.name for each in tmp_path.iterdir()] == ["buffer"]
    new.save(path)
    assert ReplayBuffer.load(path).counts == new.counts
