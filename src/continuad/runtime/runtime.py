"""The runtime: what the Inspector says about an image, from an exported folder and without torch."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Literal, overload

import numpy as np

from continuad.errors import ExportError, ProductError, SettingsError
from continuad.images import ImageSource, load_image, resize
from continuad.router import PrototypeRouter, Route
from continuad.runtime.engines import ENGINES, Arrays, Call, Engine
from continuad.runtime.folder import MANIFEST, ExportedProduct, ExportManifest, Program, read_program
from continuad.runtime.maps import Map, enlarge, score
from continuad.stopwatch import Stopwatch
from continuad.verdict import Verdict

Mode = Literal["latency", "throughput"]

HEADS = 8
"""Heads that stay compiled, those used last: a compact one takes about 16 MiB in OpenVINO."""

AHEAD = 2
"""Images per thread that are under way at a time."""


class _Programs:
    """Compiles the programs of a folder, and keeps those used last: the backbone and so many heads."""

    def __init__(self, folder: Path, engine: Engine, heads: int) -> None:
        self._folder = folder
        self._engine = engine
        self._limit = heads + 1
        self._calls: OrderedDict[tuple[str, ...], Call] = OrderedDict()
        self._lock = Lock()

    def get(self, program: Program) -> Call:
        """Return a program ready to run."""
        key = tuple(program.files.values())
        with self._lock:  # what two threads want is compiled once
            if key not in self._calls:
                self._calls[key] = self._engine.compile(read_program(self._folder, program))
                if len(self._calls) > self._limit:
                    self._calls.popitem(last=False)
            self._calls.move_to_end(key)
            return self._calls[key]


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
        self._programs = _Programs(folder, engine, heads)
        self._programs.get(self._state.manifest.backbone)  # now, and not at the first image

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
            heads: that stay compiled, those used last.

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
        features = self._programs.get(state.manifest.backbone)({"images": small})
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
        anomaly_map = _run_head(self._programs.get(entry.head), entry, {"images": small, **features})
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


def _run_head(head: Call, product: ExportedProduct, arrays: Arrays) -> Map:
    """The map (S, S) of one image."""
    found = head({name: arrays[name] for name in product.head.inputs})
    anomaly_map: Map = found["map"][0]
    return anomaly_map


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
