"""A line of the log as JSON: the words are the event, the mapping its fields."""

import datetime
import json
import logging
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app import config
from serve_app.errors import ConfigError
from serve_app.observability.logs import ROOT, JsonLines, as_json, log_to_stderr

LOGGER = "serve_app.somewhere"


def record(message: str, *args: Any, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord(LOGGER, logging.INFO, "file.py", 1, message, args, exc_info)


def line(message: str, *args: Any, exc_info: Any = None) -> dict[str, Any]:
    text = JsonLines().format(record(message, *args, exc_info=exc_info))
    assert "\n" not in text
    told = json.loads(text)
    assert isinstance(told, dict)
    return told


def test_the_words_are_the_event_and_the_mapping_its_fields() -> None:
    told = line("session end cause=%(cause)s duration_s=%(duration_s).2f", {"cause": "closed", "duration_s": 3.14159})
    assert datetime.datetime.fromisoformat(told.pop("ts")).utcoffset() == datetime.timedelta(0)
    assert told == {
        "level": "INFO",
        "logger": LOGGER,
        "event": "session end",
        "cause": "closed",
        "duration_s": 3.142,
    }


def test_the_same_record_as_text_is_the_line_that_it_was() -> None:
    told = record("session end cause=%(cause)s duration_s=%(duration_s).2f", {"cause": "closed", "duration_s": 3.14159})
    assert logging.Formatter("%(message)s").format(told) == "session end cause=closed duration_s=3.14"


def test_a_line_without_a_mapping_is_all_event() -> None:
    assert line("a tick of %d rows failed, key=%s", 3, "x")["event"] == "a tick of 3 rows failed, key=x"


def test_a_mapping_cannot_change_what_every_line_has() -> None:
    told = line("it happened level=%(level)s", {"level": "CRITICAL", "logger": "else"})
    assert (told["level"], told["logger"]) == ("INFO", LOGGER)


def test_an_exception_is_a_field_and_no_line_of_its_own() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        told = line("cannot open slot=%(slot)d", {"slot": 3}, exc_info=sys.exc_info())
    assert (told["event"], told["slot"], told["error"]) == ("cannot open", 3, "ValueError")
    assert "two\nlines" in told["trace"]


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.text())


@given(fields=st.dictionaries(st.text(), values, min_size=1), message=st.text())
def test_whatever_a_line_holds_it_is_one_line_of_json(fields: dict[str, Any], message: str) -> None:
    text = JsonLines().format(record(message.replace("%", ""), fields))
    assert len(text.splitlines()) == 1

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("text", ["plain words", "{broken", "", '["list"]', "{'python': 1}"])
def test_a_line_of_somebody_else_is_wrapped(text: str) -> None:
    told = json.loads(as_json(text, "ray", 0.0))
    assert told == {"ts": "1970-01-01T00:00:00.000Z", "level": "INFO", "logger": "ray", "event": text}


def test_a_line_that_is_an_object_already_stays() -> None:
    text = JsonLines().format(record("hello"))
    assert as_json(text, "ray", 0.0) == text


@pytest.mark.parametrize(("wanted", "kind"), [(None, logging.Formatter), ("", logging.Formatter), ("json", JsonLines)])
def test_one_variable_chooses_the_format_of_a_process(
    wanted: str | None, kind: type[logging.Formatter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(config.LOGS_VARIABLE, raising=False)
    if wanted is not None:
        monkeypatch.setenv(config.LOGS_VARIABLE, wanted)
    logger = logging.getLogger(ROOT)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    log_to_stderr()
    log_to_stderr()
    (handler,) = logger.handlers
    assert type(handler.formatter) is kind


def test_another_format_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.LOGS_VARIABLE, "xml")
    with pytest.raises(ConfigError, match=config.LOGS_VARIABLE):
        log_to_stderr()
