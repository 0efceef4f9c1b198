"""Text tokens to whole UTF-8.

The reference sends raw pieces, so a character that SentencePiece spells in bytes reaches its clients as ``<0x8E>``;
here bytes wait until the character is whole. Needs sentencepiece alone.
"""

import codecs
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import sentencepiece

from serve_app.errors import CheckpointError

SPACE_MARK: Final = "\u2581"
SILENT_TOKENS: Final = (0, 3)
"""End of padding and padding: most steps of a conversation."""

Sound = str | int
"""What a token says: text, or one byte (0 to 255)."""


class TextPieces:
    """What each text token says. Immutable, shared by all streams.

    Attributes:
        drops_first_space: whether this vocabulary writes a space before the first word, which nobody wants to see.
    """

    def __init__(self, sounds: Sequence[Sound], drops_first_space: bool) -> None:
        self._sounds = tuple(sounds)
        self.drops_first_space = drops_first_space

    @classmethod
    def load(cls, path: Path, silent: Sequence[int] = SILENT_TOKENS) -> "TextPieces":
        """Read a SentencePiece model.

        Args:
            path: the ``.model`` file.
            silent: tokens that say nothing, besides the control and unknown tokens of the model.

        Raises:
            CheckpointError: the file is missing or is no SentencePiece model.
        """
        try:
            return cls.of(path.read_bytes(), str(path), silent)
        except OSError as error:
            raise CheckpointError(str(path), [f"cannot be read: {error}"]) from error

    @classmethod
    def of(cls, model: bytes, where: str, silent: Sequence[int] = SILENT_TOKENS) -> "TextPieces":
        """The same from the bytes of a model; ``where`` names it in errors."""
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise CheckpointError(where, [f"no SentencePiece model: {error}"]) from error
        sounds = [_sound(processor, token) for token in range(processor.GetPieceSize())]
        for token in silent:
            if token < len(sounds):
                sounds[token] = ""
        marked = next(
            (t for t, sound in enumerate(sounds) if isinstance(sound, str) and sound[:1] == " " < sound), None
        )
        drops = marked is not None and not processor.DecodeIds([marked]).startswith(" ")
        return cls(sounds, drops)

    def __len__(self) -> int:
        return len(self._sounds)

    def __getitem__(self, token: int) -> Sound:
        """What a token says; nothing for one outside the vocabulary (-1, -2, a start token)."""
        return self._sounds[token] if 0 <= token < len(self._sounds) else ""

    def stream(self, *, goes_on: bool = False) -> "TextStream":
        """A conversation's text, from its first word or from the middle."""
        return TextStream(self, goes_on=goes_on)


class TextStream:
    """Text of one conversation, token by token. Not thread-safe; one owner."""

    def __init__(self, pieces: TextPieces, *, goes_on: bool = False) -> None:
        self._pieces = pieces
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = not goes_on

    def push(self, token: int) -> str:
        """What can be shown now that this token has come: whole characters only, invalid bytes as U+FFFD."""
        sound = self._pieces[token]
        if isinstance(sound, int):
            return self._begin(self._bytes.decode(bytes((sound,))))
        return self._begin(self.flush() + sound) if sound else ""

    def flush(self) -> str:
        """End of text: U+FFFD if a character was left unfinished."""
        return self._bytes.decode(b"", final=True)

    def _begin(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ") if self._pieces.drops_first_space else text
        return text


def tokeniser(model: bytes, where: str) -> Callable[[str], list[int]]:
    """What turns text into the tokens of a SentencePiece model. The function may be called from any thread.

    Raises:
        CheckpointError: it is no such model; ``where`` names it.
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise CheckpointError(where, [f"no SentencePiece model: {error}"]) from error
    return lambda text: [int(token) for token in processor.EncodeAsIds(text)]


def _sound(processor: sentencepiece.SentencePieceProcessor, token: int) -> Sound:
    if processor.IsControl(token) or processor.IsUnknown(token) or processor.IsUnused(token):
        return ""
    piece: str = processor.IdToPiece(token)
    if processor.IsByte(token):
        return int(piece[1:-1], 16)
    return piece.replace(SPACE_MARK, " ")
