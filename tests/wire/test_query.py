import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import ParameterRefused
from serve_app.spec import MAX_SEED, MIN_TEMPERATURE, Offer, Prompt, Sampling, SessionSpec
from serve_app.wire.query import model_asked, parameters_in, parse_chat_query

WEB_CLIENT = {
    "worker_auth_id": "abc",
    "email": "a@b.c",
    "text_temperature": "0.7",
    "text_topk": "25",
    "audio_temperature": "0.8",
    "audio_topk": "250",
    "pad_mult": "0",
    "text_seed": "123456",
    "audio_seed": "654321",
    "repetition_penalty_context": "64",
    "repetition_penalty": "1",
}


def refused(**query: str) -> ParameterRefused:
    with pytest.raises(ParameterRefused) as caught:
        parse_chat_query(query)
    return caught.value


def test_web_clients_own_query_is_taken_as_it_stands() -> None:
    want = Sampling(
        text_temperature=0.7,
        text_top_k=25,
        audio_temperature=0.8,
        audio_top_k=250,
        text_seed=123456,
        audio_seed=654321,
    )
    assert parse_chat_query(WEB_CLIENT).sampling == want


def test_empty_query_gets_defaults_and_two_fresh_seeds() -> None:
    seeds = itertools.count(7)
    got = parse_chat_query({}, fresh_seed=lambda: next(seeds)).sampling
    assert got == Sampling(text_seed=7, audio_seed=8)


@pytest.mark.parametrize("spelling", ["-1", ""])
def test_seed_left_open_is_drawn(spelling: str) -> None:
    query = {"text_seed": spelling, "audio_seed": "5"}
    assert parse_chat_query(query, fresh_seed=lambda: 9).sampling == Sampling(text_seed=9, audio_seed=5)


def test_what_the_model_was_published_with_stands_in_for_what_the_query_leaves_out() -> None:
    published = Sampling(text_temperature=0.5, text_top_k=5, audio_temperature=0.6, audio_top_k=6)
    sampling = parse_chat_query({"audio_topk": "7"}, Offer(sampling=published)).sampling
    assert (sampling.text_temperature, sampling.text_top_k) == (0.5, 5)
    assert (sampling.audio_temperature, sampling.audio_top_k) == (0.6, 7)


def test_names_that_nobody_knows_are_ignored() -> None:
    query = {**WEB_CLIENT, "max_steps": "4000", "x" * 500: "y"}
    assert parse_chat_query(query) == parse_chat_query(WEB_CLIENT)


def test_personaplex_prompts_are_read_with_voices_named_as_files() -> None:
    query = {**WEB_CLIENT, "text_prompt": " You are wise.", "voice_prompt": "NATF0.pt", "seed": "-1"}
    assert parse_chat_query(query).spec.prompt == Prompt(text="You are wise.", voice="NATF0")


def test_empty_prompts_are_no_prompt() -> None:
    assert parse_chat_query({"text_prompt": "  ", "voice_prompt": ""}).spec.prompt is None


def test_one_seed_for_everything_yields_to_a_streams_own() -> None:
    assert parse_chat_query({"seed": "5", "audio_seed": "6"}).sampling == Sampling(text_seed=5, audio_seed=6)


def test_everything_of_the_family_reaches_the_spec() -> None:
    query = {"cfg_coef": "3", "condition.speed": "slow", "condition.mood": "", "condition.accent": "south"}
    query |= {"extra_heads": "1", "repetition_penalty": "1.2", "repetition_penalty_context": "32", "pad_mult": "-0.5"}
    query |= {"seed": "1"}
    assert parse_chat_query(query).spec == SessionSpec(
        sampling=Sampling(text_seed=1, audio_seed=1),
        conditions=(("accent", "south"), ("speed", "slow")),
        guidance=3.0,
        repetition_penalty=1.2,
        repetition_penalty_context=32,
        pad_mult=-0.5,
        extra_heads=True,
    )


@pytest.mark.parametrize(("query", "wanted"), [({}, False), ({"latency": "0"}, False), ({"latency": "1"}, True)])
def test_where_the_time_went_is_told_to_whom_asks(query: dict[str, str], wanted: bool) -> None:
    assert parse_chat_query(query).latency is wanted


@pytest.mark.parametrize("value", ["2", "-1", "yes", "", "1.0"])
def test_a_wish_for_latency_that_is_neither_0_nor_1_is_refused(value: str) -> None:
    assert refused(latency=value).name == "latency"


def test_the_offer_fills_what_the_client_leaves_out() -> None:
    offer = Offer(guided=True, guidance=2.0, sampling=Sampling(text_temperature=0.0, audio_top_k=9))
    spec = parse_chat_query({"audio_temperature": "0.5"}, offer, fresh_seed=lambda: 0).spec
    assert spec == SessionSpec(
        sampling=Sampling(text_temperature=0.0, audio_temperature=0.5, audio_top_k=9), guidance=2.0
    )


