import copy
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import torch
from safetensors.torch import save_file

from serve_app.checkpoint.duplex import load_duplex
from serve_app.checkpoint.weights import load_into, on_meta
from serve_app.errors import CheckpointError, NotBuilt
from serve_app.model.duplex import Duplex
from serve_app.model.state import all_rows
from tests.checkpoint.folders import Draft, Weights, draft, respell, stack_sets
from tests.oracle import Config

CPU: Final = torch.device("cpu")
IN_PROJ: Final = "transformer.layers.1.self_attn.in_projs.0.weight"


@pytest.fixture(scope="module")
def pristine() -> Draft:
    return draft()


@pytest.fixture
def spoiled(pristine: Draft) -> Draft:
    """A copy that a test may spoil."""
    return copy.deepcopy(pristine)


def load(given: Draft, root: Path, dtype: torch.dtype = torch.float32, context: int | None = None) -> Duplex:
    return load_duplex(given.resolved(root / "folder"), CPU, dtype, context)


def assert_holds(duplex: Duplex, given: Draft) -> None:
    for module, weights in ((duplex.lm, given.lm), (duplex.mimi, given.mimi)):
        loaded = module.state_dict()
        assert loaded.keys() == weights.keys()
        for name, value in weights.items():
            assert torch.equal(loaded[name], value), name


def test_a_folder_in_the_published_layout_loads_every_weight(pristine: Draft, tmp_path: Path) -> None:
    assert_holds(load(pristine, tmp_path), pristine)


@pytest.mark.parametrize(
    "changes",
    [
        {"dep_q": 4, "n_q": 8, "delays": [0, *2 * [0, 2, 2, 2]], "depformer_weights_per_step_schedule": [0, 1, 1, 1]},
        {"depformer_low_rank_embeddings": 4, "norm_emb": True, "bias_proj": True},
        {"kv_repeat": 2, "norm": "layer_norm", "layer_scale": 0.1, "depformer_layer_scale": 0.1},
        {"depformer_multi_linear": False, "depformer_norm": "rms_norm_f32", "gating": "none"},
    ],
    ids=["schedule", "low rank", "kv repeat", "one input"],
)
def test_folders_of_other_shapes_load_every_weight(changes: Config, tmp_path: Path) -> None:
    other = draft(**changes)
    assert_holds(load(other, tmp_path), other)


@pytest.mark.parametrize(
    "spell",
    [
        lambda weights: stack_sets(weights, "in_proj", "in_proj_weight"),
        lambda weights: stack_sets(weights, "in_proj", "in_proj.weight"),
        lambda weights: stack_sets(weights, "out_proj", "out_proj.weight"),
        lambda weights: stack_sets(weights, "out_proj", "out_proj_weight"),
        lambda weights: stack_sets(stack_sets(weights, "in_proj", "in_proj_weight"), "out_proj", "out_proj.weight"),
    ],
    ids=["in_proj_weight", "in_proj.weight", "out_proj.weight", "out_proj_weight", "published"],
)
def test_stacked_projections_load_into_their_sets(
    spell: Callable[[Weights], Weights], pristine: Draft, tmp_path: Path
) -> None:
    old = Draft(spell(pristine.lm), spell(pristine.mimi), pristine.config, pristine.mimi_config)
    assert old.lm.keys() != pristine.lm.keys()
    assert_holds(load(old, tmp_path), pristine)


@pytest.mark.parametrize(
    ("ours", "old"),
    [
        ("_initialized", "inited"),
        ("cluster_usage", "cluster_size"),
        ("embedding_sum", "embed_avg"),
        ("embedding_sum", "embed_sum"),
    ],
)
def test_old_names_of_codebooks_load(ours: str, old: str, pristine: Draft, tmp_path: Path) -> None:
    mimi = respell(pristine.mimi, lambda name: name.replace(f"_codebook.{ours}", f"_codebook.{old}"))
    assert mimi.keys() != pristine.mimi.keys()
    assert_holds(load(Draft(pristine.lm, mimi, pristine.config, pristine.mimi_config), tmp_path), pristine)


def test_entries_of_a_codebook_follow_from_what_was_loaded(pristine: Draft, tmp_path: Path) -> None:
    codebook = load(pristine, tmp_path).mimi.quantizer.rvq_first.codebooks[0]
    key = "quantizer.rvq_first.vq.layers.0._codebook"
    usage = pristine.mimi[f"{key}.cluster_usage"].clamp(min=1e-5)
    torch.testing.assert_close(codebook.embedding, pristine.mimi[f"{key}.embedding_sum"] / usage[:, None])


def test_the_lm_takes_the_dtype_asked_for_and_the_codec_stays_fp32(pristine: Draft, tmp_path: Path) -> None:
    duplex = load(pristine, tmp_path, torch.bfloat16)
    assert {value.dtype for value in duplex.lm.state_dict().values()} == {torch.bfloat16}
    assert {value.dtype for value in duplex.mimi.state_dict().values()} == {torch.float32}


def test_a_loaded_folder_takes_a_tick(pristine: Draft, tmp_path: Path) -> None:
    duplex = load(pristine, tmp_path)
    out = duplex.tick(torch.zeros(2, 1, 1920), duplex.init_state(2, CPU, torch.float32), all_rows(2))
    assert out.finite.all()


def test_a_shorter_context_gives_smaller_rings(pristine: Draft, tmp_path: Path) -> None:
    duplex = load(pristine, tmp_path, context=5)
    assert duplex.lm.config.context == 5


@pytest.mark.parametrize("context", [0, 13])
def test_a_context_beyond_the_checkpoint_is_refused(context: int, pristine: Draft, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"context: {context} was asked for"):
        load(pristine, tmp_path, context=context)


