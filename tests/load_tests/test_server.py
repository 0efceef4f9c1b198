import asyncio

import pytest

from load_tests.server import asked, seconds_until_free, slots, ticket, with_ticket
from serve_app.client.failures import RequestRefused, ServerUnreachable, UnexpectedServer
from tests.client.echo import EchoServer
from tests.client.loop import in_loop


class Time:
    def __init__(self) -> None:
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def waited(*used: int, at_most: int = 0, limit_s: float = 1.0) -> tuple[float, int]:
    time, answers = Time(), list(used)
    return seconds_until_free(lambda: answers.pop(0), at_most, limit_s, time.clock, time.sleep)


def test_slots_are_asked_for_until_they_are_free() -> None:
    assert waited(0) == (0.0, 0)
    assert waited(3, 1, 0) == (0.5, 0)


def test_slots_that_were_used_before_are_nobodys_leak() -> None:
    assert waited(4, 2, at_most=2) == (0.25, 0)


def test_slots_that_stay_used_are_counted() -> None:
    assert waited(9, 9, 9, 9, 2) == (float("inf"), 2)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [("ws://h/api/chat", "ws://h/api/chat?ticket=a%2Bb"), ("ws://h/api/chat?x=1", "ws://h/api/chat?x=1&ticket=a%2Bb")],
)
def test_a_ticket_goes_into_the_address(url: str, wanted: str) -> None:
    assert with_ticket(url, "a+b") == wanted


def test_nobody_at_the_address_is_a_typed_error() -> None:
    with pytest.raises(ServerUnreachable):
        slots("http://127.0.0.1:9", {})


@in_loop
async def test_what_a_server_says_wrongly_is_a_typed_error() -> None:
    async with EchoServer().running() as server:
        with pytest.raises(UnexpectedServer, match="no slots"):
            await asyncio.to_thread(slots, server.url, {})
        with pytest.raises(RequestRefused, match="404"):
            await asyncio.to_thread(asked, server.url, "/none", {})
        with pytest.raises(UnexpectedServer, match="gave none"):
            await asyncio.to_thread(ticket, server.url, {})
