"""The link's codec: a law and a fuzz."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from serve_app.errors import (
    ChorusError,
    EngineDraining,
    EngineFull,
    EngineLost,
    LinkError,
    NotFinite,
    SessionFault,
    SessionMoved,
    StaleLease,
)
from serve_app.link.codec import MAX_MESSAGE_BYTES, Decoder, encode
from serve_app.link.messages import (
    MAX_CODES,
    TOKEN_BYTES,
    Attach,
    Detach,
    Dropped,
    Ended,
    Frame,
    Hello,
    Key,
    Message,
    Opened,
    Output,
    Welcome,
)
from serve_app.units import FRAME_SAMPLES
from tests.link.fakes import frame, output

KEY = Key(3, 7)
U16, U32 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)
I32, I64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
KEYS = st.builds(Key, U16, U32)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=250)
PCM = st_numpy.arrays(np.float32, FRAME_SAMPLES)
HEADS = st_numpy.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 80)))
CODES = st_numpy.arrays(np.int16, st.integers(0, MAX_CODES))
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, U16),
    st.builds(Welcome, U16),
    st.builds(Attach, KEYS, st.binary(min_size=TOKEN_BYTES, max_size=TOKEN_BYTES)),
    st.builds(Frame, KEYS, I64, PCM),
    st.builds(Detach, KEYS),
    st.builds(Opened, KEYS),
    st.builds(
        Output,
        key=KEYS,
        number=I64,
        step=I64,
        text_token=I32,
        ready_s=st.floats(allow_nan=False),
        started_s=st.floats(allow_nan=False),
        done_s=st.floats(allow_nan=False),
        codes=CODES,
        pcm=st.none() | PCM,
        heads=st.none() | HEADS,
    ),
    st.builds(Dropped, KEYS, U32, TEXTS),
    st.builds(Ended, KEYS, TEXTS, TEXTS),
)


@given(MESSAGES)
def test_decode_after_encode_is_identity(message: Message) -> None:
    assert Decoder().feed(encode(message)) == [message]


@given(MESSAGES)
def test_no_message_is_above_the_limit(message: Message) -> None:
    assert len(encode(message)) <= MAX_MESSAGE_BYTES


@given(st.lists(MESSAGES, max_size=4), st.data())
def test_any_chunking_gives_the_same_messages(messages: list[Message], data: st.DataObject) -> None:
    stream = b"".join(encode(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = Decoder()
    decoded: list[Message] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        decoded += decoder.feed(stream[start:end])
    assert decoded == messages


@given(st.binary(max_size=200))
def test_any_bytes_raise_nothing_but_a_link_error(data: bytes) -> None:
    try:
        Decoder().feed(data)
    except LinkError:
        return


@given(st.integers(0, 255), st.binary(max_size=64))
def test_any_body_of_any_kind_raises_nothing_but_a_link_error(kind: int, body: bytes) -> None:
    try:
        Decoder().feed(struct.pack("<IB", len(body) + 1, kind) + body)
    except LinkError:
        return


@given(MESSAGES, st.data())
def test_mutated_message_raises_nothing_but_a_link_error(message: Message, data: st.DataObject) -> None:
    mutated = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        Decoder().feed(bytes(mutated))
    except LinkError:
        return


@pytest.mark.parametrize("size", [0, MAX_MESSAGE_BYTES + 1, 2**32 - 1])
def test_length_out_of_bounds_is_refused_before_the_bytes_come(size: int) -> None:
    with pytest.raises(LinkError, match="the limit is"):
        Decoder().feed(struct.pack("<IB", size, 4))


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(LinkError, match="unknown kind 99"):
        Decoder().feed(struct.pack("<IB", 1, 99))


def test_body_with_bytes_too_many_is_refused() -> None:
    with pytest.raises(LinkError, match="2 bytes too many"):
        Decoder().feed(struct.pack("<IB", 9, 5) + bytes(8))


def test_body_that_ends_early_is_refused() -> None:
    with pytest.raises(LinkError, match="4 bytes early"):
        Decoder().feed(struct.pack("<IB", 3, 5) + bytes(2))


def test_hello_of_another_protocol_is_refused() -> None:
    with pytest.raises(LinkError, match="does not speak"):
        Decoder().feed(struct.pack("<IB4sH", 7, 1, b"HTTP", 1))


@pytest.mark.parametrize(
    "message",
    [
        Detach(Key(2**16, 0)),
        Detach(Key(-1, 0)),
        Frame(KEY, 2**63, frame(0.0)),
        Frame(KEY, 0, np.zeros(5, np.float32)),
        Attach(KEY, b"short"),
        output(KEY, 0, codes=range(MAX_CODES + 1)),
        output(KEY, 0, pcm=np.zeros(5, np.float32)),
        Dropped(KEY, -1, "lag"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_field_that_does_not_fit_is_refused_on_this_side(message: Message) -> None:
    with pytest.raises(LinkError):
        encode(message)


def test_long_text_is_cut_at_a_whole_character() -> None:
    (decoded,) = Decoder().feed(encode(Ended(KEY, "session_failed", "é" * 2_000)))
    assert decoded == Ended(KEY, "session_failed", "é" * 512)


def test_pcm_crosses_to_the_bit() -> None:
    pcm = np.random.default_rng(0).standard_normal(FRAME_SAMPLES).astype(np.float32)
    (decoded,) = Decoder().feed(encode(Frame(KEY, 1, pcm)))
    assert isinstance(decoded, Frame)
    assert decoded.pcm.dtype == np.float32
    assert decoded.pcm.tobytes() == pcm.tobytes()


@pytest.mark.parametrize(
    "error",
    [
        NotFinite("a value"),
        SessionFault("its sink raised"),
        EngineLost(),
        EngineDraining(),
        SessionMoved(),
        EngineFull(0),
        StaleLease(3, 7),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_is_typed_again_on_the_other_side(error: ChorusError) -> None:
    (decoded,) = Decoder().feed(encode(Ended.of(KEY, error)))
    assert isinstance(decoded, Ended)
    assert type(decoded.error) is type(error)
    assert str(decoded.error) == str(error)


def test_session_that_was_closed_has_no_error() -> None:
    assert Ended.of(KEY, None).error is None


def test_unknown_reason_is_a_session_fault() -> None:
    assert isinstance(Ended(KEY, "of_the_future", "why").error, SessionFault)


def test_token_is_in_no_repr() -> None:
    assert "secret" not in repr(Attach(KEY, b"secret"))