def test_missing_unexpected_and_misshapen_keys_come_in_one_error(spoiled: Draft, tmp_path: Path) -> None:
    del spoiled.lm["out_norm.alpha"]
    spoiled.lm["surplus.weight"] = torch.zeros(3)
    spoiled.lm["text_linear.weight"] = torch.zeros(60, 33)
    with pytest.raises(CheckpointError) as caught:
        load(spoiled, tmp_path)
    assert sorted(caught.value.problems) == [
        "out_norm.alpha: missing, shape [1, 1, 32] in the model",
        "surplus.weight: unexpected, shape [3]; the model has no such weight",
        "text_linear.weight: shape [60, 33] in the file, [60, 32] in the model",
    ]
    assert "model.safetensors" in caught.value.where


def test_a_misshapen_stack_names_both_shapes(pristine: Draft, tmp_path: Path) -> None:
    lm = stack_sets(pristine.lm, "in_proj", "in_proj_weight")
    key = "depformer.layers.0.self_attn.in_proj_weight"
    lm[key] = lm[key][:-1]
    with pytest.raises(CheckpointError, match=rf"{key}: shape \[383, 16\] in the file, \[384, 16\] in the model"):
        load(Draft(lm, pristine.mimi, pristine.config, pristine.mimi_config), tmp_path)


def test_a_weight_under_two_spellings_is_refused(spoiled: Draft, tmp_path: Path) -> None:
    spoiled.lm[IN_PROJ.replace("in_projs.0.weight", "in_proj_weight")] = spoiled.lm[IN_PROJ].clone()
    with pytest.raises(CheckpointError, match=f"holds {IN_PROJ}, which"):
        load(spoiled, tmp_path)


def test_a_problem_in_the_codec_names_the_codecs_file(spoiled: Draft, tmp_path: Path) -> None:
    del spoiled.mimi["upsample.convtr.convtr.convtr.weight"]
    with pytest.raises(CheckpointError, match=r"tokenizer-e351c8d8-checkpoint125\.safetensors"):
        load(spoiled, tmp_path)


def test_integer_weights_are_refused(spoiled: Draft, tmp_path: Path) -> None:
    spoiled.lm["text_linear.weight"] = spoiled.lm["text_linear.weight"].to(torch.int8)
    with pytest.raises(CheckpointError, match=r"text_linear\.weight: I8, want floats"):
        load(spoiled, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fuser", {"prepend": ["description"]}),
        ("depformer_cross_attention", True),
        ("model_type", "whisper"),
        ("tts_config", {"multistream": True}),
        ("lm_gen_config", {"support_out_of_sync": True}),
    ],
)
def test_a_config_with_a_feature_that_is_not_built_is_refused_by_its_key(
    key: str, value: object, spoiled: Draft, tmp_path: Path
) -> None:
    spoiled.config[key] = value
    with pytest.raises(NotBuilt, match=key):
        load(spoiled, tmp_path)


def test_an_unknown_key_of_the_config_is_refused_by_its_name(spoiled: Draft, tmp_path: Path) -> None:
    spoiled.config["dimm"] = 3
    with pytest.raises(CheckpointError, match=r"config\.json.*\n.*dimm: unknown key"):
        load(spoiled, tmp_path)


def test_an_unknown_or_missing_key_of_the_codec_is_refused_by_its_name(spoiled: Draft, tmp_path: Path) -> None:
    spoiled.mimi_config["seanet"]["colour"] = "red"
    del spoiled.mimi_config["seanet"]["kernel_size"]
    with pytest.raises(CheckpointError) as caught:
        load(spoiled, tmp_path)
    assert caught.value.where.endswith("mimi.json")
    assert set(caught.value.problems) == {"seanet.colour: unknown key", "seanet.kernel_size: missing"}


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("seanet", "causal", False), ("transformer", "gating", "silu"), ("seanet", "pad_mode", "reflect")],
)
def test_a_codec_of_another_kind_is_refused_by_its_key(
    part: str, key: str, value: object, spoiled: Draft, tmp_path: Path
) -> None:
    spoiled.mimi_config[part][key] = value
    with pytest.raises(NotBuilt, match=rf"{part}\.{key}"):
        load(spoiled, tmp_path)


def test_a_pickle_under_a_safetensors_name_is_refused(pristine: Draft, tmp_path: Path) -> None:
    folder = pristine.resolved(tmp_path / "folder")
    torch.save(pristine.lm, folder.lm_weights)
    with pytest.raises(CheckpointError, match=r"model\.safetensors:\n.*no safetensors file"):
        load_duplex(folder, CPU, torch.float32)


def test_a_refused_file_leaves_the_module_without_weights(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    module = on_meta(lambda: torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="bias: missing"):
        load_into(module, tmp_path / "w.safetensors", CPU, torch.float32)
    assert module.weight.is_meta


def test_loaded_weights_outlive_their_file(pristine: Draft, tmp_path: Path) -> None:
    duplex = load(pristine, tmp_path)
    file = tmp_path / "folder" / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    assert_holds(duplex, pristine)


def test_a_translation_is_deaf_to_an_end_that_it_said_too_early(spoiled: Draft, tmp_path: Path) -> None:
    spoiled.config["model_type"] = "hibiki"
    lm = load(spoiled, tmp_path).lm
    assert torch.equal(lm.text_emb.weight[2], spoiled.lm["text_emb.weight"][3])
    assert torch.equal(lm.depformer_text_emb.weight[2], spoiled.lm["depformer_text_emb.weight"][2])
