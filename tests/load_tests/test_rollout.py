"""Callers of the rollout's measurement: what counts as told, as cut silently and as lost."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from websockets.asyncio.server import ServerConnection, serve

from load_tests.callers import Caller, newcomers
from load_tests.child import copy, edit
from load_tests.rollout import Outcome
from load_tests.speech import encoded
from serve_app.config import read_config
from serve_app.wire.events import Kind
from tests.client.loop import in_loop

GOING_AWAY = {"going_away": {"s": 5, "why": "rollout"}}
RETRY = {"error": {"reason": "draining", "retry_after_s": 5}}
SPEECH = encoded(None, 1.0)
CLEAN = Outcome(
    application="engine",
    engines=2,
    sessions=4,
    told=4,
    left=2,
    ended_at_the_deadline=2,
    ended_with_a_hint=2,
    cut_silently=0,
    frames_sent=100,
    frames_lost=0,
    frames_dropped=0,
    called_again_worst_s=0.1,
    newcomers=10,
    newcomer_p50_s=0.1,
    newcomer_worst_s=0.2,
    newcomer_worst_at_s=1.0,
    replicas_new_after_s=5.0,
    last_old_session_s=9.0,
    generator_late_p99_ms=1.0,
)


class Server:
    """Gives back every frame; from the sixth on the first session goes through what the test says.

    Args:
        words: metadata that is sent then.
        code: closed with it; None goes on, and 0 breaks the connection.
        deaf: frames are not answered any more.
    """

    def __init__(self, *words: dict[str, Any], code: int | None = None, deaf: bool = False) -> None:
        self._words = words
        self._code = code
        self._deaf = deaf
        self.sessions = 0
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Server"]:
        async with serve(self._talk, "127.0.0.1", 0, compression=None) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
            yield self

    async def _talk(self, socket: ServerConnection) -> None:
        self.sessions += 1
        first = self.sessions == 1
        await socket.send(bytes([Kind.HANDSHAKE]))
        heard = 0
        async for message in socket:
            heard += 1
            if not (first and self._deaf and heard > 1):
                await socket.send(message)
            if first and heard == 6:
                for word in self._words:
                    await socket.send(bytes([Kind.METADATA]) + json.dumps(word).encode())
                if self._code == 0:
                    socket.transport.abort()
                elif self._code is not None:
                    await socket.close(self._code, "draining")


async def talked(server: Server, *, obeys: bool) -> Caller:
    """A caller that talks until it has called twice, or is sent away for good."""
    async with server.running():
        caller, over = Caller(server.url, SPEECH, obeys=obeys), asyncio.Event()
        talking = asyncio.create_task(caller.talk(over))
        while len(caller.visits) < 2:
            await asyncio.sleep(0.01)
        over.set()
        await talking
    return caller


@in_loop
async def test_who_obeys_finishes_leaves_and_calls_again() -> None:
    caller = await talked(Server(GOING_AWAY), obeys=True)
    first = caller.visits[0]
    assert (first.told_s, first.code, first.silent, first.lost) == (5.0, None, False, 0)
    assert first.account.received > 6


@in_loop
async def test_who_stays_is_sent_away_with_a_hint() -> None:
    caller = await talked(Server(GOING_AWAY, RETRY, code=1012), obeys=False)
    first = caller.visits[0]
    assert (first.told_s, first.code, first.hint, first.silent, first.lost) == (5.0, 1012, True, False, 0)


@pytest.mark.parametrize("code", [0, 1012])
def test_an_end_before_any_word_is_a_silent_cut(code: int) -> None:
    @in_loop
    async def talk() -> None:
        caller = await talked(Server(code=code), obeys=True)
        first = caller.visits[0]
        assert first.silent
        assert first.code == (code or 1006)

    talk()


@in_loop
async def test_frames_without_an_answer_are_lost() -> None:
    caller = await talked(Server(GOING_AWAY, deaf=True), obeys=True)
    assert caller.visits[0].lost > 6


@in_loop
async def test_newcomers_come_until_it_is_over() -> None:
    async with Server().running() as server:
        over = asyncio.Event()
        coming = asyncio.create_task(newcomers(server.url, over))
        while server.sessions < 3:
            await asyncio.sleep(0.01)
        over.set()
        took_s = await coming
    assert len(took_s) >= 2
    assert all(0 < spent_s < 5 for spent_s, _ in took_s)
    assert [began_s for _, began_s in took_s] == sorted(began_s for _, began_s in took_s)


@pytest.mark.parametrize(
    ("wrong", "clean"),
    [({}, True), ({"told": 3}, False), ({"cut_silently": 1}, False), ({"ended_with_a_hint": 1}, False)],
)
def test_a_rollout_is_clean_when_everybody_was_told(wrong: dict[str, int], clean: bool) -> None:
    assert dataclasses.replace(CLEAN, **wrong).clean is clean  # type: ignore[arg-type]


def test_the_copy_of_a_file_is_edited_and_the_file_is_not(tmp_path: Path) -> None:
    made = copy(Path("configs/demo.yaml"), tmp_path)
    edit(made, "engine", {"drain_s": 7.0, "engines": 2})
    assert read_config(made).engine.drain_s == 7.0
    assert read_config(Path("configs/demo.yaml")).engine.engines == 1
    assert {entry["name"] for entry in yaml.safe_load(made.read_text())["applications"]} == {"engine", "gateway"}
