"""The admission host with real files and a made-up cluster."""

import asyncio
import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.accounts.keys_file import KeysFile
from serve_app.admission.answers import AdmissionRequest, EngineName, Granted, Refused, Wait
from serve_app.admission.tickets import Ticket
from serve_app.admission.views import EngineView, LiveSession
from serve_app.config import TenancySettings
from serve_app.errors import (
    ChorusError,
    ConfigError,
    DaySpent,
    EngineLost,
    Forbidden,
    ModelUnknown,
    NotAllowed,
    QueueFull,
    TooManySessions,
)
from serve_app.serving.admission_host import SETTLE_S, AdmissionHost
from serve_app.serving.books import Books
from serve_app.serving.knock import Knock, Opened
from serve_app.units import SessionId
from tests.link.fakes import on_loop

MODEL = "m"
DAY_S = 86_400.0
PAGE = "https://a.example"
TENANTS = f"""
tenants:
  a: {{concurrent_sessions: 2, audio_s_per_day: 100, origins: ["{PAGE}"]}}
  b: {{concurrent_sessions: 9}}
"""


class Engines:
    """A directory of one engine."""

    def __init__(self, rows: int, *, successor: bool = False) -> None:
        self.view = EngineView(EngineName("e"), MODEL, rows)
        self.here = True
        self.successor = successor
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked = asyncio.Event()

    async def views(self) -> list[EngineView]:
        self.asked.set()
        await self.answers.wait()
        return [self.view] if self.here else []

    async def succeed(self) -> bool:
        return self.successor

    def lists(self, *sessions: LiveSession) -> None:
        self.view = dataclasses.replace(self.view, sessions=sessions)


class Town:
    """A host, its files and its clocks."""

    def __init__(self, folder: Path, rows: int = 1, *, queue: int = 5, successor: bool = False) -> None:
        self.now_s = 1_000.0
        self.folder = folder
        (folder / "tenants.yaml").write_text(TENANTS)
        self.keys = KeysFile(folder / "keys.json", self.wall, os.urandom)
        self.a, self.b = self.keys.create("a"), self.keys.create("b")
        self.engines = Engines(rows, successor=successor)
        self.settings = TenancySettings(
            file=str(folder / "tenants.yaml"),
            keys=str(folder / "keys.json"),
            ledger=f"sqlite:///{folder / 'ledger.sqlite'}",
        )
        self.books = Books.open(self.settings, self.wall, os.urandom)
        self.host = AdmissionHost(
            self.engines, self.books, queue=queue, clock=lambda: self.now_s, wall=self.wall, random=os.urandom
        )
        self._serial = itertools.count()

    def wall(self) -> float:
        return 20_000 * DAY_S + self.now_s

    def request(self, model: str = MODEL) -> AdmissionRequest:
        return AdmissionRequest(SessionId(f"s{next(self._serial)}"), "", model)

    async def enter(self, key: str) -> Granted:
        opened = await self.host.open(with_key(key), self.request())
        assert isinstance(opened, Opened)
        assert isinstance(opened.answer, Granted), opened.answer
        return opened.answer


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    made = Town(tmp_path)
    yield made
    made.books.ledger.close()


def with_key(key: str, origin: str | None = None) -> Knock:
    return Knock(key, None, origin)


def reason(told: object) -> ChorusError:
    """The error of a refusal, however it was said."""
    if isinstance(told, Opened):
        told = told.answer
    if isinstance(told, Refused):
        told = told.error
    assert isinstance(told, ChorusError), told
    return told


@on_loop
async def test_before_it_has_heard_the_cluster_nobody_is_let_in(town: Town) -> None:
    assert isinstance(reason(await town.host.open(with_key(town.a.text), town.request())), EngineLost)


@on_loop
async def test_a_key_opens_for_its_tenant(town: Town) -> None:
    await town.host.begin()
    granted = await town.enter(town.a.text)
    assert (granted.request.tenant, granted.engine) == ("a", "e")
    assert town.host.confirm(granted)


@pytest.mark.parametrize("key", ["", "x", "chorus_000000000000_" + "A" * 43, "\x00", "ключ", "k" * 10_000])
@on_loop
async def test_what_is_no_key_opens_nothing(town: Town, key: str) -> None:
    await town.host.begin()
    assert isinstance(reason(await town.host.open(with_key(key), town.request())), NotAllowed)


