"""A fixed part of the strangers' table, asked of a running server over plain sockets, one connection each.

Beside them one conversation goes on in real time and must hear every bit; afterwards no log of any process may hold a
key, a ticket, or a hash of one.
"""

import asyncio
import dataclasses
import hashlib
import http.client
import re
import secrets
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from load_tests.speech import encoded
from serve_app.accounts.keys_file import KeysFile
from serve_app.errors import EngineLost
from tests.serving.alone import Reply
from tests.serving.cluster import WAIT_S, Cluster, changed, eventually, up
from tests.serving.conversation import FRAME_S, visit
from tests.serving.strangers import DEAD, LIVING, TENANTS, Case, Question, sample
from tests.serving.test_bad_input import OUR_FAULT, undisturbed

pytestmark = pytest.mark.slow

ANSWER_S: Final = 10.0
TRIES: Final = 5
BY_THE_SERVER: Final = {
    "twice: own page, then another, chat": 400,
    "twice: another page, then own, chat": 400,
}
"""What the WebSocket layer below us refuses before we see it, in its own words."""
OWNERS: Final = {"revoked": "acme", "expired": "acme", "orphan": "gone"}
RAY_SESSION: Final = re.compile(rb"/[^\0 ]*/session_[0-9][0-9_-]+")
HANDSHAKE: Final = (
    (b"connection", b"upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAAAA=="),
)


class Neighbour(threading.Thread):
    """Speaks in real time until it is told to stop, and keeps all that it hears."""

    def __init__(self, address: str, key: str) -> None:
        super().__init__()
        self.address, self.key = address, key
        self.began, self.enough = threading.Event(), threading.Event()
        self.said: list[bytes] = []
        self.heard: list[str | bytes] = []

    def run(self) -> None:
        asyncio.run(self._talk())

    async def _talk(self) -> None:
        async with visit(self.address, additional_headers={"kyutai-api-key": self.key}) as visitor:
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            for index, message in enumerate(encoded(None, 25.0)):
                await asyncio.sleep(max(0.0, began_s + index * FRAME_S - loop.time()))
                await visitor.socket.send(message)
                self.said.append(message)
                self.heard.append(await visitor.socket.recv())
                self.began.set()
                if self.enough.is_set():
                    break


class Town:
    """A deployment with tenants, and a wallet with one key of each kind."""

    def __init__(self, cluster: Cluster, keys: dict[str, str]) -> None:
        self.cluster, self.keys = cluster, keys
        self.secrets = list(keys.values())

    def key(self, whose: str) -> str:
        return self.keys[whose]

    def ticket(self, whose: str, origin: str | None) -> str:
        headers = {"Authorization": f"Bearer {self.keys[whose]}"} | ({"Origin": origin} if origin else {})
        request = urllib.request.Request(f"{self.cluster.http}/api/ticket", method="POST", headers=headers)
        with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
            text = response.read().decode().split('"')[3]
        self.secrets.append(text)
        return str(text)

    def spend(self, ticket: str, origin: str | None) -> None:
        headers = ((b"host", b"localhost"), *([(b"origin", origin.encode())] if origin else []))
        self.ask(Question("GET", f"/api/chat?ticket={ticket}", headers, socket=True))

    def wait_out(self) -> None:
        raise AssertionError("cases that need a clock are not asked of a running server")

    def ask(self, question: Question) -> Reply:
        """One connection, one request; gone as soon as it is answered."""
        headers = (*question.headers, *(HANDSHAKE if question.socket else ((b"content-length", b"0"),)))
        head = b"".join(b"%s: %s\r\n" % header for header in headers)
        with socket.create_connection(("127.0.0.1", self.cluster.port), timeout=ANSWER_S) as line:
            line.sendall(f"{question.method} {question.target} HTTP/1.1\r\n".encode() + head + b"\r\n")
            response = http.client.HTTPResponse(line, method=question.method)
            response.begin()
            body = b"" if response.status == 101 else response.read()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    def shown(self, text: str) -> list[str]:
        """The beginnings of the secrets that a text shows, or their hashes, or most of them."""
        hashes = {secret: hashlib.sha256(secret.encode()).hexdigest() for secret in self.secrets}
        return [secret[:12] for secret in self.secrets if secret[-24:] in text or hashes[secret] in text]

    def logs(self) -> dict[Path, str]:
        """What every process of the deployment has written."""
        self.cluster.family.look()
        folders = {
            Path(found[0].decode())
            for process in self.cluster.family.left()
            if (found := RAY_SESSION.search(Path(f"/proc/{process}/cmdline").read_bytes()))
        }
        files = [path for folder in folders for path in (folder / "logs").rglob("*") if path.is_file()]
        return {path: path.read_text(errors="replace") for path in files}


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    (folder / "tenants.yaml").write_text(TENANTS)
    keys = KeysFile(folder / "keys.json", time.time, secrets.token_bytes)
    made = {
        name: keys.create(OWNERS.get(name, name), 0.001 if name == "expired" else None) for name in (*LIVING, *DEAD)
    }
    keys.revoke(made["revoked"].record.key)
    tenants = {
        "file": str(folder / "tenants.yaml"),
        "keys": str(folder / "keys.json"),
        "ledger": f"sqlite:///{folder / 'ledger.sqlite'}",
    }
    gateway = {"tenants": tenants, "queue": 5, "silence_s": 30.0}
    with up(changed("passthrough.yaml", folder, {"slots": 3}, gateway)) as cluster:
        eventually(cluster.ready, WAIT_S)
        yield Town(cluster, {name: key.text for name, key in made.items()})


