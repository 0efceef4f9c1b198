"""What a recording becomes: frames in order, an end, words with times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.checkpoint.text import TextPieces
from serve_app.errors import CheckpointError
from serve_app.offline.job import END_OF_TEXT, Job, Pacing, Word
from serve_app.offline.transcript import words_of
from serve_app.units import FRAME_SAMPLES


def sound(samples: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(0).uniform(-1, 1, samples).astype(np.float32)


def drain(job: Job, token: int = 3) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    heard = []
    while not job.done:
        heard.append(job.next().pcm)
        job.take(token, None)
    return heard


@given(
    samples=st.integers(1, 5 * FRAME_SAMPLES),
    prefix_s=st.sampled_from([0.0, 0.1, 1.0]),
    tail_s=st.sampled_from([0.0, 0.16]),
)
def test_every_sample_is_heard_once_after_the_first_frame(samples: int, prefix_s: float, tail_s: float) -> None:
    pcm = sound(samples)
    heard = np.concatenate(drain(Job(pcm, Pacing(prefix_s=prefix_s, tail_s=tail_s))))
    begin = FRAME_SAMPLES + round(prefix_s * 24_000)
    assert np.array_equal(heard[begin : begin + samples], pcm)
    assert not heard[:begin].any()
    assert not heard[begin + samples :].any()
    assert len(heard) >= begin + samples + round(tail_s * 24_000) - FRAME_SAMPLES


def test_the_tail_of_a_conversation_brings_out_what_the_delay_held_back() -> None:
    assert Job(sound(3 * FRAME_SAMPLES), Pacing.of("moshi", {}, 2)).frames == 1 + 3 + 2


def test_a_translation_ends_when_the_model_says_so() -> None:
    job = Job(sound(2 * FRAME_SAMPLES), Pacing.of("hibiki", {}, 2))
    ended = []
    while not job.done:
        ended.append(job.next().ended)
        job.take(END_OF_TEXT if job.steps in (1, 7) else 3, None)
    assert ended == [False, False, False, True, False, False, False, False]


def test_a_translation_that_never_ends_is_cut() -> None:
    job = Job(sound(FRAME_SAMPLES), Pacing.of("hibiki", {}, 2))
    assert len(drain(job)) == job.frames == 2 + 750


def test_written_words_are_timed_by_what_was_heard() -> None:
    pacing = Pacing.of("stt", {"stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 1.0}}, 0)
    job = Job(sound(50 * FRAME_SAMPLES), pacing)
    for step in range(40):
        job.take(9 if step == 31 else 3, None)
    assert [start_s for start_s, token in job.tokens() if token == 9] == [pytest.approx(30 * 0.08 - 1.5)]


def test_spoken_words_are_timed_by_the_voice() -> None:
    job = Job(sound(20 * FRAME_SAMPLES), Pacing())
    voice = np.zeros(FRAME_SAMPLES, np.float32)
    for step in range(10):
        job.take(-2 if step < 2 else 9 if step == 5 else 3, None if step < 2 else voice)
    assert [start_s for start_s, token in job.tokens() if token == 9] == [pytest.approx(3 * 0.08)]
    assert job.voice is not None
    assert job.voice.size == 8 * FRAME_SAMPLES


@pytest.mark.parametrize("delay", ["soon", -1, True, float("nan")])
def test_a_delay_that_is_no_number_is_refused(delay: object) -> None:
    with pytest.raises(CheckpointError, match="no number of seconds"):
        Pacing.of("stt", {"stt_config": {"audio_delay_seconds": delay}}, 0)


def test_words_begin_where_the_text_has_a_space() -> None:
    pieces = TextPieces([" go", "od", " day", ".", 0xF0, 0x9F, 0xA6, 0x9C, ""], drops_first_space=True)
    tokens = [(0.0, 0), (0.08, 1), (0.16, 8), (0.4, 2), (0.48, 3), (0.56, 4), (0.64, 5), (0.72, 6), (0.8, 7)]
    assert words_of(tokens, pieces) == [Word("good", 0.0), Word("day.🦜", 0.4)]


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    assert words_of([(0.0, 0)], TextPieces([0xF0], drops_first_space=False)) == [Word("\ufffd", 0.0)]
