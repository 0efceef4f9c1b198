"""Messages to bytes and back, with no socket in sight.

On the wire: ``u32`` length of what follows, ``u8`` kind, then the kind's fields, little endian.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Final, assert_never

import numpy as np
import numpy.typing as npt

from serve_app.errors import LinkError
from serve_app.link.messages import (
    MAX_CODES,
    MAX_HEADS,
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

MAGIC: Final = b"CHRS"
MAX_MESSAGE_BYTES: Final = 16 * 1_024  # an Output with 256 codes and 1,024 values of extra heads is 12.4 kB
MAX_TEXT_BYTES: Final = 1_024
MAX_HEAD_VALUES: Final = 1_024

_HEADER = struct.Struct("<IB")
_HELLO = struct.Struct("<4sH")
_KEY = struct.Struct("<HI")
_NUMBER = struct.Struct("<q")
_OUTPUT = struct.Struct("<qqidddHBBB")
_FRAMES = struct.Struct("<I")
_TEXT = struct.Struct("<H")
_PCM = np.dtype("<f4")
_CODES = np.dtype("<i2")
_PCM_BYTES: Final = FRAME_SAMPLES * _PCM.itemsize

_HELLO_KIND, _WELCOME_KIND, _ATTACH_KIND, _FRAME_KIND, _DETACH_KIND = 1, 2, 3, 4, 5
_OPENED_KIND, _OUTPUT_KIND, _DROPPED_KIND, _ENDED_KIND = 16, 17, 18, 19


def encode(message: Message) -> bytes:
    """The message's bytes, length first. Raises LinkError for a field that does not fit."""
    try:
        kind, body = _body(message)
    except struct.error as error:
        raise LinkError(f"a field of {type(message).__name__} does not fit: {error}") from error
    return _HEADER.pack(1 + len(body), kind) + body


def _body(message: Message) -> tuple[int, bytes]:
    match message:
        case Hello(version):
            return _HELLO_KIND, _HELLO.pack(MAGIC, version)
        case Welcome(version):
            return _WELCOME_KIND, _HELLO.pack(MAGIC, version)
        case Attach(key, token):
            if len(token) != TOKEN_BYTES:
                raise LinkError(f"a token has {TOKEN_BYTES} bytes, got {len(token)}")
            return _ATTACH_KIND, _KEY.pack(*key) + token
        case Frame(key, number, pcm):
            return _FRAME_KIND, _KEY.pack(*key) + _NUMBER.pack(number) + _pcm_bytes(pcm)
        case Detach(key):
            return _DETACH_KIND, _KEY.pack(*key)
        case Opened(key):
            return _OPENED_KIND, _KEY.pack(*key)
        case Output():
            return _OUTPUT_KIND, _output_bytes(message)
        case Dropped(key, frames, cause):
            return _DROPPED_KIND, _KEY.pack(*key) + _FRAMES.pack(frames) + _text_bytes(cause)
        case Ended(key, reason, why):
            return _ENDED_KIND, _KEY.pack(*key) + _text_bytes(reason) + _text_bytes(why)
        case _:
            assert_never(message)


def _output_bytes(message: Output) -> bytes:
    codes = np.ascontiguousarray(message.codes, _CODES)
    if codes.ndim != 1 or codes.size > MAX_CODES:
        raise LinkError(f"codes of shape {list(codes.shape)}, want [K] with K up to {MAX_CODES}")
    heads = message.heads if message.heads is not None else np.zeros((0, 0), np.float32)
    if heads.ndim != 2 or max(heads.shape) > MAX_HEADS or heads.size > MAX_HEAD_VALUES:
        raise LinkError(f"heads of shape {list(heads.shape)}, want [H, C] with {MAX_HEAD_VALUES} values at most")
    fixed = _OUTPUT.pack(
        message.number,
        message.step,
        message.text_token,
        message.ready_s,
        message.started_s,
        message.done_s,
        codes.size,
        message.pcm is not None,
        *heads.shape,
    )
    pcm = _pcm_bytes(message.pcm) if message.pcm is not None else b""
    said = np.ascontiguousarray(heads, _PCM).tobytes()
    return b"".join((_KEY.pack(*message.key), fixed, codes.tobytes(), said, pcm))


def _pcm_bytes(pcm: npt.NDArray[np.float32]) -> bytes:
    if pcm.shape != (FRAME_SAMPLES,):
        raise LinkError(f"PCM of shape {list(pcm.shape)}, want [{FRAME_SAMPLES}]")
    return np.ascontiguousarray(pcm, _PCM).tobytes()


