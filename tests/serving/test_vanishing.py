"""A visitor that vanishes at any point of the protocol leaves nothing behind: no slot, no row, no place in the queue.

Time stands still in the authority, so that nothing comes back by itself: whatever is free again was given back. The
application is left after so many turns of its loop as it has from the first question to a conversation.
"""

import os
from collections.abc import Callable
from typing import Any, Final

import pytest

from serve_app.serving.admission_host import AdmissionHost
from tests.link.fakes import on_loop
from tests.serving.alone import Alone, EngineHere, Visit, alone, turns

TURNS: Final = 60
"""From the question to the handshake it takes fewer."""
COARSE: Final = 7
SETTINGS: Final[dict[str, Any]] = {"queue": 5, "silence_s": 600.0}


def host(engine: EngineHere) -> AdmissionHost:
    return AdmissionHost(engine, None, queue=5, clock=lambda: 1_000.0, wall=lambda: 1e9, random=os.urandom)


def cut(visit: Visit) -> None:
    """As Ray does it behind HAProxy: it has read that the other side is gone, and cancels the handler."""
    visit.vanish()
    visit.task.cancel()


def close(visit: Visit) -> None:
    """As Ray's own proxy does it: the next message says so."""
    visit.vanish()


WAYS: Final = (cut, close)


async def gone(here: Alone, visit: Visit) -> None:
    await visit.end()
    await here.settled()


def assert_nothing_left(here: Alone, when: int) -> None:
    assert (here.used, here.counted) == (0, (0, 0)), f"after {when} turns"


@pytest.mark.parametrize("leave", WAYS)
@on_loop
async def test_who_vanishes_on_the_way_in_leaves_nothing(
    leave: Callable[[Visit], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alone(monkeypatch, host, SETTINGS, slots=1) as here:
        lives = 0
        for count in range(TURNS):
            visit = here.visit()
            await turns(count)
            lives += visit.live
            leave(visit)
            await gone(here, visit)
            assert_nothing_left(here, count)
        assert 0 < lives < TURNS  # some vanished before the handshake, some after


@pytest.mark.parametrize("leave", WAYS)
@on_loop
async def test_who_vanishes_as_it_is_let_in_from_the_queue_leaves_nothing(
    leave: Callable[[Visit], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alone(monkeypatch, host, SETTINGS, slots=1) as here:
        lives = 0
        for count in range(TURNS):
            first = here.visit()
            await first.until(lambda sent, first=first: first.live)  # type: ignore[misc]
            second = here.visit()
            await second.until(lambda sent, second=second: second.told_to_wait)  # type: ignore[misc]
            leave(first)
            await turns(count)
            lives += second.live
            leave(second)
            await gone(here, first)
            await gone(here, second)
            assert_nothing_left(here, count)
        assert 0 < lives < TURNS


@pytest.mark.parametrize("leave", WAYS)
@on_loop
async def test_when_the_first_in_the_queue_vanishes_as_it_is_let_in_the_next_comes_in(
    leave: Callable[[Visit], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alone(monkeypatch, host, SETTINGS, slots=1) as here:
        for count in range(0, TURNS, COARSE):
            first = here.visit()
            await first.until(lambda sent, first=first: first.live)  # type: ignore[misc]
            second, third = here.visit(), here.visit()
            await second.until(lambda sent, second=second: second.told_to_wait)  # type: ignore[misc]
            await third.until(lambda sent, third=third: third.told_to_wait)  # type: ignore[misc]
            leave(first)
            await turns(count)
            leave(second)
            await third.until(lambda sent, third=third: third.live)  # type: ignore[misc]
            for visit in (first, second, third):
                await gone(here, visit)
            assert_nothing_left(here, count)


@on_loop
async def test_a_crowd_that_vanishes_at_once_in_every_state_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with alone(monkeypatch, host, SETTINGS, slots=3) as here:
        for spread in range(1, 8):
            visits = []
            for _ in range(12):
                visits.append(here.visit())
                await turns(spread)
            for index, visit in enumerate(visits):
                WAYS[index % 2](visit)
            for visit in visits:
                await gone(here, visit)
            assert_nothing_left(here, spread)
