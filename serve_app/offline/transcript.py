"""Tokens and their times to words."""

from collections.abc import Iterable

from serve_app.checkpoint.text import TextPieces
from serve_app.offline.job import Word


def words_of(tokens: Iterable[tuple[float, int]], pieces: TextPieces) -> list[Word]:
    """Words with the time of their first piece; a word begins where the text has a space."""
    stream, words = pieces.stream(), list[Word]()
    for start_s, token in tokens:
        text = stream.push(token)
        if not text:
            continue
        if words and not text[0].isspace():
            words[-1] = Word(words[-1].text + text, words[-1].start_s)
        else:
            words.append(Word(text.lstrip(), start_s))
    rest = stream.flush()
    if rest:
        words.append(Word(rest, words[-1].start_s if words else 0.0))
    return [word for word in words if word.text]
