"""Every Prometheus metric, on a registry that is handed in.

Label values come from the server's own state (model names, labels of specs, error codes), never from clients, so
their number is bounded.
"""

from __future__ import annotations

import asyncio
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

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


class Due:
    """What has been counted and not been told to prometheus_client yet, which takes a lock for every step, and writes
    it to a file where several processes count together. A request takes a dozen steps, so they are added up first.

    It is told when somebody looks; and where another process may, at the end of the event loop's turn.

    Args:
        shared: Another process may look.
    """

    def __init__(self, shared: bool) -> None:
        self._shared = shared
        self._counted: list[Count | Observed] = []

    def add(self, counted: Count | Observed) -> None:
        if self._shared and not self._counted:
            asyncio.get_running_loop().call_soon(self.tell)
        self._counted.append(counted)

    def tell(self) -> None:
        counted, self._counted = self._counted, []
        for each in counted:
            each.tell()

    def collect(self) -> Iterable[Metric]:
        """Nothing; but what is collected after it is up to date."""
        self.tell()
        return ()


class Count:
    """One series of a counter or a gauge; on the event loop only."""

    __slots__ = ("_due", "_known", "_series", "_steps")

    def __init__(self, due: Due, series: Counter | Gauge) -> None:
        self._due = due
        self._series = series
        self._steps = 0.0
        self._known = False  # it is due

    def inc(self, steps: float = 1.0) -> None:
        self._steps += steps
        if not self._known:
            self._known = True
            self._due.add(self)

    def dec(self) -> None:
        self.inc(-1.0)

    def tell(self) -> None:
        steps, self._steps, self._known = self._steps, 0.0, False
        if steps:
            self._series.inc(steps)


class Observed:
    """One series of a histogram; on the event loop only."""

    __slots__ = ("_bounds", "_counts", "_due", "_series", "_sum")

    def __init__(self, due: Due, series: Histogram, bounds: tuple[float, ...]) -> None:
        self._due = due
        self._series = series
        self._bounds = bounds
        self._sum = 0.0
        self._counts: dict[int, int] = {}  # by bucket

    def observe(self, value: float) -> None:
        if not self._counts:
            self._due.add(self)
        self._sum += value
        bucket = bisect_left(self._bounds, value)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1

    def tell(self) -> None:
        series: Any = self._series  # which can be told of one value at a time only, but for these two
        series._sum.inc(self._sum)
        for bucket, values in self._counts.items():
            series._buckets[bucket].inc(values)
        self._sum = 0.0
        self._counts.clear()


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
        self._due = Due(folder is not None)
        registry.register(self._due)
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
        # What requests and batches are counted on; looking a series up in prometheus_client takes longer than counting.
        self.prediction = self._counts(self.predictions, 100_000)
        self.request = self._counts(self.requests)
        self.under_way = self._counts(self.inflight)
        self.depth = self._counts(self.queue_depth)
        self.seconds = self._observed(self.request_seconds, _SECONDS)
        self.decoding = self._observed(self.decode_seconds, _SECONDS)
        self.queueing = self._observed(self.queue_seconds, _SECONDS)
        self.inferring = self._observed(self.infer_seconds, _SECONDS)
        self.batching = self._observed(self.batch_size, _BATCH)
        self.certainty = self._observed(self.confidence, _CONFIDENCE)

    def forget_route(self, name: str) -> None:
        """Drop what was counted of a route that is no more, so that only routes that exist are labels."""
        labels = {"route": name}
        self.route_requests.remove_by_labels(labels)
        self.route_fallbacks.remove_by_labels(labels)
        self.shadow.remove_by_labels(labels)
        self.shadow_disagreements.remove_by_labels(labels)
        self.shadow_dropped.remove_by_labels(labels)

    def _counts(self, metric: Counter | Gauge, most: int = 10_000) -> Callable[..., Count]:
        """Looks a series up by its labels."""
        return lru_cache(most)(lambda *labels: Count(self._due, metric.labels(*labels)))

    def _observed(self, metric: Histogram, bounds: tuple[float, ...]) -> Callable[..., Observed]:
        return lru_cache(10_000)(lambda *labels: Observed(self._due, metric.labels(*labels), bounds))

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
