"""One caller between its client and the authority."""

from collections.abc import Mapping
from typing import Any

import pytest

from serve_app.admission.answers import AdmissionRequest, Answer, EngineName, Granted, Refused, Wait
from serve_app.errors import ChorusError, DaySpent, EngineLost, NotAllowed, QueueFull
from serve_app.serving.caller import PATIENCE_S, Caller
from serve_app.serving.granted import Admitted, Past
from serve_app.serving.knock import Knock, Opened
from serve_app.units import SessionId
from tests.link.fakes import on_loop

KNOCK = Knock("key", None, None)
SOON = Wait(2, 41.4, 1.0)
NEXT = Wait(1, None, 1.0)
GRANT = "grant"
Script = list[Wait | ChorusError | str]


class Host:
    """Answers what it was made with, one after the other; an EngineLost in the script is an authority that is gone."""

    def __init__(self, script: Script, longest_s: float = 3_600.0) -> None:
        self.script = script
        self.longest_s = longest_s
        self.asked: list[AdmissionRequest] = []
        self.left: list[tuple[SessionId, float | None]] = []
        self.confirms = True
        self.raises = True

    def _next(self, request: AdmissionRequest) -> Answer:
        self.asked.append(request)
        said = self.script.pop(0)
        if isinstance(said, EngineLost) and self.raises:
            raise said
        if isinstance(said, ChorusError):
            return Refused(said)
        return said if isinstance(said, Wait) else Granted(request, EngineName("e"), 5.0, self.longest_s)

    async def open(self, knock: Knock, request: AdmissionRequest) -> Opened | ChorusError:
        return Opened("acme", self._next(request))

    async def again(self, request: AdmissionRequest, hold_s: float) -> Answer:
        return self._next(request)

    async def confirm(self, granted: Granted) -> bool:
        return self.confirms

    async def leave(self, session: SessionId, audio_s: float | None) -> None:
        self.left.append((session, audio_s))


class Stage:
    """A caller with a host, a client that listens and a clock that sleeping moves."""

    def __init__(self, script: Script, longest_s: float = 3_600.0) -> None:
        self.now_s = 0.0
        self.host = Host(script, longest_s)
        self.told: list[tuple[float, Mapping[str, Any]]] = []
        self.caller = Caller(self.host, "m", 1, frozenset({"seed"}), lambda: self.now_s, self.sleep)

    async def tell(self, value: Mapping[str, Any]) -> None:
        self.told.append((self.now_s, value))

    async def sleep(self, spent_s: float) -> None:
        self.now_s += spent_s


@on_loop
async def test_who_is_let_in_at_once_is_told_nothing() -> None:
    stage = Stage([GRANT])
    await stage.caller.open(KNOCK)
    assert not stage.caller.waits
    assert (stage.caller.admitted.tenant, stage.caller.admitted.engine) == ("acme", "e")
    assert stage.host.asked[0].parameters == {"seed"}


@on_loop
async def test_who_waits_is_told_its_place_until_it_is_let_in() -> None:
    stage = Stage([SOON, NEXT, GRANT])
    await stage.caller.open(KNOCK)
    await stage.caller.queue(stage.tell)
    assert [value for _, value in stage.told] == [
        {"queue": {"place": 2, "eta_s": 41}},
        {"queue": {"place": 1, "eta_s": None}},
    ]
    assert {asked.session for asked in stage.host.asked} == {stage.caller.session}
    assert {asked.tenant for asked in stage.host.asked[1:]} == {"acme"}


@on_loop
async def test_a_refusal_is_raised_whenever_it_comes() -> None:
    stage = Stage([SOON, QueueFull(3, 7.0)])
    await stage.caller.open(KNOCK)
    with pytest.raises(QueueFull):
        await stage.caller.queue(stage.tell)
    wrong = Stage([NotAllowed("no such tenant")])
    with pytest.raises(NotAllowed):
        await wrong.caller.open(KNOCK)


@pytest.mark.parametrize("raises", [True, False], ids=["nobody answers", "it knows of no engine yet"])
@on_loop
async def test_a_queue_outlives_its_authority_and_says_how_long_it_has_waited(raises: bool) -> None:
    stage = Stage([SOON, EngineLost(), EngineLost(), SOON, GRANT])
    stage.host.raises = raises
    await stage.caller.open(KNOCK)
    await stage.caller.queue(stage.tell)
    assert [asked.waited_s for asked in stage.host.asked] == [0.0, 0.0, 1.0, 2.0, 2.0]


@on_loop
async def test_a_queue_without_an_authority_ends() -> None:
    stage = Stage([SOON, *(EngineLost() for _ in range(200))])
    await stage.caller.open(KNOCK)
    with pytest.raises(EngineLost):
        await stage.caller.queue(stage.tell)
    assert stage.now_s == pytest.approx(PATIENCE_S, abs=2.0)


@on_loop
async def test_a_grant_that_came_too_late_is_an_engine_lost() -> None:
    stage = Stage([GRANT])
    await stage.caller.open(KNOCK)
    stage.host.confirms = False
    with pytest.raises(EngineLost):
        await stage.caller.confirm()


@on_loop
async def test_who_leaves_says_how_long_it_spoke_and_who_never_asked_says_nothing() -> None:
    stage = Stage([GRANT])
    await stage.caller.leave()
    assert stage.host.left == []
    await stage.caller.open(KNOCK)
    await stage.caller.leave()
    stage.caller.goes_live()
    stage.now_s += 9.0
    await stage.caller.leave()
    assert [spoken for _, spoken in stage.host.left] == [None, 9.0]


@on_loop
async def test_an_order_ends_it_with_its_reason() -> None:
    stage = Stage([GRANT])
    stage.caller.end(DaySpent(60.0, 5.0))
    stage.caller.end(EngineLost())
    with pytest.raises(DaySpent):
        await stage.caller.mind_orders()


@on_loop
async def test_a_session_that_came_back_is_let_in_no_second_time_and_spoke_as_long_as_it_lived() -> None:
    stage = Stage([])
    stage.host.confirms = False
    past = Past(Admitted(SessionId("s"), "acme", "e", 100.0), 70.0)
    caller = Caller.back(stage.host, past, lambda: stage.now_s, stage.sleep)
    assert (caller.session, caller.tenant, caller.waits) == ("s", "acme", False)
    await caller.confirm()
    caller.goes_live()
    stage.now_s += 30.0
    await caller.leave()
    assert stage.host.left == [("s", 100.0)]
    assert stage.host.asked == []
