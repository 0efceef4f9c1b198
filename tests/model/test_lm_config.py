"""The LM's part of a config.json: what is inherited, what is refused and by which name."""

import itertools
from typing import Any

import pytest
import torch

from serve_app.errors import CheckpointError, NotBuilt
from serve_app.model.lm import LM, LMConfig
from tests.model.language import INHERITED, MOSHIKO, SHAPES, SHARED_DEPTH
from tests.oracle import PUBLISHED_LM, reference_lm

LOOKUP: dict[str, Any] = {"n_bins": 3, "dim": 4, "tokenizer": "noop"}


@pytest.mark.parametrize("config", [PUBLISHED_LM, *SHAPES.values()], ids=["published-7b", *SHAPES])
def test_every_parameter_has_the_references_name_and_shape(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        ours = LM(LMConfig.from_kyutai(config))
    expected = {name: value.shape for name, value in reference_lm(config, device="meta").state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == expected


def test_a_model_built_on_the_meta_device_keeps_its_constants() -> None:
    with torch.device("meta"):
        lm = LM(LMConfig.from_kyutai(MOSHIKO))
    assert lm.delays.lags.tolist() == MOSHIKO["delays"]


def test_what_a_depformer_key_lacks_comes_from_the_main_transformer() -> None:
    config = LMConfig.from_kyutai(INHERITED)
    assert config.depformer_num_layers == INHERITED["num_layers"]
    assert config.depformer_gating == INHERITED["gating"]
    assert config.depformer_kv_repeat == INHERITED["kv_repeat"]
    assert config.depformer_max_period == INHERITED["max_period"]
    assert config.depformer_layer_scale
    assert config.depformer_pos_emb == "sin"
    assert config.depformer_dim_feedforward == (4 * INHERITED["depformer_dim"],) * INHERITED["dep_q"]


def test_an_explicit_null_is_not_inherited_over() -> None:
    assert not LMConfig.from_kyutai(INHERITED | {"depformer_layer_scale": None}).depformer_layer_scale


def test_sizes_that_follow_from_others() -> None:
    config = LMConfig.from_kyutai(SHARED_DEPTH)
    assert (config.streams, config.user_q, config.mimi_codebooks, config.max_delay, config.weight_sets) == (
        17,
        8,
        8,
        1,
        4,
    )
    assert config.with_context(4).context == 4
    assert config.with_context(4000).context == config.context


def test_keys_of_the_folder_are_skipped() -> None:
    folder = {"moshi_name": "a.safetensors", "model_type": "moshi", "lm_gen_config": {"temp": 0.8}, "lora_name": None}
    assert LMConfig.from_kyutai(MOSHIKO | folder) == LMConfig.from_kyutai(MOSHIKO)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fuser", {"prepend": ["description"]}),
        ("causal", False),
        ("depformer_weights_per_step", False),
    ],
)
def test_what_is_not_built_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(NotBuilt, match=rf"somewhere/config\.json(.|\n)*{key}"):
        LMConfig.from_kyutai(MOSHIKO | {key: value}, "somewhere/config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("no_such_key", 1),
        ("dim", "wide"),
        ("dim", 63),
        ("num_layers", None),
        ("context", None),
        ("delays", [0, 1]),
        ("delays", [0, -1]),
        ("norm", "batch_norm"),
        ("positional_embedding", "alibi"),
        ("depformer_num_heads", None),
        ("depformer_num_heads", 5),
        ("depformer_weights_per_step_schedule", [0, 1]),
        ("depformer_dim_feedforward", [128]),
        ("dep_q", 17),
        ("n_q", 0),
        ("conditioners", {"description": {"type": "lut"}}),
        ("conditioners", {"description": {"type": "lut", "lut": {"n_bins": 3, "dim": 4, "tokenizer": "whitespace"}}}),
        ("conditioners", {"description": {"type": "lut", "lut": LOOKUP | {"possible_values": ["a", "b", "c", "d"]}}}),
        ("conditioners", {"description": {"type": "lut", "lut": LOOKUP | {"colour": "red"}}}),
        ("conditioners", {"voice": {"type": "t5", "t5": {"dim": 4}}}),
        ("fuser", {"sum": ["description"]}),
        ("fuser", {"add": []}),
        ("cross_attention", True),
        ("extra_heads_num_heads", -1),
        ("hidden_scale", -1),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        LMConfig.from_kyutai(MOSHIKO | {key: value})


def test_all_problems_are_in_one_error() -> None:
    broken = {"dim": "wide", "norm": "batch_norm", "no_such_key": 1}
    with pytest.raises(CheckpointError) as caught:
        LMConfig.from_kyutai(MOSHIKO | broken)
    assert all(any(key in problem for problem in caught.value.problems) for key in broken)
    for one, other in itertools.combinations(caught.value.problems, 2):
        assert one != other
