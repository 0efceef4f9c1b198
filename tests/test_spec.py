"""What a session may ask for: every value is in range or refused by its name."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import ParameterRefused
from serve_app.spec import MAX_SEED, MAX_TEMPERATURE, MAX_TOP_K, MIN_TEMPERATURE, Sampling, fresh_seed


@given(st.floats(MIN_TEMPERATURE, MAX_TEMPERATURE) | st.just(0.0))
def test_a_temperature_in_range_is_taken_as_it_is(value: float) -> None:
    assert Sampling(text_temperature=value, audio_temperature=value).text_temperature == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-9, 1e-38, 1e-4, MAX_TEMPERATURE * 1.01])
@pytest.mark.parametrize("name", ["text_temperature", "audio_temperature"])
def test_a_temperature_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ParameterRefused) as caught:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("name", "value"),
    [("text_top_k", -1), ("audio_top_k", MAX_TOP_K + 1), ("text_seed", -1), ("audio_seed", MAX_SEED + 1)],
)
def test_a_count_or_seed_out_of_range_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ParameterRefused) as caught:
        Sampling(**{name: value})
    assert caught.value.name == name


def test_drawn_seeds_are_valid_and_differ() -> None:
    seeds = {fresh_seed() for _ in range(8)}
    assert len(seeds) == 8
    assert all(Sampling(text_seed=seed, audio_seed=seed) for seed in seeds)
