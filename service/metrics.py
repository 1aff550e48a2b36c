"""Every Prometheus metric, on a registry that is handed in.

Label values come from the server's own state (model names, labels of specs, error codes), never from clients, so
their number is bounded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

_FORGOTTEN = ("fovea_model_ready", "fovea_route_", "fovea_shadow")  # whose labels come and go

# Labels that are removed stay in files that several processes share; `Together` sees to that.
warnings.filterwarnings("ignore", "Removal of labels", UserWarning)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The server's metrics.

    Args:
        registry: Where they are registered; each test makes its own.
        folder: Where several processes count together, if they do; prometheus_client has to have been told, too.
        processes: Those processes.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        folder: Path | None = None,
        processes: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        self._registry = registry
        self._shown = registry
        if folder is not None:
            self._shown = CollectorRegistry()
            PlatformCollector(registry=self._shown)
            self._shown.register(Together(folder, registry, processes))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"fovea_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str, together: Literal["livesum", "livemin"] = "livesum") -> Gauge:
            return Gauge(f"fovea_{name}", text, labels, registry=registry, multiprocess_mode=together)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"fovea_{name}", text, labels, registry=registry, buckets=buckets)

        self.requests = counter(
            "requests_total", "Requests to a model, by error code or ok.", "transport", "model", "code"
        )
        self.request_seconds = histogram("request_seconds", "From request to answer.", _SECONDS, "transport", "model")
        self.decode_seconds = histogram("decode_seconds", "From bytes to pixels, an image.", _SECONDS, "model")
        self.queue_seconds = histogram("queue_seconds", "Wait for a batch, an image.", _SECONDS, "model")
        self.infer_seconds = histogram("infer_seconds", "Inference, a batch.", _SECONDS, "model")
        self.batch_size = histogram("batch_size", "Images in a batch.", _BATCH, "model")
        self.queue_depth = gauge("queue_depth", "Images waiting for a batch.", "model")
        self.inflight = gauge("inflight", "Requests being answered.", "transport")
        self.model_ready = gauge(
            "model_ready", "1 if the version serves, else 0.", "model", "version", together="livemin"
        )
        self.load_failures = counter("model_load_failures_total", "Versions refused at load.", "model", "reason")
        self.refused = counter(
            "refused_total", "Calls refused for want of a key or of its scope, or for its rate.", "transport", "reason"
        )
        self.rejected = counter("rejected_total", "Images refused unanswered, by error code.", "reason")
        self.predictions = counter("predictions_total", "Images by top class.", "model", "label")
        self.abstained = counter("abstained_total", "Images abstained from.", "model")
        self.confidence = histogram("confidence", "Probability of the top class.", _CONFIDENCE, "model")
        self.route_requests = counter("route_requests_total", "Requests to a route, by who answered.", "route", "arm")
        self.route_fallbacks = counter(
            "route_fallbacks_total", "Requests that the primary answered in place of the canary.", "route"
        )
        self.shadow = counter("shadow_total", "Images that a shadow classified too.", "route")
        self.shadow_disagreements = counter(
            "shadow_disagreements_total",
            "Images with another top class from the shadow than from the primary.",
            "route",
        )
        self.shadow_dropped = counter("shadow_dropped_total", "Images that a shadow was spared or failed on.", "route")
        # Looking a child up by labels costs more than counting on it.
        self.prediction = lru_cache(maxsize=100_000)(self.predictions.labels)
        self.request = lru_cache(maxsize=10_000)(self.requests.labels)
        self.seconds = lru_cache(maxsize=10_000)(self.request_seconds.labels)
        self.decoding = lru_cache(maxsize=10_000)(self.decode_seconds.labels)
        self.queueing = lru_cache(maxsize=10_000)(self.queue_seconds.labels)
        self.certainty = lru_cache(maxsize=10_000)(self.confidence.labels)

    def forget_route(self, name: str) -> None:
        """Drop what was counted of a route that is no more, so that only routes that exist are labels."""
        labels = {"route": name}
        self.route_requests.remove_by_labels(labels)
        self.route_fallbacks.remove_by_labels(labels)
        self.shadow.remove_by_labels(labels)
        self.shadow_disagreements.remove_by_labels(labels)
        self.shadow_dropped.remove_by_labels(labels)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._shown)


class Together(Collector):
    """What several processes have counted, dead ones included, and what those that live have used.

    Files of counts cannot forget labels. So of what comes and goes only that is shown which this process knows, too.

    Args:
        folder: Their files.
        own: What this process has counted.
        processes: Those that live.
    """

    def __init__(self, folder: Path, own: CollectorRegistry, processes: Callable[[], Iterable[int]]) -> None:
        self._files = MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]
        self._own = own
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        known = {
            (sample.name, frozenset(sample.labels.items()))
            for metric in self._own.collect()
            if metric.name.startswith(_FORGOTTEN)
            for sample in metric.samples
        }
        for metric in self._files.collect():  # type: ignore[no-untyped-call]
            if metric.name.startswith(_FORGOTTEN):
                metric.samples = [one for one in metric.samples if (one.name, frozenset(one.labels.items())) in known]
            yield metric
        yield from self._used()

    def _used(self) -> Iterable[Metric]:
        """The metrics of a process, summed; of starts, the first."""
        found: dict[str, Metric] = {}
        for pid in self._processes():
            for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                first = found.setdefault(metric.name, metric)
                if first is metric or not metric.samples:
                    continue
                (mine,), (other,) = first.samples, metric.samples
                both = min(mine.value, other.value) if "start_time" in metric.name else mine.value + other.value
                first.samples = [mine._replace(value=both)]
        return found.values()
