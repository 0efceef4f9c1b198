"""The cards of published models: every file fits the schema, and a new model is a file."""

import json
from pathlib import Path
from typing import Final

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serve_app.checkpoint.named import source_of
from serve_app.config import CheckpointSettings, EngineSettings
from serve_app.errors import ConfigError
from serve_app.registry import FOLDER, ModelCard, known_models, located, read_card

MOSHIKO: Final = "2bfc9ae6e89079a5cc7ed2a68436010d91a3d289"


@pytest.mark.parametrize("name", known_models())
def test_every_card_fits_the_schema(name: str) -> None:
    card = read_card(name)
    assert card.title
    assert card.licence.note.endswith(".")
    assert len(set(card.parameters)) == len(card.parameters)


def test_the_published_family_is_complete() -> None:
    assert {"moshiko", "moshika", "moshiko-q8", "moshika-q8", "hibiki-2b", "stt-1b-en_fr", "stt-2.6b-en"} <= set(
        known_models()
    )
    assert {"tts-1.6b-en_fr", "personaplex-7b"} <= set(known_models())


@pytest.mark.parametrize("name", known_models())
def test_a_card_is_a_source_or_says_why_not(name: str) -> None:
    card = read_card(name)
    if card.built and card.revision:
        assert source_of(CheckpointSettings(model=name)).repository == card.repository
        return
    with pytest.raises(ConfigError, match=r"not built|no confirmed one"):
        source_of(CheckpointSettings(model=name))


def test_a_model_by_name_is_its_repository_at_its_commit() -> None:
    settings = EngineSettings.model_validate({"checkpoint": {"model": "moshiko"}}).checkpoint
    assert settings is not None
    source = source_of(settings)
    assert (source.repository, source.revision) == ("kyutai/moshiko-pytorch-bf16", MOSHIKO)


def test_a_revision_beside_the_name_goes_before_the_cards() -> None:
    source = source_of(CheckpointSettings(model="moshiko-q8", revision="a" * 40))
    assert (source.repository, source.revision) == ("kyutai/moshiko-pytorch-q8", "a" * 40)


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'moshikko' is unknown; there are .*moshika, .*moshiko"):
        read_card("moshikko")


@given(st.text(max_size=80))
def test_no_name_reaches_out_of_the_folder(name: str) -> None:
    if name in known_models():
        return
    with pytest.raises(ConfigError, match="is unknown"):
        read_card(name)


@pytest.mark.parametrize("name", ["../demo", "..", "../../configs/models/moshiko", "/etc/passwd", "MOSHIKO"])
def test_names_with_path_parts_are_unknown(name: str) -> None:
    with pytest.raises(ConfigError, match="is unknown"):
        read_card(name)


def card_file(folder: Path, **changes: object) -> Path:
    content = json.loads(read_card("moshiko").model_dump_json()) | changes
    path = folder / "ours.yaml"
    path.write_text(yaml.safe_dump(content))
    return folder


def test_a_new_model_is_a_file(tmp_path: Path) -> None:
    folder = card_file(tmp_path, title="Ours", repository="me/ours", revision="b" * 40)
    assert known_models(folder) == ["ours"]
    assert located(CheckpointSettings(model="ours"), folder) == CheckpointSettings(
        repository="me/ours", revision="b" * 40
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"colour": "red"}, "colour: unknown key"),
        ({"revision": "main"}, "revision"),
        ({"repository": "../x"}, "repository"),
        ({"parameters": ["temperature"]}, "parameters"),
        ({"files": {"lm": "../../x"}}, "files.lm"),
        ({"family": "whisper"}, "family"),
        ({"built": False}, "what is missing"),
        ({"missing": "much"}, "what is missing"),
    ],
)
def test_a_malformed_card_is_refused_by_its_key(changes: dict[str, object], problem: str, tmp_path: Path) -> None:
    folder = card_file(tmp_path, **changes)
    with pytest.raises(ConfigError, match=problem):
        read_card("ours", folder)


def test_a_card_that_is_no_yaml_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text("{")
    with pytest.raises(ConfigError, match=r"ours\.yaml"):
        read_card("ours", tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model": "a", "folder": "b"},
        {"model": "a", "repository": "b/c", "revision": "d"},
        {"folder": "a", "revision": "b"},
    ],
)
def test_a_checkpoint_has_exactly_one_source(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"give either|belong together"):
        CheckpointSettings.model_validate(settings)


def test_cards_lie_where_deployments_lie() -> None:
    assert FOLDER.parts == ("configs", "models")
    assert set(ModelCard.model_fields) >= {"repository", "revision", "licence", "parameters"}
