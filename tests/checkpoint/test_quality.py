"""The gate in front of 8 bits: nothing for nothing, a little for a little, and shut when it is too much."""

import copy
import json
from pathlib import Path

import pytest
import torch

from serve_app.bench.quality import main
from serve_app.checkpoint.quality import LEAST_AGREEMENT, MOST_KL, Divergence, compare
from serve_app.model.pages import Storage
from serve_app.model.quantised_kv import KvName
from serve_app.model.quantised_linear import quantise_linears
from tests.model.language import small_lm

KINDS: tuple[KvName, ...] = ("int8", "fp8")
DEMO = Path(__file__).parent.parent.parent / "serve_app" / "demo" / "checkpoint"


def test_a_model_differs_from_itself_by_nothing() -> None:
    lm = small_lm()
    found = compare(lm, lm, Storage(), steps=12)
    assert (found.kl_max, found.logit_max, found.agreement) == (0.0, 0.0, 1.0)
    assert found.steps == 12 * 2 * (1 + lm.config.dep_q)


def test_eight_bit_keys_pass_as_integers_and_fail_as_floats_where_choices_are_sharp() -> None:
    lm = small_lm()  # weights twice as large as a constructor makes them
    integers, floats = (compare(lm, lm, Storage(kv=kv), steps=30) for kv in KINDS)
    assert 0 < integers.kl_mean < floats.kl_mean
    assert integers.passes(MOST_KL, LEAST_AGREEMENT)
    assert not floats.passes(MOST_KL, LEAST_AGREEMENT)


def test_eight_bit_matrices_cost_a_little() -> None:
    lm = small_lm()
    short = copy.deepcopy(lm)
    assert quantise_linears(short.transformer) == 4 * len(lm.transformer.layers)
    assert 0 < compare(lm, short, Storage(), steps=12).kl_mean < 0.05


def test_a_model_that_broke_does_not_pass() -> None:
    assert Divergence(steps=1, kl_mean=0.0, kl_max=0.0, logit_max=0.0, agreement=1.0).passes(0.02, 0.95)
    assert not Divergence(steps=1, kl_mean=float("nan"), kl_max=0.0, logit_max=0.0, agreement=1.0).passes(0.02, 0.95)


def test_the_command_passes_or_fails_by_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    words = [str(DEMO), "--kv", "int8", "--steps", "5"]
    assert main([*words, "--max-kl", "10", "--min-agreement", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["passes"] is True
    assert main([*words, "--max-kl", "-1"]) == 1
    assert main([str(DEMO / "nowhere")]) == 2
