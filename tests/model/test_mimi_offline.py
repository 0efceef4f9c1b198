"""Offline parity: recordings of any length against the reference, latents as well as codes."""

import dataclasses

import pytest
import torch

from serve_app.errors import ConfigError, ShapeError
from serve_app.model.mimi import Mimi, MimiConfig
from serve_app.model.seanet import SeanetConfig
from serve_app.units import FRAME_SAMPLES
from tests.model.codec import DEEP, PCM_TOLERANCE, SMALL, TINY, CodeComparison, pair, random_codec


@pytest.mark.parametrize("config", [SMALL, DEEP], ids=["small", "deep"])
@pytest.mark.parametrize("samples", [1, FRAME_SAMPLES, 7 * FRAME_SAMPLES + 77, 14 * FRAME_SAMPLES - 1])
@torch.no_grad()
def test_a_recording_of_any_length_gives_the_references_latents_codes_and_pcm(config: MimiConfig, samples: int) -> None:
    reference, ours = pair(config)
    pcm = 0.3 * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(samples))
    latent = reference.encode_to_latent(pcm, quantize=False)
    torch.testing.assert_close(ours.encode_latent(pcm), latent, atol=1e-5, rtol=1e-5)
    codes = reference.encode(pcm)
    comparison = CodeComparison(reference)
    comparison.add(codes, ours.encode(pcm), latent)
    comparison.check()
    torch.testing.assert_close(
        ours.quantizer.decode(codes), reference.encode_to_latent(pcm, quantize=True), atol=1e-5, rtol=1e-5
    )
    expected = reference.decode(codes)
    assert float((ours.decode(codes) - expected).abs().max()) <= PCM_TOLERANCE
    assert expected.shape == (2, 1, -(-samples // FRAME_SAMPLES) * FRAME_SAMPLES)


@torch.no_grad()
def test_a_recording_longer_than_the_context_equals_the_reference() -> None:
    short = dataclasses.replace(SMALL, transformer=dataclasses.replace(SMALL.transformer, context=16))
    reference, ours = pair(short)
    pcm = 0.3 * torch.randn(1, 1, 20 * FRAME_SAMPLES, generator=torch.Generator().manual_seed(3))
    comparison = CodeComparison(reference)
    comparison.add(reference.encode(pcm), ours.encode(pcm), reference.encode_to_latent(pcm, quantize=False))
    comparison.check()


@pytest.mark.parametrize("count", [1, 2, 8])
@torch.no_grad()
def test_any_number_of_codebooks_may_be_in_use(count: int) -> None:
    reference, ours = pair(dataclasses.replace(SMALL, num_codebooks=count))
    pcm = 0.3 * torch.randn(1, 1, 3 * FRAME_SAMPLES, generator=torch.Generator().manual_seed(4))
    codes = ours.encode(pcm)
    assert codes.shape == (1, count, 3)
    assert torch.equal(codes, reference.encode(pcm))
    assert float((ours.decode(codes) - reference.decode(codes)).abs().max()) <= PCM_TOLERANCE


@torch.no_grad()
def test_codes_that_mean_nothing_are_clamped() -> None:
    ours = random_codec(TINY)
    odd = torch.tensor([[[-2, TINY.card]] * 4])
    assert torch.equal(ours.decode(odd), ours.decode(odd.clamp(0, TINY.card - 1)))


def test_codes_of_a_random_codec_vary() -> None:
    ours = random_codec(TINY)
    codes = ours.encode(0.3 * torch.randn(2, 1, 20 * FRAME_SAMPLES, generator=torch.Generator().manual_seed(5)))
    assert all(len(torch.unique(level)) > 5 for level in codes.unbind(dim=1))


def test_every_weight_before_the_codes_and_after_them_can_be_trained() -> None:
    ours = random_codec(TINY)
    pcm = 0.3 * torch.randn(1, 1, 3 * FRAME_SAMPLES)
    latent = ours.encode_latent(pcm)
    ours.decode_latent(latent).square().mean().backward()  # type: ignore[no-untyped-call]
    without = [name for name, weight in ours.named_parameters() if weight.grad is None]
    assert all(name.startswith("quantizer.") for name in without), without


def test_entries_of_unused_codes_are_finite_after_loading() -> None:
    ours = random_codec(TINY)
    weights = ours.state_dict()
    weights["quantizer.rvq_first.vq.layers.0._codebook.cluster_usage"] = torch.zeros(TINY.card)
    weights["quantizer.rvq_first.vq.layers.0._codebook.embedding_sum"] = torch.full(
        (TINY.card, TINY.codebook_dim), 2e-5
    )
    ours.load_state_dict(weights)
    assert torch.equal(ours.quantizer.rvq_first.codebooks[0].embedding, torch.full((TINY.card, TINY.codebook_dim), 2.0))


@torch.no_grad()
def test_a_codec_built_without_memory_works_once_weights_are_assigned() -> None:
    built = random_codec(TINY)
    with torch.device("meta"):
        loaded = Mimi(TINY).eval()
    loaded.load_state_dict(built.state_dict(), assign=True)
    pcm = 0.3 * torch.randn(1, 1, 3 * FRAME_SAMPLES)
    codes = built.encode(pcm)
    assert torch.equal(loaded.encode(pcm), codes)
    assert torch.equal(loaded.decode(codes), built.decode(codes))


@pytest.mark.parametrize("shape", [(1920,), (1, 1920), (1, 2, 1920), (1, 1, 0)])
def test_pcm_of_another_shape_is_refused_by_a_typed_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        random_codec(TINY).encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 0, 3), (1, 5, 3), (4, 3)])
def test_codes_of_another_shape_are_refused_by_a_typed_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        random_codec(TINY).decode(torch.zeros(shape, dtype=torch.int64))


def test_a_shape_that_cannot_be_a_codec_is_refused() -> None:
    with pytest.raises(ConfigError, match="1920"):
        dataclasses.replace(SMALL, seanet=SeanetConfig(dimension=64, ratios=(7, 5)))
    with pytest.raises(ConfigError, match="dimension"):
        dataclasses.replace(SMALL, seanet=SeanetConfig(dimension=32))
    with pytest.raises(ConfigError, match="9 of 8"):
        dataclasses.replace(SMALL, num_codebooks=9)
    with pytest.raises(ConfigError, match="8 semantic"):
        dataclasses.replace(SMALL, semantic_codebooks=8)
