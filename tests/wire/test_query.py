import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import ParameterRefused
from serve_app.spec import MAX_SEED, MIN_TEMPERATURE, Sampling
from serve_app.wire.query import parse_chat_query

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
    sampling = parse_chat_query({"audio_topk": "7"}, published).sampling
    assert (sampling.text_temperature, sampling.text_top_k) == (0.5, 5)
    assert (sampling.audio_temperature, sampling.audio_top_k) == (0.6, 7)


def test_personaplex_parameters_are_ignored() -> None:
    query = {**WEB_CLIENT, "text_prompt": "You are wise.", "voice_prompt": "NATF0.pt", "seed": "-1", "x" * 500: "y"}
    assert parse_chat_query(query) == parse_chat_query(WEB_CLIENT)


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


@pytest.mark.parametrize(("name", "value"), [("pad_mult", "0.5"), ("pad_mult", "-4"), ("repetition_penalty", "1.1")])
def test_parameter_that_is_not_built_says_so(name: str, value: str) -> None:
    error = refused(**{name: value})
    assert error.name == name
    assert "not built yet" in error.public()


@pytest.mark.parametrize("query", [{"pad_mult": "0.0"}, {"pad_mult": "-0"}, {"repetition_penalty": "1.0"}])
def test_neutral_value_is_taken_however_it_is_spelled(query: dict[str, str]) -> None:
    parse_chat_query(query)


@pytest.mark.parametrize("name", ["pad_mult", "repetition_penalty"])
def test_unbuilt_parameter_that_is_no_number_is_refused(name: str) -> None:
    assert refused(**{name: "nan"}).why == "must be finite"


def test_refusal_is_a_bad_request_before_the_upgrade() -> None:
    assert refused(text_topk="-5").http_status == 400


@given(st.just(0.0) | st.floats(MIN_TEMPERATURE, 10), st.integers(0, 1 << 16), st.integers(0, MAX_SEED))
def test_what_python_prints_is_read_back(temperature: float, top_k: int, seed: int) -> None:
    query = {"text_temperature": repr(temperature), "audio_topk": str(top_k), "audio_seed": str(seed)}
    got = parse_chat_query(query).sampling
    assert (got.text_temperature, got.audio_top_k, got.audio_seed) == (temperature, top_k, seed)


NAMES = st.sampled_from(sorted(WEB_CLIENT)) | st.text(max_size=20)


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
        assert refused_name in WEB_CLIENT
