"""No bytes deafen the receiver, and none make it raise anything but a peer's error."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from load_tests.fuzz_opus import Tally, reseal, wound
from serve_app.audio.budget import audio_budget
from serve_app.audio.ogg import OggPager, Page
from serve_app.audio.opus import OpusReceiver
from serve_app.budget import Budget
from serve_app.errors import PeerError
from serve_app.units import FRAME_S
from tests.audio.streams import Clock, headers, page, sphn_messages

MUTANTS = 600
CLEAN_FRAMES = 25
"""Two seconds: within them somebody must be heard again."""


def heard_after(spoiled: list[bytes]) -> int:
    """Frames out of two clean seconds after the spoiled messages."""
    clock = Clock()
    receiver = OpusReceiver(audio_budget(), clock, errors=Budget(0.0, 1_000.0))
    for message in spoiled:
        receiver.feed(message)
        clock.now_s += FRAME_S
    clock.now_s += 10.0
    frames = 0
    for message in sphn_messages(CLEAN_FRAMES + 1)[1:]:
        frames += len(receiver.feed(message).frames)
        clock.now_s += FRAME_S
    return frames


@pytest.mark.parametrize("fitting_checksums", [False, True], ids=["damage", "forgery"])
def test_no_mutation_deafens(fitting_checksums: bool) -> None:
    rng = np.random.default_rng(20)
    worst_s = 0.0
    for _ in range(MUTANTS):
        messages = list(sphn_messages(4))
        for _ in range(int(rng.integers(1, 4))):
            victim = int(rng.integers(len(messages)))
            if messages[victim]:
                messages[victim] = wound(messages[victim], rng)
                if fitting_checksums:
                    messages[victim] = reseal(messages[victim])
        began_s = time.perf_counter()
        heard = heard_after(messages)
        worst_s = max(worst_s, time.perf_counter() - began_s)
        assert heard >= CLEAN_FRAMES - 2, messages
    assert worst_s < 2.0


def test_the_long_fuzz_finds_nothing_in_its_first_cases() -> None:
    tally = Tally()
    for case in range(300):
        tally.add(case, seed=20)
    assert (tally.cases, tally.deaf, tally.untyped) == (300, [], [])


def test_the_long_fuzz_would_notice_a_deaf_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OggPager, "feed", lambda self, data: [])
    tally = Tally()
    tally.add(0, seed=20)
    assert tally.deaf == [0]


BITS = st.one_of(
    st.binary(max_size=300),
    st.just(b"OggS"),
    st.just(headers()),
    st.builds(page, st.binary(max_size=300)),
    st.sampled_from(sphn_messages(4)),
    st.builds(lambda raw, cut: raw[:cut], st.sampled_from(sphn_messages(4)), st.integers(0, 300)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(BITS, st.booleans(), st.floats(0, 1)), max_size=40))
def test_any_bytes_raise_nothing_but_a_peer_error(steps: list[tuple[bytes, bool, float]]) -> None:
    clock = Clock()
    receiver = OpusReceiver(audio_budget(), clock)
    heard = 0
    for payload, early, pause_s in steps:
        clock.now_s += pause_s
        try:
            got = receiver.skip(payload) if early else receiver.feed(payload)
        except PeerError as error:
            assert error.close_code == 1007  # noqa: PT017 - the law is about whatever comes
            continue
        heard += len(got.frames)
        assert all(np.isfinite(frame).all() for frame in got.frames)
    assert heard * FRAME_S <= 5.0 + 1.25 * clock.now_s + 1e-6


HOSTILE = {
    "empty pages": page() * 2_400,
    "page starts": b"OggS" * 16_384,
    "nested claims": (b"OggS\0\0" + bytes(20) + b"\xff" + b"\xff" * 255) * 230,
    "long silence": b"".join(page(b"\x1b\x02") for _ in range(2_200)),
    "broken packets": b"".join(page(b"\xe3\x01\xff") for _ in range(2_000)),
    "noise": np.random.default_rng(0).bytes(65_535),
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_message_is_over_in_a_tenth_of_a_second(payload: bytes) -> None:
    receiver = OpusReceiver(audio_budget(), Clock())
    spent_s = []
    for _ in range(3):
        began_s = time.thread_time()
        receiver.feed(payload[:65_535])
        spent_s.append(time.thread_time() - began_s)
    assert min(spent_s) < 0.1


def test_pages_of_a_hostile_stream_are_the_only_thing_held() -> None:
    pager = OggPager()
    for payload in HOSTILE.values():
        assert all(isinstance(one, Page) or one.detail for one in pager.feed(payload))
        assert pager.pending_bytes <= 65_307
