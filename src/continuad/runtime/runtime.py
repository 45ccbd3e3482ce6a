"""The runtime: what the Inspector says about an image, from an exported folder and without torch."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Generic, Literal, TypeVar, overload

import numpy as np

from continuad.errors import ExportError, ProductError, SettingsError
from continuad.images import ImageSource, load_image, resize
from continuad.router import PrototypeRouter, Route
from continuad.runtime.engines import ENGINES, Arrays
from continuad.runtime.folder import MANIFEST, ExportedProduct, ExportManifest, Program, read_program
from continuad.runtime.maps import enlarge, score
from continuad.stopwatch import Stopwatch
from continuad.verdict import Verdict

Loaded = TypeVar("Loaded")
Mode = Literal["latency", "throughput"]

HEADS = 8
"""Programs of heads that stay compiled, those used last, about 16 MiB each; heads of a kind share one."""

STATE_MEMORY = 64 * 2**20
"""Bytes of such heads' states that stay loaded: more than a hundred of the largest by default."""

AHEAD = 2
"""Images per thread that are under way at a time."""


class _Recent(Generic[Loaded]):
    """Loads programs, and keeps those used last, as many as a limit allows, but always the last one.

    Args:
        folder: where their files are.
        load: makes something of the files' contents.
        weigh: what a program counts for.
        limit: how much all may count for.
    """

    def __init__(
        self,
        folder: Path,
        load: Callable[[Sequence[bytes]], Loaded],
        *,
        weigh: Callable[[Program], int],
        limit: int,
    ) -> None:
        self._folder, self._load, self._weigh, self._limit = folder, load, weigh, limit
        self._kept: OrderedDict[tuple[str, ...], tuple[Loaded, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, program: Program) -> Loaded:
        """Return what was made of a program."""
        key = tuple(program.files.values())
        with self._lock:  # what two threads want is loaded once
            if key not in self._kept:
                loaded = self._load(read_program(self._folder, program))
                self._kept[key] = loaded, self._weigh(program)
                while sum(weight for _, weight in self._kept.values()) > self._limit and len(self._kept) > 1:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key][0]


@dataclass(frozen=True)
class _State:
    """What a folder held when it was looked at."""

    stamp: tuple[int, int, int] | None
    manifest: ExportManifest
    router: PrototypeRouter

    @classmethod
    def read(cls, folder: Path) -> _State:
        stamp = _stamp(folder)
        manifest = ExportManifest.read(folder)
        if not manifest.products:
            raise ExportError(f"{folder} holds no product.", "Export a bank that has learnt one.")
        router = PrototypeRouter()
        for product in manifest.products.values():
            router.add(product.name, product.vector(), product.limit)
        return cls(stamp, manifest, router)