OFFER = Offer(conditions=(("mood", ("good", "bad")), ("topic", ())), prompt_steps=100, voices=("anna", "bert"))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("condition.mood", "ugly", "good, bad"),
        ("condition.mood", "../good", "good, bad"),
        ("condition.colour", "red", "mood, topic"),
        ("condition.../../etc", "passwd", "mood, topic"),
        ("voice_prompt", "carl", "anna, bert"),
        ("voice_prompt", "../../etc/passwd", "anna, bert"),
        ("voice_prompt", "/tmp/anna.wav", "anna, bert"),
    ],
)
def test_unknown_names_are_a_bad_request_with_the_names_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ParameterRefused, match=allowed) as caught:
        parse_chat_query({name: value}, OFFER)
    assert (caught.value.name, caught.value.http_status) == (name, 400)


def test_names_that_are_offered_pass() -> None:
    query = {"condition.mood": "bad", "condition.topic": "anything at all", "voice_prompt": "anna", "text_prompt": "Hi"}
    assert parse_chat_query(query, OFFER).spec.prompt == Prompt(text="Hi", voice="anna")


@pytest.mark.parametrize(("name", "value"), [("cfg_coef", "2"), ("extra_heads", "1"), ("text_prompt", "Hi")])
def test_what_a_model_lacks_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ParameterRefused) as caught:
        parse_chat_query({name: value}, Offer())
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("cfg_coef", value) for value in ("nan", "inf", "-1", "1e9", "strong")),
        *(("repetition_penalty", value) for value in ("0", "-1", "nan", "99")),
        *(("pad_mult", value) for value in ("nan", "-inf", "1000")),
        *(("extra_heads", value) for value in ("2", "yes", "-1")),
        ("text_prompt", "a" * 5_000),
        ("text_prompt", "be\x00ware"),
        ("voice_prompt", "v" * 5_000),
        ("condition.mood", "m" * 5_000),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(name: str, value: str) -> None:
    assert refused(**{name: value}).name == name


@pytest.mark.parametrize("name", ["text_temperature", "audio_temperature"])
@pytest.mark.parametrize(
    "value", ["nan", "NaN", "inf", "-Infinity", "1e999", "-0.1", "10.1", "", "warm", "0x1", "1_0", "٣", "1" * 65, "1 "]
)
def test_bad_temperature_is_refused_by_name(name: str, value: str) -> None:
    assert refused(**{name: value}).name == name


@pytest.mark.parametrize("name", ["text_topk", "audio_topk", "text_seed", "audio_seed", "repetition_penalty_context"])
@pytest.mark.parametrize("value", ["-2", "1.5", "1e3", "9" * 20, "9" * 5000, "NaN", "many", "undefined"])
def test_bad_whole_number_is_refused_by_name(name: str, value: str) -> None:
    assert refused(**{name: value}).name == name


@pytest.mark.parametrize("query", [{"pad_mult": "0.0"}, {"pad_mult": "-0"}, {"repetition_penalty": "1.0"}])
def test_neutral_value_is_taken_however_it_is_spelled(query: dict[str, str]) -> None:
    parse_chat_query(query)


@pytest.mark.parametrize("name", ["pad_mult", "repetition_penalty"])
def test_penalty_that_is_no_number_is_refused(name: str) -> None:
    assert refused(**{name: "nan"}).why == "must be finite"


def test_refusal_is_a_bad_request_before_the_upgrade() -> None:
    assert refused(text_topk="-5").http_status == 400


@given(st.just(0.0) | st.floats(MIN_TEMPERATURE, 10), st.integers(0, 1 << 16), st.integers(0, MAX_SEED))
def test_what_python_prints_is_read_back(temperature: float, top_k: int, seed: int) -> None:
    query = {"text_temperature": repr(temperature), "audio_topk": str(top_k), "audio_seed": str(seed)}
    got = parse_chat_query(query).sampling
    assert (got.text_temperature, got.audio_top_k, got.audio_seed) == (temperature, top_k, seed)


EXTRAS = ("seed", "cfg_coef", "extra_heads", "text_prompt", "voice_prompt", "condition.mood")
NAMES = st.sampled_from([*sorted(WEB_CLIENT), *EXTRAS]) | st.text(max_size=20)


@given(st.dictionaries(NAMES, st.text(max_size=80) | st.floats().map(repr) | st.integers().map(str)))
def test_any_query_gives_finite_sampling_or_a_refusal(query: dict[str, str]) -> None:
    refused_name = None
    try:
        got = parse_chat_query(query).sampling
    except ParameterRefused as error:
        refused_name = error.name
    if refused_name is None:
        assert math.isfinite(got.text_temperature + got.audio_temperature)
    else:
        assert refused_name in {*WEB_CLIENT, *EXTRAS}


@pytest.mark.parametrize(
    ("query", "path", "model"),
    [
        ({}, "", None),
        ({"model": ""}, "", None),
        ({"model": "a b"}, "", "a b"),
        ({}, "a", "a"),
        ({"model": "a"}, "a", "a"),
    ],
)
def test_a_model_is_named_by_parameter_or_path(query: dict[str, str], path: str, model: str | None) -> None:
    assert model_asked(query, path) == model


def test_two_models_at_once_are_a_bad_request() -> None:
    with pytest.raises(ParameterRefused, match="model"):
        model_asked({"model": "a"}, "b")


def test_the_model_is_none_of_the_parameters_that_tenants_may_or_may_not_set() -> None:
    assert parameters_in({"model": "a", "text_topk": "3"}) == {"text_topk"}
