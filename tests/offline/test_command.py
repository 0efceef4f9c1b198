"""`serve_app run` from end to end: files in, files out, the same alone and together."""

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.cli import main
from serve_app.client.wav import read_wav
from serve_app.demo.random_checkpoint import write_checkpoint
from serve_app.demo.shapes import SHAPES


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    for name in ("moshi", "stt", "hibiki"):
        write_checkpoint(SHAPES[name], root / name)
    return root


def write_sound(path: Path, seconds: float, seed: int = 0, rate_hz: int = 24_000) -> Path:
    samples = np.random.default_rng(seed).normal(0, 3_000, round(seconds * rate_hz)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.tobytes())
    return path


def run(folder: Path, out: Path, *arguments: str | Path) -> int:
    return main(["run", str(folder), *map(str, arguments), "--out", str(out), "--threads", "1", "--device", "cpu"])


def told(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def test_files_together_are_what_they_are_alone(folders: Path, tmp_path: Path) -> None:
    inputs = [write_sound(tmp_path / f"{n}.wav", 0.5 + 0.3 * n, n) for n in range(3)]
    assert run(folders / "moshi", tmp_path / "together", *inputs, "--seed", "5") == 0
    for number, path in enumerate(inputs):
        alone = tmp_path / f"alone{number}"
        assert run(folders / "moshi", alone, path, "--seed", str(5 + number)) == 0
        one, other = told(alone / f"{number}.json"), told(tmp_path / "together" / f"{number}.json")
        assert one == other
        assert one["words"]
        first, second = read_wav(alone / f"{number}.wav"), read_wav(tmp_path / "together" / f"{number}.wav")
        assert np.abs(first - second).max() <= 1 / 32_767


def test_the_answer_is_a_frame_longer_than_the_recording(folders: Path, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "take 1.2.wav", 10 * 0.08, rate_hz=16_000)
    assert run(folders / "moshi", tmp_path / "out", path) == 0
    assert read_wav(tmp_path / "out" / "take 1.2.wav").size == 11 * 1920


def test_another_seed_gives_another_answer_and_the_same_seed_the_same(folders: Path, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", 1.0)
    for name, seed in (("one", "1"), ("again", "1"), ("other", "2")):
        assert run(folders / "moshi", tmp_path / name, path, "--seed", seed) == 0
    one, again, other = (told(tmp_path / name / "a.json") for name in ("one", "again", "other"))
    assert one == again
    assert one["words"] != other["words"]
    assert one["session"]["sampling"]["text_seed"] == 1


def test_a_model_that_only_writes_gives_no_sound(folders: Path, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", 1.0)
    assert run(folders / "stt", tmp_path / "out", path) == 0
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["a.json"]
    assert told(tmp_path / "out" / "a.json")["audio"] is None


def test_extra_heads_are_written_on_request(folders: Path, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", 10 * 0.08)
    assert run(folders / "stt", tmp_path / "out", path, "--extra-heads") == 0
    heads = told(tmp_path / "out" / "a.json")["heads"]
    assert [round(frame["at_s"] / 0.08) for frame in heads[:10]] == list(range(10))
    assert np.allclose(np.sum(heads[0]["heads"], axis=1), 1, atol=1e-2)


def test_a_prompt_changes_the_answer(folders: Path, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", 0.5)
    (tmp_path / "voices").mkdir()
    write_sound(tmp_path / "voices" / "anna.wav", 0.5, seed=9)
    voice = ("--voices", tmp_path / "voices", "--voice-prompt", "anna")
    assert run(folders / "moshi", tmp_path / "plain", path) == 0
    assert run(folders / "moshi", tmp_path / "told", path, "--text-prompt", "be kind") == 0
    assert run(folders / "moshi", tmp_path / "spoken", path, *voice) == 0
    texts = {told(tmp_path / name / "a.json")["text"] for name in ("plain", "told", "spoken")}
    assert len(texts) == 3


def test_a_guided_translation_takes_conditions_and_goes_on_after_its_source(folders: Path, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", 0.5)
    chosen = ("--cfg-coef", "2", "--condition", "description=good")
    assert run(folders / "hibiki", tmp_path / "out", path, *chosen) == 0
    assert told(tmp_path / "out" / "a.json")["steps"] > 8


def test_a_broken_file_fails_alone(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write_sound(tmp_path / "good.wav", 0.5), tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF no sound")
    assert run(folders / "moshi", tmp_path / "out", bad, good) == 1
    assert "bad.wav" in capsys.readouterr().err
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["good.json", "good.wav"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--text-temperature", "11"), "text_temperature"),
        (("--cfg-coef", "nan"), "cfg_coef"),
        (("--cfg-coef", "2"), "guidance"),
        (("--condition", "mood"), "NAME=VALUE"),
        (("--condition", "mood=good"), "mood"),
        (("--context", "1000000"), "context"),
        (("--pad-mult", "inf"), "pad_mult"),
        (("--extra-heads", "--greedy"), "extra_heads"),
        (("--voice-prompt", "../anna"), "voice_prompt"),
        (("--voice-prompt", "bob"), "voice_prompt"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_a_status(
    arguments: tuple[str, str], problem: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sound(tmp_path / "a.wav", 0.2)
    assert run(folders / "moshi", tmp_path / "out", path, *arguments) in (1, 2)
    assert problem in capsys.readouterr().err


def test_two_inputs_of_one_name_are_refused(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b").mkdir()
    paths = write_sound(tmp_path / "a.wav", 0.2), write_sound(tmp_path / "b" / "a.wav", 0.2)
    assert run(folders / "moshi", tmp_path / "out", *paths) == 2
    assert "more than one input is called a" in capsys.readouterr().err


def test_an_answer_never_overwrites_its_question(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sound(tmp_path / "a.wav", 0.2)
    before = path.read_bytes()
    assert run(folders / "moshi", tmp_path, path) == 2
    assert "overwrite" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize("model", ["no-such-folder", "personaplex-7b", "moshiko-q8"])
def test_a_model_that_is_not_there_is_one_line_and_a_status(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sound(tmp_path / "a.wav", 0.2)
    assert run(Path(model), tmp_path / "out", path) == 2
    assert capsys.readouterr().err.startswith("serve_app run: ")


def test_a_missing_file_is_named_before_the_model_is_loaded(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folders / "moshi", tmp_path / "out", tmp_path / "gone.wav") == 2
    assert "gone.wav" in capsys.readouterr().err


def test_a_model_that_nobody_knows_is_answered_with_those_that_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "moshisan", tmp_path / "out", write_sound(tmp_path / "a.wav", 0.1)) == 2
    said = capsys.readouterr().err
    assert "moshisan is no folder" in said
    assert "moshiko" in said
