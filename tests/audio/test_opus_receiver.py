import fractions

import av
import numpy as np
import pytest
from av.audio.codeccontext import AudioCodecContext

from serve_app.audio.budget import ERROR_BURST, audio_budget
from serve_app.audio.opus import OpusReceiver, OpusSender, Received, Traffic
from serve_app.audio.problems import ProblemKind
from serve_app.errors import AudioRefused
from serve_app.units import FRAME_S, FRAME_SAMPLES
from tests.audio.streams import Clock, headers, page, sound, sphn_messages, sphn_pcm

WEBM = b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81" + bytes(200)


def listen(messages: tuple[bytes, ...], receiver: OpusReceiver | None = None, clock: Clock | None = None) -> Received:
    """Feed at real-time pace and put everything together."""
    clock = clock or Clock()
    receiver = receiver or OpusReceiver(audio_budget(), clock)
    total = Received([], [], 0)
    for message in messages:
        got = receiver.feed(message)
        clock.now_s += FRAME_S
        total = Received(
            total.frames + got.frames, total.problems + got.problems, total.dropped_frames + got.dropped_frames
        )
    return total


def receiver() -> OpusReceiver:
    return OpusReceiver(audio_budget(), Clock())


def test_clean_stream_sounds_bit_identical_to_sphns_own_reader() -> None:
    messages = sphn_messages(50)
    got = listen(messages)
    np.testing.assert_array_equal(np.concatenate(got.frames), sphn_pcm(messages))
    assert (got.problems, got.dropped_frames) == ([], 0)


@pytest.mark.parametrize("size", [1, 7, 100, 333])
def test_split_of_the_bytes_does_not_matter(size: int) -> None:
    messages = sphn_messages(5)
    data = b"".join(messages)
    got = listen(tuple(data[begin : begin + size] for begin in range(0, len(data), size)))
    np.testing.assert_array_equal(np.concatenate(got.frames), sphn_pcm(messages))


def test_each_message_gives_its_frame_at_once() -> None:
    one = receiver()
    assert [len(one.feed(message).frames) for message in sphn_messages(5)] == [1] * 5


def test_stream_whose_header_was_skipped_still_decodes() -> None:
    messages = sphn_messages(20)
    one = receiver()
    assert one.skip(messages[0]).frames == []
    got = listen(messages[1:], one)
    assert (len(got.frames), got.problems) == (19, [])


def test_stream_whose_header_never_came_still_decodes() -> None:
    got = listen(sphn_messages(20)[1:])
    assert (len(got.frames), got.problems) == (19, [])


def test_page_cut_by_the_handshake_is_heard() -> None:
    first, second = sphn_messages(2)
    one = receiver()
    one.skip((first + second)[: len(first) + 10])
    got = one.feed((first + second)[len(first) + 10 :])
    assert (len(got.frames), got.problems) == (1, [])


def test_skipped_audio_costs_no_budget() -> None:
    one = receiver()
    for _ in range(10):
        for message in sphn_messages(20):
            one.skip(message)
    assert one.feed(sphn_messages(20)[1]).dropped_frames == 0


def test_second_stream_on_the_same_socket_is_heard() -> None:
    messages = sphn_messages(10)
    assert len(listen(messages + messages).frames) == 20


def test_stereo_is_mixed_down() -> None:
    codec = AudioCodecContext.create("libopus", "w")
    codec.sample_rate, codec.layout, codec.format, codec.bit_rate = 48_000, "stereo", "flt", 96_000
    codec.time_base = fractions.Fraction(1, 48_000)
    codec.open()
    left = 0.4 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    both = np.stack([left, np.zeros_like(left)], 1).astype(np.float32).reshape(1, -1)
    packets = []
    for begin in range(0, both.shape[1], 1_920):
        frame = av.AudioFrame.from_ndarray(both[:, begin : begin + 1_920], format="flt", layout="stereo")
        frame.sample_rate, frame.pts = 48_000, begin // 2
        packets += [bytes(packet) for packet in codec.encode(frame)]
    got = receiver().feed(headers(channels=2) + b"".join(page(packet) for packet in packets))
    assert got.problems == []
    loudness = float(np.sqrt(np.mean(np.square(np.concatenate(got.frames[2:])))))
    assert loudness == pytest.approx(0.4 / 2 / np.sqrt(2), rel=0.1)


def test_silence_packets_of_one_byte_are_heard_as_silence() -> None:
    got = receiver().feed(headers() + page(*[b"\xf8"] * 4))
    assert len(got.frames) == 1
    assert np.abs(got.frames[0]).max() < 1e-3


def test_empty_packet_is_refused_and_invents_no_audio() -> None:
    got = receiver().feed(headers() + page(b""))
    assert got.frames == []
    assert [problem.kind for problem in got.problems] == [ProblemKind.BAD_PACKET]


@pytest.mark.parametrize(
    ("payload", "kind", "word"),
    [
        (WEBM, ProblemKind.NOT_OGG, "WebM"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100), ProblemKind.NOT_OGG, "WAV"),
        (bytes(range(256)), ProblemKind.NOT_OGG, "not Ogg"),
        (page(b"xxxx").replace(b"xx", b"yy"), ProblemKind.DAMAGED, "damaged"),
        (headers(channels=6, family=1), ProblemKind.LAYOUT, "3 Opus streams"),
        (headers() + page(b"\xff\xff\xff"), ProblemKind.BAD_PACKET, "Opus packet"),
        (headers() + page(), ProblemKind.DAMAGED, "nothing in it"),
    ],
)
def test_trouble_is_named(payload: bytes, kind: ProblemKind, word: str) -> None:
    got = receiver().feed(payload)
    assert got.problems[0].kind is kind
    assert word in str(got.problems[0])


