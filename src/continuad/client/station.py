"""A station, as an object."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

from PIL import Image

from continuad.client.answers import Event, Inspection, Job, Product, made
from continuad.client.connection import ClientSettings, Connection
from continuad.errors import ImageError, StationError
from continuad.files import find_images
from continuad.images import ImageSource, load_image
from continuad.progress import Progress, silent

PAGE = 200
"""Inspections that are asked for at once."""


class Station:
    """A station at an address. Safe to use from several threads.

    Requests are repeated while the station is busy or away; none takes effect twice.

    Args:
        url: such as http://127.0.0.1:8765.
        token: if the station needs one.
        settings: timeouts and waits.

    Raises:
        SettingsError: address or token cannot be used.
        MissingError: httpx is not installed.
    """

    def __init__(self, url: str, token: str | None = None, *, settings: ClientSettings | None = None) -> None:
        self._settings = settings or ClientSettings()
        self._connection = Connection(url, token, settings=self._settings)

    def __repr__(self) -> str:
        return f"Station({self._connection.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._connection.close()

    def inspect(
        self, image: ImageSource, *, product: str | None = None, nearest: bool = False, reference: str = ""
    ) -> Inspection:
        """Inspect an image; returns when the station has stored it, once, however often it had to be sent.

        Args:
            image: a file or an encoded file's bytes, sent as they are; an array or a PIL image, sent as PNG.
            product: its id or name; by default it is recognised.
            nearest: inspect an unknown image as the product that looks most alike.
            reference: your name for the part.

        Raises:
            ImageError: the image cannot be read here.
            StationError: it cannot be inspected.
        """
        params = {"product": product, "nearest": nearest or None, "reference": reference or None}
        data = self._connection.send(
            "POST", "inspections", params=params, content=_encoded(image), is_keyed=True
        )
        return made(Inspection, data)

    def products(self) -> list[Product]:
        """All products, archived ones last."""
        return [made(Product, item) for item in self._connection.send("GET", "products")["items"]]

    def teach(
        self,
        name: str,
        images: Sequence[ImageSource] | str | os.PathLike[str],
        *,
        false_alarm_rate: float = 0.01,
        replace: bool = False,
        wait: bool = True,
        progress: Progress = silent,
    ) -> Job:
        """Teach a product from normal images; other products are not touched.

        Args:
            name: what to call it.
            images: at least 6; or a folder or a glob pattern of image files.
            false_alarm_rate: share of good parts that may be called anomalous.
            replace: teach a known product anew.
            wait: until it is taught; otherwise ask with `job`.
            progress: told about sending and learning; if it raises, the teaching is cancelled.

        Raises:
            ImageError: an image cannot be read here.
            StationError: the product cannot be taught.
        """
        sources = find_images(images) if isinstance(images, str | os.PathLike) else images
        photo_set = self._connection.send("POST", "photo-sets")["id"]
        try:
            for index, source in enumerate(sources):
                progress(index, len(sources), "sending photos")
                self._connection.send(
                    "POST",
                    f"photo-sets/{photo_set}/photos",
                    params={"name": _name(source, index)},
                    content=_encoded(source),
                )
            wish = {
                "name": name,
                "photo_set": photo_set,
                "false_alarm_rate": false_alarm_rate,
                "replace": replace,
            }
            job = made(Job, self._connection.send("POST", "teachings", body=wish, is_keyed=True))
        except Exception:
            self._connection.try_to_delete(f"photo-sets/{photo_set}")
            raise
        return self._followed(job, progress) if wait else job

    def history(
        self,
        *,
        product: str | None = None,
        label: Literal["normal", "anomalous", "unknown"] | None = None,
        truth: Literal["good", "bad", "any", "none"] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[Inspection]:
        """Inspections, newest first, fetched as they are asked for.

        Args:
            product: inspected as this product.
            label: of the verdict.
            truth: what a human said; "any" for good or bad, "none" for neither.
            since: not before this time, which is local if it has no time zone.
            until: before this time.

        Raises:
            StationError: the station cannot be asked.
        """
        params: dict[str, Any] = {"product": product, "label": label, "truth": truth, "limit": PAGE}
        params |= {"since": _moment(since), "until": _moment(until)}
        while True:
            page = self._connection.send("GET", "inspections", params=params)
            yield from (made(Inspection, item) for item in page["items"])
            if page["next"] is None:
                return
            params["before"] = page["next"]

    def correct(self, id: int, truth: Literal["good", "bad"] | None) -> Inspection:  # noqa: A002
        """Say what an inspected part was, or take it back with None.

        Raises:
            StationError: there is no such inspection.
        """
        return made(
            Inspection, self._connection.send("PUT", f"inspections/{id}/truth", body={"truth": truth})
        )

    def job(self, id: str) -> Job:  # noqa: A002
        """How far a job is.

        Raises:
            StationError: there is no such job.
        """
        return made(Job, self._connection.send("GET", f"jobs/{quote(id, safe='')}"))

    def events(self) -> Iterator[Event]:
        """News as they come, without end; after an interruption they go on with "hello".

        Raises:
            StationError: the station stays away.
        """
        return self._connection.events()

    def _followed(self, job: Job, progress: Progress) -> Job:
        """The job when it has succeeded."""
        while job.state in ("queued", "running"):
            try:
                progress(job.done, job.total, job.step)
            except BaseException:
                self._connection.send("POST", f"jobs/{job.id}/cancel")
                raise
            time.sleep(self._settings.poll)
            job = self.job(job.id)
        if job.state == "succeeded":
            return job
        problem = job.problem or f"The teaching of {job.product!r} was {job.state}."
        raise StationError(problem, job.remedy or "Teach it again.")


def _encoded(image: ImageSource) -> bytes:
    """What is sent of an image."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        try:
            return Path(image).read_bytes()
        except (OSError, ValueError) as error:
            raise ImageError(
                f"{image} cannot be read ({error}).", "Check the spelling and permissions."
            ) from error
    stream = io.BytesIO()
    Image.fromarray(load_image(image)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _name(image: ImageSource, index: int) -> str:
    """How a photo is spoken of."""
    return Path(image).name[-200:] if isinstance(image, str | os.PathLike) else f"photo {index + 1}"


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()
