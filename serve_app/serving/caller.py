"""One caller's way through admission, as its gateway walks it: asked, told to wait, let in, gone."""

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol, Self

from serve_app.admission.answers import AdmissionRequest, Answer, EngineName, Granted, Refused, Wait, refuses
from serve_app.errors import ChorusError, EngineLost
from serve_app.serving.granted import Admitted, Past
from serve_app.serving.knock import Knock, Opened
from serve_app.units import SessionId

PATIENCE_S: Final = 120.0
"""So long a caller that waits is kept while there is no authority: a busy machine takes half a minute to start one."""

Tell = Callable[[Mapping[str, Any]], Awaitable[None]]
"""Sends a metadata message to the client."""
Sleep = Callable[[float], Awaitable[None]]


class Host(Protocol):
    """The admission host, over Ray in the real thing. Raises EngineLost where it cannot be reached."""

    async def open(self, knock: Knock, request: AdmissionRequest) -> Opened | ChorusError:
        """The first question."""
        ...

    async def again(self, request: AdmissionRequest, hold_s: float) -> Answer:
        """The next ones."""
        ...

    async def confirm(self, granted: Granted) -> bool:
        """The engine gave the slot."""
        ...

    async def leave(self, session: SessionId, audio_s: float | None) -> None:
        """It is over."""
        ...


class Caller:
    """Asks for one session, and gives back what it got. Belongs to one event loop.

    Args:
        host: whom to ask.
        model: which is wanted.
        rows: of the batch.
        parameters: names of those that the client set.
        clock: monotonic seconds.
        sleep: `asyncio.sleep`, or a test's own.
    """

    def __init__(
        self,
        host: Host,
        model: str,
        rows: int,
        parameters: frozenset[str],
        clock: Callable[[], float],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._host = host
        self._clock = clock
        self._sleep = sleep
        self._request = AdmissionRequest(SessionId(secrets.token_hex(16)), "", model, rows, parameters)
        self._answer: Answer | None = None
        self._asked_s: float | None = None
        self._live_s: float | None = None
        self._lived_s = 0.0
        self._confirmed = False
        self._order: asyncio.Future[ChorusError] = asyncio.get_running_loop().create_future()

    @classmethod
    def back(cls, host: Host, past: Past, clock: Callable[[], float], sleep: Sleep = asyncio.sleep) -> Self:
        """One whose session came here from another gateway, or from another connection: let in long ago."""
        assert past.caller is not None, "nobody let it in"
        admitted = past.caller
        caller = cls(host, "", 1, frozenset(), clock, sleep)
        caller._request = dataclasses.replace(caller._request, session=admitted.session, tenant=admitted.tenant)
        caller._answer = Granted(caller._request, EngineName(admitted.engine), 0.0, admitted.longest_s)
        caller._asked_s = clock()
        caller._lived_s, caller._confirmed = past.lived_s, True
        return caller

    @property
    def session(self) -> SessionId:
        """Names it to authority and engine."""
        return self._request.session

    @property
    def tenant(self) -> str:
        """Empty until it is known."""
        return self._request.tenant

    @property
    def waits(self) -> bool:
        """Whether it was told to wait."""
        return isinstance(self._answer, Wait)

    @property
    def admitted(self) -> Admitted:
        """What the engine is told."""
        assert isinstance(self._answer, Granted), "not let in"
        return Admitted(self.session, self.tenant, self._answer.engine, self._answer.longest_s)

    async def open(self, knock: Knock) -> None:
        """Ask the first time. Raises the refusal, or EngineLost where nobody answers."""
        self._asked_s = self._clock()
        opened = await self._host.open(knock, self._request)
        if isinstance(opened, ChorusError):
            raise opened
        self._request = dataclasses.replace(self._request, tenant=opened.tenant)
        self._take(opened.answer)

    async def queue(self, tell: Tell) -> None:
        """Wait until it is let in, telling the client its place once a second. Raises the refusal."""
        assert self._asked_s is not None, "open first"
        answered_s = self._clock()
        while isinstance(self._answer, Wait):
            await tell(place_of(self._answer))
            asking = dataclasses.replace(self._request, waited_s=self._clock() - self._asked_s)
            hold_s = self._answer.ask_again_s
            answer = await self._again(asking, hold_s)
            if answer is not None:
                answered_s = self._clock()
                self._take(answer)
            elif self._clock() - answered_s > PATIENCE_S:
                raise EngineLost
            else:
                await self._sleep(hold_s)

    async def _again(self, asking: AdmissionRequest, hold_s: float) -> Answer | None:
        """None where nobody can tell: there is no authority, or one that has not heard of the engines yet."""
        try:
            answer = await self._host.again(asking, hold_s)
        except EngineLost:
            return None
        return None if refuses(answer, EngineLost) else answer

    async def confirm(self) -> None:
        """The engine has given the slot. Raises EngineLost: too late, the slot is another's."""
        assert isinstance(self._answer, Granted), "not let in"
        if not self._confirmed and not await self._host.confirm(self._answer):
            raise EngineLost

    async def leave(self) -> None:
        """Give everything back. Never raises: an authority that is gone forgets by itself."""
        if self._asked_s is None:
            return
        audio_s = None if self._live_s is None else self._clock() - self._live_s
        with contextlib.suppress(EngineLost):
            await self._host.leave(self.session, audio_s)

    def goes_live(self) -> None:
        """The handshake is out: its time begins, or goes on."""
        self._live_s = self._clock() - self._lived_s

    def end(self, why: ChorusError) -> None:
        """Somebody else decided that it ends. Idempotent."""
        if not self._order.done():
            self._order.set_result(why)

    async def mind_orders(self) -> None:
        """Live until `end` is called; raises why."""
        raise await asyncio.shield(self._order)

    @property
    def longest_s(self) -> float:
        """How long it may last."""
        assert isinstance(self._answer, Granted), "not let in"
        return self._answer.longest_s

    def _take(self, answer: Answer) -> None:
        if isinstance(answer, Refused):
            raise answer.error
        self._answer = answer


def place_of(wait: Wait) -> dict[str, Any]:
    """What a client that waits is told."""
    return {"queue": {"place": wait.place, "eta_s": None if wait.eta_s is None else round(wait.eta_s)}}
