"""Where a frame's time went, on made-up clocks that have nothing in common."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.link.messages import Key, Output
from serve_app.serving.latency import EVERY_S, MAX_FRAMES, PARTS, Latency
from tests.audio.streams import Clock

ENGINE_S = 50_000.0
"""The engine's clock reads something else altogether."""


def output(number: int, *, wait_s: float = 0.0, tick_s: float = 0.0, ready_s: float = ENGINE_S) -> Output:
    return Output(
        Key(0, 0),
        number=number,
        step=number,
        text_token=-2,
        ready_s=ready_s,
        started_s=ready_s + wait_s,
        done_s=ready_s + wait_s + tick_s,
        codes=np.zeros(8, np.int16),
        pcm=None,
    )


def pass_frame(
    latency: Latency,
    clock: Clock,
    number: int,
    *,
    receive_s: float = 0.0,
    link_s: float = 0.0,
    wait_s: float = 0.0,
    tick_s: float = 0.0,
    send_s: float = 0.0,
) -> None:
    latency.heard()
    clock.now_s += receive_s
    latency.sent(number)
    clock.now_s += link_s + wait_s + tick_s
    told = latency.answered(output(number, wait_s=wait_s, tick_s=tick_s))
    clock.now_s += send_s
    told()


def second_later(latency: Latency, clock: Clock) -> dict[str, Any]:
    clock.now_s += EVERY_S
    report = latency.report()
    assert report is not None
    return report


def test_each_part_is_what_its_own_clock_saw() -> None:
    clock = Clock()
    latency = Latency(clock)
    pass_frame(latency, clock, 0, receive_s=0.001, link_s=0.004, wait_s=0.01, tick_s=0.03, send_s=0.002)
    report = second_later(latency, clock)
    assert (report["type"], report["frames"]) == ("latency", 1)
    assert {part: told["max"] for part, told in report["ms"].items()} == {
        "receive": 1.0,
        "link": 4.0,
        "wait": 10.0,
        "tick": 30.0,
        "send": 2.0,
        "total": 47.0,
    }


def test_the_shares_are_of_the_frames_since_the_last_report() -> None:
    clock = Clock()
    latency = Latency(clock)
    pass_frame(latency, clock, 0, tick_s=9.0)
    second_later(latency, clock)
    for number in range(1, 101):
        pass_frame(latency, clock, number, tick_s=number / 1_000)
    report = second_later(latency, clock)
    assert report["frames"] == 100
    assert report["ms"]["tick"] == {"p50": 50.0, "p99": 99.0, "max": 100.0}


def test_nothing_is_told_before_a_second_is_over_or_when_no_frame_came() -> None:
    clock = Clock()
    latency = Latency(clock)
    clock.now_s += EVERY_S
    assert latency.report() is None
    pass_frame(latency, clock, 0)
    second_later(latency, clock)
    pass_frame(latency, clock, 1)
    assert latency.report() is None


def test_frames_that_were_dropped_on_the_way_are_left_out() -> None:
    clock = Clock()
    latency = Latency(clock)
    for number in range(3):
        latency.heard()
        latency.sent(number)
        clock.now_s += 0.08
    latency.answered(output(2))()
    report = second_later(latency, clock)
    assert report["frames"] == 1
    assert report["ms"]["total"]["max"] == pytest.approx(80.0)


@pytest.mark.parametrize("number", [-1, 0, 7])
def test_an_answer_to_a_frame_that_nobody_sent_is_not_measured(number: int) -> None:
    clock = Clock()
    latency = Latency(clock)
    latency.answered(output(number))()
    clock.now_s += EVERY_S
    assert latency.report() is None


def test_an_engine_that_never_answers_fills_no_memory() -> None:
    clock = Clock()
    latency = Latency(clock)
    for number in range(10 * MAX_FRAMES):
        latency.sent(number)
    latency.answered(output(9 * MAX_FRAMES - 1))()  # forgotten by now
    clock.now_s += EVERY_S
    assert latency.report() is None


spans_s = st.floats(0.0, 2.0)


@given(parts=st.lists(st.tuples(spans_s, spans_s, spans_s, spans_s, spans_s), min_size=1, max_size=20))
def test_parts_of_a_frame_add_up_to_its_total(parts: list[tuple[float, ...]]) -> None:
    for receive_s, link_s, wait_s, tick_s, send_s in parts:
        clock = Clock()
        latency = Latency(clock)
        pass_frame(latency, clock, 0, receive_s=receive_s, link_s=link_s, wait_s=wait_s, tick_s=tick_s, send_s=send_s)
        told = {part: values["max"] for part, values in second_later(latency, clock)["ms"].items()}
        assert tuple(told) == PARTS
        assert sum(told[part] for part in PARTS if part != "total") == pytest.approx(told["total"], abs=0.1)


def test_times_of_an_engine_that_make_no_sense_give_no_negative_link() -> None:
    clock = Clock()
    latency = Latency(clock)
    latency.sent(0)
    latency.answered(output(0, tick_s=5.0))()  # a tick of 5 s in no time at all
    assert second_later(latency, clock)["ms"]["link"]["max"] == 0.0
