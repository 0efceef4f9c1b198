"""Clients that nobody wrote for us hold conversations with the same real server at the same time."""

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import sphn
from websockets.asyncio.client import connect

from load_tests.memory import listening_ports
from load_tests.strangers import AMPLITUDE, WARM_UP_FRAMES, judged, sung, voice_hz
from serve_app.demo.recording import FOLDER, NAME, read_recording
from serve_app.units import FRAME_SAMPLES, SAMPLE_RATE_HZ
from tests.client.loop import in_loop
from tests.serving.cluster import ROOT, WAIT_S, Cluster, eventually, up
from tests.serving.conftest import SLOTS
from tests.serving.conversation import Pcm, Visitor, tone
from tests.serving.reference import AT_ONCE_FRAMES, SoundCard, reference_client
from tests.web.browser import CHROMIUM, Browser, Page

SINGER = 40  # a tone of 2,600 Hz, where speech has little
FRAMES = 60
EARLY_FRAMES = AT_ONCE_FRAMES + 4
"""At most so many frames of the reference client come before its handshake and are dropped."""
LAGS = 40
"""Frames: a parrot's second, and the sound card's queue."""
LOUD = 0.04
QUIET = 0.001
WEB_CLIENT_QUERY = (
    "worker_auth_id=&email=&text_temperature=0.7&text_topk=25&audio_temperature=0.8&audio_topk=250&pad_mult=0"
    "&text_seed=1&audio_seed=2&repetition_penalty_context=64&repetition_penalty=1"
)
TAPE = """
    window.tape = {sent: [], heard: []};
    const note = (reel, data) => { const bytes = new Uint8Array(data); if (bytes[0] === 1) reel.push(bytes.slice(1)); };
    window.WebSocket = class extends WebSocket {
        constructor(...options) {
            super(...options);
            this.addEventListener('message', ({ data }) => note(tape.heard, data));
        }
        send(data) { note(tape.sent, data); super.send(data); }
    };
"""
"""What the page sends and gets, as payloads of audio messages."""

DEMO_CHECKPOINT = ROOT / "serve_app" / "demo" / "checkpoint" / "config.json"

needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"NOT TESTED: the page; there is no {CHROMIUM}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Its microphone hears half a minute of people who talk, over and over."""
    with Browser.launched(microphone=FOLDER / f"{NAME}.wav") as browser:
        yield browser


@pytest.fixture
def idle(cluster: Cluster) -> Cluster:
    eventually(lambda: cluster.ready() and cluster.info()["slots_free"] == SLOTS, WAIT_S)
    return cluster


def script(frames: int) -> list[Pcm]:
    return [sung(SINGER, frame) for frame in range(frames)]


async def until(found: Any, limit_s: float = 20.0) -> None:
    """Wait for something that the client does in its own threads."""
    async with asyncio.timeout(limit_s):
        while not found():
            await asyncio.sleep(0.05)


async def taped(page: Page, reel: str) -> Pcm:
    """What passed through the page's socket, decoded."""
    pages = await page.evaluate(f"tape.{reel}.map((page) => btoa(String.fromCharCode(...page)))")
    reader = sphn.OpusStreamReader(SAMPLE_RATE_HZ)
    return np.concatenate([reader.append_bytes(base64.b64decode(each)) for each in pages])


