"""A channel alone: bounds and endings."""

import asyncio

import numpy as np
import pytest

from serve_app.errors import EngineLost, SessionFault, ShapeError
from serve_app.link.channel import Channel
from serve_app.link.messages import Detach, Dropped, Ended, Frame, Key, Opened, Upward
from tests.link.fakes import frame, on_loop, output, rest

KEY = Key(4, 2)


def a_channel(max_events: int = 4) -> tuple[Channel, list[Upward]]:
    sent: list[Upward] = []
    return Channel(KEY, sent.append, max_events=max_events), sent


@on_loop
async def test_frames_go_up_in_order() -> None:
    channel, sent = a_channel()
    for number in range(3):
        channel.send(number, frame(number))
    assert sent == [Frame(KEY, number, frame(number)) for number in range(3)]
    assert channel.sent_frames == 3


@on_loop
async def test_frame_of_another_length_is_refused() -> None:
    channel, sent = a_channel()
    with pytest.raises(ShapeError):
        channel.send(0, np.zeros(1_919, np.float32))
    assert sent == []


@on_loop
async def test_events_end_after_ended() -> None:
    channel, _ = a_channel()
    for message in (Opened(KEY), output(KEY, 0), Ended(KEY), output(KEY, 1)):
        channel.deliver(message)
    assert await rest(channel) == [output(KEY, 0), Ended(KEY)]
    assert await rest(channel) == []


@on_loop
async def test_reader_waits_for_what_comes_later() -> None:
    channel, _ = a_channel()
    reading = asyncio.create_task(rest(channel))
    await asyncio.sleep(0)
    channel.deliver(output(KEY, 0))
    await asyncio.sleep(0)
    channel.deliver(Ended(KEY))
    assert await reading == [output(KEY, 0), Ended(KEY)]


@on_loop
async def test_slow_reader_loses_the_oldest_and_is_told() -> None:
    channel, _ = a_channel(max_events=4)
    for number in range(10):
        channel.deliver(output(KEY, number))
    channel.deliver(Ended(KEY))
    events = await rest(channel)
    assert events == [Dropped(KEY, 6, "reader"), *(output(KEY, number) for number in range(6, 10)), Ended(KEY)]
    assert channel.dropped_outputs == 6


@on_loop
async def test_drops_that_are_dropped_count_their_frames() -> None:
    channel, _ = a_channel(max_events=1)
    channel.deliver(Dropped(KEY, 5, "lag"))
    channel.deliver(output(KEY, 0))
    channel.deliver(Ended(KEY))
    assert await rest(channel) == [Dropped(KEY, 5, "reader"), output(KEY, 0), Ended(KEY)]


@on_loop
async def test_closing_twice_detaches_once() -> None:
    channel, sent = a_channel()
    channel.close()
    channel.close()
    assert sent == [Detach(KEY)]


@on_loop
async def test_frame_after_closing_is_counted_and_not_sent() -> None:
    channel, sent = a_channel()
    channel.close()
    channel.send(0, frame(0.0))
    assert sent == [Detach(KEY)]
    assert channel.late_frames == 1


@on_loop
async def test_channel_that_has_ended_detaches_no_more() -> None:
    channel, sent = a_channel()
    channel.deliver(Ended.of(KEY, EngineLost()))
    channel.close()
    assert sent == []
    assert channel.ended


@on_loop
async def test_opening_that_fails_raises_the_sessions_error() -> None:
    channel, _ = a_channel()
    channel.deliver(Ended.of(KEY, SessionFault("its slot could not be opened")))
    with pytest.raises(SessionFault, match="could not be opened"):
        await channel.opened(10.0)


@on_loop
async def test_opening_that_takes_too_long_gives_the_slot_back() -> None:
    channel, sent = a_channel()
    with pytest.raises(TimeoutError):
        await channel.opened(0.0)
    assert sent == [Detach(KEY)]
