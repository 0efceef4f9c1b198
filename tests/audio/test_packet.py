import pytest
import sphn
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio.packet import MAX_PACKET_SAMPLES, duration_samples, head_streams
from serve_app.units import SAMPLE_RATE_HZ
from tests.audio.streams import head, page


@pytest.mark.parametrize(
    ("packet", "samples"),
    [
        (b"\x00" + bytes(9), 480),  # SILK 10 ms
        (b"\x18" + bytes(9), 2_880),  # SILK 60 ms
        (b"\x60" + bytes(9), 480),  # hybrid 10 ms
        (b"\xf8" + bytes(9), 960),  # CELT 20 ms
        (b"\xe0" + bytes(9), 120),  # CELT 2.5 ms
        (b"\xf9" + bytes(8), 1_920),  # two equal
        (b"\xfa" + bytes(8), 1_920),  # two different
        (b"\xfb\x03" + bytes(9), 2_880),  # three
        (b"\xf8", 960),  # silence
    ],
)
def test_duration_is_read_from_the_first_bytes(packet: bytes, samples: int) -> None:
    assert duration_samples(packet) == samples


@pytest.mark.parametrize(
    "packet", [b"", b"\xfa", b"\xfb", b"\xfb\x00", b"\xfb\x07" + bytes(9), b"\x1b\x03" + bytes(9), b"\xf9" + bytes(9)]
)
def test_packet_that_breaks_the_format_has_no_duration(packet: bytes) -> None:
    assert duration_samples(packet) is None


@given(st.binary(max_size=300))
def test_what_the_decoder_makes_of_any_packet_lasts_as_long_as_it_says(packet: bytes) -> None:
    samples = duration_samples(packet)
    assert samples is None or 0 < samples <= MAX_PACKET_SAMPLES
    if samples is None:
        return
    reader = sphn.OpusStreamReader(SAMPLE_RATE_HZ)
    try:
        pcm = reader.append_bytes(page(packet))
    except ValueError:
        return
    assert len(pcm) * 2 == samples


@pytest.mark.parametrize(("packet", "streams"), [(head(), 1), (head(channels=2), 1), (head(channels=6, family=1), 3)])
def test_header_tells_its_streams(packet: bytes, streams: int) -> None:
    assert head_streams(packet) == streams


@pytest.mark.parametrize(
    "packet",
    [head()[:18], head(version=16), b"OpusHead", head(channels=0), head(channels=3), head(channels=6, family=1)[:-1]],
)
def test_header_that_is_cut_or_contradicts_itself_tells_nothing(packet: bytes) -> None:
    assert head_streams(packet) is None
