"""`continuad watch`: verdicts about whatever a folder, a video or a camera brings."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from continuad.cli.app import UserInterruptError, app, example
from continuad.cli.heatmaps import HeatmapFolder
from continuad.cli.opening import open_to_inspect
from continuad.cli.options import BankArgument, DeviceOption, EveryOption, MqttOption
from continuad.cli.output import say, stderr
from continuad.errors import BankError, ProductError

if TYPE_CHECKING:
    from continuad.verdict import Verdict
    from continuad.watching import Journal, Publisher, Sighting


@app.command(
    epilog=example(
        "continuad watch parts.bank /camera/out --out verdicts.jsonl --frames overlays",
        "continuad watch parts.bank rtsp://camera/stream --mqtt mqtt://broker/line1",
        "continuad watch parts.bank belt.mp4 --every 0.5",
    )
)
def watch(
    bank: BankArgument,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder that images arrive in, video file, index of a camera (0), or address of a stream.",
        ),
    ],
    product: Annotated[
        str | None,
        typer.Option(
            "--product",
            metavar="NAME",
            show_default="recognise it",
            help="Inspect all images as this product.",
        ),
    ] = None,
    nearest: Annotated[
        bool,
        typer.Option("--nearest", help="Inspect images of unknown products as the nearest known one."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            show_default=False,
            help="Append the lines to this file, too; images that it names already are not inspected again.",
        ),
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option(
            "--frames",
            metavar="DIR",
            show_default=False,
            help="Write an overlay of each image there; no file is overwritten.",
        ),
    ] = None,
    mqtt: MqttOption = None,
    every: EveryOption = None,
    once: Annotated[bool, typer.Option("--once", help="Inspect what is there now, and end.")] = False,
    device: DeviceOption = "cpu",
) -> None:
    """Inspect images as they arrive, until Ctrl-C.

    Each verdict is a JSON line. An image that is still being written is waited for, a source that vanishes,
    too. Exit status: 0 at the end of a video, with --once, and when terminated.
    """
    from continuad.watching import FolderSource, Journal, MqttAddress, Publisher, open_source
    from continuad.watching import without_credentials as shown

    address = MqttAddress.parse(mqtt) if mqtt else None
    inspector = open_to_inspect(bank, device=device)
    _check_product(inspector.products, bank, product)
    folder = HeatmapFolder(frames) if frames else None
    journal = Journal(out) if out else None
    counts: Counter[str] = Counter()
    with _until_signal() as (stop, received):
        done = journal.images() if journal else ()
        seen = open_source(source, every=every, once=once, done=done, note=_note, stop=stop)
        publisher = Publisher(address, note=_note) if address else None
        outputs = _Outputs(journal, folder, publisher)
        _note(f"Watching {shown(source)}. Ctrl-C ends it.")
        try:
            for sighting in seen:
                verdict = None
                if not isinstance(sighting.image, Exception):
                    verdict = inspector.inspect(sighting.image, product=product, reject_unknown=not nearest)
                counts["not readable" if verdict is None else verdict.label] += 1
                outputs.report(sighting, verdict)
        except BrokenPipeError:
            _forget_stdout()
            return
        finally:
            losses = outputs.close()
    if not isinstance(seen, FolderSource) and seen.skipped:
        losses.append(f"{seen.skipped} frames could not be decoded.")
    said = ", ".join(f"{count} {what}" for what, count in counts.items())
    summary = " ".join([f"{counts.total()} images{f': {said}' if said else ''}.", *losses])
    if received == [signal.SIGINT]:
        raise UserInterruptError(summary)
    _note(summary)


class _Outputs:
    """Where verdicts go; a full disk stops none but itself."""

    def __init__(
        self, journal: Journal | None, folder: HeatmapFolder | None, publisher: Publisher | None
    ) -> None:
        self._journal, self._folder, self._publisher = journal, folder, publisher
        self._failing: set[str] = set()

    def report(self, sighting: Sighting, verdict: Verdict | None) -> None:
        """Send a verdict, or why there is none, everywhere."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        values: dict[str, object] = {"time": time, **sighting.origin}
        if verdict is None or isinstance(sighting.image, Exception):
            values["error"] = str(sighting.image)
        else:
            values.update(verdict.as_dict())
            if self._folder:
                with self._patience(f"The folder {self._folder.path}"):
                    file = self._folder.draw(
                        sighting.image, verdict, stem=sighting.name, caption=sighting.name
                    )
                    values["annotated"] = str(file)
        line = json.dumps(values, allow_nan=False)
        if self._journal:
            with self._patience(f"The file {self._journal.path}"):
                self._journal.append(line)
        if self._publisher:
            self._publisher.publish(line)
        with self._patience("The output"):
            print(line, flush=True)

    def close(self) -> list[str]:
        """Bring to an end what is on its way; returns a sentence for each place that misses verdicts."""
        losses = []
        if self._journal:
            with self._patience(f"The file {self._journal.path}"):
                self._journal.flush()
            if missing := self._journal.waiting + self._journal.lost:
                losses.append(f"{missing} verdicts are missing in {self._journal.path}.")
        if self._publisher and (missing := self._publisher.close()):
            losses.append(f"{missing} verdicts did not reach the broker.")
        return losses

    @contextmanager
    def _patience(self, place: str) -> Iterator[None]:
        """Say once that a place cannot be written, and once that it can again."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            if place not in self._failing:
                _note(f"{place} cannot be written ({error.strerror}); verdicts go on without it.")
            self._failing.add(place)
        else:
            if place in self._failing:
                _note(f"{place} can be written again.")
            self._failing.discard(place)


def _check_product(products: Collection[str], bank: Path, product: str | None) -> None:
    """Refuse now what would be refused at the first image, which may be hours away."""
    if not products:
        raise BankError(f"The bank {bank} has no product yet.", "Learn one first.")
    if product is not None and product not in products:
        raise ProductError(
            f"The bank has no product called {product!r}.", f"Its products: {', '.join(products)}."
        )


@contextmanager
def _until_signal() -> Iterator[tuple[threading.Event, list[int]]]:
    """Give an event that Ctrl-C or SIGTERM sets, and the list of signals that came; the second one kills."""
    stop = threading.Event()
    received: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        stop.set()
        signal.signal(number, before[number])

    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, end)
    try:
        yield stop, received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _forget_stdout() -> None:
    """Nobody reads it any more: what is left in the buffer must not fail at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _note(text: str) -> None:
    say(text, console=stderr)
