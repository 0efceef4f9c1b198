"""What goes wrong around an admission host that runs: files, clocks, and everybody at once."""

import asyncio
import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve_app.admission.answers import AdmissionRequest, Granted, Refused, Wait
from serve_app.admission.tickets import LIFE_S, Ticket
from serve_app.admission.views import LiveSession
from serve_app.errors import DaySpent, NotAllowed, TooManySessions, TooManyStarts
from serve_app.serving.admission_host import AdmissionHost
from serve_app.serving.knock import Knock, Opened
from serve_app.units import SessionId
from tests.link.fakes import on_loop
from tests.serving.test_admission_host import DAY_S, MODEL, PAGE, TENANTS, Town, reason, with_key

YEAR_S = 365 * DAY_S
QUOTA = 2


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    made = Town(tmp_path, rows=50)
    yield made
    made.books.ledger.close()


def gone(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def writes(content: str | bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(content if isinstance(content, bytes) else content.encode()), None)[1]


TENANT_TROUBLES: dict[str, Callable[[Path], None]] = {
    "gone": gone,
    "folder": folder,
    "empty": writes(""),
    "torn": writes(TENANTS[: len(TENANTS) // 2]),
    "no yaml": writes("tenants: {a: ["),
    "no utf-8": writes(b"tenants: {a: \xff\xfe}"),
    "nul": writes(b"\0" * 100),
    "list": writes("- a\n- b\n"),
    "unknown key": writes("tenants: {a: {quota: 7}}"),
    "unknown key above": writes("tenants: {a: {}}\nlimits: {}"),
    "twice": writes("tenants: {a: {}, a: {weight: 2}}"),
    "path as a name": writes('tenants: {"../a": {}}'),
    "capitals": writes("tenants: {A: {}}"),
    "number for a list": writes("tenants: {a: {models: 1}}"),
    "below zero": writes("tenants: {a: {concurrent_sessions: -1}}"),
    "not a number": writes("tenants: {a: {weight: .nan}}"),
    "infinite": writes("tenants: {a: {audio_s_per_day: .inf}}"),
    "word for a number": writes("tenants: {a: {longest_s: long}}"),
    "origin with a path": writes('tenants: {a: {origins: ["https://a.example/x"]}}'),
    "origin of all": writes('tenants: {a: {origins: ["*"]}}'),
    "python object": writes("tenants: !!python/object/apply:os.system ['true']"),
    "bomb": writes("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\ntenants: {a: {models: *c}}"),
    "deep": writes("[" * 3_000),
    "huge": writes(b"#" * (5 << 20)),
}
KEY_TROUBLES: dict[str, Callable[[Path], None]] = {
    "gone": gone,
    "folder": folder,
    "empty": writes(""),
    "torn": lambda path: os.truncate(path, path.stat().st_size - 40),
    "no json": writes("keys"),
    "list": writes("[]"),
    "no utf-8": writes(b"\xff\xfe"),
    "open to all": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("trouble", TENANT_TROUBLES.values(), ids=TENANT_TROUBLES)
@on_loop
async def test_a_tenants_file_that_becomes_wrong_changes_nothing_and_one_that_is_right_again_does(
    town: Town, trouble: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = town.folder / "tenants.yaml"
    await town.host.begin()
    trouble(path)
    await town.host.reload()
    assert [line.levelno for line in caplog.records if "tenants of before stay" in line.message] == [logging.ERROR]
    assert str(path) in caplog.text
    assert (await town.enter(town.a.text)).request.tenant == "a"
    await town.host.reload()
    assert caplog.text.count("tenants of before stay") == 1, "said once a change"
    if path.is_dir():
        path.rmdir()
    path.write_text(TENANTS + "  c: {concurrent_sessions: 1}\n")
    new = town.keys.create("c")
    await town.host.reload()
    assert (await town.enter(new.text)).request.tenant == "c"


@pytest.mark.parametrize("trouble", KEY_TROUBLES.values(), ids=KEY_TROUBLES)
@on_loop
async def test_a_keys_file_that_becomes_wrong_opens_and_closes_nothing(
    town: Town, trouble: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = town.folder / "keys.json"
    before = path.read_bytes()
    await town.host.begin()
    trouble(path)
    await town.host.reload()
    assert [line.levelno for line in caplog.records if "keys of before stay" in line.message] == [logging.ERROR]
    assert town.a.record.digest not in caplog.text
    await town.enter(town.a.text)
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(before)
    path.chmod(0o600)
    town.keys.revoke(town.a.record.key)
    await town.host.reload()
    assert isinstance(reason(await town.host.open(with_key(town.a.text), town.request())), NotAllowed)
    await town.enter(town.b.text)


class Leaper:
    """A wall clock beside the monotonic one."""

    def __init__(self, town: Town) -> None:
        self.town = town
        self.leap_s = 0.0

    def __call__(self) -> float:
        return self.town.wall() + self.leap_s


@pytest.mark.parametrize("leap_s", [-YEAR_S, -DAY_S, -60.0, 60.0, DAY_S, YEAR_S])
@on_loop
async def test_a_wall_clock_that_jumps_gives_no_ticket_no_start_and_no_second_away(
    tmp_path: Path, leap_s: float
) -> None:
    town = Town(tmp_path, rows=50)
    wall = Leaper(town)
    host = AdmissionHost(town.engines, town.books, queue=0, clock=lambda: town.now_s, wall=wall, random=os.urandom)
    await host.begin()
    ticket = host.ticket(with_key(town.a.text, PAGE))
    assert isinstance(ticket, Ticket)
    wall.leap_s = leap_s
    await host.turn()
    by_ticket = await host.open(Knock("", ticket.text, PAGE), town.request())
    assert isinstance(by_ticket, Opened), "tickets live by a clock that does not jump"
    assert isinstance(by_ticket.answer, Granted)
    town.engines.lists(LiveSession(by_ticket.answer.request.session, "a", 1, 101.0))
    await host.turn()
    assert isinstance(host.spent()[by_ticket.answer.request.session], DaySpent), "of whichever day it is"
    wall.leap_s = 0.0
    late = host.ticket(with_key(town.b.text))
    assert isinstance(late, Ticket)
    town.now_s += LIFE_S
    wall.leap_s = -LIFE_S
    assert isinstance(reason(await host.open(Knock("", late.text, None), town.request())), NotAllowed)
    await host.close()


@on_loop
async def test_a_wall_clock_that_jumps_refills_no_starts(tmp_path: Path) -> None:
    town = Town(tmp_path, rows=50)
    (tmp_path / "tenants.yaml").write_text("tenants: {a: {sessions_per_minute: 3}, b: {}}")
    await town.host.begin()
    await town.host.reload()
    for _ in range(3):
        town.host.leave((await town.enter(town.a.text)).request.session)
    for leap_s in (-YEAR_S, -1.0, 1.0, DAY_S, YEAR_S):
        town.wall = lambda leap_s=leap_s: 20_000 * DAY_S + town.now_s + leap_s  # type: ignore[method-assign, misc]
        await town.host.turn()
        assert isinstance(reason(await town.host.open(with_key(town.a.text), town.request())), TooManyStarts)
    town.now_s += 20.0
    await town.enter(town.a.text)


@pytest.mark.parametrize("seed", range(20))
@on_loop
async def test_everybody_at_once_at_the_edge_of_a_quota_never_gets_more_than_it(tmp_path: Path, seed: int) -> None:
    town, chance = Town(tmp_path, rows=50, queue=10), random.Random(seed)
    await town.host.begin()
    held: set[SessionId] = set()

    async def pause() -> None:
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)

    async def come_and_go() -> None:
        for _ in range(6):
            await pause()
            opened = await town.host.open(with_key(town.a.text), town.request())
            if not isinstance(opened, Opened) or not isinstance(opened.answer, Granted):
                assert isinstance(reason(opened), TooManySessions | TooManyStarts)
                continue
            name = opened.answer.request.session
            held.add(name)
            assert len(held) <= QUOTA
            await pause()
            if chance.random() < 0.5:
                town.host.confirm(opened.answer)
            await pause()
            held.discard(name)
            town.host.leave(name)
            town.host.leave(name)

    await asyncio.gather(*(come_and_go() for _ in range(25)))
    assert sum(status.used + status.waiting for status in town.host.status()) == 0
    await town.host.close()


@on_loop
async def test_a_key_that_is_revoked_while_its_tickets_are_out_and_its_callers_wait_opens_nothing(
    tmp_path: Path,
) -> None:
    town = Town(tmp_path, rows=1)
    await town.host.begin()
    await town.enter(town.b.text)
    ticket = town.host.ticket(with_key(town.a.text, PAGE))
    assert isinstance(ticket, Ticket)
    opened = await town.host.open(with_key(town.a.text), town.request())
    assert isinstance(opened, Opened)
    assert isinstance(opened.answer, Wait)
    town.keys.revoke(town.a.record.key)
    (town.folder / "tenants.yaml").write_text("tenants: {b: {}}")
    await town.host.reload()
    assert isinstance(reason(await town.host.open(Knock("", ticket.text, PAGE), town.request())), NotAllowed)
    told = await town.host.again(AdmissionRequest(SessionId("s1"), "a", MODEL), 0.0)
    assert isinstance(told, Refused)
    assert isinstance(told.error, NotAllowed)
    await town.host.close()
