"""Fills the metrics of `observability.metrics` through Ray, which exports them on every node.

A record costs about 3 us, so that the engine records once a tick and whatever is only a state or a count goes out with
the heartbeat.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ray.util import metrics as ray_metrics

from serve_app.admission.views import PoolStatus
from serve_app.engine.events import DropCause
from serve_app.engine.observer import SessionReport, TickReport
from serve_app.engine.slots import Lease
from serve_app.engine.stats import EngineStats
from serve_app.observability import metrics
from serve_app.observability.metrics import Metric, MetricKind
from serve_app.serving.meter import Meter
from serve_app.serving.tick_trace import TickTrace


class Panel:
    """The instruments of one process.

    Args:
        table: which metrics.
        everywhere: labels that all of them carry besides their own.
    """

    def __init__(self, table: tuple[Metric, ...], **everywhere: str) -> None:
        self._instruments = {metric.name: _instrument(metric, everywhere) for metric in table}
        self._told: dict[tuple[str, tuple[str, ...]], float] = {}

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """One value more in a histogram."""
        self._instruments[metric.name].observe(value, _tags(metric, labels))

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """The value of a gauge from now on."""
        self._instruments[metric.name].set(value, _tags(metric, labels))

    def reach(self, metric: Metric, total: float, *labels: str) -> None:
        """Bring a counter to this total: whoever counts knows totals, Ray wants increments. Below is nothing new."""
        key = (metric.name, labels)
        grown = total - self._told.get(key, 0.0)
        if grown > 0:
            self._instruments[metric.name].inc(grown, _tags(metric, labels))
            self._told[key] = total


class EngineInstruments:
    """The engine's `Observer`, and what its heartbeat shows.

    Args:
        model: that the engine has.

    Attributes:
        trace: the last ticks.
    """

    def __init__(self, model: str) -> None:
        self._panel = Panel(metrics.ENGINE, **{metrics.MODEL: model})
        self.trace = TickTrace()

    def tick_finished(self, report: TickReport) -> None:
        """Engine thread."""
        self.trace.add(report)
        for stage, spent_ms in report.stage_ms.items():
            self._panel.observe(metrics.TICK, spent_ms / 1_000, stage)
        answered_ms = report.stage_ms.get("tick", 0.0) + report.stage_ms.get("wait", 0.0)
        self._panel.observe(metrics.ANSWER, answered_ms / 1_000)
        self._panel.observe(metrics.TICK_ROWS, report.rows)

    def session_ended(self, report: SessionReport) -> None:
        """Engine thread."""
        self._panel.observe(metrics.SESSION_LENGTH, report.duration_s)

    def frames_dropped(self, lease: Lease, frames: int, cause: DropCause) -> None:
        """Counted with the heartbeat."""

    def show(
        self, stats: EngineStats, returns: Mapping[str, int], *, healthy: bool, late: bool, resident_bytes: int
    ) -> None:
        """States and counts, once a heartbeat."""
        panel = self._panel
        panel.set(metrics.SLOTS, stats.slots)
        panel.set(metrics.SLOTS_USED, stats.slots - stats.free)
        panel.set(metrics.BATCH_ROWS, stats.rows)
        panel.set(metrics.BATCH_ROWS_USED, stats.rows - stats.rows_free)
        panel.set(metrics.HEALTHY, healthy)
        panel.set(metrics.DRAINING, stats.draining)
        panel.set(metrics.LATE, late)
        panel.set(metrics.ENGINE_BYTES, resident_bytes)
        panel.reach(metrics.OVERRUNS, stats.overruns)
        panel.reach(metrics.UNDERRUNS, stats.underruns)
        panel.reach(metrics.STALE, stats.stale_frames)
        panel.reach(metrics.PRIMED, stats.primed_steps)
        panel.reach(metrics.EXPIRED, stats.expired)
        _reach_each(panel, metrics.DROPPED, stats.dropped_frames)
        _reach_each(panel, metrics.SESSIONS_ENDED, stats.ended)
        _reach_each(panel, metrics.RETURNS, returns)


class GatewayInstruments:
    """What one gateway shows."""

    def __init__(self) -> None:
        self._panel = Panel(metrics.GATEWAY)

    def granted(self, took_s: float) -> None:
        """A slot was leased for somebody."""
        self._panel.observe(metrics.GRANT, took_s)

    def shook_hands(self, took_s: float) -> None:
        """Somebody may speak."""
        self._panel.observe(metrics.HANDSHAKE, took_s)

    def show(self, meter: Meter) -> None:
        """States and counts, once a heartbeat."""
        self._panel.set(metrics.CONVERSATIONS, meter.conversations)
        _reach_each(self._panel, metrics.REFUSED, meter.refusals)
        _reach_each(self._panel, metrics.ENDED, meter.endings)
        self._panel.reach(metrics.TOLD_TO_GO, meter.told_to_go)


class AdmissionInstruments:
    """What the admission host shows."""

    def __init__(self) -> None:
        self._panel = Panel(metrics.ADMISSION)

    def show(self, pools: Sequence[PoolStatus], spoken_s: Mapping[str, float]) -> None:
        """Once a heartbeat."""
        for pool in pools:
            self._panel.set(metrics.WAITING, pool.waiting, pool.model)
            self._panel.set(metrics.ROWS_HELD, pool.used, pool.model)
        _reach_each(self._panel, metrics.TENANT_SPOKEN, spoken_s)


def _reach_each(panel: Panel, metric: Metric, totals: Mapping[Any, float]) -> None:
    for label, total in totals.items():
        panel.reach(metric, total, str(label))


def _tags(metric: Metric, labels: tuple[str, ...]) -> dict[str, str] | None:
    return dict(zip(metric.labels, labels, strict=True)) if metric.labels else None


def _instrument(metric: Metric, everywhere: Mapping[str, str]) -> Any:
    labels = (*metric.labels, *everywhere)
    made: Any
    match metric.kind:
        case MetricKind.COUNTER:
            made = ray_metrics.Counter(metric.name, metric.about, labels)
        case MetricKind.GAUGE:
            made = ray_metrics.Gauge(metric.name, metric.about, labels)
        case MetricKind.HISTOGRAM:
            made = ray_metrics.Histogram(metric.name, metric.about, list(metric.buckets), labels)
    return made.set_default_tags(dict(everywhere))
