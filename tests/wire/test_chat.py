import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import MessageTooLarge, PeerError, ProtocolAbuse
from serve_app.wire.chat import (
    ABUSE_LIMIT,
    ABUSE_WINDOW_S,
    BYTE_BURST,
    MESSAGE_BURST,
    MESSAGE_RATE_HZ,
    ChatClient,
    ChatServer,
    ChatState,
)
from serve_app.wire.events import (
    Action,
    Audio,
    Control,
    DiscardCause,
    Discarded,
    EarlyAudio,
    ErrorText,
    Handshake,
    Metadata,
    Ping,
    Text,
    UnreadMetadata,
)
from serve_app.wire.messages import MAX_MESSAGE_BYTES, decode, encode_coloured_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
MESSAGES = st.binary(max_size=200) | st.text(max_size=50)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def live_server() -> ChatServer:
    server = ChatServer(Clock())
    server.handshake()
    return server


@given(st.binary(max_size=1000))
def test_audio_from_a_live_client_arrives_unchanged(payload: bytes) -> None:
    assert live_server().receive(ChatClient(Clock()).audio(payload)) == [Audio(payload)]


def test_audio_before_the_handshake_is_marked_early() -> None:
    assert ChatServer(Clock()).receive(b"\x01OggS") == [EarlyAudio(b"OggS")]


def test_early_audio_is_no_abuse() -> None:
    server = ChatServer(Clock())
    for _ in range(2 * ABUSE_LIMIT):
        server.receive(b"\x01OggS")
    assert server.discarded == {}


@pytest.mark.parametrize("action", Action)
def test_every_control_survives_the_wire(action: Action) -> None:
    assert live_server().receive(ChatClient(Clock()).control(action)) == [Control(action)]


@given(JSON)
def test_metadata_survives_the_wire_both_ways(value: object) -> None:
    server, client = live_server(), ChatClient(Clock())
    assert client.receive(server.metadata(value)) == [Metadata(value)]
    (event,) = server.receive(client.metadata(value))
    assert isinstance(event, UnreadMetadata)
    assert decode(b"\x04" + event.payload) == Metadata(value)


def test_server_does_not_parse_the_metadata_that_it_does_not_read() -> None:
    assert live_server().receive(b"\x04[[[[") == [UnreadMetadata(b"[[[[")]


def test_metadata_refuses_what_browsers_cannot_parse() -> None:
    with pytest.raises(ValueError):
        live_server().metadata({"lag": float("nan")})


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_text_and_errors_survive_the_wire(text: str) -> None:
    server, client = live_server(), ChatClient(Clock())
    assert client.receive(server.text(text)) == [Text(text)]
    assert client.receive(server.error(text)) == [ErrorText(text)]


def test_ping_survives_the_wire_both_ways() -> None:
    server, client = live_server(), ChatClient(Clock())
    assert server.receive(client.ping()) == [Ping()]
    assert client.receive(server.ping()) == [Ping()]


def test_coloured_text_keeps_its_colour() -> None:
    assert ChatClient(Clock()).receive(encode_coloured_text("ja", 5)) == [Text("ja", colour=5)]


def test_handshake_is_the_kind_and_two_zero_words() -> None:
    assert ChatServer(Clock()).handshake() == bytes(9)


@pytest.mark.parametrize("message", [b"\x00", b"\x00\x00\x00", bytes(9)], ids=["python", "typescript", "rust"])
def test_client_goes_live_on_every_known_handshake(message: bytes) -> None:
    client = ChatClient(Clock())
    assert client.receive(message) == [Handshake(0, 0)]
    assert client.state is ChatState.LIVE


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (b"", DiscardCause.EMPTY),
        ("hello", DiscardCause.TEXT_FRAME),
        ("", DiscardCause.TEXT_FRAME),
        (b"\x08", DiscardCause.UNKNOWN_KIND),
        (b"\xff\x00", DiscardCause.UNKNOWN_KIND),
        (bytes(9), DiscardCause.UNEXPECTED_KIND),
        (b"\x02hi", DiscardCause.UNEXPECTED_KIND),
        (b"\x05no", DiscardCause.UNEXPECTED_KIND),
        (b"\x07\x05hi", DiscardCause.UNEXPECTED_KIND),
        (b"\x07", DiscardCause.MALFORMED),
        (b"\x03", DiscardCause.MALFORMED),
        (b"\x03\x09", DiscardCause.MALFORMED),
        (b"\x03\x00\x00", DiscardCause.MALFORMED),
    ],
)
def test_meaningless_message_is_discarded_and_counted(message: bytes | str, cause: DiscardCause) -> None:
    server = live_server()
    assert server.receive(message) == [Discarded(cause)]
    assert server.discarded == {cause: 1}


