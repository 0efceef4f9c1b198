import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio.frames import FrameBuffer, Pcm
from serve_app.units import FRAME_SAMPLES


def ramp(count: int) -> Pcm:
    return np.arange(count, dtype=np.float32)


@given(st.lists(st.integers(0, 3 * FRAME_SAMPLES), max_size=12))
def test_any_chunking_gives_the_same_frames(sizes: list[int]) -> None:
    pcm = ramp(sum(sizes))
    buffer = FrameBuffer()
    frames = [frame for chunk in np.split(pcm, np.cumsum(sizes[:-1])) for frame in buffer.push(chunk)] if sizes else []
    whole = len(pcm) // FRAME_SAMPLES
    assert len(frames) == whole
    assert buffer.pending_samples == len(pcm) % FRAME_SAMPLES
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(frame, pcm[index * FRAME_SAMPLES : (index + 1) * FRAME_SAMPLES])


def test_frames_do_not_share_memory_with_the_input_or_each_other() -> None:
    pcm = ramp(2 * FRAME_SAMPLES)
    first, second = FrameBuffer().push(pcm)
    assert not np.shares_memory(first, pcm)
    assert not np.shares_memory(first, second)


def test_single_samples_make_a_frame() -> None:
    buffer = FrameBuffer()
    frames = [frame for sample in ramp(FRAME_SAMPLES) for frame in buffer.push(np.array([sample], np.float32))]
    np.testing.assert_array_equal(frames, [ramp(FRAME_SAMPLES)])
