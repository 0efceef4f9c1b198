"""A gateway knows what the tokens of every engine mean, also while two checkpoints are served."""

import asyncio
from pathlib import Path

import pytest

from serve_app.serving.directory import TextModel
from serve_app.serving.texts import Texts
from tests.checkpoint.spelling import write_tokenizer


class Shelf:
    """Text models by digest, and how often each was asked for."""

    def __init__(self, folder: Path) -> None:
        self.bytes = {"one": write_tokenizer(folder / "spm.model").read_bytes()}
        self.asked: list[str] = []

    async def fetch(self, digest: str) -> bytes | None:
        self.asked.append(digest)
        return self.bytes.get(digest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture
def shelf(folder: Path) -> Shelf:
    return Shelf(folder)


def test_a_text_model_is_fetched_once(shelf: Shelf) -> None:
    async def twice() -> None:
        texts = Texts(shelf.fetch)
        assert await texts.pieces(TextModel("one", ())) is await texts.pieces(TextModel("one", ()))

    asyncio.run(twice())
    assert shelf.asked == ["one"]


def test_the_checkpoint_says_which_tokens_are_silent(shelf: Shelf) -> None:
    word = 42

    async def both() -> None:
        texts = Texts(shelf.fetch)
        spoken, silent = await texts.pieces(TextModel("one", ())), await texts.pieces(TextModel("one", (word,)))
        assert spoken is not None
        assert silent is not None
        assert spoken[word] != ""
        assert silent[word] == ""

    asyncio.run(both())


def test_an_engine_without_text_has_none(shelf: Shelf) -> None:
    assert asyncio.run(Texts(shelf.fetch).pieces(None)) is None
    assert shelf.asked == []


def test_a_text_model_that_has_not_arrived_is_asked_for_again(shelf: Shelf) -> None:
    texts = Texts(shelf.fetch)
    with pytest.raises(LookupError):
        asyncio.run(texts.pieces(TextModel("two", ())))
    shelf.bytes["two"] = shelf.bytes["one"]
    assert asyncio.run(texts.pieces(TextModel("two", ()))) is not None
