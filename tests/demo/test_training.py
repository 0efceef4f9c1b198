"""How the demo's codec is trained: the parts, and that a stopped run goes on as if it had not stopped."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from serve_app.demo.codebooks import Level, k_means, nearest, quantise
from serve_app.demo.envelope import EnvelopeLoss
from serve_app.demo.loss import MelLoss, mel_bank
from serve_app.demo.recording import cut_recording, read_recording, write_recording
from serve_app.demo.segments import Segments
from serve_app.demo.synthesis import Talk, voices
from serve_app.demo.texts import HELD_OUT, TRAINING
from serve_app.demo.train_codec import CODEC, Recipe, Trainer
from serve_app.model.seanet import SeanetConfig
from serve_app.units import FRAME_SAMPLES

TINY = dataclasses.replace(
    CODEC,
    seanet=SeanetConfig(dimension=32, n_filters=2),
    transformer=dataclasses.replace(CODEC.transformer, dim=32, heads=2, layers=1, feedforward=32),
    card=16,
    codebook_dim=8,
    total_codebooks=3,
    num_codebooks=3,
)
SHORT = Recipe(
    free=2, quantised=2, frozen=2, batch=2, frames=8, fewest=2, envelope_from=1, timing_from=2, k_means_frames=64
)


def test_held_out_voices_and_sentences_are_strangers_to_the_training() -> None:
    assert not {v.name.split("+")[1] for v in voices(7, held_out=True)} & {
        v.name.split("+")[1] for v in voices(7, held_out=False)
    }
    said = set(itertools.islice(TRAINING.sentences(1), 3_000))
    assert said.isdisjoint(itertools.islice(HELD_OUT.sentences(1), 3_000))
    assert set(TRAINING.words["noun"]).isdisjoint(HELD_OUT.words["noun"])


def test_sentences_have_no_comma_and_no_open_slot() -> None:
    for sentence in itertools.islice(TRAINING.sentences(2), 500):
        assert not set(sentence) & set(",{}")


def test_the_same_seed_draws_the_same_segments(recording: Talk) -> None:
    segments = Segments([recording])
    first = segments.draw(4, 8, seed=5)
    assert first.shape == (4, 1, 8 * FRAME_SAMPLES)
    assert torch.equal(first, segments.draw(4, 8, seed=5))
    assert not torch.equal(first, segments.draw(4, 8, seed=6))


def test_losses_are_zero_for_the_same_sound_and_grow_with_noise() -> None:
    generator = torch.Generator().manual_seed(1)
    sound = torch.randn(2, 24_000, generator=generator) * torch.linspace(0, 0.2, 24_000)
    noise = torch.randn(2, 24_000, generator=generator)
    mel, envelopes = MelLoss(), EnvelopeLoss()

    def losses(made: Tensor) -> list[float]:
        return [float(mel(made, sound)), *(float(apart) for apart in envelopes(made, sound))]

    assert losses(sound) == pytest.approx([0.0] * 3, abs=1e-5)
    for near, far in zip(losses(sound + 0.003 * noise), losses(sound + 0.1 * noise), strict=True):
        assert 0 < near < far


def test_every_mel_band_hears_something() -> None:
    assert torch.allclose(mel_bank(512, 48).sum(1), torch.ones(48))


def test_k_means_uses_every_entry_and_lies_closer_than_its_first_guess() -> None:
    x = torch.randn(800, 4, generator=torch.Generator().manual_seed(2))

    def distance(rounds: int) -> tuple[float, int]:
        book, _ = k_means(x, 16, rounds, torch.Generator().manual_seed(3))
        index = nearest(x, book)
        return float((x - book[index]).square().sum(1).mean()), len(torch.unique(index))

    (guessed, _), (found, used) = distance(0), distance(10)
    assert found < 0.8 * guessed
    assert used == 16


def test_a_dead_entry_restarts_on_a_vector_that_was_heard() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(256, 4, generator=generator)
    level = Level.fit(x, 8, 5, generator)
    level.total[3], level.usage[3] = 1_000.0, 1e-3
    level.learn(x, nearest(x, level.book), generator)
    assert float((x - level.book[3]).square().sum(1).min()) < 1e-6


def test_quantising_stops_at_the_levels_that_are_kept() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(64, 4, generator=generator)
    levels = [Level.fit(x, 8, 3, generator) for _ in range(3)]
    total, seen = quantise(x, levels, torch.tensor([0, 1, 2, 3]).repeat(16))
    assert [len(index) for _, index in seen] == [48, 32, 16]
    assert float(total[::4].abs().max()) == 0.0


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(recording: Talk, tmp_path: Path) -> None:
    segments = Segments([recording])
    whole = Trainer(SHORT, segments, TINY)
    losses = [whole.advance() for _ in range(SHORT.steps)]
    half = Trainer(SHORT, segments, TINY)
    again = [half.advance() for _ in range(3)]
    half.save(tmp_path / "half.pt")
    other = Trainer(SHORT, segments, TINY)
    other.restore(tmp_path / "half.pt")
    again += [other.advance() for _ in range(3)]
    assert again == losses


def test_a_trained_codec_holds_the_learnt_codebooks(recording: Talk, tmp_path: Path) -> None:
    trainer = Trainer(SHORT, Segments([recording]), TINY)
    mimi = trainer.run(tmp_path / "codec.pt")
    codebooks = [*mimi.quantizer.rvq_first.codebooks, *mimi.quantizer.rvq_rest.codebooks]
    for codebook, level in zip(codebooks, trainer.levels, strict=True):
        assert torch.equal(codebook.embedding, level.book)


def test_a_recording_reads_back_as_it_was_written(recording: Talk, tmp_path: Path) -> None:
    write_recording(recording, tmp_path)
    again = read_recording(tmp_path)
    assert again.spans == recording.spans
    assert np.array_equal(again.pcm, recording.pcm)


def test_a_recording_takes_the_first_sentence_of_each_voice_until_it_is_long_enough(recording: Talk) -> None:
    cut = cut_recording([recording] * 40)
    assert cut.seconds <= 30
    assert len(cut.spans) > 3
