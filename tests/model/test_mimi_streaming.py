"""Streaming parity: a frame a call against the reference, in a batch, under masks, joins and resets, past the wrap."""

import dataclasses
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.model.mimi import MimiConfig
from serve_app.model.state import Rows, reset
from serve_app.units import FRAME_SAMPLES
from tests.model.codec import CPU, DEEP, PCM_TOLERANCE, SMALL, CodeComparison, pair, recorded_latents

BATCH = 4
TICKS = 160


def _reset_reference_encoder(reference: Any, mask: Tensor) -> None:
    for module in (reference.encoder, reference.encoder_transformer, reference.downsample.conv):
        module.reset_streaming(reset_mask=mask)


@pytest.mark.parametrize("config", [SMALL, DEEP], ids=["small", "deep"])
@torch.no_grad()
def test_codes_and_pcm_equal_the_reference_under_random_masks_joins_and_resets(config: MimiConfig) -> None:
    reference, ours = pair(config)
    chance = random.Random(5)
    generator = torch.Generator().manual_seed(6)
    slots = torch.tensor([2, 0, 3, 1])  # a row is not its slot
    state = ours.init_state(BATCH, CPU, torch.float32)
    comparison = CodeComparison(reference)
    latents = recorded_latents(reference)
    steps, longest, worst, decoded = [0] * BATCH, [0] * BATCH, 0.0, 0

    with reference.streaming(BATCH):
        for tick in range(TICKS):
            whole = torch.tensor([row > 0 and chance.random() < 0.015 for row in range(BATCH)])
            encoder_only = torch.tensor([row > 1 and chance.random() < 0.02 for row in range(BATCH)])
            if whole.any():
                reference.reset_streaming(reset_mask=whole)
                reset(state, slots[whole])
            if encoder_only.any():
                _reset_reference_encoder(reference, encoder_only)
                reset(state.encoder, slots[encoder_only])
            runs = [chance.random() < 0.95 and not (row == 3 and tick < 25) for row in range(BATCH)]
            steps = [0 if whole[row] else steps[row] for row in range(BATCH)]
            steps = [count + run for count, run in zip(steps, runs, strict=True)]
            longest = [max(*both) for both in zip(longest, steps, strict=True)]
            exec_mask = torch.tensor(runs)
            speaks = exec_mask & torch.tensor([count > 2 for count in steps])

            pcm = 0.3 * torch.randn(BATCH, 1, FRAME_SAMPLES, generator=generator)
            reference.set_exec_mask(exec_mask)
            expected = reference.encode(pcm)
            codes = ours.encode_step(pcm, state, Rows.of(slots, exec_mask, BATCH))
            comparison.add(expected[exec_mask], codes[exec_mask], latents.pop()[exec_mask])

            reference.set_exec_mask(speaks)
            expected_pcm = reference.decode(expected)
            got_pcm = ours.decode_step(expected, state, Rows.of(slots, speaks, BATCH))
            assert got_pcm.shape == (BATCH, 1, FRAME_SAMPLES)
            if speaks.any():
                worst = max(worst, float((expected_pcm - got_pcm)[speaks].abs().max()))
                assert float(expected_pcm[speaks].std()) > 0.01, "silence proves nothing"
                decoded += int(speaks.sum())

    comparison.check()
    print(f"PCM: {decoded} frames, worst difference {worst:.1e}; longest run of each row {longest} frames")
    assert worst <= PCM_TOLERANCE
    frames_to_wrap = ours.config.transformer.context // ours.config.steps_per_frame
    assert longest[0] > frames_to_wrap + 3, "the rings of the codec must have wrapped"


@torch.no_grad()
def test_streaming_and_offline_part_ways_only_at_the_wrap() -> None:
    config = dataclasses.replace(SMALL, transformer=dataclasses.replace(SMALL.transformer, context=20))
    _, ours = pair(config)
    frames = 16
    pcm = 0.3 * torch.randn(1, 1, FRAME_SAMPLES * frames, generator=torch.Generator().manual_seed(1))
    state = ours.init_state(1, CPU, torch.float32)
    rows = Rows(torch.tensor([0]), torch.tensor([True]), torch.tensor([0]))
    streamed = torch.cat(
        [ours.encode_step(frame, state, rows) for frame in torch.split(pcm, FRAME_SAMPLES, dim=-1)], dim=-1
    )
    offline = ours.encode(pcm)
    assert torch.equal(streamed[..., :10], offline[..., :10])
    assert not torch.equal(streamed[..., 10:], offline[..., 10:])
