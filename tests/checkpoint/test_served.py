"""What a deployment learns from its checkpoint."""

from pathlib import Path

import pytest

from serve_app.checkpoint.served import Served, load_served
from serve_app.checkpoint.source import CheckpointSource
from serve_app.config import CheckpointSettings, EngineSettings
from serve_app.spec import Sampling
from tests.checkpoint.folders import draft

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def serve(folder: Path, **config: object) -> Served:
    made = draft()
    made.config.update(config)
    made.resolved(folder)
    checkpoint = CheckpointSettings(folder=str(folder))
    return load_served(EngineSettings(checkpoint=checkpoint, slots=1), checkpoint)


def test_tokens_that_say_nothing_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    assert serve(tmp_path / "usual").silent_tokens == (0, 3)
    assert serve(tmp_path / "other", existing_text_padding_id=5).silent_tokens == (0, 5)


def test_the_sampling_it_was_published_with_is_carried(tmp_path: Path) -> None:
    generation = {"temp": 0.6, "temp_text": 0.5, "top_k": 100, "top_k_text": 20}
    told = Sampling(audio_temperature=0.6, text_temperature=0.5, audio_top_k=100, text_top_k=20)
    assert serve(tmp_path / "model", lm_gen_config=generation).generation.sampling == told


def test_a_checkpoint_is_called_by_the_last_part_of_where_it_is(tmp_path: Path) -> None:
    assert serve(tmp_path / "model").name == "model"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (CheckpointSource(folder=Path("serve_app/demo/checkpoint/")), "checkpoint"),
        (CheckpointSource(repository="kyutai/moshiko", revision=COMMIT), "moshiko"),
    ],
)
def test_the_name_of_a_source_is_its_last_part(source: CheckpointSource, name: str) -> None:
    assert source.name == name
