"""What a client makes of what its server says about latency."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.client.address import chat_url
from serve_app.client.latency import PARTS, Latencies, asking_for_latency


def report(middle: float, most: float) -> dict[str, Any]:
    return {"type": "latency", "frames": 12, "ms": {part: {"p50": middle, "p99": most, "max": most} for part in PARTS}}


def test_the_middle_of_the_middles_and_the_most_of_all_is_said() -> None:
    latencies = Latencies()
    for middle, most in ((1.0, 2.0), (3.0, 30.0), (2.0, 4.0)):
        latencies.add(report(middle, most))
    (line,) = latencies.words()
    assert "receive 2.0 / 30.0" in line
    assert "total 2.0 / 30.0" in line


def test_a_server_that_says_nothing_gives_no_words() -> None:
    assert list(Latencies().words()) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*PARTS, "p50", "max"]), inner),
)


@given(parts=json_values)
def test_whatever_a_server_says_is_taken_or_passed_over(parts: Any) -> None:
    latencies = Latencies()
    for value in (parts, {"type": "latency"}, {"type": "latency", "ms": parts}):
        latencies.add(value)
    assert len(latencies.words()) <= 1


@pytest.mark.parametrize(
    "number", [10**400, float("nan"), float("inf"), "1", None, [1]], ids=lambda value: str(value)[:5]
)
def test_a_number_that_is_none_is_passed_over(number: object) -> None:
    latencies = Latencies()
    latencies.add({"type": "latency", "ms": {"tick": {"p50": number, "max": 1.0}, "wait": {"p50": 1, "max": number}}})
    assert list(latencies.words()) == []


@pytest.mark.parametrize("url", ["localhost:8998", "ws://localhost:8998/", "wss://host/api/chat?text_seed=1"])
def test_the_wish_is_part_of_the_address(url: str) -> None:
    assert "latency=1" in chat_url(asking_for_latency(url)).partition("?")[2].split("&")
