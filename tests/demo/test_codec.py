"""The codec that ships carries speech that it never heard."""

import numpy as np
import torch

from serve_app.checkpoint.source import Folder
from serve_app.demo.build import CARRIED, CHECKPOINT, mimi_json
from serve_app.demo.measure import codec_intelligibility, converse, entries_used, intelligibility
from serve_app.demo.parrot import LAG
from serve_app.demo.synthesis import LEVEL_RMS, Talk
from serve_app.model.duplex import Duplex
from serve_app.units import FRAME_SAMPLES


def test_held_out_speech_stays_intelligible_through_the_codebooks_that_are_carried(
    duplex: Duplex, recording: Talk
) -> None:
    found = codec_intelligibility(duplex.mimi, [recording], CARRIED)
    assert found.estoi >= 0.65
    assert found.stoi >= 0.82


def test_noise_with_the_envelope_of_speech_does_not_pass_for_speech(recording: Talk) -> None:
    frames = recording.pcm[: len(recording.pcm) // 240 * 240].reshape(-1, 240)
    level = np.sqrt(np.mean(frames**2, axis=1, keepdims=True))
    noise = (level * np.random.default_rng(1).standard_normal(frames.shape)).astype(np.float32)
    found = intelligibility([(frames.reshape(-1), noise.reshape(-1))])
    assert found.estoi < 0.3


def test_the_voice_that_comes_back_is_the_voice_that_went_in(duplex: Duplex, recording: Talk) -> None:
    """The whole tick, streamed: speech comes back `LAG` steps later, as intelligible as the codec allows."""
    back = converse(duplex, [recording.pcm]).pcm[0].numpy()[LAG * FRAME_SAMPLES :]
    length = min(len(back), len(recording.pcm))
    assert intelligibility([(recording.pcm[:length], back[:length])]).estoi >= 0.6


def test_silence_stays_silent(duplex: Duplex) -> None:
    with torch.no_grad():
        back = duplex.mimi.decode(duplex.mimi.encode(torch.zeros(1, 1, 50 * FRAME_SAMPLES))[:, :CARRIED])
    assert float(back[..., 10 * FRAME_SAMPLES :].square().mean().sqrt()) < LEVEL_RMS / 100


def test_most_entries_of_every_codebook_are_in_use(duplex: Duplex, recording: Talk) -> None:
    pieces = [torch.from_numpy(recording.pcm * gain)[None, None] for gain in (0.25, 0.5, 0.75, 1.0, 1.5)]
    with torch.no_grad():
        codes = torch.cat([duplex.mimi.encode(piece) for piece in pieces], dim=2)  # about 1,750 frames
    assert min(entries_used(codes, 1_024)) > 200


def test_the_checkpoint_is_under_25_mb() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 25_000_000


def test_the_folder_says_what_the_codec_is(folder: Folder, duplex: Duplex) -> None:
    assert folder.layout.mimi_config == mimi_json(duplex.mimi.config)
    assert duplex.lm.config.dep_q == duplex.lm.config.user_q == CARRIED
