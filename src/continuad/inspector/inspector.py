"""The Inspector: products learnt one after another into a bank, and verdicts about any image."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from continuad.backbones import checkpoint, create_backbone
from continuad.continual import HEAD_MEMORY, Inspection, RoutedHeads, RoutingSettings
from continuad.datasets import hold_out
from continuad.detectors import METHODS, Detector
from continuad.detectors.base import settings_as_dict
from continuad.errors import BankError, ImageError, ProductError, SettingsError
from continuad.files import find_images
from continuad.images import ImageSource, load_image, load_stack, resize
from continuad.inspector.bank import Bank
from continuad.inspector.calibration import check_false_alarm_rate, threshold
from continuad.inspector.choice import AUTO, choose, method_of
from continuad.inspector.learning import BATCH, chosen_head, embed_learnt, examine, training_key
from continuad.inspector.manifest import LARGEST, SMALLEST
from continuad.inspector.product import Calibration, Product, check_name
from continuad.inspector.samples import Photos, encode
from continuad.progress import Progress, silent
from continuad.router import Vectors, distance_limit
from continuad.stopwatch import Stopwatch
from continuad.verdict import Verdict

DEFAULT_BACKBONE = "efficientnet_lite0"
DEFAULT_HEAD = AUTO
DEFAULT_IMAGE_SIZE = 384
DEFAULT_FALSE_ALARM_RATE = 0.01
HELD_OUT = 0.2
MIN_HELD_OUT = 3
MIN_IMAGES = 6
ADVISED_IMAGES = 50
UNKNOWN_MARGIN = 1.5


class Inspector:
    """A bank of products on one frozen backbone.

    Use `Inspector.create` or `Inspector.open`. Several processes may use one bank at a time: a product that
    one of them has learnt is known to the others from their next call on.
    """

    def __init__(self, bank: Bank, *, device: str = "cpu", head_memory: int = HEAD_MEMORY) -> None:
        manifest = bank.manifest()
        self.bank = bank
        self.device = torch.device(device)
        self.image_size = manifest.image_size
        backbone = create_backbone(manifest.backbone["name"], weights=str(bank.backbone_file()))
        self.backbone = backbone.to(self.device)
        routing = RoutingSettings(**manifest.routing)
        self._heads = RoutedHeads(self.backbone, routing, head_memory=head_memory)
        self._known: Mapping[str, Product] = {}

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        backbone: str = DEFAULT_BACKBONE,
        weights: str = "auto",
        image_size: int = DEFAULT_IMAGE_SIZE,
        routing: RoutingSettings | None = None,
        device: str = "cpu",
        progress: Progress = silent,
    ) -> Inspector:
        """Create an empty bank.

        Args:
            path: a folder that does not exist yet, or is empty.
            backbone: a name in `BACKBONES`.
            weights: where its weights come from; the bank keeps a copy and never asks again.
            image_size: side in pixels that images are resized to before inspection.
            routing: how products are recognised; by default from the last block of stride 16.
            device: a torch device.
            progress: told about a download of weights.
        """
        if not SMALLEST <= image_size <= LARGEST:
            raise SettingsError(
                f"An image size of {image_size} will not do.", f"Choose {SMALLEST} to {LARGEST} pixels."
            )
        network = create_backbone(backbone, weights=weights, progress=progress)
        routing = routing or RoutingSettings(network.stage(16))
        network.block(routing.tap)
        bank = Bank.create(
            Path(path),
            backbone=backbone,
            state=checkpoint(network),
            image_size=image_size,
            routing=asdict(routing),
        )
        return cls(bank, device=device)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, device: str = "cpu", head_memory: int = HEAD_MEMORY
    ) -> Inspector:
        """Open an existing bank.

        Args:
            path: its folder.
            device: a torch device.
            head_memory: bytes of heads that stay loaded, those used last.

        Raises:
            BankError: there is none, or it is damaged.
        """
        return cls(Bank(Path(path).absolute()), device=device, head_memory=head_memory)

    @property
    def products(self) -> Mapping[str, Product]:
        """The products by name, in the order in which they were learnt."""
        return MappingProxyType(self.bank.manifest().products)

    @property
    def archived(self) -> Mapping[str, Product]:
        """The products by name that are kept, but neither recognised nor inspected."""
        return MappingProxyType(self.bank.manifest().archived)

    def product(self, name: str) -> Product:
        """Return the product called `name`.

        Raises:
            ProductError: there is none.
        """
        products = self.products
        if name not in products:
            known = ", ".join(products) or "none yet"
            raise ProductError(f"The bank has no product called {name!r}.", f"Its products: {known}.")
        return products[name]

    def head(self, name: str) -> Detector:
        """Return what a product has learnt, loaded anew.

        Raises:
            ProductError: there is no product called `name`.
        """
        return self._load_head(self.product(name))

    def samples(self, name: str) -> Photos:
        """Return a few normal photos of a product, 8 at most: uint8 (N, S, S, 3) of the bank's image size.

        They are some of those that were held out when it was learnt, through JPEG. Inspection does not need
        them.

        Raises:
            ProductError: there is no such product.
            BankError: it was learnt before banks kept photos, or their file is damaged.
        """
        while True:
            product = self.product(name)
            try:
                return self.bank.samples(product)
            except BankError:
                if self.product(name) == product:  # another process may have replaced it meanwhile
                    raise

    def learn(
        self,
        name: str,
        images: Sequence[ImageSource] | str | os.PathLike[str],
        *,
        head: str = DEFAULT_HEAD,
        settings: Mapping[str, Any] | None = None,
        false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
        replace_existing: bool = False,
        seed: int = 0,
        progress: Progress = silent,
    ) -> Product:
        """Learn a product from normal images; other products are not touched.

        A fifth of the images (at least 3) is held out of training and sets the threshold. The product appears
        when everything is learnt. If a long training is interrupted, the same call goes on with it.

        Args:
            name: what to call it.
            images: at least 6; or a folder or a glob pattern of image files.
            head: a name in `METHODS`; or "auto": the compact memory bank, unless synthetic defects show that
                another method is clearly better; they also settle how it scores. `Product.reason` says why.
            settings: changes to the method's settings by name; with "auto" the method is then "compact".
            false_alarm_rate: share of good parts that may be called anomalous.
            replace_existing: learn a known product anew.
            seed: of the training and of the held-out split.
            progress: told about reading and training.

        Raises:
            ProductError: the name is taken or cannot be used.
            ImageError: an image cannot be read, or there are too few.
        """
        name = check_name(name)
        check_false_alarm_rate(false_alarm_rate)
        existing = self.products.get(name)
        if existing is not None and not replace_existing:
            raise ProductError(f"The bank knows {name!r} already.", "Choose another name, or replace it.")
        if name in self.archived:
            raise ProductError(f"{name!r} is archived.", "Restore it, or choose another name.")
        method = method_of(head)
        detector = METHODS[method].build(self.backbone, settings).to(self.device)
        sources = find_images(images) if isinstance(images, str | os.PathLike) else images
        if len(sources) < MIN_IMAGES:
            raise ImageError(
                f"{len(sources)} images are too few to learn {name!r}.",
                f"Give at least {MIN_IMAGES} images of good parts, better {ADVISED_IMAGES}.",
            )
        started = time.perf_counter()
        stack = self._tensor(load_stack(sources, self.image_size, progress=progress))
        kept, held = hold_out(range(len(stack)), max(HELD_OUT, MIN_HELD_OUT / len(stack)), seed=seed)
        weights = self.bank.manifest().backbone["sha256"]
        key = training_key(method, detector, stack, seed=seed, backbone=weights)
        checkpoints = self.bank.unfinished(name, key)
        learnt, held_out = stack[kept], stack[held]
        del stack  # hundreds of images take their place
        detector.fit(learnt, seed=seed, progress=progress, checkpoints=checkpoints)
        reason = ""
        if head == AUTO:
            choice = choose(detector, learnt, held_out, fixed=settings or (), seed=seed, progress=progress)
            method, reason = choice.method, choice.reason
            detector = chosen_head(choice, detector, learnt, seed=seed, progress=progress)
        prototype = embed_learnt(detector, learnt, self._heads).mean(0)
        scores, embeddings = examine(detector, held_out, self._heads)
        product = Product(
            name=name,
            method=method,
            settings=settings_as_dict(detector),
            taps=detector.taps,
            images=len(kept),
            seed=seed,
            learnt=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - started, 3),
            limit=distance_limit(prototype, embeddings, margin=UNKNOWN_MARGIN),
            calibration=Calibration(scores, false_alarm_rate, threshold(scores, false_alarm_rate)),
            file="",
            bytes=0,
            sha256="",
            reason=reason,
        )
        state = {**detector.state_dict(), "prototype": torch.from_numpy(prototype)}
        samples = encode(held_out.permute(0, 2, 3, 1).cpu().numpy())
        return self.bank.put(product, state, samples=samples, expected=existing)

    def forget(self, name: str) -> None:
        """Remove a product, archived or not, and its files; the others are not touched."""
        self.bank.remove(self.archived.get(name) or self.product(name))

    def rename(self, name: str, new: str) -> Product:
        """Give a product another name; what it has learnt stays as it is.

        Raises:
            ProductError: there is no product called `name`, or `new` is taken or cannot be used.
        """
        return self.bank.rename(self.product(name), check_name(new))

    def archive(self, name: str) -> None:
        """Neither recognise nor inspect a product any more, but keep what it has learnt."""
        self.bank.archive(self.product(name))

    def restore(self, name: str) -> Product:
        """Recognise and inspect an archived product again.

        Raises:
            ProductError: no archived product is called `name`.
        """
        product = self.archived.get(name)
        if product is None:
            known = ", ".join(self.archived) or "none"
            raise ProductError(f"No archived product is called {name!r}.", f"Archived are: {known}.")
        self.bank.restore(product)
        return product

    def recalibrate(
        self,
        name: str,
        *,
        false_alarm_rate: float | None = None,
        images: Sequence[ImageSource] | str | os.PathLike[str] | None = None,
        scores: Sequence[float] | None = None,
        progress: Progress = silent,
    ) -> Product:
        """Set a product's threshold anew; its model stays as it is.

        Args:
            name: the product.
            false_alarm_rate: the new rate; None keeps the old one.
            images: normal images to calibrate on, instead of those held out when it was learnt; at least 2.
                Without them the raw scores stay as they are.
            scores: raw scores that this head gave to normal images, instead of `images`.
            progress: told about reading.
        """
        if images is not None and scores is not None:
            raise SettingsError("A product is calibrated on images or on scores, not on both.", "Give one.")
        product = self.product(name)
        rate = product.calibration.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
        check_false_alarm_rate(rate)
        normal = product.calibration.scores if scores is None else tuple(scores)
        if images is not None:
            sources = find_images(images) if isinstance(images, str | os.PathLike) else images
            stack = self._tensor(load_stack(sources, self.image_size, progress=progress))
            normal, _ = examine(self._load_head(product), stack, self._heads)
        changed = replace(product, calibration=Calibration(normal, rate, threshold(normal, rate)))
        self.bank.update(changed, expected=product)
        return changed

    def embed(self, images: Sequence[ImageSource]) -> Vectors:
        """Embed images as the router does, to see what looks alike: float32 (N, D)."""
        stack = load_stack(images, self.image_size)
        parts = [self._tensor(stack[first : first + BATCH]) for first in range(0, len(stack), BATCH)]
        return np.concatenate([self._heads.embed(part) for part in parts])

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
            BankError: the bank has no product yet.
            ImageError: an image cannot be read.
        """
        if isinstance(images, list | tuple):
            return list(self.stream(images, product=product, reject_unknown=reject_unknown))
        return next(self.stream([images], product=product, reject_unknown=reject_unknown))

    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        product: str | None = None,
        reject_unknown: bool = True,
        batch_size: int = BATCH,
    ) -> Iterator[Verdict]:
        """Inspect any number of images in constant memory; verdicts come in order."""
        if batch_size < 1:
            raise SettingsError(f"A batch of {batch_size} images cannot be inspected.", "Use 1 or more.")
        source = iter(images)
        while batch := list(islice(source, batch_size)):
            yield from self._inspect_batch(batch, product, reject_unknown)

    def _inspect_batch(
        self, images: Sequence[ImageSource], product: str | None, reject_unknown: bool
    ) -> list[Verdict]:
        stopwatch = Stopwatch()
        originals = [load_image(image) for image in images]
        small = np.stack([resize(image, self.image_size).transpose(2, 0, 1) for image in originals])
        stopwatch.lap("reading")
        batch = self._tensor(small)
        results = self._with_current_products(
            lambda: self._heads.inspect(
                batch, product=product, reject_unknown=reject_unknown, stopwatch=stopwatch
            )
        )
        verdicts = [self._verdict(r, image.shape[:2]) for r, image in zip(results, originals, strict=True)]
        stopwatch.lap("map")
        timings = {stage: ms / len(images) for stage, ms in stopwatch.stages.items()}
        return [replace(verdict, timings=timings) for verdict in verdicts]

    def _verdict(self, inspection: Inspection, shape: Sequence[int]) -> Verdict:
        route = inspection.route
        nearest, distance = (route.nearest, route.distance) if route else (None, float("nan"))
        if inspection.product is None or inspection.anomaly_map is None:
            return Verdict(None, float("nan"), float("nan"), None, None, nearest, distance)
        limit = self._known[inspection.product].calibration.threshold
        small = torch.from_numpy(inspection.anomaly_map)[None, None]
        full = F.interpolate(small, list(shape), mode="bilinear", align_corners=False)
        full.clamp_(max=small.max())  # which rounding may exceed between equal neighbours
        score, pixels = inspection.score, full[0, 0].numpy()
        return Verdict(inspection.product, score, limit, score > limit, pixels, nearest, distance)

    def _with_current_products(self, call: Callable[[], list[Inspection]]) -> list[Inspection]:
        """Call with what the bank holds now; once more whenever another process has changed it meanwhile."""
        while True:
            manifest = self.bank.manifest()
            if not manifest.products:
                raise BankError(f"The bank {self.bank.path} has no product yet.", "Learn one first.")
            try:
                self._take_over(manifest.products)
                return call()
            except BankError:
                if self.bank.manifest().revision == manifest.revision:
                    raise

    def _take_over(self, products: Mapping[str, Product]) -> None:
        """Make the heads in memory those of the bank; an unchanged manifest has the same `products`."""
        if products is self._known:
            return
        old = {(product.name, product.file, product.sha256) for product in self._known.values()}
        new = [each for each in products.values() if (each.name, each.file, each.sha256) not in old]
        prototypes = [self.bank.prototype(product) for product in new]
        for name in self._known.keys() - products.keys():
            self._heads.remove(name)
        for product, prototype in zip(new, prototypes, strict=True):
            self._heads.add(
                product.name,
                taps=product.taps,
                load=partial(self._load_head, product),
                prototype=prototype,
                limit=product.limit,
            )
        self._known = products

    def _load_head(self, product: Product) -> Detector:
        """Load a product's head from the bank."""
        detector = METHODS[product.method].build(self.backbone, product.settings)
        state = self.bank.state(product)
        del state["prototype"]
        try:
            detector.load_state_dict(state)
        except RuntimeError as error:
            raise BankError(
                f"{self.bank.path / product.file} does not fit this continuad's {product.method!r}.",
                f"Learn {product.name!r} again.",
            ) from error
        return detector.to(self.device)

    def _tensor(self, images: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
        return torch.from_numpy(images).to(self.device)
