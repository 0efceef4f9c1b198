"""The page and the Python client on a real cluster: HAProxy, gateway, link and engine; the pass-through."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from load_tests.pace import Plan
from load_tests.pace import run as pace
from load_tests.speech import voice
from serve_app.client import Audio, RequestRefused, ServerFull, Session
from serve_app.client.events import PCM
from serve_app.client.talk import main
from serve_app.client.wav import read_wav, write_wav
from serve_app.units import FRAME_SAMPLES
from tests.client.loop import in_loop
from tests.serving.cluster import WAIT_S, Cluster, changed, eventually, up
from tests.web.browser import CHROMIUM, Browser

SLOTS = 2
needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"NOT TESTED: the page; there is no {CHROMIUM}")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with up(changed("passthrough.yaml", tmp_path_factory.mktemp("cluster"), {"slots": SLOTS}, {})) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    """With every slot free."""
    eventually(lambda: running.ready() and running.info()["slots_free"] == SLOTS, WAIT_S)
    return running


@needs_chromium
@in_loop
async def test_a_browser_and_a_program_hold_conversations_at_the_same_time(cluster: Cluster, browser: Browser) -> None:
    async with browser.page(f"http://localhost:{cluster.port}/") as page, Session.open(cluster.http) as session:
        await page.click("#toggle")
        await page.until("document.body.dataset.state === 'live'")
        heard: list[PCM] = []
        for frame in voice(1.0)[: 12 * FRAME_SAMPLES].reshape(12, FRAME_SAMPLES):
            await session.send(frame)
            event = await anext(session)  # one after the other: an engine drops what comes too fast
            assert isinstance(event, Audio)
            heard.append(event.pcm)
        assert np.abs(np.concatenate(heard)).max() > 0.1
        await page.until("document.querySelector('#orb-it').style.getPropertyValue('--level') > 0.3")
        assert await page.text("#model") == "pass-through"
        assert page.console == []


@needs_chromium
@in_loop
async def test_a_visitor_of_a_full_server_reads_so(cluster: Cluster, browser: Browser) -> None:
    async with (
        Session.open(cluster.http),
        Session.open(cluster.http),
        browser.page(f"http://localhost:{cluster.port}/") as page,
    ):
        await page.click("#toggle")
        await page.until("!document.querySelector('#alert').hidden")
        assert "The server is full." in await page.text("#alert")


@in_loop
async def test_a_third_session_is_refused_with_reason_and_time(cluster: Cluster) -> None:
    async with Session.open(cluster.http), Session.open(cluster.http):
        with pytest.raises(ServerFull) as caught:
            async with Session.open(cluster.http):
                pass
    assert caught.value.why == "full"
    assert caught.value.retry_after_s is not None


@in_loop
async def test_a_parameter_that_is_out_of_range_is_refused_by_name(cluster: Cluster) -> None:
    with pytest.raises(RequestRefused, match="repetition_penalty"):
        async with Session.open(f"{cluster.http}?repetition_penalty=20"):
            pass


def test_talk_writes_down_what_was_said(cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoken = voice(1.0)
    write_wav(tmp_path / "in.wav", spoken)
    assert main([str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--url", cluster.http, "--tail", "0.5"]) == 0
    assert "round trip" in capsys.readouterr().err
    answer = read_wav(tmp_path / "out.wav")
    assert answer.size == 19 * FRAME_SAMPLES
    lag = int(np.argmax(np.correlate(answer, spoken[4_800:14_400], "valid"))) - 4_800
    assert 0 <= lag < FRAME_SAMPLES


@in_loop
async def test_the_load_generator_counts_every_frame(cluster: Cluster) -> None:
    outcome = await pace(Plan(url=cluster.http, sessions=SLOTS, seconds=1.6))
    assert (outcome.frames_sent, outcome.frames_received, outcome.clean) == (40, 40, True)


@in_loop
async def test_a_session_that_is_closed_frees_its_slot(cluster: Cluster) -> None:
    async with Session.open(cluster.http):
        used = await asyncio.to_thread(lambda: eventually(lambda: cluster.info()["slots_used"], WAIT_S))
        assert used == 1
    await asyncio.to_thread(lambda: eventually(lambda: cluster.info()["slots_free"] == SLOTS, WAIT_S))
