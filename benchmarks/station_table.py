"""The page that station.py writes."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        clients: that post at the same time.
        taught_s: how long teaching took meanwhile; None if nothing was taught.
        latencies: seconds, of what was answered.
        seconds: that it took.
        refused: answers that told to come back.
        server_cpu: cores that the station has used, without the process that teaches.
        client_cpu: cores that the clients have used.
        rss_mib: of the station at the end.
    """

    clients: int
    taught_s: float | None
    latencies: Sequence[float]
    seconds: float
    refused: int
    server_cpu: float
    client_cpu: float
    rss_mib: float

    @property
    def rate(self) -> float:
        """Images per second."""
        return len(self.latencies) / self.seconds

    @property
    def core_ms(self) -> float:
        """Milliseconds of one core that the station has spent on an image."""
        return 1000 * self.server_cpu / self.rate

    def ms(self, share: float) -> float:
        """A quantile of the latencies."""
        return float(1000 * np.quantile(self.latencies, share))

    def __str__(self) -> str:
        meanwhile = "" if self.taught_s is None else f", teaching in {self.taught_s:.1f} s"
        return (
            f"{self.clients} clients{meanwhile}: {self.rate:.1f}/s, median {self.ms(0.5):.1f} ms, "
            f"p95 {self.ms(0.95):.1f} ms, cores {self.server_cpu:.2f} + {self.client_cpu:.2f}"
        )


def markdown(lines: Sequence[Line], *, alone_s: float | None, cores: int, photos: str, command: str) -> str:
    """The table, and what its columns are; ratios are those to the median of the first line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "fastapi", "uvicorn"))
    heads = ["clients", "teaching s", "images/s", "median ms", "p95 ms", "median ratio", "p95 ratio", "503s"]
    heads += ["core ms", "station's cores", "clients' cores", "RSS MiB"]
    page = [
        "# An inspection station under load",
        "",
        f"`{command}`",
        "",
        f"Cores: {cores}, for the station and its clients. Python {platform.python_version()}, {versions},",
        f"{platform.machine()}. {photos}",
        "",
        "- Each client posts a photo, waits for the answer, and posts the next. It comes when verdict,",
        "  map and photo are on the disk.",
        "- median, p95: from a request's first byte to its answer's last, ms; ratios: to the first line's",
        "  median. 503s: share of answers that told to come back.",
        "- teaching s: how long it took to teach a product meanwhile"
        + ("." if alone_s is None else f"; without clients {alone_s:.1f}."),
        "- core ms: what the station computes for an image. N clients that always wait for an answer cannot",
        "  have a mean latency below N x core ms / cores.",
        "",
        line(heads),
        line(["---"] * len(heads)),
    ]
    base = lines[0].ms(0.5)
    for each in lines:
        middle, high = each.ms(0.5), each.ms(0.95)
        cells = [str(each.clients), "" if each.taught_s is None else f"{each.taught_s:.1f}"]
        cells += [f"{each.rate:.1f}", f"**{middle:.1f}**", f"{high:.1f}"]
        cells += [f"{middle / base:.2f}", f"**{high / base:.2f}**"]
        cells += [f"{each.refused / (len(each.latencies) + each.refused):.1%}", f"{each.core_ms:.1f}"]
        cells += [f"{each.server_cpu:.2f}", f"{each.client_cpu:.2f}", f"{each.rss_mib:.0f}"]
        page.append(line(cells))
    return "\n".join(page) + "\n"


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
