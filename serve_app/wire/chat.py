"""The two sides of `/api/chat`, sans-IO: feed a message, get events; ask for a message, get bytes.

Neither side is thread-safe; each belongs to one connection.
"""

import collections
import enum
from collections.abc import Callable, Mapping
from typing import Final

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
    Metadata,
    Ping,
    ServerEvent,
    Text,
)

ABUSE_LIMIT: Final = 100
ABUSE_WINDOW_S: Final = 10.0


class ChatState(enum.Enum):
    """Where a connection stands. The same three for both sides."""

    WAITING = "waiting"
    LIVE = "live"
    CLOSED = "closed"


class _Step(enum.Enum):
    HANDSHAKE = "handshake"
    AUDIO_OUT = "audio_out"
    CLOSE = "close"


_MOVES: Final[Mapping[tuple[ChatState, _Step], ChatState]] = {
    (ChatState.WAITING, _Step.HANDSHAKE): ChatState.LIVE,
    (ChatState.WAITING, _Step.CLOSE): ChatState.CLOSED,
    (ChatState.LIVE, _Step.AUDIO_OUT): ChatState.LIVE,
    (ChatState.LIVE, _Step.CLOSE): ChatState.CLOSED,
    (ChatState.CLOSED, _Step.CLOSE): ChatState.CLOSED,
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
            raise ProtocolAbuse(len(self._recent_s), self._window_s)
        return Discarded(cause)


class ChatServer:
    """The server's side of one connection.

    Args:
        clock: seconds, monotonic; only the abuse window reads it.

    Attributes:
        discarded: how many messages meant nothing, by cause.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._log = DiscardLog(clock)
        self.state = ChatState.WAITING

    @property
    def discarded(self) -> Mapping[DiscardCause, int]:
        return self._log.counts

    def receive(self, message: bytes | str) -> list[ServerEvent]:
        """Parse one WebSocket message; a text frame comes in as ``str``.

        Raises:
            MessageTooLarge: over 64 KiB.
            ProtocolAbuse: 100 discarded messages within 10 s. The state is CLOSED after either error, and everything
                that still arrives is swallowed.
        """
        if self.state is ChatState.CLOSED:
            return []
        try:
            return [self._parse(message)]
        except (MessageTooLarge, ProtocolAbuse):
            self.close()
            raise

    def _parse(self, message: bytes | str) -> ServerEvent:
        event = _open(message, self._log)
        match event:
            case Audio(payload) if self.state is ChatState.WAITING:
                return EarlyAudio(payload)
            case Audio() | Control() | Metadata() | Ping() | Discarded():
                return event
            case Handshake() | Text() | ErrorText():  # only servers say these
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

    def metadata(self, value: object) -> bytes:
        """Any JSON value, in any state: the Rust backend also sends it before the handshake."""
        return messages.encode_metadata(value)

    def error(self, text: str) -> bytes:
        """A sentence for the person at the other end, in any state."""
        return messages.encode_error(text)

    def ping(self) -> bytes:
        return messages.encode_ping()

    def close(self) -> None:
        """The connection ended, whoever ended it. Idempotent."""
        self._move(_Step.CLOSE)

    def _move(self, step: _Step) -> None:
        after = _MOVES.get((self.state, step))
        assert after is not None, f"{step.value} in state {self.state.value}"
        self.state = after


class ChatClient:
    """The client's side of one connection: LIVE once the handshake has come.

    It may send audio before that, as the Python reference client does; a server drops it.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._log = DiscardLog(clock)
        self.state = ChatState.WAITING

    @property
    def discarded(self) -> Mapping[DiscardCause, int]:
        return self._log.counts

    def receive(self, message: bytes | str) -> list[ClientEvent]:
        """Raises MessageTooLarge and ProtocolAbuse as `ChatServer.receive` does."""
        if self.state is ChatState.CLOSED:
            return []
        try:
            event = _open(message, self._log)
        except (MessageTooLarge, ProtocolAbuse):
            self.close()
            raise
        if isinstance(event, Handshake):
            self.state = ChatState.LIVE
        return [event]

    def audio(self, payload: bytes) -> bytes:
        return messages.encode_audio(payload)

    def control(self, action: Action) -> bytes:
        return messages.encode_control(action)

    def metadata(self, value: object) -> bytes:
        return messages.encode_metadata(value)

    def ping(self) -> bytes:
        return messages.encode_ping()

    def close(self) -> None:
        self.state = ChatState.CLOSED


def _open(message: bytes | str, log: DiscardLog) -> messages.Message | Discarded:
    if len(message) > messages.MAX_MESSAGE_BYTES:
        raise MessageTooLarge(len(message), messages.MAX_MESSAGE_BYTES)
    if isinstance(message, str):
        return log.note(DiscardCause.TEXT_FRAME)
    if not message:
        return log.note(DiscardCause.EMPTY)
    try:
        event = messages.decode(message)
    except messages.MalformedError:
        return log.note(DiscardCause.MALFORMED)
    return log.note(DiscardCause.UNKNOWN_KIND) if event is None else event
