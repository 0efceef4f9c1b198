"""What the directory remembers, and what a gateway makes of it."""

import asyncio
import dataclasses
from collections.abc import Sequence

import pytest

from serve_app.errors import EngineDraining, EngineFull, EngineLate, EngineLost, ModelUnknown
from serve_app.serving.directory import EXPIRY_S, Directory, EngineCard, TextModel
from serve_app.serving.roster import LOST_S, REMEMBERED_S, STALE_S, Roster
from serve_app.serving.tick_trace import EngineTicks
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


def test_engines_hear_that_their_ticks_are_wanted_once_for_each_question() -> None:
    directory = Directory(Clock())
    assert not directory.report(CARD).offer_ticks
    for _ in range(2):
        directory.ask_for_ticks()
        assert directory.report(CARD).offer_ticks
        directory.offer_ticks(EngineTicks(CARD.engine, 0.0, ()))
        assert not directory.report(CARD).offer_ticks


def test_a_question_is_answered_when_every_engine_that_lives_has_left_its_ticks_since() -> None:
    clock = Clock()
    directory = Directory(clock)
    for name in ("one", "two", "dead"):
        directory.report(dataclasses.replace(CARD, engine=name))
        directory.offer_ticks(EngineTicks(name, 0.0, ()))
    question = directory.ask_for_ticks()
    assert directory.ticks(question) == ([], False)
    directory.offer_ticks(EngineTicks("one", 1.0, ()))
    clock.now_s += EXPIRY_S + 0.1
    for name in ("one", "two"):
        directory.report(dataclasses.replace(CARD, engine=name))
    assert directory.ticks(question) == ([EngineTicks("one", 1.0, ())], False)
    directory.offer_ticks(EngineTicks("two", 2.0, ()))
    assert directory.ticks(question) == ([EngineTicks("one", 1.0, ()), EngineTicks("two", 2.0, ())], True)


def test_a_question_to_no_engine_is_answered_at_once() -> None:
    directory = Directory(Clock())
    assert directory.ticks(directory.ask_for_ticks()) == ([], True)


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
    assert roster(Client(dataclasses.replace(CARD, offer=published)), Clock()).served().offer == published


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


OTHER = dataclasses.replace(
    CARD, engine="other", model="tiny", application="engine-tiny", offer=Offer(voices=("anna",))
)


def test_the_model_of_the_first_application_answers_who_names_none() -> None:
    for cards in ((CARD, OTHER), (OTHER, CARD)):
        made = roster(Client(*cards), Clock())
        assert (made.served().name, made.served().application) == ("m", "engine")
        assert [model.name for model in made.models] == ["m", "tiny"]


def test_a_model_is_asked_for_by_name_where_its_engines_are_and_with_its_own_offer() -> None:
    found = roster(Client(CARD, OTHER), Clock()).served("tiny")
    assert (found.application, found.offer) == ("engine-tiny", OTHER.offer)


def test_an_unknown_model_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ModelUnknown) as refused:
        roster(Client(CARD, OTHER), Clock()).served("big")
    assert str(refused.value) == "no such model: 'big'; there is m, tiny"


@pytest.mark.parametrize("cards", [(), (OTHER,)])
def test_another_model_never_answers_for_the_first_one_that_is_not_there_yet(cards: tuple[EngineCard, ...]) -> None:
    with pytest.raises(EngineLost):
        roster(Client(*cards), Clock()).served()


def test_each_model_has_obstacles_of_its_own() -> None:
    made = roster(Client(CARD, dataclasses.replace(OTHER, used=4)), Clock())
    assert made.obstacle(model="m") is None
    assert isinstance(made.obstacle(model="tiny"), EngineFull)
    assert made.obstacle() is None


def test_a_model_whose_engines_are_gone_comes_back_until_it_has_been_away_for_long() -> None:
    clock, client = Clock(), Client(CARD, OTHER)
    made = roster(client, clock)
    client.cards.remove(OTHER)
    clock.now_s = REMEMBERED_S
    asyncio.run(made.refresh())
    assert made.served("tiny").application == "engine-tiny"
    assert isinstance(made.obstacle(model="tiny"), EngineLost)
    clock.now_s = REMEMBERED_S + 1
    asyncio.run(made.refresh())
    with pytest.raises(ModelUnknown):
        made.served("tiny")


def test_while_one_version_replaces_another_the_first_model_is_that_of_the_one_that_stays() -> None:
    old = dataclasses.replace(CARD, draining=True)
    new = dataclasses.replace(CARD, engine="two", model="m2")
    for cards in ((old, new), (new, old)):
        assert roster(Client(*cards), Clock()).served().name == "m2"


def test_a_model_that_cannot_be_warmed_is_not_ready_and_others_are() -> None:
    async def warm(engines: Sequence[EngineCard]) -> None:
        if engines[0].model == "tiny":
            raise LookupError

    made = Roster(Client(CARD, OTHER), Clock(), warm, set)
    with pytest.raises(LookupError):
        asyncio.run(made.refresh())
    assert made.obstacle(model="m") is None
    assert isinstance(made.obstacle(model="tiny"), EngineLost)


def test_an_engine_that_misses_its_deadlines_has_no_seat_for_anybody_until_it_does_not() -> None:
    late = dataclasses.replace(CARD, late=True)
    assert isinstance(roster(Client(late), Clock()).obstacle(), EngineLate)
    assert roster(Client(late, dataclasses.replace(CARD, engine="two")), Clock()).obstacle() is None
    full = dataclasses.replace(late, used=4)
    assert type(roster(Client(full), Clock()).obstacle()) is EngineFull


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
    assert roster(Client(old, new), Clock()).served().name == "second"
