"""Sampling in one and in two launches against `sampling.draw`: the same tokens, under the interpreter."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from serve_app.model import fused
from serve_app.model.kernels.plug import kernel
from serve_app.model.sampling import exponential_noise, noise_keys

TEMPERATURE = torch.tensor([0.0, 0.7, 1.0, 1.3])


def keys_of(rows: int, seed: int) -> Tensor:
    return noise_keys(torch.arange(rows) + seed, torch.arange(rows) * 7, torch.tensor([seed % 9]))[:, 0]


def logits_of(rows: int, vocabulary: int, seed: int) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def drawn(
    logits: Tensor, temperature: Tensor, top_k: Tensor, keys: Tensor, raised: tuple[int, Tensor] | None = None
) -> Tensor:
    """The kernel, nothing given."""
    token, by = (-1, None) if raised is None else raised
    made: Tensor = kernel("sample")(logits, temperature, top_k, keys, nothing_given(logits), token, by)
    return made


def expected(
    logits: Tensor, temperature: Tensor, top_k: Tensor, keys: Tensor, raised: tuple[int, Tensor] | None = None
) -> Tensor:
    """The PyTorch path."""
    return fused.sample(logits, temperature, top_k, keys, nothing_given(logits), whole=True, raised=raised)


def nothing_given(logits: Tensor) -> Tensor:
    return torch.full((len(logits),), fused.UNGENERATED_TOKEN)


@settings(max_examples=8, deadline=None)
@given(
    vocabulary=st.integers(1, 40),
    top_k=st.lists(st.integers(0, 45), min_size=4, max_size=4),
    seed=st.integers(0, 2**31),
    raised=st.booleans(),
)
def test_one_launch_draws_the_models_token(vocabulary: int, top_k: list[int], seed: int, raised: bool) -> None:
    logits, keys = logits_of(4, vocabulary, seed), keys_of(4, seed)
    by = (vocabulary // 2, torch.tensor([50.0, -2.0, 0.5, 3.0])) if raised else None
    ours = drawn(logits, TEMPERATURE, torch.tensor(top_k), keys, by)
    assert torch.equal(ours, expected(logits, TEMPERATURE, torch.tensor(top_k), keys, by))


@settings(max_examples=5, deadline=None)
@given(vocabulary=st.integers(9, 60), seed=st.integers(0, 2**31), raised=st.booleans())
def test_two_launches_draw_the_models_token_among_the_candidates_that_they_keep(
    vocabulary: int, seed: int, raised: bool
) -> None:
    from serve_app.model.kernels import sample

    piece, kept = 16, 8
    logits, keys = logits_of(4, vocabulary, seed), keys_of(4, seed)
    token, by = (vocabulary // 2, torch.tensor([50.0, -2.0, 0.5, 3.0])) if raised else (-1, None)
    top_k = torch.tensor([3, 1, 5, kept])
    pieces = sample.candidates(logits, TEMPERATURE, token, by, piece, kept)
    ours = sample.sample_merged(pieces, TEMPERATURE, top_k, keys, nothing_given(logits), vocabulary)
    theirs = expected(logits, TEMPERATURE, top_k, keys, None if by is None else (token, by))
    assert torch.equal(ours, theirs)


def test_greedy_takes_the_first_of_equals_and_zero_is_zero_of_either_sign() -> None:
    logits = torch.tensor([[-1.0, -0.0, 0.0, -2.0], [5.0, 2.0, 5.0, 5.0]])
    ours = drawn(logits, torch.zeros(2), torch.tensor([4, 0]), keys_of(2, 0))
    assert ours.tolist() == [1, 0]


def test_a_row_that_is_not_finite_still_names_a_token_and_leaves_its_neighbour_alone() -> None:
    logits, keys = logits_of(2, 5, 1), keys_of(2, 1)
    temperature, top_k = torch.tensor([0.8, 0.8]), torch.tensor([3, 3])
    clean = drawn(logits, temperature, top_k, keys)
    logits[0] = float("nan")
    spoilt = drawn(logits, temperature, top_k, keys)
    assert 0 <= int(spoilt[0]) < 5
    assert spoilt[1] == clean[1]


def test_logits_may_be_one_stream_of_several() -> None:
    logits, keys = logits_of(6, 12, 3).view(2, 3, 12), keys_of(2, 3)
    temperature, top_k = torch.tensor([0.8, 1.0]), torch.tensor([5, 0])
    ours = drawn(logits[:, 1], temperature, top_k, keys)
    assert torch.equal(ours, drawn(logits[:, 1].contiguous(), temperature, top_k, keys))


def test_the_noise_is_the_models_noise() -> None:
    """Two tokens of equal weight: which of them wins shows which noise was greater, for many keys."""
    keys = keys_of(24, 5)
    noise = exponential_noise(keys, 2)
    ours = drawn(torch.zeros(24, 2), torch.ones(24), torch.full((24,), 2), keys)
    assert torch.equal(ours, noise.argmin(dim=1))
    assert set(ours.tolist()) == {0, 1}


def test_a_given_token_stands_in_for_a_drawn_one_in_one_and_in_two_launches() -> None:
    from serve_app.model.kernels import sample

    logits, keys, given_tokens = logits_of(4, 20, 2), keys_of(4, 2), torch.tensor([-2, 7, -2, 0])
    top_k = torch.full((4,), 5)
    free = expected(logits, TEMPERATURE, top_k, keys)
    want = torch.where(given_tokens == -2, free, given_tokens)
    assert torch.equal(sample.sample(logits, TEMPERATURE, top_k, keys, given_tokens, -1, None), want)
    pieces = sample.candidates(logits, TEMPERATURE, -1, None, 16, 8)
    assert torch.equal(sample.sample_merged(pieces, TEMPERATURE, top_k, keys, given_tokens, 20), want)
