import json
from pathlib import Path
from typing import Any, Final

import huggingface_hub
import pytest
from huggingface_hub import errors

from serve_app.checkpoint import published, source
from serve_app.checkpoint.source import CheckpointSource, read_layout, resolve, resolve_tokenizer
from serve_app.errors import CheckpointError

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
HUB: Final = CheckpointSource(repository="someone/model", revision=COMMIT)
FILES: Final = (published.LM_NAME, published.MIMI_NAME, published.TOKENIZER_NAME)


def touch(root: Path, *names: str, **config: Any) -> CheckpointSource:
    """A folder of empty files, with a config.json when there is a key for it."""
    for name in names:
        (root / name).touch()
    if config:
        (root / "config.json").write_text(json.dumps(config))
    return CheckpointSource(folder=root)


def test_a_folder_without_a_config_is_the_published_7b(tmp_path: Path) -> None:
    folder = resolve(touch(tmp_path, *FILES))
    assert folder.layout.config == published.MOSHI_7B
    assert folder.layout.mimi_config == published.MIMI
    assert folder.lm_weights == tmp_path / published.LM_NAME


def test_names_in_the_config_are_followed(tmp_path: Path) -> None:
    names = {"moshi_name": "a.safetensors", "mimi_name": "b.safetensors", "tokenizer_name": "c.model"}
    folder = resolve(touch(tmp_path, *names.values(), **names))
    assert [folder.lm_weights.name, folder.mimi_weights.name, folder.tokenizer.name] == list(names.values())


def test_every_missing_file_is_named_in_one_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve(touch(tmp_path, published.MIMI_NAME))
    assert caught.value.problems == (f"{published.LM_NAME}: missing", f"{published.TOKENIZER_NAME}: missing")


def test_a_missing_codec_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mimi\.json: missing"):
        resolve(touch(tmp_path, *FILES, mimi_config_name="mimi.json"))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        resolve(CheckpointSource(folder=tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.ckpt", "model"])
def test_weights_that_are_not_safetensors_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{name}: only safetensors"):
        resolve(touch(tmp_path, name, *FILES, moshi_name=name))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "hf://other/repository/x.safetensors"])
def test_a_name_outside_the_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        resolve(touch(tmp_path, *FILES, moshi_name=name))


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_config_that_is_no_json_object_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_layout(CheckpointSource(folder=tmp_path))


def test_a_name_that_is_no_string_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="moshi_name: want a name"):
        read_layout(touch(tmp_path, moshi_name=3))


def test_a_relative_folder_is_found_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(source, "PACKAGE_PARENT", tmp_path)
    assert read_layout(CheckpointSource(folder=Path("weights"))).config == published.MOSHI_7B


@pytest.mark.parametrize("revision", [None, "", "main", "v1.0", COMMIT[:7]])
def test_a_revision_that_can_move_is_refused(revision: str | None) -> None:
    with pytest.raises(CheckpointError, match="pin a commit"):
        CheckpointSource(repository="someone/model", revision=revision)


@pytest.mark.parametrize("fields", [{}, {"folder": Path("x"), "repository": "a/b", "revision": COMMIT}])
def test_a_source_is_either_a_folder_or_a_repository(fields: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="either"):
        CheckpointSource(**fields)


class Hub:
    """A hub with one repository in a folder; remembers what was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[str, str, str]] = []

    def __call__(self, repository: str, name: str, revision: str) -> Path:
        self.asked.append((repository, name, revision))
        if not (self.root / name).exists():
            raise FileNotFoundError(name)
        return self.root / name


def test_only_the_needed_files_come_from_the_hub_and_all_at_the_pinned_commit(tmp_path: Path) -> None:
    touch(tmp_path, *FILES, "model.gguf", "README.md")
    hub = Hub(tmp_path)
    resolve(HUB, hub)
    assert hub.asked == [("someone/model", name, COMMIT) for name in ("config.json", *FILES)]


def test_a_gateway_asks_for_no_weights(tmp_path: Path) -> None:
    touch(tmp_path, *FILES)
    hub = Hub(tmp_path)
    assert resolve_tokenizer(HUB, hub).name == published.TOKENIZER_NAME
    assert {name for _, name, _ in hub.asked} == {"config.json", published.TOKENIZER_NAME}


def test_a_layout_is_read_without_weights(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    assert read_layout(HUB, hub).config == published.MOSHI_7B
    assert [name for _, name, _ in hub.asked] == ["config.json"]


class NoPage:
    """As much of an HTTP response as the hub's errors look at, whichever HTTP library this version of it uses."""

    headers: Final[dict[str, str]] = {}
    request: Final = None


NO_PAGE: Final[Any] = NoPage()


@pytest.mark.parametrize(
    "failure",
    [
        errors.LocalEntryNotFoundError("offline"),
        errors.RepositoryNotFoundError("no such repository", response=NO_PAGE),
        errors.RevisionNotFoundError("no such revision", response=NO_PAGE),
        errors.GatedRepoError("ask first", response=NO_PAGE),
        errors.HFValidationError("malformed"),
        errors.OfflineModeIsEnabled("offline"),
        errors.HTTPError("cut off"),  # type: ignore[attr-defined]
        TimeoutError("slow"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_hub_that_fails_is_a_checkpoint_error_and_not_a_missing_config(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise failure

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(CheckpointError, match=rf"someone/model@{COMMIT}"):
        read_layout(HUB)


def test_a_repository_without_a_config_is_the_published_7b(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> str:
        raise errors.RemoteEntryNotFoundError("no config.json", response=NO_PAGE)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    assert read_layout(HUB).config == published.MOSHI_7B


def test_a_config_known_to_be_absent_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: huggingface_hub._CACHED_NO_EXIST)
    assert read_layout(HUB).config == published.MOSHI_7B
