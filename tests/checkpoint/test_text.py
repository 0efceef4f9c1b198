from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from serve_app.checkpoint.text import TextPieces
from serve_app.errors import CheckpointError
from tests.checkpoint.spelling import write_tokenizer

REPLACEMENT = "\ufffd"


class Spelled:
    """A tokenizer and what we make of it."""

    def __init__(self, path: Path) -> None:
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.pieces = TextPieces.load(path)

    def byte(self, value: int) -> int:
        token: int = self.processor.PieceToId(f"<0x{value:02X}>")
        return token

    def say(self, tokens: list[int]) -> str:
        stream = self.pieces.stream()
        return "".join([stream.push(token) for token in tokens] + [stream.flush()])


@pytest.fixture(scope="module", params=[True, False], ids=["dummy prefix", "no dummy prefix"])
def spelled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Spelled:
    return Spelled(write_tokenizer(tmp_path_factory.mktemp("text") / "spm.model", add_dummy_prefix=request.param))


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=" \u2581"), max_size=30))
def test_token_by_token_equals_the_whole_decoded_at_once(spelled: Spelled, text: str) -> None:
    tokens = [token for token in spelled.processor.EncodeAsIds(f"hello {text} fox") if token not in (0, 3)]
    assert spelled.say(tokens) == spelled.processor.DecodeIds(tokens)


def test_a_character_in_bytes_comes_once_and_whole(spelled: Spelled) -> None:
    stream = spelled.pieces.stream()
    shown = [stream.push(spelled.byte(value)) for value in "🦜".encode()]
    assert shown == ["", "", "", "🦜"]


def test_padding_between_the_bytes_of_a_character_does_not_break_it(spelled: Spelled) -> None:
    tokens = [spelled.byte(value) for value in "é".encode()]
    assert spelled.say([tokens[0], 3, 0, 3, tokens[1]]) == "é"


def test_an_unfinished_character_is_replaced_when_a_word_follows(spelled: Spelled) -> None:
    word = spelled.processor.PieceToId("\u2581the")
    assert spelled.say([spelled.byte(0xE2), word]) == f"{REPLACEMENT} the"


def test_an_invalid_byte_is_replaced_at_once(spelled: Spelled) -> None:
    stream = spelled.pieces.stream()
    assert stream.push(spelled.byte(0xFF)) == REPLACEMENT


def test_an_unfinished_character_at_the_end_is_replaced(spelled: Spelled) -> None:
    assert spelled.say([spelled.byte(0xE2), spelled.byte(0x82)]) == REPLACEMENT


@given(tokens=st.lists(st.integers(-3, 400)))
def test_any_tokens_give_text_that_can_be_sent(spelled: Spelled, tokens: list[int]) -> None:
    said = spelled.say(tokens)
    assert said.encode("utf-8").decode("utf-8") == said


@pytest.mark.parametrize("token", [-2, -1, 0, 1, 2, 3, 32_000])
def test_control_padding_and_foreign_tokens_are_silent(spelled: Spelled, token: int) -> None:
    assert spelled.say([token]) == ""


def test_spaces_between_words_survive_a_pause(spelled: Spelled) -> None:
    the = spelled.processor.PieceToId("\u2581the")
    assert spelled.say([the, 3, 3, 0, the]).strip(" ") == "the the"


def test_the_first_space_goes_where_the_vocabulary_adds_one(tmp_path: Path) -> None:
    spelled = Spelled(write_tokenizer(tmp_path / "spm.model"))
    assert spelled.say([3, spelled.processor.PieceToId("\u2581the")]) == "the"


def test_a_file_that_is_no_sentencepiece_model_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        TextPieces.load(path)


def test_a_missing_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.model"):
        TextPieces.load(tmp_path / "absent.model")
