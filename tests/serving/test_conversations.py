"""Conversations on a real cluster: controller, HAProxy and replicas as processes, real sockets, real Opus."""

import asyncio
import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Coroutine
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from tests.serving.cluster import WAIT_S, Cluster, eventually, maps
from tests.serving.conftest import SILENCE_S, SLOTS
from tests.serving.conversation import TEST_S, Visitor, loudest_hz, tone, visit

RECOVERY_S = 40.0


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run one test's coroutine with a bound."""

    async def bounded() -> None:
        async with asyncio.timeout(2 * TEST_S):
            await work

    asyncio.run(bounded())


@pytest.fixture(autouse=True)
def all_slots_free(cluster: Cluster) -> None:
    """Every test begins with an idle engine, so every test also shows that the one before gave its slots back."""
    eventually(lambda: cluster.ready() and cluster.info()["slots_free"] == SLOTS, RECOVERY_S)


async def refused(address: str, **options: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of a refusal before the upgrade."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(address, compression=None, **options)
    response = caught.value.response
    return response.status_code, json.loads(response.body or b""), dict(response.headers.raw_items())


async def echo(visitor: Visitor, frequency_hz: float, frames: int) -> None:
    """Say a tone in real time and hear all of it."""
    listening = asyncio.create_task(visitor.listen_for(frames))
    await visitor.say_in_real_time(tone(frequency_hz, frames))
    await listening


def test_a_visitor_that_asks_is_told_where_the_time_of_its_frames_went(cluster: Cluster) -> None:
    async def talk() -> None:
        async with visit(f"{cluster.chat}?latency=1") as visitor:
            await echo(visitor, 440, 25)
        told = [value for value in visitor.metadata if value["type"] == "latency"]
        assert told
        for report in told:
            assert report["frames"] > 0
            assert all(part["max"] <= report["ms"]["total"]["max"] for part in report["ms"].values())

    run(talk())


def test_a_visitor_hears_what_it_said(cluster: Cluster) -> None:
    async def talk() -> None:
        async with visit(cluster.chat) as visitor:
            await echo(visitor, 440, 25)
        assert loudest_hz(visitor.pcm) == pytest.approx(440, abs=10)

    run(talk())


def test_visitors_hear_themselves_and_nobody_else(cluster: Cluster) -> None:
    async def talk() -> None:
        async with visit(cluster.chat) as low, visit(cluster.chat) as high:
            await asyncio.gather(echo(low, 300, 25), echo(high, 900, 25))
        assert loudest_hz(low.pcm) == pytest.approx(300, abs=10)
        assert loudest_hz(high.pcm) == pytest.approx(900, abs=10)

    run(talk())


def test_one_visitor_too_many_is_told_before_the_upgrade(cluster: Cluster) -> None:
    async def talk() -> None:
        async with visit(cluster.chat), visit(cluster.chat), visit(cluster.chat):
            status, body, headers = await refused(cluster.chat)
        assert status == 503
        assert body["reason"] == "full"
        assert int(headers["retry-after"]) > 0

    run(talk())


def test_ready_tells_why_not_while_all_slots_are_taken(cluster: Cluster) -> None:
    async def talk() -> None:
        async with visit(cluster.chat), visit(cluster.chat), visit(cluster.chat):
            await asyncio.to_thread(eventually, lambda: not cluster.ready(), 5)
            assert cluster.get("/ready")[1]["reason"] == "full"

    run(talk())


@pytest.mark.parametrize(
    ("query", "name"),
    [("text_temperature=-1", "text_temperature"), ("audio_topk=x", "audio_topk"), ("pad_mult=101", "pad_mult")],
)
def test_a_wrong_parameter_is_refused_by_name_before_the_upgrade(cluster: Cluster, query: str, name: str) -> None:
    async def talk() -> None:
        status, body, _ = await refused(f"{cluster.chat}?{query}")
        assert (status, body["reason"]) == (400, "bad_parameter")
        assert name in body["message"]

    run(talk())


def test_a_wrong_path_is_not_found_for_sockets_and_pages_alike(cluster: Cluster) -> None:
    async def talk() -> None:
        status, body, _ = await refused(f"{cluster.chat}s/nowhere")
        assert (status, body["reason"]) == (404, "not_found")

    run(talk())
    for path in ("/nowhere", "/debug/ticks"):  # there is no operator's key here
        status, body = cluster.get(path)
        assert (status, body["reason"]) == (404, "not_found")


def test_a_page_of_another_origin_is_refused(cluster: Cluster) -> None:
    async def talk() -> None:
        status, body, _ = await refused(cluster.chat, origin="https://example.org")
        assert (status, body["reason"]) == (401, "not_allowed")
        async with visit(cluster.chat, origin=f"http://localhost:{cluster.port}"):
            pass

    run(talk())


def test_a_visitor_that_vanishes_gives_its_slot_back(cluster: Cluster) -> None:
    async def talk() -> None:
        async with visit(cluster.chat) as visitor:
            await asyncio.to_thread(eventually, lambda: cluster.info()["slots_free"] == SLOTS - 1, 5)
            visitor.socket.transport.abort()

    run(talk())
    eventually(lambda: cluster.info()["slots_free"] == SLOTS, WAIT_S)


def test_a_visitor_that_hides_its_going_from_ray_gives_its_slot_back_too(cluster: Cluster) -> None:
    async def talk() -> None:
        async with visit(cluster.chat, additional_headers={"x-request-disconnect-disabled": "?1"}) as visitor:
            await asyncio.to_thread(eventually, lambda: cluster.info()["slots_free"] == SLOTS - 1, 5)
            visitor.socket.transport.abort()

    run(talk())
    eventually(lambda: cluster.info()["slots_free"] == SLOTS, WAIT_S)


@pytest.mark.parametrize("content", ["hello", b"", b"\x63what is this"])
def test_meaningless_messages_are_dropped_until_patience_ends(cluster: Cluster, content: str | bytes) -> None:
    async def talk() -> None:
        async with visit(cluster.chat) as visitor:
            await visitor.socket.send(content)
            await echo(visitor, 440, 2)
            for _ in range(99):
                await visitor.socket.send(content)
            await visitor.listen()
        assert (visitor.close_code, visitor.close_reason) == (1008, "protocol_abuse")

    run(talk())


def test_a_message_over_64_kib_closes_with_1009(cluster: Cluster) -> None:
    async def talk() -> None:
        async with visit(cluster.chat) as visitor:
            await visitor.socket.send(b"\x01" + bytes(64 * 1024))
            await visitor.listen()
        assert (visitor.close_code, visitor.close_reason) == (1009, "message_too_large")

    run(talk())


def test_webm_is_named_once_and_then_closed_with_1007(cluster: Cluster) -> None:
    async def talk() -> None:
        async with visit(cluster.chat) as visitor:
            listening = asyncio.create_task(visitor.listen())
            for _ in range(40):
                if listening.done():
                    break
                await visitor.socket.send(b"\x01\x1aE\xdf\xa3" + bytes(200))
            await listening
        assert (visitor.close_code, visitor.close_reason) == (1007, "bad_audio")
        assert "WebM" in visitor.errors[0]
        assert len(visitor.errors) <= 3  # the reason once, and the last word

    run(talk())


def test_audio_faster_than_real_time_is_dropped_and_reported(cluster: Cluster) -> None:
    async def talk() -> None:
        async with visit(cluster.chat) as visitor:
            for _ in range(20):
                await visitor.say(tone(440, 12))
            while not visitor.metadata:
                visitor.take(await visitor.socket.recv())
        assert visitor.metadata[0]["type"] == "dropped"

    run(talk())


def test_a_silent_visitor_is_told_and_closed_with_1008(cluster: Cluster) -> None:
    async def talk() -> None:
        async with visit(cluster.chat) as visitor:
            await visitor.listen()
        assert (visitor.close_code, visitor.close_reason) == (1008, "no_audio")
        assert visitor.errors == [f"no audio for {SILENCE_S:g} s"]

    run(talk())


def test_others_go_on_undisturbed_while_somebody_sends_garbage(cluster: Cluster) -> None:
    async def vandal() -> None:
        async with visit(cluster.chat) as visitor:
            for _ in range(40):
                await visitor.socket.send(b"\x01RIFF" + bytes(500))
            await visitor.listen()

    async def talk() -> None:
        async with visit(cluster.chat) as visitor:
            await asyncio.gather(echo(visitor, 500, 25), vandal())
        assert loudest_hz(visitor.pcm) == pytest.approx(500, abs=10)
        assert visitor.metadata == []

    run(talk())


def test_info_shows_what_runs_and_what_passes(cluster: Cluster) -> None:
    async def talk() -> None:
        async with visit(cluster.chat) as visitor:
            await echo(visitor, 440, 12)

    run(talk())
    info = cluster.info()
    assert info["proxy_mode"] == "haproxy"
    assert info["model"] == "pass-through"
    assert info["slots"] == SLOTS
    assert 10 < info["bit_rate"]["opus_in_kbps"] < 200
    assert 10 < info["bit_rate"]["opus_out_kbps"] < 200
    assert eventually(lambda: cluster.info()["engines"][0]["stage_ms"].get("tick"), 5)["p50"] > 0
    assert info["versions"]["ray"]


def test_two_log_lines_tell_of_a_conversation_and_name_it(cluster: Cluster) -> None:
    since = len(cluster.lines)
    run(_one_conversation(cluster))

    def paired() -> bool:
        told = "\n".join(cluster.lines[since:])
        (name,) = re.findall(r"conversation start session=([0-9a-f]{8})\b", told)
        return len(re.findall(rf"conversation end cause=\w+ session={name} ", told)) == 1

    eventually(paired, RECOVERY_S)


def test_the_page_is_served(cluster: Cluster) -> None:
    with urllib.request.urlopen(f"{cluster.http}/", timeout=5) as response:
        assert response.headers["content-type"].startswith("text/html")
        assert b"<html" in response.read()


def test_a_gateway_never_loads_torch(cluster: Cluster) -> None:
    (gateway,) = cluster.replicas("Gateway")
    assert "_sphn" in maps(gateway) or "libopus" in maps(gateway) or "/av" in maps(gateway)  # the right process
    assert "libtorch" not in maps(gateway)


def test_visitors_of_a_killed_engine_are_told_and_the_engine_comes_back(cluster: Cluster) -> None:
    async def talk() -> None:
        async with visit(cluster.chat) as visitor:
            await echo(visitor, 440, 3)
            (engine,) = cluster.replicas("Engine")
            began_s = time.monotonic()
            os.kill(engine, signal.SIGKILL)
            await visitor.listen()
            assert time.monotonic() - began_s <= 2
        assert (visitor.close_code, visitor.close_reason) == (1012, "engine_lost")

    run(talk())
    eventually(cluster.ready, RECOVERY_S)
    run(_one_conversation(cluster))


def test_slots_of_a_killed_gateway_come_back(cluster: Cluster) -> None:
    async def talk() -> None:
        async with visit(cluster.chat) as visitor:
            (gateway,) = cluster.replicas("Gateway")
            os.kill(gateway, signal.SIGKILL)
            with pytest.raises(ConnectionClosedError):
                await visitor.socket.recv()

    run(talk())
    eventually(lambda: cluster.ready() and cluster.info()["slots_free"] == SLOTS, RECOVERY_S)
    run(_one_conversation(cluster))


async def _one_conversation(cluster: Cluster) -> None:
    async with visit(cluster.chat) as visitor:
        await echo(visitor, 440, 12)
    assert loudest_hz(visitor.pcm) == pytest.approx(440, abs=10)


def test_engines_and_gateways_run_at_the_priority_of_who_started_them(cluster: Cluster) -> None:
    started = os.getpriority(os.PRIO_PROCESS, cluster.process.pid)
    for deployment in ("Engine", "Gateway"):
        for process in cluster.replicas(deployment):
            assert os.getpriority(os.PRIO_PROCESS, process) == started
