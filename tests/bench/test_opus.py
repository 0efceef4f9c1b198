"""The comparison of Opus encoders, on a second of speech."""

import json
import wave
from pathlib import Path

import pytest

from serve_app.bench import opus


def test_every_encoder_is_told_with_what_it_costs_and_how_it_sounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opus, "ROUNDS", 1)
    monkeypatch.setattr(opus, "ROUND_S", 0.02)
    short = tmp_path / "short.wav"
    with wave.open(str(opus.SPEECH)) as source, wave.open(str(short), "wb") as target:
        target.setparams(source.getparams())
        target.writeframes(source.readframes(4 * source.getframerate()))
    assert opus.main([str(short)]) == 0
    sphn, _, _, ours = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sphn["name"] == "sphn"
    assert ours["lag_ms"] == 2.5 < sphn["lag_ms"]
    for one in (sphn, ours):
        assert 0.9 < one["estoi"] < 1
        assert 20 < one["kbps"] < 50
        assert one["frame_us"] > 0
        assert one["neighbour"] > 0
