"""The half of a connection that both ends share: bytes to messages, and an outbox to a transport."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Final, cast

from serve_app.errors import LinkError
from serve_app.link.codec import Decoder, encode
from serve_app.link.limits import LinkLimits
from serve_app.link.messages import Downward, Dropped, Hello, Message, Upward, Welcome
from serve_app.link.outbox import Outbox

WRITE_BYTES: Final = 256 * 1_024
KEEPALIVE_S: Final = 1  # a peer that vanished without a word is noticed within about 4 s
KEEPALIVE_PROBES: Final = 3
UNACKNOWLEDGED_MS: Final = 4_000


class Pipe(asyncio.Protocol):
    """One end of the link's TCP connection.

    Args:
        receive: called on the loop with each message; a LinkError out of it closes the connection.
        report: called on the loop for frames that this side's outbox dropped.
        lost: called on the loop once, when the connection is gone; with the LinkError when the peer broke the protocol.
        limits: bounds of the outbox, and of the time that closing takes.
    """

    def __init__(
        self,
        *,
        receive: Callable[[Message], None],
        report: Callable[[Dropped], None],
        lost: Callable[[LinkError | None], None],
        limits: LinkLimits,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._receive, self._report, self._lost = receive, report, lost
        self.gone = asyncio.Event()
        self._decoder = Decoder()
        self._close_s = limits.close_s
        self._outbox = Outbox(limits)
        self._transport: asyncio.Transport | None = None
        self._writable = True
        self._writing = False
        self._scheduled = False
        self._leaving: asyncio.TimerHandle | None = None
        self._error: LinkError | None = None

    def put(self, messages: Iterable[Upward | Downward]) -> None:
        """Queue messages, from any thread; a peer that leaves more unread than the bounds allow loses the connection.

        On the loop they are written at once, so that a burst within one turn fills no queue of an idle connection.
        From elsewhere the loop is woken, once however many there are.
        """
        if not self._outbox.put(messages):
            self._wake(self._overflow)
        elif threading.get_ident() == self._loop_thread:
            self._write()
        elif not self._scheduled:
            self._scheduled = True  # a race costs one more wake-up and loses none: flush clears it before it takes
            self._wake(self._flush)

    @property
    def waiting_bytes(self) -> int:
        """What waits in the outbox because the peer reads too slowly."""
        return self._outbox.waiting_bytes

    def say(self, message: Hello | Welcome) -> None:
        """Write at once. On the loop."""
        if self._transport is not None:
            self._transport.write(encode(message))

    def close(self) -> None:
        """Close once the peer has read what waits, or has not within ``limits.close_s``. On the loop; idempotent."""
        if self._leaving is None and not self.gone.is_set():
            self._leaving = self._loop.call_later(self._close_s, self.abort)
            self._write()

    def abort(self) -> None:
        """Close at once. On the loop."""
        if self._transport is not None:
            self._transport.abort()

    def _wake(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to write to
            self._loop.call_soon_threadsafe(callback)

    def _flush(self) -> None:
        self._scheduled = False
        self._write()

    def _write(self) -> None:
        if self._writing or self._transport is None or self._transport.is_closing():
            return
        self._writing = True  # what a report puts is written by this same loop
        while self._writable and len(self._outbox):
            data, lost = self._outbox.take(WRITE_BYTES)
            self._transport.write(data)
            for dropped in lost:
                self._report(dropped)
        self._writing = False
        if self._leaving is not None and not len(self._outbox):
            self._transport.close()  # which writes first what the transport holds

    def _overflow(self) -> None:
        self._error = LinkError("the peer does not read what it is sent")
        self.abort()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the socket up."""
        # uvloop's transports, which Ray's replicas get, have asyncio's methods but not its base class.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BYTES)
        peer = transport.get_extra_info("socket")
        if peer is not None:
            _set_options(peer)
        if self._leaving is not None:  # closed between the accept and now
            self.abort()

    def data_received(self, data: bytes) -> None:
        """Decode and dispatch; a LinkError closes the connection."""
        try:
            for message in self._decoder.feed(data):
                self._receive(message)
        except LinkError as error:
            self._error = error
            self.abort()

    def pause_writing(self) -> None:
        """The peer reads too slowly: keep it in the outbox, which is bounded."""
        self._writable = False

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._writable = True
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop what waits and tell the owner."""
        self._outbox.close()
        if self._leaving is not None:
            self._leaving.cancel()
        self.gone.set()
        self._lost(self._error)


def _set_options(peer: socket.socket) -> None:
    for level, option, value in (
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", KEEPALIVE_S),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", KEEPALIVE_S),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", KEEPALIVE_PROBES),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", UNACKNOWLEDGED_MS),
    ):
        if hasattr(socket, option):  # not every platform has the last four
            peer.setsockopt(level, getattr(socket, option), value)