@on_loop
async def test_a_ticket_opens_once_and_from_its_page_alone(town: Town) -> None:
    await town.host.begin()
    ticket = town.host.ticket(with_key(town.a.text, PAGE))
    assert isinstance(ticket, Ticket)
    once = Knock("", ticket.text, PAGE)
    assert isinstance(await town.host.open(once, town.request()), Opened)
    assert isinstance(reason(await town.host.open(once, town.request())), NotAllowed)
    other = town.host.ticket(with_key(town.a.text, PAGE))
    assert isinstance(other, Ticket)
    stolen = Knock("", other.text, "https://evil.example")
    assert isinstance(reason(await town.host.open(stolen, town.request())), NotAllowed)


@on_loop
async def test_a_page_of_somebody_else_gets_no_ticket(town: Town) -> None:
    assert isinstance(town.host.ticket(with_key(town.a.text, "https://evil.example")), Forbidden)


@on_loop
async def test_a_quota_is_kept_whoever_waits(town: Town) -> None:
    await town.host.begin()
    told = [await town.host.open(with_key(town.a.text), town.request()) for _ in range(50)]
    assert sum(isinstance(one, Opened) and not isinstance(one.answer, Refused) for one in told) == 2
    assert isinstance(reason(told[-1]), TooManySessions)


@on_loop
async def test_without_a_queue_a_caller_is_refused_at_once(tmp_path: Path) -> None:
    town = Town(tmp_path, queue=0)
    await town.host.begin()
    await town.enter(town.b.text)
    assert isinstance(reason(await town.host.open(with_key(town.b.text), town.request())), QueueFull)
    await town.host.close()


@on_loop
async def test_who_waits_is_told_at_once_when_it_is_let_in(town: Town) -> None:
    await town.host.begin()
    first = await town.enter(town.b.text)
    opened = await town.host.open(with_key(town.b.text), town.request())
    assert isinstance(opened, Opened)
    assert isinstance(opened.answer, Wait)
    waiting = AdmissionRequest(SessionId("s1"), "b", MODEL)
    asking = asyncio.create_task(town.host.again(waiting, 3_600.0))
    await asyncio.sleep(0)
    town.host.leave(first.request.session)
    assert isinstance(await asking, Granted)


@on_loop
async def test_a_question_that_is_not_answered_in_time_is_answered_with_the_place(town: Town) -> None:
    await town.host.begin()
    await town.enter(town.b.text)
    await town.host.open(with_key(town.b.text), town.request())
    answer = await town.host.again(AdmissionRequest(SessionId("s1"), "b", MODEL), 0.0)
    assert isinstance(answer, Wait)
    assert answer.place == 1


@on_loop
async def test_a_model_that_came_within_the_second_is_found(town: Town) -> None:
    town.engines.here = False
    await town.host.begin()
    assert isinstance(reason(await town.host.open(with_key(town.a.text), town.request())), ModelUnknown)
    town.engines.here = True
    await town.enter(town.a.text)


@on_loop
async def test_a_successor_refuses_nobody_a_model_before_it_has_heard_of_the_engines(tmp_path: Path) -> None:
    town = Town(tmp_path, successor=True)
    town.engines.answers.clear()
    beginning = asyncio.create_task(town.host.begin())
    waiting = AdmissionRequest(SessionId("old"), "a", MODEL)
    await town.engines.asked.wait()
    assert isinstance(reason(await town.host.open(with_key(town.a.text), town.request())), EngineLost)
    assert isinstance(reason(await town.host.again(waiting, 0.0)), EngineLost)
    town.engines.here = False
    town.engines.answers.set()
    await beginning
    assert isinstance(reason(await town.host.again(waiting, 0.0)), EngineLost)
    town.engines.here = True
    await town.host.turn()
    assert isinstance(await town.host.again(waiting, 0.0), Wait)
    await town.host.close()


