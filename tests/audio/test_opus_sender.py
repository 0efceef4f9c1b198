import io

import av
import numpy as np
import pytest
import sphn

from serve_app.audio.budget import audio_budget
from serve_app.audio.codec import Encoder
from serve_app.audio.frames import Pcm
from serve_app.audio.ogg import Flag, OggPager, Page
from serve_app.audio.opus import OpusReceiver, OpusSender
from serve_app.audio.packet import duration_samples
from serve_app.units import FRAME_S, FRAME_SAMPLES, SAMPLE_RATE_HZ
from tests.audio.streams import Clock, sound, sphn_pcm

FRAMES = 25


def sent(pcm: Pcm) -> tuple[bytes, ...]:
    sender = OpusSender()
    return tuple(sender.encode(frame) for frame in pcm.reshape(-1, FRAME_SAMPLES))


def pages(messages: tuple[bytes, ...]) -> list[Page]:
    found = OggPager().feed(b"".join(messages))
    assert all(isinstance(one, Page) for one in found)
    return [one for one in found if isinstance(one, Page)]


def test_reference_reader_hears_every_frame_at_once() -> None:
    reader = sphn.OpusStreamReader(SAMPLE_RATE_HZ)
    assert [len(reader.append_bytes(message)) for message in sent(sound(FRAMES))] == [FRAME_SAMPLES] * FRAMES


def test_sound_survives_with_two_and_a_half_milliseconds_of_delay() -> None:
    said = sound(FRAMES)
    heard = sphn_pcm(sent(said))
    assert np.corrcoef(heard[60:], said[:-60])[0, 1] > 0.98


def test_whole_file_is_ogg_opus_to_ffmpegs_eyes() -> None:
    with av.open(io.BytesIO(b"".join(sent(sound(FRAMES)))), mode="r") as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.codec_context.channels) == ("opus", 1)
        assert stream.codec_context.sample_rate == 48_000
        samples = sum(frame.samples for frame in container.decode(stream))
    assert samples == pytest.approx(FRAMES * FRAME_SAMPLES * 2, abs=1_000)


def test_headers_come_once_and_first() -> None:
    first, second, *rest = pages(sent(sound(3)))
    assert first.flags is Flag.FIRST
    assert first.pieces[0].startswith(b"OpusHead\x01\x01")
    assert second.pieces[0].startswith(b"OpusTags")
    assert len(rest) == 6


def test_pages_hold_one_packet_of_forty_milliseconds_and_count_on() -> None:
    audio = pages(sent(sound(FRAMES)))[2:]
    assert [[duration_samples(packet) for packet in one.pieces] for one in audio] == [[1_920]] * (2 * FRAMES)
    assert [one.granule for one in audio] == [1_920 * (index + 1) for index in range(2 * FRAMES)]
    assert [one.sequence for one in audio] == list(range(2, 2 * FRAMES + 2))


def test_our_receiver_hears_our_sender() -> None:
    messages = sent(sound(FRAMES))
    receiver = OpusReceiver(audio_budget(), Clock())
    heard = np.concatenate([frame for message in messages for frame in receiver.feed(message).frames])
    np.testing.assert_array_equal(heard, sphn_pcm(messages))


def test_header_names_mono_and_the_true_look_ahead() -> None:
    header = Encoder().head
    assert header[9] == 1
    assert int.from_bytes(header[10:12], "little") == 120  # 2.5 ms at 48 kHz


def test_traffic_counts_the_pages_of_sound() -> None:
    sender = OpusSender()
    first, *rest = [sender.encode(frame) for frame in sound(FRAMES).reshape(-1, FRAME_SAMPLES)]
    sound_of_first = first[first.index(b"OggS", first.index(b"OpusTags")) :]
    assert sender.traffic.payload_bytes == len(sound_of_first) + sum(map(len, rest))
    assert sender.traffic.audio_s == pytest.approx(FRAMES * FRAME_S)
    assert 35 < sender.traffic.kbps < 50


def test_frame_of_another_length_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        OpusSender().encode(np.zeros(960, np.float32))


def test_frame_that_is_a_strided_view_is_taken() -> None:
    stereo = np.stack([sound(1), np.zeros(FRAME_SAMPLES, np.float32)], 1)
    assert len(OpusSender().encode(stereo[:, 0])) > 200