def test_ogg_with_another_codec_is_named_and_never_played() -> None:
    vorbis = bytearray(page(b"\x01vorbis" + bytes(20), serial=9))
    vorbis[5] = 2
    vorbis[22:26] = bytes(4)
    one = receiver()
    got = one.feed(bytes(vorbis) + page(b"\xf8", b"\xf8", b"\xf8", b"\xf8", serial=9))
    assert got.problems[0].detail.startswith("the Ogg stream holds Vorbis")
    assert got.frames == []


def test_each_kind_of_trouble_is_told_once() -> None:
    one = receiver()
    told = [one.feed(WEBM).problems for _ in range(5)]
    assert [len(problems) for problems in told] == [1, 0, 0, 0, 0]
    assert one.counts == {ProblemKind.NOT_OGG: 5}


def test_stream_that_is_not_opus_is_refused_when_its_errors_are_spent() -> None:
    one = receiver()
    for _ in range(int(ERROR_BURST)):
        one.feed(WEBM)
    with pytest.raises(AudioRefused, match="WebM") as caught:
        one.feed(WEBM)
    assert caught.value.close_code == 1007


def test_rare_stumbles_are_forgiven() -> None:
    clock = Clock()
    one = OpusReceiver(audio_budget(), clock)
    for _ in range(500):
        one.feed(b"stumble")
        clock.now_s += 11.0
    assert len(listen(sphn_messages(20), one, clock).frames) == 20


def test_bad_packet_costs_only_itself() -> None:
    messages = sphn_messages(20)
    spoiled = (*messages[:10], page(b"\xff\xff\xff"), *messages[10:])
    got = listen(spoiled)
    assert len(got.frames) == 20
    assert [problem.kind for problem in got.problems] == [ProblemKind.BAD_PACKET]


def test_message_of_more_than_a_second_gives_its_newest_second() -> None:
    messages = sphn_messages(50)
    got = receiver().feed(b"".join(messages))
    assert len(got.frames) == 12
    assert got.dropped_frames == 37  # 50 - 12.5, the half carried over
    wanted = sphn_pcm(messages)[-2 * FRAME_SAMPLES :]
    heard = np.concatenate(got.frames)[-FRAME_SAMPLES:]
    assert np.corrcoef(heard, wanted[: FRAME_SAMPLES + 960][-FRAME_SAMPLES:])[0, 1] > 0.9


def test_faster_than_the_budget_loses_the_excess_and_counts_it() -> None:
    clock = Clock()
    one = OpusReceiver(audio_budget(), clock)
    frames = dropped = 0
    for message in sphn_messages(50) * 8:  # 32 s of audio within 8 s
        got = one.feed(message)
        frames += len(got.frames)
        dropped += got.dropped_frames
        clock.now_s += FRAME_S / 4
    assert frames + dropped == pytest.approx(400, abs=2)
    assert frames == pytest.approx((5 + 1.25 * 8) / FRAME_S, abs=3)


def test_real_time_after_a_stall_of_five_seconds_loses_nothing() -> None:
    clock = Clock()
    clock.now_s = 5.0
    one = OpusReceiver(audio_budget(), clock)
    burst = [one.feed(message) for message in sphn_messages(60)]
    assert sum(got.dropped_frames for got in burst) == 0
    clock.now_s += 1.0
    assert sum(one.feed(message).dropped_frames for message in sphn_messages(12)[1:]) == 0


def test_amplifying_message_is_cut_to_one_second() -> None:
    packets = [b"\x1b\x02"] * 200  # 120 ms from two bytes
    got = receiver().feed(headers() + b"".join(page(packet) for packet in packets))
    assert len(got.frames) <= 13
    assert got.dropped_frames >= 250


def test_traffic_is_that_of_the_sound_heard() -> None:
    sender = OpusSender()
    one = receiver()
    listen(tuple(sender.encode(frame) for frame in sound(50).reshape(-1, FRAME_SAMPLES)), one)
    assert one.traffic.payload_bytes == sender.traffic.payload_bytes
    assert one.traffic.audio_s == pytest.approx(4.0)
    assert one.traffic.kbps == pytest.approx(8 * one.traffic.payload_bytes / 4_000)


def test_what_is_refused_early_or_too_fast_is_no_traffic() -> None:
    messages = sphn_messages(50)
    one = receiver()
    one.skip(messages[0])
    for _ in range(5):
        one.feed(WEBM * 100)
    assert one.traffic == Traffic()
    one.feed(b"".join(messages))
    assert one.traffic.audio_s == pytest.approx(1.0)
    assert 20 < one.traffic.kbps < 60


def test_traffic_is_of_the_last_seconds() -> None:
    traffic = Traffic()
    for _ in range(1_000):
        traffic.add(100_000, 0.08)
    for _ in range(125):
        traffic.add(400, 0.08)
    assert traffic.kbps == pytest.approx(40.0)
    assert 4.9 < traffic.audio_s < 10.1


def test_sound_of_less_than_a_frame_is_heard_all_the_same() -> None:
    assert receiver().feed(headers() + page(b"\xf8")).audio_s == pytest.approx(0.02)


def test_sound_survives_the_way_in() -> None:
    heard = np.concatenate(listen(sphn_messages(25)).frames)
    said = sound(25)
    assert np.corrcoef(heard[156:], said[:-156])[0, 1] > 0.85
