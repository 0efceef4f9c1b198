import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests.fuzz_opus import sealed
from serve_app.audio.ogg import MAX_PACKET_BYTES, Flag, OggPager, PacketJoiner, Page, PageWriter, checksum
from serve_app.audio.problems import AudioProblem, ProblemKind
from tests.audio.streams import page, sphn_messages

PACKETS = st.lists(st.binary(max_size=700), min_size=1, max_size=10).filter(
    lambda packets: sum(len(packet) // 255 + 1 for packet in packets) <= 255
)


def pages_of(found: list[Page | AudioProblem]) -> list[Page]:
    return [one for one in found if isinstance(one, Page)]


def kinds_of(found: list[Page | AudioProblem]) -> list[ProblemKind]:
    return [one.kind for one in found if isinstance(one, AudioProblem)]


def naive_checksum(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x04C11DB7 if crc & 0x80000000 else 0)
            crc &= 0xFFFFFFFF
    return crc


@given(st.binary(max_size=100))
def test_fast_checksum_equals_the_definition(data: bytes) -> None:
    assert checksum(data) == naive_checksum(data)


def test_pages_of_the_reference_encoder_pass_the_checksum() -> None:
    found = OggPager().feed(b"".join(sphn_messages(5)))
    assert kinds_of(found) == []
    assert len(found) == 12


@given(PACKETS)
def test_what_is_written_is_read_back(packets: list[bytes]) -> None:
    (found,) = pages_of(OggPager().feed(PageWriter(7).page(packets, granule=5, flags=Flag.LAST)))
    assert found == Page(Flag.LAST, 5, 7, 0, tuple(packets), open_ended=False)


@given(st.lists(st.integers(1, 400), max_size=40), st.integers(0, 50))
def test_any_split_gives_the_same_pages(sizes: list[int], noise: int) -> None:
    data = b"Ogg" * noise + b"".join(sphn_messages(5))
    whole = OggPager().feed(data)
    pager = OggPager()
    found = []
    for size in sizes:
        found += pager.feed(data[:size])
        data = data[size:]
    found += pager.feed(data)
    assert pages_of(found) == pages_of(whole)


def test_damaged_page_costs_itself_alone() -> None:
    spoiled = bytearray(page(b"first"))
    spoiled[-1] ^= 1
    found = OggPager().feed(bytes(spoiled) + page(b"second"))
    assert kinds_of(found) == [ProblemKind.DAMAGED]
    assert [one.pieces for one in pages_of(found)] == [(b"second",)]


def test_page_that_claims_too_much_swallows_no_other() -> None:
    liar = bytearray(page(bytes(254 * 250)))
    pager = OggPager()
    assert pager.feed(bytes(liar[:300])) == []
    found = pager.feed(page(b"honest"))
    assert [one.pieces for one in pages_of(found)] == [(b"honest",)]


def test_cut_page_is_noticed_when_the_next_one_comes() -> None:
    pager = OggPager()
    pager.feed(page(b"cut short")[:-3])
    found = pager.feed(page(b"next"))
    assert kinds_of(found) == [ProblemKind.DAMAGED]
    assert [one.pieces for one in pages_of(found)] == [(b"next",)]


def test_page_without_a_checksum_is_taken() -> None:
    bare = page(b"simple")
    found = OggPager().feed(bare[:22] + bytes(4) + bare[26:])
    assert [one.pieces for one in pages_of(found)] == [(b"simple",)]


@pytest.mark.parametrize(("at", "value"), [(4, 1), (5, 8)])
def test_unknown_version_or_flag_is_damage(at: int, value: int) -> None:
    odd = bytearray(page(b"odd"))
    odd[at] = value
    assert kinds_of(OggPager().feed(sealed(bytes(odd)) + page(b"next"))) == [ProblemKind.DAMAGED]


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\x1aE\xdf\xa3\x9fB\x86\x81", "WebM"),
        (b"RIFF\x24\x00\x00\x00WAVE", "WAV"),
        (b"fLaC", "FLAC"),
        (b"ID3\x04", "MP3"),
        (b"\x00\x00\x00\x20ftypisom", "MP4"),
        (b"OpusHead\x01", "without Ogg pages"),
        (b"hello", "not Ogg"),
    ],
)
def test_container_that_is_not_ogg_is_named(start: bytes, name: str) -> None:
    (problem,) = OggPager().feed(start + bytes(100))
    assert isinstance(problem, AudioProblem)
    assert problem.kind is ProblemKind.NOT_OGG
    assert name in problem.detail


@given(st.lists(st.binary(max_size=400) | st.just(b"OggS\0"), max_size=30))
def test_any_bytes_leave_the_pager_able_to_hear_the_next_pages(chunks: list[bytes]) -> None:
    pager = OggPager()
    for chunk in chunks:
        pager.feed(chunk)
    heard = [one for _ in range(3) for one in pages_of(pager.feed(page(b"still here")))]
    assert (b"still here",) in [one.pieces for one in heard]