def likeness(one: Pcm, other: Pcm) -> float:
    """The best normalised correlation of a second from the middle of one anywhere in the other."""
    cut = one[len(one) // 2 :][:SAMPLE_RATE_HZ]
    products = np.correlate(other, cut, "valid")
    energies = np.convolve(other.astype(np.float64) ** 2, np.ones(len(cut)), "valid")
    return float((products / np.sqrt(np.maximum(energies, 1e-9) * (cut.astype(np.float64) ** 2).sum())).max())


def level_at(pcm: Pcm, frequency_hz: float) -> float:
    """Amplitude of a tone within a longer sound."""
    time_s = np.arange(len(pcm)) / SAMPLE_RATE_HZ
    return float(2 * np.abs(np.mean(pcm * np.exp(-2j * np.pi * frequency_hz * time_s))))


@needs_chromium
@in_loop
async def test_the_reference_client_and_a_browser_hear_themselves_at_the_same_time(
    idle: Cluster, browser: Browser
) -> None:
    card = SoundCard(script(FRAMES))
    async with browser.page(f"http://localhost:{idle.port}/") as page:
        await page.evaluate(TAPE)
        await page.click("#toggle")
        await page.until("document.body.dataset.state === 'live'")
        async with reference_client(idle.port, card) as diary:
            await until(lambda: card.said == FRAMES)
            await asyncio.sleep(0.5)
            assert await asyncio.to_thread(lambda: eventually(lambda: idle.info()["slots_used"] == 2, 5))
        await page.until("document.querySelector('#orb-it').style.getPropertyValue('--level') > 0.3")
        heard = await taped(page, "heard")
        said = await taped(page, "sent")
        assert page.console == []
    assert {level for level, _ in diary.logged} <= {"info", "warning"}
    assert [msg for level, msg in diary.logged if level == "warning"] == ["unknown message kind 0"]  # the handshake
    assert 4 * SAMPLE_RATE_HZ < len(heard) <= len(said)
    assert likeness(said[: len(heard)], heard) > 0.9
    assert level_at(heard, voice_hz(SINGER)) < AMPLITUDE / 20
    assert_sung(card)


def assert_sung(card: SoundCard) -> None:
    """All that was said was heard, in order and at its time, but for what came before the handshake."""
    singing = [frame for frame in card.played if level_at(frame, voice_hz(SINGER)) > AMPLITUDE / 2]
    lost = FRAMES - len(singing)
    assert 0 <= lost <= EARLY_FRAMES
    verdicts = [judged(frame, SINGER, lost + index) for index, frame in enumerate(singing)]
    assert verdicts[WARM_UP_FRAMES:] == ["own"] * (len(verdicts) - WARM_UP_FRAMES)


@in_loop
async def test_what_the_reference_client_says_before_the_handshake_deafens_nobody(idle: Cluster) -> None:
    card = SoundCard(script(FRAMES))
    async with reference_client(idle.port, card) as diary:
        assert card.said == 0
        await until(lambda: card.said == FRAMES)
        await asyncio.sleep(0.5)
    assert [level for level, _ in diary.logged].count("error") == 0
    assert_sung(card)


@in_loop
async def test_the_handshake_is_what_the_rust_and_web_clients_expect(idle: Cluster) -> None:
    async with asyncio.timeout(10), connect(f"{idle.chat}?{WEB_CLIENT_QUERY}", compression=None) as socket:
        assert await socket.recv() == bytes(1 + 4 + 4)  # kind, protocol version, model version
        visitor = Visitor(socket)
        for message in (b"\x06", b"\x03\x00", b'\x04{"client": "web"}'):  # ping, start, metadata
            await socket.send(message)
        await visitor.say(tone(440, 2))
        await visitor.listen_for(2)
        assert visitor.errors == []


@needs_chromium
@pytest.mark.skipif(not DEMO_CHECKPOINT.exists(), reason=f"NOT TESTED: the demo; there is no {DEMO_CHECKPOINT}")
def test_the_demo_repeats_each_of_them_to_themselves_and_writes(idle: Cluster, browser: Browser) -> None:
    with up(ROOT / "configs" / "demo.yaml") as cluster:
        assert not listened_to(cluster) & listened_to(idle), "two deployments would answer for each other"
        in_loop(_talk_to_the_demo)(cluster, browser)


async def _talk_to_the_demo(cluster: Cluster, browser: Browser) -> None:
    talk = read_recording()
    start, stop = talk.spans[0]
    spoken = np.concatenate([np.zeros(SAMPLE_RATE_HZ), talk.pcm[start:stop], np.zeros(3 * SAMPLE_RATE_HZ)])
    script = spoken[: len(spoken) // FRAME_SAMPLES * FRAME_SAMPLES].astype(np.float32).reshape(-1, FRAME_SAMPLES)
    card = SoundCard(list(script))
    async with browser.page(f"http://localhost:{cluster.port}/") as page:
        await page.evaluate(TAPE)
        await page.click("#toggle")
        await page.until("document.body.dataset.state === 'live'")
        async with reference_client(cluster.port, card) as diary:
            await until(lambda: card.said == len(script))
        await page.until("document.querySelector('#orb-it').style.getPropertyValue('--level') > 0.3")
        await page.until("document.querySelector('#text').innerText.trim()")
        assert page.console == []
        neighbour = loudness(await taped(page, "heard"))
    assert diary.text.strip()
    assert [level for level, _ in diary.logged].count("error") == 0
    said, heard = loudness(spoken), loudness(np.concatenate(card.played))
    likenesses = [np.corrcoef(said[: len(heard) - lag], heard[lag : lag + len(said)])[0, 1] for lag in range(LAGS)]
    lag = int(np.argmax(likenesses))
    assert likenesses[lag] > 0.7
    assert neighbour.max() > LOUD  # somebody else was repeated all the while
    quiet = np.convolve(said, np.ones(5), "same")[: len(heard) - lag] < QUIET  # nothing within two frames
    assert heard[lag:][: len(quiet)][quiet].max() < LOUD / 2


def listened_to(cluster: Cluster) -> set[int]:
    """Ports on which any process of a deployment waits for connections."""
    cluster.family.look()
    return {port for process in cluster.family.left() for port in listening_ports(process)}


def loudness(pcm: Pcm) -> Pcm:
    """Root mean square of each frame."""
    frames = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    return np.asarray(np.sqrt(np.mean(frames.astype(np.float32) ** 2, axis=1)), np.float32)