@on_loop
async def test_a_successor_waits_for_the_grants_of_before_and_knows_who_is_there(tmp_path: Path) -> None:
    town = Town(tmp_path, rows=2, successor=True)
    town.engines.lists(LiveSession(SessionId("old"), "a", 1, 5.0))
    await town.host.begin()
    opened = await town.host.open(with_key(town.a.text), town.request())
    assert isinstance(opened, Opened)
    assert isinstance(opened.answer, Wait)
    assert isinstance(reason(await town.host.open(with_key(town.a.text), town.request())), TooManySessions)
    town.now_s += SETTLE_S - 1
    await town.host.again(AdmissionRequest(SessionId("s0"), "a", MODEL), 0.0)
    town.now_s += 1
    assert isinstance(await town.host.again(AdmissionRequest(SessionId("s0"), "a", MODEL), 0.0), Granted)
    await town.host.close()


@on_loop
async def test_what_was_spoken_is_in_the_ledger_and_a_tenant_reads_its_own(town: Town) -> None:
    await town.host.begin()
    granted = await town.enter(town.a.text)
    town.engines.lists(LiveSession(granted.request.session, "a", 1, 3.0))
    await town.host.turn()
    town.host.leave(granted.request.session, 4.5)
    usage = await town.host.usage(with_key(town.a.text), "", "9999")
    assert usage == [("2024-10-04", "a", 1, 4.5)]
    assert await town.host.usage(with_key(town.b.text), "", "9999") == []
    assert dict(town.host.spoken_s()) == {"a": 4.5}
    assert isinstance(await town.host.usage(with_key("no"), "", "9999"), NotAllowed)


@on_loop
async def test_a_restart_goes_on_with_the_days_seconds(tmp_path: Path) -> None:
    town = Town(tmp_path)
    await town.host.begin()
    granted = await town.enter(town.a.text)
    town.host.leave(granted.request.session, 99.0)
    town.host.leave(granted.request.session, 100.0)
    await town.host.close()
    again = Books.open(town.settings, town.wall, os.urandom)
    host = AdmissionHost(town.engines, again, queue=1, clock=lambda: town.now_s, wall=town.wall, random=os.urandom)
    await host.begin()
    opened = await host.open(with_key(town.a.text), town.request())
    assert isinstance(opened, Opened)
    granted_again = opened.answer
    assert isinstance(granted_again, Granted)
    town.engines.lists(LiveSession(granted_again.request.session, "a", 1, 2.0))
    await host.turn()
    spent = host.spent()
    assert isinstance(spent[granted_again.request.session], DaySpent)
    assert spent[granted_again.request.session].retry_after_s == pytest.approx(DAY_S - 1_000.0)
    await host.close()


@on_loop
async def test_a_key_that_is_revoked_is_dead_after_a_reload(town: Town) -> None:
    await town.host.begin()
    town.keys.revoke(town.a.record.key)
    await town.host.reload()
    assert isinstance(reason(await town.host.open(with_key(town.a.text), town.request())), NotAllowed)
    await town.enter(town.b.text)


@on_loop
async def test_a_tenants_file_that_is_wrong_changes_nothing_loudly(
    town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    await town.host.begin()
    (town.folder / "tenants.yaml").write_text("tenants: {a: {quota: 7}}")
    await town.host.reload()
    await town.enter(town.a.text)
    assert "quota: unknown key" in caplog.text


def test_a_ledger_that_cannot_be_opened_shows_no_password(tmp_path: Path) -> None:
    town = Town(tmp_path)
    town.books.ledger.close()
    settings = town.settings.model_copy(update={"ledger": "mysql+nothing://me:hunter2@db/x"})
    assert "hunter2" not in repr(settings)
    with pytest.raises(ConfigError) as caught:
        Books.open(settings, town.wall, os.urandom)
    assert "hunter2" not in str(caught.value)


@on_loop
async def test_without_books_everybody_is_let_in_and_waits_in_one_queue() -> None:
    engines = Engines(1)
    host = AdmissionHost(engines, None, queue=1, clock=lambda: 0.0, wall=lambda: 0.0, random=os.urandom)
    await host.begin()
    nobody = Knock("", None, None)
    told = [await host.open(nobody, AdmissionRequest(SessionId(name), "", MODEL)) for name in "abc"]
    answers = [one.answer for one in told if isinstance(one, Opened)]
    assert [type(answer) for answer in answers] == [Granted, Wait, Refused]
    await host.close()
