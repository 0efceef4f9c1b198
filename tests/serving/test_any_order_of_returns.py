"""Clients come, speak, are cut off, return, show old tokens and leave in any order.

No slot is lost, a used token opens nothing, and one that its client may still need opens its session.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Final, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve_app.engine.engine import Engine
from serve_app.engine.runner import PassThroughRunner
from serve_app.engine.slots import SlotState
from serve_app.errors import ChorusError, EngineFull, SessionGone
from serve_app.link.messages import Attach, Detach, Downward, Ended, Frame
from serve_app.link.port import Holdings
from serve_app.link.server import LinkServer
from serve_app.serving.granted import Admitted, Answer, Granted
from serve_app.serving.lease_desk import LeaseDesk
from serve_app.serving.resuming import Keeping, Returning, Token
from serve_app.spec import SessionSpec
from serve_app.units import SessionId
from tests.link.fakes import frame

SLOTS: Final = 3
GATEWAYS: Final = 2
GRACE_S: Final = 10.0
ATTACH_S: Final = 2.0

T = TypeVar("T")


class Gateway:
    """One peer of the link, without a socket."""

    def __init__(self, desk: LeaseDesk, server: LinkServer) -> None:
        self.heard: list[Downward] = []
        self.holdings = Holdings(desk._port, server._grants, self.heard.extend)
        server.connections.add(self)  # type: ignore[arg-type]


class Call:
    """One call for a slot, as Ray makes it: iterated to its end, or cancelled.

    Attributes:
        shown: the token that it came with.
    """

    def __init__(self, answers: AsyncGenerator[Answer, None], gateway: Gateway, shown: Token | None) -> None:
        self.shown = shown
        self.gateway = gateway
        self.answer: Answer | None = None
        self.attached = False
        self.task = asyncio.get_running_loop().create_task(self._iterate(answers))

    async def _iterate(self, answers: AsyncGenerator[Answer, None]) -> None:
        async with contextlib.aclosing(answers):
            async for answer in answers:
                self.answer = answer

    @property
    def granted(self) -> Granted | None:
        return self.answer if isinstance(self.answer, Granted) else None


class AnyOrderOfReturns(RuleBasedStateMachine):
    """The test is Ray, both gateways, the engine thread and the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now_s = 0.0
        self.loop.time = lambda: self.now_s  # type: ignore[method-assign]
        self.engine = Engine(PassThroughRunner(SLOTS), clock=lambda: self.now_s)
        self.calls: list[Call] = []
        self.owners: dict[Token, SessionId] = {}
        self.used: set[Token] = set()
        self.good: dict[SessionId, tuple[Token, Token | None]] = {}
        self.sessions = 0
        self.desk, self.server = self.run(self._open())
        self.gateways = [Gateway(self.desk, self.server) for _ in range(GATEWAYS)]

    async def _open(self) -> tuple[LeaseDesk, LinkServer]:
        desk = LeaseDesk(self.engine, attach_s=ATTACH_S)
        return desk, await desk.listen("127.0.0.1", range(1))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def settle(self) -> None:
        """Let everything that is due happen."""

        async def turns() -> None:
            for _ in range(8):
                await asyncio.sleep(0)

        self.run(turns())

    def ask(self, gateway: int, caller: Admitted | None, comeback: Keeping | Returning) -> Call:
        async def call() -> Call:
            shown = comeback.token if isinstance(comeback, Returning) else None
            return Call(self.desk.lease(SessionSpec(), caller, comeback), self.gateways[gateway], shown)

        made = self.run(call())
        self.settle()
        return made

    def note(self, call: Call) -> None:
        if call.granted is not None:
            self.calls.append(call)
            assert call.granted.way_back is not None
            owner = call.granted.past.caller if call.granted.past is not None else None
            name = owner.session if owner is not None else SessionId(f"s{self.sessions}")
            token = call.granted.way_back.token
            self.owners[token] = name
            self.good[name] = token, call.shown

    @rule(gateway=st.integers(0, GATEWAYS - 1), attach_it=st.booleans())
    def arrive(self, gateway: int, attach_it: bool) -> None:
        self.sessions += 1
        name = SessionId(f"s{self.sessions}")
        call = self.ask(gateway, Admitted(name, "acme", "engine"), Keeping(GRACE_S))
        if call.answer is None:  # all slots are taken: it waits a little for one that is about to be free
            self.pass_time(0.1)
        assert isinstance(call.answer, Granted | EngineFull)
        self.note(call)
        if attach_it and call.granted is not None:
            self.open(call)

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), gateway=st.integers(0, GATEWAYS - 1), attach_it=st.booleans())
    def come_back(self, data: st.DataObject, gateway: int, attach_it: bool) -> None:
        """With any token that was given lately, whether used, late or never told to its client."""
        token = data.draw(st.sampled_from(list(self.owners)[-2 * SLOTS :]))
        used = token in self.used
        call = self.ask(gateway, None, Returning(token))
        if isinstance(call.answer, ChorusError):
            assert isinstance(call.answer, SessionGone)
            assert used or token not in self.good[self.owners[token]] or not self.has_begun(self.owners[token])
            return
        assert not used, "its client was heard behind it"
        assert call.granted is not None
        assert call.granted.past is not None
        assert call.granted.past.caller is not None
        assert call.granted.past.caller.session == self.owners[token]
        self.note(call)
        if attach_it:
            self.open(call)

    def has_begun(self, name: SessionId) -> bool:
        """Whether the session is there and not about to end, and its handshake may have been sent."""
        leases = [held.lease for held in self.desk._held.values() if held.caller and held.caller.session == name]
        return any(self.engine._seats._held(lease, SlotState.LIVE, SlotState.PARKED) for lease in leases)

    def open(self, call: Call) -> None:
        self.attach_call(call)
        self.tick()

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def attach(self, data: st.DataObject) -> None:
        self.attach_call(data.draw(st.sampled_from(self.calls[-2 * SLOTS :])))

    def attach_call(self, call: Call) -> None:
        assert call.granted is not None
        if call.attached:
            return
        call.attached = True
        grant = call.granted.grant
        call.gateway.holdings.receive(Attach(grant.key, grant.token))
        self.settle()

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def speak(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.calls[-2 * SLOTS :]))
        assert call.granted is not None
        holdings, key = call.gateway.holdings, call.granted.grant.key
        if key in holdings._held and call.shown is not None:
            self.used.add(call.shown)
        holdings.receive(Frame(key, 0, frame(0.5)))
        self.settle()

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.calls[-2 * SLOTS :]))
        assert call.granted is not None
        call.gateway.holdings.receive(Detach(call.granted.grant.key))
        self.settle()

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.calls[-2 * SLOTS :])).task.cancel()
        self.settle()

    @rule(gateway=st.integers(0, GATEWAYS - 1))
    def lose_gateway(self, gateway: int) -> None:
        self.gateways[gateway].holdings.release()
        self.settle()

    @rule()
    def tick(self) -> None:
        self.engine.tick()
        self.settle()

    @rule(passed_s=st.sampled_from([0.1, 1.0, ATTACH_S, GRACE_S]))
    def pass_time(self, passed_s: float) -> None:
        self.now_s += passed_s
        self.settle()

    @invariant()
    def a_session_is_in_one_place_and_holds_one_slot(self) -> None:
        names = [session.session for session in self.desk.sessions()]
        assert len(names) == len(set(names)) <= SLOTS
        stats = self.engine.stats()
        assert stats.free + stats.leased + stats.live + stats.parked + stats.priming <= SLOTS
        held = [key for gateway in self.gateways for key in gateway.holdings._held]
        assert len({key.slot for key in held}) == len(held)

    @invariant()
    def the_end_of_a_lease_is_the_last_word_about_it(self) -> None:
        for gateway in self.gateways:
            ended = [message.key for message in gateway.heard if isinstance(message, Ended)]
            assert len(ended) == len(set(ended))
            for key in ended:
                about = [message for message in gateway.heard if message.key == key]
                assert isinstance(about[-1], Ended)

    def teardown(self) -> None:
        for call in self.calls:
            call.task.cancel()
        self.settle()
        for _ in range(2):
            self.pass_time(GRACE_S)
            self.tick()
        assert self.desk.sessions() == ()
        assert self.desk._held == {}
        assert self.engine.stats().free == SLOTS
        self.server.connections.clear()
        self.run(self.server.close())
        self.loop.close()


TestSlotsAreConservedAndUsedTokensOpenNothing = AnyOrderOfReturns.TestCase
