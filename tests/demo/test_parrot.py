"""The language model that ships repeats what it hears, exactly, for as long as anybody talks."""

import pytest
import torch

from serve_app.checkpoint.duplex import load_duplex
from serve_app.checkpoint.source import Folder
from serve_app.demo.measure import parrot_accuracy, repeated
from serve_app.demo.parrot import CARD, CONTEXT, LAG, signs
from serve_app.model.duplex import Duplex
from serve_app.model.lm import LM
from serve_app.model.state import all_rows
from serve_app.spec import GREEDY, Sampling

WEB_CLIENT = Sampling(text_temperature=0.7, text_top_k=25, audio_temperature=0.8, audio_top_k=250, audio_seed=11)


@pytest.mark.parametrize("steps", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_code_is_repeated_for_thousands_of_greedy_steps(duplex: Duplex, steps: int) -> None:
    assert parrot_accuracy(duplex.lm, steps=steps, rows=1, sampling=GREEDY, seed=1) == 1.0


def test_a_batch_of_strangers_is_repeated_row_by_row(duplex: Duplex) -> None:
    assert parrot_accuracy(duplex.lm, steps=5 * CONTEXT, rows=16, sampling=GREEDY, seed=2) == 1.0


def test_the_web_clients_sampling_repeats_at_least_999_of_1000_codes(duplex: Duplex) -> None:
    assert parrot_accuracy(duplex.lm, steps=1_000, rows=8, sampling=WEB_CLIENT, seed=3) >= 0.999


def test_codes_are_repeated_in_bf16(folder: Folder) -> None:
    lm = load_duplex(folder, torch.device("cpu"), torch.bfloat16).lm
    assert parrot_accuracy(lm, steps=5 * CONTEXT, rows=2, sampling=GREEDY, seed=4) == 1.0


def test_codes_are_repeated_at_offset_ten_million(duplex: Duplex) -> None:
    assert _accuracy_from(duplex.lm, 10_000_000) == 1.0


def test_without_its_attention_the_model_repeats_nothing(duplex: Duplex) -> None:
    with torch.no_grad():
        for weight in duplex.lm.transformer.layers[0].self_attn.parameters():  # type: ignore[union-attr]
            weight.zero_()
    assert parrot_accuracy(duplex.lm, steps=2 * CONTEXT, rows=2, sampling=GREEDY, seed=5) < 0.02


def test_without_the_depformers_heads_the_model_repeats_nothing(duplex: Duplex) -> None:
    with torch.no_grad():
        for weight in duplex.lm.linears.parameters():
            weight.zero_()
    assert parrot_accuracy(duplex.lm, steps=2 * CONTEXT, rows=2, sampling=GREEDY, seed=5) < 0.02


def test_the_first_second_says_the_codes_of_silence(duplex: Duplex) -> None:
    lm = duplex.lm
    generator = torch.Generator().manual_seed(6)
    heard = torch.randint(CARD, (LAG + 1, 1, lm.config.user_q), generator=generator)
    state, rows = lm.init_state(1, torch.device("cpu"), torch.float32), all_rows(1)
    with torch.no_grad():
        said = torch.stack([lm.step(codes, state, rows).codes for codes in heard])
        silence = duplex.mimi.encode(torch.zeros(1, 1, 24_000 * 2))[0, : lm.config.dep_q, -1]
    assert (said[1:, 0] == silence).all()


def test_codes_differ_in_at_least_one_sign() -> None:
    products = signs() @ signs().T
    assert int((products == products.diagonal()[:, None]).sum()) == CARD


def _accuracy_from(lm: LM, offset: int) -> float:
    state, rows = lm.init_state(1, torch.device("cpu"), torch.float32), all_rows(1)
    state.transformer.offset.fill_(offset)
    state.cache.offset.fill_(offset)
    generator = torch.Generator().manual_seed(7)
    heard = torch.randint(CARD, (3 * CONTEXT, 1, lm.config.user_q), generator=generator)
    with torch.no_grad():
        said = torch.stack([lm.step(codes, state, rows).codes for codes in heard])
    warm = CONTEXT  # before that the ring holds keys of steps that never were
    return repeated(heard[warm:], said[warm:])
