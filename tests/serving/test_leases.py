"""A slot is held exactly as long as somebody holds it: engine, desk, link and session without Ray."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import numpy as np
import pytest

from serve_app.engine.engine import Engine
from serve_app.engine.loop import EngineLoop
from serve_app.engine.runner import PassThroughRunner
from serve_app.errors import ChorusError, EngineDraining, EngineFull, EngineLate, EngineLost
from serve_app.link.client import EngineLink
from serve_app.link.messages import Output
from serve_app.link.port import Address, Grant
from serve_app.serving.directory import TextModel
from serve_app.serving.granted import Admitted, Answer, Granted
from serve_app.serving.lease_desk import LeaseDesk
from serve_app.serving.session import EngineLinks, Session
from serve_app.spec import SessionSpec
from serve_app.units import FRAME_SAMPLES, SessionId
from tests.link.fakes import on_loop

WAIT_S = 5.0
TEXT_MODEL = TextModel("digest", (0, 3))


class House:
    """One engine with its desk, and one gateway's links to it."""

    def __init__(self, engine: Engine, desk: LeaseDesk) -> None:
        self.engine = engine
        self.desk = desk
        self.links = EngineLinks()

    def session(self) -> Session:
        return Session(self.desk.lease, self.links, SessionSpec())

    async def until_free(self, slots: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while self.engine.stats().free != slots:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def house(slots: int, attach_s: float = WAIT_S, late: Callable[[], bool] = lambda: False) -> AsyncIterator[House]:
    engine = Engine(PassThroughRunner(slots), clock=time.monotonic)
    loop = EngineLoop(engine)
    desk = LeaseDesk(engine, attach_s=attach_s, text_model=TEXT_MODEL, late=late)
    server = await desk.listen("127.0.0.1", range(1))
    loop.start()
    made = House(engine, desk)
    try:
        yield made
    finally:
        await made.links.close()
        await server.close()
        loop.stop()


@on_loop
async def test_a_frame_goes_to_the_engine_and_back() -> None:
    async with house(1) as home:
        session = home.session()
        await session.lease(WAIT_S)
        channel = await session.attach(WAIT_S)
        frame = np.linspace(-1, 1, FRAME_SAMPLES, dtype=np.float32)
        channel.send(7, frame)
        output = await anext(channel.events())
        assert isinstance(output, Output)
        assert output.number == 7
        assert output.pcm is not None
        assert np.array_equal(output.pcm, frame)
        await session.close()
        await home.until_free(1)


@on_loop
async def test_a_full_engine_refuses_and_the_slot_is_there_again_after_a_close() -> None:
    async with house(1) as home:
        first, second = home.session(), home.session()
        await first.lease(WAIT_S)
        with pytest.raises(EngineFull):
            await second.lease(WAIT_S)
        await first.close()
        await second.lease(WAIT_S)
        await second.close()
        await home.until_free(1)


@on_loop
async def test_a_newcomer_gets_the_slot_of_one_who_is_just_leaving() -> None:
    async with house(1) as home:
        first, second = home.session(), home.session()
        await first.lease(WAIT_S)
        await first.attach(WAIT_S)
        coming = asyncio.create_task(second.lease(WAIT_S))
        await asyncio.sleep(0)
        await first.close()
        await coming
        await second.close()


@on_loop
async def test_a_lease_that_nobody_attaches_to_is_taken_back() -> None:
    async with house(1, attach_s=0.05) as home:
        session = home.session()
        await session.lease(WAIT_S)
        await home.until_free(1)
        with pytest.raises(ChorusError):
            await session.attach(WAIT_S)
        await session.close()


@on_loop
async def test_a_gateway_that_is_lost_frees_its_slots() -> None:
    async with house(2) as home:
        for _ in range(2):
            session = home.session()
            await session.lease(WAIT_S)
            await session.attach(WAIT_S)
        await home.links.close()
        await home.until_free(2)


@on_loop
async def test_a_connection_that_nobody_used_is_no_lost_engine() -> None:
    async with house(1) as home:
        address = (await home.session().lease(WAIT_S)).grant.address
        link = await home.links.to(address)
        await link.close()
        assert home.links.take_lost() == set()


@on_loop
async def test_an_engine_whose_connection_broke_is_told_once() -> None:
    async with house(1) as home:
        session = home.session()
        address = (await session.lease(WAIT_S)).grant.address
        await session.attach(WAIT_S)
        await (await home.links.to(address)).close()
        assert home.links.take_lost() == {f"{address.host}:{address.port}"}
        assert home.links.take_lost() == set()
        await session.close()


@on_loop
async def test_a_draining_engine_says_so() -> None:
    async with house(1) as home:
        home.engine.drain()
        with pytest.raises(EngineDraining):
            await home.session().lease(WAIT_S)


@on_loop
async def test_an_engine_that_misses_its_deadlines_takes_whom_an_authority_sent_and_nobody_else() -> None:
    late = True
    async with house(1, late=lambda: late) as home:
        with pytest.raises(EngineLate):
            await home.session().lease(WAIT_S)
        sent = home.session()
        await sent.lease(WAIT_S, Admitted(SessionId("s"), "acme", "here"))
        await sent.close()
        late = False
        recovered = home.session()
        await recovered.lease(WAIT_S)
        await recovered.close()


@on_loop
async def test_an_engine_that_does_not_answer_in_time_is_full_and_the_call_is_ended() -> None:
    ended = asyncio.Event()

    async def silent(spec: SessionSpec, caller: Admitted | None) -> AsyncGenerator[Answer, None]:
        try:
            await asyncio.Event().wait()
            yield EngineLost()
        finally:
            ended.set()

    with pytest.raises(EngineFull):
        await Session(silent, EngineLinks(), SessionSpec()).lease(0.01)
    await asyncio.wait_for(ended.wait(), WAIT_S)


@on_loop
async def test_a_call_that_fails_is_an_engine_lost() -> None:
    async def broken(spec: SessionSpec, caller: Admitted | None) -> AsyncGenerator[Answer, None]:
        raise RuntimeError("the actor died")
        yield EngineLost()

    with pytest.raises(EngineLost):
        await Session(broken, EngineLinks(), SessionSpec()).lease(WAIT_S)


@on_loop
async def test_attaching_is_bounded_whoever_is_slow() -> None:
    class Slow(EngineLinks):
        async def to(self, address: Address) -> EngineLink:
            await asyncio.Event().wait()
            raise AssertionError

    async def granting(spec: SessionSpec, caller: Admitted | None) -> AsyncGenerator[Answer, None]:
        yield Granted(Grant(Address("127.0.0.1", 1), 0, 0, b""))
        await asyncio.Event().wait()

    session = Session(granting, Slow(), SessionSpec())
    await session.lease(WAIT_S)
    with pytest.raises(EngineLost):
        async with asyncio.timeout(WAIT_S):
            await session.attach(0.01)
    await session.close()


@on_loop
async def test_a_grant_says_what_the_tokens_of_its_engine_mean() -> None:
    async with house(1) as home:
        assert (await home.session().lease(WAIT_S)).text_model == TEXT_MODEL


@on_loop
async def test_a_handler_that_is_cancelled_while_it_asks_leaves_no_slot_behind() -> None:
    async with house(1) as home:
        session = home.session()
        asking = asyncio.create_task(session.lease(WAIT_S))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        await session.close()
        await home.until_free(1)
