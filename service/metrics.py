"""Every Prometheus metric, on a registry that is handed in.

Label values come from the server's own state (model names, labels of specs, error codes), never from clients, so
their number is bounded.
"""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The server's metrics.

    Args:
        registry: Where they are registered; each test makes its own.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"fovea_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"fovea_{name}", text, labels, registry=registry)

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
        self.model_ready = gauge("model_ready", "1 if the version serves, else 0.", "model", "version")
        self.load_failures = counter("model_load_failures_total", "Versions refused at load.", "model", "reason")
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
        return generate_latest(self._registry)
