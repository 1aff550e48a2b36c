"""Counts that are added up before prometheus_client hears of them: whoever looks sees them all."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Histogram

from service.metrics import Metrics


def test_whoever_looks_sees_all_that_was_counted() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for _ in range(3):
        metrics.request("http", "tiny", "ok").inc()
        metrics.under_way("http").inc()
    metrics.under_way("http").dec()
    labels = {"transport": "http", "model": "tiny", "code": "ok"}
    for _ in range(2):  # looking twice counts nothing twice
        assert registry.get_sample_value("fovea_requests_total", labels) == 3
        assert registry.get_sample_value("fovea_inflight", {"transport": "http"}) == 2
    metrics.request("http", "tiny", "ok").inc()
    assert b'fovea_requests_total{code="ok",model="tiny",transport="http"} 4.0' in metrics.exposition()


@pytest.mark.parametrize("value", [0.0, 0.0004, 0.0005, 0.00051, 1.0, 10.0, 11.0])
def test_values_fall_into_the_buckets_that_prometheus_client_puts_them_into(value: float) -> None:
    registry, plain = CollectorRegistry(), CollectorRegistry()
    metrics = Metrics(registry)
    metrics.decoding("tiny").observe(value)
    metrics.decoding("tiny").observe(2 * value)
    (found,) = [metric for metric in registry.collect() if metric.name == "fovea_decode_seconds"]
    buckets = [float(sample.labels["le"]) for sample in found.samples if sample.name.endswith("_bucket")]
    expected = Histogram("fovea_decode_seconds", "", ["model"], registry=plain, buckets=buckets).labels("tiny")
    expected.observe(value)
    expected.observe(2 * value)

    def shown(registry: CollectorRegistry) -> list[tuple[str, str | None, float]]:
        return [
            (sample.name, sample.labels.get("le"), sample.value)
            for metric in registry.collect()
            if metric.name == "fovea_decode_seconds"
            for sample in metric.samples
            if not sample.name.endswith("_created")
        ]

    assert shown(registry) == shown(plain)
