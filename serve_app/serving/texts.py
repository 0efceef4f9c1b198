"""Text models of the engines, as a gateway needs them: fetched once each, by digest."""

import asyncio
from collections.abc import Awaitable, Callable

from serve_app.checkpoint.text import TextPieces
from serve_app.serving.directory import TextModel

Fetch = Callable[[str], Awaitable[bytes | None]]
"""Digest to the bytes of a SentencePiece model; None where nobody has them yet."""


class Texts:
    """What text tokens mean, for each engine that grants a slot: while one replaces another they may differ.

    Belongs to one event loop.

    Args:
        fetch: asks the directory.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._pieces: dict[TextModel, TextPieces] = {}

    async def pieces(self, model: TextModel | None) -> TextPieces | None:
        """The pieces of a text model; None where there is none.

        Raises:
            LookupError: the directory has no bytes for it yet.
            CheckpointError: the bytes are no text model.
        """
        if model is None:
            return None
        if model not in self._pieces:
            content = await self._fetch(model.digest)
            if content is None:
                raise LookupError("the text model has not arrived yet")
            self._pieces[model] = await asyncio.to_thread(TextPieces.of, content, model.digest, model.silent)
        return self._pieces[model]
