"""The page in a real browser, with a microphone that plays a file, against real Opus and the real protocol."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.client.echo import EchoServer, Refusal
from tests.client.loop import in_loop
from tests.web.browser import CHROMIUM, Browser, Page

WEB = Path(__file__).parents[2] / "web"
LIVE = "document.body.dataset.state === 'live'"
ENDED = "document.body.dataset.state === 'ended'"
ALERT = "!document.querySelector('#alert').hidden"

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"NOT TESTED: the page; there is no {CHROMIUM}")


@contextlib.asynccontextmanager
async def opened(server: EchoServer, browser: Browser) -> AsyncIterator[Page]:
    """The page of a running server."""
    server.folder = WEB
    async with server.running(), browser.page(server.url) as page:
        yield page


async def current(page: Page, expression: str) -> object:
    """A value of the conversation that goes on."""
    return await page.evaluate(f"import('./app.js').then((m) => {{ const c = m.current(); return {expression}; }})")


@in_loop
async def test_a_visitor_presses_one_button_and_is_answered(browser: Browser) -> None:
    server = EchoServer(delay_frames=1, model="demo/parrot")
    async with opened(server, browser) as page:
        await page.until("document.querySelector('#model').textContent === 'parrot'")
        assert "repeats what you say" in await page.text("#lead")
        assert await page.text("#seats") == "15 of 16 seats free"

        await page.click("#toggle")
        await page.until(LIVE)
        await page.until("document.querySelector('#text').textContent.startsWith('word1 word2')")
        for meter in ("#orb-you", "#orb-it"):  # both voices move their meters
            await page.until(f"document.querySelector('{meter}').style.getPropertyValue('--level') > 0.3")
        await page.until("/^[0-9]+ ms$/.test(document.querySelector('#round-trip').textContent)")
        played = await current(page, "c.speaker.report.playedSamples / c.context.sampleRate")
        assert isinstance(played, float)
        assert played > 0.5
        assert await current(page, "c.roundTrips.delay") == 1
        assert max(abs(float(frame.max())) for frame in server.frames) > 0.05  # the voice arrived, not silence

        await page.click("#toggle")
        await page.until(ENDED)
        assert await page.evaluate("document.querySelector('#alert').hidden")
        assert await page.text("#toggle-label") == "Talk again"
        assert page.console == []
    assert server.closed == 1


@in_loop
async def test_a_second_conversation_starts_fresh(browser: Browser) -> None:
    server = EchoServer()
    async with opened(server, browser) as page:
        for _ in range(2):
            await page.click("#toggle")
            await page.until("document.querySelector('#text').textContent.startsWith('word1')")
            await page.click("#toggle")
            await page.until(ENDED)
        assert len(server.queries) == 2


@in_loop
async def test_settings_reach_the_server_as_kyutai_spells_them(browser: Browser) -> None:
    server = EchoServer()
    async with opened(server, browser) as page:
        await page.evaluate(
            "((f) => { f.text_temperature.value = '0.25'; f.seed.value = '42'; })(document.forms.settings.elements)"
        )
        await page.click("#toggle")
        await page.until(LIVE)
    assert server.queries == [
        {
            "text_temperature": "0.25",
            "text_topk": "25",
            "audio_temperature": "0.8",
            "audio_topk": "250",
            "text_seed": "42",
            "audio_seed": "42",
            "resumable": "1",
        }
    ]


@in_loop
async def test_settings_out_of_range_are_shown_and_nothing_starts(browser: Browser) -> None:
    server = EchoServer()
    async with opened(server, browser) as page:
        await page.evaluate("document.querySelector('form').elements.text_temperature.value = '99'")
        await page.click("#toggle")
        assert await page.evaluate("document.querySelector('details').open")
        assert await page.evaluate("document.body.dataset.state") == "idle"
    assert server.queries == []


@in_loop
async def test_a_key_after_the_hash_goes_along(browser: Browser) -> None:
    server = EchoServer(folder=WEB)
    async with server.running(), browser.page(f"{server.url}#key=k3y") as page:
        await page.click("#toggle")
        await page.until(LIVE)
    assert server.queries[0]["auth_id"] == "k3y"


@in_loop
async def test_who_asks_after_the_hash_is_shown_where_the_time_goes_at_the_server(browser: Browser) -> None:
    server = EchoServer(folder=WEB, spent_ms={"wait": 4.5, "tick": 38.0})
    shown = "Of which at the server: wait 4.5 ms, tick 38.0 ms."
    async with server.running(), browser.page(f"{server.url}#latency") as page:
        await page.click("#toggle")
        await page.until(f"document.querySelector('#round-trip').title === '{shown}'")
    assert server.queries[0]["latency"] == "1"


@in_loop
async def test_a_page_that_asks_for_no_latency_shows_none(browser: Browser) -> None:
    server = EchoServer(spent_ms={"tick": 38.0})
    async with opened(server, browser) as page:
        await page.click("#toggle")
        await page.until("/^[0-9]+ ms$/.test(document.querySelector('#round-trip').textContent)")
        assert await page.evaluate("document.querySelector('#round-trip').title") == ""
    assert "latency" not in server.queries[0]


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (Refusal(), ["The server is full.", "in 7 seconds"]),
        (Refusal(503, '{"reason": "draining"}', {}), ["about to restart"]),
        (Refusal(503, '{"reason": "engine_lost"}', {}), ["The model is not running"]),
    ],
    ids=["full", "draining", "engine lost"],
)
@in_loop
async def test_a_refused_visitor_reads_why(browser: Browser, refusal: Refusal, words: list[str]) -> None:
    async with opened(EchoServer(refusal=refusal), browser) as page:
        await page.click("#toggle")
        await page.until(ALERT)
        said = await page.text("#alert")
        assert [word for word in words if word not in said] == [], said
        assert await page.text("#toggle-label") == "Talk again"


@in_loop
async def test_refused_settings_point_to_the_settings(browser: Browser) -> None:
    async with opened(EchoServer(refusal=Refusal(400, '{"reason": "bad_parameter"}', {})), browser) as page:
        await page.evaluate("document.forms.settings.elements.text_topk.value = '7'")
        await page.click("#toggle")
        await page.until(ALERT)
        assert "refused the settings" in await page.text("#alert")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1008, ["ended the conversation", "no audio for 10 s"]),
        (1011, ["failed on the server", "start again"]),
        (1012, ["restarting"]),
        (1013, ["full"]),
    ],
)
@in_loop
async def test_a_conversation_that_the_server_ends_says_why(browser: Browser, code: int, words: list[str]) -> None:
    said = "no audio for 10 s" if code == 1008 else ""
    async with opened(EchoServer(end_after_frames=3, end_code=code, said=said), browser) as page:
        await page.click("#toggle")
        await page.until(f"{ENDED} && {ALERT}")
        shown = await page.text("#alert")
        assert [word for word in words if word not in shown] == [], shown


@in_loop
async def test_what_the_server_left_out_is_told_in_words_and_forgotten_with_the_next_conversation(
    browser: Browser,
) -> None:
    server = EchoServer(drops={"too_fast": 10, "lag": 3, "overflow": 2, "outbox": 5})
    async with opened(server, browser) as page:
        await page.click("#toggle")
        await page.until("document.querySelector('#loss').textContent")
        assert await page.text("#loss") == (
            "Left out so far: 0.8 s of your sound (it came faster than speech), 0.4 s of your sound (the server is"
            " busy), 0.4 s of the answer (the connection is slow)."
        )
        assert await page.evaluate("document.querySelector('#alert').hidden")
        await page.click("#toggle")
        await page.until(ENDED)
        server.drops = None
        await page.click("#toggle")
        await page.until(LIVE)
        assert await page.text("#loss") == ""


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"going_away": {"s": 600, "why": "rollout"}}, "This conversation can go on for 10 minutes"),
        ({"going_away": {"s": 0, "why": "rollout"}}, "this conversation ends now"),
        ({"session": {"ends_in_s": 60}}, "This conversation ends in 60 seconds"),
    ],
    ids=["goes away", "goes now", "is over soon"],
)
@in_loop
async def test_a_visitor_reads_how_long_the_conversation_can_go_on(
    browser: Browser, told: dict[str, object], words: str
) -> None:
    async with opened(EchoServer(tells=[told]), browser) as page:
        await page.click("#toggle")
        await page.until(f"{LIVE} && {ALERT}")
        assert words in await page.text("#alert")


SLOW_NETWORK = """
import('./conversation.js').then(({ Conversation }) => {
  const told = [];
  const talk = new Conversation({ onLoss: (words) => told.push(words) });
  const sent = [];
  talk.socket = { readyState: WebSocket.OPEN, bufferedAmount: 0, send: (message) => sent.push(message.length) };
  talk.send(new Uint8Array(60), true);
  for (let i = 0; i < 100; i += 1) talk.send(new Uint8Array(200), false); // nothing waits
  talk.socket.send = ({ length }) => { sent.push(length); talk.socket.bufferedAmount += length; };
  for (let i = 0; i < 500; i += 1) talk.send(new Uint8Array(200), false); // nothing leaves
  const held = talk.socket.bufferedAmount;
  talk.socket.bufferedAmount = 0;
  talk.send(new Uint8Array(200), false);
  return { sent: sent.length, held, pages: talk.pagesSent, lost: talk.lost.network, words: told.at(-1) };
})
"""


@in_loop
async def test_a_network_that_takes_nothing_holds_a_second_of_sound_and_no_more(browser: Browser) -> None:
    async with opened(EchoServer(), browser) as page:
        result = await page.evaluate(SLOW_NETWORK)
        waiting = result["held"] / 201
        assert 25 <= waiting <= 27
        assert result["pages"] == 100 + waiting + 1
        assert result["sent"] == result["pages"] + 1
        assert result["lost"] == (500 - waiting) / 2
        assert (
            result["words"] == f"Left out so far: {(500 - waiting) * 0.04:.1f} s of your sound (the network is slow)."
        )


@in_loop
async def test_a_server_that_vanishes_is_told(browser: Browser) -> None:
    server = EchoServer()
    async with contextlib.AsyncExitStack() as stack:
        page = await stack.enter_async_context(opened(server, browser))
        await page.click("#toggle")
        await page.until(LIVE)
        server.abort()
        await page.until(f"{ENDED} && {ALERT}")
        assert "connection to the server broke" in await page.text("#alert")


@in_loop
async def test_a_denied_microphone_is_told() -> None:
    server = EchoServer()
    with Browser.launched(microphone=None, allowed=False) as denied:
        async with opened(server, denied) as page:
            await page.click("#toggle")
            await page.until(ALERT)
            assert "microphone is not allowed" in await page.text("#alert")
    assert server.queries == []


@in_loop
async def test_an_address_without_a_secure_context_is_told(browser: Browser) -> None:
    server = EchoServer()
    async with opened(server, browser) as page:
        await page.evaluate("Object.defineProperty(window, 'isSecureContext', {value: false}); 0")
        await page.click("#toggle")
        await page.until(ALERT)
        assert "https://" in await page.text("#alert")
    assert server.queries == []


@pytest.mark.parametrize("width", [360, 1280])
@in_loop
async def test_nothing_sticks_out_of_the_screen(browser: Browser, width: int) -> None:
    async with opened(EchoServer(), browser) as page:
        await page.show(width=width, height=800)
        await page.evaluate("document.querySelector('details').open = true")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width


@in_loop
async def test_the_page_asks_nobody_but_its_own_server(browser: Browser) -> None:
    async with opened(EchoServer(), browser) as page:
        await page.click("#toggle")
        await page.until(LIVE)
        origins = await page.evaluate(
            "[...new Set(performance.getEntriesByType('resource').map((e) => new URL(e.name).origin))]"
        )
        assert origins == [await page.evaluate("location.origin")]


@in_loop
async def test_a_connection_that_breaks_is_made_again_and_the_conversation_goes_on(browser: Browser) -> None:
    server = EchoServer(grace_s=10.0)
    async with opened(server, browser) as page:
        await page.click("#toggle")
        for times in (2, 3):  # pieces that the word splits the text into
            await page.until(f"document.querySelector('#text').textContent.split('word1').length >= {times}")
            token = server.token
            server.abort()
            await page.until(f"document.querySelector('#text').textContent.split('word1').length > {times}")
            assert server.queries[-1]["resume"] == token
            assert await page.evaluate(LIVE)
        assert await page.evaluate("document.querySelector('#alert').hidden")
        await page.click("#toggle")
        await page.until(ENDED)
        assert page.console == []


@in_loop
async def test_a_conversation_that_is_not_kept_ends_as_it_broke(browser: Browser) -> None:
    server = EchoServer(grace_s=0.5)
    async with contextlib.AsyncExitStack() as stack:
        page = await stack.enter_async_context(opened(server, browser))
        await page.click("#toggle")
        await page.until("document.querySelector('#text').textContent.startsWith('word1')")
        server.token = "another"
        server.abort()
        await page.until(f"{ENDED} && {ALERT}")
        assert "connection to the server broke" in await page.text("#alert")


@in_loop
async def test_who_closes_the_page_says_goodbye_so_that_no_seat_is_kept(browser: Browser) -> None:
    server = EchoServer(grace_s=15.0)
    async with opened(server, browser) as page:
        await page.click("#toggle")
        await page.until(LIVE)
        await page.command("Page.navigate", url="about:blank")
        async with asyncio.timeout(20):
            while not server.close_codes:
                await asyncio.sleep(0.02)
    assert server.close_codes == [1000]
