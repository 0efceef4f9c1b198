"""Dashboard and rules speak of metrics that there are."""

import re

import pytest

from serve_app.observability.metrics import METRICS, MetricKind
from tests.observability.board import alerts, board_expressions, recorded_expressions

SERIES = {
    metric.exported + ending
    for metric in METRICS
    for ending in (("_bucket", "_sum", "_count") if metric.kind is MetricKind.HISTOGRAM else ("",))
}
EXPRESSIONS = {**board_expressions(), **recorded_expressions()}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_asks_for_metrics_that_are_exported(name: str) -> None:
    asked = set(re.findall(r"ray_chorus_\w+", EXPRESSIONS[name]))
    assert asked
    assert asked <= SERIES


@pytest.mark.parametrize(("name", "expression"), alerts().items())
def test_an_alert_compares_what_is_recorded_or_notices_what_is_absent(name: str, expression: str) -> None:
    asked = set(re.findall(r"chorus:\w+", expression))
    assert asked <= recorded_expressions().keys()
    assert asked or expression.startswith("absent(")


def test_every_metric_is_seen_somewhere() -> None:
    text = " ".join(EXPRESSIONS.values())
    unseen = {metric.name for metric in METRICS if metric.exported not in text}
    assert unseen == {"chorus_stale_frames", "chorus_sessions_ended", "chorus_primed_steps", "chorus_expired_leases"}
