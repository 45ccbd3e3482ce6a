"""What lies behind the paths of a run, as hashes of contents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from continuad.datasets import load_tasks
from continuad.errors import ContinuadError, DatasetError, WeightsError
from continuad.images import ImageSource
from continuad.progress import Progress, silent

if TYPE_CHECKING:
    from continuad.bench.grid import RunSpec


def is_weights_file(source: str) -> bool:
    """Whether weights come from a path; "auto", "random" and addresses say themselves what they are."""
    return source not in ("auto", "random") and "://" not in source


def given_settings(run: RunSpec, /) -> Any:
    """The settings as they are given, without defaults."""
    return [run.settings, run.strategy_settings]


class Fingerprints:
    """SHA-256 of datasets and weights files, in hex; each file is read once.

    Args:
        progress: told about the images of a dataset that is being read.
        settings: says what a run's settings come to, as plain values for JSON.
    """

    def __init__(
        self, *, progress: Progress = silent, settings: Callable[[RunSpec], Any] = given_settings
    ) -> None:
        self._progress = progress
        self.settings = settings
        self._files: dict[Path, str] = {}
        self._datasets: dict[tuple[Path, str, tuple[str, ...] | None], str] = {}

    def dataset(self, root: Path, *, layout: str = "auto", products: Sequence[str] | None = None) -> str:
        """Hash the chosen products: their names, and the names, roles and bytes of their images and masks.

        Other files do not count, nor does the place of the dataset.

        Raises:
            ContinuadError: as `load_tasks` does, or a file cannot be read.
        """
        chosen = None if products is None else tuple(products)
        place = root.absolute(), layout, chosen
        if place not in self._datasets:
            self._datasets[place] = self._hash_tasks(root, layout, chosen)
        return self._datasets[place]

    def weights(self, source: str) -> str:
        """Hash a weights file; what is none is returned as it is.

        Raises:
            WeightsError: the file cannot be read.
        """
        if not is_weights_file(source):
            return source
        return self._hash_file(Path(source).expanduser(), WeightsError)

    def _hash_tasks(self, root: Path, layout: str, products: tuple[str, ...] | None) -> str:
        tasks = load_tasks(root, layout=layout, products=products)
        digest = hashlib.sha256()
        total, done = sum(len(task.train) + len(task.test) for task in tasks), 0
        for task in tasks:
            entries: list[tuple[str, ImageSource, ImageSource | None]]
            entries = [("train", image, None) for image in task.train]
            entries += [
                (f"test {sample.is_anomalous} {sample.defect}", sample.image, sample.mask)
                for sample in task.test
            ]
            digest.update(f"{task.name!r} {len(entries)}\n".encode())
            for role, *sources in entries:
                self._progress(done, total, f"reading {root.name}")
                files = [Path(str(source)) for source in sources if source is not None]
                facts = [(file.name, self._hash_file(file, DatasetError)) for file in files]
                digest.update(f"{role!r} {facts!r}\n".encode())
                done += 1
        self._progress(total, total, f"reading {root.name}")
        return digest.hexdigest()

    def _hash_file(self, path: Path, error_type: type[ContinuadError]) -> str:
        path = path.absolute()
        if path not in self._files:
            try:
                with path.open("rb") as stream:
                    self._files[path] = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise error_type(
                    f"{path} cannot be read ({error.strerror}).", "Check its name and permissions."
                ) from error
        return self._files[path]