@pytest.mark.parametrize("json_like", [b"", b"{", b"\xff\xfe\xfa", b"NaN", b"[" * 60_000, b"9" * 60_000])
def test_client_discards_metadata_that_is_no_json(json_like: bytes) -> None:
    assert ChatClient(Clock()).receive(b"\x04" + json_like) == [Discarded(DiscardCause.MALFORMED)]


def test_hundred_discarded_within_the_window_are_abuse() -> None:
    server = live_server()
    for _ in range(ABUSE_LIMIT - 1):
        server.receive("hello")
    with pytest.raises(ProtocolAbuse) as caught:
        server.receive(b"")
    assert caught.value.close_code == 1008
    assert server.state is ChatState.CLOSED


def test_discarded_at_a_slow_pace_are_no_abuse() -> None:
    clock = Clock()
    server = ChatServer(clock)
    for _ in range(3 * ABUSE_LIMIT):
        server.receive("hello")
        clock.now_s += 1.01 * ABUSE_WINDOW_S / (ABUSE_LIMIT - 1)
    assert server.discarded[DiscardCause.TEXT_FRAME] == 3 * ABUSE_LIMIT


MEANINGFUL = {"ping": b"\x06", "control": b"\x03\x00", "metadata": b"\x04{}", "empty audio": b"\x01"}


@pytest.mark.parametrize("message", MEANINGFUL.values(), ids=MEANINGFUL.keys())
def test_flood_of_messages_that_mean_something_is_abuse_too(message: bytes) -> None:
    server = live_server()
    for _ in range(int(MESSAGE_BURST)):
        server.receive(message)
    with pytest.raises(ProtocolAbuse, match="100 messages a second") as caught:
        server.receive(message)
    assert caught.value.close_code == 1008
    assert server.state is ChatState.CLOSED


def test_flood_of_bytes_in_few_messages_is_abuse() -> None:
    server = live_server()
    message = b"\x01" + bytes(MAX_MESSAGE_BYTES - 1)
    for _ in range(int(BYTE_BURST) // len(message)):
        server.receive(message)
    with pytest.raises(ProtocolAbuse, match="bytes a second"):
        server.receive(message)


def test_steady_messages_at_the_rate_are_no_abuse() -> None:
    clock = Clock()
    server = ChatServer(clock)
    server.handshake()
    for _ in range(10 * int(MESSAGE_BURST)):
        assert server.receive(b"\x06") == [Ping()]
        clock.now_s += 1.001 / MESSAGE_RATE_HZ


def test_five_seconds_of_speech_at_once_are_no_abuse() -> None:
    server = live_server()
    for _ in range(int(5.0 / 0.02)):  # 20 ms a message at 510 kb/s
        server.receive(b"\x01" + bytes(1_300))


@pytest.mark.parametrize("message", [b"\x01" + bytes(MAX_MESSAGE_BYTES), "x" * (MAX_MESSAGE_BYTES + 1)])
def test_message_over_the_cap_is_refused(message: bytes | str) -> None:
    server = live_server()
    with pytest.raises(MessageTooLarge) as caught:
        server.receive(message)
    assert caught.value.close_code == 1009


def test_message_at_the_cap_is_taken() -> None:
    payload = bytes(MAX_MESSAGE_BYTES - 1)
    assert live_server().receive(b"\x01" + payload) == [Audio(payload)]


def test_nothing_is_heard_after_the_end() -> None:
    server = live_server()
    server.close()
    assert server.receive(b"\x01OggS") == []
    assert server.receive("x" * (MAX_MESSAGE_BYTES + 1)) == []


def test_second_handshake_is_our_mistake() -> None:
    server = live_server()
    with pytest.raises(AssertionError):
        server.handshake()


def test_audio_before_the_handshake_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        ChatServer(Clock()).audio(b"")


def test_error_and_metadata_need_no_handshake() -> None:
    server = ChatServer(Clock())
    assert server.error("full") == b"\x05full"
    assert json.loads(server.metadata({"model": "demo"})[1:]) == {"model": "demo"}


@given(st.lists(MESSAGES, max_size=150), st.booleans())
def test_any_messages_raise_nothing_but_a_peer_error(received: list[bytes | str], live: bool) -> None:
    server, client = ChatServer(Clock()), ChatClient(Clock())
    if live:
        server.handshake()
    for side in (server, client):
        for message in received:
            try:
                assert len(side.receive(message)) <= 1
            except PeerError:
                assert side.state is ChatState.CLOSED
