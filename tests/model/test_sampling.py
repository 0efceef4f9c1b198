"""Sampling: the reference's draw fed with our noise, and noise that is as good as noise."""

import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from serve_app.model.sampling import TOP_K_WIDTH, Whole, draw, exponential_noise, needs_whole, noise_keys
from serve_app.spec import MAX_SEED, Sampling
from tests.oracle import fed_noise

ROWS = 64
VOCABULARY = 1500  # wider than what every tick sorts


def _keys(rows: int = ROWS, seed: int = 7, step: int = 3, stream: int = 1) -> Tensor:
    seeds = torch.arange(rows) + seed
    return noise_keys(seeds, torch.full((rows,), step), torch.tensor([stream]))[:, 0]


def _draw(logits: Tensor, temperature: float, top_k: int, keys: Tensor, *, whole: Whole = True) -> Tensor:
    rows, width = logits.shape[0], min(TOP_K_WIDTH, logits.shape[1])
    return draw(
        logits,
        torch.full((rows,), temperature),
        torch.full((rows,), top_k),
        keys,
        exponential_noise(keys, width),
        whole=whole,
    )


@pytest.mark.parametrize("vocabulary", [40, VOCABULARY])
@pytest.mark.parametrize("top_k", [0, 1, 25, 250, TOP_K_WIDTH, 900, 5000])
def test_tokens_equal_the_reference_fed_with_our_noise(top_k: int, vocabulary: int) -> None:
    sample_token = importlib.import_module("moshi.utils.sampling").sample_token
    logits = 3 * torch.randn(ROWS, vocabulary, generator=torch.Generator().manual_seed(top_k))
    keys = _keys()
    with fed_noise(lambda p: exponential_noise(keys, p.shape[-1])):
        expected = sample_token(logits, True, 0.8, top_k)
    assert torch.equal(_draw(logits, 0.8, top_k, keys), expected)


@given(
    temperatures=st.lists(st.sampled_from([0.0, 0.3, 1.0, 4.0]), min_size=6, max_size=6),
    top_ks=st.lists(st.sampled_from([0, 1, 5, 512, 513, 1499, 1 << 16]), min_size=6, max_size=6),
    seed=st.integers(0, MAX_SEED),
)
def test_every_row_draws_as_if_it_were_alone(temperatures: list[float], top_ks: list[int], seed: int) -> None:
    logits = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(seed % 1000))
    keys = noise_keys(torch.full((6,), seed), torch.arange(6), torch.tensor([2]))[:, 0]
    together = draw(
        logits,
        torch.tensor(temperatures),
        torch.tensor(top_ks),
        keys,
        exponential_noise(keys, TOP_K_WIDTH),
        whole=True,
    )
    for row in range(6):
        one = slice(row, row + 1)
        asked = Sampling(audio_temperature=temperatures[row], audio_top_k=top_ks[row], text_temperature=0)
        whole = needs_whole(asked, VOCABULARY, VOCABULARY)
        alone = _draw(logits[one], temperatures[row], top_ks[row], keys[one], whole=whole)
        assert torch.equal(together[one], alone)


def test_naming_the_rows_that_look_further_changes_no_token() -> None:
    logits = torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(6))
    top_k, keys = torch.tensor([0, 25, 900, 0] * (ROWS // 4)), _keys()
    args = torch.full((ROWS,), 1.5), top_k, keys, exponential_noise(keys, TOP_K_WIDTH)
    further = torch.nonzero((top_k == 0) | (top_k > TOP_K_WIDTH))[:, 0]
    assert torch.equal(draw(logits, *args, whole=further), draw(logits, *args, whole=True))


def test_a_temperature_of_zero_takes_the_greatest_logit_whatever_the_noise() -> None:
    logits = torch.randn(ROWS, 100, generator=torch.Generator().manual_seed(1))
    for top_k in (0, 5):
        assert torch.equal(_draw(logits, 0.0, top_k, _keys()), logits.argmax(dim=-1))


def test_no_token_beyond_the_top_k_is_ever_drawn() -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(2)).expand(4000, -1)
    best = set(logits[0].topk(7).indices.tolist())
    drawn = set(_draw(logits, 2.0, 7, _keys(4000), whole=False).tolist())
    assert drawn == best


def test_without_the_whole_a_draw_is_cut_at_the_sorted_candidates() -> None:
    keys = _keys()
    logits = torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(3))
    widest = _draw(logits, 3.0, TOP_K_WIDTH, keys, whole=False)
    for top_k in (0, 900):
        assert torch.equal(_draw(logits, 3.0, top_k, keys, whole=False), widest)
    assert not torch.equal(_draw(logits, 3.0, 0, keys), widest)


