"""Traces of how sessions start, for OpenTelemetry: question, admission, queue, lease, attach, first audio.

One trace a session, off unless a deployment names a collector. A conversation itself is no trace: its ticks are
thousands, and the metrics have them. Nothing that was said is in a span, and no credential.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from serve_app.errors import ChorusError, ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

SERVICE: Final = "chorus-gateway"
WHOLE: Final = "session start"
FIRST_AUDIO: Final = "first audio"
ABORTED: Final = "aborted"
EXPORT_MS: Final = 1_000
"""Traces of a gateway that is killed are lost; later than that they are at the collector."""


class Tracing:
    """Makes one trace for each session that asks to start.

    Args:
        tracer: None records nothing.
    """

    def __init__(self, tracer: "Tracer | None" = None) -> None:
        self._tracer = tracer

    def opening(self) -> "Opening":
        """Somebody knocks: its trace begins."""
        return Opening(self._tracer)


class Opening:
    """The trace of one session's start. It ends with the first audio, or with the reason why there was none.

    Spans carry ``engine``, ``tenant`` and ``reason``, as far as they are known. Belongs to one event loop.

    Args:
        tracer: None makes every call a formality.
    """

    def __init__(self, tracer: "Tracer | None" = None) -> None:
        self._tracer = tracer
        self._whole = tracer.start_span(WHOLE) if tracer is not None else None
        self._waiting: Span | None = None

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """One step of it; what it raises is its reason."""
        span = self._begin(name)
        try:
            yield
        except BaseException as error:
            _end(span, error.reason if isinstance(error, ChorusError) else ABORTED)
            raise
        _end(span)

    def note(self, **attributes: str) -> None:
        """Something that is known from now on: ``engine``, ``tenant``."""
        if self._whole is not None:
            self._whole.set_attributes(attributes)

    def live(self) -> None:
        """It may speak: from here to the first audio is a part, too."""
        self._waiting = self._begin(FIRST_AUDIO)

    def spoke(self) -> None:
        """The first audio went to the client: the session has started."""
        self._close(None)

    def end(self, reason: str) -> None:
        """It is over. Nothing new when it had started before."""
        self._close(reason)

    def _begin(self, name: str) -> "Span | None":
        if self._tracer is None or self._whole is None:
            return None
        from opentelemetry.trace import set_span_in_context

        return self._tracer.start_span(name, context=set_span_in_context(self._whole))

    def _close(self, reason: str | None) -> None:
        waiting, self._waiting = self._waiting, None
        whole, self._whole = self._whole, None
        _end(waiting, reason)
        _end(whole, reason)


def open_tracing(endpoint: str | None, gateway: str) -> Tracing:
    """Send traces to a collector.

    Args:
        endpoint: where it takes OTLP over HTTP, such as ``http://localhost:4318/v1/traces``; None for no traces.
        gateway: name of this process in them.

    Raises:
        ConfigError: the packages for it are not installed.
    """
    if endpoint is None:
        return Tracing()
    provider = _provider(endpoint, gateway)
    return Tracing(provider.get_tracer("serve_app"))


def require_tracing(endpoint: str | None) -> None:
    """Complain before anything starts. Raises ConfigError as `open_tracing` does."""
    if endpoint is not None:
        _packages()


def _provider(endpoint: str, gateway: str) -> "TracerProvider":
    _packages()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE, "service.instance.id": gateway}))
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint), schedule_delay_millis=EXPORT_MS)
    )
    return provider


def _packages() -> None:
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as missing:
        why = f"needs the package {missing.name}: pip install 'chorus-serve[tracing]'"
        raise ConfigError("traces", why) from None


def _end(span: "Span | None", reason: str | None = None) -> None:
    if span is None:
        return
    if reason is not None:
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("reason", reason)
        span.set_status(Status(StatusCode.ERROR))
    span.end()
