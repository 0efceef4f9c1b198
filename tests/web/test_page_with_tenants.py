"""The page of a server with tenants, in a real browser: a key once, tickets, the queue and refusals in words."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from load_tests.speech import voice
from serve_app.accounts.keys_file import KeysFile
from serve_app.client.talk import main
from serve_app.client.wav import write_wav
from serve_app.config import KEY_VARIABLE
from tests.client.loop import in_loop
from tests.serving.cluster import WAIT_S, Cluster, changed, eventually, up
from tests.serving.conversation import visit
from tests.serving.tenancy import tenancy
from tests.web.browser import CHROMIUM, Browser, Page

HOME: Final = "https://talk.example"
TENANTS: Final = """
tenants:
  acme: {sessions_per_minute: 1000}
  slow: {sessions_per_minute: 1}
  spent: {audio_s_per_day: 0}
"""
LIVE: Final = "document.body.dataset.state === 'live'"
ENDED: Final = "document.body.dataset.state === 'ended'"
ASKS: Final = "!document.querySelector('#key-form').hidden"
ALERT: Final = "!document.querySelector('#alert').hidden"
STATUS: Final = "document.querySelector('#status').textContent"
needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"NOT TESTED: the page; there is no {CHROMIUM}")


class Town:
    """A deployment with one slot, and its keys."""

    def __init__(self, cluster: Cluster, keys: KeysFile) -> None:
        self.cluster, self.keys = cluster, keys
        self.made = {tenant: keys.create(tenant) for tenant in ("acme", "slow", "spent")}
        self.doomed = keys.create("acme")

    @property
    def page(self) -> str:
        return f"http://localhost:{self.cluster.port}/"

    def status(self, key: str) -> int:
        return self.ask("GET", "/api/usage", Authorization=f"Bearer {key}")[0]

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
        request = urllib.request.Request(f"{self.cluster.http}{path}", method=method, headers=named(headers))
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, dict(response.headers), response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read().decode()

    def empty(self) -> bool:
        return self.cluster.ready() and self.cluster.info()["slots_free"] == 1


def named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    keys, tenants = tenancy(folder, TENANTS)
    gateway = {"tenants": tenants, "queue": 5, "silence_s": 30.0, "origins": [HOME]}
    with up(changed("passthrough.yaml", folder, {"slots": 1}, gateway)) as cluster:
        town = Town(cluster, keys)
        eventually(lambda: cluster.ready() and town.status(town.doomed.text) == 200, WAIT_S)
        yield town


@pytest.fixture
def town(running: Town) -> Town:
    """With the slot free."""
    eventually(running.empty, WAIT_S)
    return running


async def enter(page: Page, key: str) -> None:
    """Type a key and press its button."""
    await page.until(ASKS)
    await page.evaluate(f"document.querySelector('#key').value = {json.dumps(key)}")
    await page.click("#key-form button")


@needs_chromium
@in_loop
async def test_a_key_is_entered_once_and_stands_in_no_address(town: Town, browser: Browser) -> None:
    key = town.made["acme"].text
    async with browser.page(town.page) as page:
        await enter(page, key)
        await page.until(LIVE)
        await page.until("document.querySelector('#orb-it').style.getPropertyValue('--level') > 0.2")
        await page.click("#toggle")
        await page.until(ENDED)
        await asyncio.to_thread(eventually, town.empty, WAIT_S)
        await page.click("#toggle")  # a second conversation, a second ticket, no second question
        await page.until(LIVE)
        assert await page.evaluate("document.querySelector('#key-form').hidden")
        addresses = await page.evaluate(
            "JSON.stringify([location.href, document.cookie, JSON.stringify(localStorage),"
            " ...performance.getEntries().map((entry) => entry.name)])"
        )
        assert key[-24:] not in addresses
        assert "/api/ticket" in addresses
        assert page.console == []
        await page.command("Page.reload")
        await page.until("document.readyState === 'complete' && !document.querySelector('#forget').hidden")
        await page.click("#forget")
        await page.until(ASKS)
    assert key[-24:] not in town.cluster.output


@needs_chromium
@in_loop
async def test_a_visitor_reads_its_place_in_the_queue_until_it_is_let_in(town: Town, browser: Browser) -> None:
    key = {"Authorization": f"Bearer {town.made['acme'].text}"}
    async with visit(town.cluster.chat, additional_headers=key), browser.page(town.page) as page:
        await enter(page, town.made["acme"].text)
        await page.until(f"{STATUS}.includes('You are next')")
        assert await page.evaluate("document.body.dataset.state") == "opening"
        assert "Every seat is taken." in await page.text("#status")
        async with browser.page(town.page) as other:
            await enter(other, town.made["acme"].text)
            await other.until(f"{STATUS}.includes('number 2 in the queue')")
            await page.click("#toggle")  # cancelled: the other moves up
            await other.until(f"{STATUS}.includes('You are next')")


@needs_chromium
@in_loop
async def test_who_waits_comes_in_when_the_slot_is_free(town: Town, browser: Browser) -> None:
    key = {"Authorization": f"Bearer {town.made['acme'].text}"}
    async with browser.page(town.page) as page:
        async with visit(town.cluster.chat, additional_headers=key):
            await enter(page, town.made["acme"].text)
            await page.until(f"{STATUS}.includes('You are next')")
        await page.until(LIVE)


@needs_chromium
@in_loop
async def test_a_wrong_and_a_revoked_key_are_refused_in_words_and_asked_for_again(town: Town, browser: Browser) -> None:
    async with browser.page(town.page) as page:
        await enter(page, "chorus_000000000000_" + "A" * 43)
        await page.until(ALERT)
        assert "This key opens nothing here." in await page.text("#alert")
        await enter(page, town.doomed.text)
        await page.until(LIVE)
        await page.click("#toggle")
        await page.until(ENDED)
        town.keys.revoke(town.doomed.record.key)
        await asyncio.to_thread(eventually, lambda: town.status(town.doomed.text) == 401, WAIT_S)
        await page.click("#toggle")
        await page.until(f"{ALERT} && {ASKS}")
        assert "was revoked" in await page.text("#alert")


@needs_chromium
@in_loop
async def test_a_quota_is_refused_in_words_with_a_time(town: Town, browser: Browser) -> None:
    async with browser.page(town.page) as page:
        await enter(page, town.made["spent"].text)
        await page.until(ALERT)
        assert "Today's time is used up." in await page.text("#alert")
        await page.click("#forget")
        await enter(page, town.made["slow"].text)
        await page.until(LIVE)
        await page.click("#toggle")
        await page.until(ENDED)
        await page.click("#toggle")
        await page.until(ALERT)
        told = await page.text("#alert")
        assert "Too many conversations in a short time." in told
        assert "seconds" in told


def test_only_a_page_of_the_operators_may_ask_from_another_host(town: Town) -> None:
    wish = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
    status, headers, _ = town.ask("OPTIONS", "/api/ticket", Origin=HOME, **wish)
    assert (status, headers["access-control-allow-origin"]) == (200, HOME)
    assert "access-control-allow-credentials" not in headers
    for origin in ("https://evil.example", f"{HOME}.evil", "http://talk.example", "null"):
        status, headers, _ = town.ask("OPTIONS", "/api/ticket", Origin=origin, **wish)
        assert (status, "access-control-allow-origin" in headers) == (400, False)


def test_a_page_of_the_operators_gets_a_ticket_and_may_read_why_not(town: Town) -> None:
    key = {"Authorization": f"Bearer {town.made['acme'].text}"}
    status, headers, body = town.ask("POST", "/api/ticket", Origin=HOME, **key)
    assert (status, headers["access-control-allow-origin"]) == (201, HOME)
    assert json.loads(body)["ticket"]
    spent = {"Authorization": f"Bearer {town.made['spent'].text}"}
    status, headers, _ = town.ask("POST", "/api/ticket", Origin=HOME, **spent)
    assert (status, headers["access-control-allow-origin"]) == (429, HOME)
    status, headers, _ = town.ask("POST", "/api/ticket", Origin="https://evil.example", **key)
    assert (status, "access-control-allow-origin" in headers) == (403, False)


def test_talk_takes_a_tenants_key_from_the_environment_and_is_told_when_it_opens_nothing(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "in.wav", voice(0.5))
    words = [str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--url", town.cluster.http, "--tail", "0.2"]
    monkeypatch.setenv(KEY_VARIABLE, town.made["acme"].text)
    assert main(words) == 0
    assert "round trip" in capsys.readouterr().err
    monkeypatch.setenv(KEY_VARIABLE, "chorus_000000000000_" + "A" * 43)
    assert main(words) == 1
    told = capsys.readouterr().err
    assert "missing or wrong key" in told
    assert "AAAA" not in told
