"""What one step of a conversation becomes on the wire."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from serve_app.checkpoint.text import TextPieces
from serve_app.link.channel import Channel
from serve_app.link.messages import Ended, Key, Output
from serve_app.serving.connection import Connection
from serve_app.units import FRAME_SAMPLES

KEY = Key(0, 0)
AUDIO, TEXT, METADATA = 1, 2, 4


class FakeSocket:
    """Hears nothing; keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    async def send_bytes(self, data: bytes) -> None:
        self.sent.append(data)

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        pass


def said(output: Output) -> list[bytes]:
    """Everything that the client gets for one step, the handshake and the goodbye left out."""

    async def talk() -> list[bytes]:
        socket, channel = FakeSocket(), Channel(KEY, lambda message: None)

        async def attach() -> Channel:
            channel.deliver(output)
            channel.deliver(Ended(KEY))
            return channel

        text = TextPieces([" yes"] * 10, drops_first_space=True).stream()
        await Connection(socket, attach, text, lambda: 0.0, silence_s=10.0).run()
        return socket.sent[1:-2]  # it ends with when to come again, and why

    return asyncio.run(asyncio.wait_for(talk(), 10))


def step(*, audible: bool = True, heads: list[list[float]] | None = None, token: int = 5) -> Output:
    return Output(
        key=KEY,
        number=0,
        step=7,
        text_token=token,
        ready_s=0.0,
        started_s=0.0,
        done_s=0.0,
        codes=np.zeros(0, np.int16),
        pcm=np.zeros(FRAME_SAMPLES, np.float32) if audible else None,
        heads=np.array(heads, np.float32) if heads is not None else None,
    )


def test_audio_comes_before_the_text_of_its_step() -> None:
    assert [message[0] for message in said(step())] == [AUDIO, TEXT]


def test_a_model_that_writes_and_does_not_speak_is_read() -> None:
    assert said(step(audible=False)) == [bytes([TEXT]) + b"yes"]


def test_nothing_is_sent_while_the_delay_has_not_passed() -> None:
    assert said(step(audible=False, token=-2)) == []


@pytest.mark.parametrize("audible", [True, False])
def test_heads_come_as_metadata_with_their_step(audible: bool) -> None:
    (message,) = [one for one in said(step(audible=audible, heads=[[0.25, 0.75]])) if one[0] == METADATA]
    assert json.loads(message[1:]) == {"type": "heads", "step": 7, "heads": [[0.25, 0.75]]}
