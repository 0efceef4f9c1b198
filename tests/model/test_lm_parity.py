"""The language model against the reference: tokens, logits and delayed outputs in a batch of strangers."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.model.lm import LM, Given, LMState
from serve_app.model.sampling import TEXT_STREAM, exponential_noise, noise_keys
from serve_app.model.state import Rows, all_rows, reset
from serve_app.spec import Sampling
from tests.model.language import (
    CONTEXT,
    CPU,
    MOSHIKO,
    SHAPES,
    SHARED_DEPTH,
    RecordedLogits,
    TokenComparison,
    lm_pair,
)
from tests.oracle import fed_noise, reference_generator

BATCH = 5
TICKS = 90


def _codes(config: dict[str, Any], generator: torch.Generator) -> Tensor:
    return torch.randint(0, config["card"], (BATCH, config["n_q"] - config["dep_q"]), generator=generator)


@pytest.mark.parametrize("name", list(SHAPES))
@torch.no_grad()
def test_tokens_and_logits_equal_the_reference_under_random_masks_joins_and_resets(name: str) -> None:
    config = SHAPES[name]
    reference, ours = lm_pair(config)
    recorded = RecordedLogits(reference)
    generator = reference_generator(reference, support_out_of_sync=True, on_text_logits_hook=recorded.on_text)
    chance, codes = random.Random(1), torch.Generator().manual_seed(2)
    slots = torch.tensor([3, 0, 4, 1, 2])  # a row is not its slot
    state = ours.init_state(BATCH, CPU, torch.float32)
    comparison = TokenComparison(BATCH)
    steps, longest = [0] * BATCH, 0
    with generator.streaming(BATCH):
        for tick in range(TICKS):
            leaves = torch.tensor([row > 0 and chance.random() < 0.02 for row in range(BATCH)])
            if leaves.any():
                generator.reset_streaming(reset_mask=leaves)
                reset(state, slots[leaves])
            runs = torch.tensor([chance.random() < 0.85 and not (row == 4 and tick < 20) for row in range(BATCH)])
            user = _codes(config, codes)

            generator.set_exec_mask(runs)
            expected = generator.step(user[..., None])[..., 0]
            text_logits, audio_logits = recorded.take()
            rows = Rows.of(slots, runs, BATCH)
            thought = ours.think(user, state, rows, _nothing(config).text)
            spoken = ours.speak(thought, state, rows, _nothing(config).audio)
            said = ours.advance(thought.text, spoken.codes, state, rows)

            assert torch.equal(torch.cat([said.text[:, None], said.codes], dim=1), expected)
            for row in range(BATCH):
                if leaves[row]:
                    steps[row] = 0
                    comparison.restart(row)
                if runs[row]:
                    assert int(said.step[row]) == steps[row]
                    steps[row] += 1
                    comparison.add(
                        row,
                        [text_logits[row], *audio_logits[row]],
                        [thought.text_logits[row], *spoken.logits[row]],
                    )
            longest = max(longest, *steps)
    comparison.check()
    assert longest > 3 * CONTEXT
    assert comparison.compared > 100 * BATCH


@torch.no_grad()
def test_the_first_complete_frame_comes_out_of_step_max_delay_plus_one() -> None:
    for config in SHAPES.values():
        _, ours = lm_pair(config)
        state = ours.init_state(2, CPU, torch.float32)
        complete = []
        for _ in range(5):
            user = torch.zeros(2, ours.config.user_q, dtype=torch.int64)
            said = ours.step(user, state, all_rows(2))
            complete.append(bool(said.complete[0]))
            assert bool((said.codes == -2).all()) is not complete[-1]
        assert complete == [step >= max(config["delays"]) for step in range(5)]


def _nothing(config: dict[str, Any]) -> Given:
    return Given.nothing(BATCH, config["dep_q"])


@torch.no_grad()
def test_given_codes_continue_as_the_reference_continues_replaced_ones() -> None:
    reference, ours = lm_pair(MOSHIKO)
    recorded = RecordedLogits(reference)
    generator = reference_generator(reference, support_out_of_sync=True, on_text_logits_hook=recorded.on_text)
    random_codes = torch.Generator().manual_seed(3)
    state = ours.init_state(BATCH, CPU, torch.float32)
    with generator.streaming(BATCH):
        for _ in range(2 * CONTEXT):
            user, own = _codes(MOSHIKO, random_codes), torch.randint(0, 32, (BATCH, 8), generator=random_codes)
            expected = generator.step(user[..., None], own[..., None])[..., 0]
            said = ours.step(user, state, all_rows(BATCH), Given(_nothing(MOSHIKO).text, own))
            assert torch.equal(torch.cat([said.text[:, None], said.codes], dim=1), expected)


@pytest.mark.parametrize("config", [MOSHIKO, SHARED_DEPTH], ids=["moshiko", "shared-depth"])
@torch.no_grad()
def test_half_precision_logits_equal_the_reference_given_its_tokens(config: dict[str, Any]) -> None:
    reference, ours = (model.to(torch.bfloat16) for model in lm_pair(config))
    recorded, told = RecordedLogits(reference), list[Tensor]()
    hooks = {"on_text_logits_hook": recorded.on_text, "on_text_hook": told.append, "on_audio_hook": told.append}
    generator = reference_generator(reference, support_out_of_sync=True, **hooks)
    state, rows, codes = ours.init_state(BATCH, CPU, torch.bfloat16), all_rows(BATCH), torch.Generator().manual_seed(6)
    with generator.streaming(BATCH):
        for _ in range(3 * CONTEXT):
            user = _codes(config, codes)
            generator.step(user[..., None])
            expected_text, expected_audio = recorded.take()
            text, audio = told[-2:]
            thought = ours.think(user, state, rows, text)
            spoken = ours.speak(thought, state, rows, audio)
            ours.advance(thought.text, spoken.codes, state, rows)
            # Equal to the bit where this was written; one bf16 step at the size of these logits is allowed.
            torch.testing.assert_close(thought.text_logits, expected_text.float(), atol=2**-3, rtol=0)
            torch.testing.assert_close(spoken.logits, expected_audio.float(), atol=2**-3, rtol=0)


def _our_noise(state: LMState, seeds: tuple[Tensor, Tensor], dep_q: int) -> Callable[[Tensor], Tensor]:
    """Noise for the reference's calls: text, then every codebook, then text of the next step."""
    calls = iter(range(1 << 30))

    def draw(probabilities: Tensor) -> Tensor:
        stream = next(calls) % (dep_q + 1)
        seed = seeds[0] if stream == TEXT_STREAM else seeds[1]
        keys = noise_keys(seed, state.cache.offset[:BATCH], torch.tensor([stream]))[:, 0]
        return exponential_noise(keys, probabilities.shape[-1]).view_as(probabilities)

    return draw


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        (MOSHIKO, Sampling(text_temperature=0.7, text_top_k=25, audio_temperature=0.8, audio_top_k=20)),
        (SHARED_DEPTH, Sampling(text_temperature=1.3, text_top_k=0, audio_temperature=1.0, audio_top_k=0)),
        (MOSHIKO, Sampling(text_temperature=0.0, text_top_k=5, audio_temperature=0.4, audio_top_k=500)),
    ],
    ids=["top-k", "whole-vocabulary", "greedy-text"],
)
@torch.no_grad()
def test_sampled_tokens_equal_the_reference_fed_with_our_noise(config: dict[str, Any], sampling: Sampling) -> None:
    reference, ours = lm_pair(config)
    generator = reference_generator(
        reference,
        use_sampling=True,
        temp=sampling.audio_temperature,
        temp_text=sampling.text_temperature,
        top_k=sampling.audio_top_k,
        top_k_text=sampling.text_top_k,
        support_out_of_sync=True,
    )
    state = ours.init_state(BATCH, CPU, torch.float32)
    seeds = torch.arange(BATCH) + 1000, torch.arange(BATCH) + 5
    set_sampling(ours, state, sampling, seeds)
    chance, codes = random.Random(4), torch.Generator().manual_seed(5)
    said_codes = set()
    draws = _our_noise(state, seeds, config["dep_q"])
    if sampling.text_temperature == 0:
        draws = _skip_text(draws, config["dep_q"])
    with generator.streaming(BATCH), fed_noise(draws):
        for _ in range(60):
            runs = torch.tensor([chance.random() < 0.8 for _ in range(BATCH)])
            user = _codes(config, codes)
            generator.set_exec_mask(runs)
            expected = generator.step(user[..., None])[..., 0]
            said = ours.step(user, state, Rows.of(torch.arange(BATCH), runs, BATCH))
            assert torch.equal(torch.cat([said.text[:, None], said.codes], dim=1), expected)
            said_codes.update(said.codes.flatten().tolist())
    assert len(said_codes) > config["card"] // 2


def _skip_text(draw: Callable[[Tensor], Tensor], dep_q: int) -> Callable[[Tensor], Tensor]:
    """Greedy text makes no call: pass over its turn."""
    calls = iter(range(1 << 30))

    def audio_only(probabilities: Tensor) -> Tensor:
        if next(calls) % dep_q == 0:
            draw(probabilities)
        return draw(probabilities)

    return audio_only


def set_sampling(lm: LM, state: LMState, sampling: Sampling, seeds: tuple[Tensor, Tensor]) -> None:
    """The same parameters for every slot, each with seeds of its own."""
    for slot in range(len(seeds[0])):
        state.sampling.set(slot, sampling)
        state.sampling.text_seed[slot] = seeds[0][slot]
        state.sampling.audio_seed[slot] = seeds[1][slot]
