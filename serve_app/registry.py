"""Published models by name: one YAML file each in `configs/models`, so that adding a model is a file and no code.

A card says where a model is and what it takes; `checkpoint: {model: NAME}` in a deployment means its repository at its
revision. A revision that nobody could confirm is null in the file, never a guess: the deployment then names one.
"""

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import pydantic
import yaml

from serve_app.config import CheckpointSettings, Settings, checked
from serve_app.errors import ConfigError

FOLDER: Final = Path("configs") / "models"
PACKAGE: Final = Path(__file__).parent
"""Holds the configs too, also where it is installed."""
NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
SUFFIX: Final = ".yaml"

Parameter = Literal[
    "text_temperature", "text_topk", "text_seed", "audio_temperature", "audio_topk", "audio_seed", "pad_mult",
    "repetition_penalty", "repetition_penalty_context", "cfg_coef", "text_prompt", "voice_prompt", "extra_heads",
]  # fmt: skip
"""Names of `/api/chat` that a model can make something of; conditions have names of their own."""

FileName = Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9@._-]*$")]


class Files(Settings):
    """What the repository holds of it, as far as we know; what its config.json says goes before it.

    Attributes:
        config: None where there is none, which means the published 7B.
        adapter: LoRA weights.
    """

    lm: FileName | None = None
    mimi: FileName | None = None
    tokenizer: FileName | None = None
    config: FileName | None = "config.json"
    adapter: FileName | None = None


class Licence(Settings):
    """Of the weights; the person who serves them has to keep it.

    Attributes:
        weights: its short name.
        note: what to do or not to do, in a sentence.
        gated: whether the hub gives the files only to those who accepted something.
    """

    weights: str
    note: str
    gated: bool = False


class ModelCard(Settings):
    """One published model.

    Attributes:
        title: for people.
        family: which kind of checkpoint it is; `docs/models.md` has one section for each.
        repository, revision: on the hub; the revision is the full commit, or None where nobody could confirm one.
        revision_note: where the revision was seen, or why there is none.
        storage: how its weights lie in the file; ``q8`` needs no more than ``bf16`` does once loaded.
        parameters: of a session, that do something here.
        conditions: names of conditions and their values.
        built: False with a ``missing`` that says what this project lacks for it.
    """

    title: str
    family: Literal["moshi", "hibiki", "stt", "tts", "personaplex"]
    repository: Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9_-]+/[A-Za-z0-9._-]+$")]
    revision: Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None
    revision_note: str
    files: Files
    storage: Literal["bf16", "q8"] = "bf16"
    languages: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    conditions: dict[str, tuple[str, ...]] = pydantic.Field(default_factory=dict)
    licence: Licence
    built: bool = True
    missing: str = ""

    @pydantic.model_validator(mode="after")
    def _says_what_is_missing(self) -> Self:
        if self.built == bool(self.missing):
            raise ValueError("a model that is not built says what is missing, one that is says nothing")
        return self


def known_models(folder: Path | None = None) -> list[str]:
    """Names of every card, sorted."""
    return sorted(path.stem for path in _folder(folder).glob(f"*{SUFFIX}"))


def read_card(name: str, folder: Path | None = None) -> ModelCard:
    """The card of one model.

    Args:
        folder: of the cards; `configs/models` where None, sought from the working directory, then inside the package.

    Raises:
        ConfigError: no such model (it lists those that are), or its file is malformed.
    """
    where = _folder(folder)
    path = where / f"{name}{SUFFIX}"
    if not NAME.fullmatch(name) or not path.is_file():
        raise ConfigError("checkpoint.model", f"{name[:64]!r} is unknown; there are {', '.join(known_models(where))}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}") from error
    return checked(ModelCard, content, str(path))


def located(settings: CheckpointSettings, folder: Path | None = None) -> CheckpointSettings:
    """Settings that name a folder or a repository at a revision, whatever they named.

    Raises:
        ConfigError: as `read_card`; a model that is not built, or that has no revision and was given none.
    """
    if settings.model is None:
        return settings
    card = read_card(settings.model, folder)
    if not card.built:
        raise ConfigError("checkpoint.model", f"{settings.model} is not built: {card.missing}")
    revision = settings.revision or card.revision
    if revision is None:
        raise ConfigError("checkpoint.revision", f"{settings.model} has no confirmed one: {card.revision_note}")
    return CheckpointSettings(repository=card.repository, revision=revision)


def _folder(folder: Path | None) -> Path:
    if folder is not None:
        return folder
    return next((root for root in (FOLDER, PACKAGE / FOLDER) if root.is_dir()), FOLDER)
