"""One message, bytes to event and back. No state: who may say what and when is `chat.py`'s business."""

import json
import struct
from collections.abc import Callable
from typing import Final

from serve_app.wire.events import (
    Action,
    Audio,
    Control,
    ErrorText,
    Handshake,
    Kind,
    Metadata,
    Ping,
    Text,
)

MAX_MESSAGE_BYTES: Final = 64 * 1024
"""An 80 ms frame of Opus is about 300 bytes; a header page and a second of audio stay far below."""

_HANDSHAKE: Final = struct.Struct("<II")

Message = Handshake | Audio | Text | Control | Metadata | ErrorText | Ping


class MalformedError(ValueError):
    """The payload does not fit its kind. Never leaves this room: `chat.py` turns it into `Discarded`."""


def encode_handshake() -> bytes:
    """Kind 0 and eight zero bytes: protocol version and model, both u32.

    The reference servers disagree on the payload: Python sends none, Rust these eight bytes, the TypeScript encoder
    two. All published clients ignore it (web: any kind-0 message starts the microphone; Python: prints a warning for
    kind 0 whatever follows; Rust: matches the first byte). A client written after the protocol note reads the two
    u32; only this form satisfies that one as well.
    """
    return bytes([Kind.HANDSHAKE]) + _HANDSHAKE.pack(0, 0)


def encode_audio(payload: bytes) -> bytes:
    return b"\x01" + payload


def encode_text(text: str) -> bytes:
    return b"\x02" + text.encode()


def encode_coloured_text(text: str, colour: int) -> bytes:
    """Kind 7 as the web client decodes it; the web client's own encoder writes 02 05 instead."""
    return bytes([Kind.COLOURED_TEXT, colour]) + text.encode()


def encode_control(action: Action) -> bytes:
    return bytes([Kind.CONTROL, action])


def encode_metadata(value: object) -> bytes:
    """Raises ValueError for NaN and infinities: browsers refuse them as JSON."""
    return b"\x04" + json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()


def encode_error(text: str) -> bytes:
    return b"\x05" + text.encode()


def encode_ping() -> bytes:
    return b"\x06"


def decode(message: bytes) -> Message | None:
    """The event of one message that is not empty; None for an unknown kind.

    Raises:
        MalformedError: the payload does not fit the kind.
    """
    decoder = _DECODERS.get(message[0])
    return None if decoder is None else decoder(message[1:])


def _handshake(payload: bytes) -> Handshake:
    # Every length seen in the wild is accepted; a version is believed only where it was written in full.
    return Handshake(*_HANDSHAKE.unpack(payload)) if len(payload) == _HANDSHAKE.size else Handshake()


def _text(payload: bytes) -> Text:
    # Lossless for UTF-8; a server that cuts a character in half costs a replacement mark, not the message.
    return Text(payload.decode(errors="replace"))


def _control(payload: bytes) -> Control:
    if len(payload) != 1 or payload[0] not in list(Action):
        raise MalformedError
    return Control(Action(payload[0]))


def _metadata(payload: bytes) -> Metadata:
    try:
        return Metadata(json.loads(payload, parse_constant=_refuse_constant))
    except (ValueError, RecursionError) as error:
        raise MalformedError from error


def _refuse_constant(name: str) -> object:
    raise MalformedError(name)


def _coloured_text(payload: bytes) -> Text:
    if not payload:
        raise MalformedError
    return Text(payload[1:].decode(errors="replace"), colour=payload[0])


_DECODERS: Final[dict[int, Callable[[bytes], Message]]] = {
    Kind.HANDSHAKE: _handshake,
    Kind.AUDIO: Audio,
    Kind.TEXT: _text,
    Kind.CONTROL: _control,
    Kind.METADATA: _metadata,
    Kind.ERROR: lambda payload: ErrorText(payload.decode(errors="replace")),
    Kind.PING: lambda _payload: Ping(),
    Kind.COLOURED_TEXT: _coloured_text,
}