def test_hostile_candidates_cost_bounded_work() -> None:
    fake = b"OggS" + bytes(22) + b"\xff" + b"\xff" * 255
    found = OggPager().feed((b"OggS\0\0" + b"\1" * 20 + b"\0") * 2_000 + fake)
    assert len(found) <= 10


CLAIM = b"OggS\0\0" + bytes(20) + b"\xff" + b"\xff" * 255
"""The beginning of a page of 65,307 bytes."""

HOARDS = {
    "nested claims": CLAIM * 130,
    "claims behind one": CLAIM + b"OggS\0\0" * 6_000,
    "unread headers": CLAIM + b"OggS" * 9_000,
    "claims that end one after another": (b"OggS\0\0" + bytes(16) + b"\1\0\0\0\x96" + b"\xff" * 150) * 7
    + bytes(36_700),
}


@pytest.mark.parametrize("hoard", HOARDS.values(), ids=HOARDS.keys())
def test_bytes_that_drip_after_a_hostile_message_cost_no_new_scan(hoard: bytes) -> None:
    pager = OggPager()
    pager.feed(hoard)
    checks, summed = pager.checks, pager.summed_bytes
    for _ in range(2_000):
        pager.feed(b"\0")
    assert pager.checks - checks <= 2_000
    assert pager.summed_bytes - summed <= 20 * (len(hoard) + 2_000)


HOSTILE_PIECES = st.sampled_from(
    [b"OggS", b"OggS\0\0", CLAIM, CLAIM[:40], page(b"whole"), page(b"cut")[:-2], b"\0", b"x"]
)


@given(st.lists(st.tuples(HOSTILE_PIECES | st.binary(max_size=50), st.integers(1, 30)), max_size=40))
def test_work_is_linear_in_what_is_fed(steps: list[tuple[bytes, int]]) -> None:
    pager = OggPager()
    fed = 0
    for piece, times in steps:
        pager.feed(piece * times)
        fed += len(piece * times)
        assert pager.checks <= fed
        assert pager.summed_bytes <= 20 * fed


@pytest.mark.parametrize("name", ["nested claims", "claims behind one", "unread headers"])
def test_hoard_of_claims_is_reported_and_thrown_away(name: str) -> None:
    pager = OggPager()
    assert set(kinds_of(pager.feed(HOARDS[name]))) == {ProblemKind.DAMAGED}
    assert pager.pending_bytes == 0


def test_page_behind_two_that_were_cut_is_found() -> None:
    pager = OggPager()
    pager.feed(page(bytes(600))[:300])
    pager.feed(page(bytes(500))[:290])
    assert [one.pieces for one in pages_of(pager.feed(page(b"honest")))] == [(b"honest",)]


def test_pager_holds_no_more_than_one_page() -> None:
    pager = OggPager()
    rng = np.random.default_rng(0)
    for _ in range(200):
        pager.feed(b"OggS\0\0" + bytes(20) + b"\xff" + b"\xff" * 255 + rng.bytes(2_000))
    assert pager.pending_bytes <= 65_307 + 2_300


def split_page(packet: bytes, at: int) -> list[bytes]:
    """One packet over two pages; ``at`` is a multiple of 255."""
    first = bytearray(PageWriter(1).page([packet[:at]], granule=0))
    first = first[:26] + bytes([first[26] - 1]) + first[27 : 27 + first[26] - 1] + first[27 + first[26] :]
    second = PageWriter(1).page([packet[at:]], granule=0, flags=Flag.CONTINUED)
    return [sealed(bytes(first)), second]


def joined(*raw: bytes) -> list[bytes]:
    joiner = PacketJoiner()
    return [packet for one in pages_of(OggPager().feed(b"".join(raw))) for packet in joiner.push(one)]


@pytest.mark.parametrize("size", [300, 510, 700])
def test_packet_over_two_pages_is_joined(size: int) -> None:
    packet = np.random.default_rng(0).bytes(size)
    assert joined(*split_page(packet, 255), page(b"next")) == [packet, b"next"]


def test_packet_without_its_beginning_or_end_is_dropped() -> None:
    first, second = split_page(bytes(600), 255)
    assert joined(second, page(b"next")) == [b"next"]
    assert joined(first, page(b"next")) == [b"next"]


def test_packet_that_never_ends_is_dropped_as_it_grows() -> None:
    first, _ = split_page(bytes(600), 510)
    middle = sealed(first[:5] + bytes([Flag.CONTINUED]) + first[6:])
    joiner = PacketJoiner()
    for raw in [first] + [middle] * 100:
        for one in pages_of(OggPager().feed(raw)):
            assert joiner.push(one) == []
            assert joiner.pending_bytes <= MAX_PACKET_BYTES
