"""What Prometheus is told about the station."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from continuad.station.history import Inspection

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Told apart; clients may invent others without end."""

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

Gauges = Callable[[], Iterable[tuple[str, str, dict[str, str], float]]]
"""Gives name, help, labels and value of what is read off at the moment of asking."""


class Metrics(Collector):
    """Counts what happens; reads off how things are when it is asked.

    Args:
        gauges: how things are.
    """

    def __init__(self, gauges: Gauges) -> None:
        self._registry = CollectorRegistry()
        self._gauges = gauges
        self._inspections = Counter(
            "continuad_inspections",
            "Inspections by product, verdict and source.",
            ("product", "label", "source"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "continuad_request_seconds",
            "Time to answer requests, by route.",
            ("method", "route"),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._answers = Counter(
            "continuad_answers",
            "Answers by route and status.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._jobs = Counter("continuad_jobs", "Jobs that ended.", ("state",), registry=self._registry)
        self._registry.register(self)

    def inspected(self, inspections: Sequence[Inspection]) -> None:
        """Count inspections."""
        for each in inspections:
            self._inspections.labels(each.product or "", each.label, each.source).inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer to a request."""
        method = method if method in METHODS else "other"
        self._answers.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def ended(self, state: str) -> None:
        """Count a job that has ended."""
        self._jobs.labels(state).inc()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read off how things are; called by the registry."""
        families: dict[str, GaugeMetricFamily] = {}
        for name, text, labels, value in self._gauges():
            family = families.setdefault(name, GaugeMetricFamily(name, text, labels=list(labels)))
            family.add_metric(list(labels.values()), value)
        yield from families.values()

    def render(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self._registry)
