"""Where a checkpoint is, and the files of it that we need. No torch: gateways resolve their tokenizer here too."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from serve_app.checkpoint import published
from serve_app.errors import CheckpointError

PACKAGE_PARENT: Final = Path(__file__).parents[2]
WEIGHT_SUFFIXES: Final = (".safetensors", ".sft", ".sfts")
COMMIT_DIGITS: Final = 40

Download = Callable[[str, str, str], Path]
"""``(repository, file name, revision)`` to a local path.

Raises FileNotFoundError when there is no such file, another OSError when the hub refuses or cannot be reached.
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSource:
    """A local folder in Kyutai's layout, or a hub repository at a commit.

    Attributes:
        folder: a relative one is sought from the working directory, then beside the package.
        repository: ``owner/name``.
        revision: the full commit: a branch moves, and weights would change under a running service.

    Raises:
        CheckpointError: both or neither are given, or the revision is no commit.
    """

    folder: Path | None = None
    repository: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.repository is None):
            raise CheckpointError(str(self), ["give either a folder or a repository"])
        if self.repository is not None and not _is_commit(self.revision):
            raise CheckpointError(str(self), [f"revision {self.revision}: pin a commit of {COMMIT_DIGITS} hex digits"])

    @property
    def name(self) -> str:
        """What people call it: the last part of where it is."""
        where = self.repository if self.folder is None else str(self.folder)
        assert where is not None
        return where.rstrip("/").rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.folder is None else str(self.folder)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a checkpoint says about itself: read without its weights.

    Attributes:
        where: the source, for errors.
        config_name: the file that ``config`` came from.
        config: all of config.json, or the published 7B where there is none.
        mimi_config_name, mimi_config: the codec's, or the published Mimi's.
        lm_name, mimi_name, tokenizer_name: files.
        adapter_name: the file of LoRA weights, where ``lora`` is set.
        model_type: ``moshi``, ``hibiki``...
        generation: ``lm_gen_config``: the sampling that the model was published with.
    """

    where: str
    config_name: str
    config: Mapping[str, Any]
    mimi_config_name: str
    mimi_config: Mapping[str, Any]
    lm_name: str
    mimi_name: str
    tokenizer_name: str
    adapter_name: str | None
    model_type: str
    generation: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A checkpoint whose files are all here."""

    layout: Layout
    lm_weights: Path
    mimi_weights: Path
    tokenizer: Path
    adapter: Path | None = None