def _text_bytes(text: str) -> bytes:
    # "ignore" drops a character that the cut has split, and surrogates, which have no UTF-8.
    data = text.encode("utf-8", "ignore")[:MAX_TEXT_BYTES].decode("utf-8", "ignore").encode()
    return _TEXT.pack(len(data)) + data


class _Reader:
    """Takes fields off one message's bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fields(self, layout: struct.Struct) -> tuple[int | float | bytes, ...]:
        return layout.unpack(self.raw(layout.size))

    def integer(self, layout: struct.Struct) -> int:
        (value,) = layout.unpack(self.raw(layout.size))
        return int(value)

    def raw(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            raise LinkError(f"a message ends {size - len(piece)} bytes early")
        self._at += size
        return piece

    def key(self) -> Key:
        slot, generation = _KEY.unpack(self.raw(_KEY.size))
        return Key(slot, generation)

    def text(self) -> str:
        try:
            return self.raw(self.integer(_TEXT)).decode()
        except UnicodeDecodeError as error:
            raise LinkError("a text is not UTF-8") from error

    def pcm(self) -> npt.NDArray[np.float32]:
        return np.frombuffer(self.raw(_PCM_BYTES), _PCM)

    def end(self) -> None:
        if self._at != len(self._data):
            raise LinkError(f"a message has {len(self._data) - self._at} bytes too many")


def _version(reader: _Reader) -> int:
    magic, version = _HELLO.unpack(reader.raw(_HELLO.size))
    if magic != MAGIC:
        raise LinkError("the peer does not speak this protocol")
    return int(version)


def _output(reader: _Reader) -> Output:
    key = reader.key()
    fixed = reader.raw(_OUTPUT.size)
    number, step, token, ready_s, started_s, done_s, codes, has_pcm, heads, classes = _OUTPUT.unpack(fixed)
    if codes > MAX_CODES or has_pcm > 1 or heads * classes > MAX_HEAD_VALUES or bool(heads) != bool(classes):
        raise LinkError("an Output's counts are out of range")
    spoken = np.frombuffer(reader.raw(codes * _CODES.itemsize), _CODES)
    said = np.frombuffer(reader.raw(heads * classes * _PCM.itemsize), _PCM).reshape(heads, classes) if heads else None
    return Output(
        key=key,
        number=number,
        step=step,
        text_token=token,
        ready_s=ready_s,
        started_s=started_s,
        done_s=done_s,
        codes=spoken,
        heads=said,
        pcm=reader.pcm() if has_pcm else None,
    )


_PARSERS: Final[Mapping[int, Callable[[_Reader], Message]]] = {
    _HELLO_KIND: lambda reader: Hello(_version(reader)),
    _WELCOME_KIND: lambda reader: Welcome(_version(reader)),
    _ATTACH_KIND: lambda reader: Attach(reader.key(), reader.raw(TOKEN_BYTES)),
    _FRAME_KIND: lambda reader: Frame(reader.key(), reader.integer(_NUMBER), reader.pcm()),
    _DETACH_KIND: lambda reader: Detach(reader.key()),
    _OPENED_KIND: lambda reader: Opened(reader.key()),
    _OUTPUT_KIND: _output,
    _DROPPED_KIND: lambda reader: Dropped(reader.key(), reader.integer(_FRAMES), reader.text()),
    _ENDED_KIND: lambda reader: Ended(reader.key(), reader.text(), reader.text()),
}


class Decoder:
    """Bytes in any chunks in, messages out. Holds less than one message."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that these bytes complete; arrays in them are read-only.

        Raises LinkError for bytes that are no message; the decoder is of no use after that.
        """
        self._buffer += data
        messages = []
        at = 0
        while len(self._buffer) - at >= _HEADER.size:
            size, kind = _HEADER.unpack_from(self._buffer, at)
            if not 1 <= size <= MAX_MESSAGE_BYTES:
                raise LinkError(f"a message of {size} bytes; the limit is {MAX_MESSAGE_BYTES}")
            parse = _PARSERS.get(kind)
            if parse is None:
                raise LinkError(f"a message of unknown kind {kind}")
            start, end = at + _HEADER.size, at + _HEADER.size - 1 + size
            if len(self._buffer) < end:
                break
            reader = _Reader(bytes(self._buffer[start:end]))
            messages.append(parse(reader))
            reader.end()
            at = end
        del self._buffer[:at]
        return messages
