"""The two sides of `/api/chat`, sans-IO: feed a message, get events; ask for a message, get bytes.

Neither side is thread-safe; each belongs to one connection.
"""

import collections
import enum
from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeVar

from serve_app.budget import Budget
from serve_app.errors import MessageTooLarge, ProtocolAbuse
from serve_app.wire import messages
from serve_app.wire.events import (
    Action,
    Audio,
    ClientEvent,
    Control,
    DiscardCause,
    Discarded,
    EarlyAudio,
    ErrorText,
    Handshake,
    Kind,
    Metadata,
    Ping,
    ServerEvent,
    Text,
    UnreadMetadata,
)

ABUSE_LIMIT: Final = 100
ABUSE_WINDOW_S: Final = 10.0
MESSAGE_RATE_HZ: Final = 100.0
"""A message for every 20 ms of sound is 50 a second; Kyutai's clients send 12.5 and 25."""
MESSAGE_BURST: Final = 500.0
BYTE_RATE: Final = 128.0 * 1024
"""Opus at its highest bit rate is half of it."""
BYTE_BURST: Final = 1024.0 * 1024


class ChatState(enum.Enum):
    """Where a connection stands. The same three for both sides."""

    WAITING = "waiting"
    LIVE = "live"
    CLOSED = "closed"


class _Step(enum.Enum):
    HANDSHAKE = "handshake"
    AUDIO_OUT = "audio_out"


_MOVES: Final[Mapping[tuple[ChatState, _Step], ChatState]] = {
    (ChatState.WAITING, _Step.HANDSHAKE): ChatState.LIVE,
    (ChatState.LIVE, _Step.AUDIO_OUT): ChatState.LIVE,
}
"""What a server may do when. A step that is missing here is our own mistake, never the peer's."""


class DiscardLog:
    """Counts meaningless messages and ends the patience with them.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float], limit: int = ABUSE_LIMIT, window_s: float = ABUSE_WINDOW_S) -> None:
        self._clock = clock
        self._window_s = window_s
        self._recent_s: collections.deque[float] = collections.deque(maxlen=limit)
        self.counts: collections.Counter[DiscardCause] = collections.Counter()

    def note(self, cause: DiscardCause) -> Discarded:
        """Raises ProtocolAbuse when this one fills the limit within the window."""
        self.counts[cause] += 1
        now_s = self._clock()
        self._recent_s.append(now_s)
        if len(self._recent_s) == self._recent_s.maxlen and now_s - self._recent_s[0] <= self._window_s:
            raise ProtocolAbuse(f"{len(self._recent_s)} meaningless messages in {self._window_s:g} s")
        return Discarded(cause)


class Allowance:
    """How many messages and bytes a peer may send, whatever they mean.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._messages = Budget(MESSAGE_RATE_HZ, MESSAGE_BURST)
        self._bytes = Budget(BYTE_RATE, BYTE_BURST)

    def take(self, size_bytes: int) -> None:
        """Raises ProtocolAbuse when a message of that size is too much."""
        now_s = self._clock()
        if not self._messages.take(1.0, now_s):
            raise ProtocolAbuse(f"more than {MESSAGE_RATE_HZ:g} messages a second")
        if not self._bytes.take(size_bytes, now_s):
            raise ProtocolAbuse(f"more than {BYTE_RATE:g} bytes a second")


_Event = TypeVar("_Event")


class _Side(Generic[_Event]):
    """What both sides share: the state, and the way of a message from the socket to its event.

    Attributes:
        state: where the connection stands.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._log = DiscardLog(clock)
        self.state = ChatState.WAITING

    @property
    def discarded(self) -> Mapping[DiscardCause, int]:
        """How many messages meant nothing, by cause."""
        return self._log.counts

    def receive(self, message: bytes | str) -> list[_Event]:
        """Parse one WebSocket message; a text frame comes in as ``str``.

        Raises:
            MessageTooLarge: over 64 KiB.
            ProtocolAbuse: 100 discarded messages within 10 s; for a server, also more than 100 messages or 128 KiB a
                second after the first 500 or 1 MiB. The state is CLOSED after either error, and everything that still
                arrives is swallowed.
        """
        if self.state is ChatState.CLOSED:
            return []
        try:
            if len(message) > messages.MAX_MESSAGE_BYTES:
                raise MessageTooLarge(len(message), messages.MAX_MESSAGE_BYTES)
            return [self._open(message)]
        except (MessageTooLarge, ProtocolAbuse):
            self.close()
            raise

    def close(self) -> None:
        """The connection ended, whoever ended it. Idempotent."""
        self.state = ChatState.CLOSED

    def metadata(self, value: object) -> bytes:
        """Any JSON value, in any state: the Rust backend also sends it before the handshake."""
        return messages.encode_metadata(value)

    def ping(self) -> bytes:
        return messages.encode_ping()

    def _open(self, message: bytes | str) -> _Event:
        raise NotImplementedError

    def _decode(self, message: bytes | str) -> messages.Message | Discarded:
        if isinstance(message, str):
            return self._log.note(DiscardCause.TEXT_FRAME)
        if not message:
            return self._log.note(DiscardCause.EMPTY)
        try:
            event = messages.decode(message)
        except messages.MalformedError:
            return self._log.note(DiscardCause.MALFORMED)
        return self._log.note(DiscardCause.UNKNOWN_KIND) if event is None else event


class ChatServer(_Side[ServerEvent]):
    """The server's side of one connection.

    Args:
        clock: seconds, monotonic; the limits on strangers read it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._allowance = Allowance(clock)

    def _open(self, message: bytes | str) -> ServerEvent:
        self._allowance.take(len(message))
        if isinstance(message, bytes) and message[:1] == bytes([Kind.METADATA]):
            return UnreadMetadata(message[1:])
        event = self._decode(message)
        match event:
            case Audio(payload) if self.state is ChatState.WAITING:
                return EarlyAudio(payload)
            case Audio() | Control() | Ping() | Discarded():
                return event
            case Handshake() | Text() | ErrorText() | Metadata():  # only servers say the first three
                return self._log.note(DiscardCause.UNEXPECTED_KIND)

    def handshake(self) -> bytes:
        """The session has its slot: the client may speak. Once only."""
        self._move(_Step.HANDSHAKE)
        return messages.encode_handshake()

    def audio(self, payload: bytes) -> bytes:
        self._move(_Step.AUDIO_OUT)
        return messages.encode_audio(payload)

    def text(self, text: str) -> bytes:
        self._move(_Step.AUDIO_OUT)
        return messages.encode_text(text)

    def error(self, text: str) -> bytes:
        """A sentence for the person at the other end, in any state."""
        return messages.encode_error(text)

    def _move(self, step: _Step) -> None:
        after = _MOVES.get((self.state, step))
        assert after is not None, f"{step.value} in state {self.state.value}"
        self.state = after


class ChatClient(_Side[ClientEvent]):
    """The client's side of one connection: LIVE once the handshake has come.

    It may send audio before that, as the Python reference client does; a server drops it.

    Args:
        clock: seconds, monotonic.
    """

    def _open(self, message: bytes | str) -> ClientEvent:
        event = self._decode(message)
        if isinstance(event, Handshake):
            self.state = ChatState.LIVE
        return event

    def audio(self, payload: bytes) -> bytes:
        return messages.encode_audio(payload)

    def control(self, action: Action) -> bytes:
        return messages.encode_control(action)