def download(repository: str, name: str, revision: str) -> Path:
    """One file of a hub repository, from the local cache or the hub."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        if (
            huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
            is huggingface_hub._CACHED_NO_EXIST
        ):
            raise FileNotFoundError(name) from error
        raise ConnectionError("not in the local cache, and the hub cannot be reached") from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(name) from error
    except (errors.HTTPError, ValueError) as error:  # type: ignore[attr-defined]  # broken transfer; malformed name
        raise OSError(str(error)) from error


def read_layout(source: CheckpointSource, download: Download = download) -> Layout:
    """Read the configuration of a checkpoint and nothing else of it.

    Raises:
        CheckpointError: the folder is missing, the hub refuses or cannot be reached, a configuration cannot be read.
    """
    return _layout(str(source), functools.partial(_locate, source, download))


def resolve(source: CheckpointSource, download: Download = download) -> Folder:
    """Bring every file that serving needs onto this machine: configurations, weights, the tokenizer.

    Raises:
        CheckpointError: as `read_layout`; every missing file by name; weights that are not safetensors.
    """
    locate = functools.partial(_locate, source, download)
    layout = _layout(str(source), locate)
    problems = _pickles(layout)
    found: dict[str, Path] = {}
    adapters = () if layout.adapter_name is None else (layout.adapter_name,)
    for name in (layout.lm_name, layout.mimi_name, layout.tokenizer_name, *adapters):
        try:
            found[name] = locate(name)
        except FileNotFoundError:
            problems.append(f"{name}: missing")
    if problems:
        raise CheckpointError(layout.where, problems)
    return Folder(
        layout=layout,
        lm_weights=found[layout.lm_name],
        mimi_weights=found[layout.mimi_name],
        tokenizer=found[layout.tokenizer_name],
        adapter=None if layout.adapter_name is None else found[layout.adapter_name],
    )


def resolve_tokenizer(source: CheckpointSource, download: Download = download) -> Path:
    """The text tokenizer alone, for a gateway.

    Raises:
        CheckpointError: as `resolve`.
    """
    locate = functools.partial(_locate, source, download)
    layout = _layout(str(source), locate)
    try:
        return locate(layout.tokenizer_name)
    except FileNotFoundError:
        raise CheckpointError(layout.where, [f"{layout.tokenizer_name}: missing"]) from None


def _locate(source: CheckpointSource, download: Download, name: str) -> Path:
    """The local path of a file. FileNotFoundError when the checkpoint has none of that name."""
    if Path(name).is_absolute() or ".." in Path(name).parts or "://" in name:
        raise CheckpointError(str(source), [f"{name}: names a file outside the checkpoint"])
    if source.folder is not None:
        path = _root(source.folder) / name
        if not path.is_file():
            raise FileNotFoundError(name)
        return path
    assert source.repository is not None
    assert source.revision is not None
    try:
        return download(source.repository, name, source.revision)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(str(source), [f"{name}: {error}"]) from error


def _root(folder: Path) -> Path:
    for root in (folder, PACKAGE_PARENT / folder):
        if root.is_dir():
            return root
    raise CheckpointError(str(folder), ["no such folder"])


def _layout(where: str, locate: Callable[[str], Path]) -> Layout:
    try:
        config = _read_json(where, locate(published.CONFIG_NAME))
    except FileNotFoundError:
        config = published.MOSHI_7B
    mimi_config_name = _name(where, config, "mimi_config_name", "")
    try:
        mimi_config = _read_json(where, locate(mimi_config_name)) if mimi_config_name else published.MIMI
    except FileNotFoundError:
        raise CheckpointError(where, [f"{mimi_config_name}: missing"]) from None
    generation = config.get("lm_gen_config") or {}
    if not isinstance(generation, Mapping):
        raise CheckpointError(where, ["config.json: lm_gen_config: want an object"])
    return Layout(
        where=where,
        config_name=published.CONFIG_NAME,
        config=config,
        mimi_config_name=mimi_config_name or "the published Mimi",
        mimi_config=mimi_config,
        lm_name=_name(where, config, "moshi_name", published.LM_NAME),
        mimi_name=_name(where, config, "mimi_name", published.MIMI_NAME),
        tokenizer_name=_name(where, config, "tokenizer_name", published.TOKENIZER_NAME),
        adapter_name=_adapter_name(where, config),
        model_type=_name(where, config, "model_type", "moshi"),
        generation=generation,
    )


def _read_json(where: str, path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(where, [f"{path.name}: no JSON: {error}"]) from error
    if not isinstance(content, dict):
        raise CheckpointError(where, [f"{path.name}: want an object, got {type(content).__name__}"])
    return content


def _name(where: str, config: Mapping[str, Any], key: str, default: str) -> str:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise CheckpointError(where, [f"{published.CONFIG_NAME}: {key}: want a name, got {str(value)[:60]!r}"])
    return value


def _adapter_name(where: str, config: Mapping[str, Any]) -> str | None:
    """The adapter's file; None where the base is served as it is."""
    name = _name(where, config, "lora_name", "") or None
    if bool(config.get("lora")) == (name is not None):
        return name
    said = f"lora: {config.get('lora')!r} with lora_name {name!r}"
    raise CheckpointError(where, [f"{published.CONFIG_NAME}: {said}: give both or neither"])


def _pickles(layout: Layout) -> list[str]:
    return [
        f"{name}: only safetensors is read ({', '.join(WEIGHT_SUFFIXES)}), never a pickle"
        for name in (layout.lm_name, layout.mimi_name, layout.adapter_name)
        if name is not None and not name.endswith(WEIGHT_SUFFIXES)
    ]


def _is_commit(revision: str | None) -> bool:
    return revision is not None and len(revision) == COMMIT_DIGITS and set(revision.lower()) <= set("0123456789abcdef")
