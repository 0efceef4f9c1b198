"""The outbox: bounded per session, oldest frame out first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import LinkError
from serve_app.link.codec import Decoder, encode
from serve_app.link.limits import LinkLimits
from serve_app.link.messages import Detach, Downward, Dropped, Ended, Key, Message, Opened, Output
from serve_app.link.outbox import Outbox
from tests.link.fakes import frame, output

ALICE, BOB = Key(0, 0), Key(1, 0)
OUTPUT_BYTES = len(encode(output(ALICE, 0, frame(0.0))))
FOUR_OUTPUTS = LinkLimits(session_bytes=4 * OUTPUT_BYTES)
EVERYTHING = 1 << 30


def numbers(messages: list[Message], key: Key) -> list[int]:
    return [message.number for message in messages if isinstance(message, Output) and message.key == key]


def test_what_is_put_is_taken_in_order() -> None:
    outbox = Outbox(FOUR_OUTPUTS)
    messages: list[Downward] = [Opened(ALICE), output(ALICE, 0), output(ALICE, 1), Ended(ALICE)]
    outbox.put(messages)
    data, lost = outbox.take(EVERYTHING)
    assert Decoder().feed(data) == messages
    assert lost == []
    assert len(outbox) == 0


def test_full_session_loses_its_oldest_outputs_and_take_says_how_many() -> None:
    outbox = Outbox(FOUR_OUTPUTS)
    outbox.put(output(ALICE, number, frame(0.0)) for number in range(10))
    data, lost = outbox.take(EVERYTHING)
    assert numbers(Decoder().feed(data), ALICE) == [6, 7, 8, 9]
    assert lost == [Dropped(ALICE, 6, "outbox")]
    assert outbox.take(EVERYTHING) == (b"", [])


def test_slow_session_takes_no_room_from_another() -> None:
    outbox = Outbox(FOUR_OUTPUTS)
    outbox.put(output(ALICE, number, frame(0.0)) for number in range(100))
    outbox.put(output(BOB, number, frame(0.0)) for number in range(4))
    data, lost = outbox.take(EVERYTHING)
    assert numbers(Decoder().feed(data), BOB) == [0, 1, 2, 3]
    assert [dropped.key for dropped in lost] == [ALICE]


def test_opening_and_ending_are_never_lost() -> None:
    outbox = Outbox(FOUR_OUTPUTS)
    outbox.put([Opened(ALICE)])
    outbox.put(output(ALICE, number, frame(0.0)) for number in range(10))
    outbox.put([Ended(ALICE)])
    messages = Decoder().feed(outbox.take(EVERYTHING)[0])
    assert messages[0] == Opened(ALICE)
    assert messages[-1] == Ended(ALICE)


def test_sessions_take_turns_when_little_may_be_written() -> None:
    outbox = Outbox(FOUR_OUTPUTS)
    for key in (ALICE, BOB):
        outbox.put(output(key, number, frame(0.0)) for number in range(2))
    taken = [Decoder().feed(outbox.take(1)[0])[0] for _ in range(4)]
    assert [message.key for message in taken if isinstance(message, Output)] == [ALICE, BOB, ALICE, BOB]


def test_closed_outbox_holds_nothing() -> None:
    outbox = Outbox(FOUR_OUTPUTS)
    outbox.put([Opened(ALICE)])
    outbox.close()
    outbox.put([Opened(BOB)])
    assert len(outbox) == 0


def test_sessions_with_something_waiting_are_capped() -> None:
    outbox = Outbox(LinkLimits(connection_sessions=2))
    assert outbox.put([Ended(Key(0, 0)), Ended(Key(1, 0)), Ended(Key(1, 0))])
    assert not outbox.put([Ended(Key(2, 0))])
    assert (len(outbox), outbox.waiting_bytes) == (0, 0)


def test_bytes_of_all_sessions_together_are_capped() -> None:
    outbox = Outbox(LinkLimits(connection_bytes=3 * OUTPUT_BYTES))
    assert all(outbox.put([output(Key(slot, 0), 0, frame(0.0))]) for slot in range(3))
    outbox.take(1)
    assert outbox.put([output(Key(3, 0), 0, frame(0.0))])
    assert not outbox.put([output(Key(4, 0), 0, frame(0.0))])


def test_endings_that_cannot_be_dropped_are_capped_too() -> None:
    outbox = Outbox(FOUR_OUTPUTS)
    assert not all(outbox.put([Ended(ALICE)]) for _ in range(4 * OUTPUT_BYTES))
    assert outbox.waiting_bytes == 0


def test_message_that_cannot_be_encoded_is_refused_whole() -> None:
    outbox = Outbox(FOUR_OUTPUTS)
    with pytest.raises(LinkError):
        outbox.put([Detach(ALICE), Detach(Key(-1, 0))])
    assert len(outbox) == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3))))
def test_outputs_put_equal_taken_plus_lost_plus_waiting(actions: list[tuple[bool, int]]) -> None:
    outbox = Outbox(FOUR_OUTPUTS)
    decoder = Decoder()
    put = taken = dropped = 0
    for is_put, amount in actions:
        if is_put:
            outbox.put(output(ALICE, put + index, frame(0.0)) for index in range(amount))
            put += amount
        else:
            data, lost = outbox.take(amount * OUTPUT_BYTES)
            taken += len(decoder.feed(data))
            dropped += sum(loss.frames for loss in lost)
    data, lost = outbox.take(EVERYTHING)
    waiting = len(decoder.feed(data))
    assert waiting <= 4
    assert put == taken + waiting + dropped + sum(loss.frames for loss in lost)
