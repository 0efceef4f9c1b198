"""The gate in front of a narrower codec, and the laws that such a codec keeps."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from serve_app.bench.codec_quality import LEAST_SI_SNR_DB, MOST_ESTOI_LOSS, CodecDivergence, compare_codecs, si_snr_db
from serve_app.bench.models import build
from serve_app.bench.quality import main
from serve_app.bench.shapes import PRESETS
from serve_app.model.mimi import Mimi
from serve_app.model.state import Rows, all_rows, leaves
from serve_app.units import FRAME_SAMPLES

CPU = torch.device("cpu")
ROWS = 4


@pytest.fixture(scope="module")
def exact() -> Mimi:
    torch.set_num_threads(1)
    return build(PRESETS["tiny"], CPU, torch.float32).mimi


@pytest.fixture(scope="module")
def narrow(exact: Mimi) -> Mimi:
    made = copy.deepcopy(exact)
    made.narrow(torch.bfloat16)
    return made


def sound(frames: int, rows: int = 1) -> Tensor:
    return 0.3 * torch.randn(frames, rows, 1, FRAME_SAMPLES, generator=torch.Generator().manual_seed(1))


def test_a_codec_differs_from_itself_by_nothing(exact: Mimi) -> None:
    found = compare_codecs(exact, copy.deepcopy(exact), sound(6).flatten(), speech=False)
    assert set(found.code_agreement) == set(found.search_agreement) == {1.0}
    assert found.decoder_si_snr_db == found.path_si_snr_db == math.inf
    assert found.frames == 6
    assert found.passes(LEAST_SI_SNR_DB, MOST_ESTOI_LOSS)


def test_a_codec_in_bf16_is_near_and_not_the_same(exact: Mimi, narrow: Mimi) -> None:
    found = compare_codecs(exact, narrow, sound(12).flatten(), speech=False)
    assert LEAST_SI_SNR_DB < found.decoder_si_snr_db < math.inf
    assert 0.5 < min(found.code_agreement) < 1


def test_noise_at_a_tenth_of_the_signal_is_twenty_decibels_whatever_the_scale() -> None:
    signal, noise = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(2)).unbind()
    assert si_snr_db(signal, 7 * (signal + 0.1 * noise)) == pytest.approx(20, abs=0.1)


def test_a_codec_that_broke_or_is_understood_less_does_not_pass() -> None:
    fine = CodecDivergence(
        frames=1, code_agreement=(1.0,), search_agreement=(1.0,), decoder_si_snr_db=30.0, path_si_snr_db=3.0
    )
    assert fine.passes(20, 0.01)
    for change in ({"decoder_si_snr_db": 19.0}, {"decoder_si_snr_db": math.nan}, {"estoi": 0.88, "estoi_exact": 0.9}):
        worse = copy.copy(fine)
        for name, value in change.items():
            object.__setattr__(worse, name, value)
        assert not worse.passes(20, 0.01)


@torch.no_grad()
def test_a_row_of_a_bf16_codec_is_what_it_is_whoever_else_is_there(narrow: Mimi) -> None:
    heard = sound(5, ROWS)
    others = heard.clone()
    others[:, [0, 2, 3]] = sound(5, ROWS)[:, [3, 0, 2]].neg()
    one, two = (through(narrow, frames) for frames in (heard, others))
    for ours, theirs in zip(one, two, strict=True):
        assert torch.equal(ours[:, 1], theirs[:, 1])
        assert not torch.equal(ours[:, 0], theirs[:, 0])


@torch.no_grad()
def test_a_masked_row_of_a_bf16_codec_keeps_every_state_bit(narrow: Mimi) -> None:
    state = narrow.init_state(ROWS, CPU, narrow.dtype)
    for frame in sound(3, ROWS):
        narrow.decode_step(narrow.encode_step(frame, state, all_rows(ROWS)), state, all_rows(ROWS))
    before = [leaf.clone() for leaf in leaves(state)]
    rows = Rows.of(torch.arange(ROWS), torch.tensor([True, False, True, False]), ROWS)
    narrow.decode_step(narrow.encode_step(sound(1, ROWS)[0], state, rows), state, rows)
    for old, new in zip(before, leaves(state), strict=True):
        assert torch.equal(old[[1, 3]], new[[1, 3]])


def test_the_command_tells_both_models_and_fails_by_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tiny", "--codec", "bfloat16", "--weights", "int8", "--steps", "4"]
    assert main([*words, "--max-kl", "10", "--min-agreement", "0"]) == 0
    language, codec = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert language["weights"] == "int8"
    assert language["kl_mean"] > 0
    assert len(codec["code_agreement"]) == 8
    assert codec["estoi"] is None  # random weights say nothing
    assert main(["tiny", "--codec", "bfloat16", "--min-si-snr", "1000"]) == 1


def test_a_recording_that_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--codec", "bfloat16", "--audio", str(tmp_path / "none.wav")]) == 2
    assert "none.wav" in capsys.readouterr().err


def through(mimi: Mimi, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Codes ``[T, R, K]`` and sound ``[T, R, 1920]``."""
    state, rows = mimi.init_state(ROWS, CPU, mimi.dtype), all_rows(ROWS)
    codes = [mimi.encode_step(frame, state, rows) for frame in frames]
    pcm = [mimi.decode_step(step, state, rows) for step in codes]
    return torch.stack(codes)[..., 0], torch.stack(pcm)[:, :, 0]
