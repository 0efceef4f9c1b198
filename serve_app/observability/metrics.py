"""Every metric's name, kind, labels and buckets, in one table: dashboards, alerts and tests read it, serving fills it.

Labels have few values: stages, causes, reasons. Nothing here names a session, a visitor or a key.
"""

import dataclasses
import enum
from typing import Final

MODEL: Final = "model"
"""Label of everything that is an engine's or a pool's."""

EXPORTED_PREFIX: Final = "ray_"
"""What Ray's endpoint puts before an application's metric."""

TICK_S: Final = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.25, 1.0)
"""Around the 80 ms that a tick may take."""
ANSWER_S: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.16, 0.25, 0.5, 1.0, 2.0)
OPENING_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
LENGTH_S: Final = (1.0, 5.0, 15.0, 60.0, 180.0, 300.0, 600.0, 1_800.0, 3_600.0)
ROWS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0)


class MetricKind(enum.Enum):
    """What Prometheus may do with it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as we record it; seconds and bytes, never milliseconds.
        kind: a counter only grows.
        about: for people.
        labels: few values each.
        buckets: upper bounds, of a histogram.
    """

    name: str
    kind: MetricKind
    about: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """The name on Ray's endpoint; a histogram's has ``_bucket``, ``_sum`` and ``_count`` behind it."""
        return EXPORTED_PREFIX + self.name + ("_total" if self.kind is MetricKind.COUNTER else "")


def _counter(name: str, about: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.COUNTER, about, labels)


def _gauge(name: str, about: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.GAUGE, about, labels)


def _histogram(name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(name, MetricKind.HISTOGRAM, about, labels, buckets)


# --- of an engine -----------------------------------------------------------------------------------------------------

TICK = _histogram("chorus_tick_seconds", "One turn of the batch, by stage; stage `tick` is all of it.", TICK_S, "stage")
ANSWER = _histogram(
    "chorus_answer_seconds", "From a frame that is ready to its audio, of the frame that waited longest.", ANSWER_S
)
TICK_ROWS = _histogram("chorus_tick_rows", "Rows that a tick stepped.", ROWS)
OVERRUNS = _counter("chorus_overruns", "Ticks that took longer than a frame lasts.")
UNDERRUNS = _counter("chorus_underruns", "Gaps in what sessions were sent.")
STALE = _counter("chorus_stale_frames", "Frames of sessions that were over.")
DROPPED = _counter("chorus_dropped_frames", "Frames that were thrown away.", "cause")
SESSIONS_ENDED = _counter("chorus_sessions_ended", "Sessions that are over, on the engine.", "cause")
SESSION_LENGTH = _histogram("chorus_session_seconds", "How long sessions lasted.", LENGTH_S)
PRIMED = _counter("chorus_primed_steps", "Steps of prompts that were fed.")
EXPIRED = _counter("chorus_expired_leases", "Leases that nobody opened in time.")
SLOTS = _gauge("chorus_slots", "Conversations that fit.")
SLOTS_USED = _gauge("chorus_slots_used", "Slots that are leased or live.")
BATCH_ROWS = _gauge("chorus_rows", "Rows of the batch.")
BATCH_ROWS_USED = _gauge("chorus_rows_used", "Rows that sessions own; a guided one owns two.")
HEALTHY = _gauge("chorus_engine_healthy", "1 while the engine's loop works.")
DRAINING = _gauge("chorus_engine_draining", "1 once the engine takes nobody new.")
LATE = _gauge("chorus_engine_late", "1 while the engine misses its deadlines and takes nobody new.")
RETURNS = _counter("chorus_session_returns", "Sessions whose connection broke: parked, then resumed or lapsed.", "step")
ENGINE_BYTES = _gauge("chorus_engine_resident_bytes", "Memory of the engine's process.")

# --- of a gateway -----------------------------------------------------------------------------------------------------

CONVERSATIONS = _gauge("chorus_conversations", "Conversations that this gateway carries.")
REFUSED = _counter("chorus_refused", "Visitors who were turned away before the upgrade.", "reason")
ENDED = _counter("chorus_conversations_ended", "Conversations that are over, on the gateway.", "cause")
TOLD_TO_GO = _counter("chorus_going_away", "Words to clients that their gateway or engine is replaced.")
GRANT = _histogram("chorus_grant_seconds", "From the question to the lease of a slot.", OPENING_S)
HANDSHAKE = _histogram("chorus_handshake_seconds", "From the upgrade to the handshake, prompts included.", OPENING_S)

# --- of the admission, where there are tenants or a queue -------------------------------------------------------------

TENANT_SPOKEN = _counter("chorus_tenant_audio_seconds", "Seconds of conversation, by tenant.", "tenant")
WAITING = _gauge("chorus_waiting", "Callers in the queue.", MODEL)
ROWS_HELD = _gauge("chorus_admitted_rows", "Rows that the authority counts as taken.", MODEL)

ENGINE: Final = (
    TICK, ANSWER, TICK_ROWS, OVERRUNS, UNDERRUNS, STALE, DROPPED, SESSIONS_ENDED, SESSION_LENGTH, PRIMED, EXPIRED,
    SLOTS, SLOTS_USED, BATCH_ROWS, BATCH_ROWS_USED, HEALTHY, DRAINING, LATE, RETURNS, ENGINE_BYTES,
)  # fmt: skip
"""Each carries the engine's `MODEL` besides its own labels."""
GATEWAY: Final = (CONVERSATIONS, REFUSED, ENDED, TOLD_TO_GO, GRANT, HANDSHAKE)
ADMISSION: Final = (TENANT_SPOKEN, WAITING, ROWS_HELD)
METRICS: Final = ENGINE + GATEWAY + ADMISSION
