"""Guidance, conditions and prompts on a real cluster with a small random translation model."""

import asyncio
import json
import wave
from collections.abc import Coroutine, Iterator
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from serve_app.demo.random_checkpoint import write_checkpoint
from serve_app.demo.shapes import SHAPES
from tests.serving.cluster import Cluster, changed, eventually, up
from tests.serving.conversation import TEST_S, tone, visit

SLOTS, ROWS = 3, 3
RECOVERY_S = 40.0
CONTEXT = int(SHAPES["hibiki"].config["context"])


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three slots with as many rows, so that a guided conversation leaves one."""
    folder = tmp_path_factory.mktemp("family")
    write_checkpoint(SHAPES["hibiki"], folder / "model")
    voices = folder / "voices"
    voices.mkdir()
    for name in ("anna", "bert"):
        with wave.open(str(voices / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(24_000)
            file.writeframes((8_000 * tone(300, 4)).astype("<i2").tobytes())
    engine = {"runner": "model", "checkpoint": {"folder": str(folder / "model")}, "slots": SLOTS, "rows": ROWS}
    engine |= {"threads": 1, "prompts": {"voices": str(voices), "pause_steps": 2}}
    with up(changed("passthrough.yaml", folder, engine, {"grant_wait_s": 1.0})) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def all_rows_free(family: Cluster) -> None:
    eventually(lambda: family.ready() and family.info()["engines"][0]["rows_used"] == 0, RECOVERY_S)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run one test's coroutine with a bound."""

    async def bounded() -> None:
        async with asyncio.timeout(2 * TEST_S):
            await work

    asyncio.run(bounded())


def asking(cluster: Cluster, **query: str) -> str:
    return f"{cluster.chat}?{urlencode(query)}"


async def refused(address: str) -> tuple[int, dict[str, Any]]:
    """Status and body of a refusal before the upgrade."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(address, compression=None)
    return caught.value.response.status_code, json.loads(caught.value.response.body or b"")


async def answered(address: str, frames: int = 8) -> None:
    """Say some frames and hear that the model speaks."""
    async with visit(address) as visitor:
        listening = asyncio.create_task(visitor.listen_for(frames - 4))
        await visitor.say_in_real_time(tone(300, frames))
        await listening
        assert np.isfinite(visitor.pcm).all()


@pytest.mark.parametrize(
    ("query", "allowed"),
    [
        ({"condition.description": "splendid"}, "very_bad, bad, neutral, good, very_good"),
        ({"condition.description": "../very_good"}, "very_bad, bad, neutral, good, very_good"),
        ({"condition.voice": "x"}, "description"),
        ({"voice_prompt": "carl"}, "anna, bert"),
        ({"voice_prompt": "../voices/anna.wav"}, "anna, bert"),
        ({"text_prompt": "hello " * 100}, f"longer than the context of {CONTEXT}"),
        ({"cfg_coef": "nan"}, "finite"),
        ({"cfg_coef": "1000"}, "between 0 and 20"),
        ({"extra_heads": "1"}, "has none"),
    ],
)
def test_what_is_not_offered_is_a_bad_request_that_says_what_is(
    family: Cluster, query: dict[str, str], allowed: str
) -> None:
    async def knock() -> None:
        status, body = await refused(asking(family, **query))
        assert (status, body["reason"]) == (400, "bad_parameter")
        assert allowed in body["message"]

    run(knock())


def test_a_guided_conversation_with_a_condition_and_a_prompt_is_answered(family: Cluster) -> None:
    query = {"cfg_coef": "3", "condition.description": "good", "voice_prompt": "anna.pt", "text_prompt": "hi"}
    run(answered(asking(family, **query)))


def test_a_guided_visitor_reads_that_rows_are_missing_while_a_plain_one_comes_in(family: Cluster) -> None:
    async def talk() -> None:
        async with visit(asking(family, cfg_coef="3")):
            status, body = await refused(asking(family, cfg_coef="2"))
            assert (status, body["reason"]) == (503, "full")
            assert body["message"] == "a guided session needs 2 rows of the batch and 1 is free"
            await answered(asking(family))

    run(talk())


def test_the_second_visitor_with_a_prompt_finds_it_ready(family: Cluster) -> None:
    def counters() -> dict[str, int]:
        told: dict[str, int] = family.info()["engines"][0]["counters"]
        return told

    before = counters()["prefix_hits"]
    address = asking(family, voice_prompt="bert", text_prompt="hey")
    for _ in range(2):
        run(answered(address))
    eventually(lambda: counters()["prefix_hits"] == before + 1, RECOVERY_S)
    assert counters()["prefix_bytes"] > 0


def test_what_may_be_asked_for_can_be_read(family: Cluster) -> None:
    parameters = family.info()["parameters"]
    assert parameters["conditions"] == {"description": ["very_bad", "bad", "neutral", "good", "very_good"]}
    assert (parameters["voices"], parameters["prompt_steps"]) == (["anna", "bert"], CONTEXT)


def test_a_visitor_who_leaves_before_the_handshake_frees_every_row(family: Cluster) -> None:
    async def knock_and_go() -> None:
        for number in range(5):
            query = urlencode({"text_prompt": f"no {number}", "cfg_coef": "2"})
            async with connect(f"{family.chat}?{query}", compression=None):
                pass
            eventually(lambda: family.info()["engines"][0]["rows_used"] == 0, RECOVERY_S)

    run(knock_and_go())
