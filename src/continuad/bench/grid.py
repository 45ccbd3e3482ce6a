"""A grid of experiments: a TOML file that names choices, and the runs that they multiply to.

    dataset = "datasets/mvtec_ad"            # relative to this file
    products = ["bottle", "cable"]           # in this order; a list of lists tries several orders
    method = ["stfpm", "paste"]
    backbone = "mobilenet_v2"
    strategy = ["joint", "replay"]
    scenario = "continual"
    seed = [0, 1, 2]

    [settings.paste]                         # by method
    training.epochs = 30

    [strategy_settings.replay]               # by strategy
    images = 40

Every choice is one value or a list of them; `weights` may also be a table of sources by backbone. Where there
are `[[run]]` entries, they alone are run, each a grid of its own that takes from the top of the file whatever
it does not say itself.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from continuad import __version__
from continuad.bench.fingerprints import Fingerprints, is_weights_file
from continuad.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of a grid: all that its result depends on.

    Attributes:
        method: name of the detector.
        backbone: name of the backbone.
        weights: where its weights come from, as for `load_weights`.
        strategy: name of the way to learn one task after another.
        scenario: name of what is learnt and tested when.
        seed: of everything random.
        image_size: side of the network's input in pixels.
        products: in the order of learning; None for all of the dataset in its own order.
        settings: changes to the method's settings by name, nested as they are.
        strategy_settings: the same for the strategy.
        dataset: its folder; absolute where runs are sent to other machines.
        layout: its arrangement, as for `load_tasks`.
        device: where to compute, such as "cpu" or "cuda".
    """

    method: str
    backbone: str
    weights: str = "auto"
    strategy: str
    scenario: str
    seed: int = 0
    image_size: int = 256
    products: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    strategy_settings: Mapping[str, Any] = field(default_factory=dict)
    dataset: Path
    layout: str = "auto"
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.method}, {self.backbone}, {self.strategy}, {self.scenario}, seed {self.seed}"

    def facts(self) -> dict[str, str | int | None]:
        """Return the fields as columns of a table: only the last part of a path, structures as JSON."""
        return {
            "dataset": self.dataset.name,
            "layout": self.layout,
            "products": None if self.products is None else _json(self.products),
            "scenario": self.scenario,
            "strategy": self.strategy,
            "strategy_settings": _json(self.strategy_settings),
            "method": self.method,
            "settings": _json(self.settings),
            "backbone": self.backbone,
            "weights": Path(self.weights).name if is_weights_file(self.weights) else self.weights,
            "image_size": self.image_size,
            "device": self.device,
            "seed": self.seed,
        }

    def key(self, fingerprints: Fingerprints) -> str:
        """Return 32 hex digits that stand for the result: they change with whatever it depends on.

        Those are the fields, with what lies behind their paths instead of the paths, and what the settings
        come to instead of how they are given; and the version of continuad.

        Raises:
            ContinuadError: the dataset or the weights file cannot be read.
        """
        behind = {
            "dataset": fingerprints.dataset(self.dataset, layout=self.layout, products=self.products),
            "weights": fingerprints.weights(self.weights),
            "settings": fingerprints.settings(self),
            "continuad": __version__,
        }
        facts = {name: value for name, value in self.facts().items() if name != "strategy_settings"}
        return hashlib.sha256(_json({**facts, **behind}).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Grid:
    """The runs of a spec file, in its order.

    Attributes:
        name: that of the file, without its suffix.
        runs: at least one; a run that two entries ask for is there twice.
    """

    name: str
    runs: Sequence[RunSpec]


def load_grid(
    path: Path, *, overrides: Mapping[str, Any] | None = None, defaults: Mapping[str, Any] | None = None
) -> Grid:
    """Read a spec file; the module's docstring shows one.

    Args:
        path: of the TOML file.
        overrides: keys as in the file that replace what it says, also in its entries; paths are absolute.
        defaults: keys as in the file that count where it says nothing; paths are absolute.

    Raises:
        SettingsError: it cannot be read, is no TOML, or holds an unknown key or an unfit value.
    """
    table = {**(defaults or {}), **_read(path)}
    entries = table.pop("run", [{}])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SettingsError(f"{path}: run is not a list of tables.", "Write [[run]] above each entry.")
    if not entries:
        raise _empty(str(path), "run")
    _check_keys(table, str(path))
    runs: list[RunSpec] = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}, [[run]] number {number}" if entry else str(path)
        _check_keys(entry, where)
        chosen = merged(merged(table, entry), overrides or {})
        added = _multiply(chosen, where, path.parent.absolute())
        _check_used(entry, added, where)
        runs += added
    _check_used(merged(table, overrides or {}), runs, str(path))
    return Grid(path.stem, runs)


@dataclass(frozen=True)
class _Axis:
    """What a key of the file takes; a `default` of None means that it must be there."""

    kind: type[str] | type[int]
    default: str | int | None = None
    least: int = 0


