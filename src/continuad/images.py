"""The one door for images: whatever a user has comes out as uint8 RGB, or is refused with a reason."""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    ExifTags,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from continuad.errors import ImageError, SettingsError
from continuad.files import KINDS, as_path, find_images
from continuad.progress import Progress, silent

__all__ = [
    "MAX_PIXELS",
    "ImageSource",
    "find_images",
    "load_image",
    "load_mask",
    "load_stack",
    "resize",
    "resize_mask",
]

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | npt.NDArray[Any] | Image.Image
Decoder: TypeAlias = Callable[[Image.Image], npt.NDArray[Any]]

MAX_PIXELS = 100_000_000
MIN_SIDE = 8

# The readers are called directly: `Image.open` obeys a pixel limit that is global to the process.
_READERS: dict[bytes, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    rb"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    rb"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    rb"BM": BmpImagePlugin.BmpImageFile,
    rb"II[*+]\0|MM\0[*+]": TiffImagePlugin.TiffImageFile,
    rb"RIFF....WEBP": WebPImagePlugin.WebPImageFile,
    rb"P[1-6]\s": PpmImagePlugin.PpmImageFile,
}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Hush:
    """Ignore Pillow's warnings while at least one thread reads; `catch_warnings` alone is not thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._readers += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._filters.__exit__(kind, error, trace)


_hush = _Hush()


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Read one image as RGB, upright.

    Grey becomes three equal channels. 16-bit values are scaled from 0..65535, floats from 0..1. Whatever is
    transparent is laid over white, so opaque pixels keep their values. Of several frames the first is taken.

    Args:
        source: a file, an encoded file's bytes, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4) of uint8, uint16, bool, or floats in 0..1.
        max_pixels: refuse larger images, before decoding them.

    Returns:
        uint8 (H, W, 3), C-contiguous; always a new array.

    Raises:
        ImageError: the image is missing, damaged, of an unknown kind, too large, or under 8 pixels on a side.
    """
    pixels = _to_uint8(_read(source, max_pixels, _decode))
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 3:
        return np.array(pixels, order="C")
    alpha = pixels[:, :, 3:].astype(np.uint16)
    over_white = (pixels[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return over_white.astype(np.uint8)


def load_mask(source: ImageSource) -> npt.NDArray[np.bool_]:
    """Read a defect mask: True where the part is anomalous; bool (H, W).

    A pixel is anomalous above half of the type's maximum (128 and up in 8 bits), which forgives the ringing
    of JPEG and the blur of resizing. Where no pixel is that bright, the values are labels (1, 2, ... as in
    VisA) and every one but 0 is anomalous. Colours count by their brightest channel, but in a palette image
    every colour other than black is a label. What is transparent is normal.

    Raises:
        ImageError: as for `load_image`.
    """
    values = _read(source, MAX_PIXELS, _decode_mask)
    if values.ndim == 3:
        values = _shown(values).max(axis=2)
    if values.dtype.kind == "b":
        return np.array(values, order="C")
    marked: npt.NDArray[np.bool_] = values > _half(values)
    return marked if marked.any() else np.asarray(values > 0)


def resize(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Scale uint8 (H, W, 3) to (size, size, 3): bilinear, antialiased, the aspect ratio given up."""
    return np.array(Image.fromarray(image).resize((_side(size), size), Image.Resampling.BILINEAR))


def resize_mask(mask: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    """Scale bool (H, W) to (size, size) by nearest neighbour, so that no defect grows."""
    scaled = Image.fromarray(mask.astype(np.uint8)).resize((_side(size), size), Image.Resampling.NEAREST)
    return np.array(scaled, dtype=np.bool_)


def load_stack(
    sources: Sequence[ImageSource], size: int, *, progress: Progress = silent
) -> npt.NDArray[np.uint8]:
    """Read and scale many images, several at a time: uint8 (N, 3, size, size), in order, C-contiguous.

    Raises:
        ImageError: of the first image in order that cannot be read; the rest is abandoned.
    """
    stack = np.empty((len(sources), 3, _side(size), size), np.uint8)

    def fill(index: int) -> None:
        stack[index] = resize(load_image(sources[index]), size).transpose(2, 0, 1)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        try:
            for done, _ in enumerate(pool.map(fill, range(len(sources))), start=1):
                progress(done, len(sources), "reading images")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return stack


def _side(size: int) -> int:
    if size < 1:
        raise SettingsError(f"An image cannot be scaled to {size} pixels.", "Give a size of at least 1.")
    return size


def _name(source: ImageSource) -> str:
    """Say which image an error is about."""
    if isinstance(source, bytes):
        return "The image given as bytes"
    if isinstance(source, np.ndarray):
        return "The image given as an array"
    if isinstance(source, Image.Image):
        return "The image given as a PIL image"
    if isinstance(source, (str, os.PathLike)):
        return f"The image {os.fspath(source)}"
    raise ImageError(
        f"A {type(source).__name__} is not an image.",
        "Give a path, the bytes of a file, a numpy array or a PIL image.",
    )


def _read(source: ImageSource, max_pixels: int, decode: Decoder) -> npt.NDArray[Any]:
    """Return the values as stored: (H, W) or (H, W, 1 | 3 | 4) of bool, uint8, uint16 or floats in 0..1."""
    name = _name(source)
    if isinstance(source, np.ndarray):
        return _checked(source, name, max_pixels)
    try:
        with _hush, _opened(source, name) as image:
            _check_size(image.width, image.height, name, max_pixels)
            return _checked(decode(image), name, max_pixels)
    except ImageError:
        raise
    except Exception as error:  # damaged files make Pillow fail in every way there is
        raise ImageError(
            f"{name} cannot be decoded ({error}).", "It is damaged or incomplete: get it again."
        ) from error


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes | Image.Image, name: str) -> Iterator[Image.Image]:
    """Give the image with its header read and its pixels not yet decoded."""
    if isinstance(source, Image.Image):
        yield source
        return
    with io.BytesIO(source) if isinstance(source, bytes) else _open_file(as_path(source), name) as stream:
        yield _identify(stream, name)


def _open_file(path: Path, name: str) -> BinaryIO:
    try:
        if path.is_dir():
            raise ImageError(f"{name} is a folder.", "Give one of the files in it.")
        if path.exists() and not path.is_file():
            raise ImageError(f"{name} is not a regular file.", "Give an image file.")
        return path.open("rb")
    except OSError as error:
        raise ImageError(
            f"{name} cannot be opened ({error.strerror}).", "Check the spelling and the file's permissions."
        ) from error


def _identify(stream: BinaryIO, name: str) -> Image.Image:
    start = stream.read(12)
    stream.seek(0)
    if not start:
        raise ImageError(f"{name} is empty.", "Get it again.")
    for signature, reader in _READERS.items():
        if re.match(signature, start, re.DOTALL):
            return reader(stream)
    raise ImageError(f"{name} is of an unknown kind.", f"Give one of: {KINDS}.")


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{name} has {width} x {height} pixels.", f"Give an image of at least {MIN_SIDE} on a side."
        )
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels, more than the limit of {max_pixels}.",
            "Scale it down, cut it into tiles, or raise max_pixels if you trust it.",
        )


def _decode(image: Image.Image) -> npt.NDArray[Any]:
    """Decode, turn upright, and reduce Pillow's modes to the arrays that a user may give as well."""
    image.load()
    turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F" or image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode == "I":  # 16-bit PNG and PGM come in 32 bits
        wide: npt.NDArray[Any] = np.asarray(image)
        fits = wide.min() >= 0 and wide.max() <= 65535
        return wide.astype(np.uint16) if fits else wide
    if image.has_transparency_data:
        return np.asarray(image.convert("RGBA"))
    return np.asarray(image if image.mode in ("1", "L", "RGB") else image.convert("RGB"))


def _decode_mask(image: Image.Image) -> npt.NDArray[Any]:
    """Decode like `_decode`, a palette image to bool: whatever is not black."""
    values = _decode(image)
    return np.asarray(_shown(values).max(axis=2) > 0) if image.mode == "P" else values


def _checked(values: npt.NDArray[Any], name: str, max_pixels: int) -> npt.NDArray[Any]:
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        raise ImageError(
            f"{name} has the shape {values.shape}.", "Give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."
        )
    _check_size(values.shape[1], values.shape[0], name, max_pixels)
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):  # NaN fails too
            raise ImageError(
                f"{name} holds floats that are not in 0..1.", "Scale them to 0..1, or convert them to uint8."
            )
    elif values.dtype.kind not in "bu" or values.dtype.itemsize > 2:
        raise ImageError(f"{name} holds {values.dtype} values.", "Convert them to uint8, uint16 or bool.")
    return values


def _to_uint8(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "f":
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    if values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return values.astype(np.uint8, copy=False)


def _shown(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return (H, W, C) without its alpha channel, 0 where that is less than half of its maximum."""
    if values.shape[2] < 4:
        return values
    shown: npt.NDArray[Any] = values[:, :, :3] * (values[:, :, 3:] > _half(values))
    return shown


def _half(values: npt.NDArray[Any]) -> float:
    """Half of the most that the type can say."""
    return np.iinfo(values.dtype).max / 2 if values.dtype.kind == "u" else 0.5
