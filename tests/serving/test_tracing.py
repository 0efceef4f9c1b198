"""The trace of a session's start, kept in memory."""

import asyncio
import sys
from collections.abc import Mapping

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from serve_app.config import GatewaySettings, checked
from serve_app.errors import ConfigError, EngineFull
from serve_app.serving.tracing import ABORTED, FIRST_AUDIO, WHOLE, Opening, Tracing, open_tracing, require_tracing

ENDPOINT = "http://collector.example:4318/v1/traces"


class Recorder:
    """A tracing whose spans can be looked at."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider.get_tracer("test"))

    @property
    def spans(self) -> Mapping[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def start(opening: Opening) -> None:
    """As a gateway does it."""
    for name in ("question", "admission", "lease", "attach"):
        with opening.part(name):
            pass
    opening.note(tenant="acme", engine="127.0.0.1:1")
    opening.live()


def test_a_session_that_starts_is_one_trace_from_the_question_to_the_first_audio(recorder: Recorder) -> None:
    opening = recorder.tracing.opening()
    start(opening)
    opening.spoke()
    opening.end("client")  # much later
    assert list(recorder.spans) == ["question", "admission", "lease", "attach", FIRST_AUDIO, WHOLE]
    whole = recorder.spans[WHOLE]
    assert whole.attributes == {"tenant": "acme", "engine": "127.0.0.1:1"}
    assert whole.status.status_code is StatusCode.UNSET
    for name, span in recorder.spans.items():
        assert span.context.trace_id == whole.context.trace_id
        assert name == WHOLE or (span.parent is not None and span.parent.span_id == whole.context.span_id)


def test_a_refusal_is_the_reason_of_the_step_and_of_the_whole(recorder: Recorder) -> None:
    opening = recorder.tracing.opening()
    with pytest.raises(EngineFull), opening.part("lease"):
        raise EngineFull(4)
    opening.end(EngineFull.reason)
    for name in ("lease", WHOLE):
        span = recorder.spans[name]
        assert span.attributes == {"reason": EngineFull.reason}
        assert span.status.status_code is StatusCode.ERROR


def test_a_visitor_that_leaves_before_the_first_audio_is_the_reason_why_there_was_none(recorder: Recorder) -> None:
    opening = recorder.tracing.opening()
    start(opening)
    opening.end("client")
    assert recorder.spans[FIRST_AUDIO].attributes == {"reason": "client"}
    assert dict(recorder.spans[WHOLE].attributes or {})["reason"] == "client"


def test_a_step_that_is_cut_off_is_aborted(recorder: Recorder) -> None:
    opening = recorder.tracing.opening()
    with pytest.raises(asyncio.CancelledError), opening.part("queue"):
        raise asyncio.CancelledError
    assert recorder.spans["queue"].attributes == {"reason": ABORTED}


def test_no_exception_of_ours_is_written_down_with_its_words(recorder: Recorder) -> None:
    opening = recorder.tracing.opening()
    with pytest.raises(ValueError, match="secret"), opening.part("question"):
        raise ValueError("secret")
    assert recorder.spans["question"].events == ()
    assert "secret" not in recorder.spans["question"].to_json()


def test_a_session_ends_its_trace_once(recorder: Recorder) -> None:
    opening = recorder.tracing.opening()
    opening.spoke()
    opening.spoke()
    opening.end("client")
    opening.note(engine="late")
    assert recorder.spans[WHOLE].attributes == {}


def test_where_nobody_traces_everything_is_a_formality() -> None:
    opening = open_tracing(None, "gateway").opening()
    start(opening)
    opening.spoke()
    opening.end("client")


def test_traces_that_are_wanted_without_their_packages_are_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tracing(ENDPOINT)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"chorus-serve\[tracing\]"):
        require_tracing(ENDPOINT)
    with pytest.raises(ConfigError, match=r"chorus-serve\[tracing\]"):
        open_tracing(ENDPOINT, "gateway")
    require_tracing(None)


@pytest.mark.parametrize("endpoint", ["", "collector:4318", "ftp://user:hidden@collector", "http://", 7])
def test_an_address_that_is_none_is_refused_and_not_repeated(endpoint: object) -> None:
    with pytest.raises(ConfigError, match="traces") as caught:
        checked(GatewaySettings, {"traces": endpoint}, "here")
    assert "hidden" not in str(caught.value)