def test_who_needs_the_whole_vocabulary_is_known_on_the_host() -> None:
    assert not needs_whole(Sampling(), 32_000, 2048)
    assert needs_whole(Sampling(audio_top_k=0), 32_000, 2048)
    assert needs_whole(Sampling(text_top_k=600), 32_000, 2048)
    assert not needs_whole(Sampling(text_top_k=0, audio_top_k=0), 50, 512)
    assert not needs_whole(Sampling(text_temperature=0, text_top_k=0), 32_000, 2048)


def _chi_square(observed: Tensor, expected: Tensor) -> float:
    return float(stats.chisquare(observed.numpy(), expected.numpy()).pvalue)


@pytest.mark.parametrize("axis", ["seed", "step", "stream"])
def test_draws_follow_the_probabilities_along_seeds_steps_and_streams(axis: str) -> None:
    count = 20_000
    line = torch.arange(count)
    zero = torch.zeros(count, dtype=torch.int64)
    keys = {
        "seed": noise_keys(line, zero, torch.tensor([1]))[:, 0],
        "step": noise_keys(zero, line, torch.tensor([1]))[:, 0],
        "stream": noise_keys(zero[:1], zero[:1], line)[0],
    }[axis]
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, -3.0]).expand(count, -1)
    for top_k, kept in ((0, 8), (4, 4)):
        tokens = _draw(logits, 1.0, top_k, keys)
        expected = torch.softmax(logits[0, :kept].double(), dim=-1) * count
        assert _chi_square(torch.bincount(tokens, minlength=8)[:kept].double(), expected) > 0.001


def test_noise_is_exponential_in_every_rank_and_never_zero() -> None:
    noise = exponential_noise(_keys(4000), 250)
    assert bool(torch.isfinite(noise).all())
    assert float(noise.min()) > 0
    for rank in (0, 1, 249):
        assert stats.kstest(noise[:, rank].numpy(), "expon").pvalue > 0.001
    assert stats.kstest(noise[5].numpy(), "expon").pvalue > 0.001


@pytest.mark.parametrize("axis", ["seed", "step", "stream", "rank"])
def test_neighbours_on_every_axis_are_independent(axis: str) -> None:
    count = 40_000
    line, zero = torch.arange(count), torch.zeros(count, dtype=torch.int64)
    noise = {
        "seed": exponential_noise(noise_keys(line, zero, torch.tensor([0]))[:, 0], 1)[:, 0],
        "step": exponential_noise(noise_keys(zero + 5, line, torch.tensor([0]))[:, 0], 1)[:, 0],
        "stream": exponential_noise(noise_keys(zero[:1], zero[:1], line)[0], 1)[:, 0],
        "rank": exponential_noise(noise_keys(zero[:1], zero[:1], zero[:1]), count)[0, 0],
    }[axis]
    cell = (torch.exp(-noise) * 8).long().clamp(max=7)
    for lag in (1, 2, 8):
        pairs = cell[:-lag] * 8 + cell[lag:]
        observed = torch.bincount(pairs, minlength=64).double()
        assert _chi_square(observed, torch.full((64,), observed.sum().item() / 64, dtype=torch.float64)) > 0.001


def test_the_same_seed_step_and_stream_give_the_same_noise_and_any_other_another() -> None:
    keys = torch.cat(
        [noise_keys(torch.tensor([seed]), torch.tensor([step]), torch.arange(9)) for seed in (0, 1) for step in (0, 1)]
    )
    again = noise_keys(torch.tensor([0]), torch.tensor([0]), torch.arange(9))
    assert torch.equal(keys[0], again[0])
    assert len(set(keys.flatten().tolist())) == keys.numel()
