"""A client made of websockets and sphn alone: none of our own code on this side of the wire."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import sphn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

SAMPLE_RATE_HZ: Final = 24_000
FRAME_SAMPLES: Final = 1_920
FRAME_S: Final = 0.08
HANDSHAKE: Final = bytes(9)
TEST_S: Final = 120.0
VISITS: Final = 4
COME_AGAIN_S: Final = 1.0

Pcm = npt.NDArray[np.float32]


@dataclasses.dataclass(slots=True)
class Visitor:
    """One end of a conversation.

    Attributes:
        heard: decoded PCM.
        texts, metadata, errors: what else came.
        close_code: of the other side; None while open.
    """

    socket: ClientConnection
    encoder: Any = dataclasses.field(default_factory=lambda: sphn.OpusStreamWriter(SAMPLE_RATE_HZ))
    decoder: Any = dataclasses.field(default_factory=lambda: sphn.OpusStreamReader(SAMPLE_RATE_HZ))
    heard: list[Pcm] = dataclasses.field(default_factory=list)
    messages: int = 0
    texts: list[str] = dataclasses.field(default_factory=list)
    metadata: list[Any] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)
    close_code: int | None = None
    close_reason: str = ""

    async def say(self, pcm: Pcm) -> None:
        """Send any number of samples as one message."""
        await self.socket.send(b"\x01" + self.encoder.append_pcm(pcm))

    async def say_in_real_time(self, pcm: Pcm) -> None:
        """Send frame by frame, 80 ms apart."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for index in range(len(pcm) // FRAME_SAMPLES):
            await asyncio.sleep(max(0.0, began_s + index * FRAME_S - loop.time()))
            await self.say(pcm[index * FRAME_SAMPLES : (index + 1) * FRAME_SAMPLES])

    async def listen(self) -> None:
        """Take everything until the other side closes."""
        try:
            while True:
                self.take(await self.socket.recv())
        except ConnectionClosed as closed:
            if closed.rcvd is not None:  # else TCP was cut without a close frame, and there is no code
                self.close_code, self.close_reason = closed.rcvd.code, closed.rcvd.reason

    async def listen_for(self, messages: int) -> None:
        """Take until so many audio messages have come."""
        while self.messages < messages:
            self.take(await self.socket.recv())

    def take(self, message: str | bytes) -> None:
        assert isinstance(message, bytes)
        kind, payload = message[0], message[1:]
        match kind:
            case 1:
                self.messages += 1
                pcm = self.decoder.append_bytes(payload)
                if pcm is not None and len(pcm):
                    self.heard.append(pcm)
            case 2:
                self.texts.append(payload.decode())
            case 4:
                self.metadata.append(json.loads(payload))
            case 5:
                self.errors.append(payload.decode())
            case _:
                raise AssertionError(f"kind {kind} from the server")

    @property
    def pcm(self) -> Pcm:
        return np.concatenate(self.heard) if self.heard else np.zeros(0, np.float32)


@contextlib.asynccontextmanager
async def visit(address: str, **options: Any) -> AsyncIterator[Visitor]:
    """Open a conversation and wait for its handshake, in a queue if need be; come again when told to.

    On a machine that is busy with other things an engine may answer later than the gateway waits, and the authority
    may hear later than the engine that a slot is free. Bounded in time as a whole.
    """
    async with asyncio.timeout(TEST_S), await _connect(address, **options) as socket:
        visitor = Visitor(socket)
        while (message := await socket.recv()) != HANDSHAKE:
            visitor.take(message)
        assert not visitor.errors, visitor.errors
        yield visitor


async def _connect(address: str, **options: Any) -> ClientConnection:
    for _ in range(VISITS):
        try:
            return await connect(address, compression=None, **options)
        except InvalidStatus as refused:
            if refused.response.status_code != 503:
                raise
            await asyncio.sleep(COME_AGAIN_S)
    return await connect(address, compression=None, **options)


def tone(frequency_hz: float, frames: int) -> Pcm:
    """A sine of so many frames."""
    seconds = np.arange(frames * FRAME_SAMPLES) / SAMPLE_RATE_HZ
    return (0.3 * np.sin(2 * np.pi * frequency_hz * seconds)).astype(np.float32)


def loudest_hz(pcm: Pcm) -> float:
    """The frequency with the most energy."""
    spectrum = np.abs(np.fft.rfft(pcm))
    return float(np.fft.rfftfreq(len(pcm), 1 / SAMPLE_RATE_HZ)[int(np.argmax(spectrum))])
