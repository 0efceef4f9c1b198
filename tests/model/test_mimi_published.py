"""The published size: names, shapes, and codes beside the reference and Kyutai's Rust implementation."""

from pathlib import Path

import pytest
import rustymimi
import torch
from safetensors.torch import save_file

from serve_app.model.mimi import Mimi
from serve_app.model.state import all_rows, state_bytes_per_slot
from serve_app.units import FRAME_SAMPLES
from tests.model.codec import CPU, FULL, PCM_TOLERANCE, CodeComparison, pair, recorded_latents
from tests.oracle import reference_mimi, weights_of


def _published(name: str) -> str:
    """The spelling of the published file, where the reference's own state dict differs from it."""
    return name.replace("in_projs.0.weight", "in_proj_weight").replace("out_projs.0.weight", "out_proj.weight")


def test_names_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        ours = Mimi(FULL)
    published = reference_mimi(device="meta").state_dict()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in published.items()}


@torch.no_grad()
def test_codes_equal_the_reference_past_the_wrap_and_the_rust_peer_before(tmp_path: Path) -> None:
    reference, ours = pair(FULL)
    comparison, peer_comparison = CodeComparison(reference), CodeComparison(reference)
    path = tmp_path / "mimi.safetensors"
    save_file({_published(name): weight for name, weight in weights_of(reference).items()}, path)
    peer = rustymimi.Tokenizer(str(path), num_codebooks=FULL.num_codebooks)  # fresh: its reset is not clean
    state, rows = ours.init_state(1, CPU, torch.float32), all_rows(1)
    generator = torch.Generator().manual_seed(8)
    latents = recorded_latents(reference)
    worst = worst_peer = 0.0
    with reference.streaming(1):
        for frame in range(320):  # of 32 codes, so that one near tie is not too many
            pcm = 0.3 * torch.randn(1, 1, FRAME_SAMPLES, generator=generator)
            expected = reference.encode(pcm)
            codes = ours.encode_step(pcm, state, rows)
            latent = latents.pop()
            comparison.add(expected, codes, latent)
            if frame < 8:
                peer_codes = torch.from_numpy(peer.encode_step(pcm.numpy())).to(torch.int64)
                peer_comparison.add(peer_codes, codes, latent)
                voice, expected_voice = ours.decode_step(codes, state, rows), reference.decode(expected)
                peer_voice = torch.from_numpy(peer.decode_step(codes.numpy().astype("uint32")))
                worst = max(worst, float((voice - expected_voice).abs().max()))
                worst_peer = max(worst_peer, float((voice - peer_voice).abs().max()))
                assert float(expected_voice.std()) > 0.01
    comparison.check()
    peer_comparison.check()
    print(f"PCM: worst difference to the reference {worst:.1e}, to rustymimi {worst_peer:.1e}")
    assert max(worst, worst_peer) <= PCM_TOLERANCE
    assert frame * FULL.steps_per_frame > FULL.transformer.context


def test_a_full_size_slot_needs_the_memory_that_the_plan_counts() -> None:
    with torch.device("meta"):
        state = Mimi(FULL).init_state(3, torch.device("meta"), torch.float32)
    ring_bytes = 2 * 250 * 512 * 4 * 8  # keys and values of 8 layers
    assert 2 * ring_bytes <= state_bytes_per_slot(state) == pytest.approx(2 * ring_bytes, rel=0.05)
