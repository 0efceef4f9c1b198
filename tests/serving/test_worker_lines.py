"""What Ray's processes print, where logs are JSON."""

import json
from typing import Any

import pytest
from ray._private import ray_logging

from serve_app.serving import worker_lines

OURS = '{"ts": "2026-01-01T00:00:00.000Z", "level": "INFO", "logger": "serve_app", "event": "session end"}'


def test_lines_of_ours_stay_and_others_are_wrapped_with_who_printed_them() -> None:
    told = {"pid": 7, "actor_name": "ServeReplica:engine:Engine", "lines": [OURS, "a warning of C++"]}
    first, second = worker_lines.shown(told, 0.0).splitlines()
    assert first == OURS
    assert json.loads(second) == {
        "ts": "1970-01-01T00:00:00.000Z",
        "level": "INFO",
        "logger": "ServeReplica:engine:Engine",
        "event": "a warning of C++",
    }


def test_it_takes_the_place_of_what_ray_registered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dispatcher: Any = ray_logging.WorkerStandardStreamDispatcher()  # type: ignore[no-untyped-call]
    dispatcher.add_handler(worker_lines.HANDLER, lambda data: pytest.fail("it prints a prefix"))
    monkeypatch.setattr(ray_logging, "global_worker_stdstream_dispatcher", dispatcher)
    assert worker_lines.show_as_json()
    dispatcher.emit({"lines": [OURS]})
    assert capsys.readouterr().err == OURS + "\n"


def test_without_such_a_register_lines_stay_as_ray_prints_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ray_logging, "global_worker_stdstream_dispatcher")
    assert not worker_lines.show_as_json()
