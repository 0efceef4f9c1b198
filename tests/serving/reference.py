"""Kyutai's Python client, unmodified, on a fake sound card: a microphone with a script, a loudspeaker with a tape."""

import argparse
import asyncio
import collections
import contextlib
import importlib
import sys
import threading
import time
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Any, Final, Self

import aiohttp
import numpy as np
import numpy.typing as npt

from serve_app.units import FRAME_S, FRAME_SAMPLES
from tests import oracle

Pcm = npt.NDArray[np.float32]
Callback = Callable[[Pcm, int, object, object], None]

assert oracle.PUBLISHED_LM  # imported for what it does to ``moshi``: nothing is compiled, nothing unneeded is asked for

STOP_S: Final = 5.0
ATTEMPTS: Final = 5
PAUSE_S: Final = 1.0
AT_ONCE_FRAMES: Final = 2
"""What the sound card has already recorded when it is opened: said before any handshake can have come."""


class SoundCard:
    """What ``sounddevice`` is for the client.

    Args:
        spoken: frames ``float32[1920]`` that the microphone hears, one every 80 ms; silence after the last.

    Attributes:
        played: what the loudspeaker was given, silence included.
        said: how many frames of the script the microphone has given away.
    """

    def __init__(self, spoken: Sequence[Pcm]) -> None:
        self._spoken = collections.deque(spoken)
        self._silence = np.zeros(FRAME_SAMPLES, np.float32)
        self.played: list[Pcm] = []
        self.said = 0

    @property
    def module(self) -> types.ModuleType:
        """To be imported as ``sounddevice``."""
        module: Any = types.ModuleType("sounddevice")
        module.InputStream = lambda **options: _Stream(self._record, options["callback"], AT_ONCE_FRAMES)
        module.OutputStream = lambda **options: _Stream(self._play, options["callback"], 0)
        return module  # type: ignore[no-any-return]

    def _record(self, callback: Callback) -> None:
        scripted = bool(self._spoken)
        frame = self._spoken.popleft() if scripted else self._silence
        callback(frame[:, None], FRAME_SAMPLES, None, None)
        self.said += scripted

    def _play(self, callback: Callback) -> None:
        block = np.zeros((FRAME_SAMPLES, 1), np.float32)
        callback(block, FRAME_SAMPLES, None, None)
        self.played.append(block[:, 0])


class _Stream:
    """One direction: a thread that calls back every 80 ms while the stream is open."""

    def __init__(self, turn: Callable[[Callback], None], callback: Callback, at_once: int) -> None:
        self._turn = turn
        self._callback = callback
        self._at_once = at_once
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        for _ in range(self._at_once):
            self._turn(self._callback)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._closed.wait(max(0.0, due_s - time.monotonic())):
            self._turn(self._callback)
            due_s += FRAME_S


class Diary:
    """The client's printer: what a person would read."""

    def __init__(self) -> None:
        self.text = ""
        self.logged: list[tuple[str, str]] = []

    def print_header(self) -> None:
        pass

    def print_token(self, token: str) -> None:
        self.text += token

    def log(self, level: str, msg: str) -> None:
        self.logged.append((level, msg))

    def print_lag(self) -> None:
        pass

    def print_pending(self) -> None:
        pass


@contextlib.asynccontextmanager
async def reference_client(port: int, card: SoundCard) -> AsyncIterator[Diary]:
    """Run the client's own ``run`` against a server on this machine until the block ends.

    Raises whatever the client raises.
    """
    client = _import_client(card)
    diary = Diary()
    arguments = argparse.Namespace(url=None, https=False, host="127.0.0.1", port=port)
    running = asyncio.create_task(_persist(lambda: client.run(diary, arguments)))
    try:
        yield diary
        assert not running.done(), f"the client left early: {diary.logged}"
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def _persist(converse: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """As a person does who is told to come again: a busy machine may be too slow to find the slot that it has."""
    for _ in range(ATTEMPTS):
        try:
            return await converse()
        except aiohttp.WSServerHandshakeError as refusal:
            if refusal.status != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            await asyncio.sleep(PAUSE_S)
    raise AssertionError(f"refused {ATTEMPTS} times")


def _import_client(card: SoundCard) -> Any:
    """A fresh copy of the module that has this sound card."""
    before = sys.modules["sounddevice"]
    sys.modules["sounddevice"] = card.module
    sys.modules.pop("moshi.client", None)
    try:
        return importlib.import_module("moshi.client")
    finally:
        sys.modules["sounddevice"] = before