class Runtime:
    """An exported bank, ready to inspect. Any thread may use it.

    A product that is exported into the folder later is known from the next call on.
    """

    def __init__(self, folder: Path, *, mode: Mode, threads: int | None, heads: int) -> None:
        self.folder = folder
        self.threads = threads if threads is not None else _processors()
        if self.threads < 1 or heads < 1:
            raise SettingsError("There must be at least one thread and one head.", "Set them to 1 or more.")
        if mode not in ("latency", "throughput"):
            raise SettingsError(f"There is no mode {mode!r}.", "Choose latency or throughput.")
        self.mode = mode
        self._callers = 1 if mode == "latency" else self.threads
        self._state = _State.read(folder)
        engine = ENGINES[self._state.manifest.target](self.threads, self._callers)
        self._backbones = _Recent(folder, engine.compile, weigh=lambda _: 1, limit=1)
        self._heads = _Recent(folder, engine.compile, weigh=lambda _: 1, limit=heads)
        self._states = _Recent(folder, _arrays, weigh=lambda each: each.bytes, limit=STATE_MEMORY)
        self._backbones.get(self._state.manifest.backbone)  # now, and not at the first image

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        mode: Mode = "latency",
        threads: int | None = None,
        heads: int = HEADS,
    ) -> Runtime:
        """Open an exported folder.

        Args:
            folder: what `continuad export` wrote.
            mode: "latency" looks at one image at a time with all threads; "throughput" at as many images as
                there are threads, each with one of them.
            threads: how many; None for as many as the process may use.
            heads: how many kinds of heads, or trained heads, stay compiled, those used last.

        Raises:
            ExportError: there is no exported bank, it is damaged, or holds no product.
            ModuleNotFoundError: its engine is not installed.
        """
        return cls(Path(folder).absolute(), mode=mode, threads=threads, heads=heads)

    @property
    def products(self) -> Mapping[str, ExportedProduct]:
        """The products by name, in the order in which they were learnt."""
        return MappingProxyType(self._current().manifest.products)

    def product(self, name: str) -> ExportedProduct:
        """Return the product called `name`.

        Raises:
            ProductError: there is none.
        """
        return _entry(self._current().manifest, name)

    @property
    def image_size(self) -> int:
        """Side in pixels that images are resized to."""
        return self._state.manifest.image_size

    @overload
    def inspect(
        self,
        images: list[ImageSource] | tuple[ImageSource, ...],
        *,
        product: str | None = ...,
        reject_unknown: bool = ...,
    ) -> list[Verdict]: ...
    @overload
    def inspect(
        self, images: ImageSource, *, product: str | None = ..., reject_unknown: bool = ...
    ) -> Verdict: ...
    def inspect(
        self,
        images: ImageSource | list[ImageSource] | tuple[ImageSource, ...],
        *,
        product: str | None = None,
        reject_unknown: bool = True,
    ) -> Verdict | list[Verdict]:
        """Inspect one image, or a list of images of any products.

        Args:
            images: anything `load_image` takes, or a list of such.
            product: inspect as this product instead of recognising it.
            reject_unknown: images that look like no product get the verdict "unknown"; otherwise they are
                inspected as the product that looks most alike.

        Raises:
            ImageError: an image cannot be read.
            ProductError: there is no product of that name.
        """
        if isinstance(images, list | tuple):
            return list(self.stream(images, product=product, reject_unknown=reject_unknown))
        return self._inspect(self._current(), images, product, reject_unknown)

    def stream(
        self, images: Iterable[ImageSource], *, product: str | None = None, reject_unknown: bool = True
    ) -> Iterator[Verdict]:
        """Inspect any number of images in constant memory; verdicts come in order."""
        if self._callers == 1:
            for image in images:
                yield self._inspect(self._current(), image, product, reject_unknown)
            return
        pending: deque[Future[Verdict]] = deque()
        with ThreadPoolExecutor(self._callers, thread_name_prefix="inspect") as pool:
            try:
                for image in images:
                    pending.append(
                        pool.submit(self._inspect, self._current(), image, product, reject_unknown)
                    )
                    if len(pending) >= AHEAD * self._callers:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _inspect(
        self, state: _State, image: ImageSource, product: str | None, reject_unknown: bool
    ) -> Verdict:
        stopwatch = Stopwatch()
        original = load_image(image)
        small = resize(original, state.manifest.image_size)[np.newaxis]
        stopwatch.lap("reading")
        features = self._backbones.get(state.manifest.backbone)({"images": small})
        stopwatch.lap("backbone")
        route: Route | None = None
        if product is None:
            route = state.router.route(features["embedding"])[0]
            product = route.nearest if route.is_known or not reject_unknown else None
            stopwatch.lap("routing")
        nearest, distance = (route.nearest, route.distance) if route else (None, float("nan"))
        if product is None:
            return Verdict(None, float("nan"), float("nan"), None, None, nearest, distance, stopwatch.stages)
        entry = _entry(state.manifest, product)
        arrays = {"images": small, **features, **(self._states.get(entry.state) if entry.state else {})}
        found = self._heads.get(entry.head)({name: arrays[name] for name in entry.head.inputs})
        anomaly_map = found["map"][0]
        points = score(anomaly_map, entry.scored_pixels)
        stopwatch.lap("head")
        full = enlarge(anomaly_map, *original.shape[:2])
        verdict = Verdict(product, points, entry.threshold, points > entry.threshold, full, nearest, distance)
        stopwatch.lap("map")
        return replace(verdict, timings=stopwatch.stages)

    def _current(self) -> _State:
        """What the folder holds now; while nobody exports into it, a look at the manifest's date will do."""
        if self._state.stamp != _stamp(self.folder):
            self._state = _State.read(self.folder)
        return self._state


def _arrays(files: Sequence[bytes]) -> Arrays:
    """The arrays of a state's file."""
    with np.load(BytesIO(files[0]), allow_pickle=False) as arrays:
        return dict(arrays)


def _entry(manifest: ExportManifest, product: str) -> ExportedProduct:
    if product not in manifest.products:
        known = ", ".join(manifest.products)
        raise ProductError(f"The export has no product called {product!r}.", f"Its products: {known}.")
    return manifest.products[product]


def _stamp(folder: Path) -> tuple[int, int, int] | None:
    """What changes when the manifest is replaced; None if there is none."""
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
