"""Eight hundred strangers at the door of a gateway: none comes in, each is told exactly why, and nobody else notices.

The real application, gate, host and answers, in this process; `test_strangers_on_cluster.py` asks a part of the same
table of a running server.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.accounts.keys_file import KeysFile
from serve_app.admission.tickets import LIFE_S, Ticket
from serve_app.audio.opus import OpusSender
from serve_app.config import TenancySettings
from serve_app.serving.admission_host import AdmissionHost
from serve_app.serving.books import Books
from serve_app.serving.knock import Knock
from serve_app.units import FRAME_S
from tests.link.fakes import frame
from tests.serving.alone import Alone, EngineHere, Reply, Visit, alone
from tests.serving.strangers import DEAD, LIVING, TENANTS, Case, Question, cases

SLOTS = 3
HOUR_S = 3_600.0


class Town:
    """Files, clocks, a host, and a wallet with one key of each kind."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 1_000.0
        self.folder = folder
        self.secrets: list[str] = []
        (folder / "tenants.yaml").write_text(TENANTS)
        keys = KeysFile(folder / "keys.json", self.wall, os.urandom)
        lives = {"expired": 60.0}
        made = {name: keys.create(OWNERS.get(name, name), lives.get(name)) for name in (*LIVING, *DEAD)}
        keys.revoke(made["revoked"].record.key)
        self.keys = {name: key.text for name, key in made.items()}
        self.secrets.extend(self.keys.values())
        self.settings = TenancySettings(
            file=str(folder / "tenants.yaml"),
            keys=str(folder / "keys.json"),
            ledger=f"sqlite:///{folder / 'ledger.sqlite'}",
        )
        self.now_s += HOUR_S

    def wall(self) -> float:
        return 1.7e9 + self.now_s

    def host(self, engine: EngineHere) -> AdmissionHost:
        books = Books.open(self.settings, self.wall, os.urandom)
        self.made = AdmissionHost(engine, books, queue=5, clock=lambda: self.now_s, wall=self.wall, random=os.urandom)
        return self.made

    def key(self, whose: str) -> str:
        return self.keys[whose]

    def ticket(self, whose: str, origin: str | None) -> str:
        ticket = self.made.ticket(Knock(self.keys[whose], None, origin))
        assert isinstance(ticket, Ticket), ticket
        self.secrets.append(ticket.text)
        return ticket.text

    def spend(self, ticket: str, origin: str | None) -> None:
        self.made.identify(Knock("", ticket, origin))

    def wait_out(self) -> None:
        self.now_s += LIFE_S


OWNERS = {"revoked": "acme", "expired": "acme", "orphan": "gone"}


class Log(logging.Handler):
    """Keeps every line of every logger."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(message)s %(exc_text)s"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class Honest:
    """A conversation that goes on beside all others, one frame at a time."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.sender = OpusSender()
        self.said = 0
        self.began_s = asyncio.get_running_loop().time()

    def heard(self) -> int:
        return sum((message.get("bytes") or b"")[:1] == b"\x01" for message in self.visit.sent)

    async def speak(self) -> None:
        """Say a frame and hear it, if it is time for one: what comes faster than speech is dropped."""
        if asyncio.get_running_loop().time() - self.began_s < self.said * FRAME_S:
            return
        self.said += 1
        message = {"type": "websocket.receive", "bytes": b"\x01" + self.sender.encode(frame(0.1))}
        self.visit.hear(message)
        await self.visit.until(lambda sent: self.heard() == self.said)


class Scene:
    """All of it, on one loop that runs while somebody asks."""

    def __init__(self, town: Town, log: Log, here: Alone, honest: Honest) -> None:
        self.town, self.log, self.here, self.honest = town, log, here, honest

    async def refused(self, question: Question) -> Reply:
        """Ask, and let the honest one speak meanwhile."""
        asking = asyncio.create_task(
            self.here.ask(question.method, question.target, question.headers, socket=question.socket)
        )
        await self.honest.speak()
        return await asking


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Scene]]:
    town, log = Town(tmp_path_factory.mktemp("town")), Log()
    root = logging.getLogger()
    before = root.level
    root.addHandler(log)
    root.setLevel(logging.DEBUG)
    settings: dict[str, Any] = {"tenants": town.settings.model_dump(), "queue": 5, "silence_s": 600.0}
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        gateway = alone(patch, town.host, settings, slots=SLOTS)
        here = runner.run(gateway.__aenter__())
        authorization = (b"authorization", f"Bearer {town.key('acme')}".encode())
        visit = runner.run(arrive(here, authorization))
        yield runner, runner.run(scene(town, log, here, visit))
        runner.run(visit.end())
        runner.run(gateway.__aexit__(None, None, None))
    root.removeHandler(log)
    root.setLevel(before)


async def arrive(here: Alone, *headers: tuple[bytes, bytes]) -> Visit:
    visit = here.visit(*headers)
    await visit.until(lambda sent: visit.live)
    return visit


async def scene(town: Town, log: Log, here: Alone, visit: Visit) -> Scene:
    return Scene(town, log, here, Honest(visit))


def bounded(runner: asyncio.Runner, scene: Scene, question: Question) -> Reply:
    return runner.run(asyncio.wait_for(scene.refused(question), 20))


ALL = cases()


def test_there_are_five_hundred_and_no_two_alike() -> None:
    assert len({case.name for case in ALL}) == len(ALL) >= 500


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_a_stranger_is_refused_with_the_exact_reason(stage: tuple[asyncio.Runner, Scene], case: Case) -> None:
    runner, scene = stage
    question = case.ask(scene.town)
    used, counted = scene.here.used, scene.here.counted
    reply = bounded(runner, scene, question)
    assert (reply.status, reply.reason) == (case.status, case.reason)
    assert ("retry-after" in reply.headers) == (case.status in (429, 503))
    assert (scene.here.used, scene.here.counted) == (used, counted)
    assert_shows_nothing(scene.town, f"{reply.headers} {reply.body.decode(errors='replace')}")


def test_after_all_of_them_who_may_come_comes_and_the_log_holds_no_secret(
    stage: tuple[asyncio.Runner, Scene],
) -> None:
    runner, scene = stage
    reply = bounded(
        runner,
        scene,
        Question("GET", "/api/chat", ((b"kyutai-api-key", scene.town.key("beta").encode()),), socket=True),
    )
    assert reply.status == 101
    assert scene.honest.heard() == scene.honest.said > 0
    assert scene.log.lines
    assert_shows_nothing(scene.town, "\n".join(scene.log.lines))


def assert_shows_nothing(town: Town, text: str) -> None:
    """No key, ticket, or hash of one; nor most of one."""
    shown = [secret[:12] for secret in town.secrets if secret[-24:] in text]
    shown += [secret[:12] for secret in town.secrets if hashlib.sha256(secret.encode()).hexdigest() in text]
    assert shown == []