@pytest.fixture(scope="module")
def neighbour(town: Town) -> Iterator[Neighbour]:
    talking = Neighbour(town.cluster.chat, town.key("acme"))
    talking.start()
    assert talking.began.wait(WAIT_S)
    yield talking
    talking.enough.set()
    talking.join()


SAMPLE: Final = sample()


def answer(town: Town, case: Case) -> Reply:
    """Asked again while the machine is too busy for the authority to answer in time: nobody was let in."""
    for _ in range(TRIES):
        reply = town.ask(case.ask(town))
        if reply.reason != EngineLost.reason:
            break
    return reply


def test_a_hundred_are_asked() -> None:
    assert len(SAMPLE) >= 100


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.name)
def test_a_stranger_is_refused_with_the_exact_reason(town: Town, neighbour: Neighbour, case: Case) -> None:
    reply = answer(town, case)
    if case.name in BY_THE_SERVER:
        assert reply.status == BY_THE_SERVER[case.name]
    else:
        assert (reply.status, reply.reason) == (case.status, case.reason), reply.body[:200]
    assert ("retry-after" in reply.headers) == (case.status in (429, 503))
    assert town.shown(f"{reply.headers} {reply.body.decode(errors='replace')}") == []


def test_the_neighbour_heard_every_bit_and_nobody_else_holds_a_slot(town: Town, neighbour: Neighbour) -> None:
    neighbour.enough.set()
    neighbour.join()
    assert neighbour.heard == undisturbed(neighbour.said)
    eventually(lambda: town.cluster.info()["slots_used"] == 0, WAIT_S)


def test_no_log_of_any_process_shows_a_secret_or_a_fault_of_ours(town: Town) -> None:
    logs = town.logs()
    assert any("conversation refused" in text for text in logs.values()), "the logs of the gateways are among them"
    assert {path.name: shown for path, text in logs.items() if (shown := town.shown(text))} == {}
    assert town.shown(town.cluster.output) == []
    assert [line for line in town.cluster.lines if OUR_FAULT.search(line)] == []


def test_after_all_of_them_who_may_come_comes(town: Town) -> None:
    good = Question("GET", "/api/chat", ((b"host", b"localhost"), (b"kyutai-api-key", town.key("beta").encode())), True)
    assert town.ask(good).status == 101
    assert town.ask(dataclasses.replace(good, target="/api/usage", socket=False)).status == 200
