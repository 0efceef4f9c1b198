"""What the directory remembers, and what a gateway makes of it."""

import asyncio
import dataclasses

import pytest

from serve_app.errors import EngineDraining, EngineFull, EngineLost
from serve_app.serving.directory import EXPIRY_S, Directory, EngineCard, TextModel
from serve_app.serving.roster import LOST_S, STALE_S, Roster
from serve_app.spec import Offer, Sampling

CARD = EngineCard(
    engine="one",
    address="127.0.0.1:1",
    slots=4,
    used=1,
    draining=False,
    healthy=True,
    model="m",
    device="cpu",
    dtype="float32",
    state_bytes_per_slot=0,
    process_bytes=0,
    dep_q=8,
    codebook_bits=11,
    stage_ms={},
    frame_ms={},
    rows_per_tick=0.0,
    versions={},
    text_model=None,
    rows=4,
    rows_used=1,
    offer=Offer(),
    counters={},
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Client:
    """A directory in the same process."""

    def __init__(self, *cards: EngineCard) -> None:
        self.cards = list(cards)

    async def engines(self) -> list[EngineCard]:
        return list(self.cards)

    async def text_model(self, digest: str) -> bytes | None:
        return None


def roster(client: Client, clock: Clock, lost: set[str] | None = None) -> Roster:
    async def warm(engines: object) -> None:
        pass

    made = Roster(client, clock, warm, lambda: lost or set())
    asyncio.run(made.refresh())
    return made


def test_an_engine_that_says_nothing_is_forgotten() -> None:
    clock = Clock()
    directory = Directory(clock)
    directory.report(CARD)
    clock.now_s = EXPIRY_S
    assert directory.engines() == [CARD]
    clock.now_s = EXPIRY_S + 0.1
    assert directory.engines() == []


def test_the_last_card_of_an_engine_counts() -> None:
    directory = Directory(Clock())
    directory.report(CARD)
    busy = dataclasses.replace(CARD, used=4)
    directory.report(busy)
    assert directory.engines() == [busy]


def test_engines_are_told_to_drain_once_everything_closes() -> None:
    directory = Directory(Clock())
    assert not directory.report(CARD).drain
    directory.close()
    assert directory.report(CARD).drain


def test_a_text_model_is_kept_for_gateways() -> None:
    directory = Directory(Clock())
    assert directory.text_model("digest") is None
    directory.offer_text_model("digest", b"bytes")
    assert directory.text_model("digest") == b"bytes"


def test_a_directory_asks_for_a_text_model_until_it_has_it_and_a_new_one_asks_again() -> None:
    writes = dataclasses.replace(CARD, text_model=TextModel("digest", (0, 3)))
    for directory in (Directory(Clock()), Directory(Clock())):  # the second: its actor was started anew
        assert not directory.report(CARD).offer_text_model
        assert directory.report(writes).offer_text_model
        directory.offer_text_model("digest", b"bytes")
        assert not directory.report(writes).offer_text_model


def test_a_free_slot_is_no_obstacle() -> None:
    assert roster(Client(CARD), Clock()).obstacle() is None


def test_no_engine_or_only_sick_ones_is_engine_lost() -> None:
    assert isinstance(roster(Client(), Clock()).obstacle(), EngineLost)
    assert isinstance(roster(Client(dataclasses.replace(CARD, healthy=False)), Clock()).obstacle(), EngineLost)


def test_all_draining_and_all_taken_are_told_apart() -> None:
    assert isinstance(roster(Client(dataclasses.replace(CARD, draining=True)), Clock()).obstacle(), EngineDraining)
    assert isinstance(roster(Client(dataclasses.replace(CARD, used=4)), Clock()).obstacle(), EngineFull)


def test_one_engine_with_room_is_enough() -> None:
    full = dataclasses.replace(CARD, engine="two", used=4)
    assert roster(Client(full, CARD), Clock()).obstacle() is None


def test_old_news_is_no_news() -> None:
    clock = Clock()
    made = roster(Client(CARD), clock)
    clock.now_s = STALE_S + 0.1
    assert isinstance(made.obstacle(), EngineLost)


def test_an_engine_whose_connection_broke_is_gone_at_once_and_its_successor_is_not() -> None:
    lost: set[str] = set()
    client = Client(CARD)
    made = roster(client, Clock(), lost)
    lost.add(CARD.address)
    assert isinstance(made.obstacle(), EngineLost)
    lost.clear()
    client.cards.append(dataclasses.replace(CARD, engine="successor"))
    asyncio.run(made.refresh())
    assert [card.engine for card in made.engines] == ["successor"]


def test_an_engine_that_only_lost_a_connection_is_asked_again_a_little_later() -> None:
    lost: set[str] = set()
    clock = Clock()
    made = roster(Client(CARD), clock, lost)
    lost.add(CARD.address)
    assert isinstance(made.obstacle(), EngineLost)
    lost.clear()
    clock.now_s = LOST_S - 0.1
    asyncio.run(made.refresh())
    assert isinstance(made.obstacle(), EngineLost)
    clock.now_s = LOST_S
    assert made.obstacle() is None


def test_an_engine_that_died_is_avoided_until_the_directory_has_forgotten_it() -> None:
    assert LOST_S >= EXPIRY_S


def test_who_asks_for_nothing_gets_what_the_model_was_published_with() -> None:
    published = Offer(sampling=Sampling(text_temperature=0.5, audio_top_k=100))
    assert roster(Client(dataclasses.replace(CARD, offer=published)), Clock()).offer() == published
    assert roster(Client(), Clock()).offer() is None


def test_a_guided_session_finds_no_room_where_one_row_is_free_and_an_unguided_one_does() -> None:
    made = roster(Client(dataclasses.replace(CARD, rows_used=3)), Clock())
    assert made.obstacle(1) is None
    assert str(made.obstacle(2)) == str(EngineFull(4, 2, 1))


def test_a_gateway_is_not_ready_before_it_is_warm() -> None:
    async def cold(engines: object) -> None:
        raise LookupError

    made = Roster(Client(CARD), Clock(), cold, set)
    with pytest.raises(LookupError):
        asyncio.run(made.refresh())
    assert isinstance(made.obstacle(), EngineLost)


def test_an_engine_that_goes_is_remembered_although_its_card_is_forgotten() -> None:
    clock = Clock()
    client = Client(dataclasses.replace(CARD, draining=True, leaves_in_s=30.0))
    made = roster(client, clock)
    clock.now_s = 10.0
    client.cards = []  # the directory was replaced together with the engine
    asyncio.run(made.refresh())
    assert made.leaves_in_s(CARD.address) == 20.0
    clock.now_s = 100.0
    assert made.leaves_in_s(CARD.address) == 0.0


def test_engines_that_stay_and_sessions_without_one_have_no_end() -> None:
    client = Client(dataclasses.replace(CARD, leaves_in_s=30.0))
    made = roster(client, Clock())
    assert made.leaves_in_s(None) is None
    assert made.leaves_in_s("elsewhere") is None
    client.cards = [dataclasses.replace(CARD, engine="successor")]  # on the same port
    asyncio.run(made.refresh())
    assert made.leaves_in_s(CARD.address) is None


def test_what_a_newcomer_will_get_is_what_those_offer_who_stay() -> None:
    old = dataclasses.replace(CARD, engine="old", model="first", draining=True)
    new = dataclasses.replace(CARD, engine="new", model="second")
    assert roster(Client(old, new), Clock()).model() == "second"
