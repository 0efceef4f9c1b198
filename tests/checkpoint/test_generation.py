"""What a checkpoint says about how it is to be used."""

from collections.abc import Mapping
from typing import Any

import pytest

from serve_app.checkpoint.generation import Generation, read_generation
from serve_app.checkpoint.source import Layout
from serve_app.errors import ChorusError
from serve_app.spec import Sampling


def layout(generation: Mapping[str, Any], config: Mapping[str, Any] | None = None, kind: str = "moshi") -> Layout:
    return Layout(
        where="folder",
        config_name="config.json",
        config=config or {},
        mimi_config_name="mimi.json",
        mimi_config={},
        lm_name="a",
        mimi_name="b",
        tokenizer_name="c",
        adapter_name=None,
        model_type=kind,
        generation=generation,
    )


def test_sampling_is_that_which_the_model_was_published_with() -> None:
    said = {"temp": 0.6, "temp_text": 0.5, "top_k": 100, "top_k_text": 20}
    want = Sampling(audio_temperature=0.6, text_temperature=0.5, audio_top_k=100, text_top_k=20)
    assert read_generation(layout(said)).sampling == want


def test_defaults_are_ours_where_the_model_says_nothing() -> None:
    assert read_generation(layout({"temp": None})) == Generation(sampling=Sampling())


def test_guidance_is_that_which_the_model_was_published_with() -> None:
    told = read_generation(layout({"cfg_coef": 3, "cfg_is_no_text": True, "cfg_is_masked_until": 5}))
    assert (told.guidance, told.no_text, told.masked_until) == (3.0, True, 5)


def test_a_translation_asks_for_very_good_and_leads_away_from_very_bad() -> None:
    config: dict[str, Any] = {"conditioners": {"description": {}}}
    told = read_generation(layout({}, config, kind="hibiki"))
    assert told.conditions == (("description", "very_good"),)
    assert told.against == (("description", "very_bad"),)


def test_a_translation_without_that_condition_asks_for_nothing() -> None:
    told = read_generation(layout({}, kind="hibiki"))
    assert (told.conditions, told.against) == ((), None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temp", "warm"),
        ("top_k", True),
        ("cfg_coef", "much"),
        ("cfg_coef", -1.0),
        ("cfg_coef", float("nan")),
        ("cfg_is_no_text", "yes"),
        ("cfg_is_masked_until", -1),
        ("cfg_is_masked_until", 2.5),
        ("temp", 1_000.0),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ChorusError, match=key if value != 1_000.0 else "audio_temperature"):
        read_generation(layout({key: value}))