_AXES = {
    "dataset": _Axis(str),
    "layout": _Axis(str, "auto"),
    "scenario": _Axis(str),
    "strategy": _Axis(str),
    "method": _Axis(str),
    "backbone": _Axis(str),
    "weights": _Axis(str, "auto"),
    "image_size": _Axis(int, 256, least=1),
    "device": _Axis(str, "cpu"),
    "seed": _Axis(int, 0),
}
_SETTINGS = {"settings": "method", "strategy_settings": "strategy"}
_KEYS = (*_AXES, "products", *_SETTINGS)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read ({error.strerror}).", "Give the TOML file that lists the runs."
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text.", "Save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not TOML: {error}.", "Correct it there.") from error


def _check_keys(table: Mapping[str, Any], where: str) -> None:
    for key in table:
        if key not in _KEYS:
            raise SettingsError(f"{where}: there is no key {key!r}.", _hint(key, _KEYS))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Replace values; tables are merged, level by level."""
    result = {**base, **changes}
    for key in base.keys() & changes.keys():
        if isinstance(base[key], dict) and isinstance(changes[key], dict):
            result[key] = merged(base[key], changes[key])
    return result


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as pairs, the names joined by dots."""
    found = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        found += flat_settings(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found


def _multiply(table: Mapping[str, Any], where: str, folder: Path) -> list[RunSpec]:
    """All combinations of the choices in a table; the seed changes fastest."""
    settings = {key: _settings(table, key, where) for key in _SETTINGS}
    weights = table.get("weights")
    by_backbone = _weights(weights, where) if isinstance(weights, dict) else None
    if by_backbone is not None:
        table = {name: value for name, value in table.items() if name != "weights"}
    choices = [_choices(table, name, axis, where) for name, axis in _AXES.items()]
    runs = []
    for products, values in itertools.product(_orders(table, where), itertools.product(*choices)):
        chosen: dict[str, Any] = dict(zip(_AXES, values, strict=True))
        if by_backbone is not None:
            chosen["weights"] = by_backbone.get(chosen["backbone"], "auto")
        if is_weights_file(chosen["weights"]):
            chosen["weights"] = str(folder / Path(chosen["weights"]).expanduser())
        chosen["dataset"] = folder / Path(chosen["dataset"]).expanduser()
        for key, axis in _SETTINGS.items():
            chosen[key] = settings[key].get(chosen[axis], {})
        runs.append(RunSpec(**chosen, products=products))
    return runs


def _weights(given: Mapping[str, Any], where: str) -> Mapping[str, str]:
    for backbone, source in given.items():
        if not isinstance(source, str) or not source:
            raise SettingsError(
                f"{where}: weights.{backbone} is {source!r}.", "Give a file, or another text."
            )
    return given


def _choices(table: Mapping[str, Any], name: str, axis: _Axis, where: str) -> list[Any]:
    if name not in table and axis.default is None:
        raise SettingsError(f"{where} says no {name}.", f"Add {name} = ..., one value or a list of them.")
    given = table.get(name, axis.default)
    choices = given if isinstance(given, list) else [given]
    if not choices:
        raise _empty(where, name)
    for choice in choices:
        # `type`, as True is an int; a text must not be empty
        if type(choice) is not axis.kind or (choice < axis.least if type(choice) is int else not choice):
            wanted = "text" if axis.kind is str else f"whole numbers from {axis.least} up"
            raise SettingsError(f"{where}: {name} is {choice!r}.", f"Give {wanted}, one or a list.")
    return choices


def _orders(table: Mapping[str, Any], where: str) -> list[tuple[str, ...] | None]:
    """The orders of products to try."""
    given = table.get("products")
    if given is None:
        return [None]
    orders = given if isinstance(given, list) and any(isinstance(each, list) for each in given) else [given]
    for order in orders:
        if order == []:
            raise _empty(where, "products")
        if not isinstance(order, list) or not all(isinstance(name, str) and name for name in order):
            raise SettingsError(
                f"{where}: products is {given!r}.", "Give a list of names, or a list of such lists."
            )
        if len(set(order)) < len(order):
            raise SettingsError(f"{where}: products names one twice in {order!r}.", "Name each once.")
    return [tuple(order) for order in orders]


def _settings(table: Mapping[str, Any], key: str, where: str) -> Mapping[str, Mapping[str, Any]]:
    given = table.get(key, {})
    if not isinstance(given, dict) or not all(isinstance(changes, dict) for changes in given.values()):
        name = _SETTINGS[key]
        raise SettingsError(
            f"{where}: {key} is not sorted by {name}.", f"Write [{key}.NAME] with the {name}'s name."
        )
    try:
        _json(given)
    except TypeError as error:
        raise SettingsError(f"{where}: {key} holds a date or a time.", "Give numbers or text.") from error
    return given


def _check_used(table: Mapping[str, Any], runs: Sequence[RunSpec], where: str) -> None:
    """Refuse settings of a method or strategy, or weights of a backbone, that is not run."""
    for key, axis in {**_SETTINGS, "weights": "backbone"}.items():
        used = dict.fromkeys(getattr(run, axis) for run in runs)
        for name in given if isinstance(given := table.get(key), dict) else ():
            if name not in used:
                raise SettingsError(f"{where}: [{key}.{name}] is for a {axis} not run.", _hint(name, used))


def _empty(where: str, name: str) -> SettingsError:
    return SettingsError(f"{where}: {name} is an empty list.", "Fill it, or leave it out.")


def _hint(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Choose one of: {', '.join(known)}."


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
