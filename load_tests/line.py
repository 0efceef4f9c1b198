"""One WebSocket to a chat on an ordinary blocking socket, for threads and for Locust's greenlets.

Messages that many sessions send are framed and masked once, before the clock starts: sending one is a system call. The
protocol is that of the ``websockets`` package without its I/O.
"""

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

CHUNK_BYTES: Final = 65_536
CLOSE_S: Final = 2.0
NORMAL: Final = 1000
ABNORMAL: Final = 1006
RESET: Final = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing throws away what is under way and sends a reset."""


class Refused(Exception):
    """The server's answer before the upgrade.

    Attributes:
        status: of HTTP; 0 where there was none.
        retry_after: what it said about coming again, or "".
    """

    def __init__(self, status: int, retry_after: str, why: str) -> None:
        super().__init__(status, retry_after, why)
        self.status, self.retry_after, self.why = status, retry_after, why

    def __str__(self) -> str:
        return f"HTTP {self.status}" if self.status else self.why


class LineLost(Exception):
    """The connection ended, and it was not this side's wish.

    Attributes:
        code: of the close frame; 1006 where there was none.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        return f"close {self.code}"


def framed(message: bytes) -> bytes:
    """A binary message as it goes over a client's socket: any number of sessions may send it."""
    return Frame(Opcode.BINARY, message).serialize(mask=True)


class Line:
    """A connection. One thread may send while another receives.

    Args:
        url: ``ws://`` or ``wss://``, whole.
        headers: of the request, such as a credential.
        timeout_s: for connecting and for the answer.

    Raises:
        Refused: another answer than 101, or no HTTP.
        OSError: nobody there, or not in time.
    """

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        self._protocol = ClientProtocol(parse_uri(url), max_size=None)
        self._sending = threading.Lock()
        self._early: list[bytes] = []  # what came in one piece with the answer to the handshake
        self._socket = _connected(url, timeout_s)
        try:
            self._shake_hands(headers)
        except BaseException:
            self._socket.close()
            raise
        self._socket.settimeout(None)

    def send(self, frame: bytes) -> None:
        """Send what :func:`framed` made.

        Raises:
            OSError: the connection is gone.
        """
        with self._sending:
            self._socket.sendall(frame)

    def receive(self, timeout_s: float | None = None) -> list[bytes]:
        """The messages that came; waits for the first. Pings are answered on the way.

        Raises:
            LineLost: the other side closed or went away.
            TimeoutError: nothing came.
        """
        if self._early:
            messages, self._early = self._early, []
            return messages
        while True:
            self._socket.settimeout(timeout_s)
            try:
                data = self._socket.recv(CHUNK_BYTES)
            except TimeoutError:
                raise
            except OSError:
                data = b""
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
            if messages := self._read():
                return messages
            if self._protocol.close_rcvd is not None or self._protocol.state is State.CLOSED:
                raise LineLost(self._protocol.close_code or ABNORMAL)

    def close(self) -> None:
        """End it properly: a close frame, the answer to it or two seconds, then TCP."""
        deadline_s = time.monotonic() + CLOSE_S
        with contextlib.suppress(OSError, LineLost):
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(NORMAL)
                self._flush()
                while True:
                    self.receive(max(0.001, deadline_s - time.monotonic()))
        self._socket.close()

    def abort(self) -> None:
        """End TCP with a reset and without a close frame, as a client does that crashed."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._socket.close()

    def _shake_hands(self, headers: Mapping[str, str]) -> None:
        request = self._protocol.connect()
        request.headers.update(headers)
        self._protocol.send_request(request)
        self._flush()
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            data = self._socket.recv(CHUNK_BYTES)
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
        match self._protocol.handshake_exc:
            case None:
                self._early = self._read()
            case InvalidStatus() as refusal:
                answer = refusal.response
                raise Refused(answer.status_code, answer.headers.get("Retry-After", ""), str(refusal))
            case InvalidHandshake() as problem:
                raise Refused(0, "", type(problem).__name__)
            case _:
                raise Refused(0, "", "no answer")

    def _read(self) -> list[bytes]:
        """Messages among what has just come in."""
        events = self._protocol.events_received()
        self._flush()
        return [bytes(event.data) for event in events if isinstance(event, Frame) and event.opcode is Opcode.BINARY]

    def _flush(self) -> None:
        """Send what the protocol has to say: the request, pongs, the close."""
        for data in self._protocol.data_to_send():
            with contextlib.suppress(OSError):
                if data:
                    self.send(data)
                elif self._protocol.state is State.CLOSED:
                    self._socket.shutdown(socket.SHUT_WR)


def _connected(url: str, timeout_s: float) -> socket.socket:
    parts = urlsplit(url)
    secure = parts.scheme == "wss"
    host = parts.hostname or ""
    plain = socket.create_connection((host, parts.port or (443 if secure else 80)), timeout_s)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host) if secure else plain
