"""How a visitor left: with a word, or without.

In HAProxy mode Ray reads ahead for the end of a WebSocket and cancels its handler when it sees it, so a visitor that
closes properly looks like one whose connection broke. What Ray has read can still be received; its code tells.
"""

import asyncio
import contextlib
from typing import Any, Final

from fastapi import WebSocketDisconnect

from serve_app.serving.connection import ClientLeftError, Socket

PROPER_CODES: Final = (1000, 1001, 1005)
"""Done, going away (a page is closed), and a close without a code."""
REREAD_S: Final = 0.1


class WatchedSocket:
    """A WebSocket that remembers the code with which its visitor left.

    Args:
        socket: what a connection reads and writes.
    """

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._code: int | None = None
        self._wordless = False

    async def receive(self) -> Any:
        """As the socket's."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            self._code = int(message.get("code") or 1005)
            # uvicorn says 1005 also of a connection that broke, and then gives no reason, not even an empty one.
            self._wordless = self._code == 1005 and "reason" not in message
        return message

    async def send_bytes(self, data: bytes) -> None:
        """As the socket's. Raises ClientLeftError when there is nobody to send to."""
        try:
            await self._socket.send_bytes(data)
        except WebSocketDisconnect as gone:
            if self._code is None:
                self._code = gone.code
            raise ClientLeftError from gone

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        """As the socket's."""
        await self._socket.close(code, reason)

    async def left_properly(self) -> bool:
        """Whether the visitor closed; reads what is still there, for a handler that was cancelled and reads no more."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(REREAD_S):
                while self._code is None:
                    await self.receive()
        return self._code in PROPER_CODES

    async def broke(self) -> bool:
        """Whether nobody closed: its visitor may want to come back."""
        return not await self.left_properly() or self._wordless
