"""The table of metrics is one that Prometheus takes and that keeps nobody's secret."""

import re

import pytest

from serve_app.observability.metrics import METRICS, Metric, MetricKind

FEW_VALUES = {"stage", "step", "cause", "reason", "tenant", "model"}


def test_no_two_metrics_share_a_name() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_has_a_name_that_prometheus_takes_and_words_for_people(metric: Metric) -> None:
    assert re.fullmatch(r"chorus_[a-z_]+", metric.name)
    assert not metric.name.endswith(("_total", "_bucket", "_sum", "_count"))
    assert metric.about.endswith(".")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_labels_have_few_values_and_name_no_session(metric: Metric) -> None:
    assert set(metric.labels) <= FEW_VALUES


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_histograms_alone_have_buckets_and_they_rise(metric: Metric) -> None:
    assert bool(metric.buckets) == (metric.kind is MetricKind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))
