import math

from hypothesis import given
from hypothesis import strategies as st

from serve_app.client.round_trip import RoundTrips, percentile
from serve_app.units import FRAME_S

LATENCIES = st.lists(st.floats(0.0005, 0.5), min_size=1, max_size=60)


def played(latencies_s: list[float], delay: int) -> RoundTrips:
    """Sends a frame every 80 ms; frame ``i + delay`` is answered after the i-th latency, in order."""
    trips = RoundTrips()
    sent = [(frame * FRAME_S, 0, frame) for frame in range(len(latencies_s) + delay)]
    received, last_s = [], 0.0
    for index, latency_s in enumerate(latencies_s):
        last_s = max(last_s, (index + delay) * FRAME_S + latency_s)
        received.append((last_s, 1, index))
    for now_s, kind, _ in sorted(sent + received):
        if kind == 0:
            trips.frame_sent(now_s)
        else:
            trips.frame_received(now_s)
    return trips


@given(LATENCIES, st.integers(0, 3))
def test_one_quick_answer_makes_every_round_trip_exact(latencies_s: list[float], delay: int) -> None:
    trips = played([*latencies_s, *[0.001] * 8], delay)
    assert trips.delay_frames == delay
    last_s = 0.0
    for index, (latency_s, measured_s) in enumerate(zip(latencies_s, trips.all_s(), strict=False)):
        sent_s = (index + delay) * FRAME_S
        last_s = max(last_s, sent_s + latency_s)
        assert math.isclose(measured_s, last_s - sent_s, abs_tol=1e-9)


@given(LATENCIES, st.integers(0, 3))
def test_no_round_trip_is_negative(latencies_s: list[float], delay: int) -> None:
    assert all(trip >= 0 for trip in played(latencies_s, delay).all_s())


def test_an_answer_without_a_question_is_no_round_trip() -> None:
    assert RoundTrips().frame_received(1.0) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_percentile_is_a_value_that_the_share_does_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def test_percentile_of_nothing_is_nan() -> None:
    assert math.isnan(percentile([], 0.5))
