"""One command makes a checkpoint of any shape, and it loads and runs as a published one would."""

from pathlib import Path

import pytest
import torch

from serve_app.checkpoint.duplex import load_duplex
from serve_app.checkpoint.source import CheckpointSource, resolve
from serve_app.checkpoint.text import TextPieces
from serve_app.demo.random_checkpoint import main
from serve_app.demo.shapes import CONTEXT, SHAPES
from serve_app.model.state import all_rows

CPU = torch.device("cpu")


def test_every_kind_of_the_family_has_a_shape() -> None:
    assert set(SHAPES) == {"moshi", "moshi-2b", "hibiki", "tts", "stt", "low-rank", "lora", "q8"}


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_checkpoint_of_every_shape_loads_and_runs_past_its_wrap(shape: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    assert main([shape, str(tmp_path / "made")]) == 0
    folder = resolve(CheckpointSource(folder=tmp_path / "made"))
    duplex = load_duplex(folder, CPU, torch.float32)
    state = duplex.init_state(1, CPU, torch.float32)
    generator = torch.Generator().manual_seed(0)
    texts = set()
    for _ in range(CONTEXT + 5):
        output = duplex.tick(0.3 * torch.randn(1, 1, 1920, generator=generator), state, all_rows(1))
        assert output.finite.all()
        texts.add(int(output.text))
    assert len(texts) > 5
    assert len(TextPieces.load(folder.tokenizer)) == duplex.lm.config.text_card


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", "3"), ("two", "3"), ("other", "4")):
        assert main(["lora", str(tmp_path / name), "--seed", seed]) == 0

    def read(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}

    assert read("one") == read("two")
    assert read("one")["model.safetensors"] != read("other")["model.safetensors"]


def test_a_folder_that_cannot_be_written_is_one_line_and_a_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["moshi", str(tmp_path / "file" / "inside")]) == 2
    assert capsys.readouterr().err.startswith("random_checkpoint: ")
