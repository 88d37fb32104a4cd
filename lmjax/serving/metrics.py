"""What /metrics tells Prometheus: the counts of each engine, and the durations of requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lmjax.serving.engine import Engine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The metrics of a server."""

    def __init__(self, engines: Mapping[str, Engine]):
        """Takes the engines by the names of their models."""
        self._engines = engines
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.requests = Counter("lmjax_requests", "Answered requests.", ("path", "status"), registry=self.registry)
        self.seconds = Histogram(
            "lmjax_request_seconds", "Seconds of a request.", ("path",), registry=self.registry, buckets=_SECONDS
        )
        self.first = Histogram(
            "lmjax_first_token_seconds",
            "Seconds from a request to its first token.",
            ("model",),
            registry=self.registry,
            buckets=_SECONDS,
        )

    def collect(self) -> Iterator[Metric]:
        """Yields the numbers of the engines at this moment."""
        for name in (field.name for field in dataclasses.fields(next(iter(self._engines.values())).counts)):
            metric = CounterMetricFamily(
                f"lmjax_{name}", f"Of each engine: {name.replace('_', ' ')}.", labels=["model"]
            )
            for model, engine in self._engines.items():
                metric.add_metric([model], getattr(engine.counts, name))
            yield metric
        active = GaugeMetricFamily("lmjax_active", "Texts that are being written.", labels=["model"])
        waiting = GaugeMetricFamily("lmjax_waiting", "Requests that wait.", labels=["model"])
        for model, engine in self._engines.items():
            busy, queue = engine.load
            active.add_metric([model], busy)
            waiting.add_metric([model], queue)
        yield active
        yield waiting

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
